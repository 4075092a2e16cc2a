package main

import (
	"strings"
	"testing"
)

// Whatever lets a message travel beside the list of rules is named with its file and line; the shipped core is not.
func TestAWayRoundTheRulesIsNamed(t *testing.T) {
	main := small["bus/main.rego"]
	own := strings.Replace(main, "allow if {", "allow if admitted\n\nadmitted if {", 1)
	reply := strings.Replace(main, "decision := {\"allow\": allow}",
		"decision := object.union({\"allow\": allow}, {}) if input.message.id", 1)
	for name, one := range map[string]struct {
		files map[string]string
		file  string
		row   int
	}{
		"another allow":    {map[string]string{"bus/extra.rego": "package bus\n\nallow if input.sender.id == \"boss\"\n"}, "bus/extra.rego", 3},
		"another decision": {map[string]string{"bus/extra.rego": "package bus\n\ndecision := {\"allow\": true} if input.sender.id == \"boss\"\n"}, "bus/extra.rego", 3},
		"in a rule's own folder": {
			map[string]string{"bus/rules/one/extra.rego": "package bus\n\nallow if input.sender.id == \"boss\"\n"}, "bus/rules/one/extra.rego", 3,
		},
		"a second way in main.rego": {map[string]string{"bus/main.rego": main + "\nallow if input.sender.id == \"boss\"\n"}, mainFile, 14},
		"a list of its own": {
			map[string]string{"bus/main.rego": strings.ReplaceAll(main, "data.bus.manifest.rules", `["one"]`)}, mainFile, 5,
		},
		"a decision that is true": {map[string]string{"bus/main.rego": strings.Replace(main, `{"allow": allow}`, `{"allow": true}`, 1)}, mainFile, 12},
		"a decision of the sender": {
			map[string]string{"bus/main.rego": strings.Replace(main, `{"allow": allow}`, `{"allow": input.sender.id == "boss"}`, 1)}, mainFile, 12,
		},
		"a decision of the sender, with reasons": {
			map[string]string{"bus/main.rego": strings.Replace(main, `{"allow": allow}`, `{"allow": input.sender.id == "boss", "reasons": why}`, 1) +
				"\nwhy := [] if not allow\n"}, mainFile, 12,
		},
		"as it is shipped":    {nil, "", 0},
		"through a rule":      {map[string]string{"bus/main.rego": own}, "", 0},
		"made of allow":       {map[string]string{"bus/main.rego": reply}, "", 0},
		"a helper beside it":  {map[string]string{"bus/extra.rego": "package bus\n\nhelp if input.sender.id == \"boss\"\n"}, "", 0},
		"a default beside it": {map[string]string{"bus/main.rego": strings.Replace(main, "default allow := false\n", "default allow := false", 1)}, "", 0},
	} {
		var found []problem
		for _, warning := range compiled(t, one.files).warnings() {
			if warning.Reason == warnCore {
				found = append(found, warning)
			}
		}
		if one.file == "" {
			if len(found) > 0 {
				t.Errorf("%s: %+v", name, found)
			}
			continue
		}
		if len(found) != 1 || found[0].File != one.file || found[0].Row != one.row {
			t.Errorf("%s: %+v", name, found)
		}
	}
}
