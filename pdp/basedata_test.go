package main

import (
	"context"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// What base data has at a ref is what OPA's own store has there, and where it has nothing at once, it has what that store
// has at the path.
func TestBaseDataIsWhatTheStoreHas(t *testing.T) {
	c := compiled(t, map[string]string{
		"bus/rules/one/data.json": `{"a": {"b": [1, {"c": null}, []], "0": "zero", "": 7}, "list": ["x", 2.5, false], "text": "t"}`,
	})
	steps := []*ast.Term{
		ast.StringTerm("bus"), ast.StringTerm("rules"), ast.StringTerm("one"), ast.StringTerm("a"), ast.StringTerm("b"),
		ast.StringTerm("c"), ast.StringTerm("list"), ast.StringTerm("text"), ast.StringTerm(""), ast.StringTerm("0"),
		ast.IntNumberTerm(0), ast.IntNumberTerm(1), ast.IntNumberTerm(9), ast.NumberTerm("-1"), ast.NumberTerm("1.0"),
		ast.NumberTerm("1e0"), ast.NumberTerm("0.5"), ast.BooleanTerm(true), ast.NullTerm(),
	}
	found := 0
	var try func(ref ast.Ref)
	try = func(ref ast.Ref) {
		var stored ast.Value
		if path, err := storage.NewPathForRef(ref); err == nil {
			value, err := c.store.Read(context.Background(), c.txn, path)
			if err == nil {
				stored = value.(ast.Value)
			}
			again, errAgain := c.base.Read(context.Background(), c.txn, path)
			if again != value || storage.IsNotFound(err) != storage.IsNotFound(errAgain) || (err == nil) != (errAgain == nil) {
				t.Errorf("%v is read as %v, %v, and in the store is %v, %v", path, again, errAgain, value, err)
			}
		}
		got := c.base.Get(ref)
		if got != nil {
			found++
			if stored == nil || got.Compare(stored) != 0 {
				t.Errorf("%v is %v, and in the store %v", ref, got, stored)
			}
		}
		if stored == nil || len(ref) > 7 {
			return
		}
		for _, step := range steps {
			try(append(ref[:len(ref):len(ref)], step))
		}
	}
	try(ast.Ref{ast.DefaultRootDocument})
	if found < 15 {
		t.Errorf("only %d refs were found", found)
	}
}
