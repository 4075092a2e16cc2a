"""`eab queue`: messages that have not ended."""

from __future__ import annotations

import typer

from enhanced_agent_bus.cli.render import print_json_lines, print_table
from enhanced_agent_bus.cli.session import session_of

STATES = ("queued", "in_flight", "retrying", "parked", "held", "handed_over")
app = typer.Typer(help="Messages that wait.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Messages that wait."""


@app.command("list")
def list_(context: typer.Context) -> None:
    """List what waits, oldest first; reads only.

    Example: eab queue list
    """
    from enhanced_agent_bus.cli.reading_messages import waiting

    session = session_of(context)
    rows = waiting(session.existing_home(), STATES)
    if session.json:
        print_json_lines(rows)
        return
    names = ("message_id", "sender", "recipient", "type", "priority", "state", "attempts", "since", "due")
    columns = [name.replace("_", " ") for name in names]
    print_table(
        columns, [[row[name] for name in names] for row in rows], empty="nothing waits: every message has ended"
    )
