package bus.rules.priority_ceiling_test

import data.bus.rules.priority_ceiling

ceilings := {"everyone": 1, "roles": {"planner": 2, "finance": 3}}

message(priority, roles) := {
	"message": {"type": "command", "priority": priority},
	"sender": {"id": "desk", "tenant": "acme", "roles": roles},
	"recipient": {"id": "booker", "tenant": "acme"},
}

test_up_to_the_ceiling_of_the_role if {
	every priority in [0, 1, 2] {
		priority_ceiling.admit with input as message(priority, ["planner"])
			with data.bus.rules.priority_ceiling.settings as ceilings
	}
}

test_not_above_it if {
	not priority_ceiling.admit with input as message(3, ["planner"]) with data.bus.rules.priority_ceiling.settings as ceilings
}

test_the_rest_has_the_common_ceiling if {
	priority_ceiling.admit with input as message(1, []) with data.bus.rules.priority_ceiling.settings as ceilings
	not priority_ceiling.admit with input as message(2, ["unknown"]) with data.bus.rules.priority_ceiling.settings as ceilings
}

test_the_highest_of_several_roles_counts if {
	priority_ceiling.admit with input as message(3, ["planner", "finance"])
		with data.bus.rules.priority_ceiling.settings as ceilings
}

test_a_reply_keeps_the_priority_of_its_question if {
	reply := {
		"message": {"type": "response", "priority": 3},
		"cause": {"id": "q", "type": "query", "sender": "booker", "tenant": "acme"},
	}
	priority_ceiling.admit with input as object.union(message(3, []), reply)
		with data.bus.rules.priority_ceiling.settings as ceilings
}

test_what_is_no_priority_ends_in_no if {
	every priority in [null, true, "1", [], {}, -1, 99, 1.5] {
		not priority_ceiling.admit with input as message(priority, ["finance"])
			with data.bus.rules.priority_ceiling.settings as ceilings
	}
	not priority_ceiling.admit with input as {}
}

test_the_refusal_says_how_high_one_may_go if {
	said := priority_ceiling.message with input as message(3, ["planner"])
		with data.bus.rules.priority_ceiling.settings as ceilings
	said == "priority 3 is above 2, the highest that desk may use"
	priority_ceiling.code == "priority_too_high"
	priority_ceiling.remedy
}
