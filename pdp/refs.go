package main

import "github.com/open-policy-agent/opa/v1/ast"

// walkRefs visits every ref to input and to data of a module, in rule heads too, with the place that is nearest to it
// in the source: what the compiler has rewritten often has no place of its own. A bare `input` is visited as a ref.
func walkRefs(module *ast.Module, visit func(ast.Ref, *ast.Location)) {
	for _, rule := range module.Rules {
		walkRuleRefs(rule, visit)
	}
}

// walkRuleRefs is walkRefs for a single rule.
func walkRuleRefs(rule *ast.Rule, visit func(ast.Ref, *ast.Location)) {
	var near *ast.Location
	at := func(location *ast.Location) *ast.Location {
		if location != nil && location.File != "" {
			return location
		}
		return near
	}
	var visitor *ast.GenericVisitor
	found := func(ref ast.Ref, location *ast.Location) bool {
		if !ref.HasPrefix(ast.InputRootRef) && !ref.HasPrefix(ast.DefaultRootRef) {
			return false
		}
		visit(ref, at(location))
		for _, step := range ref[1:] {
			visitor.Walk(step)
		}
		return true
	}
	visitor = ast.NewGenericVisitor(func(node any) bool {
		switch node := node.(type) {
		case *ast.Rule:
			near = at(node.Location)
		case *ast.Expr:
			near = at(node.Location)
		case *ast.Head:
			visitor.Walk(node.Reference) // the visitor itself leaves it out
		case *ast.Term:
			if ref, ok := node.Value.(ast.Ref); ok {
				return found(ref, node.Location)
			}
			if node.Value.Compare(ast.InputRootDocument.Value) == 0 {
				return found(ast.InputRootRef, node.Location)
			}
		case ast.Ref:
			return found(node, nil)
		}
		return false
	})
	visitor.Walk(rule)
}
