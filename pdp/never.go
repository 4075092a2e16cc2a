package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// neverFinder finds what can never be true, whatever is sent. It says so only where that is certain: constants, the
// constitution's own data, and fields whose values the bus vouches for.
type neverFinder struct {
	c    *constitution
	done map[*ast.Rule]*contradiction
	busy map[*ast.Rule]bool
}

// contradiction is an expression that is never true where it stands.
type contradiction struct {
	expr    *ast.Expr
	message string
	hint    string
}

func newNeverFinder(c *constitution) *neverFinder {
	return &neverFinder{c: c, done: map[*ast.Rule]*contradiction{}, busy: map[*ast.Rule]bool{}}
}

// rule is why a rule's body is never true; nil when it can be, or when that cannot be said.
func (n *neverFinder) rule(rule *ast.Rule) *contradiction {
	if known, ok := n.done[rule]; ok {
		return known
	}
	if rule.Default || n.busy[rule] {
		return nil
	}
	n.busy[rule] = true
	found := n.body(rule.Body, aliases{})
	for other := rule.Else; other != nil && found != nil; other = other.Else {
		if n.body(other.Body, aliases{}) == nil {
			found = nil
		}
	}
	delete(n.busy, rule)
	n.done[rule] = found
	return found
}

// body is the first expression that cannot be true together with those before it.
func (n *neverFinder) body(body ast.Body, outer aliases) *contradiction {
	known := outer.in(body)
	constants := n.constantsIn(body)
	fields := map[place]*bounds{}
	for _, expr := range body {
		if len(expr.With) > 0 {
			continue
		}
		if found := n.expr(expr, known, constants, fields); found != nil {
			return found
		}
	}
	return nil
}

func (n *neverFinder) expr(expr *ast.Expr, known aliases, constants map[ast.Var]ast.Value, fields map[place]*bounds) *contradiction {
	if term, ok := expr.Terms.(*ast.Term); ok {
		if !expr.Negated && term.Value.Compare(ast.Boolean(false)) == 0 {
			return &contradiction{expr, "`false` is never true", "remove this body, or write what has to hold"}
		}
	}
	if ref, ok := n.named(expr); ok && !expr.Negated {
		if n.neverHolds(ref) {
			return &contradiction{expr, ref.String() + " is never true", "mend that rule, or remove this body"}
		}
		return nil
	}
	if !expr.IsCall() && !expr.IsEquality() {
		return nil
	}
	operator, operands := expr.Operator().String(), expr.Operands()
	if len(operands) == 1 {
		return n.typeCheck(expr, operator, operands[0], known)
	}
	if len(operands) != 2 {
		return nil
	}
	left, leftConstant := n.constant(operands[0], constants)
	right, rightConstant := n.constant(operands[1], constants)
	if leftConstant && rightConstant {
		if answer, ok := compared(operator, left, right); ok && answer == expr.Negated {
			return &contradiction{expr, neverText(expr), "compare with something of the message, or remove this body"}
		}
		return nil
	}
	for _, side := range []struct {
		term     *ast.Term
		value    ast.Value
		constant bool
		mirrored bool
	}{{operands[0], right, rightConstant, false}, {operands[1], left, leftConstant, true}} {
		if !side.constant {
			continue
		}
		at, exact, ok := known.place(side.term)
		if !ok || !exact || at.open() || isVarDefinition(expr, side.term) {
			continue
		}
		if found := n.field(expr, at, operator, side.value, side.mirrored, fields); found != nil {
			return found
		}
	}
	return nil
}

// isVarDefinition says that a variable is given its place here: nothing is compared yet.
func isVarDefinition(expr *ast.Expr, term *ast.Term) bool {
	_, isVar := term.Value.(ast.Var)
	return isVar && expr.Generated && expr.IsEquality()
}

// field notes what an expression says of a field, and whether any value is left.
func (n *neverFinder) field(expr *ast.Expr, at place, operator string, value ast.Value, mirrored bool, fields map[place]*bounds) *contradiction {
	have := fields[at]
	if have == nil {
		known := boundsOf(at)
		have = &known
		fields[at] = have
	}
	alone := boundsOf(at)
	if !narrowed(have, expr.Negated, operator, value, mirrored) {
		return nil
	}
	if !have.empty() {
		return nil
	}
	narrowed(&alone, expr.Negated, operator, value, mirrored)
	if !alone.empty() {
		return &contradiction{expr, fmt.Sprintf("no %s satisfies this and what stands before it", at),
			"a body is true when all of it is: write alternatives as bodies of their own"}
	}
	return &contradiction{expr, neverText(expr), fieldHint(at, value)}
}

func neverText(expr *ast.Expr) string {
	return fmt.Sprintf("`%s` is never true", textOf(expr.BaseCogeneratedExpr().Location))
}

// fieldHint says what a field can be.
func fieldHint(at place, value ast.Value) string {
	known := boundsOf(at)
	elements, isList := elementsOf(value)
	switch {
	case isList && len(elements) == 0:
		return "nothing is in an empty list"
	case known.among != nil:
		var names []string
		for _, one := range known.among {
			names = append(names, one.String())
		}
		hint := fmt.Sprintf("%s is one of %s", at, strings.Join(names, ", "))
		if !isList {
			elements = []ast.Value{value}
		}
		if near := closest(elements[0].String(), names); near != "" {
			hint = "did you mean " + near + "? " + hint
		}
		return hint
	case known.low != nil && known.high != nil:
		return fmt.Sprintf("%s is %v to %v", at, known.low, known.high)
	case known.low != nil:
		return fmt.Sprintf("%s is %v or more", at, known.low)
	default:
		return "write something that a message can have"
	}
}

// narrowed says whether an expression says anything about a field's value, and notes it.
func narrowed(b *bounds, negated bool, operator string, value ast.Value, mirrored bool) bool {
	if mirrored {
		operator = map[string]string{
			ast.LessThan.Name: ast.GreaterThan.Name, ast.LessThanEq.Name: ast.GreaterThanEq.Name,
			ast.GreaterThan.Name: ast.LessThan.Name, ast.GreaterThanEq.Name: ast.LessThanEq.Name,
			ast.Equality.Name: ast.Equality.Name, ast.Equal.Name: ast.Equality.Name, ast.NotEqual.Name: ast.NotEqual.Name,
		}[operator]
	}
	switch operator {
	case ast.Equality.Name, ast.Equal.Name:
		if negated {
			b.not = append(b.not, value)
		} else {
			b.take([]ast.Value{value})
		}
	case ast.NotEqual.Name:
		if negated {
			return false
		}
		b.not = append(b.not, value)
	case ast.Member.Name:
		values, ok := elementsOf(value)
		if !ok {
			return false
		}
		if negated {
			b.not = append(b.not, values...)
		} else {
			b.take(values)
		}
	case ast.LessThan.Name, ast.LessThanEq.Name, ast.GreaterThan.Name, ast.GreaterThanEq.Name:
		if negated {
			return false
		}
		switch operator {
		case ast.LessThan.Name, ast.LessThanEq.Name:
			b.atMost(value, operator == ast.LessThan.Name)
		default:
			b.atLeast(value, operator == ast.GreaterThan.Name)
		}
	default:
		return false
	}
	return true
}

func elementsOf(value ast.Value) ([]ast.Value, bool) {
	elements := []ast.Value{}
	add := func(term *ast.Term) { elements = append(elements, term.Value) }
	switch collection := value.(type) {
	case *ast.Array:
		collection.Foreach(add)
	case ast.Set:
		collection.Foreach(add)
	case ast.Object:
		collection.Foreach(func(_, term *ast.Term) { add(term) })
	default:
		return nil, false
	}
	return elements, true
}

func compared(operator string, left, right ast.Value) (answer, ok bool) {
	order := left.Compare(right)
	switch operator {
	case ast.Equality.Name, ast.Equal.Name:
		return order == 0, true
	case ast.NotEqual.Name:
		return order != 0, true
	case ast.LessThan.Name:
		return order < 0, true
	case ast.LessThanEq.Name:
		return order <= 0, true
	case ast.GreaterThan.Name:
		return order > 0, true
	case ast.GreaterThanEq.Name:
		return order >= 0, true
	case ast.Member.Name:
		elements, ok := elementsOf(right)
		return slices.ContainsFunc(elements, func(one ast.Value) bool { return one.Compare(left) == 0 }), ok
	}
	return false, false
}

// typeChecks are the built-ins that ask for a type, and what the schema calls it.
var typeChecks = map[string][]string{
	ast.IsString.Name: {"string"}, ast.IsNumber.Name: {"number", "integer"}, ast.IsArray.Name: {"array"},
	ast.IsObject.Name: {"object"}, ast.IsBoolean.Name: {"boolean"}, ast.IsNull.Name: {"null"}, ast.IsSet.Name: {},
}

func (n *neverFinder) typeCheck(expr *ast.Expr, operator string, term *ast.Term, known aliases) *contradiction {
	wanted, ok := typeChecks[operator]
	if !ok || expr.Negated {
		return nil
	}
	at, exact, ok := known.place(term)
	if !ok || !exact || at.open() {
		return nil
	}
	kind, ok := fieldSchema(at)["type"].(string)
	if !ok || slices.Contains(wanted, kind) {
		return nil
	}
	return &contradiction{expr, neverText(expr), fmt.Sprintf("%s is of the type %s", at, kind)}
}

// constant is a value that is written out, or stands in a data.json.
func (n *neverFinder) constant(term *ast.Term, known map[ast.Var]ast.Value) (ast.Value, bool) {
	switch value := term.Value.(type) {
	case ast.Var:
		found, ok := known[value]
		return found, ok
	case ast.Ref:
		return n.data(value)
	default:
		return value, ast.IsConstant(value)
	}
}

// data is a value of a data.json that no rule adds to.
func (n *neverFinder) data(ref ast.Ref) (ast.Value, bool) {
	if !ref.HasPrefix(ast.DefaultRootRef) || !ref.IsGround() || len(n.c.compiler.GetRules(ref)) > 0 {
		return nil, false
	}
	var at any = n.c.data
	found := true
	for _, step := range ref[1:] {
		if at, found = child(at, found, step.Value); !found {
			return nil, false
		}
	}
	value, err := ast.InterfaceToValue(at)
	return value, err == nil
}

func (n *neverFinder) constantsIn(body ast.Body) map[ast.Var]ast.Value {
	found := map[ast.Var]ast.Value{}
	for _, expr := range body {
		if expr.Negated || !expr.IsEquality() || len(expr.With) > 0 {
			continue
		}
		for i := range 2 {
			name, isVar := expr.Operand(i).Value.(ast.Var)
			if !isVar {
				continue
			}
			if value, ok := n.constant(expr.Operand(1-i), nil); ok {
				if _, twice := found[name]; !twice {
					found[name] = value
				}
			}
		}
	}
	return found
}

func (n *neverFinder) named(expr *ast.Expr) (ast.Ref, bool) {
	asker := asker{compiler: n.c.compiler}
	return asker.ruleIn(expr)
}

// neverHolds says of a rule that is asked as a condition that it is never true.
func (n *neverFinder) neverHolds(ref ast.Ref) bool {
	rules := n.c.compiler.GetRulesExact(ref)
	for _, rule := range rules {
		if rule.Default {
			if !rule.Head.Value.Equal(ast.InternedTerm(false)) {
				return false
			}
			continue
		}
		isFalse := rule.Head.Value.Equal(ast.InternedTerm(false)) && rule.Else == nil
		if !isFalse && n.rule(rule) == nil {
			return false
		}
	}
	return len(rules) > 0
}

// neverAdmits says of a listed rule why it never admits; "" when it can.
func (n *neverFinder) neverAdmits(admit ast.Ref) (why string, at *ast.Location) {
	impossible, otherwise := 0, 0
	for _, rule := range n.c.compiler.GetRulesExact(admit) {
		if at == nil || impossible+otherwise == 0 && !rule.Default {
			at = rule.Location
		}
		for one := rule; one != nil && !rule.Default; one = one.Else {
			value := one.Head.Value
			switch {
			case ast.IsConstant(value.Value) && !value.Equal(ast.InternedTerm(true)):
				otherwise++
			case n.body(one.Body, aliases{}) != nil:
				impossible++
			default:
				return "", nil
			}
		}
	}
	switch {
	case impossible == 0 && otherwise == 0:
		return "there is nothing but its default", at
	case otherwise == 0:
		return "none of its bodies can be true", at
	case impossible == 0:
		return "its `admit` is never `true`, and nothing else admits", at
	default:
		return "its bodies cannot be true, or say something else than `true`", at
	}
}
