"""`eab audit`, a module a command or two; `verify` has the group. What is known of logs is in the room `audit`."""
