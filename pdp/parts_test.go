package main

import (
	"strings"
	"testing"
)

// A literal that the bus would refuse at run time is named with its line and what is taken there; two names for two.
func TestAPartThatTheBusDoesNotTakeIsNamed(t *testing.T) {
	const hold = `hold contains {"approvers": 1, "roles": ["finance"]} if input.message.id`
	const note = `remember contains {"scope": "sender", "key": "n", "add": 1}`
	for text, want := range map[string]string{
		strings.Replace(hold, `["finance"]`, `[]`, 1):                                 `"roles": ["finance"]`,
		strings.Replace(hold, `["finance"]`, `"finance"`, 1):                          `["finance"]`,
		strings.Replace(hold, `["finance"]`, `["finance", 3]`, 1):                     "as texts",
		strings.Replace(hold, `"roles"`, `"role"`, 1):                                 `did you mean "roles"?`,
		strings.Replace(hold, `, "roles": ["finance"]`, ``, 1):                        `"roles": ["finance"]`,
		strings.Replace(hold, `"approvers": 1`, `"approvers": 0`, 1):                  "1 to 100",
		strings.Replace(hold, `"approvers": 1`, `"expires_in": 0`, 1):                 "seconds",
		strings.Replace(hold, `hold contains`, `hold :=`, 1):                          "`hold contains {…}`",
		`hold contains "finance"`:                                                     "decision.md",
		"hold contains entry if {\n\tinput.message.id\n\tentry := {\"roles\": []}\n}": `"roles": ["finance"]`,
		`hold := [{"roles": []}]`:                                                     `"roles": ["finance"]`,
		strings.Replace(note, `"sender"`, `"conv"`, 1):                                `did you mean "conversation"?`,
		strings.Replace(note, `"n"`, `"sent"`, 1):                                     "another key",
		strings.Replace(note, `"n"`, `""`, 1):                                         "1 to 256",
		strings.Replace(note, `"add": 1`, `"add": 1.5`, 1):                            "whole number",
		strings.Replace(note, `"add": 1`, `"add": "1"`, 1):                            "whole number",
		strings.Replace(note, `, "add": 1`, ``, 1):                                    "`add` with a whole number",
		strings.Replace(note, `"add": 1`, `"add": 1, "value": 2`, 1):                  "one of the two",
		strings.Replace(note, `"add": 1`, `"value": true`, 1):                         "a text or a number",
		strings.Replace(note, `"add": 1`, `"vaule": "a"`, 1):                          `did you mean "value"?`,
		note + "\n\n" + strings.Replace(note, `"add": 1`, `"value": "a"`, 1):          "one kind",
		strings.Replace(note, `1}`, `count(input.sender.roles)}`, 1) + "\n\n" + strings.Replace(note, `"add": 1`, `"value": "a"`, 1): "one kind",
		`obligations contains {"type": "encrypt"}`:                         "deliver_only_to, handler_timeout, redact",
		`obligations contains {"type": "redakt", "path": "/a"}`:            `did you mean "redact"?`,
		`obligations contains {"type": "redact", "pth": "/a"}`:             `did you mean "path"?`,
		`obligations contains {"type": "redact", "path": "card.number"}`:   "begin it with /",
		`obligations contains {"type": "redact"}`:                          `"path"`,
		`obligations contains {"type": "handler_timeout", "seconds": 0}`:   "over 0",
		`obligations contains {"type": "handler_timeout", "seconds": "5"}`: "over 0",
		`obligations contains {"path": "/a"}`:                              "it is one of",
		`code := 5`:                                                        "`code := \"…\"`",
		`message contains "a"`:                                             "`message := \"…\"`",
		`cod := "a"`:                                                       "did you mean `code`?",
		`remeddy := "a"`:                                                   "did you mean `remedy`?",
		`mesage := sprintf("%v", [1])`:                                     "did you mean `message`?",
		`obligation contains {"a": 1}`:                                     "did you mean `obligations`?",
		"admit := \"yes\" if input.message.id":                             "`admit if { … }`",
	} {
		found := warned(t, warnPart, "admit if input.message.id\n\n"+text, "{}")
		if len(found) != 1 || !strings.Contains(found[0].Hint, want) || found[0].Row < 7 {
			t.Errorf("%s: %+v", text, found)
		}
	}
}

// What the bus takes, and what is not written out, has no such warning; nor has a helper that is used.
func TestAPartThatTheBusTakesIsNotNamed(t *testing.T) {
	for _, text := range []string{
		`hold contains {"approvers": 1, "roles": ["finance"], "expires_in": 60}`,
		`hold contains {"roles": {"finance", "cfo"}, "rule": "one"}`,
		`hold contains {"roles": data.bus.rules.one.roles}`,
		`hold contains object.union({"roles": ["a"]}, {"approvers": 2})`,
		`hold contains {key: ["a"]} if some key in ["roles"]`,
		`hold := [{"roles": ["a"]}]`, `hold := set()`, `hold := {entry | some entry in data.bus.rules.one.roles}`,
		`remember contains {"scope": "tenant", "key": concat("_", ["spent", input.clock.date]), "add": floor(input.message.priority)}`,
		`remember contains {"scope": "sender", "key": "a", "value": "b"}` + "\n\n" + `remember contains {"scope": "tenant", "key": "a", "add": 1}`,
		`obligations contains {"type": "redact", "path": "/card/~1a"}`, `obligations contains {"type": "redact", "path": ""}`,
		`obligations contains {"type": "deliver_only_to", "agent": input.recipient.id}`,
		`code := "a"`, `code := concat("", ["a"])`, "admit := false if input.sender.id == \"x\"",
		"remember contains {\"scope\": \"sender\", \"key\": \"a\", \"add\": add} if add > 0\n\nadd := input.message.priority",
		"remember contains {\"scope\": \"sender\", \"key\": \"a\", \"value\": mode}\n\nmode := \"b\"",
		"modes(x) := x",
	} {
		if found := warned(t, warnPart, "admit if input.message.id\n\n"+text, `{"roles": ["a"]}`); len(found) > 0 {
			t.Errorf("%s: %+v", text, found)
		}
	}
}
