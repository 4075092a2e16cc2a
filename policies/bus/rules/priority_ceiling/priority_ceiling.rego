# METADATA
# title: Nobody shouts above their role
# description: |
#   Priorities are LOW 0, NORMAL 1, HIGH 2, CRITICAL 3. Each role has the highest it may
#   use; `everyone` is the ceiling of the rest. Without it every agent would soon send
#   everything as CRITICAL and nothing would be urgent. A reply may keep the priority
#   that its question had.
package bus.rules.priority_ceiling

import data.bus.rules.priority_ceiling.settings

default admit := false

# Membership and not `<=` alone: in Rego null and booleans compare as less than any number.
admit if {
	input.message.priority in {0, 1, 2, 3}
	input.message.priority <= ceiling
}

admit if {
	input.message.priority in {0, 1, 2, 3}
	data.bus.reply.expected
}

ceiling := max(of_roles | {settings.everyone})

of_roles contains settings.roles[role] if some role in input.sender.roles

code := "priority_too_high"

message := sprintf("priority %v is above %v, the highest that %s may use", [
	input.message.priority,
	ceiling,
	input.sender.id,
])

remedy := "send it with a lower priority"
