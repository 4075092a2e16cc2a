package main

import (
	"cmp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

const (
	viaMax      = 16 // how deep an explanation follows rules
	stepTextMax = 300
)

// step is an expression at which an answer was decided, and what stood in it.
type step struct {
	File    string   `json:"file"`
	Row     int      `json:"row"`
	Col     int      `json:"col"`
	Text    string   `json:"text"`
	Values  values   `json:"values"`
	Missing []string `json:"missing"`           // what had no value at all
	Private []string `json:"private"`           // which of both may quote payload or headers
	Via     []string `json:"via"`               // the rules it was reached through, outermost first
	Because *step    `json:"because,omitempty"` // for a `not`: what was true
	Inside  *step    `json:"inside,omitempty"`  // for a call: where the function ended
}

// way is one body that could have made a rule true.
type way struct {
	rule      *ast.Rule
	span      *span
	failed    *moment
	satisfied int // expressions that were true, those of rules they name included
}

// ways finds every body of a rule, and how far each came.
func (a *asker) ways(ref ast.Ref, m *moment, depth int) []way {
	key := ref.String()
	for _, with := range m.withs {
		key += " " + with.String()
	}
	if known, ok := a.known[key]; ok {
		return known
	}
	found := a.waysOf(a.trace(ast.NewTerm(ref), m.input, m.withs), ref, depth)
	a.known[key] = found
	return found
}

func (a *asker) waysOf(r *recorder, ref ast.Ref, depth int) []way {
	var found []way
	if r.root == nil {
		return nil
	}
	for _, child := range r.root.children {
		rule, ok := child.node.(*ast.Rule)
		if !ok || rule.Default || !rule.Ref().GroundPrefix().Equal(ref) {
			continue
		}
		if slices.ContainsFunc(found, func(other way) bool { return other.rule == rule }) {
			continue
		}
		one := way{rule: rule, span: child, failed: child.failed}
		if child.exited != nil {
			one.failed = nil
		}
		one.satisfied = a.satisfied(one, depth)
		found = append(found, one)
	}
	return found
}

// satisfied counts the expressions of the source that were true, so that of several ways the nearest can be told.
func (a *asker) satisfied(w way, depth int) int {
	body, upTo := w.rule.Body, len(w.rule.Body)
	if w.failed != nil {
		upTo = w.failed.expr.Index
	}
	count := 0
	for i, expr := range body {
		if i > upTo || i == upTo && w.failed == nil {
			break
		}
		named, isRule := a.namedRule(expr)
		if isRule && depth < viaMax {
			at := w.exprMoment(expr)
			if best := nearest(a.ways(named, at, depth+1)); best != nil {
				count += best.satisfied
			}
		}
		if i < upTo && !expr.Generated {
			count++
		}
	}
	return count
}

// exprMoment is where an expression of this body is asked again: what is replaced there, and the input.
func (w way) exprMoment(expr *ast.Expr) *moment {
	at := w.failed
	if at == nil {
		at = w.span.exited
	}
	if at == nil {
		return &moment{span: w.span}
	}
	if at.expr == expr {
		return at
	}
	return &moment{span: w.span, withs: append(slices.Clone(w.span.withs), expr.With...), input: at.input}
}

// nearest is the way that came furthest; of two that came as far, the one that did not end at a `not` (that one is
// rather another case than a condition), then the one of which the least is left, then the first.
func nearest(ways []way) *way {
	var best *way
	for i := range ways {
		one := &ways[i]
		if one.failed == nil {
			return one
		}
		if best == nil || cmp.Or(
			cmp.Compare(one.satisfied, best.satisfied),
			-compareBool(one.failed.expr.Negated, best.failed.expr.Negated),
			-cmp.Compare(one.left(), best.left()),
		) > 0 {
			best = one
		}
	}
	return best
}

func (w way) left() int {
	if w.failed == nil {
		return 0
	}
	return len(w.rule.Body) - w.failed.expr.Index
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// namedRule is the rule of which an expression is nothing but the name (`allowed`, `allowed == true`).
func (a *asker) namedRule(expr *ast.Expr) (ast.Ref, bool) {
	if expr.Negated {
		return nil, false
	}
	return a.ruleIn(expr)
}

func (a *asker) ruleIn(expr *ast.Expr) (ast.Ref, bool) {
	var term *ast.Term
	switch terms := expr.Terms.(type) {
	case *ast.Term:
		term = terms
	case []*ast.Term:
		if !expr.IsEquality() {
			return nil, false
		}
		switch yes := ast.InternedTerm(true); {
		case terms[1].Equal(yes):
			term = terms[2]
		case terms[2].Equal(yes):
			term = terms[1]
		default:
			return nil, false
		}
	default:
		return nil, false
	}
	ref, ok := term.Value.(ast.Ref)
	if !ok || !ref.IsGround() || !ref.HasPrefix(ast.DefaultRootRef) {
		return nil, false
	}
	rules := a.compiler.GetRulesExact(ref)
	if len(rules) == 0 || len(rules[0].Head.Args) > 0 || rules[0].Head.RuleKind() != ast.SingleValue {
		return nil, false
	}
	return ref, true
}

// whyNot is the expression at which a way ended, followed into the rules that it names.
func (a *asker) whyNot(w way, depth int) *step {
	return a.stepAt(w.failed, depth)
}

func (a *asker) stepAt(m *moment, depth int) *step {
	if m == nil {
		return nil
	}
	if every, ok := m.expr.Terms.(*ast.Every); ok {
		if inner := failedElement(m, every); inner != nil {
			return a.stepAt(inner, depth)
		}
	}
	if ref, ok := a.namedRule(m.expr); ok && depth < viaMax {
		if best := nearest(a.ways(ref, m, depth+1)); best != nil && best.failed != nil {
			if found := a.whyNot(*best, depth+1); found != nil {
				found.Via = append([]string{ref.String()}, found.Via...)
				return found
			}
		}
	}
	found := a.describe(m, withGenerated(m.expr), m.expr.BaseCogeneratedExpr())
	if m.expr.Negated {
		found.Because = a.whyTrue(m, depth)
	} else {
		found.Inside = a.inside(m, depth)
	}
	return found
}

// inside says where that ended which an expression asks: a function of the policy, or a rule that has no value.
func (a *asker) inside(m *moment, depth int) *step {
	if found := a.insideCall(m, depth); found != nil || depth >= viaMax {
		return found
	}
	for _, expr := range withGenerated(m.expr) {
		for _, ref := range openRefs(expr) {
			rules := a.compiler.GetRulesExact(ref)
			if len(rules) == 0 || len(rules[0].Head.Args) > 0 || !ref.IsGround() {
				continue
			}
			if value, known := a.valueOf(ast.NewTerm(ref), m); !known || value != nil {
				continue
			}
			if best := nearest(a.ways(ref, m, depth+1)); best != nil && best.failed != nil {
				return a.whyNot(*best, depth+1)
			}
		}
	}
	return nil
}

// failedElement is where the body of an `every` ended for the first element that it was not true for.
func failedElement(m *moment, every *ast.Every) *moment {
	for _, domain := range m.span.children {
		if domain.node != ast.Node(m.expr) {
			continue
		}
		for _, body := range domain.children {
			if node, ok := body.node.(ast.Body); ok && node.Equal(every.Body) && body.failed != nil && body.exited == nil {
				return body.failed
			}
		}
	}
	return nil
}

// whyTrue says of `not rule` and `not function(...)` which body was true.
func (a *asker) whyTrue(m *moment, depth int) *step {
	if depth >= viaMax {
		return nil
	}
	var ways []way
	if ref, ok := a.ruleIn(m.expr); ok {
		ways = a.ways(ref, m, depth+1)
	} else if call, ref, ok := a.calledRule([]*ast.Expr{m.expr}, m); ok {
		ways = a.waysOf(a.trace(call, m.input, m.withs), ref, depth+1)
	}
	for _, one := range ways {
		if one.failed == nil && one.span.exited != nil {
			return a.describeBody(one, depth)
		}
	}
	return nil
}

// describeBody is a body that was true, with everything that stood in it.
func (a *asker) describeBody(w way, depth int) *step {
	m := *w.span.exited
	var written []*ast.Expr
	var texts []string
	for _, expr := range w.rule.Body {
		if text := textOf(expr.Location); !expr.Generated && text != "" {
			written = append(written, expr)
			texts = append(texts, text)
		}
	}
	base := w.rule.Body[0]
	if len(written) > 0 {
		base = written[0]
	}
	m.expr = base
	if len(written) == 1 { // a body that is nothing but another rule's name says nothing by itself
		if ref, ok := a.namedRule(base); ok && depth < viaMax {
			if best := nearest(a.ways(ref, w.exprMoment(base), depth+1)); best != nil && best.failed == nil {
				found := a.describeBody(*best, depth+1)
				found.Via = append([]string{ref.String()}, found.Via...)
				return found
			}
		}
	}
	found := a.describe(&m, w.rule.Body, base)
	found.Text = cut(strings.Join(texts, "; "), stepTextMax)
	return found
}

// insideCall says for a call of the policy's own function where it ended.
func (a *asker) insideCall(m *moment, depth int) *step {
	call, ref, ok := a.calledRule(withGenerated(m.expr), m)
	if !ok || depth >= viaMax {
		return nil
	}
	best := nearest(a.waysOf(a.trace(call, m.input, m.withs), ref, depth+1))
	if best == nil || best.failed == nil {
		return nil
	}
	return a.whyNot(*best, depth+1)
}

// calledRule is the first call of a function of the policy in an expression, with its arguments filled in.
func (a *asker) calledRule(exprs []*ast.Expr, m *moment) (*ast.Term, ast.Ref, bool) {
	for _, expr := range exprs {
		terms, ok := expr.Terms.([]*ast.Term)
		if !ok || !expr.IsCall() {
			continue
		}
		ref := expr.Operator()
		rules := a.compiler.GetRulesExact(ref)
		if len(rules) == 0 || len(terms) <= len(rules[0].Head.Args) {
			continue
		}
		call := ast.Call{terms[0]}
		for _, argument := range terms[1 : len(rules[0].Head.Args)+1] {
			filled := fill(argument, m)
			if !filled.IsGround() {
				return nil, nil, false
			}
			call = append(call, filled)
		}
		return ast.NewTerm(call), ref, true
	}
	return nil, nil, false
}
