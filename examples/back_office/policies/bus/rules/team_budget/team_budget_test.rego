package bus.rules.team_budget_test

import data.bus.rules.team_budget

settings := {"capability": "payments", "day_budget": 100}

payment(amount, facts) := {
	"message": {"type": "command", "payload": {"amount": amount}},
	"recipient": {"id": "bank", "capabilities": ["payments"]},
	"clock": {"date": "2026-03-04"},
	"facts": {"tenant": facts},
}

test_what_fits_is_paid_and_remembered if {
	team_budget.admit with input as payment(60, {"spent_2026-03-04": 40})
		with data.bus.rules.team_budget.settings as settings
	team_budget.remember == {{"scope": "tenant", "key": "spent_2026-03-04", "add": 60}}
		with input as payment(60, {}) with data.bus.rules.team_budget.settings as settings
}

test_the_team_shares_it if {
	not team_budget.admit with input as payment(61, {"spent_2026-03-04": 40})
		with data.bus.rules.team_budget.settings as settings
	team_budget.admit with input as payment(61, {"spent_2026-03-03": 40})
		with data.bus.rules.team_budget.settings as settings
}

test_what_is_no_amount_is_not_paid if {
	every amount in [0, -1, 1.5, "5", null] {
		not team_budget.admit with input as payment(amount, {}) with data.bus.rules.team_budget.settings as settings
	}
	not team_budget.admit with input as {}
}

test_others_need_no_budget if {
	team_budget.admit with input as {"recipient": {"capabilities": []}}
		with data.bus.rules.team_budget.settings as settings
}
