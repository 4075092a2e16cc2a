package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// orderings are the comparisons that ask which of two values comes first.
var orderings = map[string]string{
	ast.LessThan.Name: "<", ast.LessThanEq.Name: "<=", ast.GreaterThan.Name: ">", ast.GreaterThanEq.Name: ">=",
}

var numberText = regexp.MustCompile(`^"-?[0-9]+(\.[0-9]+)?"$`)

// mixedOrder looks at `3 < "3"`: values of two types have an order too, which says nothing of what they are. It says
// whether there was something to say.
func (l *linter) mixedOrder(expr *ast.Expr, negated bool, known aliases, all established) bool {
	if !expr.IsCall() || len(expr.Operands()) < 2 || len(expr.With) > 0 || !l.c.reads.cacheable {
		return false
	}
	sign := orderings[expr.Operator().String()]
	if sign == "" {
		return false
	}
	left, right := expr.Operand(0), expr.Operand(1)
	first, second, ok := differing(l.holder.samples(left, known, all), l.holder.samples(right, known, all))
	if !ok {
		return false
	}
	isTrue := (first.kind < second.kind) == (sign[0] == '<')
	answer := "never true"
	if isTrue != negated {
		answer = "always true"
	}
	low, high := first, second
	if low.kind > high.kind {
		low, high = high, low
	}
	l.warn(warnMixedOrder, expr,
		fmt.Sprintf("`%s` is %s: %s is %s and %s is %s, and all %s come before all %s",
			textOf(expr.BaseCogeneratedExpr().Location), answer, l.nameOf(left), first, l.nameOf(right), second,
			low.kind.plural(), high.kind.plural()),
		hintForMixed(first, second))
	return true
}

// differing is what the two sides can be at the same time and cannot be compared in earnest.
func differing(left, right []sample) (first, second sample, found bool) {
	switch {
	case len(left) == 0 || len(right) == 0:
		return sample{}, sample{}, false
	case len(left) > 1 && len(right) > 1:
		return sample{}, sample{}, false // which goes with which is not known
	}
	for _, first := range left {
		for _, second := range right {
			if first.kind != kindUnknown && second.kind != kindUnknown && first.kind != second.kind {
				return first, second, true
			}
		}
	}
	return sample{}, sample{}, false
}

// nameOf is what the source calls one side of a comparison.
func (l *linter) nameOf(term *ast.Term) string {
	if name, isVar := term.Value.(ast.Var); isVar {
		if original := l.c.compiler.RewrittenVars[name]; original != "" && !original.IsGenerated() {
			return string(original)
		}
	}
	if written := textOf(term.Location); written != "" {
		return written
	}
	if _, isVar := term.Value.(ast.Var); isVar {
		return "one side"
	}
	return term.Value.String()
}

func hintForMixed(first, second sample) string {
	for _, one := range []sample{first, second} {
		other := first
		if one == first {
			other = second
		}
		if one.kind != kindText || other.kind != kindNumber || one.value == nil {
			continue
		}
		if !numberText.MatchString(one.value.String()) {
			return "compare values of one type: a number with a number, a text with a text"
		}
		number := strings.Trim(one.value.String(), `"`)
		if one.file != "" {
			return fmt.Sprintf("write the number without quotes in %s: `%q: %s`", one.file, one.key, number)
		}
		return "write the number without quotes: " + number
	}
	return "compare values of one type; to_number(…) makes a number of a text"
}
