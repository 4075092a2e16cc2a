package main

import (
	"strings"
	"testing"
)

func TestStrictJSONSaysWhereItEnds(t *testing.T) {
	for text, want := range map[string]problem{
		"{\"a\": 1,\n \"a\": 2}":      {Message: `the key "a" is there twice`, Row: 2},
		"{\"a\": {\"b\": [1,\n\n}]}}": {Message: "not JSON", Row: 3},
		"":                            {Message: "ends too early", Row: 1},
		"{} {}":                       {Message: "something follows", Row: 1},
		"[1,2":                        {Message: "ends too early", Row: 1},
		"\xef\xbb\xbf{}":              {Message: "byte order mark", Row: 1},
		"\"\xff\"":                    {Message: "not UTF-8", Row: 1},
		strings.Repeat("[", 600):      {Message: "nested deeper", Row: 1},
	} {
		src := &source{files: []sourceFile{{path: "data.json", data: []byte(text)}}}
		r := &report{src: src}
		if _, ok := r.json(&src.files[0]); ok || len(r.problems) != 1 {
			t.Errorf("%.20q was taken", text)
			continue
		}
		got := r.problems[0]
		if !strings.Contains(got.Message, want.Message) || got.Row != want.Row || got.Hint == "" {
			t.Errorf("%.20q: %+v", text, got)
		}
	}
}
