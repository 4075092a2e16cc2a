package main

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// answersSeen notes, while tests run, which rules were seen to admit and which to refuse.
type answersSeen struct {
	admitted map[string]bool
	refused  map[string]bool
}

func newAnswersSeen() *answersSeen {
	return &answersSeen{admitted: map[string]bool{}, refused: map[string]bool{}}
}

func (s *answersSeen) Enabled() bool               { return true }
func (s *answersSeen) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

func (s *answersSeen) TraceEvent(event topdown.Event) {
	if event.Op != topdown.ExitOp {
		return
	}
	rule, ok := event.Node.(*ast.Rule)
	if !ok {
		return
	}
	ref := rule.Ref()
	if len(ref) != len(rulesPrefix)+2 || !ref[len(ref)-1].Equal(admitTerm) || !ref.HasPrefix(rulesPrefix) {
		return
	}
	name, _ := ref[len(rulesPrefix)].Value.(ast.String)
	if event.Plug(rule.Head.Value).Equal(ast.InternedTerm(true)) {
		s.admitted[string(name)] = true
	} else {
		s.refused[string(name)] = true
	}
}

var (
	rulesPrefix = ast.MustParseRef("data.bus.rules")
	admitTerm   = ast.StringTerm(admitName)
)

// untested names rules of which no test has seen both answers.
func (c *constitution) untested(seen *answersSeen) []problem {
	r := &report{src: c.src}
	for _, name := range c.rules {
		var at *ast.Location
		for _, rule := range c.compiler.GetRulesExact(ruleRef(name, admitName)) {
			if at == nil || !rule.Default {
				at = rule.Location
			}
			if !rule.Default {
				break
			}
		}
		file := fmt.Sprintf("%s%s/%s_test.rego", rulesFolder, name, name)
		ask := fmt.Sprintf("data.bus.rules.%s.admit with input as { … }", name)
		switch admitted, refused := seen.admitted[name], seen.refused[name]; {
		case admitted && refused:
		case !admitted && !refused:
			r.kind(warnUntested, at, fmt.Sprintf("no test asks the rule %q", name),
				fmt.Sprintf("write in %s `test_… if %s`, and one with `not`", file, ask))
		case refused:
			r.kind(warnUntested, at, fmt.Sprintf("no test has seen the rule %q admit: it may be that it never does", name),
				fmt.Sprintf("write in %s a message that it admits: `test_… if %s`", file, ask))
		default:
			r.kind(warnUntested, at, fmt.Sprintf("no test has seen the rule %q refuse: it may be that it never does", name),
				fmt.Sprintf("write in %s a message that it refuses: `test_… if not %s`", file, ask))
		}
	}
	return r.problems
}
