# METADATA
# title: The decision
# description: |
#   The one question the bus asks about a message. It is allowed when there are rules
#   and every rule named in bus/manifest/data.json admits it. What the rules say beside
#   yes and no is gathered here. This file knows no rule by name: a new rule is a new
#   folder and one more name in the list.
package bus

# METADATA
# title: May this message travel, and if not, why not
# entrypoint: true
decision := {
	"allow": allow,
	"reasons": reasons,
	"hold": hold,
	"remember": remember,
	"obligations": obligations,
}

default allow := false

# The count matters: `every` over an empty list is true, and no rules must not mean yes.
allow if {
	count(data.bus.manifest.rules) > 0
	every name in data.bus.manifest.rules {
		data.bus.rules[name].admit == true
	}
}

# One reason for each rule that did not admit or, where all did, that wants an approval, in the order of the list.
reasons := [reason_of(name) |
	some name in data.bus.manifest.rules
	not data.bus.rules[name].admit == true
] if {
	not allow
} else := [reason_of(name) |
	some name in data.bus.manifest.rules
	count(data.bus.rules[name].hold) > 0
]

reason_of(name) := object.union({"rule": name, "code": name, "message": unsaid(name)}, said) if {
	said := {part: text |
		some part in ["code", "message", "remedy"]
		text := data.bus.rules[name][part]
	}
}

# What is said for a rule that has no message of its own.
unsaid(name) := concat("", ["waits for an approval by ", concat(" or ", approving(name))]) if {
	data.bus.rules[name].admit == true
} else := "the rule does not admit this message"

approving(name) := {role |
	some entry in data.bus.rules[name].hold
	some role in entry.roles
	is_string(role)
}

# A rule does not name itself in what it asks to hold; its place in the list does.
hold contains object.union(entry, {"rule": name}) if {
	some name in data.bus.manifest.rules
	some entry in data.bus.rules[name].hold
}

remember contains entry if {
	some name in data.bus.manifest.rules
	some entry in data.bus.rules[name].remember
}

obligations contains entry if {
	some name in data.bus.manifest.rules
	some entry in data.bus.rules[name].obligations
}
