# METADATA
# title: Nothing goes live that was not tested and reviewed
# description: |
#   A tester says `passed`, a reviewer `approved`, each in a reply that names the commit. The
#   conversation remembers it, and a deployment in that conversation names that commit. Whose
#   word counts for what is in data.json; the roles are the registry's, not the message's.
package bus.rules.tested_and_reviewed

import data.bus.rules.tested_and_reviewed.settings

default admit := false

admit if {
	is_array(input.recipient.capabilities)
	not settings.capability in input.recipient.capabilities
	is_array(input.sender.roles)
}

admit if {
	is_string(input.message.payload.deploy)
	count(settings.says) > 0
	every word in settings.says {
		input.message.payload.deploy in input.facts.conversation[word]
	}
}

# A compensation has to be admitted where the step was: what must come back must not need a test.
admit if {
	is_string(input.message.payload.take_back)
	object.keys(input.message.payload) == {"take_back"}
}

remember contains {"scope": "conversation", "key": word, "value": input.message.payload.commit} if {
	some role, word in settings.says
	role in input.sender.roles
	input.message.payload[word] == true
	is_string(input.message.payload.commit)
}

code := "not_tested_and_reviewed"

message := "this commit has not been both tested and reviewed in this conversation"

remedy := "let a tester pass it and a reviewer approve it in this conversation first"
