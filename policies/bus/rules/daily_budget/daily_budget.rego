# METADATA
# title: A budget for each sender and day
# description: |
#   A message to an agent with the capability `payments` is a payment, and its
#   payload.amount counts against what its sender may spend on one day (UTC). Past the
#   day's budget it is refused; above `hold_above` a single payment waits for an approver.
#   Amounts are whole numbers above 0 in one currency: a negative one would give budget
#   back, and facts are summed in whole numbers (where cents matter, count in cents). What
#   was spent is remembered under one key a day at the sender; a scope has room for 256
#   keys, so remove old ones now and then (`eab facts remove`).
package bus.rules.daily_budget

import data.bus.rules.daily_budget.settings

default admit := false

admit if within_budget

# What is no payment may carry an amount (a quote does), but never one that is no number.
admit if {
	is_array(input.recipient.capabilities)
	not pays
	is_number(amount)
}

# An answer to somebody who pays is no payment.
admit if {
	pays
	data.bus.reply.expected
	is_number(amount)
}

pays if settings.capability in input.recipient.capabilities

payment if {
	pays
	not data.bus.reply.expected
	is_number(amount)
	amount > 0
	floor(amount) == amount
}

within_budget if {
	payment
	spent + amount <= settings.day_budget
}

large if {
	within_budget
	amount > settings.hold_above
}

over_budget if {
	payment
	not within_budget
}

default amount := 0

amount := input.message.payload.amount

day := concat("_", ["spent", input.clock.date]) if is_string(input.clock.date)

# 0 only where the bus did hand in the sender's facts: without them there is no answer.
spent := total if {
	is_object(input.facts.sender)
	total := object.get(input.facts.sender, day, 0)
	is_number(total)
}

hold contains {
	"approvers": settings.approvers,
	"roles": settings.approver_roles,
	"expires_in": settings.hold_seconds,
} if {
	large
}

# `floor` turns 40.0 into 40: `add` takes whole numbers.
remember contains {"scope": "sender", "key": day, "add": floor(amount)} if within_budget

default code := "amount_unclear"

code := "over_day_budget" if over_budget

code := "needs_approval" if large

default message := "a payment needs an amount that is a whole number above 0; elsewhere an amount has to be a number"

message := sprintf("%v on top of the %v already spent today would pass the day's budget of %v", [
	amount,
	spent,
	settings.day_budget,
]) if {
	over_budget
}

message := sprintf("%v is above %v, and a payment of that size is approved first", [amount, settings.hold_above]) if large

default remedy := "put the amount into payload.amount as a JSON number"

remedy := "wait for the next day (UTC), pay less, or have day_budget in bus/rules/daily_budget/data.json raised" if {
	over_budget
}

remedy := sprintf("have it approved by an agent with one of the roles %s, other than the sender", [
	concat(", ", settings.approver_roles),
]) if {
	large
}
