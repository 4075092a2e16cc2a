package main

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/util"
)

// With an empty allow_net nothing is fetched from the network, but a schema's {"$ref": "file:///…"} would still read
// the machine's own files, and a decision would depend on them. Here such a schema is an error, so a policy_error.
func init() {
	for name, operand := range map[string]int{"json.match_schema": 1, "json.verify_schema": 0} {
		original := topdown.GetBuiltin(name)
		topdown.RegisterBuiltinFunc(name, func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
			if foreign := foreignRef(schemaOperand(operands[operand].Value)); foreign != "" {
				return fmt.Errorf("the schema refers to %q, and nothing is fetched", foreign)
			}
			return original(bctx, operands, iter)
		})
	}
}

// schemaOperand is the schema as JSON, whether it was given as a document or as text; nil for what OPA will refuse.
func schemaOperand(value ast.Value) any {
	if text, ok := value.(ast.String); ok {
		var schema any
		if util.UnmarshalJSON([]byte(text), &schema) != nil {
			return nil
		}
		return schema
	}
	schema, err := ast.JSON(value)
	if err != nil {
		return nil
	}
	return schema
}
