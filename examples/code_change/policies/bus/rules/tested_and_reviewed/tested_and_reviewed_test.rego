package bus.rules.tested_and_reviewed_test

import data.bus.rules.tested_and_reviewed

settings := {"capability": "production", "says": {"tester": "passed", "reviewer": "approved"}}

to_deployer(payload, facts) := {
	"message": {"type": "task_request", "payload": payload},
	"sender": {"id": "changes", "roles": []},
	"recipient": {"id": "deployer", "capabilities": ["production"]},
	"facts": {"conversation": facts},
}

said(roles, payload) := {
	"message": {"type": "task_response", "payload": payload},
	"sender": {"id": "somebody", "roles": roles},
	"recipient": {"id": "changes", "capabilities": []},
	"facts": {"conversation": {}},
}

test_what_was_tested_and_reviewed_goes_live if {
	tested_and_reviewed.admit with input as to_deployer({"deploy": "c1"}, {"passed": ["c1"], "approved": ["c0", "c1"]})
		with data.bus.rules.tested_and_reviewed.settings as settings
}

test_nothing_else_does if {
	every facts in [{}, {"passed": ["c1"]}, {"approved": ["c1"]}, {"passed": ["c1"], "approved": ["c2"]}] {
		not tested_and_reviewed.admit with input as to_deployer({"deploy": "c1"}, facts)
			with data.bus.rules.tested_and_reviewed.settings as settings
	}
	not tested_and_reviewed.admit with input as {}
}

test_taking_back_needs_no_test_and_nothing_rides_on_it if {
	tested_and_reviewed.admit with input as to_deployer({"take_back": "c1"}, {})
		with data.bus.rules.tested_and_reviewed.settings as settings
	not tested_and_reviewed.admit with input as to_deployer({"take_back": "c1", "deploy": "c2"}, {})
		with data.bus.rules.tested_and_reviewed.settings as settings
}

test_other_agents_take_anything if {
	tested_and_reviewed.admit with input as said(["tester"], {"commit": "c1", "passed": true})
		with data.bus.rules.tested_and_reviewed.settings as settings
}

test_a_yes_is_remembered_from_whom_it_counts if {
	tested_and_reviewed.remember == {{"scope": "conversation", "key": "passed", "value": "c1"}}
		with input as said(["tester"], {"commit": "c1", "passed": true, "approved": true})
		with data.bus.rules.tested_and_reviewed.settings as settings
}

test_a_no_and_a_stranger_are_not if {
	every roles, payload in {
		["tester"]: {"commit": "c1", "passed": false},
		["architect"]: {"commit": "c1", "passed": true},
	} {
		tested_and_reviewed.remember == set() with input as said(roles, payload)
			with data.bus.rules.tested_and_reviewed.settings as settings
	}
}
