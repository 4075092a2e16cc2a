package bus.rules.known_payee_test

import data.bus.rules.known_payee

settings := {"capability": "payments", "roles": ["controller"], "hold_seconds": 60}

payment(payee, facts) := {
	"message": {"type": "command", "payload": {"payee": payee}},
	"recipient": {"id": "bank", "capabilities": ["payments"]},
	"facts": {"tenant": facts},
}

test_a_new_payee_waits if {
	known_payee.admit with input as payment("Paper Ltd", {}) with data.bus.rules.known_payee.settings as settings
	count(known_payee.hold) == 1 with input as payment("Paper Ltd", {"payees": ["Other"]})
		with data.bus.rules.known_payee.settings as settings
}

test_a_known_one_does_not if {
	count(known_payee.hold) == 0 with input as payment("Paper Ltd", {"payees": ["Paper Ltd"]})
		with data.bus.rules.known_payee.settings as settings
}

test_nobody_is_no_payee if {
	every payee in [null, 7, "", "a\nb", ["x"]] {
		not known_payee.admit with input as payment(payee, {}) with data.bus.rules.known_payee.settings as settings
	}
	not known_payee.admit with input as payment("Paper Ltd", {"payees": 7})
		with data.bus.rules.known_payee.settings as settings
	not known_payee.admit with input as {}
}

test_others_need_no_payee if {
	known_payee.admit with input as {"recipient": {"capabilities": []}}
		with data.bus.rules.known_payee.settings as settings
}
