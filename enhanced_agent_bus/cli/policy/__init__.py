"""`eab policy`, a module a command or two; `check` has the group. What is known of policies is in `authoring`."""
