# METADATA
# title: A new payee is looked at once
# description: |
#   A payment names its payee. The first one to a payee waits for an approval; once it is
#   allowed the tenant knows the payee. An approval is for one message: the policy need not
#   look at it, the bus holds the message until it is in.
package bus.rules.known_payee

import data.bus.rules.known_payee.settings

default admit := false

admit if {
	is_array(input.recipient.capabilities)
	not pays
}

admit if named

pays if settings.capability in input.recipient.capabilities

named if {
	pays
	is_string(input.message.payload.payee)
	regex.match(`^[A-Za-z0-9 .-]{1,64}$`, input.message.payload.payee)
	is_array(payees)
}

default payees := []

payees := input.facts.tenant.payees

hold contains {"approvers": 1, "roles": settings.roles, "expires_in": settings.hold_seconds} if {
	named
	not input.message.payload.payee in payees
}

remember contains {"scope": "tenant", "key": "payees", "value": input.message.payload.payee} if named

default code := "payee_unclear"

code := "new_payee" if named

default message := "a payment names its payee in payload.payee"

message := sprintf("%s was never paid before", [input.message.payload.payee]) if named

default remedy := "put the payee's name into payload.payee"

remedy := sprintf("have it approved by one of %s", [concat(", ", settings.roles)]) if named
