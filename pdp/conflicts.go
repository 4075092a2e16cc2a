package main

import (
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// conflicting names rules that have two values at once, which ends every evaluation that asks for them in an error: two
// values under the same conditions, or one that always holds beside another.
func (l *linter) conflicting() {
	before := map[string][]*ast.Rule{}
	for _, file := range sortedKeys(l.c.modules) {
		compiled := l.c.compiler.Modules[file].Rules
		for i, rule := range l.c.modules[file].Rules {
			if !hasOneValue(rule) {
				continue
			}
			ref := compiled[i].Ref().String()
			for _, other := range before[ref] {
				if inConflict(rule, other) {
					l.r.kind(warnConflicting, rule.Location,
						fmt.Sprintf("%s is %s here and %s in %s, %s: asking for it is an error then",
							rule.Head.Name, shownTerm(rule.Head.Value), shownTerm(other.Head.Value), lineAt(other.Location, file), meeting(rule, other)),
						"give it one value, `default` for the one that is to hold otherwise, or conditions that exclude each other")
					break
				}
			}
			before[ref] = append(before[ref], rule)
		}
	}
}

// hasOneValue says that a rule is neither a function nor a set, and may have another definition.
func hasOneValue(rule *ast.Rule) bool {
	return !rule.Default && rule.Else == nil && len(rule.Head.Args) == 0 && rule.Head.RuleKind() == ast.SingleValue &&
		rule.Head.Ref().IsGround()
}

// inConflict says that two definitions, as the source has them, are two values at the same time.
func inConflict(rule, other *ast.Rule) bool {
	one, two := rule.Head.Value, other.Head.Value
	if one.Equal(two) {
		return false
	}
	constant, constantToo := ast.IsConstant(one.Value), ast.IsConstant(two.Value)
	switch {
	case rule.Body.Equal(other.Body) && constant && constantToo:
		return true
	case isUnconditional(rule.Body) && constant:
		return true // what is given there under a condition is meant to be another value
	case isUnconditional(other.Body) && constantToo:
		return true
	}
	return false
}

func meeting(rule, other *ast.Rule) string {
	switch {
	case rule.Body.Equal(other.Body):
		return "at the same time"
	case isUnconditional(rule.Body):
		return "and this one has no condition"
	default:
		return "and that one has no condition"
	}
}

func shownTerm(term *ast.Term) string {
	if text := textOf(term.Location); text != "" && !ast.IsConstant(term.Value) {
		return "`" + cut(text, 60) + "`"
	}
	return cut(term.Value.String(), 60)
}

func lineAt(at *ast.Location, file string) string {
	if at.File == file {
		return fmt.Sprintf("line %d", at.Row)
	}
	return fmt.Sprintf("%s:%d", at.File, at.Row)
}

// conflictText says of an evaluation that ended since a rule had two values which rule, and where its values are; "" for
// another error.
func conflictText(compiler *ast.Compiler, broken *topdown.Error) string {
	if broken == nil || broken.Code != topdown.ConflictErr || broken.Location == nil {
		return ""
	}
	module := compiler.Modules[broken.Location.File]
	if module == nil {
		return ""
	}
	for _, rule := range module.Rules {
		for one := rule; one != nil; one = one.Else {
			if one.Location.Row != broken.Location.Row || one.Head.RuleKind() != ast.SingleValue {
				continue
			}
			var lines []string
			for _, other := range compiler.GetRulesExact(rule.Ref().GroundPrefix()) {
				for definition := other; definition != nil; definition = definition.Else {
					if !definition.Default {
						lines = append(lines, fmt.Sprintf("%s:%d", definition.Location.File, definition.Location.Row))
					}
				}
			}
			if len(lines) < 2 {
				return ""
			}
			return fmt.Sprintf("%s got two values at once; it is defined at %s", rule.Ref().GroundPrefix(), strings.Join(lines, " and "))
		}
	}
	return ""
}
