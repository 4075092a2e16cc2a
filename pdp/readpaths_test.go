package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestReadPaths(t *testing.T) {
	for name, c := range map[string]struct {
		rule  string
		paths string // JSON
	}{
		"written out":           {`admit if input.message.payload.a == 1`, `[["message","payload","a"]]`},
		"string in brackets":    {`admit if input.message.payload["a b"] == 1`, `[["message","payload","a b"]]`},
		"covered":               {`admit if { input.message.payload.a == 1; count(input.message.payload) > 0 }`, `[["message","payload"]]`},
		"number as a step":      {`admit if input.sender.roles[0] == "a"`, `[["sender","roles"]]`},
		"variable as a step":    {`admit if { some k in ["id"]; input.sender[k] == "a" }`, `[["sender"]]`},
		"input inside a ref":    {`admit if input.message.payload[input.sender.id] == 1`, `[["message","payload"],["sender","id"]]`},
		"the whole":             {`admit if count(input) > 0`, `[[]]`},
		"passed on":             {"admit if f(input.sender)\n\nf(x) if x.id == 1", `[["sender"]]`},
		"in the head":           {"admit if names[\"a\"]\n\nnames[input.sender.id] := 1", `[["sender","id"]]`},
		"in a value":            {"admit if v == 1\n\nv := input.message.payload.v", `[["message","payload","v"]]`},
		"in an else":            {"admit if v == 1\n\nv := 1 if { input.sender.id == \"a\" } else := input.message.payload.v", `[["message","payload","v"],["sender","id"]]`},
		"in a comprehension":    {`admit if count([x | x := input.sender.roles[_]]) > 0`, `[["sender","roles"]]`},
		"in every":              {`admit if every x in input.sender.roles { x != input.recipient.id }`, `[["recipient","id"],["sender","roles"]]`},
		"in a template string":  {"admit if $\"{input.sender.id}\" == \"a\"", `[["sender","id"]]`},
		"in an object":          {`admit if {"a": input.sender.id} == {"a": "b"}`, `[["sender","id"]]`},
		"nothing":               {`admit if data.bus.manifest.rules[0] == "one"`, `[]`},
		"a comment is not read": {"# input.clock.hour\nadmit if input.sender.id == \"a\"", `[["sender","id"]]`},
	} {
		t.Run(name, func(t *testing.T) {
			got := compiled(t, map[string]string{"bus/rules/one/one.rego": "package bus.rules.one\n\ndefault admit := false\n\n" + c.rule}).reads
			var want [][]string
			if err := json.Unmarshal([]byte(c.paths), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(orEmpty(got.paths), want) || !got.cacheable {
				t.Errorf("got %q, cacheable %v", got.paths, got.cacheable)
			}
			for _, line := range got.widened {
				if line.File == "" || line.Row == 0 || !strings.Contains(line.Text, "input") {
					t.Errorf("a line without its place: %+v", line)
				}
			}
		})
	}
}

func TestPathsCoveredByAnotherAreLeftOut(t *testing.T) {
	got := withoutCovered([][]string{{"b", "c"}, {"a", "b"}, {"b"}, {"a"}, {"a", "b"}, {"bb"}, {"b", "a"}})
	if want := [][]string{{"a"}, {"b"}, {"bb"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	if got := withoutCovered([][]string{{"a"}, {}}); len(got) != 1 || len(got[0]) != 0 {
		t.Errorf("got %v", got)
	}
}

var bodies = []string{
	`input.message.payload.a == 1`,
	`not input.message.payload.b`,
	"x := input.message.payload.a\n\tnot x.b",
	"x := input.message.payload\n\ty := x.a\n\tnot y.x == 1",
	"some k, v in input.message.payload\n\tk != \"c\"\n\tv == 1",
	`object.get(input.message, ["payload", "b"], 0) == 1`,
	`object.get(input.message.payload, "c", 7) == 7`,
	`f(input.message.payload)`,
	`g(input.message.payload.a) == 1`,
	"some k in {\"a\", \"b\"}\n\tinput.message.payload[k] == 1",
	`every v in [input.message.payload.a, input.message.payload.b] { v != 1 }`,
	`count({x | x := input.message.payload[_]}) > 1`,
	"walk(input.message.payload.a, [_, v])\n\tv == 1",
	`payload.c == "1"`,
	`not any_null`,
	`{"a": input.message.payload.a} == {"a": input.message.payload.b}`,
	`input.message.payload.a.x == input.message.payload.b.x`,
	`input.message.payload[input.message.payload.c] == 1`,
}

const helpers = `
f(p) if p.c == 1

g(x) := 1 if x.x == 1

g(x) := 2 if not x.x

payload := input.message.payload

any_null if {
	some v in payload
	v == null
}
`

// Two inputs that agree at the paths that a policy reads get one decision: this is what a cache relies on. And an input
// that has nothing else gets the decision of the whole: this is what reading only a part of an input relies on.
func TestInputsThatAgreeAtTheReadPathsGetOneDecision(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	values := []string{"", "null", "1", "2", `"1"`, `"a"`, "true", `{"x": 1}`, `{"x": 2, "b": 1}`, `[1]`}
	for range 40 {
		var rule strings.Builder
		rule.WriteString("package bus.rules.one\n\ndefault admit := false\n" + helpers)
		for range 1 + random.IntN(3) {
			rule.WriteString("\nadmit if {\n")
			for range 1 + random.IntN(2) {
				fmt.Fprintf(&rule, "\tcount([1 |\n\t%s]) > 0\n", bodies[random.IntN(len(bodies))])
			}
			rule.WriteString("}\n")
		}
		c := compiled(t, map[string]string{"bus/rules/one/one.rego": rule.String()})
		answers := map[string][2]string{}
		for range 60 {
			var fields []string
			for _, name := range []string{"a", "b", "c", "d"} {
				if value := values[random.IntN(len(values))]; value != "" {
					fields = append(fields, fmt.Sprintf("%q: %s", name, value))
				}
			}
			input := fmt.Sprintf(`{"message": {"id": "m", "payload": {%s}}}`, strings.Join(fields, ", "))
			wanted := c.wanted
			part := answerOf(c, input)
			c.wanted = nil
			answer := answerOf(c, input)
			c.wanted = wanted
			if part != answer {
				t.Fatalf("%s\nreads %q\n%s: %s, and as a whole %s", rule.String(), c.reads.paths, input, part, answer)
			}
			key := projection(t, input, c.reads.paths)
			if before, known := answers[key]; known && before[1] != answer {
				t.Fatalf("%s\nreads %q\n%s: %s\n%s: %s", rule.String(), c.reads.paths, before[0], before[1], input, answer)
			}
			answers[key] = [2]string{input, answer}
		}
	}
}

func answerOf(c *constitution, input string) string {
	decision, fail := c.evaluate([]byte(input), time.Minute)
	if fail != nil {
		return fail.Code
	}
	return string(decision)
}

// A policy that replaces its input is given all of it.
func TestAnInputThatIsReplacedIsReadAsAWhole(t *testing.T) {
	c := compiled(t, map[string]string{
		"bus/rules/one/one.rego": "package bus.rules.one\n\ndefault admit := false\n\nadmit if inside with input.sender as {\"id\": \"x\"}\n\n" +
			"inside if {\n\tinput.sender.id == \"x\"\n\tinput.message.payload.a == 1\n}\n",
	})
	if c.wanted != nil {
		t.Errorf("only %v is read", c.wanted)
	}
	if answer := answerOf(c, `{"message": {"payload": {"a": 1}}}`); answer != `{"allow":true}` {
		t.Errorf("got %s", answer)
	}
}

// projection is the input's values at these paths, absent and null apart.
func projection(t *testing.T, input string, paths [][]string) string {
	t.Helper()
	var document any
	if err := json.Unmarshal([]byte(input), &document); err != nil {
		t.Fatal(err)
	}
	var key strings.Builder
	for _, path := range paths {
		value, found := lookup(document, path)
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&key, "%v %s\n", found, text)
	}
	return key.String()
}
