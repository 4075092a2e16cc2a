"""`eab queue`: messages that have not ended."""

from __future__ import annotations

from typing import Any

import typer

from enhanced_agent_bus.cli.render import print_json_lines, print_table
from enhanced_agent_bus.cli.session import ask_running, session_of

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
    from enhanced_agent_bus.cli.reading.messages import waiting

    session = session_of(context)
    home = session.existing_home()
    rows = waiting(home, STATES)
    if any(row["state"] == "handed_over" for row in rows):
        places = {agent["id"]: agent.get("nodes") or [] for agent in ask_running(home, "agents") or []}
        rows = [row | {"nodes": places.get(row["recipient"], [])} for row in rows]
    if session.json:
        print_json_lines(rows)
        return
    names = ("message_id", "sender", "recipient", "type", "priority", "state", "attempts", "since", "due")
    shown = [[*(row[name] for name in names), *_place(row)] for row in rows]
    columns = [*(name.replace("_", " ") for name in names), *(["to node"] if rows and "nodes" in rows[0] else [])]
    print_table(columns, shown, empty="nothing waits: every message has ended")


def _place(row: dict[str, Any]) -> list[str]:
    """Which node has what was handed over, where a running bus knows."""
    if "nodes" not in row:
        return []
    return [(", ".join(row["nodes"]) or "not known just now") if row["state"] == "handed_over" else ""]
