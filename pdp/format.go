package main

import (
	"os"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/format"
)

type formatAnswer struct {
	Source string `json:"source"`
}

// formatSource formats Rego as `opa fmt` does, from the text or from a file.
func formatSource(r request) (any, error) {
	name, text := "source.rego", []byte(r.Source)
	if r.Path != "" {
		var err error
		if text, err = os.ReadFile(r.Path); err != nil {
			return nil, &failure{Code: "not_found", Message: err.Error()}
		}
		name = r.Path
	}
	options := parserOptions()
	formatted, err := format.SourceWithOpts(name, text, format.Opts{RegoVersion: ast.RegoV1, ParserOptions: &options})
	if err != nil {
		report := &report{src: &source{files: []sourceFile{{path: name, data: text}}}}
		report.opa(err, name)
		return nil, invalid(report.problems)
	}
	return formatAnswer{Source: string(formatted)}, nil
}
