package main

import (
	"fmt"
	"path"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"
)

// kind is a type of values, in the order in which Rego sorts them: every value of one comes before every value of the next.
type kind int

const (
	kindUnknown kind = iota
	kindNull
	kindBoolean
	kindNumber
	kindText
	kindList
	kindObject
	kindSet
)

func (k kind) String() string {
	return [...]string{"unknown", "null", "true or false", "a number", "a text", "a list", "an object", "a set"}[k]
}

// plural is for what holds of all of them.
func (k kind) plural() string {
	return [...]string{"", "null", "true and false", "numbers", "texts", "lists", "objects", "sets"}[k]
}

func kindOfValue(value ast.Value) kind {
	switch value.(type) {
	case ast.Null:
		return kindNull
	case ast.Boolean:
		return kindBoolean
	case ast.Number:
		return kindNumber
	case ast.String:
		return kindText
	case *ast.Array:
		return kindList
	case ast.Object:
		return kindObject
	case ast.Set:
		return kindSet
	default:
		return kindUnknown
	}
}

func kindOfType(of types.Type) kind {
	switch of.(type) {
	case types.Null, *types.Null:
		return kindNull
	case types.Boolean, *types.Boolean:
		return kindBoolean
	case types.Number, *types.Number:
		return kindNumber
	case types.String, *types.String:
		return kindText
	case *types.Array:
		return kindList
	case *types.Object:
		return kindObject
	case *types.Set:
		return kindSet
	default:
		return kindUnknown
	}
}

var schemaKinds = map[string]kind{
	"null": kindNull, "boolean": kindBoolean, "number": kindNumber, "integer": kindNumber, "string": kindText,
	"array": kindList, "object": kindObject,
}

// typeTests are the built-ins that are true for one kind only.
var typeTests = map[string]kind{
	ast.IsNull.Name: kindNull, ast.IsBoolean.Name: kindBoolean, ast.IsNumber.Name: kindNumber, ast.IsString.Name: kindText,
	ast.IsArray.Name: kindList, ast.IsObject.Name: kindObject, ast.IsSet.Name: kindSet,
}

// sample is a value that a term can have. Its place in a data.json is there where the source names none.
type sample struct {
	kind  kind
	value ast.Value // nil where only the kind is known
	file  string
	key   string
}

// String says what it is, for behind a name.
func (s sample) String() string {
	if s.file == "" || s.value == nil {
		return s.kind.String()
	}
	return fmt.Sprintf("%s (%s in %s)", s.kind, cut(s.value.String(), 60), s.file)
}

// samplesMax is how many values of one list or object are looked at.
const samplesMax = 1000

// oneKind is what is known of a term when only its kind is.
func oneKind(k kind) []sample {
	if k == kindUnknown {
		return nil
	}
	return []sample{{kind: k}}
}

// samplesKey names a variable or a field of the input.
func samplesKey(term *ast.Term, known aliases) (string, bool) {
	if at, exact, ok := known.place(term); ok {
		return "input " + string(at), exact
	}
	name, isVar := term.Value.(ast.Var)
	return "variable " + string(name), isVar
}

// samples are the values, or the one kind of values, that a term can have; none where that is not known.
func (h *holder) samples(term *ast.Term, known aliases, around established) []sample {
	if ast.IsConstant(term.Value) {
		return []sample{{kind: kindOfValue(term.Value), value: term.Value}}
	}
	if key, ok := samplesKey(term, known); ok {
		if found := around.samples[key]; len(found) > 0 {
			return found
		}
	}
	if at, exact, ok := known.place(term); ok {
		if !exact || at.open() {
			return nil
		}
		return oneKind(kindOfField(at))
	}
	ref, ok := term.Value.(ast.Ref)
	if !ok || !ref.HasPrefix(ast.DefaultRootRef) {
		return nil
	}
	if len(h.compiler.GetRules(ref)) == 0 {
		return h.c.samplesIn(ref)
	}
	if !ref.IsGround() || h.compiler.TypeEnv == nil {
		return nil
	}
	return oneKind(kindOfType(h.compiler.TypeEnv.GetByRef(ref)))
}

// kindOfField is that of a field of the input of which the bus vouches for the type.
func kindOfField(at place) kind {
	steps := at.steps()
	if len(steps) == 3 && steps[0] == "message" && steps[1] == "headers" {
		return kindText
	}
	if len(steps) == 3 && steps[0] == "facts" && (steps[2] == "sent" || steps[2] == "refused") && absenceOf(at) == never {
		return kindNumber
	}
	name, _ := fieldSchema(at)["type"].(string)
	return schemaKinds[name]
}

// samplesIn are the values that stand in data.json where a ref may lead.
func (c *constitution) samplesIn(ref ast.Ref) []sample {
	written := len(ref.ConstantPrefix())
	root := c.base.Get(ref[:written])
	if root == nil {
		return nil
	}
	found := []sample{}
	var walk func(at ast.Value, steps, whole ast.Ref)
	walk = func(at ast.Value, steps, whole ast.Ref) {
		if len(steps) == 0 {
			found = append(found, sample{kindOfValue(at), at, c.dataFileOf(whole), plain(whole[len(whole)-1])})
			return
		}
		into := func(key, value *ast.Term) {
			if len(found) < samplesMax && (!ast.IsConstant(steps[0].Value) || steps[0].Equal(key)) {
				walk(value.Value, steps[1:], whole.Append(key))
			}
		}
		switch at := at.(type) {
		case ast.Object:
			at.Foreach(into)
		case *ast.Array:
			for i := range at.Len() {
				into(ast.InternedTerm(i), at.Elem(i))
			}
		}
	}
	walk(root, ref[written:], ref[:written])
	return found
}

// plain is a name without its quotes.
func plain(term *ast.Term) string {
	if text, ok := term.Value.(ast.String); ok {
		return string(text)
	}
	return term.String()
}

// dataFileOf is the data.json in which a value stands.
func (c *constitution) dataFileOf(ref ast.Ref) string {
	whole := ""
	for _, step := range ref[1:] {
		whole += plain(step) + "/"
	}
	best := ""
	for _, file := range c.dataFiles {
		folder := strings.TrimPrefix(path.Dir(file)+"/", "./")
		if strings.HasPrefix(whole, folder) && len(file) > len(best) {
			best = file
		}
	}
	return best
}

// kindsOf notes what an expression that is true says of the kinds of variables and fields.
func (h *holder) kindsOf(expr *ast.Expr, known aliases, found established) {
	note := func(term *ast.Term, samples []sample) {
		if key, ok := samplesKey(term, known); ok && len(samples) > 0 && len(found.samples[key]) == 0 {
			found.samples[key] = samples
		}
	}
	operator, operands := expr.Operator().String(), expr.Operands()
	if expr.IsEquality() || operator == ast.Equal.Name {
		for i := range 2 {
			if _, isVar := operands[i].Value.(ast.Var); isVar {
				note(operands[i], h.samples(operands[1-i], known, found))
			}
		}
		return
	}
	if tested, ok := typeTests[operator]; ok {
		note(operands[0], oneKind(tested))
		return
	}
	declared, ok := builtinsByName()[operator]
	if !ok {
		return
	}
	for i, wanted := range declared.Decl.FuncArgs().Args {
		if i < len(operands) {
			switch k := kindOfType(wanted); k {
			case kindNumber, kindText:
				note(operands[i], oneKind(k))
			}
		}
	}
	if arity := len(declared.Decl.FuncArgs().Args); len(operands) == arity+1 {
		note(operands[arity], oneKind(kindOfType(declared.Decl.Result())))
		if operator == ast.ObjectGet.Name {
			note(operands[arity], h.samplesOfGet(operands, known, found))
		}
	}
}

// samplesOfGet are those of `object.get(object, key, otherwise)`, where the object is written out or stands in a data.json.
func (h *holder) samplesOfGet(operands []*ast.Term, known aliases, found established) []sample {
	from, otherwise := h.samples(operands[0], known, found), h.samples(operands[2], known, found)
	if len(from) != 1 || len(otherwise) == 0 {
		return nil
	}
	object, ok := from[0].value.(ast.Object)
	if _, isPath := operands[1].Value.(*ast.Array); !ok || isPath {
		return nil
	}
	var samples []sample
	object.Foreach(func(key, value *ast.Term) {
		if ast.IsConstant(operands[1].Value) && !key.Equal(operands[1]) || len(samples) >= samplesMax {
			return
		}
		samples = append(samples, sample{kindOfValue(value.Value), value.Value, from[0].file, plain(key)})
	})
	return append(samples, otherwise...)
}
