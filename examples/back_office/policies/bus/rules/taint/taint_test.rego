package bus.rules.taint_test

import data.bus.rules.taint

settings := {"outside": ["web"], "acting": ["payments"]}

case(sender, recipient, labels) := {
	"message": {"type": "command"},
	"sender": {"id": "a", "tenant": "acme", "capabilities": sender},
	"recipient": {"id": "b", "tenant": "acme", "capabilities": recipient},
	"facts": {"sender": labels},
}

test_clean_agents_command_those_who_act if {
	taint.admit with input as case([], ["payments"], {}) with data.bus.rules.taint.settings as settings
}

test_what_came_from_outside_does_not if {
	not taint.admit with input as case(["web"], ["payments"], {}) with data.bus.rules.taint.settings as settings
	not taint.admit with input as case([], ["payments"], {"labels": ["outside"]})
		with data.bus.rules.taint.settings as settings
}

test_the_label_goes_where_the_data_go if {
	label := {{"scope": "recipient", "key": "labels", "value": "outside"}}
	taint.remember == label with input as case(["web"], [], {}) with data.bus.rules.taint.settings as settings
	taint.remember == label with input as case([], [], {"labels": ["outside"]})
		with data.bus.rules.taint.settings as settings
	taint.remember == set() with input as case([], [], {}) with data.bus.rules.taint.settings as settings
}

test_what_is_missing_ends_in_no if {
	not taint.admit with input as {}
	not taint.admit with input as case([], ["payments"], {"labels": 7}) with data.bus.rules.taint.settings as settings
	not taint.admit with input as object.remove(case([], ["payments"], {}), ["sender"])
		with data.bus.rules.taint.settings as settings
}
