"""`eab audit tail`, `search`, `show`, `population` and `sample`: reads only; `show --payload` is recorded."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import echo, print_json, print_pairs, print_table, safe
from enhanced_agent_bus.cli.session import Json, Session, note_access, session_of

FOLLOW_SECONDS = 0.5
#: How many names of one kind a person is shown.
NAMES_SHOWN_MAX: Final = 20
#: What is shown of the kinds that have no line of their own.
SHORT_FIELDS = (
    *("event", "act", "approver", "message_id", "rules", "agent", "tenant", "digest", "revision"),
    *("scope", "owner", "key", "value", "command", "what", "basis", "counts", "by", "reason", "why"),
    *("origin", "witness", "size", "vkey"),
)
_NOTHING: Final[tuple[Any, ...]] = (None, "", [], {})
#: Words that begin with a minus and are no options: `-verdict:allow`, `-"two words"`, a whole query.
_NEGATED: Final = re.compile(r'-[A-Za-z_][A-Za-z0-9_.]*:.*|-".*|-.*\s.*', re.DOTALL)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[QUERY]", show_default=False, help="field:value, -field:value, or words; see search."),
]


class WithQuery(TyperCommand):
    """A command of which words that begin with a minus may be terms of a query."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts them behind a `--`, where nothing is taken for an option."""
        front = args[: args.index("--")] if "--" in args else args
        negated = [word for word in front if _NEGATED.fullmatch(word)]
        kept = [word for word in front if not _NEGATED.fullmatch(word)]
        return super().parse_args(ctx, [*kept, "--", *negated, *args[len(front) + 1 :]])


def add_to(app: typer.Typer) -> None:
    """Makes the commands known."""
    app.command()(tail)
    app.command(cls=WithQuery)(search)
    app.command()(show)
    app.command(cls=WithQuery)(population)
    app.command(cls=WithQuery)(sample)


def tail(
    context: typer.Context,
    *,
    number: Annotated[int, typer.Option("-n", "--number", metavar="N", min=1, help="How many records.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
) -> None:
    """Show the newest records.

    Example: eab audit tail -n 5
    """
    from enhanced_agent_bus.cli.reading.log import newest_records, records_from

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
    words: Words = None,
    *,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Not before: a time, a date, 24h.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before: a time, a date, 24h.")] = None,
    number: Annotated[int, typer.Option("-n", "--number", metavar="N", min=1, help="At most N records.")] = 100,
    oldest: Annotated[bool, typer.Option("--oldest", help="The oldest N, not the newest.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Only how many match.")] = False,
) -> None:
    """Find records; every term must match.

    Terms are field:value with the fields of records (verdict, code, state, conversation, type, ...) and agent, rule,
    since, until, day; a star stands for anything, a minus in front for what is not so, >=10 compares; any other word
    stands somewhere in the record.

    Example: eab audit search 'agent:desk* verdict:refuse -rule:same_tenant since:24h'
    """
    from enhanced_agent_bus.cli.progress import Scanning
    from enhanced_agent_bus.cli.reading.log import Search, query_of

    session = session_of(context)
    query = query_of(words or (), since=since, until=until)
    with Scanning(quiet=session.json) as scanning:
        looked = Search(session.existing_home(), query, told=scanning.update)
        if count:
            found = sum(1 for _ in looked.oldest())
        else:
            records = islice(looked.oldest(), number) if oldest else looked.newest_in_order(number)
            found = _show_records(session, scanning.until_first(records))
    if count and session.json:
        print_json({"query": str(query), "size": looked.size, "count": found})
    elif count:
        echo(str(found))
    elif not session.json and not found:
        echo("no record matches")


def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="SEQ|ID", help="A seq, a message or a decision.")],
    *,
    payload: Annotated[bool, typer.Option("--payload", help="Show what stands apart from records; recorded.")] = False,
    timeline: Annotated[
        bool | None,
        typer.Option("--timeline/--records", show_default=False, help="The life of the message, or its records."),
    ] = None,
) -> None:
    """Show one record, or the life of a message: sent, decided and why, tried, ended, what came of it.

    A seq shows its record. As JSON an id gives its records, one a line, and with --timeline one document.

    Example: eab audit show 17
    """
    from enhanced_agent_bus.cli.audit.timeline import show_timeline, timeline_of
    from enhanced_agent_bus.cli.reading.home import SHOW_REMEDY
    from enhanced_agent_bus.cli.reading.log import records_named

    session = session_of(context)
    home = session.existing_home()
    records = records_named(home, name, content=False)
    if not records:
        raise unknown_id(f"there is no record {name!r}", SHOW_REMEDY)
    if payload:
        note_access(session, "audit show", name)
        records = records_named(home, name, content=True)
    as_timeline = timeline if timeline is not None else not (session.json or name.isdecimal())
    if as_timeline and (about := records[0].get("message_id")) is not None:
        document = timeline_of(home, about, content=payload)
        print_json(document) if session.json else show_timeline(session, document)
        return
    for record in records:
        if session.json:
            print_json(record)
        else:
            _show_whole(record)


def population(context: typer.Context, words: Words = None) -> None:
    """Count what there is to sample from: by kind, verdict, code, rule, sender, who to whom, tenant, type and day.

    Below, the rules of the constitutions that decided which refused and held none of it.

    Example: eab audit population 'kind:decision since:2026-11-01 until:2026-12-01'
    """
    from enhanced_agent_bus.audit.sample import COUNTED, Population
    from enhanced_agent_bus.cli.progress import Scanning
    from enhanced_agent_bus.cli.reading.log import Search, query_of

    session = session_of(context)
    query = query_of(words or ())
    counts = Population()
    with Scanning(quiet=session.json) as scanning:
        looked = Search(session.existing_home(), query, told=scanning.update)
        for record in looked.oldest():
            counts.add(record)
    document = counts.document()
    silent, unknown = _silent(session.home, counts.constitutions, document["rule"])
    if session.json:
        told = {"query": str(query), "size": looked.size, "population": counts.size}
        print_json({**told, **document, "silent_rules": silent, "constitutions_not_kept": unknown})
        return
    print_pairs({"query": str(query) or "all records", "log": looked.size, "population": counts.size})
    for name in COUNTED:
        if document[name]:
            echo()
            rows = list(document[name].items())
            print_table((name, "records"), rows[:NAMES_SHOWN_MAX])
            if len(rows) > NAMES_SHOWN_MAX:
                echo(f"and {len(rows) - NAMES_SHOWN_MAX} more; --json has them all")
    if silent:
        echo()
        echo(safe(f"rules that refused and held none of these: {', '.join(silent)}"))
    for digest in unknown:
        echo(f"the rules of {digest} are not known: its files are not in the home")


def _silent(home: Path, constitutions: Iterable[str], spoke: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Rules of these constitutions that are not among those that spoke, and those of which no files are kept."""
    from enhanced_agent_bus.cli.audit.timeline import kept_files, rules_of

    files = {digest: kept_files(home, digest) for digest in sorted(constitutions)}
    rules = {rule for kept in files.values() if kept is not None for rule in rules_of(kept)}
    return sorted(rules - set(spoke)), [digest for digest, kept in files.items() if kept is None]


def sample(
    context: typer.Context,
    words: Words = None,
    *,
    seed: Annotated[str, typer.Option("--seed", metavar="S", help="Any text; the same one draws the same sample.")],
    number: Annotated[int, typer.Option("-n", "--n", metavar="N", min=1, help="How many.")] = 40,
    size: Annotated[
        int | None, typer.Option("--size", metavar="N", min=0, help="Of the first N records of the log only.")
    ] = None,
) -> None:
    """Draw a random sample of the records that match, which anybody can draw again.

    It is the N records with the smallest sha256 of the text SEED:SEQ. --size draws from the log as it was then.

    Example: eab audit sample 'kind:decision verdict:allow' --n 40 --seed 2026-Q4
    """
    from enhanced_agent_bus.audit.sample import METHOD, draw
    from enhanced_agent_bus.cli.progress import Scanning
    from enhanced_agent_bus.cli.reading.log import Search, query_of, records_named

    if not seed.strip():
        raise CliError("--seed is empty", remedy="choose any words that nobody could know before the log was written")
    session = session_of(context)
    home = session.existing_home()
    query = query_of(words or ())
    matching = 0

    def seqs() -> Iterable[int]:
        nonlocal matching
        for record in looked.oldest():
            matching += 1
            yield record["seq"]

    with Scanning(quiet=session.json) as scanning:
        looked = Search(home, query, size=size, told=scanning.update)
        drawn = draw(seqs(), seed=seed, number=number)
    rows = [
        {name: record.get(name) for name in ("seq", "kind", "at", "message_id", "decision_id")} | {"lot": lot}
        for lot, seq in drawn
        for record in records_named(home, str(seq), content=False)
    ]
    document = {"method": METHOD, "seed": seed, "query": str(query), "size": looked.size, "population": matching}
    if session.json:
        print_json({**document, "sample": rows})
        return
    print_pairs({**document, "query": str(query) or "all records", "sample": len(rows)})
    echo()
    columns = ("seq", "at", "kind", "id", "lot")
    names = ("seq", "at", "kind", "message_id", "lot")
    print_table(columns, [[row[name] for name in names] for row in rows], empty="no record matches")


def _reader_left_within(seconds: float) -> bool:
    """Waits; True as soon as nobody can read standard output any more, even while there is nothing to write."""
    import select

    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always told
    return bool(watch.poll(seconds * 1000))


def _show_records(session: Session, records: Iterable[Mapping[str, Json]]) -> int:
    """Returns how many they were."""
    count = 0
    for record in records:
        count += 1
        if session.json:
            print_json(record)
        else:
            echo(safe(f"{record['seq']:>7}  {record['at']}  {record['kind']:<10}  {in_short(record)}"))
    return count


def in_short(record: Mapping[str, Json]) -> str:
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
    return ", ".join(f"{name} {_in_words(record[name])}" for name in SHORT_FIELDS if record.get(name) not in _NOTHING)


def _in_words(value: Json) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_in_words(inside)}" for name, inside in value.items())
    return " and ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


def _show_whole(record: Mapping[str, Json]) -> None:
    import json

    echo(f"{record['seq']} {record['kind']}")
    rest = {name: value for name, value in record.items() if name not in ("seq", "kind")}
    for line in json.dumps(rest, indent=2).splitlines()[1:-1]:
        echo(safe(line))
