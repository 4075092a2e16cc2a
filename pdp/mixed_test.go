package main

import (
	"slices"
	"strings"
	"testing"
)

// warned are the warnings of one kind about a rule `one` with this text and data.json.
func warned(t *testing.T, kind, rule, data string) []problem {
	t.Helper()
	c := compiled(t, map[string]string{
		"bus/rules/one/one.rego":  "package bus.rules.one\n\ndefault admit := false\n\n" + rule + "\n",
		"bus/rules/one/data.json": data,
	})
	return slices.DeleteFunc(c.warnings(), func(one problem) bool { return one.Reason != kind })
}

// A comparison of two types that have only an order in common has one warning, with its answer and what to write.
func TestAComparisonOfTwoTypesIsNamed(t *testing.T) {
	const settings = `{"settings": {"highest": "3", "limits": {"a": 3, "b": "30"}, "fine": 3}}`
	const head = "booked := input.message.payload.n\n\tis_number(booked)\n\t"
	for name, one := range map[string]struct{ body, message, hint string }{
		"data": {
			head + "booked < data.bus.rules.one.settings.highest", `"3" in bus/rules/one/data.json`,
			"in bus/rules/one/data.json: `\"highest\": 3`",
		},
		"data in a variable": {
			head + "most := data.bus.rules.one.settings.highest\n\tbooked <= most", "is always true: booked is a number and most is a text",
			"`\"highest\": 3`",
		},
		"data by name": {
			head + "some role in input.sender.roles\n\tbooked <= data.bus.rules.one.settings.limits[role]", `"30"`, "`\"b\": 30`",
		},
		"object.get": {
			head + "some role in input.sender.roles\n\tbooked <= object.get(data.bus.rules.one.settings.limits, role, 1)",
			"is always true", "`\"b\": 30`",
		},
		"a sum":             {head + "booked + 1 <= data.bus.rules.one.settings.highest", "is always true", "`\"highest\": 3`"},
		"a count":           {`count(input.sender.roles) < "3"`, "is always true", "without quotes: 3"},
		"the clock":         {`input.clock.hour < "18"`, "is always true", "without quotes: 18"},
		"mirrored":          {`"18" > input.clock.hour`, "is always true", "without quotes: 18"},
		"not":               {`not input.clock.hour < "18"`, "is never true", "without quotes: 18"},
		"never":             {`input.clock.hour >= "8"`, "is never true", "without quotes: 8"},
		"a text":            {`input.clock.date < 20260101`, "is never true", "one type"},
		"no number":         {head + `booked < "many"`, "is always true", "one type"},
		"a header":          {`input.message.headers.level > 3`, "is always true", "to_number"},
		"a counter":         {`input.facts.sender.sent < "100"`, "is always true", "without quotes: 100"},
		"a list":            {`input.sender.roles > 3`, "is always true", "one type"},
		"a guard in a rule": {`numeric` + "\n\t" + `input.message.payload.n < "18"`, "is always true", "without quotes: 18"},
		"in a function":     {head + "small(booked, data.bus.rules.one.settings.highest)", "is always true", "`\"highest\": 3`"},
		"in every":          {"every n in [1, 2] {\n\t\tn < 3\n\t\tinput.clock.hour < \"18\"\n\t}", "is always true", "without quotes: 18"},
	} {
		helpers := "\n\nsmall(n, most) if n < most\n\nnumeric if is_number(input.message.payload.n)"
		found := warned(t, warnMixedOrder, "admit if {\n\t"+one.body+"\n}"+helpers, settings)
		if len(found) != 1 {
			t.Errorf("%s: %+v", name, found)
			continue
		}
		if !strings.Contains(found[0].Message, one.message) || !strings.Contains(found[0].Hint, one.hint) {
			t.Errorf("%s: %s; %s", name, found[0].Message, found[0].Hint)
		}
	}
}

// What is compared in earnest, or may be, has none.
func TestAComparisonOfOneTypeIsNotNamed(t *testing.T) {
	const settings = `{"settings": {"highest": 3, "from": "2026-01-01", "limits": {"a": 3}}}`
	for _, body := range []string{
		"input.clock.hour < data.bus.rules.one.settings.highest",
		"input.clock.date >= data.bus.rules.one.settings.from",
		"n := input.message.payload.n\n\tis_number(n)\n\tn < data.bus.rules.one.settings.highest",
		"n := to_number(input.message.payload.n)\n\tn < 18",
		"some role in input.sender.roles\n\tinput.clock.hour < object.get(data.bus.rules.one.settings.limits, role, 1)",
		"input.message.headers.level < \"c\"",
		"max(input.message.payload.list) < 3",
	} {
		for _, kind := range []string{warnMixedOrder, warnNeverTrue} {
			if found := warned(t, kind, "admit if {\n\t"+body+"\n}", settings); len(found) > 0 {
				t.Errorf("%s: %+v", body, found)
			}
		}
	}
}

// A field that nobody vouches for passes a comparison with a text without being one; between two texts it is one.
func TestAFieldThatIsComparedWithATextIsAskedForItsType(t *testing.T) {
	const settings = `{"settings": {"highest": "3"}}`
	for body, hint := range map[string]string{
		`input.message.payload.n < "18"`:                                                 "is_number(input.message.payload.n)` on a line before, and the number without quotes: 18",
		`input.message.payload.n <= data.bus.rules.one.settings.highest`:                 "without quotes: 3",
		`input.message.payload.n < "2027-01-01"`:                                         "`is_string(input.message.payload.n)` on a line before",
		`input.message.payload.n >= "b"`:                                                 "`is_string(input.message.payload.n)` on a line before",
		"input.message.payload.n >= \"b\"\n\tinput.message.payload.n < \"c\"":            "",
		"is_string(input.message.payload.n)\n\tinput.message.payload.n < \"2027-01-01\"": "",
	} {
		found := warned(t, warnUntypedOrder, "admit if {\n\t"+body+"\n}", settings)
		if len(found) != min(1, len(hint)) || len(found) == 1 && !strings.Contains(found[0].Hint, hint) {
			t.Errorf("%s: %+v", body, found)
		}
	}
}

// Whatever is said to be always or never true is: of every message that the bus could send.
func TestWhatIsSaidOfAComparisonIsSo(t *testing.T) {
	for body, want := range map[string]bool{
		`input.clock.hour < "18"`: true, `not input.clock.hour < "18"`: false, `input.clock.hour > "1"`: false,
		`"a" >= input.clock.hour`: true, `input.sender.roles > "x"`: true, `not input.sender.id < 5`: true,
		`count(input.sender.roles) <= "0"`: true,
	} {
		c := bodyOf(t, []string{body}, "")
		found := slices.DeleteFunc(c.warnings(), func(one problem) bool { return one.Reason != warnMixedOrder })
		word := map[bool]string{true: "always true", false: "never true"}[want]
		if len(found) != 1 || !strings.Contains(found[0].Message, word) {
			t.Errorf("%s: %+v", body, found)
		}
		for _, hour := range []int{0, 8, 18, 23} {
			input := map[string]any{
				"message": map[string]any{"id": "m"}, "clock": map[string]any{"hour": hour},
				"sender": map[string]any{"id": "7", "roles": []string{"a"}},
			}
			if allows(t, c, input) != want {
				t.Errorf("%s at %d: not %v", body, hour, want)
			}
		}
	}
}
