package main

import (
	"strings"
	"testing"
)

// Of a decision that does not end in time the slow rule is named, and the others give their true answers.
func TestAnExplanationNamesTheRuleThatDidNotEnd(t *testing.T) {
	files := map[string]string{
		"bus/manifest/data.json":     `{"rules": ["first", "one", "last"]}`,
		"bus/rules/first/first.rego": strings.ReplaceAll(oneRule, "rules.one", "rules.first"),
		"bus/rules/one/one.rego":     slow,
		"bus/rules/last/last.rego":   strings.ReplaceAll(strings.Replace(oneRule, "admit if input.message.id", "admit if input.message.hops > 3", 1), "rules.one", "rules.last"),
	}
	answer, err := new(server).explain(request{Path: constitutionAt(t, files), Input: []byte(`{"message": {"id": "m", "hops": 1}}`)})
	if err != nil {
		t.Fatal(err)
	}
	explained := answer.(explainAnswer)
	if explained.Error == nil || explained.Error.Code != codeTimeout ||
		!strings.HasSuffix(explained.Error.Message, "since the rule one did not") {
		t.Errorf("%+v", explained.Error)
	}
	first, one, last := explained.Rules[0], explained.Rules[1], explained.Rules[2]
	if !first.Admit || first.Error != nil {
		t.Errorf("%+v", first)
	}
	if one.Error == nil || one.Error.Code != codeTimeout || one.Error.At == nil || one.Error.At.Row != 5 {
		t.Errorf("%+v", one)
	}
	if last.Admit || last.Error != nil || last.Failed == nil || last.Failed.Row != 5 {
		t.Errorf("%+v", last)
	}
}
