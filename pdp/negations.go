package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// spot is a place and how the source writes it there.
type spot struct {
	at      place
	written string
}

// absent is the first place of these refs that may have no value and is not known to have one.
func absent(terms []*ast.Term, known aliases, around established, why ...absence) (spot, bool) {
	for _, term := range terms {
		resolved, ok := known.resolve(term.Value.(ast.Ref))
		if !ok {
			continue
		}
		at := placeOf(resolved)
		if !slices.Contains(why, absenceOf(at)) || around.defines(at.whole()) {
			continue
		}
		written := textOf(term.Location)
		if written == "" || strings.ContainsAny(written, " (") {
			written = at.String()
		}
		return spot{at, written}, true
	}
	return spot{}, false
}

// negated looks at `not …`. A ref that stands alone or at == is looked up inside the `not`, so that a missing field makes
// it true; what is handed to a function is looked up before, so that a missing field makes it undefined.
func (l *linter) negated(expr *ast.Expr, group []*ast.Expr, known aliases, around established) {
	text := textOf(expr.BaseCogeneratedExpr().Location)
	if found, ok := absent(openTerms(expr), known, around, unsent, unlike); ok {
		l.warn(warnNegationTrue, expr,
			fmt.Sprintf("`%s` is true when there is no %s", text, found.written),
			fmt.Sprintf("say what must hold instead, or write `%s` on a line before: a missing field then ends in no",
				found.guard(group, known)))
		return
	}
	for _, other := range group {
		if other == expr {
			continue
		}
		if found, ok := absent(openTerms(other), known, around, unsent, unlike, forgotten); ok {
			l.warn(warnNegationUndefined, expr,
				fmt.Sprintf("`%s` has no value when there is no %s: the field is looked up before `not`, so the line is not true",
					text, found.written),
				fmt.Sprintf("where a message without it may pass, write `%s`; where it may not, write `%s` on a line before",
					found.withDefault(text, group, known), found.guard(group, known)))
			return
		}
	}
	if at, ok := l.neededBelow(expr, known, around); ok {
		l.warn(warnNegationTrue, expr,
			fmt.Sprintf("`%s` is true when there is no %s, which what is negated needs", text, at),
			fmt.Sprintf("say what must hold instead, or write `%s` on a line before: a missing field then ends in no", at))
	}
}

// guard is the line that makes sure of a field: of its type, where that shows.
func (s spot) guard(group []*ast.Expr, known aliases) string {
	switch likely(s.at, group, known).(type) {
	case ast.String:
		return fmt.Sprintf("is_string(%s)", s.written)
	case ast.Number:
		return fmt.Sprintf("is_number(%s)", s.written)
	case *ast.Array:
		return fmt.Sprintf("is_array(%s)", s.written)
	default:
		return s.written
	}
}

// withDefault is an expression of the source with something in the place of a field that may be missing.
func (s spot) withDefault(text string, group []*ast.Expr, known aliases) string {
	none := `""`
	switch likely(s.at, group, known).(type) {
	case ast.Number:
		none = "0"
	case *ast.Array:
		none = "[]"
	}
	object, key, found := cutLast(s.written)
	if !found {
		steps := s.at.ref()
		last := len(steps) - 1
		object, key = steps[:last].String(), steps[last].String()
	}
	read := fmt.Sprintf("object.get(%s, %s, %s)", object, key, none)
	if strings.Contains(text, s.written) {
		return strings.ReplaceAll(text, s.written, read)
	}
	return read
}

// cutLast takes `p.kind` apart into `p` and `"kind"`.
func cutLast(written string) (object, key string, found bool) {
	i := strings.LastIndex(written, ".")
	if i < 0 || strings.ContainsAny(written[i:], "[]\"`") {
		return "", "", false
	}
	return written[:i], fmt.Sprintf("%q", written[i+1:]), true
}

// likely is a value of the type that a field most likely has, by what it is compared with; nil when that does not show.
func likely(at place, group []*ast.Expr, known aliases) ast.Value {
	for _, expr := range group {
		if !expr.IsCall() && !expr.IsEquality() {
			continue
		}
		operands := expr.Operands()
		isMember := len(operands) == 2 && expr.Operator().Equal(ast.Member.Ref())
		if isMember {
			if whole, exact, ok := known.place(operands[1]); ok && exact && whole == at {
				return ast.NewArray()
			}
		}
		for _, operand := range operands {
			switch value := operand.Value.(type) {
			case ast.String, ast.Number:
				return value
			case ast.Set, *ast.Array:
				if elements, ok := elementsOf(value); isMember && ok && len(elements) > 0 && ast.IsConstant(elements[0]) {
					return elements[0]
				}
			}
		}
	}
	return nil
}

// neededBelow finds what a negated rule or function needs of the payload: without it that one is undefined, and its
// `not` true.
func (l *linter) neededBelow(expr *ast.Expr, known aliases, around established) (place, bool) {
	var needed []place
	collect := func(rules []*ast.Rule, arguments func(*ast.Rule) aliases) {
		for _, rule := range rules {
			if rule.Default {
				if rule.Head.Value.Equal(ast.InternedTerm(false)) {
					continue
				}
				needed = nil
				return
			}
			given := aliases{}
			if arguments != nil {
				given = arguments(rule)
			}
			for at := range l.holder.body(rule.Body, given, nil).defined {
				needed = append(needed, at)
			}
		}
	}
	for _, ref := range openRefs(expr) {
		if ref.HasPrefix(ast.DefaultRootRef) && ref.IsGround() {
			collect(l.c.compiler.GetRulesExact(ref), nil)
		}
	}
	if expr.IsCall() {
		if rules := l.c.compiler.GetRulesExact(expr.Operator()); len(rules) > 0 {
			collect(rules, argumentsOf(rules, expr.Operands(), known))
		}
	}
	slices.Sort(needed)
	for _, at := range needed {
		if absenceOf(at) == unsent && !around.defines(at) {
			return at, true
		}
	}
	return "", false
}

// countedNone looks at `count(denials) == 0`, which is another way to write `not`.
func (l *linter) countedNone(expr *ast.Expr, group []*ast.Expr, known aliases, around established) {
	if !expr.IsEquality() || !comparesWithNone(expr) {
		return
	}
	for _, other := range append([]*ast.Expr{expr}, group...) {
		for _, ref := range openRefs(other) {
			rules := l.c.compiler.GetRulesExact(ref)
			if len(rules) == 0 || rules[0].Head.RuleKind() != ast.MultiValue {
				continue
			}
			var needed []place
			for _, rule := range rules {
				for at := range l.holder.body(rule.Body, aliases{}, nil).defined {
					needed = append(needed, at)
				}
			}
			slices.Sort(needed)
			for _, at := range needed {
				if absenceOf(at) == unsent && !around.defines(at) {
					l.warn(warnNegationTrue, expr,
						fmt.Sprintf("`%s` is true when there is no %s: nothing is found then",
							textOf(expr.BaseCogeneratedExpr().Location), at),
						fmt.Sprintf("say what must hold instead, or write `%s` on a line before: a missing field then ends in no", at))
					return
				}
			}
		}
	}
}

func comparesWithNone(expr *ast.Expr) bool {
	for i := range 2 {
		switch value := expr.Operand(i).Value.(type) {
		case ast.Number:
			if value.Compare(ast.Number("0")) == 0 {
				return true
			}
		case ast.Set:
			if value.Len() == 0 {
				return true
			}
		}
	}
	return false
}

// unequal looks at `x != y`, which has no value where x has none.
func (l *linter) unequal(rule *ast.Rule, expr *ast.Expr, group []*ast.Expr, known aliases, around established) {
	if !expr.IsCall() || !expr.Operator().Equal(ast.NotEqual.Ref()) {
		return
	}
	for _, other := range group {
		found, ok := absent(openTerms(other), known, around, unsent, unlike, forgotten)
		if !ok {
			continue
		}
		what := "a message without it does not pass here"
		if rule.Head.RuleKind() == ast.MultiValue {
			what = "a message without it is not found here"
		}
		text := textOf(expr.BaseCogeneratedExpr().Location)
		l.warn(warnUndefinedUnequal, expr,
			fmt.Sprintf("`%s` has no value when there is no %s: %s", text, found.written, what),
			fmt.Sprintf("where a missing one is as good as another value, write `%s`; where it is not, write `%s` on a line before",
				found.withDefault(text, group, known), found.guard(group, known)))
		return
	}
}
