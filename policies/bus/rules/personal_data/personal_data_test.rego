package bus.rules.personal_data_test

import data.bus.rules.personal_data

clearance := {"cleared_roles": ["records"], "fields": ["passport", "phone"]}

message(roles, payload) := {
	"message": {"type": "command", "payload": payload},
	"recipient": {"id": "notes", "roles": roles},
}

test_the_cleared_may_get_it if {
	personal_data.admit with input as message(["worker", "records"], {"passport": "SAMPLE-1"})
		with data.bus.rules.personal_data.settings as clearance
}

test_others_may_not if {
	not personal_data.admit with input as message(["worker"], {"passport": "SAMPLE-1"})
		with data.bus.rules.personal_data.settings as clearance
}

test_what_is_not_personal_goes_to_everyone if {
	personal_data.admit with input as message(["worker"], {"trip": 7, "note": "passport was checked"})
		with data.bus.rules.personal_data.settings as clearance
}

test_it_is_found_at_any_depth_and_in_any_case if {
	every payload in [
		{"traveller": {"passport": "SAMPLE-1"}},
		{"travellers": [{"trip": 7}, {"PassPort": "SAMPLE-1"}]},
		{"PHONE": "000"},
		{"passport": false},
		{"passport": null},
	] {
		not personal_data.admit with input as message(["worker"], payload)
			with data.bus.rules.personal_data.settings as clearance
	}
}

test_missing_fields_end_in_no if {
	not personal_data.admit with input as {}
	not personal_data.admit with input as {"recipient": {"id": "notes", "roles": ["worker"]}}
	not personal_data.admit with input as message(["worker"], "passport")
}

test_the_refusal_names_fields_and_no_values if {
	said := personal_data.message with input as message(["worker"], {"Phone": "000", "a": {"passport": "SAMPLE-1"}})
		with data.bus.rules.personal_data.settings as clearance
	said == "notes is not cleared for personal data, and the payload has passport, phone"
	personal_data.code == "not_cleared"
	personal_data.remedy
}
