# METADATA
# title: What came from outside gives no orders
# description: |
#   A message from an agent with a capability in `outside` carries foreign text, and so
#   does every message of an agent that received some. Its recipient is labelled, so the
#   label goes where the data go. A labelled agent sends nothing to an agent with a
#   capability in `acting`; answers to that agent's own questions pass.
package bus.rules.taint

import data.bus.rules.taint.settings

default admit := false

admit if {
	known
	not tainted
}

admit if {
	known
	not acts
}

admit if data.bus.reply.expected

# Without these there is no answer: a missing field must not read as "not tainted".
known if {
	is_array(input.sender.capabilities)
	is_array(input.recipient.capabilities)
	is_array(labels)
}

default labels := []

labels := input.facts.sender.labels

tainted if "outside" in labels

tainted if {
	some capability in input.sender.capabilities
	capability in settings.outside
}

acts if {
	some capability in input.recipient.capabilities
	capability in settings.acting
}

remember contains {"scope": "recipient", "key": "labels", "value": "outside"} if tainted

code := "tainted"

message := sprintf("%s has read text from outside, and %s acts", [input.sender.id, input.recipient.id])

remedy := "let an agent that has read nothing from outside decide and send it"
