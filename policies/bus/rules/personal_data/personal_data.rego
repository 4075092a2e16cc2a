# METADATA
# title: Personal data only to the cleared
# description: |
#   A payload with a field named in data.json, at any depth and in any case, goes only to
#   agents with a role in `cleared_roles`. The rule knows fields by their names: it does
#   not find a passport number in free text. It reads the whole payload, so decisions are
#   cached per payload; a constitution that knows its payloads can name the paths instead.
package bus.rules.personal_data

import data.bus.rules.personal_data.settings

default admit := false

admit if {
	some role in input.recipient.roles
	role in settings.cleared_roles
}

admit if {
	is_object(input.message.payload)
	count(found) == 0
}

# The names, never the values.
found contains lower(field) if {
	walk(input.message.payload, [_, node])
	is_object(node)
	some field, _ in node
	lower(field) in settings.fields
}

code := "not_cleared"

message := sprintf("%s is not cleared for personal data, and the payload has %s", [
	input.recipient.id,
	concat(", ", found),
])

remedy := "leave these fields out, or send it to an agent with a role that is cleared for them"
