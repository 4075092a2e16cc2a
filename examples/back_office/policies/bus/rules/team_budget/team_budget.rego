# METADATA
# title: A team has one purse
# description: |
#   What the agents of a tenant pay on one day (UTC) counts together, under one key a day
#   at the tenant. Amounts are whole numbers above 0.
package bus.rules.team_budget

import data.bus.rules.team_budget.settings

default admit := false

admit if {
	is_array(input.recipient.capabilities)
	not settings.capability in input.recipient.capabilities
}

admit if within_budget

within_budget if {
	settings.capability in input.recipient.capabilities
	is_number(input.message.payload.amount)
	input.message.payload.amount > 0
	floor(input.message.payload.amount) == input.message.payload.amount
	spent + input.message.payload.amount <= settings.day_budget
}

day := concat("_", ["spent", input.clock.date])

spent := total if {
	is_object(input.facts.tenant)
	total := object.get(input.facts.tenant, day, 0)
	is_number(total)
}

remember contains {"scope": "tenant", "key": day, "add": floor(input.message.payload.amount)} if within_budget

code := "over_team_budget"

message := sprintf("the team has spent %v of %v today, and this is no whole amount that fits", [spent, settings.day_budget])

remedy := "wait for the next day (UTC), or have day_budget in bus/rules/team_budget/data.json raised"
