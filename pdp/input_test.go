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
		got, err := parseInput(text)
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
		if _, err := parseInput([]byte(text)); (err == nil) != ok {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}
