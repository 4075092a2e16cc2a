"""The command line: one module a command group. Nothing imports it.

`main` is the entry point of `eab`; what commands share is in `session` (home, output), `faults` (errors) and `render`.
"""

from enhanced_agent_bus.cli.app import main

__all__ = ["main"]
