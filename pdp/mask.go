package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

// maskRef is where OPA looks for the rules that mask its decision logs.
var maskRef = ast.MustParseRef("data.system.log.mask")

// loadMask compiles one module that says what is masked, and keeps it under the sha256 of its text: decide answers its
// data.system.log.mask then. It is no constitution: it has no rules, no data, no tests, and what decides does not see it.
func (s *server) loadMask(r request) (any, error) {
	sum := sha256.Sum256([]byte(r.Source))
	digest := hex.EncodeToString(sum[:])
	if s.find(digest) == nil {
		built, problems := compileMask(path.Base(r.Path), digest, r.Source)
		if len(problems) > 0 {
			return nil, invalid(problems)
		}
		s.mu.Lock()
		s.loaded[digest] = built
		s.mu.Unlock()
	}
	return struct {
		Digest string `json:"digest"`
	}{digest}, nil
}

func compileMask(name, digest, text string) (*constitution, []problem) {
	src := &source{kind: kindFolder, digest: digest, files: []sourceFile{{path: name, data: []byte(text)}}}
	c := &constitution{src: src, modules: map[string]*ast.Module{}}
	r := &report{src: src}
	module, err := ast.ParseModuleWithOpts(name, text, parserOptions())
	switch {
	case err != nil:
		r.opa(err, name)
	case module == nil:
		r.add(problem{Message: "the file is empty", File: name, Row: 1, Hint: "write `package system.log`"})
	default:
		checkImports(module, r)
	}
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	c.modules[name] = module
	empty := ast.NewObject()
	c.store = inmem.NewFromASTObject(empty)
	c.base = newBaseData(c.store, empty)
	if c.txn, err = c.store.NewTransaction(context.Background()); err != nil {
		r.opa(err, name)
		return nil, r.problems
	}
	c.compiler = newCompiler(ast.NewSchemaSet())
	c.compiler.Compile(cloneModules(c.modules))
	switch entry := c.compiler.GetRulesExact(maskRef); {
	case c.compiler.Failed():
		r.opa(c.compiler.Errors, name)
	case len(entry) == 0:
		r.add(problem{
			Message: "there is no rule data.system.log.mask", File: name, Row: 1,
			Hint: "write `package system.log`, and `mask contains \"/input/message/payload/card\"`",
		})
	case len(entry[0].Head.Args) > 0:
		r.at(entry[0].Location, "data.system.log.mask is a function", "write `mask contains …`")
	}
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	c.query, err = rego.New(
		rego.ParsedQuery(ast.NewBody(ast.NewExpr(ast.NewTerm(maskRef)))),
		rego.Compiler(c.compiler),
		rego.Store(c.base),
		rego.Transaction(c.txn),
		rego.Capabilities(capabilities()),
		rego.StrictBuiltinErrors(true),
	).PrepareForEval(context.Background())
	if err != nil {
		r.opa(err, name)
	}
	return c, r.problems
}
