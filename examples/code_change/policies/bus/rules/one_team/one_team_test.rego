package bus.rules.one_team_test

import data.bus.rules.one_team

test_a_team_works_together if {
	one_team.admit with input as {"sender": {"tenant": "acme"}, "recipient": {"tenant": "acme"}}
}

test_two_teams_do_not if {
	not one_team.admit with input as {"sender": {"tenant": "acme"}, "recipient": {"tenant": "globex"}}
	not one_team.admit with input as {"sender": {"tenant": "acme"}, "recipient": {}}
	not one_team.admit with input as {}
}
