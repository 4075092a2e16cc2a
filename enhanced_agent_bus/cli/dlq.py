"""`eab dlq`: dead letters. They stay until a replay, which is a new decision, is allowed, or they are discarded."""

from __future__ import annotations

from typing import Annotated

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import (
    compact,
    echo,
    print_json,
    print_json_lines,
    print_pairs,
    print_table,
    quoted,
    safe,
)
from enhanced_agent_bus.cli.session import change, note_access, session_of

MessageId = Annotated[str, typer.Argument(metavar="ID", help="The message's id, as `eab dlq list` shows it.")]
LIST_REMEDY = "`eab dlq list` shows the dead letters"

app = typer.Typer(help="Dead letters: list, show, replay, discard.", rich_markup_mode=None)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the dead letters; reads only.

    Example: eab dlq list
    """
    from enhanced_agent_bus.cli.reading import dead_letters

    session = session_of(context)
    rows = dead_letters(session.existing_home())
    if session.json:
        print_json_lines(rows)
        return
    names = ("message_id", "sender", "recipient", "type", "code", "attempts", "error", "since")
    columns = [name.replace("_", " ") for name in names]
    print_table(columns, [[row[name] for name in names] for row in rows], empty="there are no dead letters")


@app.command()
def show(
    context: typer.Context,
    message_id: MessageId,
    *,
    payload: Annotated[bool, typer.Option("--payload", help="Show payload and headers; recorded.")] = False,
) -> None:
    """Show one dead letter.

    Reads only, but for --payload, which is recorded.

    Example: eab dlq show desk/order-7
    """
    from enhanced_agent_bus.cli.reading import content, dead_letters

    session = session_of(context)
    home = session.existing_home()
    found = next((row for row in dead_letters(home) if row["message_id"] == message_id), None)
    if found is None:
        raise unknown_id(f"there is no dead letter {message_id!r}", LIST_REMEDY)
    if payload:
        note_access(session, "dlq show", message_id)
        found = found | content(home, message_id)
    if session.json:
        print_json(found)
    else:
        print_pairs((name.replace("_", " "), compact(v) if isinstance(v, dict) else v) for name, v in found.items())
        echo()
        echo(f"its records:       {session.command(f'audit show {quoted(message_id)}')}")
        echo(f"decide it again:   {session.command(f'dlq replay {quoted(message_id)}')}")
        echo(f"or end it:         {session.command(f'dlq discard {quoted(message_id)} --reason TEXT')}")


@app.command()
def replay(context: typer.Context, message_id: MessageId) -> int:
    """Decide a dead letter anew.

    When that allows it, it is queued again.

    Example: eab dlq replay desk/order-7
    """
    session = session_of(context)
    try:
        receipt = change(session, "replay", {"id": message_id})
    except KeyError:
        raise unknown_id(f"there is no dead letter {message_id!r}", LIST_REMEDY) from None
    if session.json:
        print_json(receipt)
    else:
        code = f" ({receipt['code']})" if receipt["code"] else ""
        echo(f"{receipt['state']}{code}: {safe(message_id)}, audit seq {receipt['audit_seq']}")
        for reason in receipt["reasons"]:
            echo(safe(f"  {reason['rule']}: {reason['message'] or reason['code']}"))
    return faults.FOUND if receipt["state"] == "refused" else faults.DONE


@app.command()
def discard(
    context: typer.Context,
    message_id: MessageId,
    *,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; recorded.")],
) -> None:
    """End a dead letter for good; recorded with the reason.

    Example: eab dlq discard desk/order-7 --reason "ordered by telephone"
    """
    if not reason.strip():
        raise CliError("--reason is empty", remedy="say why in a few words: the log keeps it")
    session = session_of(context)
    try:
        change(session, "discard", {"id": message_id, "reason": reason})
    except KeyError:
        raise unknown_id(f"there is no dead letter {message_id!r}", LIST_REMEDY) from None
    if session.json:
        print_json({"message_id": message_id, "state": "discarded"})
    else:
        echo(f"discarded {safe(message_id)}")
