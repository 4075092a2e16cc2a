package main

import (
	"bytes"
	"maps"
	"strings"
	"testing"
	"time"
)

const (
	oneFile  = "bus/rules/one/one.rego"
	oneHead  = "package bus.rules.one\n\ndefault admit := false\n\n"
	twoHead  = "package bus.rules.two\n\ndefault admit := false\n\n"
	asksCode = "package bus\n\ndecision := {\"allow\": true, \"says\": [said | some name in data.bus.manifest.rules; " +
		"said := data.bus.rules[name].code]}\n"
)

// twoRules is the small constitution with two rules.
func twoRules(one, two string) map[string]string {
	return map[string]string{
		"bus/manifest/data.json": `{"rules": ["one", "two"]}`, oneFile: oneHead + one, "bus/rules/two/two.rego": twoHead + two,
	}
}

func with(files, more map[string]string) map[string]string {
	all := maps.Clone(files)
	maps.Copy(all, more)
	return all
}

var compareInputs = []string{
	`{"message": {"id": "m", "type": "admit", "size": 1, "payload": {"a": 1}}}`,
	`{"message": {"id": "m", "type": "limit", "size": 3, "payload": {"a": "x"}}}`,
	`{"message": {"id": "n", "type": "code", "size": 20}}`,
	`{"message": {"type": "event"}}`,
	`{}`,
	`{"message": {"id": "m"}, "message": 1}`,
}

// bothWays asks both ways, and says how often the candidate was not evaluated.
func bothWays(t *testing.T, p *pair, inputs []string) (same int) {
	t.Helper()
	for _, input := range inputs {
		original, candidate, isSame := p.evaluate([]byte(input), time.Minute)
		if isSame {
			same++
			candidate = original
		}
		for c, got := range map[*constitution]reply{p.original.constitution: original, p.candidate.constitution: candidate} {
			decision, fail := c.evaluate([]byte(input), time.Minute)
			if !bytes.Equal(got.decision, decision) || (got.fail == nil) != (fail == nil) ||
				fail != nil && (got.fail.Code != fail.Code || got.fail.Message != fail.Message) {
				t.Errorf("%s: together %s %v, alone %s %v", input, got.decision, got.fail, decision, fail)
			}
		}
	}
	return same
}

// A candidate that differs in rule folders alone is evaluated only where those have something else to say.
func TestACandidateIsEvaluatedOnlyWhereItsFoldersSaySomethingElse(t *testing.T) {
	limit := func(n string) string { return `{"limit": ` + n + `}` }
	data := "bus/rules/one/data.json"
	base := with(twoRules("admit if input.message.size < data.bus.rules.one.limit\n", "admit if input.message.id\n"),
		map[string]string{data: limit("10")})
	for name, one := range map[string]struct {
		change map[string]string
		same   int
	}{
		"a text and a test":     {map[string]string{"CONSTITUTION.md": "other", ".manifest": strings.Replace(small[".manifest"], `"1"`, `"2"`, 1)}, 5},
		"a limit":               {map[string]string{data: limit("2")}, 4},
		"a limit nobody passes": {map[string]string{data: limit("15")}, 5},
		"a body":                {map[string]string{oneFile: oneHead + "admit if input.message.type == \"limit\"\n"}, 4},
		"both":                  {map[string]string{data: limit("2"), "bus/rules/two/two.rego": twoHead + "admit if input.message.id == \"m\"\n"}, 3},
		"a built-in that fails": {map[string]string{oneFile: oneHead + "admit if to_number(input.message.payload.a) > 0\n"}, 4},
		"the list":              {map[string]string{"bus/manifest/data.json": `{"rules": ["two", "one"]}`}, 0},
		"main.rego":             {map[string]string{"bus/main.rego": small["bus/main.rego"] + "\nhelp := 1\n"}, 0},
		"a file beside it":      {map[string]string{"bus/extra.rego": "package bus.extra\n\nhelp := 1\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(compiled(t, base), compiled(t, with(base, one.change)))
			if same := bothWays(t, p, compareInputs); same != one.same {
				t.Errorf("%d of %d were the same", same, len(compareInputs))
			}
		})
	}
}

// Where what the rest makes of a folder may depend on more than what the folder says, the candidate is evaluated: each
// of these would be answered wrongly by comparing what is said.
func TestInDoubtACandidateIsEvaluated(t *testing.T) {
	admits := "admit if input.message.id\n\n"
	others := map[string]map[string]string{ // of the candidate
		"data":                            {"bus/rules/one/data.json": `{"code": 2}`},
		"rules and data":                  {"bus/rules/one/data.json": `{"code": {"b": 1}}`},
		"a package outside of its folder": {"bus/rules/one/out.rego": "package bus\n\nsaid := 2\n"},
	}
	for name, one := range map[string]struct {
		original, candidate string
		rest                map[string]string
	}{
		"a function": {admits + "f(x) := x", admits + "f(x) := x + 1", map[string]string{
			"bus/rules/two/two.rego": twoHead + "admit if data.bus.rules.one.f(input.message.size) == 1\n"}},
		"a rule by its name": {admits + "limit := 1", admits + "limit := 2", map[string]string{
			"bus/rules/two/two.rego": twoHead + "admit if data.bus.rules.one.limit == 1\n"}},
		"a rule by its name, imported": {admits + "limit := 1", admits + "limit := 2", map[string]string{
			"bus/rules/two/two.rego": "package bus.rules.two\n\nimport data.bus.rules.one as other\n\ndefault admit := false\n\nadmit if other.limit == 1\n"}},
		"a name from the input": {admits + "limit := 1", admits + "limit := 2", map[string]string{
			"bus/main.rego": "package bus\n\ndecision := {\"allow\": true, \"says\": [said | some name in data.bus.manifest.rules; " +
				"said := data.bus.rules[name][input.message.type]]}\n"}},
		"a name that is known later": {admits + "limit := 1", admits + "limit := 0", map[string]string{
			"bus/main.rego": "package bus\n\ndecision := {\"allow\": true, \"says\": [said | some name in data.bus.manifest.rules; " +
				"some part; said := data.bus.rules[name][part]; is_number(said); 1 / said > 0; part = [\"code\"][_]]}\n",
		}},
		"a rule that may be a folder's, elsewhere": {admits + "limit := 1", admits + "limit := to_number(input.message.type)", map[string]string{
			"bus/extra.rego": "package bus\n\nrules[name].code := 1 if some name in [\"three\", input.message.type]\n",
			"bus/main.rego":  "package bus\n\ndecision := {\"allow\": true, \"says\": [said | said := data.bus.rules[_].code]}\n",
		}},
		"data": {admits, admits, map[string]string{"bus/main.rego": asksCode, "bus/rules/one/data.json": `{"code": 1}`}},
		"rules and data": {admits + "code.a := 1\n\ncode.b := 1\n", admits + "code.a := 1\n", map[string]string{
			"bus/main.rego":           strings.Replace(asksCode, "said := data.bus.rules[name].code", "data.bus.rules[name].code[said]", 1),
			"bus/rules/one/data.json": `{"limit": 1}`,
		}},
		"everything that a folder has": {admits + "limit := 1", admits + "limit := 2", map[string]string{
			"bus/main.rego": "package bus\n\ndecision := {\"allow\": true, \"says\": [said | some name in data.bus.manifest.rules; " +
				"said := data.bus.rules[name]]}\n"}},
		"all folders": {admits + "limit := 1", admits + "limit := 2", map[string]string{
			"bus/main.rego": "package bus\n\ndecision := {\"allow\": true, \"says\": data.bus.rules}\n"}},
		"all of data": {admits + "limit := 1", admits + "limit := 2", map[string]string{
			"bus/main.rego": "package bus\n\ndecision := {\"allow\": true, \"says\": walked}\n\nwalked := [x | x := data[_][\"rules\"][_][\"limit\"]]\n"}},
		"with": {"admit if input.message.id\n\ncode := input.message.size", "admit if input.message.id\n\ncode := 20 - input.message.size", map[string]string{
			"bus/main.rego": "package bus\n\ndecision := {\"allow\": true, \"says\": says} if {\n\tsays := [x | some name in data.bus.manifest.rules; " +
				"x := data.bus.rules[name].code with input.message.size as 7]\n}\n"}},
		"a package outside of its folder": {admits, admits, map[string]string{
			"bus/main.rego":          "package bus\n\ndecision := {\"allow\": true, \"says\": said}\n",
			"bus/rules/one/out.rego": "package bus\n\nsaid := \"SAID\"\n"}},
		"a list or a set":  {admits + "code := [1, 2]", admits + "code := {1, 2}", map[string]string{"bus/main.rego": strings.Replace(asksCode, "code]", "code; is_array(said)]", 1)}},
		"1 or 1.0":         {admits + "code := 1", admits + "code := 1.0", map[string]string{"bus/main.rego": asksCode}},
		"null or nothing":  {admits + "code := null", admits, map[string]string{"bus/main.rego": asksCode}},
		"a list or a text": {admits + "code := [\"a\"]", admits + "code := \"[\\\"a\\\"]\"", map[string]string{"bus/main.rego": asksCode}},
	} {
		t.Run(name, func(t *testing.T) {
			sides := []*constitution{}
			for i, rule := range []string{one.original, one.candidate} {
				files := with(twoRules(rule, "admit if input.message.id\n"), one.rest)
				if i == 1 {
					maps.Copy(files, others[name])
				}
				sides = append(sides, compiled(t, files))
			}
			bothWays(t, newPair(sides[0], sides[1]), compareInputs)
			bothWays(t, newPair(sides[1], sides[0]), compareInputs)
		})
	}
}

// Rule folders that the rest goes through come in another order where one is data and another is none.
func TestTheOrderOfFoldersMatters(t *testing.T) {
	main := map[string]string{
		"bus/main.rego":           "package bus\n\ndecision := {\"allow\": true, \"says\": [name | data.bus.rules[name].admit]}\n",
		"bus/rules/two/data.json": `{"limit": 1}`,
	}
	admits := "admit if input.message.id\n"
	original := with(twoRules(admits, admits), main)
	candidate := with(original, map[string]string{"bus/rules/one/data.json": `{"limit": 1}`})
	if same := bothWays(t, newPair(compiled(t, original), compiled(t, candidate)), compareInputs); same > 0 {
		t.Errorf("%d were the same", same)
	}
}

// What is known of a pair is forgotten with either of its constitutions.
func TestAPairIsForgottenWithItsConstitutions(t *testing.T) {
	s := &server{loaded: map[string]*constitution{}, pairs: map[[2]string]*pair{}}
	one, two := compiled(t, nil), compiled(t, map[string]string{oneFile: oneHead + "admit if input.sender.id\n"})
	for _, c := range []*constitution{one, two} {
		s.loaded[c.src.digest] = c
	}
	if first := s.pairOf(one, two); !first.comparable || s.pairOf(one, two) != first {
		t.Error("it is not kept")
	}
	s.drop(two.src.digest)
	if len(s.pairs) > 0 {
		t.Error("it is kept")
	}
	if s.pairOf(one, two); len(s.pairs) > 0 {
		t.Error("it is kept although one of them is gone")
	}
}
