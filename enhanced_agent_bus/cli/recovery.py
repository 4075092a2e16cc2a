"""`eab recovery`: what failed and is to be tried again; pause, resume and cancel it."""

from __future__ import annotations

from typing import Annotated

import typer

from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import echo, print_json, print_json_lines, print_table, safe
from enhanced_agent_bus.cli.session import ask_running, change, session_of

STATES = ("pending", "waiting", "retrying", "succeeded", "failed", "cancelled")
LIST_REMEDY = "`eab recovery list` shows what can be paused, resumed and cancelled"
MessageId = Annotated[str, typer.Argument(metavar="ID", help="The message's id, as `eab recovery list` shows it.")]
MaybeId = Annotated[
    str | None, typer.Argument(metavar="[ID]", show_default=False, help="One message; without it, all of them.")
]

app = typer.Typer(help="Messages that failed and are tried again.", rich_markup_mode=None)


@app.command("list")
def list_(
    context: typer.Context,
    *,
    state: Annotated[str | None, typer.Option(metavar="STATE", help=f"Only {', '.join(STATES)}.")] = None,
) -> None:
    """List what is tried again; reads only.

    What is over is shown by a running bus, as long as it runs.

    Example: eab recovery list --state waiting
    """
    from enhanced_agent_bus.cli.reading.messages import recoveries

    if state is not None and state not in STATES:
        raise CliError(f"--state {state!r} is none of {', '.join(STATES)}", remedy="leave it out to see them all")
    session = session_of(context)
    home = session.existing_home()
    rows = ask_running(home, "recoveries")
    if rows is None:
        rows = recoveries(home)
    rows = [row for row in rows if state in (None, row["state"])]
    if session.json:
        print_json_lines(rows)
        return
    names = ("message_id", "sender", "recipient", "priority", "attempts", "code", "error", "state", "due")
    columns = [name.replace("_", " ") for name in names]
    print_table(columns, [[row[name] for name in names] for row in rows], empty="nothing that failed is tried again")


@app.command()
def pause(context: typer.Context, message_id: MaybeId = None) -> None:
    """Hold back what is tried again, or one message.

    New messages still run; after a restart the pause holds on.

    Example: eab recovery pause
    """
    _act(context, "pause", message_id, "paused")


@app.command()
def resume(context: typer.Context, message_id: MaybeId = None) -> None:
    """Go on with all, or with one message at once.

    It is decided anew before its handler runs.

    Example: eab recovery resume desk/order-7
    """
    _act(context, "resume", message_id, "resumed")


@app.command()
def cancel(context: typer.Context, message_id: MessageId) -> None:
    """Try one message no more: it becomes a dead letter.

    Example: eab recovery cancel desk/order-7
    """
    _act(context, "cancel", message_id, "cancelled")


def _act(context: typer.Context, verb: str, message_id: str | None, done: str) -> None:
    session = session_of(context)
    try:
        change(session, f"recovery_{verb}", {"id": message_id})
    except KeyError as error:
        raise unknown_id(str(error.args[0]), LIST_REMEDY) from None
    if session.json:
        print_json({"message_id": message_id, "event": done})
    elif message_id is None:
        echo(f"{done}: what failed is {'held back' if verb == 'pause' else 'tried again'}")
    else:
        echo(f"{done} {safe(message_id)}")
