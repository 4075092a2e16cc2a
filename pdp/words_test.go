package main

import (
	"strings"
	"testing"
)

// problemsOf are what keeps a constitution with these changes from being activated.
func problemsOf(t *testing.T, changes map[string]string) []problem {
	t.Helper()
	src, problems, err := readSource(constitutionAt(t, changes))
	if err != nil {
		t.Fatal(err)
	}
	if len(problems) == 0 {
		_, problems = compileConstitution(src)
	}
	return problems
}

// A mistake is one problem, on its line, in words, with what to write.
func TestAMistakeIsSaidInWordsOnItsLine(t *testing.T) {
	const rule, list = "bus/rules/one/one.rego", "bus/manifest/data.json"
	body := func(text string) string {
		return strings.Replace(oneRule, "admit if input.message.id", "admit if {\n\t"+text+"\n}", 1)
	}
	for name, one := range map[string]struct {
		file, text    string
		row           int
		message, hint string
	}{
		"=<":                    {rule, body("input.message.hops =< 3"), 6, "< token", "did you mean `<=`?"},
		"=>":                    {rule, body("input.message.hops => 3"), 6, "> token", "did you mean `>=`?"},
		"and at the end":        {rule, body("input.message.hops < 3 and\n\tinput.message.id"), 6, "expected a new line or ; or }", "one below the other"},
		"and at the start":      {rule, body("input.message.hops < 3\n\tand input.message.id"), 7, "expected a new line or ; or }", "one below the other"},
		"a comma":               {rule, body("input.message.hops < 3,\n\tinput.message.id"), 6, "unexpected , token", "one below the other"},
		"too many values":       {rule, body("is_number(input.message.hops, 1)"), 6, "is_number takes 1 value and gets 2", "give it 1 value"},
		"another type":          {rule, body("startswith(input.message.hops, \"a\")"), 6, "it takes (search: string, base: string)", "same type"},
		"another language's":    {rule, body("is_list(input.sender.roles)"), 6, "is_list", "did you mean is_array?"},
		"no such built-in":      {rule, body("frobnicate(input.sender.roles)"), 6, "frobnicate", "OPA's policy reference"},
		"a mark in data":        {"bus/rules/one/data.json", "\ufeff{}", 1, "byte order mark", "without a byte order mark"},
		"a mark in .manifest":   {".manifest", "\ufeff" + small[".manifest"], 1, "byte order mark", "without a byte order mark"},
		"no list":               {list, "{\n\"rulez\": [\"one\"]}", 1, "no list `rules`", "first_rule"},
		"a list that is none":   {list, "{\n\"rules\": [\"one\",]}", 2, "not JSON", "one JSON value"},
		"an empty list":         {list, "{\n\"rules\": []}", 1, "empty", "first_rule"},
		"a name twice":          {list, "{\n\"rules\": [\n\"one\",\n\"one\"]}", 4, "listed twice", "first_rule"},
		"a rule without folder": {list, "{\n\"rules\": [\n\"one\",\n\"two\"]}", 4, `"two" has no folder`, "two.rego"},
		"a folder without rule": {"bus/rules/two/two.rego", strings.ReplaceAll(oneRule, "rules.one", "rules.two"), 1, "is not listed", `add "two"`},
		"a revision":            {".manifest", "{\"roots\": [\"bus\"],\n\"rego_version\": 1,\n\"revision\": 3}", 3, "revision is 3", "as a string"},
		"an end": {
			".manifest",
			"{\"roots\": [\"bus\"], \"rego_version\": 1, \"revision\": \"3\",\n\"metadata\": {\"eab\": {\n\"not_after\": \"soon\"}}}",
			3, "not_after is", "UTC",
		},
		"a key": {
			".manifest", "{\"roots\": [\"bus\"], \"rego_version\": 1, \"revision\": \"3\",\n\"revisoin\": 1}", 2, `"revisoin"`, "use revision",
		},
		"another root": {"data.json", "{\n\"bus\": {},\n\"bos\": 1}", 3, "data.bos", "below bus/"},
	} {
		found := problemsOf(t, map[string]string{one.file: one.text})
		if len(found) != 1 || found[0].Row != one.row || !strings.Contains(found[0].Message, one.message) ||
			!strings.Contains(found[0].Hint, one.hint) || found[0].File != one.file {
			t.Errorf("%s: %+v", name, found)
		}
	}
}

// What is said of a file as a whole names no line.
func TestAProblemOfAWholeFileNamesNoLine(t *testing.T) {
	found := problemsOf(t, map[string]string{"bus/notes.txt": "x"})
	if len(found) != 1 || invalid(found).Message != "bus/notes.txt: a file of this kind does not belong here" {
		t.Errorf("%+v", found)
	}
}
