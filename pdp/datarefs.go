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
			if !ref.HasPrefix(ast.DefaultRootRef) {
				return
			}
			if unknown := c.unresolved(ref); unknown > 0 {
				hint := "check the spelling, and that the rule or data is there; for a key that may be missing, use object.get"
				if near := c.nearData(ref, unknown); near != "" {
					hint = "did you mean " + near + "? " + hint
				}
				r.at(locationOf(ref, unknown, location), "there is no "+ref.ConstantPrefix().String(), hint)
			}
		})
	}
}

// unresolved follows a ref through rules and data up to its first step that is not written out. It is the step that
// neither has; 0 when there is none.
func (c *constitution) unresolved(ref ast.Ref) int {
	rules := c.compiler.RuleTree.Child(ref[0].Value)
	data, hasData := any(c.data), true
	for i, step := range ref[1:] {
		if _, variable := step.Value.(ast.Var); variable || !ast.IsConstant(step.Value) {
			return 0
		}
		if rules != nil {
			if rules = rules.Child(step.Value); rules != nil && len(rules.Values) > 0 {
				return 0 // what the rule answers is the type checker's business
			}
		}
		data, hasData = child(data, hasData, step.Value)
		if rules == nil && !hasData {
			return i + 1
		}
	}
	return 0
}

// nearData is a ref with the step that neither rules nor data have replaced by the one that was most likely meant.
func (c *constitution) nearData(ref ast.Ref, unknown int) string {
	wrong, ok := ref[unknown].Value.(ast.String)
	if !ok {
		return ""
	}
	rules := c.compiler.RuleTree.Child(ref[0].Value)
	data, hasData := any(c.data), true
	for _, step := range ref[1:unknown] {
		if rules != nil {
			rules = rules.Child(step.Value)
		}
		data, hasData = child(data, hasData, step.Value)
	}
	var known []string
	if rules != nil {
		for _, value := range rules.Sorted {
			if name, ok := value.(ast.String); ok {
				known = append(known, string(name))
			}
		}
	}
	if object, ok := data.(map[string]any); ok && hasData {
		known = append(known, sortedKeys(object)...)
	}
	near := closest(string(wrong), known)
	if near == "" {
		return ""
	}
	meant := ref.ConstantPrefix().Copy()
	meant[unknown] = ast.StringTerm(near)
	return meant.String()
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
