package main

import (
	"context"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// baseData is what an evaluation reads of data, straight from the constitution's own, which never changes. Without it
// OPA asks its store for each path anew in every evaluation, and remembers what it found for that evaluation only.
type baseData struct {
	storage.Store
	root *dataNode
}

// indexedDepth is that of data.bus.rules.<rule>.<name>: what OPA looks for most, and most often in vain.
const indexedDepth = 4

var errNoData = &storage.Error{Code: storage.NotFoundErr, Message: "document does not exist"}

// dataNode is a value and, for an object near the root, what it has by name.
type dataNode struct {
	value ast.Value
	names map[string]*dataNode
}

func newBaseData(store storage.Store, root ast.Object) *baseData {
	return &baseData{Store: store, root: newDataNode(root, indexedDepth)}
}

func newDataNode(value ast.Value, depth int) *dataNode {
	node := &dataNode{value: value}
	if object, ok := value.(ast.Object); ok && depth > 0 {
		node.names = make(map[string]*dataNode, object.Len())
		object.Foreach(func(key, child *ast.Term) {
			node.names[string(key.Value.(ast.String))] = newDataNode(child.Value, depth-1)
		})
	}
	return node
}

// Get finds what stands at a ref, as OPA's store would: names in objects, positions in arrays. Where there is nothing,
// or a step is of another kind, it is nil, and OPA asks the store.
func (b *baseData) Get(ref ast.Ref) ast.Value {
	node := b.root
	steps := ref[1:]
	for len(steps) > 0 && node.names != nil {
		name, ok := steps[0].Value.(ast.String)
		if !ok {
			return nil
		}
		if node = node.names[string(name)]; node == nil {
			return nil
		}
		steps = steps[1:]
	}
	at := node.value
	for _, step := range steps {
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

// Read is asked for what Get did not find. That an object near the root lacks a name is known without the store.
func (b *baseData) Read(ctx context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	node := b.root
	for _, name := range path {
		if node.names == nil {
			break
		}
		if node = node.names[name]; node == nil {
			return nil, errNoData
		}
	}
	return b.Store.Read(ctx, txn, path)
}
