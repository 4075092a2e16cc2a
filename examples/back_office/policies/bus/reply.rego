# METADATA
# title: Replies
# description: |
#   A reply goes back to the agent whose message is being handled. The bus vouches for
#   `cause`, so a reply cannot be claimed: an agent has a cause only when it was sent
#   that message. Rules use this to let an answer through where the question was allowed.
package bus.reply

types := {"response", "task_response", "governance_response"}

default expected := false

expected if {
	input.message.type in types
	is_string(input.cause.sender)
	is_string(input.cause.tenant)
	input.cause.sender == input.recipient.id
	input.cause.tenant == input.recipient.tenant
}
