# METADATA
# title: Some things are done only while somebody is there
# description: |
#   payload.action names what a command or task request asks for. Actions listed in data.json are
#   done on their weekdays (Monday 1 to Sunday 7) from `from_hour` until before `to_hour`,
#   all in UTC; actions that are not listed, at any time. The clock is the bus's, not the
#   message's.
package bus.rules.office_hours

import data.bus.rules.office_hours.settings

default admit := false

admit if {
	is_string(input.message.type)
	not input.message.type in settings.types
}

admit if {
	input.message.type in settings.types
	is_string(action)
	not settings.windows[action]
}

admit if {
	window := settings.windows[action]
	input.clock.weekday in window.weekdays
	is_number(input.clock.hour)
	input.clock.hour >= window.from_hour
	input.clock.hour < window.to_hour
}

# No action is none that is listed.
default action := ""

action := input.message.payload.action

default code := "action_unclear"

code := "outside_hours" if settings.windows[action]

default message := "payload.action is not a text"

message := sprintf("%s is done from %v to %v o'clock (UTC) on the weekdays %v (Monday is 1)", [
	action,
	window.from_hour,
	window.to_hour,
	window.weekdays,
]) if {
	window := settings.windows[action]
}

default remedy := "give payload.action as a text"

remedy := "send it again in those hours" if settings.windows[action]
