package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func message(parts string) string { return fmt.Sprintf(`{"message": {%s}}`, parts) }

// What agrees in all that is read is evaluated once, and anything else anew: by a rule, by one that it asks, by main.rego.
func TestWhatIsReadIsWhatIsRememberedBy(t *testing.T) {
	main := "package bus\n\ndecision := {\"allow\": true, \"says\": says, \"more\": more}\n\n" +
		"says := [name | some name in data.bus.manifest.rules; data.bus.rules[name].admit]\n\n" +
		"default more := 0\n\nmore := input.message.size\n"
	files := with(twoRules("admit if input.message.id == \"m\"\n", "admit if {\n\tdata.bus.help.known\n\tinput.message.payload.b\n}\n"),
		map[string]string{"bus/main.rego": main, "bus/help.rego": "package bus.help\n\nknown if input.message.topic == \"t\"\n"})
	r := newRemembered(compiled(t, files), map[string]bool{"one": true, "two": true}, []string{"admit"})
	asked := message(`"id": "m", "topic": "t", "payload": {"b": 1}, "size": 1`)
	for _, step := range []struct {
		input string
		more  int // that is remembered after it: a folder or two, and the decision
	}{
		{asked, 3},
		{asked, 0},
		{message(`"id": "m", "topic": "t", "payload": {"b": 1, "c": 2}, "size": 1, "hops": 2`), 0},
		{message(`"id": "m", "topic": "t", "payload": {"b": 2}, "size": 1`), 1}, // and it says what it said
		{message(`"id": "n", "topic": "t", "payload": {"b": 1}, "size": 1`), 2},
		{message(`"id": "m", "topic": "u", "payload": {"b": 1}, "size": 1`), 2},
		{message(`"id": "m", "topic": "v", "payload": {"b": 1}, "size": 1`), 1},
		{message(`"id": "m", "topic": "t", "payload": {"b": 1}, "size": 1.0`), 1},
		{message(`"id": "m", "topic": "t", "payload": {"b": 1}, "size": null`), 1},
		{message(`"id": "m", "topic": "t", "payload": {"b": 1}`), 1},
		{message(`"id": "m", "topic": "t", "payload": [1], "size": 1`), 1},
		{message(`"id": "m", "topic": "t", "payload": "b", "size": 1`), 0}, // nothing has a "b" there either
	} {
		before := len(r.said.said)
		got := replyOf(t, r, step.input)
		decision, fail := r.evaluate([]byte(step.input), time.Minute)
		if fail != nil || string(got.decision) != string(decision) {
			t.Errorf("%s: %s %v, alone %s %v", step.input, got.decision, got.fail, decision, fail)
		}
		if more := len(r.said.said) - before; more != step.more {
			t.Errorf("%s: %d more are remembered, not %d", step.input, more, step.more)
		}
	}
}

func replyOf(t *testing.T, r *remembered, text string) reply {
	t.Helper()
	input, fail := readInput([]byte(text), nil)
	if fail != nil {
		t.Fatal(fail)
	}
	got, _ := r.question(input, time.Now().Add(time.Minute)).reply()
	return got
}

// An evaluation that breaks off leaves nothing behind: neither what it would have said nor what it had found by then.
func TestWhatBreaksIsNotRemembered(t *testing.T) {
	files := twoRules("admit if input.message.id\n\ncode := to_number(input.message.type)\n", "admit if input.message.id\n")
	files["bus/main.rego"] = asksCode
	r := newRemembered(compiled(t, files), map[string]bool{"one": true, "two": true}, []string{"admit", "code"})
	for range 2 {
		if got := replyOf(t, r, message(`"id": "m", "type": "x"`)); got.fail == nil || got.fail.Code != "policy_error" {
			t.Errorf("%s %v", got.decision, got.fail)
		}
	}
	if got := replyOf(t, r, message(`"id": "m", "type": "7"`)); string(got.decision) != `{"allow":true,"says":[7]}` {
		t.Errorf("%s %v", got.decision, got.fail)
	}
}

// What breaks only because it was asked for early is not asked for then.
func TestWhatNobodyAsksForMayBreak(t *testing.T) {
	files := twoRules("admit if input.message.id\n\ncode := to_number(input.message.type)\n", "admit if input.message.id\n")
	r := newRemembered(compiled(t, files), map[string]bool{"one": true, "two": true}, []string{"admit", "code"})
	if got := replyOf(t, r, message(`"id": "m", "type": "x"`)); !strings.Contains(string(got.decision), `"allow":true`) {
		t.Errorf("%s %v", got.decision, got.fail)
	}
}

// A memory that is full begins anew.
func TestAMemoryIsBounded(t *testing.T) {
	m := &memory{}
	large := strings.Repeat("x", saidBytesMax/3)
	for i := range 7 {
		key := fmt.Sprint(i)
		m.keep(key, large)
		if found, ok := m.find(key); !ok || found != large {
			t.Error("the newest is not kept")
		}
		if m.bytes > saidBytesMax || len(m.said) > 2 {
			t.Errorf("%d bytes in %d", m.bytes, len(m.said))
		}
	}
}
