package main

import (
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
)

// checkDataRefs refuses a ref to data, as far as it is written out, that no rule and no data can ever answer. The type
// checker does not see these: to it, data may come from anywhere.
func (c *constitution) checkDataRefs(r *report) {
	for _, name := range sortedKeys(c.compiler.Modules) {
		walkRefs(c.compiler.Modules[name], func(ref ast.Ref, location *ast.Location) {
			if ref.HasPrefix(ast.DefaultRootRef) && !c.resolves(ref) {
				r.at(location, "there is no "+ref.ConstantPrefix().String(), "check the spelling, and that the rule or data is there; "+
					"for a key that may be missing, use object.get")
			}
		})
	}
}

// resolves follows a ref through rules and data up to its first step that is not written out.
func (c *constitution) resolves(ref ast.Ref) bool {
	rules := c.compiler.RuleTree.Child(ref[0].Value)
	data, hasData := any(c.data), true
	for _, step := range ref[1:] {
		if _, variable := step.Value.(ast.Var); variable || !ast.IsConstant(step.Value) {
			return true
		}
		if rules != nil {
			if rules = rules.Child(step.Value); rules != nil && len(rules.Values) > 0 {
				return true // what the rule answers is the type checker's business
			}
		}
		data, hasData = child(data, hasData, step.Value)
		if rules == nil && !hasData {
			return false
		}
	}
	return true
}

func child(data any, found bool, step ast.Value) (any, bool) {
	if !found {
		return nil, false
	}
	switch at := data.(type) {
	case map[string]any:
		key, ok := step.(ast.String)
		if !ok {
			return nil, false
		}
		value, ok := at[string(key)]
		return value, ok
	case []any:
		number, ok := step.(ast.Number)
		index, err := strconv.Atoi(string(number))
		if !ok || err != nil || index < 0 || index >= len(at) {
			return nil, false
		}
		return at[index], true
	default:
		return nil, false
	}
}
