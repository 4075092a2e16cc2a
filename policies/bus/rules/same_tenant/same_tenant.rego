# METADATA
# title: Messages stay in their tenant
# description: |
#   Sender and recipient belong to one tenant, as the registry says, never as the message
#   says. `grants` in data.json lets one tenant send named types to another; a grant goes
#   one way, and the answer to a granted message may come back.
package bus.rules.same_tenant

import data.bus.rules.same_tenant.settings

default admit := false

admit if {
	is_string(input.sender.tenant)
	input.sender.tenant == input.recipient.tenant
}

admit if granted(input.sender.tenant, input.recipient.tenant, input.message.type)

# The grant was for the question; the answer travels the other way.
admit if {
	data.bus.reply.expected
	granted(input.recipient.tenant, input.sender.tenant, input.cause.type)
}

granted(from, to, type) if {
	some grant in settings.grants
	grant.from == from
	grant.to == to
	type in grant.types
}

code := "other_tenant"

message := sprintf("%s is not of the tenant %s, and no grant lets this %s across", [
	input.recipient.id,
	input.sender.tenant,
	input.message.type,
])

remedy := "send it to an agent of the own tenant, or ask for a grant in bus/rules/same_tenant/data.json"
