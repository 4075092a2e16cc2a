# METADATA
# title: Only the tools of one's role
# description: |
#   payload.tools names the tools that the recipient is asked to use. Each must match a
#   pattern of one of the sender's roles: an agent cannot borrow another's tools by asking
#   it to use them. `*` stands for one part of a dotted name, `**` for any number.
package bus.rules.tool_allow_list

import data.bus.rules.tool_allow_list.settings

default admit := false

admit if {
	is_array(input.sender.roles)
	is_array(asked)
	every tool in asked {
		allowed(tool)
	}
}

# Who asks for no tool asks for none.
default asked := []

asked := input.message.payload.tools

allowed(tool) if {
	is_string(tool)
	some role in input.sender.roles
	some pattern in settings.roles[role]
	glob.match(pattern, ["."], tool)
}

default code := "tools_unclear"

code := "tool_not_allowed" if is_array(asked)

default message := "payload.tools is not a list"

# The position, not the name: what was asked for may be anything, and of any length.
message := sprintf("%s may not ask for %v of the %v tools in payload.tools; the first is at position %v, from 0", [
	input.sender.id,
	count(refused),
	count(asked),
	min(refused),
]) if {
	is_array(asked)
	refused := {position | some position, tool in asked; not allowed(tool)}
}

default remedy := "give payload.tools as a list of names, such as [\"search.flights\"]"

remedy := "ask for tools that bus/rules/tool_allow_list/data.json lists for the sender's roles" if is_array(asked)
