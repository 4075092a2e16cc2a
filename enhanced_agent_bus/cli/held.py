"""`eab held`: messages that wait for an approval."""

from __future__ import annotations

import typer

from enhanced_agent_bus.cli.render import print_json_lines, print_table
from enhanced_agent_bus.cli.session import session_of

app = typer.Typer(help="Messages that wait for an approval.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Messages that wait for an approval."""


@app.command("list")
def list_(context: typer.Context) -> None:
    """List what is held, by which rule, and whose approval it wants; reads only.

    Example: eab held list
    """
    from enhanced_agent_bus.cli.reading import held

    session = session_of(context)
    rows = held(session.existing_home())
    if session.json:
        print_json_lines(rows)
        return
    print_table(
        ("message id", "sender", "recipient", "type", "since", "held by", "wants"),
        [
            (
                row["message_id"],
                row["sender"],
                row["recipient"],
                row["type"],
                row["since"],
                ", ".join(hold["rule"] for hold in row["hold"]),
                ", ".join(f"{hold['approvers']} of {'/'.join(hold['roles'])}" for hold in row["hold"]),
            )
            for row in rows
        ],
        empty="nothing is held",
    )
