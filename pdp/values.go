package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

const (
	valueBytesMax = 2048
	namesMax      = 20
)

// values are named JSON values in the order of the source.
type values []namedValue

type namedValue struct {
	name  string
	value json.RawMessage
}

func (v values) MarshalJSON() ([]byte, error) {
	var text bytes.Buffer
	text.WriteByte('{')
	for i, one := range v {
		if i > 0 {
			text.WriteByte(',')
		}
		name, err := json.Marshal(one.name)
		if err != nil {
			return nil, err
		}
		text.Write(name)
		text.WriteByte(':')
		text.Write(one.value)
	}
	text.WriteByte('}')
	return text.Bytes(), nil
}

// fill puts values in the place of variables.
func fill(term *ast.Term, m *moment) *ast.Term {
	filled, err := ast.TransformVars(term.Copy(), func(name ast.Var) (ast.Value, error) {
		if value := m.vars[name]; value != nil {
			return value, nil
		}
		return name, nil
	})
	if result, ok := filled.(ast.Value); ok && err == nil {
		return ast.NewTerm(result)
	}
	return term
}

// describe says what stood in expressions: every ref, every variable, and what every call gave.
func (a *asker) describe(m *moment, exprs []*ast.Expr, base *ast.Expr) *step {
	found := &step{Values: values{}, Missing: []string{}, Private: []string{}, Via: []string{}}
	if at := cmp.Or(base.Location, m.expr.Location); at != nil {
		found.File, found.Row, found.Col = at.File, at.Row, at.Col
		found.Text = cut(textOf(at), stepTextMax)
	}
	for _, name := range a.namesIn(exprs, base) {
		if len(found.Values)+len(found.Missing) >= namesMax {
			break
		}
		value, known := a.valueOf(name.term, m)
		switch {
		case !known:
			continue
		case value == nil:
			found.Missing = append(found.Missing, name.text)
		default:
			found.Values = append(found.Values, namedValue{name.text, shownValue(value)})
		}
		if a.private(name.term, m) {
			found.Private = append(found.Private, name.text)
		}
	}
	return found
}

// name is something of the source that has a value.
type name struct {
	text string
	term *ast.Term
	at   *ast.Location
}

func (a *asker) namesIn(exprs []*ast.Expr, base *ast.Expr) []name {
	var found []name
	add := func(text string, term *ast.Term, at *ast.Location) {
		if text != "" && !slices.ContainsFunc(found, func(other name) bool { return other.text == text }) {
			found = append(found, name{text, term, at})
		}
	}
	var visitor *ast.GenericVisitor
	visitor = ast.NewGenericVisitor(func(node any) bool {
		switch node := node.(type) {
		case *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension, *ast.Every:
			return true // their variables are not there any more
		case *ast.With:
			if target, ok := node.Target.Value.(ast.Ref); ok {
				add(target.String(), node.Value, node.Location)
			}
			visitor.Walk(node.Value)
			return true
		case *ast.Expr:
			if !node.IsCall() {
				return false
			}
			for _, operand := range node.Operands() {
				visitor.Walk(operand)
			}
			for _, with := range node.With {
				visitor.Walk(with)
			}
			return true
		case ast.Call:
			for _, operand := range node[1:] {
				visitor.Walk(operand)
			}
			return true
		case *ast.Term:
			switch value := node.Value.(type) {
			case ast.Ref:
				add(a.nameOf(value), node, node.Location)
				for _, step := range value[1:] {
					visitor.Walk(step)
				}
				return true
			case ast.Var:
				if original := a.compiler.RewrittenVars[value]; original != "" && !original.IsGenerated() && !original.IsWildcard() {
					add(string(original), node, node.Location)
				}
			}
		}
		return false
	})
	for _, expr := range exprs {
		visitor.Walk(expr)
		if text, out, ok := a.result(expr); ok && expr != base {
			add(text, out, expr.Location)
		}
	}
	slices.SortStableFunc(found, func(x, y name) int { return compareLocations(x.at, y.at) })
	return found
}

// result is the variable that holds what a call inside an expression gave, under the call's own text.
func (a *asker) result(expr *ast.Expr) (string, *ast.Term, bool) {
	if !expr.Generated || !expr.IsCall() || expr.IsEquality() || expr.Location == nil {
		return "", nil, false
	}
	operands := expr.Operands()
	out := operands[len(operands)-1]
	if _, ok := out.Value.(ast.Var); !ok || len(operands) <= a.compiler.GetArity(expr.Operator()) {
		return "", nil, false
	}
	return cut(textOf(expr.Location), 100), out, true
}

func compareLocations(x, y *ast.Location) int {
	if x == nil || y == nil {
		return compareBool(x == nil, y == nil)
	}
	return cmp.Or(cmp.Compare(x.Row, y.Row), cmp.Compare(x.Col, y.Col))
}

// nameOf writes a ref with the variables as the source names them; a function's name is none.
func (a *asker) nameOf(ref ast.Ref) string {
	if rules := a.compiler.GetRulesExact(ref); len(rules) > 0 && len(rules[0].Head.Args) > 0 {
		return ""
	}
	named := make(ast.Ref, len(ref))
	for i, step := range ref {
		named[i] = step
		if variable, ok := step.Value.(ast.Var); ok {
			if original := a.compiler.RewrittenVars[variable]; original != "" {
				named[i] = ast.VarTerm(string(original))
			} else if variable.IsGenerated() && !variable.Equal(ast.InputRootDocument.Value) {
				return ""
			}
		}
	}
	return named.String()
}

// valueOf is what a term of the source stood for; nil when it had no value, and not known when that cannot be said.
func (a *asker) valueOf(term *ast.Term, m *moment) (ast.Value, bool) {
	filled := fill(term, m)
	if _, open := filled.Value.(ast.Var); open {
		return nil, false
	}
	ref, ok := filled.Value.(ast.Ref)
	if !ok {
		return filled.Value, filled.IsGround()
	}
	if !ref.IsGround() {
		return nil, false
	}
	switch {
	case ref[0].Equal(ast.InputRootDocument) && len(m.withs) == 0:
		if m.input == nil {
			return nil, true
		}
		value, err := m.input.Find(ref[1:])
		if err != nil {
			return nil, true
		}
		return value, true
	case ref[0].Equal(ast.InputRootDocument), ref[0].Equal(ast.DefaultRootDocument):
		found, err := a.ask(filled, m.input, m.withs)
		if err != nil {
			return nil, false
		}
		if found == nil {
			return nil, true
		}
		return found.Value, true
	default:
		value, err := ref[0].Value.Find(ref[1:])
		if err != nil {
			return nil, true
		}
		return value, true
	}
}

func shownValue(value ast.Value) json.RawMessage {
	plain, err := ast.JSON(value)
	if err != nil {
		return json.RawMessage(`"… (cannot be written as JSON)"`)
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(plain) != nil {
		return json.RawMessage(`"… (cannot be written as JSON)"`)
	}
	if text.Len() > valueBytesMax {
		return json.RawMessage(`"… (too large to show)"`)
	}
	return json.RawMessage(bytes.TrimSpace(text.Bytes()))
}

func textOf(at *ast.Location) string {
	if at == nil {
		return ""
	}
	return strings.Join(strings.Fields(string(at.Text)), " ")
}

func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
