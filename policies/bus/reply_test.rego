package bus.reply_test

import data.bus.reply

answer := {
	"message": {"type": "response"},
	"sender": {"id": "booker", "tenant": "acme"},
	"recipient": {"id": "desk", "tenant": "acme"},
	"cause": {"id": "q", "type": "query", "sender": "desk", "tenant": "acme"},
}

test_an_answer_goes_back_to_who_asked if {
	reply.expected with input as answer
}

test_each_part_is_needed if {
	every odd in [
		{"message": {"type": "command"}},
		{"recipient": {"id": "notes"}},
		{"recipient": {"tenant": "globex"}},
		{"cause": {"sender": null}, "recipient": {"id": null}},
		{"cause": {"tenant": null}, "recipient": {"tenant": null}},
	] {
		not reply.expected with input as object.union(answer, odd)
	}
}

test_without_a_cause_there_is_no_answer if {
	not reply.expected with input as object.remove(answer, ["cause"])
	not reply.expected with input as {}
}
