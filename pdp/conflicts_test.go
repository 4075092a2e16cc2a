package main

import (
	"strings"
	"testing"
	"time"
)

const oneRule = "package bus.rules.one\n\ndefault admit := false\n\nadmit if input.message.id\n\n"

// A rule that always has one value and sometimes another is named; one whose conditions may exclude each other is not.
func TestTwoValuesAtOnceAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"code := \"a\"\n\ncode := \"b\" if input.message.hops > 3":                                `code is "b" here and "a" in line 5, and that one has no condition`,
		"code := \"b\" if input.message.hops > 3\n\ncode := \"a\"":                                `code is "a" here and "b" in line 5, and this one has no condition`,
		"code := \"a\"\n\ncode := lower(\"B\") if input.message.hops > 3":                         "`lower(\"B\")` here",
		"code := \"a\"\n\ncode := \"b\"":                                                          "at the same time",
		"code := \"a\" if input.message.id\n\ncode := \"b\" if input.message.id":                  "at the same time",
		"code := \"a\"\n\ncode := \"a\" if input.message.hops > 3":                                "",
		"code := \"a\" if input.message.hops > 3\n\ncode := \"b\" if input.message.hops <= 3":     "",
		"code := input.message.topic\n\ncode := \"none\" if not input.message.topic":              "",
		"default code := \"a\"\n\ncode := \"b\" if input.message.hops > 3":                        "",
		"code := \"b\" if {\n\tinput.message.hops > 3\n} else := \"a\"":                           "",
		"labels contains \"a\"\n\nlabels contains \"b\" if input.message.hops > 3\n\nx := labels": "",
	} {
		found := warned(t, warnConflicting, text, "{}")
		if len(found) != min(1, len(want)) || want != "" && !strings.Contains(found[0].Message, want) {
			t.Errorf("%s: %+v", text, found)
		}
	}
	files := map[string]string{
		"bus/rules/one/one.rego":  oneRule + "code := \"a\"\n",
		"bus/rules/one/more.rego": "package bus.rules.one\n\ncode := \"b\" if input.message.id\n",
	}
	var said []string
	for _, one := range compiled(t, files).warnings() {
		if one.Reason == warnConflicting {
			said = append(said, one.Message)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "bus/rules/one/more.rego:3") {
		t.Error(said)
	}
}

// An evaluation that ends since a rule has two values says which rule, and where both are.
func TestAConflictSaysWhichRuleAndWhere(t *testing.T) {
	files := map[string]string{
		"bus/rules/one/one.rego": strings.Replace(oneRule, "input.message.id", "input.message.id == code", 1) +
			"code := \"a\"\n\ncode := \"b\" if input.message.id\n",
	}
	const want = "data.bus.rules.one.code got two values at once; it is defined at bus/rules/one/one.rego:7 and bus/rules/one/one.rego:9"
	input := []byte(`{"message": {"id": "m"}}`)
	_, fail := compiled(t, files).evaluate(input, time.Minute)
	if fail == nil || fail.Code != "policy_error" || !strings.HasSuffix(fail.Message, "eval_conflict_error: "+want) {
		t.Errorf("%+v", fail)
	}
	answer, err := new(server).explain(request{Path: constitutionAt(t, files), Input: input})
	if err != nil {
		t.Fatal(err)
	}
	explained := answer.(explainAnswer)
	if explained.Error == nil || explained.Error.Message != want || explained.Rules[0].Error.Message != want {
		t.Errorf("%+v", explained)
	}
	if at := explained.Rules[0].Error.At; at == nil || at.Row != 9 {
		t.Errorf("%+v", explained.Rules[0].Error)
	}
}
