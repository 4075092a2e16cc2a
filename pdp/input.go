package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

// inputDepthMax bounds the parser's own recursion; the bus refuses payloads deeper than 64 long before.
const inputDepthMax = 512

// wanted is the part of an input that a policy reads, by the names on the way there. A name without more below it is
// wanted with all that it has.
type wanted map[string]wantedName

type wantedName struct {
	key   *ast.Term
	below wanted // nil: everything
}

// wantedOf is what these paths lead to (reads.paths); nil when that is the whole input.
func wantedOf(paths [][]string) wanted {
	all := wanted{}
	for _, path := range paths {
		if len(path) == 0 {
			return nil
		}
		at := all
		for i, name := range path {
			known, there := at[name]
			if !there {
				known = wantedName{key: ast.StringTerm(name), below: wanted{}}
			}
			if i == len(path)-1 {
				known.below = nil
			}
			at[name] = known
			if at = known.below; at == nil {
				break // no path goes on where another one ends: see withoutCovered
			}
		}
	}
	return all
}

// parseInput reads the input document straight into OPA's values, numbers as sent. It gives what ast.ValueFromReader
// gives (a fuzz test compares them) in a fraction of the time, and refuses a key that is there twice. What is not
// wanted is checked in the same way and left out of objects: of a message of 1 KB a policy reads a small part.
func parseInput(text []byte, want wanted) (ast.Value, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("it is not UTF-8")
	}
	p := inputParser{text: string(text)}
	term, err := p.value(0, want)
	if err != nil {
		return nil, err
	}
	if p.skipSpace(); p.at != len(p.text) {
		return nil, p.unexpected()
	}
	if term == nil {
		return ast.NewObject(), nil // nothing was wanted
	}
	return term.Value, nil
}

type inputParser struct {
	text string
	at   int
	// What the objects and arrays that are being read have so far, the innermost last.
	keys     []string
	pairs    [][2]*ast.Term
	elements []*ast.Term
	terms    []ast.Term // made ahead, many at once
}

const termsAhead = 16

func (p *inputParser) term(value ast.Value) *ast.Term {
	if len(p.terms) == 0 {
		p.terms = make([]ast.Term, termsAhead)
	}
	term := &p.terms[0]
	p.terms = p.terms[1:]
	term.Value = value
	return term
}

func (p *inputParser) unexpected() error {
	if p.at >= len(p.text) {
		return errors.New("it ends too early")
	}
	return fmt.Errorf("unexpected %q at byte %d", p.text[p.at], p.at)
}

func (p *inputParser) skipSpace() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// next is the byte after any space, 0 at the end.
func (p *inputParser) next() byte {
	p.skipSpace()
	if p.at >= len(p.text) {
		return 0
	}
	return p.text[p.at]
}

// none is wanted of what is only checked.
var none = wanted{}

// value reads the next value; an empty want, unlike nil, means that it is only checked, and what comes back means nothing.
func (p *inputParser) value(depth int, want wanted) (*ast.Term, error) {
	if depth > inputDepthMax {
		return nil, fmt.Errorf("it is nested deeper than %d", inputDepthMax)
	}
	keep := want == nil || len(want) > 0
	switch first := p.next(); {
	case first == '{':
		return p.object(depth, want)
	case first == '[':
		return p.array(depth, keep)
	case first == '"':
		text, err := p.str()
		if err != nil || !keep {
			return nil, err
		}
		return p.term(ast.String(text)), nil
	case first == '-' || first >= '0' && first <= '9':
		text, err := p.number()
		if err != nil || !keep {
			return nil, err
		}
		return p.numberTerm(text), nil
	case strings.HasPrefix(p.text[p.at:], "true"):
		p.at += 4
		return ast.InternedTerm(true), nil
	case strings.HasPrefix(p.text[p.at:], "false"):
		p.at += 5
		return ast.InternedTerm(false), nil
	case strings.HasPrefix(p.text[p.at:], "null"):
		p.at += 4
		return ast.InternedNullTerm, nil
	}
	return nil, p.unexpected()
}

func (p *inputParser) object(depth int, want wanted) (*ast.Term, error) {
	p.at++
	keys, pairs := len(p.keys), len(p.pairs)
	for p.next() != '}' {
		if len(p.keys) > keys {
			if p.next() != ',' {
				return nil, p.unexpected()
			}
			p.at++
		}
		if p.next() != '"' {
			return nil, p.unexpected()
		}
		name, err := p.str()
		if err != nil {
			return nil, err
		}
		if p.next() != ':' {
			return nil, p.unexpected()
		}
		p.at++
		p.keys = append(p.keys, name)
		known, below := want[name], none
		if want == nil || known.key != nil {
			below = known.below
		}
		value, err := p.value(depth+1, below)
		if err != nil {
			return nil, err
		}
		switch {
		case want == nil:
			p.pairs = append(p.pairs, [2]*ast.Term{p.term(ast.String(name)), value})
		case known.key != nil:
			p.pairs = append(p.pairs, [2]*ast.Term{known.key, value})
		}
	}
	p.at++
	if keyTwice(p.keys[keys:]) {
		return nil, errors.New("a key is there twice")
	}
	p.keys = p.keys[:keys]
	if want != nil && len(want) == 0 {
		return nil, nil
	}
	object := ast.NewObject(p.pairs[pairs:]...)
	p.pairs = p.pairs[:pairs]
	return p.term(object), nil
}

// keyTwice looks for it here, since ast.NewObject would keep both.
func keyTwice(keys []string) bool {
	const fewKeys = 16 // up to here comparing all with all is quicker than a map
	if len(keys) <= fewKeys {
		for i, key := range keys {
			if slices.Contains(keys[:i], key) {
				return true
			}
		}
		return false
	}
	seen := make(map[string]bool, len(keys))
	for _, key := range keys {
		seen[key] = true
	}
	return len(seen) < len(keys)
}

// array keeps all that it has or nothing: names do not lead into arrays.
func (p *inputParser) array(depth int, keep bool) (*ast.Term, error) {
	var want wanted
	if !keep {
		want = none
	}
	p.at++
	start := len(p.elements)
	for first := true; p.next() != ']'; first = false {
		if !first {
			if p.next() != ',' {
				return nil, p.unexpected()
			}
			p.at++
		}
		value, err := p.value(depth+1, want)
		if err != nil {
			return nil, err
		}
		if keep {
			p.elements = append(p.elements, value)
		}
	}
	p.at++
	if !keep {
		return nil, nil
	}
	array := ast.NewArray(slices.Clone(p.elements[start:])...)
	p.elements = p.elements[:start]
	return p.term(array), nil
}

// str reads a string; without escapes, as nearly all are, it is a piece of the text.
func (p *inputParser) str() (string, error) {
	start := p.at
	for p.at++; p.at < len(p.text); p.at++ {
		switch b := p.text[p.at]; {
		case b == '"':
			p.at++
			return p.text[start+1 : p.at-1], nil
		case b == '\\':
			return p.escaped(start)
		case b < ' ':
			return "", p.unexpected()
		}
	}
	return "", p.unexpected()
}

func (p *inputParser) escaped(start int) (string, error) {
	for ; p.at < len(p.text); p.at++ {
		switch p.text[p.at] {
		case '\\':
			p.at++
		case '"':
			p.at++
			var text string
			err := json.Unmarshal([]byte(p.text[start:p.at]), &text)
			return text, err
		}
	}
	return "", p.unexpected()
}

func (p *inputParser) number() (string, error) {
	start := p.at
	for p.at < len(p.text) && strings.IndexByte("+-.0123456789Ee", p.text[p.at]) >= 0 {
		p.at++
	}
	text := p.text[start:p.at]
	if !isDigits(text) && !json.Valid([]byte(text)) {
		return "", fmt.Errorf("%q is not a number", text)
	}
	return text, nil
}

// isDigits is true for what most numbers are: digits, the first one not 0 unless it is the only one.
func isDigits(text string) bool {
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return false
		}
	}
	return len(text) == 1 || len(text) > 1 && text[0] != '0'
}

func (p *inputParser) numberTerm(text string) *ast.Term {
	const fewDigits = 3 // OPA has terms for small numbers
	if len(text) <= fewDigits && isDigits(text) {
		n, _ := strconv.Atoi(text)
		return ast.InternedTerm(n)
	}
	return p.term(ast.Number(text))
}
