package main

import (
	"strings"
	"testing"
)

// A test that is not run where it stands is named, with what to call it; a helper that a test uses is not.
func TestATestThatIsNotRunIsNamed(t *testing.T) {
	const at = "bus/rules/one/"
	const test = "package bus.rules.one_test\n\nat(hour) := {\"clock\": {\"hour\": hour}}\n\n" +
		"noon := at(12)\n\ntest_it if data.bus.rules.one with input as noon\n"
	for name, one := range map[string]struct {
		file, text, kind, hint string
	}{
		"another file name": {at + "test_bookings.rego", test, warnTestFile, "rename it to bus/rules/one/bookings_test.rego"},
		"no file name":      {at + "more.rego", test, warnTestFile, "rename it to bus/rules/one/more_test.rego"},
		"a misspelt test":   {at + "one_test.rego", test + "\ntset_more if true\n", warnTestName, "did you mean test_more?"},
		"another rule":      {at + "one_test.rego", test + "\nevening := at(20)\n", warnTestName, "begin its name with test_"},
		"as it should be":   {at + "one_test.rego", test, "", ""},
	} {
		found := compiled(t, map[string]string{one.file: one.text}).misplacedTests()
		if one.kind == "" {
			if len(found) > 0 {
				t.Errorf("%s: %+v", name, found)
			}
			continue
		}
		if len(found) != 1 || found[0].Reason != one.kind || !strings.Contains(found[0].Hint, one.hint) {
			t.Errorf("%s: %+v", name, found)
		}
	}
	files := map[string]string{
		"bus/manifest/data.json":          `{"rules": ["smoke_test"]}`,
		"bus/rules/one/one.rego":          "",
		"bus/rules/smoke_test/smoke.rego": strings.ReplaceAll(oneRule, "rules.one", "rules.smoke_test"),
	}
	if found := compiled(t, files).misplacedTests(); len(found) > 0 {
		t.Errorf("a rule of that name: %+v", found)
	}
}
