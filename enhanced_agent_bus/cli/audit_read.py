"""`eab audit tail`, `search` and `show`: reads only; `show --payload` is recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Annotated

import typer

from enhanced_agent_bus.cli.faults import unknown_id
from enhanced_agent_bus.cli.render import echo, print_json, safe
from enhanced_agent_bus.cli.session import Json, Session, note_access, session_of

FOLLOW_SECONDS = 0.5
#: What is shown of the kinds that have no line of their own.
SHORT_FIELDS = (
    *("event", "agent", "tenant", "digest", "revision", "reason"),
    *("scope", "owner", "key", "command", "what", "size"),
)


def add_to(app: typer.Typer) -> None:
    """Makes the commands known."""
    for command in (tail, search, show):
        app.command()(command)


def tail(
    context: typer.Context,
    *,
    number: Annotated[int, typer.Option("-n", "--number", metavar="N", min=1, help="How many records.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
) -> None:
    """Show the newest records.

    Example: eab audit tail -n 5
    """
    from enhanced_agent_bus.cli.reading_log import newest_records, records_from

    session = session_of(context)
    home = session.existing_home()
    records = newest_records(home, number)
    _show_records(session, records)
    last = records[-1]["seq"] if records else -1
    while follow:
        sys.stdout.flush()
        if _reader_left_within(FOLLOW_SECONDS):
            raise BrokenPipeError
        for record in records_from(home, last + 1):
            _show_records(session, [record])
            last = record["seq"]


def search(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help="field:value, or a word anywhere in a record.")],
    *,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Not before (RFC 3339).")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before (RFC 3339).")] = None,
    number: Annotated[int, typer.Option("-n", "--number", metavar="N", min=1, help="The newest N that match.")] = 100,
) -> None:
    """Find records; every word must match.

    Fields are those of a record: kind, sender, recipient, tenant, verdict, code, state, conversation, message_id, ...
    and rule for a reason's rule.

    Example: eab audit search verdict:refuse rule:same_tenant
    """
    from enhanced_agent_bus.cli.reading_log import search_records

    session = session_of(context)
    found = search_records(session.existing_home(), words, since=since, until=until, number=number)
    _show_records(session, found)
    if not session.json and not found:
        echo("no record matches")


def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="SEQ|ID", help="A seq, a message or a decision.")],
    *,
    payload: Annotated[bool, typer.Option("--payload", help="Show what stands apart from records; recorded.")] = False,
) -> None:
    """Show one record, or every record of a message.

    Example: eab audit show 17
    """
    from enhanced_agent_bus.cli.reading import SHOW_REMEDY
    from enhanced_agent_bus.cli.reading_log import records_named

    session = session_of(context)
    home = session.existing_home()
    if payload:
        if not records_named(home, name, content=False):
            raise unknown_id(f"there is no record {name!r}", SHOW_REMEDY)
        note_access(session, "audit show", name)
    records = records_named(home, name, content=payload)
    if not records:
        raise unknown_id(f"there is no record {name!r}", SHOW_REMEDY)
    for record in records:
        if session.json:
            print_json(record)
        else:
            _show_whole(record)


def _reader_left_within(seconds: float) -> bool:
    """Waits; True as soon as nobody can read standard output any more, even while there is nothing to write."""
    import select

    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always told
    return bool(watch.poll(seconds * 1000))


def _show_records(session: Session, records: Iterable[Mapping[str, Json]]) -> None:
    for record in records:
        if session.json:
            print_json(record)
        else:
            echo(safe(f"{record['seq']:>7}  {record['at']}  {record['kind']:<10}  {_in_short(record)}"))


def _in_short(record: Mapping[str, Json]) -> str:
    """What a record says, on one line."""
    kind = record["kind"]
    if kind == "decision":
        code = f" {record['code']}" if record["code"] else ""
        rules = ", ".join(reason["rule"] for reason in record["reasons"] if reason["rule"])
        by = f" by {rules}" if rules else ""
        to = record["recipient"] or record["topic"]  # neither, where it named nobody
        way = f"{record['sender']} to {to}" if to else record["sender"]
        return f"{record['verdict']}{code}{by}: {way}, {record['type']} {record['message_id']}"
    if kind == "outcome":
        code = f" {record['code']}" if record["code"] else ""
        return f"{record['state']}{code}: {record['message_id']}, attempt {record['attempt']}"
    if kind in ("opened", "closed"):
        return f"security state: {', '.join(record['security_state'])}"
    return ", ".join(f"{name} {record[name]}" for name in SHORT_FIELDS if record.get(name) not in (None, "", []))


def _show_whole(record: Mapping[str, Json]) -> None:
    import json

    echo(f"{record['seq']} {record['kind']}")
    rest = {name: value for name, value in record.items() if name not in ("seq", "kind")}
    for line in json.dumps(rest, indent=2).splitlines()[1:-1]:
        echo(line)
