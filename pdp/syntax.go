package main

import (
	"bytes"
	"regexp"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// parseErrors leaves of what the parser says the first of each line: what follows there comes of it.
func (r *report) parseErrors(list ast.Errors, file *sourceFile) {
	rows := map[int]bool{}
	for _, e := range list {
		if e.Location == nil || rows[e.Location.Row] {
			continue
		}
		rows[e.Location.Row] = true
		hint, at := hintFor(e), e.Location
		if better, col := foreignSyntax(e.Message, lineOf(file.data, at.Row), at.Col); better != "" {
			hint, at = better, ast.NewLocation(nil, at.File, at.Row, col)
		}
		if strings.HasPrefix(e.Message, "unexpected eof") {
			at = endOf(file)
		}
		r.at(at, readable(e.Message), hint)
	}
}

// endOf is behind the last character of a file.
func endOf(file *sourceFile) *ast.Location {
	written := bytes.TrimRight(file.data, " \t\r\n")
	row := bytes.Count(written, []byte("\n")) + 1
	return ast.NewLocation(nil, file.path, row, len(lineOf(written, row))+1)
}

const together = "write the conditions one below the other, or with `;` between them: `rule if { a; b }`"

// habits are what other languages write, and what Rego has in its place.
var habits = []struct{ sign, hint string }{
	{"=<", "did you mean `<=`?"},
	{"=>", "did you mean `>=`?"},
	{"&&", together},
	{" and ", together},
	{"||", "write alternatives as rules of their own: `rule if a` and `rule if b`"},
	{" or ", "write alternatives as rules of their own: `rule if a` and `rule if b`"},
	{"'", `write texts in "double quotes"`},
	{"!", "write `not` before what must not be"},
	{" then ", "write what has to hold behind `if`; nothing follows it"},
	{"= =", "write `==` for a comparison"},
	{"===", "write `==` for a comparison"},
}

// foreignSyntax says what to write where the line follows the habits of another language at or near a column, and
// where exactly.
func foreignSyntax(message, line string, col int) (hint string, at int) {
	if col > len(line)+1 || strings.Contains(message, "non-terminated string") {
		return "", 0
	}
	if message == "unexpected , token" || strings.HasPrefix(message, "unexpected , token: expected \\n or ;") {
		return together, col
	}
	// A word may begin or end the line, and the place of the error is behind a word that begins it.
	line = strings.ReplaceAll(line, "\t", " ") + " "
	start := max(0, min(col-3, len(line)))
	for _, word := range []string{" and ", " or "} {
		if begin := len(line) - len(strings.TrimLeft(line, " ")); begin > 0 && strings.HasPrefix(line[begin-1:], word) && col > begin {
			start = min(start, begin-1)
		}
	}
	first := habitCharsMax
	for _, habit := range habits {
		if found := strings.Index(line[start:], habit.sign); found >= 0 && found < first {
			first, hint = found, habit.hint
			at = start + found + 1 + len(habit.sign) - len(strings.TrimLeft(habit.sign, " "))
		}
	}
	return hint, at
}

var importHint = regexp.MustCompile(` \(hint: .import future[^)]*\)`)

// readable is a message of OPA's without what only its developers can use.
func readable(message string) string {
	message = strings.ReplaceAll(importHint.ReplaceAllString(message, ""), `\n`, "a new line")
	for name, sign := range map[string]string{"lt": "<", "lte": "<=", "gt": ">", "gte": ">="} {
		message = strings.ReplaceAll(message, "unexpected "+name+" token", "unexpected "+sign+" token")
	}
	return message
}

// habitCharsMax is how far behind the place of an error its cause may stand.
const habitCharsMax = 12
