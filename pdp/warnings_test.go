package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func bodyOf(t *testing.T, body []string, helpers string) *constitution {
	t.Helper()
	return compiled(t, map[string]string{"bus/rules/one/one.rego": "package bus.rules.one\n\ndefault admit := false\n\nadmit if {\n\t" +
		strings.Join(body, "\n\t") + "\n}\n" + helpers})
}

func allows(t *testing.T, c *constitution, input map[string]any) bool {
	t.Helper()
	text, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	decision, fail := c.evaluate(text, time.Minute)
	if fail != nil {
		return false
	}
	return strings.Contains(string(decision), `"allow":true`)
}

func kindsOf(problems []problem) []string {
	var kinds []string
	for _, one := range problems {
		kinds = append(kinds, one.Reason)
	}
	return kinds
}

func chosen(r *rand.Rand, from []string, most int) []string {
	var some []string
	for range 1 + r.IntN(most) {
		some = append(some, from[r.IntN(len(from))])
	}
	return some
}

// Whatever is said never to admit admits none of these messages; and something is said of some.
func TestWhatNeverAdmitsAdmitsNothing(t *testing.T) {
	lines := []string{
		`input.message.type == "command"`, `input.message.type == "comand"`, `input.message.type != "command"`,
		`not input.message.type == "query"`, `input.message.type in {"query", "event"}`, `not input.message.type in ["event"]`,
		`input.message.priority > 2`, `input.message.priority >= 3`, `input.message.priority < 1`, `2 > input.message.priority`,
		`3 <= input.message.priority`, `input.message.priority == 2`, `input.message.priority in [0, 1]`, `input.message.priority != 3`,
		`input.clock.hour >= 20`, `input.clock.hour < 6`, `input.clock.hour == 24`, `is_string(input.message.type)`,
		`is_number(input.message.type)`, `input.message.payload.n > 3`, `input.message.payload.n < 3`,
		`input.message.payload.n == "a"`, `input.message.payload.n in {1, 4}`, `not input.message.payload.n > 3`,
		`1 == 1`, `1 > 2`, `"a" in ["b"]`, `low`, `never`, `not never`,
	}
	helpers := "\nlow if input.message.priority < 2\n\nnever if input.message.type == \"comand\"\n"
	r := rand.New(rand.NewPCG(1, 2))
	said := 0
	for range 50 {
		body := chosen(r, lines, 4)
		c := bodyOf(t, body, helpers)
		if !slices.Contains(kindsOf(c.warnings()), warnNeverAdmits) {
			continue
		}
		said++
		for _, kind := range []string{"command", "query", "event", "heartbeat"} {
			for priority := range 4 {
				for _, hour := range []int{0, 6, 23} {
					for _, n := range []any{nil, true, "a", "b", 1, 3, 3.5, 4, []any{}, map[string]any{}} {
						message := map[string]any{"id": "m", "type": kind, "priority": priority, "payload": map[string]any{"n": n}}
						if allows(t, c, map[string]any{"message": message, "clock": map[string]any{"hour": hour}}) {
							t.Fatalf("it admits %v: %s", message, strings.Join(body, "; "))
						}
					}
				}
			}
		}
	}
	if said < 10 {
		t.Errorf("only %d of 50 bodies were said never to admit", said)
	}
}

// A body that admits a message without the payload field that it asks about has a warning; and what a warning says of
// such a message is so.
func TestAWarningSaysWhatHappensWithoutTheField(t *testing.T) {
	asks := []string{
		`not input.message.payload.a == "x"`, `not input.message.payload.a`, `not input.message.payload.a in {"x"}`,
		`not "x" in input.message.payload.a`, `input.message.payload.a != "x"`, `not startswith(input.message.payload.a, "x")`,
		`not f(input.message.payload.a)`, `not g(input.message)`, `not named`,
		`count(found) == 0`, `not input.message.payload["a"] != "x"`, `not h(input.message.payload)`,
		`not lower(input.message.payload.a) == "x"`, `not input.message.payload.a > 3`,
	}
	guards := []string{
		`input.message.id`, `is_string(input.message.payload.a)`, `known`, `input.message.type == "command"`,
		`a := input.message.payload.a; is_string(a)`, `is_object(input.message.payload)`, `ok(input.message.payload)`,
	}
	helpers := `
f(x) if x == "x"

g(m) if m.payload.a == "x"

h(p) if p.a == "x"

ok(p) if is_string(p.a)

named if input.message.payload.a == "x"

known if is_string(input.message.payload.a)

found contains 1 if input.message.payload.a == "x"
`
	r := rand.New(rand.NewPCG(3, 4))
	message := map[string]any{"id": "m", "type": "command", "payload": map[string]any{}}
	for range 70 {
		ask := asks[r.IntN(len(asks))]
		body := []string{ask}
		for _, guard := range chosen(r, guards, 2) {
			if !strings.Contains(strings.Join(body, ";"), guard) {
				body = append(body, guard)
			}
		}
		r.Shuffle(len(body), func(i, j int) { body[i], body[j] = body[j], body[i] })
		c := bodyOf(t, body, helpers)
		kinds := kindsOf(c.warnings())
		admits := allows(t, c, map[string]any{"message": message})
		shown := fmt.Sprintf("%s: %v", strings.Join(body, "; "), kinds)
		switch {
		case slices.Contains(kinds, warnNegationTrue) && !admits:
			t.Errorf("said to be true without the field, and is not: %s", shown)
		case !slices.Contains(kinds, warnNegationTrue) && admits:
			t.Errorf("true without the field, and not said: %s", shown)
		case slices.Contains(kinds, warnNegationUndefined) && admits:
			t.Errorf("said not to be true without the field, and is: %s", shown)
		}
	}
}

func TestClosest(t *testing.T) {
	known := []string{"message", "sender", "recipient", "clock", "facts", "approvals"}
	for name, want := range map[string]string{
		"mesage": "message", "Sender": "sender", "sedner": "sender", "clocks": "clock", "fact": "facts",
		"x": "", "payload": "", "": "", "message": "",
	} {
		if got := closest(name, known); got != want {
			t.Errorf("%q: %q, not %q", name, got, want)
		}
	}
}
