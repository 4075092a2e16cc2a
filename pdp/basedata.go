package main

import "github.com/open-policy-agent/opa/v1/ast"

// baseData is what an evaluation reads of data, straight from the constitution's own, which never changes. Without it
// OPA asks its store for each path anew in every evaluation, and remembers what it found for that evaluation only.
type baseData struct {
	root ast.Object
}

// Get finds what stands at a ref, as OPA's store would: names in objects, positions in arrays. Where there is nothing,
// or a step is of another kind, it is nil, and OPA asks the store.
func (b *baseData) Get(ref ast.Ref) ast.Value {
	var at ast.Value = b.root
	for _, step := range ref[1:] {
		var found *ast.Term
		switch name := step.Value.(type) {
		case ast.String:
			if object, ok := at.(ast.Object); ok {
				found = object.Get(step)
			}
		case ast.Number:
			array, ok := at.(*ast.Array)
			if position, whole := name.Int(); ok && whole && 0 <= position && position < array.Len() {
				found = array.Elem(position)
			}
		}
		if found == nil {
			return nil
		}
		at = found.Value
	}
	return at
}

// Put has nothing to do: all there is is here already.
func (b *baseData) Put(ast.Ref, ast.Value) {}
