package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// What an explanation may take: some times what the bus gives a decision (policy.timeout_seconds, 0.25 s unless set),
// since a busy machine is slower, and no more in all than somebody waits for. Where the bus gives more, so does it.
const (
	explainDecisionMin = 2 * time.Second
	explainDecisionMax = 30 * time.Second
	explainRuleMax     = time.Second
	explainMax         = 5 * time.Second // for the rules, after the decision
)

// notAsked is the code of a rule for which no time was left.
const notAsked = "not_asked"

type explainAnswer struct {
	Decision json.RawMessage   `json:"decision"`
	TookUS   int64             `json:"took_us"` // the decision, ended or not
	Error    *explainedError   `json:"error"`
	Rules    []ruleExplanation `json:"rules"`
}

type ruleExplanation struct {
	Name   string          `json:"name"`
	Admit  bool            `json:"admit"`
	Code   string          `json:"code"`
	File   string          `json:"file"`
	Row    int             `json:"row"`
	Error  *explainedError `json:"error"`
	Failed *step           `json:"failed"` // of the way that came nearest
	Ways   []*step         `json:"ways"`   // each way to admit, in the order of the source, and where it ended
}

// explainedError is an evaluation that gave no answer, and the expression at which it ended.
type explainedError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	At      *step  `json:"at"`
}

// explain asks every listed rule by itself, and finds the expressions at which one that does not admit ended.
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
	answer := explainAnswer{Rules: []ruleExplanation{}, Decision: json.RawMessage("null")}
	limit := min(max(time.Duration(r.Timeout)*time.Microsecond, explainDecisionMin), explainDecisionMax)
	started := time.Now()
	decision, fail := law.evaluate(r.Input, limit)
	answer.TookUS = time.Since(started).Microseconds()
	ctx, cancel := context.WithTimeout(context.Background(), explainMax)
	defer cancel()
	switch {
	case fail != nil && fail.Code == codeTimeout:
		answer.Error = &explainedError{Code: fail.Code, Message: fail.Message}
	case fail != nil:
		answer.Error = &explainedError{Code: fail.Code, Message: fail.Message}
		within(ctx, explainRuleMax, func(ctx context.Context) {
			if failed := law.asker(ctx, law.compiler).errorIn(decisionRef, input); failed != nil && failed.Code != codeTimeout {
				answer.Error.Message, answer.Error.At = failed.Message, failed.At
			}
		})
	case decision != nil:
		answer.Decision = decision
	}
	for _, name := range law.rules {
		within(ctx, explainRuleMax, func(ctx context.Context) {
			answer.Rules = append(answer.Rules, law.asker(ctx, law.compiler).explainRule(name, input))
		})
	}
	if answer.Error != nil && answer.Error.Code == codeTimeout {
		answer.Error.Message = timeoutText(answer.Rules, limit)
	}
	return answer, nil
}

// within does something that has no more time than this, and no more than what is left of all.
func within(ctx context.Context, most time.Duration, do func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	do(ctx)
}

// timeoutText says of a decision that took too long which rules did not end by themselves.
func timeoutText(rules []ruleExplanation, limit time.Duration) string {
	text := fmt.Sprintf("the decision did not end within %s", inSeconds(limit))
	var slow []string
	for _, rule := range rules {
		if rule.Error != nil && rule.Error.Code == codeTimeout {
			slow = append(slow, rule.Name)
		}
	}
	switch len(slow) {
	case 0:
		return text + "; each rule that was asked by itself did"
	case 1:
		return text + ", since the rule " + slow[0] + " did not"
	default:
		return text + ", since the rules " + strings.Join(slow, ", ") + " did not"
	}
}

func ruleRef(name, part string) ast.Ref {
	return append(ast.MustParseRef("data.bus.rules"), ast.StringTerm(name), ast.StringTerm(part))
}

func (a *asker) explainRule(name string, input ast.Value) ruleExplanation {
	answer := ruleExplanation{Name: name, Code: name, Ways: []*step{}}
	admit := ruleRef(name, admitName)
	for _, rule := range a.compiler.GetRulesExact(admit) {
		if answer.Row == 0 || !rule.Default { // where it admits says more than where it does not
			answer.File, answer.Row = rule.Location.File, rule.Location.Row
		}
		if !rule.Default {
			break
		}
	}
	if a.ctx.Err() != nil {
		answer.Error = &explainedError{Code: notAsked, Message: fmt.Sprintf("it was not asked: the %s for all rules were over", inSeconds(explainMax))}
		return answer
	}
	value, err := a.ask(ast.NewTerm(admit), input, nil)
	if topdown.IsCancel(err) {
		answer.Error = &explainedError{Code: codeTimeout, Message: fmt.Sprintf("it did not end within %s", inSeconds(explainRuleMax))}
		answer.Error.At = a.lineAt(answer.File, answer.Row)
		return answer
	}
	if code, err := a.ask(ast.NewTerm(ruleRef(name, "code")), input, nil); err == nil && code != nil {
		if text, ok := code.Value.(ast.String); ok {
			answer.Code = string(text)
		}
	}
	if err != nil {
		answer.Error = a.errorIn(admit, input)
		return answer
	}
	answer.Admit = value != nil && value.Value.Compare(ast.Boolean(true)) == 0
	if answer.Admit {
		return answer
	}
	ways := a.ways(admit, &moment{input: input}, 0)
	if a.ctx.Err() != nil {
		return answer // what was seen until then says nothing of where it ends
	}
	for _, one := range ways {
		if one.failed != nil {
			answer.Ways = append(answer.Ways, a.whyNot(one, 0))
		}
	}
	switch best := nearest(ways); {
	case best == nil:
	case best.failed != nil:
		answer.Failed = a.whyNot(*best, 0)
	case value != nil: // its body was true, and it says something else than true
		found := a.describeBody(*best, viaMax)
		found.Values = append(values{{admit.String(), shownValue(value.Value)}}, found.Values...)
		answer.Failed = found
	}
	return answer
}

// lineAt is a line of the source, where no single expression can be named.
func (a *asker) lineAt(file string, row int) *step {
	source := a.c.src.file(file)
	if source == nil {
		return nil
	}
	return &step{
		File: file, Row: row, Col: 1, Text: cut(strings.TrimSpace(lineOf(source.data, row)), stepTextMax),
		Values: values{}, Missing: []string{}, Private: []string{}, Via: []string{},
	}
}

// errorIn evaluates a rule that ends in an error once more, to see where; nil when it does not.
func (a *asker) errorIn(ref ast.Ref, input ast.Value) *explainedError {
	term := ast.NewTerm(ref)
	_, err := a.ask(term, input, nil)
	if err == nil {
		return nil
	}
	answer := &explainedError{Code: "policy_error", Message: err.Error()}
	if topdown.IsCancel(err) {
		answer.Code, answer.Message = codeTimeout, "the evaluation did not end in time"
		return answer
	}
	var broken *topdown.Error
	if !errors.As(err, &broken) {
		return answer
	}
	answer.Message = broken.Message
	if text := conflictText(a.compiler, broken); text != "" {
		answer.Message = text
	}
	if broken.Location != nil {
		answer.At = a.whereBroken(term, input, broken.Location)
	}
	return answer
}

// whereBroken finds what a built-in got when it failed: OPA says where that was, and goes on evaluating.
func (a *asker) whereBroken(term *ast.Term, input ast.Value, at *ast.Location) *step {
	r := newRecorder()
	r.wanted = at
	_, _ = a.ask(term, input, nil, rego.EvalQueryTracer(r))
	for _, m := range r.there {
		terms, ok := m.expr.Terms.([]*ast.Term)
		if !ok {
			continue
		}
		call := ast.Call{terms[0]}
		for _, operand := range terms[1:min(len(terms), a.compiler.GetArity(m.expr.Operator())+1)] {
			call = append(call, fill(operand, m))
		}
		if _, err := a.ask(ast.NewTerm(call), m.input, m.withs); err != nil {
			return a.describe(m, withGenerated(m.expr), m.expr.BaseCogeneratedExpr())
		}
	}
	place := &step{File: at.File, Row: at.Row, Col: at.Col, Text: cut(textOf(at), stepTextMax)}
	place.Values, place.Missing, place.Private, place.Via = values{}, []string{}, []string{}, []string{}
	return place
}
