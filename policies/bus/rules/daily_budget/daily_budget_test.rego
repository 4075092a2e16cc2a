package bus.rules.daily_budget_test

import data.bus.rules.daily_budget

limits := {
	"capability": "payments",
	"hold_above": 100,
	"day_budget": 500,
	"approvers": 1,
	"approver_roles": ["finance"],
	"hold_seconds": 60,
}

to(capabilities, payload, facts) := {
	"message": {"type": "command", "payload": payload},
	"sender": {"id": "desk", "tenant": "acme"},
	"recipient": {"id": "payments", "tenant": "acme", "capabilities": capabilities},
	"facts": {"sender": object.union({"sent": 3, "refused": 0}, facts)},
	"clock": {"date": "2026-03-04"},
}

pay(amount, facts) := to(["payments"], {"amount": amount}, facts)

test_inside_the_budget if {
	daily_budget.admit with input as pay(40, {}) with data.bus.rules.daily_budget.settings as limits
}

test_up_to_the_last_unit if {
	daily_budget.admit with input as pay(50, {"spent_2026-03-04": 450}) with data.bus.rules.daily_budget.settings as limits
	not daily_budget.admit with input as pay(51, {"spent_2026-03-04": 450})
		with data.bus.rules.daily_budget.settings as limits
}

test_what_was_spent_on_another_day_does_not_count if {
	daily_budget.admit with input as pay(50, {"spent_2026-03-03": 500}) with data.bus.rules.daily_budget.settings as limits
}

test_a_payment_is_remembered_under_its_day if {
	remembered := daily_budget.remember with input as pay(40, {}) with data.bus.rules.daily_budget.settings as limits
	remembered == {{"scope": "sender", "key": "spent_2026-03-04", "add": 40}}
}

test_a_whole_number_may_be_written_as_a_float if {
	remembered := daily_budget.remember with input as pay(40.0, {}) with data.bus.rules.daily_budget.settings as limits
	json.marshal(remembered) == `[{"add":40,"key":"spent_2026-03-04","scope":"sender"}]`
}

test_what_is_refused_is_neither_held_nor_remembered if {
	over := pay(501, {})
	held := daily_budget.hold with input as over with data.bus.rules.daily_budget.settings as limits
	held == set()
	remembered := daily_budget.remember with input as over with data.bus.rules.daily_budget.settings as limits
	remembered == set()
}

test_a_large_payment_waits_for_an_approver if {
	held := daily_budget.hold with input as pay(101, {}) with data.bus.rules.daily_budget.settings as limits
	held == {{"approvers": 1, "roles": ["finance"], "expires_in": 60}}
	daily_budget.admit with input as pay(101, {}) with data.bus.rules.daily_budget.settings as limits
}

test_a_small_one_does_not_wait if {
	held := daily_budget.hold with input as pay(100, {}) with data.bus.rules.daily_budget.settings as limits
	held == set()
}

test_an_amount_that_is_no_whole_number_above_0_is_refused if {
	every amount in ["40", true, false, null, [40], {"value": 40}, 0, -40, 40.5] {
		not daily_budget.admit with input as pay(amount, {}) with data.bus.rules.daily_budget.settings as limits
	}
	not daily_budget.admit with input as to(["payments"], {}, {}) with data.bus.rules.daily_budget.settings as limits
}

test_what_is_no_payment_spends_nothing if {
	daily_budget.admit with input as to(["flights"], {"trip": 7}, {}) with data.bus.rules.daily_budget.settings as limits
	quote := to(["flights"], {"amount": 900}, {})
	daily_budget.admit with input as quote with data.bus.rules.daily_budget.settings as limits
	remembered := daily_budget.remember with input as quote with data.bus.rules.daily_budget.settings as limits
	remembered == set()
}

test_an_amount_of_another_type_is_refused_everywhere if {
	not daily_budget.admit with input as to(["flights"], {"amount": "900"}, {})
		with data.bus.rules.daily_budget.settings as limits
}

test_an_answer_to_a_payer_is_no_payment if {
	answer := object.union(to(["payments"], {"checked": true}, {}), {
		"message": {"type": "response"},
		"recipient": {"id": "payments", "tenant": "acme"},
		"cause": {"id": "q", "type": "query", "sender": "payments", "tenant": "acme"},
	})
	daily_budget.admit with input as answer with data.bus.rules.daily_budget.settings as limits
	remembered := daily_budget.remember with input as answer with data.bus.rules.daily_budget.settings as limits
	remembered == set()
}

test_without_facts_clock_or_recipient_there_is_no_yes if {
	every missing in ["facts", "clock", "recipient", "message"] {
		partial := object.remove(pay(40, {}), [missing])
		not daily_budget.admit with input as partial with data.bus.rules.daily_budget.settings as limits
	}
	not daily_budget.admit with input as pay(40, {"spent_2026-03-04": ["a", "b"]})
		with data.bus.rules.daily_budget.settings as limits
	dated := object.union(pay(40, {}), {"clock": {"date": 20260304}})
	not daily_budget.admit with input as dated with data.bus.rules.daily_budget.settings as limits
}

test_the_refusal_does_the_sum if {
	over := pay(51, {"spent_2026-03-04": 450})
	said := daily_budget.message with input as over with data.bus.rules.daily_budget.settings as limits
	said == "51 on top of the 450 already spent today would pass the day's budget of 500"
	code := daily_budget.code with input as over with data.bus.rules.daily_budget.settings as limits
	code == "over_day_budget"
}

test_what_is_held_says_who_approves if {
	code := daily_budget.code with input as pay(101, {}) with data.bus.rules.daily_budget.settings as limits
	code == "needs_approval"
	said := daily_budget.message with input as pay(101, {}) with data.bus.rules.daily_budget.settings as limits
	said == "101 is above 100, and a payment of that size is approved first"
	remedy := daily_budget.remedy with input as pay(101, {}) with data.bus.rules.daily_budget.settings as limits
	contains(remedy, "roles finance,")
}

test_the_refusal_asks_for_an_amount if {
	unclear := pay("40", {})
	code := daily_budget.code with input as unclear with data.bus.rules.daily_budget.settings as limits
	code == "amount_unclear"
	remedy := daily_budget.remedy with input as unclear with data.bus.rules.daily_budget.settings as limits
	contains(remedy, "JSON number")
}
