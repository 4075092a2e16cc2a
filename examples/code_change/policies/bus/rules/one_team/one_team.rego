# METADATA
# title: A team keeps to itself
# description: Sender and recipient belong to one tenant.
package bus.rules.one_team

default admit := false

admit if {
	is_string(input.sender.tenant)
	input.sender.tenant == input.recipient.tenant
}

code := "other_team"

message := "the recipient belongs to another team"

remedy := "ask somebody of your own team"
