package bus.rules.secret_stays_home_test

import data.bus.rules.secret_stays_home

places := {"sources": ["secrets"], "exits": ["outside_mail"]}

clerk := {"id": "clerk", "tenant": "acme", "capabilities": []}

notes := {"id": "notes", "tenant": "acme", "capabilities": []}

vault := {"id": "vault", "tenant": "acme", "capabilities": ["secrets"]}

mailer := {"id": "mailer", "tenant": "acme", "capabilities": ["outside_mail"]}

foreign := {"id": "globex-flights", "tenant": "globex", "capabilities": []}

clean := {"sender": {"sent": 0}, "recipient": {}, "conversation": {"sent": 0}, "tenant": {}}

labelled(scope) := object.union(clean, {scope: {"labels": ["secret"]}})

message(from, to, facts) := {"sender": from, "recipient": to, "facts": facts}

everywhere := {
	{"scope": "sender", "key": "labels", "value": "secret"},
	{"scope": "recipient", "key": "labels", "value": "secret"},
	{"scope": "conversation", "key": "labels", "value": "secret"},
}

test_without_a_secret_the_road_is_open if {
	every to in [notes, mailer, foreign] {
		secret_stays_home.admit with input as message(clerk, to, clean)
			with data.bus.rules.secret_stays_home.settings as places
	}
}

test_a_labelled_sender_stays_inside if {
	every to in [mailer, foreign] {
		not secret_stays_home.admit with input as message(clerk, to, labelled("sender"))
			with data.bus.rules.secret_stays_home.settings as places
	}
	secret_stays_home.admit with input as message(clerk, notes, labelled("sender"))
		with data.bus.rules.secret_stays_home.settings as places
}

test_a_labelled_conversation_stays_inside if {
	not secret_stays_home.admit with input as message(clerk, mailer, labelled("conversation"))
		with data.bus.rules.secret_stays_home.settings as places
}

test_a_labelled_recipient_does_not_stop_others if {
	secret_stays_home.admit with input as message(clerk, mailer, labelled("recipient"))
		with data.bus.rules.secret_stays_home.settings as places
}

test_asking_for_a_secret_sets_the_label if {
	remembered := secret_stays_home.remember with input as message(clerk, vault, clean)
		with data.bus.rules.secret_stays_home.settings as places
	remembered == everywhere
}

test_the_answer_sets_it_too if {
	remembered := secret_stays_home.remember with input as message(vault, clerk, clean)
		with data.bus.rules.secret_stays_home.settings as places
	remembered == everywhere
}

test_the_label_travels_with_the_data if {
	every scope in ["sender", "conversation"] {
		remembered := secret_stays_home.remember with input as message(clerk, notes, labelled(scope))
			with data.bus.rules.secret_stays_home.settings as places
		remembered == everywhere
	}
}

test_nothing_is_remembered_without_a_secret if {
	remembered := secret_stays_home.remember with input as message(clerk, notes, clean)
		with data.bus.rules.secret_stays_home.settings as places
	remembered == set()
}

test_a_source_itself_sends_nothing_out if {
	not secret_stays_home.admit with input as message(vault, foreign, clean)
		with data.bus.rules.secret_stays_home.settings as places
	not secret_stays_home.admit with input as message(foreign, vault, clean)
		with data.bus.rules.secret_stays_home.settings as places
}

test_a_label_that_is_no_list_is_no_answer if {
	every labels in ["secret", 7, null, true] {
		odd := object.union(clean, {"sender": {"labels": labels}})
		not secret_stays_home.admit with input as message(clerk, mailer, odd)
			with data.bus.rules.secret_stays_home.settings as places
	}
}

test_missing_fields_end_in_no if {
	not secret_stays_home.admit with input as {}
	not secret_stays_home.admit with input as {"sender": clerk, "facts": clean}
	not secret_stays_home.admit with input as message({"tenant": null}, {"tenant": null}, clean)
}

test_the_refusal_says_what_happened if {
	said := secret_stays_home.message with input as message(clerk, mailer, labelled("sender"))
	said == "clerk or this conversation has read a secret, and mailer leads out of tenant acme"
	secret_stays_home.code == "secret_would_leave"
	secret_stays_home.remedy
}
