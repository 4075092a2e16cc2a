package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

// What OPA's own reader takes, this one takes in the same way; what it refuses, this one refuses.
func FuzzInputIsReadAsOPAReadsIt(f *testing.F) {
	for _, seed := range []string{
		`{}`, `[]`, `null`, `true`, ` {"a": [1, -2.50, 1e3, {"b": "c\u00e9\n"}], "é": false} `, `{"a":1}}`, `{"a" 1}`, `[1,]`,
		`01`, `-`, `1.`, `"\ud800"`, `"\u0000"`, "\"\x01\"", `{"a":1,"a":2}`, `1e999`, `12345678901234567890`, `truex`, `[1 2]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := parseInput(text, nil)
		if err != nil {
			return
		}
		want, wantErr := ast.ValueFromReader(bytes.NewReader(text))
		if wantErr != nil {
			t.Fatalf("%q was taken, and OPA says %v", text, wantErr)
		}
		if got.Compare(want) != 0 || got.String() != want.String() {
			t.Fatalf("%q was read as %v, and OPA reads %v", text, got, want)
		}
	})
}

// Whatever is wanted of it, the same inputs are taken, and at the wanted paths they have the same values.
func FuzzInputHasWhatIsWanted(f *testing.F) {
	for _, seed := range []string{
		`{"a": {"b": 1, "c": [{"b": 2}], "d": {}}, "b": {"a": "x"}}`, `{"a": [1, {"b": 2}], "b": 007}`, `{"c": {"a": 1, "a": 2}}`,
		`{"a": {"b": {"c": 1}}, "z": "\ud800", "y": "\x"}`, `{"a": 1, "a": 2}`, `{"a": {"b"`, `[{"a": 1}]`, `"a"`, `1000`, `{"c": [1,]}`,
	} {
		f.Add([]byte(seed))
	}
	several := [][][]string{{}, {{}}, {{"a"}}, {{"a", "b"}}, {{"a", "b", "c"}, {"a", "d"}, {"b"}}, {{"é"}, {"z", "a"}}}
	f.Fuzz(func(t *testing.T, text []byte) {
		whole, err := parseInput(text, nil)
		for _, paths := range several {
			got, gotErr := parseInput(text, wantedOf(paths))
			if (err == nil) != (gotErr == nil) {
				t.Fatalf("%q, wanted %q: %v, and as a whole: %v", text, paths, gotErr, err)
			}
			if err != nil {
				continue
			}
			for _, path := range paths {
				if have, want := at(got, path), at(whole, path); have != want {
					t.Fatalf("%q has %s at %q and is read as %s", text, want, path, have)
				}
			}
		}
	})
}

// at is the value at a path as text, "" when there is none.
func at(value ast.Value, path []string) string {
	var ref ast.Ref
	for _, name := range path {
		ref = append(ref, ast.StringTerm(name))
	}
	found, err := value.Find(ref)
	if err != nil {
		return ""
	}
	return found.String()
}

func TestInputHasNothingThatIsNotWanted(t *testing.T) {
	text := `{"a": {"b": [1, {"c": 2}], "c": 3}, "b": {"d": 4, "e": {"f": 5}}, "c": "6"}`
	for _, c := range []struct {
		paths [][]string
		want  string
	}{
		{[][]string{}, `{}`},
		{[][]string{{}}, text},
		{[][]string{{"a", "b"}, {"b", "e"}}, `{"a": {"b": [1, {"c": 2}]}, "b": {"e": {"f": 5}}}`},
		{[][]string{{"a", "b", "c"}, {"b", "x"}, {"c", "x"}}, `{"a": {"b": [1, {"c": 2}]}, "b": {}, "c": "6"}`},
	} {
		got, err := parseInput([]byte(text), wantedOf(c.paths))
		if err != nil || got.Compare(ast.MustParseTerm(c.want).Value) != 0 {
			t.Errorf("wanted %q: %v, %v", c.paths, got, err)
		}
	}
}

func TestInputTakesJSONOnly(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"a": {"b": [1, 1.0, "x", null, true]}}`: true,
		`"\"\\\/\u0041"`: true,
		`-0.5e-3`:        true,
		``:               false,
		`{`:              false,
		`{"a":1`:         false,
		`{"a":1,}`:       false,
		`{"a":1,"a":2}`:  false,
		`{a:1}`:          false,
		`{"a":NaN}`:      false,
		`[1,,2]`:         false,
		`"a`:             false,
		`"a\`:            false,
		`1 2`:            false,
		strings.Repeat("[", 600) + strings.Repeat("]", 600): false,
		"\"\xff\"": false,
		strings.Repeat("[", 100) + "1" + strings.Repeat("]", 100): true,
	} {
		if _, err := parseInput([]byte(text), nil); (err == nil) != ok {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}
