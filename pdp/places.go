package main

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// place is a field of the input, as far as it is written out: input.message.payload.amount is message, payload, amount.
// A variable is a step of its own, under its own name, so that two fields of one element are told from those of two.
type place string

const (
	placeSeparator = "\x00"
	placeVariable  = "\x01"
)

func placeOf(ref ast.Ref) place {
	var steps []string
	for _, step := range ref[1:] {
		switch value := step.Value.(type) {
		case ast.String:
			steps = append(steps, string(value))
			continue
		case ast.Number:
			steps = append(steps, string(value))
			continue
		case ast.Var:
			steps = append(steps, placeVariable+string(value))
			continue
		}
		break
	}
	return place(strings.Join(steps, placeSeparator))
}

func (p place) steps() []string { return strings.Split(string(p), placeSeparator) }

// open says that an element of a list or an object is meant, whichever it is.
func (p place) open() bool { return strings.Contains(string(p), placeVariable) }

// whole is the place without the elements at its end: what is iterated over.
func (p place) whole() place {
	for {
		i := strings.LastIndex(string(p), placeSeparator)
		if i < 0 || !strings.HasPrefix(string(p[i+1:]), placeVariable) {
			return p
		}
		p = p[:i]
	}
}

// String is the place as Rego writes it.
func (p place) String() string { return p.ref().String() }

func (p place) ref() ast.Ref {
	ref := ast.InputRootRef.Copy()
	if p == "" {
		return ref
	}
	for _, step := range p.steps() {
		if strings.HasPrefix(step, placeVariable) {
			ref = ref.Append(ast.VarTerm("_"))
		} else {
			ref = ref.Append(ast.StringTerm(step))
		}
	}
	return ref
}

// within says whether this place is the other one, or lies in it.
func (p place) within(other place) bool {
	return p == other || other == "" || len(p) > len(other) && p[:len(other)] == other && string(p[len(other)]) == placeSeparator
}

// aliases are the places that local variables stand for.
type aliases map[ast.Var]ast.Ref

// resolve writes a ref out from `input` on, where it begins with a variable that stands for a place.
func (a aliases) resolve(ref ast.Ref) (ast.Ref, bool) {
	if ref.HasPrefix(ast.InputRootRef) {
		return ref, true
	}
	head, ok := ref[0].Value.(ast.Var)
	if !ok {
		return nil, false
	}
	base, ok := a[head]
	if !ok {
		return nil, false
	}
	return append(slices.Clone(base), ref[1:]...), true
}

// place is the place that a term stands for; exact when all of it is written out.
func (a aliases) place(term *ast.Term) (at place, exact, ok bool) {
	var ref ast.Ref
	switch value := term.Value.(type) {
	case ast.Ref:
		ref, ok = a.resolve(value)
	case ast.Var:
		if value.Equal(ast.InputRootDocument.Value) {
			return "", true, true
		}
		ref, ok = a[value]
	}
	if !ok {
		return "", false, false
	}
	at = placeOf(ref)
	exact = len(ref) == 1 || len(at.steps()) == len(ref)-1 && at != ""
	return at, exact, true
}

// in finds the variables that a body gives to places, beside those that are known already.
func (a aliases) in(body ast.Body) aliases {
	all := aliases{}
	for name, ref := range a {
		all[name] = ref
	}
	for range 2 { // a variable may stand for a part of another one's place
		for _, expr := range body {
			if expr.Negated || !expr.IsEquality() {
				continue
			}
			for i := range 2 {
				name, isVar := expr.Operand(i).Value.(ast.Var)
				ref, isRef := expr.Operand(1 - i).Value.(ast.Ref)
				if !isVar || !isRef {
					continue
				}
				if resolved, ok := all.resolve(ref); ok {
					all[name] = resolved
				}
			}
		}
	}
	return all
}

// withElement adds the variables of an `every`: one stands for an element of its domain.
func (a aliases) withElement(every *ast.Every) aliases {
	var domain ast.Ref
	switch value := every.Domain.Value.(type) {
	case ast.Var:
		domain = a[value]
	case ast.Ref:
		domain, _ = a.resolve(value)
	}
	element, isVar := every.Value.Value.(ast.Var)
	if domain == nil || !isVar {
		return a
	}
	all := a.in(nil)
	all[element] = append(slices.Clone(domain), every.Key)
	if every.Key == nil {
		all[element] = append(slices.Clone(domain), every.Value)
	}
	return all
}
