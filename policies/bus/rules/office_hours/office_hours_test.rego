package bus.rules.office_hours_test

import data.bus.rules.office_hours

hours := {
	"types": ["command", "task_request"],
	"windows": {
		"sign_contract": {"weekdays": [1, 2, 3, 4, 5], "from_hour": 8, "to_hour": 18},
		"reprice_all": {"weekdays": [7], "from_hour": 20, "to_hour": 24},
	},
}

message(type, payload, weekday, hour) := {
	"message": {"type": type, "payload": payload},
	"clock": {"weekday": weekday, "hour": hour},
}

sign(weekday, hour) := message("command", {"action": "sign_contract"}, weekday, hour)

test_inside_the_hours if {
	every hour in [8, 12, 17] {
		office_hours.admit with input as sign(3, hour) with data.bus.rules.office_hours.settings as hours
	}
}

test_outside_the_hours if {
	every hour in [0, 7, 18, 23] {
		not office_hours.admit with input as sign(3, hour) with data.bus.rules.office_hours.settings as hours
	}
}

test_not_at_the_weekend if {
	not office_hours.admit with input as sign(6, 12) with data.bus.rules.office_hours.settings as hours
}

test_a_window_may_end_at_midnight if {
	office_hours.admit with input as message("command", {"action": "reprice_all"}, 7, 23)
		with data.bus.rules.office_hours.settings as hours
}

test_other_actions_are_done_at_any_time if {
	office_hours.admit with input as message("command", {"action": "book"}, 7, 3)
		with data.bus.rules.office_hours.settings as hours
	office_hours.admit with input as message("command", {"trip": 7}, 7, 3)
		with data.bus.rules.office_hours.settings as hours
}

test_talking_about_an_action_is_not_doing_it if {
	office_hours.admit with input as message("query", {"action": "sign_contract"}, 7, 3)
		with data.bus.rules.office_hours.settings as hours
}

test_an_action_that_is_no_text_is_refused if {
	every action in [null, true, false, 7, ["sign_contract"], {"sign_contract": true}] {
		not office_hours.admit with input as message("command", {"action": action}, 3, 12)
			with data.bus.rules.office_hours.settings as hours
	}
}

test_missing_fields_end_in_no if {
	not office_hours.admit with input as {} with data.bus.rules.office_hours.settings as hours
	timeless := {"message": {"type": "command", "payload": {"action": "sign_contract"}}}
	not office_hours.admit with input as timeless with data.bus.rules.office_hours.settings as hours
	hourless := object.union(timeless, {"clock": {"weekday": 3, "hour": null}})
	not office_hours.admit with input as hourless with data.bus.rules.office_hours.settings as hours
}

test_the_refusal_says_when if {
	said := office_hours.message with input as sign(6, 12) with data.bus.rules.office_hours.settings as hours
	said == "sign_contract is done from 8 to 18 o'clock (UTC) on the weekdays [1, 2, 3, 4, 5] (Monday is 1)"
	code := office_hours.code with input as sign(6, 12) with data.bus.rules.office_hours.settings as hours
	code == "outside_hours"
}

test_the_refusal_asks_for_a_text if {
	odd := message("command", {"action": 7}, 3, 12)
	code := office_hours.code with input as odd with data.bus.rules.office_hours.settings as hours
	code == "action_unclear"
	remedy := office_hours.remedy with input as odd with data.bus.rules.office_hours.settings as hours
	remedy == "give payload.action as a text"
}
