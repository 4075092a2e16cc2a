package bus.rules.checked_first_test

import data.bus.rules.checked_first

settings := {"capability": "payments", "role": "checker"}

payment(invoice, facts) := {
	"message": {"type": "command", "payload": {"invoice": invoice}},
	"sender": {"id": "clerk", "roles": []},
	"recipient": {"id": "bank", "capabilities": ["payments"]},
	"facts": {"conversation": facts},
}

check(roles) := {
	"message": {"type": "event", "payload": {"checked": "I-1"}},
	"sender": {"id": "audit", "roles": roles},
	"recipient": {"id": "clerk", "capabilities": []},
	"facts": {"conversation": {}},
}

test_what_was_checked_is_paid if {
	checked_first.admit with input as payment("I-1", {"checked": ["I-1"]})
		with data.bus.rules.checked_first.settings as settings
}

test_nothing_else_is if {
	every facts in [{}, {"checked": []}, {"checked": ["I-2"]}, {"checked": "I-1"}] {
		not checked_first.admit with input as payment("I-1", facts)
			with data.bus.rules.checked_first.settings as settings
	}
	not checked_first.admit with input as {}
}

test_a_checker_is_remembered_and_others_are_not if {
	checked_first.remember == {{"scope": "conversation", "key": "checked", "value": "I-1"}}
		with input as check(["checker"]) with data.bus.rules.checked_first.settings as settings
	checked_first.remember == set() with input as check([]) with data.bus.rules.checked_first.settings as settings
}
