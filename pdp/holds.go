package main

import (
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"
)

// established is what must be so for a body to be true: places that have a value, places whose type was looked at,
// places that are compared with a number or a text from below or from above, and what fields and variables can be.
type established struct {
	defined, typed, above, below, aboveText, belowText map[place]bool

	samples map[string][]sample
}

func nothing() established {
	return established{
		map[place]bool{}, map[place]bool{}, map[place]bool{}, map[place]bool{}, map[place]bool{}, map[place]bool{},
		map[string][]sample{},
	}
}

func (e established) sets() []map[place]bool {
	return []map[place]bool{e.defined, e.typed, e.above, e.below, e.aboveText, e.belowText}
}

func (e established) add(other established) {
	for i, set := range other.sets() {
		for at := range set {
			e.sets()[i][at] = true
		}
	}
	for key, samples := range other.samples {
		e.samples[key] = samples
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
	for i, set := range e.sets()[1:] {
		for at := range set {
			if other.sets()[i+1][at] {
				common.sets()[i+1][at] = true
			}
		}
	}
	for key, samples := range e.samples {
		others := other.samples[key]
		if len(samples) == 1 && len(others) == 1 && samples[0].kind == others[0].kind {
			common.samples[key] = oneKind(samples[0].kind)
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

// holder finds what bodies and rules establish when they are true.
type holder struct {
	c        *constitution
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
	if expr.IsEquality() || expr.IsCall() {
		h.kindsOf(expr, known, found)
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
	bound := func(i, by int, number, text map[place]bool) {
		at, exact, ok := known.place(operands[i])
		if !ok || !exact {
			return
		}
		switch operands[by].Value.(type) {
		case ast.Number:
			number[at] = true
		case ast.String:
			text[at] = true
		}
	}
	switch operator {
	case ast.IsNumber.Name, ast.IsString.Name, ast.IsArray.Name, ast.IsObject.Name, ast.IsBoolean.Name:
		note(0) // the type was thought of, whichever it is
	case ast.GreaterThan.Name, ast.GreaterThanEq.Name:
		bound(0, 1, found.above, found.aboveText)
		bound(1, 0, found.below, found.belowText)
	case ast.LessThan.Name, ast.LessThanEq.Name:
		bound(0, 1, found.below, found.belowText)
		bound(1, 0, found.above, found.aboveText)
	case ast.Equality.Name, ast.Equal.Name:
		for i := range 2 {
			if ast.IsConstant(operands[1-i].Value) { // and not a variable that only stands for the place
				note(i)
			}
		}
	case ast.Member.Name:
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

// openTerms are the refs of an expression outside of comprehensions and bodies within it: what they need, it needs.
func openTerms(expr *ast.Expr) []*ast.Term {
	var found []*ast.Term
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
				found = append(found, node)
				for _, step := range ref[1:] {
					visitor.Walk(step)
				}
				return true
			}
			if node.Value.Compare(ast.InputRootDocument.Value) == 0 {
				found = append(found, &ast.Term{Value: ast.InputRootRef, Location: node.Location})
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

func openRefs(expr *ast.Expr) []ast.Ref {
	var refs []ast.Ref
	for _, term := range openTerms(expr) {
		refs = append(refs, term.Value.(ast.Ref))
	}
	return refs
}

// isCondition says whether an expression is nothing but this ref, so that false is as good as undefined.
func isCondition(expr *ast.Expr, ref ast.Ref) bool {
	if term, ok := expr.Terms.(*ast.Term); ok {
		return term.Value.Compare(ref) == 0
	}
	return expr.IsEquality() &&
		(expr.Operand(0).Equal(ast.InternedTerm(true)) || expr.Operand(1).Equal(ast.InternedTerm(true)))
}
