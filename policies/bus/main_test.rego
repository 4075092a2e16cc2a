package bus.main_test

digest := "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

# A whole input as the bus hands it in; tests change what they are about.
base := {
	"message": {
		"id": "desk/1",
		"type": "command",
		"priority": 1,
		"payload": {"trip": 7},
		"headers": {},
		"conversation": "desk/1",
		"hops": 0,
		"attempt": 1,
		"size": 10,
		"age_seconds": 0,
	},
	"sender": {"id": "desk", "tenant": "acme", "roles": ["planner"], "capabilities": []},
	"recipient": {"id": "booker", "tenant": "acme", "roles": ["worker", "records"], "capabilities": ["flights"]},
	"constitution": {"digest": digest, "agreed": digest, "revision": 1},
	"clock": {"date": "2026-03-04", "weekday": 3, "hour": 10, "minute": 30},
	"facts": {
		"sender": {"sent": 0, "refused": 0},
		"recipient": {},
		"conversation": {"sent": 0, "refused": 0},
		"tenant": {},
	},
	"approvals": [],
}

payments := {"recipient": {"id": "payments", "tenant": "acme", "roles": ["worker"], "capabilities": ["payments"]}}

decide(change) := answer if {
	answer := data.bus.decision with input as object.union(base, change)
}

refused_by(change) := [reason.rule | some reason in decide(change).reasons]

test_an_ordinary_command_is_allowed_and_leaves_no_trace if {
	decide({}) == {"allow": true, "reasons": [], "hold": set(), "remember": set(), "obligations": set()}
}

test_its_answer_is_allowed if {
	answer := decide({
		"message": {"type": "response", "payload": {"booking": "B-7"}},
		"sender": base.recipient,
		"recipient": base.sender,
		"cause": {"id": "desk/1", "type": "command", "sender": "desk", "tenant": "acme"},
	})
	answer.allow == true
}

test_a_refusal_names_the_rule_and_what_to_do if {
	answer := decide({"message": {"priority": 3}})
	answer.allow == false
	answer.reasons == [{
		"rule": "priority_ceiling",
		"code": "priority_too_high",
		"message": "priority 3 is above 2, the highest that desk may use",
		"remedy": "send it with a lower priority",
	}]
}

test_every_rule_can_say_no if {
	refused_by({"recipient": {"tenant": "globex"}}) == ["same_tenant"]
	refused_by({"sender": {"roles": ["guest"]}}) == ["message_types"]
	refused_by({"message": {"priority": 3}}) == ["priority_ceiling"]
	refused_by(object.union(payments, {"message": {"payload": {"amount": 5001}}})) == ["daily_budget"]
	refused_by({"recipient": {"roles": ["worker"]}, "message": {"payload": {"a": {"email": ""}}}}) == ["personal_data"]
	refused_by({"message": {"payload": {"tools": ["shell.run"]}}}) == ["tool_allow_list"]
	refused_by({
		"recipient": {"capabilities": ["outside_mail"]},
		"facts": {"conversation": {"labels": ["secret"]}},
	}) == ["secret_stays_home"]
	refused_by({"message": {"payload": {"action": "sign_contract"}}, "clock": {"weekday": 7}}) == ["office_hours"]
}

test_several_rules_say_no_in_the_order_of_the_list if {
	refused_by({"message": {"priority": 3, "payload": {"tools": ["shell.run"]}}, "recipient": {"tenant": "globex"}}) == [
		"same_tenant",
		"priority_ceiling",
		"tool_allow_list",
	]
}

test_a_hold_names_its_rule_and_says_why if {
	answer := decide(object.union(payments, {"message": {"payload": {"amount": 1500}}}))
	answer.allow == true
	answer.hold == {{"rule": "daily_budget", "approvers": 1, "roles": ["finance"], "expires_in": 86400}}
	[reason.code | some reason in answer.reasons] == ["needs_approval"]
	answer.remember == {{"scope": "sender", "key": "spent_2026-03-04", "add": 1500}}
}

test_a_hold_of_a_rule_without_a_message_names_who_is_asked if {
	bare := {"admit": true, "hold": {{"roles": ["finance", "chief"]}, {"roles": ["finance"]}}}
	answer := data.bus.decision with input as base
		with data.bus.manifest.rules as ["bare"]
		with data.bus.rules as {"bare": bare}
	answer.allow == true
	answer.reasons == [{"rule": "bare", "code": "bare", "message": "waits for an approval by chief or finance"}]
}

test_a_refusal_is_explained_by_the_rules_that_refuse if {
	refused_by(object.union(payments, {"message": {"priority": 3, "payload": {"amount": 1500}}})) == ["priority_ceiling"]
}

test_no_rules_mean_no if {
	answer := data.bus.decision with input as base with data.bus.manifest.rules as []
	answer.allow == false
}

test_a_rule_that_is_missing_means_no if {
	answer := data.bus.decision with input as base with data.bus.manifest.rules as ["same_tenant", "gone"]
	answer.allow == false
	answer.reasons == [{"rule": "gone", "code": "gone", "message": "the rule does not admit this message"}]
}

test_nothing_known_means_no if {
	answer := data.bus.decision with input as {}
	answer.allow == false
	count(answer.reasons) == count(data.bus.manifest.rules)
}
