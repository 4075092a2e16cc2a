package main

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"
)

// place is a field of the input, as far as it is written out: input.message.payload.amount is message, payload, amount.
type place string

const placeSeparator = "\x00"

func placeOf(ref ast.Ref) place {
	at := ""
	for i, step := range ref[1:] {
		name, literal := step.Value.(ast.String)
		if !literal {
			break
		}
		if i > 0 {
			at += placeSeparator
		}
		at += string(name)
	}
	return place(at)
}

func (p place) steps() []string {
	var steps []string
	start := 0
	for i := 0; i <= len(p); i++ {
		if i == len(p) || string(p[i]) == placeSeparator {
			steps = append(steps, string(p[start:i]))
			start = i + 1
		}
	}
	return steps
}

// String is the place as Rego writes it.
func (p place) String() string { return p.ref().String() }

func (p place) ref() ast.Ref {
	ref := ast.InputRootRef.Copy()
	if p == "" {
		return ref
	}
	for _, step := range p.steps() {
		ref = ref.Append(ast.StringTerm(step))
	}
	return ref
}

// within says whether this place is the other one, or lies in it.
func (p place) within(other place) bool {
	return p == other || other == "" || len(p) > len(other) && p[:len(other)] == other && string(p[len(other)]) == placeSeparator
}

// established is what must be so for a body to be true: places that have a value, and places whose type was looked at.
type established struct {
	defined map[place]bool
	typed   map[place]bool
}

func nothing() established {
	return established{defined: map[place]bool{}, typed: map[place]bool{}}
}

func (e established) add(other established) {
	for at := range other.defined {
		e.defined[at] = true
	}
	for at := range other.typed {
		e.typed[at] = true
	}
}

// both is what holds whichever of two bodies is true.
func (e established) both(other established) established {
	common := nothing()
	for at := range e.defined {
		if other.defines(at) {
			common.defined[at] = true
		}
	}
	for at := range other.defined {
		if e.defines(at) {
			common.defined[at] = true
		}
	}
	for at := range e.typed {
		if other.typed[at] {
			common.typed[at] = true
		}
	}
	return common
}

// defines says whether a place has a value: it or something in it is known to.
func (e established) defines(at place) bool {
	for known := range e.defined {
		if known.within(at) {
			return true
		}
	}
	return false
}

// aliases are the places that local variables stand for.
type aliases map[ast.Var]ast.Ref

// resolve writes a ref out from `input` on, where it begins with a variable that stands for a place.
func (a aliases) resolve(ref ast.Ref) (ast.Ref, bool) {
	if ref.HasPrefix(ast.InputRootRef) {
		return ref, true
	}
	head, ok := ref[0].Value.(ast.Var)
	if !ok {
		return nil, false
	}
	base, ok := a[head]
	if !ok {
		return nil, false
	}
	return append(slices.Clone(base), ref[1:]...), true
}

// place is the place that a term stands for; exact when all of it is written out.
func (a aliases) place(term *ast.Term) (at place, exact, ok bool) {
	var ref ast.Ref
	switch value := term.Value.(type) {
	case ast.Ref:
		ref, ok = a.resolve(value)
	case ast.Var:
		if value.Equal(ast.InputRootDocument.Value) {
			return "", true, true
		}
		ref, ok = a[value]
	}
	if !ok {
		return "", false, false
	}
	at = placeOf(ref)
	exact = len(ref) == 1 || len(at.steps()) == len(ref)-1 && at != ""
	return at, exact, true
}

// in finds the variables that a body gives to places, beside those that are known already.
func (a aliases) in(body ast.Body) aliases {
	all := aliases{}
	for name, ref := range a {
		all[name] = ref
	}
	for range 2 { // a variable may stand for a part of another one's place
		for _, expr := range body {
			if expr.Negated || !expr.IsEquality() {
				continue
			}
			for i := range 2 {
				name, isVar := expr.Operand(i).Value.(ast.Var)
				ref, isRef := expr.Operand(1 - i).Value.(ast.Ref)
				if !isVar || !isRef {
					continue
				}
				if resolved, ok := all.resolve(ref); ok {
					all[name] = resolved
				}
			}
		}
	}
	return all
}

// holder finds what bodies and rules establish when they are true.
type holder struct {
	compiler *ast.Compiler
	busy     map[*ast.Rule]bool
	depth    int
}

const holderDepthMax = 20

// body is what a body establishes; what comes from the expression `but` of the source is left out.
func (h *holder) body(body ast.Body, known aliases, but *ast.Expr) established {
	found := nothing()
	all := known.in(body)
	for _, expr := range body {
		if !expr.Negated && (but == nil || expr.BaseCogeneratedExpr() != but.BaseCogeneratedExpr()) {
			h.expr(expr, all, found)
		}
	}
	return found
}

func (h *holder) expr(expr *ast.Expr, known aliases, found established) {
	for _, ref := range openRefs(expr) {
		if at, ok := known.resolve(ref); ok {
			found.defined[placeOf(at)] = true
			continue
		}
		if ref.HasPrefix(ast.DefaultRootRef) && ref.IsGround() {
			found.add(h.rules(h.compiler.GetRulesExact(ref), nil, isCondition(expr, ref)))
		}
	}
	if !expr.IsCall() {
		return
	}
	operator, operands := expr.Operator(), expr.Operands()
	if rules := h.compiler.GetRulesExact(operator); len(rules) > 0 {
		found.add(h.rules(rules, argumentsOf(rules, operands, known), false))
		return
	}
	h.types(operator.String(), operands, known, found)
}

// rules is what every body of a rule or function establishes. A default makes a rule true or defined by itself, save
// where it is asked as a condition and the default is false.
func (h *holder) rules(rules []*ast.Rule, arguments func(*ast.Rule) aliases, condition bool) established {
	var common *established
	if h.depth >= holderDepthMax {
		return nothing()
	}
	h.depth++
	defer func() { h.depth-- }()
	for _, rule := range rules {
		if h.busy[rule] || rule.Head.RuleKind() == ast.MultiValue {
			return nothing()
		}
		if rule.Default {
			if !condition || !rule.Head.Value.Equal(ast.InternedTerm(false)) {
				return nothing()
			}
			continue
		}
		h.busy[rule] = true
		known := aliases{}
		if arguments != nil {
			known = arguments(rule)
		}
		one := h.body(rule.Body, known, nil)
		for other := rule.Else; other != nil; other = other.Else {
			one = one.both(h.body(other.Body, known, nil))
		}
		delete(h.busy, rule)
		if common == nil {
			common = &one
			continue
		}
		both := common.both(one)
		common = &both
	}
	if common == nil {
		return nothing()
	}
	return *common
}

// argumentsOf maps a function's parameters to the places that are handed in.
func argumentsOf(rules []*ast.Rule, operands []*ast.Term, known aliases) func(*ast.Rule) aliases {
	return func(rule *ast.Rule) aliases {
		given := aliases{}
		for i, parameter := range rule.Head.Args {
			name, isVar := parameter.Value.(ast.Var)
			if !isVar || i >= len(operands) {
				continue
			}
			switch value := operands[i].Value.(type) {
			case ast.Var:
				if ref, ok := known[value]; ok {
					given[name] = ref
				} else if value.Equal(ast.InputRootDocument.Value) {
					given[name] = ast.InputRootRef
				}
			case ast.Ref:
				if ref, ok := known.resolve(value); ok {
					given[name] = ref
				}
			}
		}
		return given
	}
}

// types notes the places of which a built-in call is true for one type only, or asks for it.
func (h *holder) types(operator string, operands []*ast.Term, known aliases, found established) {
	note := func(i int) {
		if i >= len(operands) {
			return
		}
		if at, exact, ok := known.place(operands[i]); ok && exact {
			found.typed[at] = true
		}
	}
	isNumber := func(i int) bool {
		if i >= len(operands) {
			return false
		}
		_, ok := operands[i].Value.(ast.Number)
		return ok
	}
	switch operator {
	case ast.IsNumber.Name, ast.IsString.Name, ast.IsArray.Name, ast.IsObject.Name, ast.IsBoolean.Name:
		note(0) // the type was thought of, whichever it is
	case ast.GreaterThan.Name, ast.GreaterThanEq.Name:
		if isNumber(1) { // null and booleans come before every number
			note(0)
		}
	case ast.LessThan.Name, ast.LessThanEq.Name:
		if isNumber(0) {
			note(1)
		}
	case ast.Equality.Name, ast.Equal.Name, ast.Member.Name:
		note(0)
		note(1)
	default:
		declared, ok := builtinsByName()[operator]
		if !ok {
			return
		}
		for i, wanted := range declared.Decl.FuncArgs().Args {
			if types.Compare(wanted, types.N) == 0 {
				note(i)
			}
		}
	}
}

// openRefs are the refs of an expression outside of comprehensions and bodies within it: what they need, it needs.
func openRefs(expr *ast.Expr) []ast.Ref {
	var found []ast.Ref
	var visitor *ast.GenericVisitor
	visitor = ast.NewGenericVisitor(func(node any) bool {
		switch node := node.(type) {
		case *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension, *ast.With:
			return true
		case *ast.Every:
			visitor.Walk(node.Domain)
			return true
		case *ast.Term:
			if ref, ok := node.Value.(ast.Ref); ok {
				found = append(found, ref)
				for _, step := range ref[1:] {
					visitor.Walk(step)
				}
				return true
			}
			if node.Value.Compare(ast.InputRootDocument.Value) == 0 {
				found = append(found, ast.InputRootRef)
			}
		}
		return false
	})
	if expr.IsCall() {
		for _, operand := range expr.Operands() {
			visitor.Walk(operand)
		}
	} else {
		visitor.Walk(expr.Terms)
	}
	return found
}

// isCondition says whether an expression is nothing but this ref, so that false is as good as undefined.
func isCondition(expr *ast.Expr, ref ast.Ref) bool {
	if term, ok := expr.Terms.(*ast.Term); ok {
		return term.Value.Compare(ref) == 0
	}
	return expr.IsEquality() &&
		(expr.Operand(0).Equal(ast.InternedTerm(true)) || expr.Operand(1).Equal(ast.InternedTerm(true)))
}
