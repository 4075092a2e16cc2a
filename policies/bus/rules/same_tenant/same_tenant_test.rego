package bus.rules.same_tenant_test

import data.bus.rules.same_tenant

desk := {"id": "desk", "tenant": "acme"}

booker := {"id": "booker", "tenant": "acme"}

foreign := {"id": "globex-flights", "tenant": "globex"}

grants := [{"from": "acme", "to": "globex", "types": ["query"]}]

message(type, from, to) := {"message": {"type": type}, "sender": from, "recipient": to}

test_inside_one_tenant if {
	same_tenant.admit with input as message("command", desk, booker)
}

test_not_to_another_tenant if {
	not same_tenant.admit with input as message("command", desk, foreign)
		with data.bus.rules.same_tenant.settings.grants as []
}

test_a_granted_type_may_cross if {
	same_tenant.admit with input as message("query", desk, foreign)
		with data.bus.rules.same_tenant.settings.grants as grants
}

test_a_grant_is_for_its_types_only if {
	not same_tenant.admit with input as message("command", desk, foreign)
		with data.bus.rules.same_tenant.settings.grants as grants
}

test_a_grant_goes_one_way if {
	not same_tenant.admit with input as message("query", foreign, desk)
		with data.bus.rules.same_tenant.settings.grants as grants
}

test_the_answer_to_a_granted_message_comes_back if {
	cause := {"cause": {"id": "q", "type": "query", "sender": "desk", "tenant": "acme"}}
	same_tenant.admit with input as object.union(message("response", foreign, desk), cause)
		with data.bus.rules.same_tenant.settings.grants as grants
}

test_no_answer_to_a_third_agent if {
	cause := {"cause": {"id": "q", "type": "query", "sender": "other", "tenant": "acme"}}
	not same_tenant.admit with input as object.union(message("response", foreign, desk), cause)
		with data.bus.rules.same_tenant.settings.grants as grants
}

test_no_answer_without_a_question if {
	not same_tenant.admit with input as message("response", foreign, desk)
		with data.bus.rules.same_tenant.settings.grants as grants
}

test_two_missing_tenants_are_not_one_tenant if {
	not same_tenant.admit with input as message("command", {"id": "a"}, {"id": "b"})
	not same_tenant.admit with input as message("command", {"tenant": null}, {"tenant": null})
	not same_tenant.admit with input as {}
}

test_the_refusal_keeps_the_other_tenant_to_itself if {
	said := same_tenant.message with input as message("command", desk, foreign)
	contains(said, "acme")
	not contains(said, "tenant globex")
	same_tenant.code == "other_tenant"
	same_tenant.remedy
}
