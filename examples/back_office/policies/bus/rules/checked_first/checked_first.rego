# METADATA
# title: First checked, then paid
# description: |
#   A checker says in an event that an invoice is right: payload.checked is its number. The
#   conversation remembers it, and a payment in that conversation names that invoice.
package bus.rules.checked_first

import data.bus.rules.checked_first.settings

default admit := false

admit if {
	is_array(input.recipient.capabilities)
	not settings.capability in input.recipient.capabilities
	is_array(input.sender.roles)
}

admit if {
	settings.capability in input.recipient.capabilities
	is_string(input.message.payload.invoice)
	input.message.payload.invoice in input.facts.conversation.checked
}

remember contains {"scope": "conversation", "key": "checked", "value": input.message.payload.checked} if {
	settings.role in input.sender.roles
	is_string(input.message.payload.checked)
}

code := "not_checked"

message := "no checker has said in this conversation that this invoice is right"

remedy := "let a checker send an event with payload.checked, the invoice's number, in this conversation first"
