"""`eab run`: opens the bus with the agents of an application; sends lines to the end, or serves until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.session import session_of

FAIL_ON = ("refused", "bad-line")


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("run")(run)


def run(
    context: typer.Context,
    app: Annotated[str, typer.Argument(metavar="APP", help="module:function or file.py:function.")],
    *,
    input: Annotated[
        str | None, typer.Option("--input", metavar="FILE", help="JSON lines to send, - for standard input.")
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="Fix the clock that policies see (RFC 3339).")] = None,
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="refused|bad-line", help="Exit 1 when there was one.")
    ] = None,
    constitution: Annotated[Path | None, typer.Option(metavar="PATH", help="The constitution to start under.")] = None,
) -> int:
    """Run an application: send it lines, or serve.

    With --input it ends when every line has; without, it serves until SIGTERM or Ctrl-C and then drains.

    Example: eab run app.py:build --input messages.jsonl
    """
    import asyncio

    from enhanced_agent_bus.cli.runs.carry import Plan, carry_out, read_time
    from enhanced_agent_bus.cli.runs.loading import App
    from enhanced_agent_bus.cli.runs.summary import exit_status, show
    from enhanced_agent_bus.observe.sdk import telemetry

    session = session_of(context)
    wanted = tuple(fail_on or ())
    if not set(wanted) <= set(FAIL_ON):
        raise CliError(f"--fail-on knows {' and '.join(FAIL_ON)}", remedy="say it twice for both")
    fixed = None if at is None else read_time(at)
    plan = Plan(session.home, App(app), source=input, at=fixed, constitution=constitution)
    with telemetry():  # what is said comes before what is left to send to a collector
        result = asyncio.run(carry_out(plan, quiet=session.json))
        show(session, result)
    if result.failure is not None:
        raise result.failure[1]
    return exit_status(result, wanted)
