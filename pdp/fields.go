package main

import (
	"slices"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
)

// inputFields is the input's schema as the bus keeps to it: what is required there is always there. A constitution's own
// bus/schema/input.json narrows what a policy may name, and promises nothing of what is sent.
var inputFields = sync.OnceValue(func() map[string]any {
	var schema map[string]any
	if err := util.UnmarshalJSON(inputSchemaJSON, &schema); err != nil {
		panic("the embedded schema cannot be read: " + err.Error())
	}
	return schema
})

// absence is why a place of the input may have no value.
type absence int

const (
	never     absence = iota
	unsent            // payload and headers: whoever sends leaves out what they like
	unlike            // topic and cause: other messages have none
	forgotten         // facts: nothing was remembered yet
)

// absenceOf says whether a place of the input may have no value.
func absenceOf(at place) absence {
	at = at.whole()
	if at == "" {
		return never
	}
	schema := inputFields()
	steps := at.steps()
	for i, step := range steps {
		properties, closed := schema["properties"].(map[string]any)
		if !closed {
			return openAbsence(steps, i)
		}
		next, known := properties[step].(map[string]any)
		if !known {
			return never // the type checker has said so
		}
		if !slices.Contains(namesIn(schema["required"]), step) {
			return unlike
		}
		schema = next
	}
	return never
}

// openAbsence is of what lies in an object whose keys nobody vouches for; the bus's own counters are always there.
func openAbsence(steps []string, from int) absence {
	switch steps[0] {
	case "message":
		return unsent
	case "facts":
		counted := steps[1] == "sender" || steps[1] == "conversation"
		if counted && len(steps) == from+1 && (steps[from] == "sent" || steps[from] == "refused") {
			return never
		}
		return forgotten
	default:
		return never // an element of a list of names
	}
}

func namesIn(value any) []string {
	list, _ := value.([]any)
	var names []string
	for _, one := range list {
		if name, ok := one.(string); ok {
			names = append(names, name)
		}
	}
	return names
}

// fieldSchema is the schema of one field; nil where it has none of its own.
func fieldSchema(at place) map[string]any {
	schema := inputFields()
	if at == "" {
		return schema
	}
	for _, step := range at.steps() {
		properties, _ := schema["properties"].(map[string]any)
		next, ok := properties[step].(map[string]any)
		if !ok {
			return nil
		}
		schema = next
	}
	return schema
}

// bounds are the values that a field can have.
type bounds struct {
	among    []ast.Value // any of these; nil: any
	not      []ast.Value
	low      ast.Value // nil: none
	high     ast.Value
	lowOpen  bool // more than low
	highOpen bool
}

// boundsOf are what the bus keeps to.
func boundsOf(at place) bounds {
	var b bounds
	schema := fieldSchema(at)
	if enum, ok := schema["enum"].([]any); ok {
		for _, one := range enum {
			if value, err := ast.InterfaceToValue(one); err == nil {
				b.among = append(b.among, value)
			}
		}
	}
	b.low, b.high = numberIn(schema["minimum"]), numberIn(schema["maximum"])
	return b
}

func numberIn(value any) ast.Value {
	if value == nil {
		return nil
	}
	number, err := ast.InterfaceToValue(value)
	if err != nil {
		return nil
	}
	return number
}

// take narrows to one of these values.
func (b *bounds) take(values []ast.Value) {
	if b.among == nil {
		b.among = slices.Clone(values)
		return
	}
	b.among = slices.DeleteFunc(slices.Clone(b.among), func(have ast.Value) bool {
		return !slices.ContainsFunc(values, func(one ast.Value) bool { return have.Compare(one) == 0 })
	})
}

func (b *bounds) atLeast(value ast.Value, open bool) {
	if b.low == nil || value.Compare(b.low) > 0 || value.Compare(b.low) == 0 && open {
		b.low, b.lowOpen = value, open
	}
}

func (b *bounds) atMost(value ast.Value, open bool) {
	if b.high == nil || value.Compare(b.high) < 0 || value.Compare(b.high) == 0 && open {
		b.high, b.highOpen = value, open
	}
}

// empty says that no value is left. Values of different types are ordered too, so this holds whatever is sent.
func (b *bounds) empty() bool {
	if b.low != nil && b.high != nil {
		if order := b.low.Compare(b.high); order > 0 || order == 0 && (b.lowOpen || b.highOpen) {
			return true
		}
	}
	if b.among == nil {
		return false
	}
	return !slices.ContainsFunc(b.among, func(value ast.Value) bool {
		tooLow := b.low != nil && (value.Compare(b.low) < 0 || value.Compare(b.low) == 0 && b.lowOpen)
		tooHigh := b.high != nil && (value.Compare(b.high) > 0 || value.Compare(b.high) == 0 && b.highOpen)
		ruledOut := slices.ContainsFunc(b.not, func(other ast.Value) bool { return value.Compare(other) == 0 })
		return !tooLow && !tooHigh && !ruledOut
	})
}
