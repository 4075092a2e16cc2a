"""The command line: a module a command, and a folder where there are many or one is long. Nothing below imports it.

`audit`, `policy` and `runs` are commands, `reading` is what they read in a home.
`main` is the entry point of `eab`; what commands share is in `session` (home, output), `faults` (errors) and `render`.
"""

from enhanced_agent_bus.cli.app import main

__all__ = ["main"]
