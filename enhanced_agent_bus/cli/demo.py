"""`eab demo`: the whole road on the shipped sample, in a home of its own, and then its log is verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.render import echo, print_json, safe
from enhanced_agent_bus.cli.session import Session, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.cli.runs.carry import Plan


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("demo")(demo)


def demo(
    context: typer.Context,
    *,
    nats: Annotated[bool, typer.Option("--nats", help="Three nodes over a NATS server, one killed midway.")] = False,
) -> int:
    """Run a working day of a travel desk and verify its log.

    Some hundred messages of two tenants, with honest trouble, in a new temporary home.
    With --nats three nodes and a NATS server of their own, of which one node is killed and started again.

    Example: eab demo
    """
    import asyncio
    import tempfile

    from enhanced_agent_bus.cli.audit import verify as audit
    from enhanced_agent_bus.cli.runs.carry import carry_out, time_text
    from enhanced_agent_bus.cli.runs.summary import document, exit_status, show

    session = session_of(context)
    if nats:
        from enhanced_agent_bus.cli.demo_nodes import demo_of_nodes

        return demo_of_nodes(session)
    home = Path(tempfile.mkdtemp(prefix="eab-demo-")) / "home"
    plan = sample_plan(home)
    if not session.json:
        at = "" if plan.at is None else f", at {time_text(plan.at)}"
        echo(f"the sample of {safe(plan.source)}{at}", error=True)
    result = asyncio.run(carry_out(plan, quiet=session.json))
    if result.failure is not None:
        raise result.failure[1]
    verdict = audit.verify_home(home)
    there = Session(home=home, json=session.json)
    if session.json:
        print_json({**document(home, result), "verify": verdict})
    else:
        show(there, result)
        echo()
        audit.show_verdict(there, verdict)
        echo()
        echo(f"look around in its home: {there.command('status')}")
    if result.signal:
        return exit_status(result, ())
    return faults.DONE if audit.is_fine(verdict) else faults.FOUND


def sample_plan(home: Path) -> Plan:
    """The shipped sample at its own time, under the constitution that comes with it."""
    import json

    from enhanced_agent_bus._share import share_folder
    from enhanced_agent_bus.cli.runs.carry import Plan, read_time
    from enhanced_agent_bus.cli.runs.loading import App

    folder = share_folder("examples") / "travel_desk"
    facts = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    return Plan(
        home=home,
        app=App(f"{folder / 'app.py'}:build"),
        source=str(folder / "messages.jsonl"),
        at=read_time(facts["at"]),
        constitution=share_folder("policies"),
    )
