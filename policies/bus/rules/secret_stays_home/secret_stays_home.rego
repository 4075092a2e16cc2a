# METADATA
# title: Nothing leaves after a secret was read
# description: |
#   Agents with a capability in `sources` hold secrets. Whoever asks one, or gets a
#   message from one, is labelled; the label goes on to whoever they write to, and stays
#   with the conversation. A labelled agent or conversation sends nothing to another
#   tenant, and nothing to an agent with a capability in `exits`, which leads outside. So
#   an agent that was talked into leaking has no road out, in a new conversation neither.
#   The label is set with the question and not with the answer: between the two there
#   would be time to send. Operators remove it with `eab facts remove`.
package bus.rules.secret_stays_home

import data.bus.rules.secret_stays_home.settings

default admit := false

admit if stays_home

admit if {
	labels_known
	not labelled
}

stays_home if {
	is_string(input.sender.tenant)
	input.sender.tenant == input.recipient.tenant
	is_array(input.recipient.capabilities)
	not is_exit
}

is_exit if {
	some capability in input.recipient.capabilities
	capability in settings.exits
}

# A label is a sorted list of texts; a fact of another kind under its name is no answer.
labels_known if {
	is_array(sender_labels)
	is_array(conversation_labels)
	is_array(input.sender.capabilities)
	is_array(input.recipient.capabilities)
}

default sender_labels := []

sender_labels := input.facts.sender.labels

default conversation_labels := []

conversation_labels := input.facts.conversation.labels

labelled if "secret" in sender_labels

labelled if "secret" in conversation_labels

labelled if is_source(input.sender.capabilities)

labelled if is_source(input.recipient.capabilities)

is_source(capabilities) if {
	some capability in capabilities
	capability in settings.sources
}

remember contains {"scope": scope, "key": "labels", "value": "secret"} if {
	labelled
	some scope in ["sender", "recipient", "conversation"]
}

code := "secret_would_leave"

message := sprintf("%s or this conversation has read a secret, and %s leads out of tenant %s", [
	input.sender.id,
	input.recipient.id,
	input.sender.tenant,
])

remedy := "send it from an agent and in a conversation that read no secret, or have an operator look at the labels"
