# METADATA
# title: Each role sends its own types of message
# description: |
#   What an agent may send follows from its roles: a planner gives commands, a worker
#   reports, a guest asks. A type that no role of the sender lists is refused, and so is
#   everything but a heartbeat from an agent without a known role. A reply needs no role:
#   it needs a message to answer.
package bus.rules.message_types

import data.bus.rules.message_types.settings

default admit := false

admit if input.message.type in settings.everyone

admit if {
	some role in input.sender.roles
	input.message.type in settings.roles[role]
}

admit if data.bus.reply.expected

code := "type_not_for_role"

message := sprintf("none of the roles of %s (%s) may send a %s", [
	input.sender.id,
	concat(", ", [role | some role in input.sender.roles; is_string(role)]),
	input.message.type,
])

remedy := "send a type that the role has, or have the role or the list in bus/rules/message_types/data.json changed"
