package main

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

const (
	explainSecondsMax = 10
	eventsMax         = 200_000
	valueBytesMax     = 2048
)

type explainAnswer struct {
	Decision json.RawMessage   `json:"decision"`
	Error    string            `json:"error,omitempty"`
	Rules    []ruleExplanation `json:"rules"`
}

type ruleExplanation struct {
	Name   string          `json:"name"`
	Admit  bool            `json:"admit"`
	Code   string          `json:"code"`
	File   string          `json:"file"`
	Row    int             `json:"row"`
	Error  string          `json:"error,omitempty"`
	Failed *failedLocation `json:"failed"`
}

// failedLocation is the first expression that was not true, and what stood in it.
type failedLocation struct {
	File    string                     `json:"file"`
	Row     int                        `json:"row"`
	Text    string                     `json:"text"`
	Values  map[string]json.RawMessage `json:"values"`
	Missing []string                   `json:"missing"` // what had no value at all
}

// explain asks every listed rule by itself, and finds the expression at which one that does not admit ended.
func (s *server) explain(r request) (any, error) {
	law := s.find(r.Digest)
	if r.Path != "" {
		src, problems, err := readSource(r.Path)
		if err != nil {
			return nil, err
		}
		if len(problems) == 0 {
			law, problems = compileConstitution(src)
		}
		if len(problems) > 0 {
			return nil, invalid(problems)
		}
	}
	if law == nil {
		return nil, &failure{Code: "unknown_digest", Message: "no constitution " + r.Digest + " is loaded here"}
	}
	input, err := parseInput(r.Input, nil)
	if err != nil {
		return nil, &failure{Code: "policy_malformed", Message: "the input is not JSON: " + err.Error()}
	}
	ctx, cancel := context.WithTimeout(context.Background(), explainSecondsMax*time.Second)
	defer cancel()
	answer := explainAnswer{Rules: []ruleExplanation{}}
	decision, fail := law.evaluate(r.Input, explainSecondsMax*time.Second)
	if fail != nil {
		answer.Error = fail.Error()
	}
	answer.Decision = decision
	if decision == nil {
		answer.Decision = json.RawMessage("null")
	}
	for _, name := range law.rules {
		answer.Rules = append(answer.Rules, law.explainRule(ctx, name, input))
	}
	return answer, nil
}

func ruleRef(name, part string) ast.Ref {
	return append(ast.MustParseRef("data.bus.rules"), ast.StringTerm(name), ast.StringTerm(part))
}

func (c *constitution) explainRule(ctx context.Context, name string, input ast.Value) ruleExplanation {
	answer := ruleExplanation{Name: name, Code: name}
	admit := ruleRef(name, admitName)
	if rules := c.compiler.GetRulesExact(admit); len(rules) > 0 {
		answer.File, answer.Row = rules[0].Location.File, rules[0].Location.Row
		for _, rule := range rules {
			if !rule.Default { // where it admits says more than where it does not
				answer.File, answer.Row = rule.Location.File, rule.Location.Row
				break
			}
		}
	}
	if code, ok := c.valueOf(ctx, ruleRef(name, "code"), input); ok {
		var text string
		if json.Unmarshal(code, &text) == nil {
			answer.Code = text
		}
	}
	events := &eventBuffer{}
	value, err := c.ask(ctx, admit, input, rego.EvalQueryTracer(events), rego.EvalRuleIndexing(false), rego.EvalEarlyExit(false))
	if err != nil {
		answer.Error = err.Error()
	}
	answer.Admit = value != nil && value.Value.Compare(ast.Boolean(true)) == 0
	if !answer.Admit {
		answer.Failed = c.failedIn(ctx, events.events, admit, input)
	}
	return answer
}

// ask evaluates one ref; nil when it is undefined.
func (c *constitution) ask(ctx context.Context, ref ast.Ref, input ast.Value, options ...rego.EvalOption) (*ast.Term, error) {
	var found *ast.Term
	query, err := rego.New(
		rego.ParsedQuery(ast.NewBody(ast.Equality.Expr(ast.VarTerm("answer"), ast.NewTerm(ref)))),
		rego.Compiler(c.compiler), rego.Store(c.store), rego.Transaction(c.txn),
		rego.Capabilities(capabilities()), rego.StrictBuiltinErrors(true),
		rego.GenerateJSON(func(term *ast.Term, _ *rego.EvalContext) (any, error) {
			found = term
			return nil, nil
		}),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	options = append(options, rego.EvalParsedInput(input), rego.EvalTransaction(c.txn))
	_, err = query.Eval(ctx, options...)
	return found, err
}

func (c *constitution) valueOf(ctx context.Context, ref ast.Ref, input ast.Value) (json.RawMessage, bool) {
	term, err := c.ask(ctx, ref, input)
	if err != nil || term == nil {
		return nil, false
	}
	value, err := ast.JSON(term.Value)
	if err != nil {
		return nil, false
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(value) != nil {
		return nil, false
	}
	if text.Len() > valueBytesMax {
		return json.RawMessage(`"… (too large to show)"`), true
	}
	return json.RawMessage(bytes.TrimSpace(text.Bytes())), true
}

// failedIn follows the trace from the rule asked to the expression that was not true: into another rule where that
// expression is nothing but that rule's name.
func (c *constitution) failedIn(ctx context.Context, events []topdown.Event, ref ast.Ref, input ast.Value) *failedLocation {
	var failed *ast.Expr
	for depth := 0; depth < 16; depth++ {
		expr := firstFail(events, ref)
		if expr == nil {
			break
		}
		failed = expr
		term, ok := expr.Terms.(*ast.Term)
		if !ok || expr.Negated {
			break
		}
		next, ok := term.Value.(ast.Ref)
		if !ok || !next.HasPrefix(ast.DefaultRootRef) || !next.IsGround() || next.Equal(ref) {
			break
		}
		ref = next
	}
	if failed == nil || failed.Location == nil {
		return nil
	}
	at := failed.Location
	answer := &failedLocation{File: at.File, Row: at.Row, Values: map[string]json.RawMessage{}, Missing: []string{}}
	if file := c.src.file(at.File); file != nil {
		answer.Text = strings.TrimSpace(lineOf(file.data, at.Row))
	}
	for _, seen := range c.refsOnLine(at) {
		if value, ok := c.valueOf(ctx, seen, input); ok {
			answer.Values[seen.String()] = value
		} else {
			answer.Missing = append(answer.Missing, seen.String())
		}
	}
	return answer
}

// firstFail is the first expression to fail directly in a body of this rule.
func firstFail(events []topdown.Event, ref ast.Ref) *ast.Expr {
	bodies := map[uint64]bool{}
	for _, event := range events {
		switch node := event.Node.(type) {
		case *ast.Rule:
			if event.Op == topdown.EnterOp && node.Ref().Equal(ref) && !node.Default {
				bodies[event.QueryID] = true
			}
		case *ast.Expr:
			if event.Op == topdown.FailOp && bodies[event.QueryID] {
				return node
			}
		}
	}
	return nil
}

// refsOnLine are the refs to input and data that the line has, as far as they are written out.
func (c *constitution) refsOnLine(at *ast.Location) []ast.Ref {
	var found []ast.Ref
	module := c.compiler.Modules[at.File]
	if module == nil {
		return nil
	}
	walkRefs(module, func(ref ast.Ref, location *ast.Location) {
		if location == nil || location.Row != at.Row {
			return
		}
		ref = ref.ConstantPrefix()
		rules := c.compiler.GetRulesExact(ref)
		isFunction := len(rules) > 0 && len(rules[0].Head.Args) > 0
		known := slices.ContainsFunc(found, func(other ast.Ref) bool { return other.Equal(ref) })
		if len(ref) > 1 && !isFunction && !known {
			found = append(found, ref)
		}
	})
	return found
}

// eventBuffer keeps a trace, up to a bound.
type eventBuffer struct {
	events []topdown.Event
}

func (b *eventBuffer) Enabled() bool               { return true }
func (b *eventBuffer) Config() topdown.TraceConfig { return topdown.TraceConfig{} }
func (b *eventBuffer) TraceEvent(event topdown.Event) {
	if (event.Op == topdown.EnterOp || event.Op == topdown.FailOp) && len(b.events) < eventsMax {
		b.events = append(b.events, event)
	}
}
