package bus.rules.message_types_test

import data.bus.rules.message_types

types := {"everyone": ["heartbeat"], "roles": {"planner": ["command", "query"], "guest": ["query"]}}

message(type, roles) := {
	"message": {"type": type},
	"sender": {"id": "desk", "tenant": "acme", "roles": roles},
	"recipient": {"id": "booker", "tenant": "acme"},
}

test_a_role_sends_its_types if {
	message_types.admit with input as message("command", ["planner"]) with data.bus.rules.message_types.settings as types
}

test_one_of_several_roles_is_enough if {
	message_types.admit with input as message("command", ["guest", "planner"])
		with data.bus.rules.message_types.settings as types
}

test_not_a_type_of_another_role if {
	not message_types.admit with input as message("command", ["guest"]) with data.bus.rules.message_types.settings as types
}

test_an_unknown_role_sends_nothing_but_a_heartbeat if {
	not message_types.admit with input as message("query", ["root"]) with data.bus.rules.message_types.settings as types
	not message_types.admit with input as message("query", []) with data.bus.rules.message_types.settings as types
	message_types.admit with input as message("heartbeat", []) with data.bus.rules.message_types.settings as types
}

test_a_reply_needs_a_message_to_answer if {
	cause := {"cause": {"id": "q", "type": "query", "sender": "booker", "tenant": "acme"}}
	message_types.admit with input as object.union(message("response", ["guest"]), cause)
	not message_types.admit with input as message("response", ["guest"])
}

test_missing_fields_end_in_no if {
	not message_types.admit with input as {}
	not message_types.admit with input as {"message": {"type": "command"}}
	not message_types.admit with input as {"sender": {"roles": ["planner"]}}
}

test_the_refusal_names_roles_and_type if {
	said := message_types.message with input as message("command", ["guest"])
	said == "none of the roles of desk (guest) may send a command"
	message_types.code == "type_not_for_role"
	message_types.remedy
}
