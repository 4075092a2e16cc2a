package main

import "github.com/open-policy-agent/opa/v1/ast"

// What may quote a message: values that were made of these are shown only to whoever may see payloads.
var privatePaths = []string{"payload", "headers"}

// private says whether a value may quote the payload or the headers. In doubt it does.
func (a *asker) private(term *ast.Term, m *moment) bool {
	ref, ok := term.Value.(ast.Ref)
	switch {
	case ok && ref.HasPrefix(ast.InputRootRef):
		return isPrivatePath(ref)
	case ok && ref.HasPrefix(ast.DefaultRootRef):
		for _, rule := range a.compiler.GetRulesDynamicWithOpts(ref, ast.RulesOptions{}) {
			if a.readsPrivate(rule) {
				return true
			}
		}
		return false
	}
	for at := m.span; at != nil; at = at.parent {
		if rule, ok := at.node.(*ast.Rule); ok {
			return len(rule.Head.Args) > 0 || a.readsPrivate(rule)
		}
	}
	return true
}

func isPrivatePath(ref ast.Ref) bool {
	switch {
	case len(ref) == 1:
		return true
	case !ref[1].Equal(ast.StringTerm("message")):
		_, named := ref[1].Value.(ast.String)
		return !named
	case len(ref) == 2:
		return true
	}
	field, named := ref[2].Value.(ast.String)
	if !named {
		return true
	}
	for _, name := range privatePaths {
		if string(field) == name {
			return true
		}
	}
	return false
}

// readsPrivate follows a rule into all that it needs.
func (a *asker) readsPrivate(rule *ast.Rule) bool {
	if known, ok := a.reads[rule]; ok {
		return known
	}
	a.reads[rule] = false // a rule never needs itself
	found := false
	walkRuleRefs(rule, func(ref ast.Ref, _ *ast.Location) {
		found = found || ref.HasPrefix(ast.InputRootRef) && isPrivatePath(ref)
	})
	for needed := range a.compiler.Graph.Dependencies(rule) {
		other, ok := needed.(*ast.Rule)
		found = found || ok && a.readsPrivate(other)
	}
	a.reads[rule] = found
	return found
}
