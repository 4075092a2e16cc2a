package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// The kinds of warnings: what compiles, passes its tests and does not mean what it seems to say.
const (
	warnNegationTrue      = "negation_true"
	warnNegationUndefined = "negation_undefined"
	warnUndefinedUnequal  = "undefined_unequal"
	warnUntypedOrder      = "untyped_order"
	warnMixedOrder        = "mixed_order"
	warnUnknownField      = "unknown_field"
	warnNeverTrue         = "never_true"
	warnNeverAdmits       = "never_admits"
	warnAlwaysAdmits      = "always_admits"
	warnConflicting       = "conflicting"
	warnCore              = "core"
	warnPart              = "part"
	warnUntested          = "untested"
	warnTestAsksDecision  = "test_asks_decision"
	warnTestFile          = "test_file"
	warnTestName          = "test_name"
)

// linter reads a compiled constitution for what an author should look at twice.
type linter struct {
	c      *constitution
	holder *holder
	r      *report
	calls  map[string]bool // functions that were looked at, with what they were given
	depth  int             // of calls
}

const callsDepthMax = 5

// warnings finds everything that can be said without running anything.
func (c *constitution) warnings() []problem {
	l := &linter{
		c: c, r: &report{src: c.src}, calls: map[string]bool{},
		holder: &holder{c: c, compiler: c.compiler, busy: map[*ast.Rule]bool{}},
	}
	for _, name := range sortedKeys(c.modules) {
		for _, rule := range c.compiler.Modules[name].Rules {
			for one := rule; one != nil; one = one.Else {
				l.body(one, one.Body, aliases{}, nothing())
				l.closures(one, one.Body, aliases{}, nothing())
			}
		}
	}
	if c.reads.cacheable { // with `with` a rule may see another input than the bus's
		l.neverTrue()
	}
	l.admitting()
	l.conflicting()
	l.core()
	l.parts()
	return l.r.problems
}

func (l *linter) warn(kind string, expr *ast.Expr, message, hint string) {
	l.r.kind(kind, expr.BaseCogeneratedExpr().Location, message, hint)
}

// said is whether a warning of this kind stands at an expression already.
func (l *linter) said(kind string, expr *ast.Expr) bool {
	at := expr.BaseCogeneratedExpr().Location
	return at != nil && slices.ContainsFunc(l.r.problems, func(one problem) bool {
		return one.Reason == kind && one.File == at.File && one.Row == at.Row && one.Col == at.Col
	})
}

// closures looks into the bodies inside a body: what holds outside holds there too.
func (l *linter) closures(rule *ast.Rule, body ast.Body, outer aliases, holds established) {
	known := outer.in(body)
	all := nothing()
	all.add(holds)
	all.add(l.holder.body(body, outer, nil))
	ast.WalkClosures(body, func(node any) bool {
		var inner ast.Body
		known := known
		switch node := node.(type) {
		case *ast.ArrayComprehension:
			inner = node.Body
		case *ast.SetComprehension:
			inner = node.Body
		case *ast.ObjectComprehension:
			inner = node.Body
		case *ast.Every:
			inner = node.Body
			known = known.withElement(node)
		default:
			return false
		}
		l.body(rule, inner, known, all)
		l.closures(rule, inner, known, all)
		return true
	})
}

// body looks at every expression, with what all the others establish.
func (l *linter) body(rule *ast.Rule, body ast.Body, outer aliases, holds established) {
	known := outer.in(body)
	all := nothing()
	all.add(holds)
	all.add(l.holder.body(body, outer, nil))
	for _, expr := range body {
		if expr.Generated && expr.BaseCogeneratedExpr() != expr {
			continue // it is looked at with the expression that it comes from
		}
		around := nothing()
		around.add(holds)
		around.add(l.holder.body(body, outer, expr))
		group := groupOf(body, expr)
		if expr.Negated {
			l.negated(expr, group, known, around)
		} else {
			l.unequal(rule, expr, group, known, around)
			l.countedNone(expr, group, known, around)
		}
		for _, one := range group {
			if !l.mixedOrder(one, expr.Negated, known, all) {
				l.ordered(one, expr.Negated, known, around, all)
			}
			l.objectGet(one, known)
			l.called(one, body, known, outer, holds)
		}
	}
}

// called looks into a function with what it is given here, and with what holds around the call.
func (l *linter) called(expr *ast.Expr, body ast.Body, known, outer aliases, holds established) {
	if !expr.IsCall() || l.depth >= callsDepthMax {
		return
	}
	rules := l.c.compiler.GetRulesExact(expr.Operator())
	if len(rules) == 0 {
		return
	}
	given := argumentsOf(rules, expr.Operands(), known)
	all := nothing()
	all.add(holds)
	all.add(l.holder.body(body, outer, nil))
	l.depth++
	defer func() { l.depth-- }()
	for _, rule := range rules {
		arguments := given(rule)
		around := nothing()
		around.add(all)
		handed := l.handed(rule, expr.Operands(), arguments, known, around)
		key := fmt.Sprintf("%p %v %v", rule, arguments, around)
		if len(arguments) == 0 && !handed || l.calls[key] {
			continue
		}
		l.calls[key] = true
		for one := rule; one != nil; one = one.Else {
			l.body(one, one.Body, arguments, around)
			l.closures(one, one.Body, arguments, around)
		}
	}
}

// handed notes what a function's parameters can be, as far as that is known where it is called.
func (l *linter) handed(rule *ast.Rule, operands []*ast.Term, arguments, known aliases, around established) bool {
	some := false
	for i, parameter := range rule.Head.Args {
		if i >= len(operands) {
			break
		}
		samples := l.holder.samples(operands[i], known, around)
		if key, ok := samplesKey(parameter, arguments); ok && len(samples) > 0 {
			around.samples[key] = samples
			some = true
		}
	}
	return some
}

// groupOf are the expressions of a body that come from one of the source.
func groupOf(body ast.Body, expr *ast.Expr) []*ast.Expr {
	base := expr.BaseCogeneratedExpr()
	var group []*ast.Expr
	for _, other := range body {
		if other == expr || other.BaseCogeneratedExpr() == base {
			group = append(group, other)
		}
	}
	return group
}

// ordered looks at `payload.x <= 5` and `payload.x >= 5`: values of different types are ordered too, so that some pass
// that are no numbers.
func (l *linter) ordered(expr *ast.Expr, negated bool, known aliases, around, all established) {
	if !expr.IsCall() || len(expr.Operands()) < 2 {
		return
	}
	small := 0 // which operand is to be the smaller one
	switch expr.Operator().String() {
	case ast.LessThan.Name, ast.LessThanEq.Name:
	case ast.GreaterThan.Name, ast.GreaterThanEq.Name:
		small = 1
	default:
		return
	}
	if negated {
		small = 1 - small
	}
	for i, operand := range expr.Operands()[:2] {
		at, exact, ok := known.place(operand)
		if !ok || !exact || !inPayload(at) || around.typed[at] {
			continue
		}
		other := l.holder.samples(expr.Operand(1-i), known, all)
		if len(other) == 1 && other[0].kind != kindNumber && other[0].kind != kindText {
			continue
		}
		text := len(other) == 1 && other[0].kind == kindText
		what, passes := passing(text, i == small, at, around)
		if !passes {
			continue
		}
		written := textOf(operand.Location)
		if written == "" || strings.ContainsAny(written, " (") {
			written = at.String()
		}
		hint := fmt.Sprintf("write `is_number(%s)` on a line before", written)
		if text {
			hint = fmt.Sprintf("write `is_string(%s)` on a line before", written)
			if value := other[0].value; value != nil && numberText.MatchString(value.String()) {
				hint = fmt.Sprintf("write `is_number(%s)` on a line before, and the number without quotes: %s",
					written, strings.Trim(value.String(), `"`))
			}
		}
		l.warn(warnUntypedOrder, expr, fmt.Sprintf("`%s` is true for %s", textOf(expr.BaseCogeneratedExpr().Location), what), hint)
		return
	}
}

// passing is what passes a comparison with a number or a text although it is none; false when a bound on the other side
// keeps it out.
func passing(text, small bool, at place, around established) (what string, passes bool) {
	switch {
	case text && small:
		return "numbers, null, true and false, which come before every text", !around.aboveText[at]
	case text:
		return "lists and objects, which come after every text", !around.belowText[at]
	case small:
		return "null, true and false, which come before every number", !around.above[at]
	default:
		return "texts, lists and objects, which come after every number", !around.below[at]
	}
}

// inPayload says of a place that anything may stand there.
func inPayload(at place) bool {
	return at.within(placeOf(ast.MustParseRef("input.message.payload"))) && strings.Count(string(at), placeSeparator) > 1
}

// objectGet looks at `object.get(input.message, "paylod", …)`, which the type checker does not see through.
func (l *linter) objectGet(expr *ast.Expr, known aliases) {
	if !expr.IsCall() || !expr.Operator().Equal(ast.ObjectGet.Ref()) || len(expr.Operands()) < 2 {
		return
	}
	at, exact, ok := known.place(expr.Operand(0))
	if !ok || !exact {
		return
	}
	keys := []*ast.Term{expr.Operand(1)}
	if path, ok := expr.Operand(1).Value.(*ast.Array); ok {
		keys = keys[:0]
		path.Foreach(func(key *ast.Term) { keys = append(keys, key) })
	}
	for _, key := range keys {
		name, ok := key.Value.(ast.String)
		properties, closed := fieldSchema(at)["properties"].(map[string]any)
		if !ok || !closed {
			return
		}
		if properties[string(name)] == nil {
			hint := "it has " + strings.Join(sortedKeys(properties), ", ")
			if near := closest(string(name), sortedKeys(properties)); near != "" {
				hint = fmt.Sprintf("did you mean %q? %s", near, hint)
			}
			l.warn(warnUnknownField, expr, fmt.Sprintf("%s never has a field %s", at, name), hint)
			return
		}
		at = placeOf(at.ref().Append(key))
	}
}

// neverTrue names bodies that cannot be true, and rules that can never admit.
func (l *linter) neverTrue() {
	finder := newNeverFinder(l.c)
	for _, name := range sortedKeys(l.c.modules) {
		for _, rule := range l.c.compiler.Modules[name].Rules {
			for one := rule; one != nil && !rule.Default; one = one.Else {
				if found := finder.body(one.Body, aliases{}); found != nil && !l.said(warnMixedOrder, found.expr) {
					l.warn(warnNeverTrue, found.expr, found.message, found.hint)
				}
			}
		}
	}
	for _, name := range l.c.rules {
		if why, at := finder.neverAdmits(ruleRef(name, admitName)); why != "" {
			l.r.kind(warnNeverAdmits, at, fmt.Sprintf("the rule %q never admits: %s", name, why),
				"as long as it is listed no message travels; write `admit if { … }` with what must hold, or take it off the list")
		}
	}
}

// admitting names rules that admit whatever comes.
func (l *linter) admitting() {
	for _, name := range l.c.rules {
		for _, rule := range l.c.compiler.GetRulesExact(ruleRef(name, admitName)) {
			if rule.Default || !rule.Head.Value.Equal(ast.InternedTerm(true)) {
				continue
			}
			if isUnconditional(rule.Body) {
				l.r.kind(warnAlwaysAdmits, rule.Location, fmt.Sprintf("the rule %q admits everything: it looks at nothing", name),
					"write what must hold: `admit if { … }`")
			}
		}
	}
}

func isUnconditional(body ast.Body) bool {
	for _, expr := range body {
		term, ok := expr.Terms.(*ast.Term)
		if !ok || expr.Negated || !ast.IsConstant(term.Value) || term.Value.Compare(ast.Boolean(false)) == 0 {
			return false
		}
	}
	return true
}
