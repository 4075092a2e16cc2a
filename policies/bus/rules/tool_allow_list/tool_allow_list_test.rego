package bus.rules.tool_allow_list_test

import data.bus.rules.tool_allow_list

tools := {"roles": {"planner": ["search.*", "calendar.read"], "auditor": ["ledger.**"]}}

message(roles, payload) := {
	"message": {"type": "command", "payload": payload},
	"sender": {"id": "desk", "roles": roles},
}

ask(asked) := message(["planner"], {"tools": asked})

test_listed_tools_may_be_asked_for if {
	tool_allow_list.admit with input as ask(["search.flights", "calendar.read"])
		with data.bus.rules.tool_allow_list.settings as tools
}

test_one_that_is_not_listed_refuses_the_message if {
	not tool_allow_list.admit with input as ask(["search.flights", "shell.run"])
		with data.bus.rules.tool_allow_list.settings as tools
}

test_a_star_is_one_part_and_two_are_any_number if {
	not tool_allow_list.admit with input as ask(["search.flights.delete"])
		with data.bus.rules.tool_allow_list.settings as tools
	tool_allow_list.admit with input as message(["auditor"], {"tools": ["ledger.read.all"]})
		with data.bus.rules.tool_allow_list.settings as tools
}

test_a_role_does_not_lend_its_tools if {
	not tool_allow_list.admit with input as message(["worker"], {"tools": ["search.flights"]})
		with data.bus.rules.tool_allow_list.settings as tools
}

test_no_tools_are_no_trouble if {
	tool_allow_list.admit with input as message([], {"trip": 7}) with data.bus.rules.tool_allow_list.settings as tools
	tool_allow_list.admit with input as message([], {"tools": []}) with data.bus.rules.tool_allow_list.settings as tools
}

test_what_is_no_list_of_names_is_refused if {
	every asked in ["search.flights", null, true, false, 7, {"a": "search.flights"}, [7], [null], [["search.flights"]]] {
		not tool_allow_list.admit with input as ask(asked) with data.bus.rules.tool_allow_list.settings as tools
	}
}

test_the_refusal_says_where if {
	said := tool_allow_list.message with input as ask(["search.flights", "shell.run", 7])
		with data.bus.rules.tool_allow_list.settings as tools
	said == "desk may not ask for 2 of the 3 tools in payload.tools; the first is at position 1, from 0"
	code := tool_allow_list.code with input as ask(["shell.run"]) with data.bus.rules.tool_allow_list.settings as tools
	code == "tool_not_allowed"
	remedy := tool_allow_list.remedy with input as ask(["shell.run"]) with data.bus.rules.tool_allow_list.settings as tools
	contains(remedy, "data.json")
}

test_the_refusal_asks_for_a_list if {
	code := tool_allow_list.code with input as ask("shell.run") with data.bus.rules.tool_allow_list.settings as tools
	code == "tools_unclear"
	said := tool_allow_list.message with input as ask("shell.run") with data.bus.rules.tool_allow_list.settings as tools
	said == "payload.tools is not a list"
}
