"""`eab dlq`: dead letters. They stay until a replay, which is a new decision, is allowed, or they are discarded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

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
from enhanced_agent_bus.cli.session import Session, change, change_each, note_access, session_of

MessageId = Annotated[str, typer.Argument(metavar="ID", help="The message's id, as `eab dlq list` shows it.")]
HISTORY = ("at", "what", "why", "attempt", "code")
LIST_REMEDY = "`eab dlq list` shows the dead letters"

app = typer.Typer(help="Dead letters: list, show, replay, discard.", rich_markup_mode=None)


@app.command("list")
def list_(
    context: typer.Context,
    *,
    sender: Annotated[str | None, typer.Option(metavar="AGENT", help="Only those that this agent sent.")] = None,
    recipient: Annotated[str | None, typer.Option(metavar="AGENT", help="Only those for this agent.")] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only those of this type.")] = None,
    code: Annotated[str | None, typer.Option(metavar="CODE", help="Only those that ended with this code.")] = None,
) -> None:
    """List the dead letters; reads only.

    Example: eab dlq list --recipient booker
    """
    session = session_of(context)
    wanted = {"sender": sender, "recipient": recipient, "type": kind, "code": code}
    rows = _chosen(session, wanted)
    if session.json:
        print_json_lines(rows)
        return
    empty = "there are no such dead letters" if any(wanted.values()) else "there are no dead letters"
    names = ("message_id", "sender", "recipient", "type", "code", "attempts", "error", "since")
    columns = [name.replace("_", " ") for name in names]
    print_table(columns, [[row[name] for name in names] for row in rows], empty=empty)


@app.command()
def show(
    context: typer.Context,
    message_id: MessageId,
    *,
    payload: Annotated[bool, typer.Option("--payload", help="Show payload and headers; recorded.")] = False,
) -> None:
    """Show one dead letter, and what was decided about it and became of it, oldest first.

    Reads only, but for --payload, which is recorded.

    Example: eab dlq show desk/order-7
    """
    from enhanced_agent_bus.cli.reading.messages import content, dead_letters, history

    session = session_of(context)
    home = session.existing_home()
    found = next((row for row in dead_letters(home) if row["message_id"] == message_id), None)
    if found is None:
        raise _no_letter(session, message_id)
    if payload:
        note_access(session, "dlq show", message_id)
        found = found | content(home, message_id)
    steps = history(home, message_id)
    if session.json:
        print_json(found | {"history": steps})
    else:
        print_pairs((name.replace("_", " "), compact(v) if isinstance(v, dict) else v) for name, v in found.items())
        echo()
        print_table(HISTORY, [[step[name] for name in HISTORY] for step in steps])
        echo()
        if found["error"]:
            echo(f"what it raised:    {session.command(f'audit show {quoted(message_id)} --payload')}")
        echo(f"its records:       {session.command(f'audit show {quoted(message_id)}')}")
        echo(f"decide it again:   {session.command(f'dlq replay {quoted(message_id)}')}")
        echo(f"or end it:         {session.command(f'dlq discard {quoted(message_id)} --reason TEXT')}")


def _no_letter(session: Session, message_id: str) -> CliError:
    """Also for one that was a dead letter, and was replayed or discarded meanwhile."""
    from enhanced_agent_bus.cli.reading.messages import state_of

    state = state_of(session.existing_home(), message_id)
    if state is None:
        return unknown_id(f"there is no dead letter {message_id!r}", LIST_REMEDY)
    remedy = f"{session.command('audit show ' + quoted(message_id))} tells its life; {LIST_REMEDY}"
    return unknown_id(f"{message_id!r} is no dead letter: it is {state.replace('_', ' ')} now", remedy)


def _chosen(session: Session, wanted: Mapping[str, str | None]) -> list[dict[str, Any]]:
    from enhanced_agent_bus.cli.reading.messages import dead_letters

    rows = dead_letters(session.existing_home())
    return [row for row in rows if all(value in (None, row[name]) for name, value in wanted.items())]


@app.command()
def replay(
    context: typer.Context,
    message_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", show_default=False, help="One message, as `eab dlq list` shows it.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All of them, or all that the options below choose.")] = False,
    sender: Annotated[str | None, typer.Option(metavar="AGENT", help="With --all: that this agent sent.")] = None,
    recipient: Annotated[str | None, typer.Option(metavar="AGENT", help="With --all: for this agent.")] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="With --all: of this type.")] = None,
    code: Annotated[str | None, typer.Option(metavar="CODE", help="With --all: that ended with this code.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="N", help="With --all: at most so many a second.")] = None,
) -> int:
    """Decide dead letters anew.

    What that allows is queued again; what it refuses stays where it is. With --all each is told as it comes, and
    Ctrl-C leaves the rest where it is.

    Example: eab dlq replay desk/order-7
    """
    session = session_of(context)
    wanted = {"sender": sender, "recipient": recipient, "type": kind, "code": code}
    if every == (message_id is not None) or (not every and (rate is not None or any(wanted.values()))):
        raise CliError("give either an id, or --all and what to choose", remedy=LIST_REMEDY)
    if rate is not None and not rate > 0:
        raise CliError("--rate must be more than 0 a second", remedy="leave it out for no limit")
    if message_id is None:
        return _replay_all(session, [row["message_id"] for row in _chosen(session, wanted)], rate)
    try:
        receipt = change(session, "replay", {"id": message_id})
    except KeyError:
        raise _no_letter(session, message_id) from None
    if session.json:
        print_json(receipt)
    else:
        code = f" ({receipt['code']})" if receipt["code"] else ""
        echo(f"{receipt['state']}{code}: {safe(message_id)}, audit seq {receipt['audit_seq']}")
        for reason in receipt["reasons"]:
            echo(safe(f"  {reason['rule']}: {reason['message'] or reason['code']}"))
    return faults.FOUND if receipt["state"] == "refused" else faults.DONE


def _replay_all(session: Session, ids: list[str], rate: float | None) -> int:
    """Each is told as it comes; an interruption leaves the rest among the dead letters."""
    answers: list[dict[str, Any]] = []

    def heard(answer: dict[str, Any] | KeyError) -> None:
        if isinstance(answer, KeyError):
            answer = {"message_id": ids[len(answers)], "error": str(answer.args[0])}
        answers.append(answer)
        if session.json:
            print_json_lines([answer])
        else:
            why = answer.get("code") or answer.get("error")
            echo(safe(f"{answer.get('state', 'not replayed')}: {answer['message_id']}{f' ({why})' if why else ''}"))
        sys.stdout.flush()  # whoever reads it through a pipe wants to see it now

    if not ids and not session.json:
        echo("there are no such dead letters")
    try:
        change_each(session, "replay", [{"id": message_id} for message_id in ids], heard, rate=rate)
    finally:
        refused = sum(answer.get("state") == "refused" for answer in answers)
        gone = sum("error" in answer for answer in answers)
        if ids and not session.json:
            stay = refused + len(ids) - len(answers)
            _say_in_all(len(answers) - refused - gone, len(ids), stay, gone)
    return faults.FOUND if refused or gone else faults.DONE


def _say_in_all(go_on: int, chosen: int, stay: int, gone: int) -> None:
    said = [f"{go_on} of {chosen} go on" if go_on != 1 else f"1 of {chosen} goes on"]
    if stay:
        said.append("1 stays a dead letter" if stay == 1 else f"{stay} stay dead letters")
    if gone:
        said.append(f"{gone} no longer {'was' if gone == 1 else 'were'} one")
    echo("; ".join(said))


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
        raise _no_letter(session, message_id) from None
    if session.json:
        print_json({"message_id": message_id, "state": "discarded"})
    else:
        echo(f"discarded {safe(message_id)}")
