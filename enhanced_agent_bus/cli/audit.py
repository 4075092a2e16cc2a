"""`eab audit`: tail, search, show, verify, checkpoint, export. Reads only; `show --payload` is recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import counted, echo, print_json, print_pairs, safe
from enhanced_agent_bus.cli.session import Json, Session, note_access, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.audit.verify import Report

FOLLOW_SECONDS = 0.5
#: What is shown of the kinds that have no line of their own.
SHORT_FIELDS = (
    *("event", "agent", "tenant", "digest", "revision", "reason"),
    *("scope", "owner", "key", "command", "what", "size"),
)
app = typer.Typer(help="Read, search, verify and export the log.", rich_markup_mode=None)


# --- reading -------------------------------------------------------------------------------------------------------


@app.command()
def tail(
    context: typer.Context,
    *,
    number: Annotated[int, typer.Option("-n", "--number", metavar="N", min=1, help="How many records.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
) -> None:
    """Show the newest records.

    Example: eab audit tail -n 5
    """
    from enhanced_agent_bus.cli.reading import newest_records, records_from

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


@app.command()
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
    from enhanced_agent_bus.cli.reading import search_records

    session = session_of(context)
    found = search_records(session.existing_home(), words, since=since, until=until, number=number)
    _show_records(session, found)
    if not session.json and not found:
        echo("no record matches")


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="SEQ|ID", help="A seq, a message or a decision.")],
    *,
    payload: Annotated[bool, typer.Option("--payload", help="Show what stands apart from records; recorded.")] = False,
) -> None:
    """Show one record, or every record of a message.

    Example: eab audit show 17
    """
    from enhanced_agent_bus.cli.reading import SHOW_REMEDY, records_named

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


# --- verifying -----------------------------------------------------------------------------------------------------


@app.command()
def verify(
    context: typer.Context,
    log: Annotated[Path | None, typer.Argument(metavar="[FILE|HOME]", help="An export or a home.")] = None,
    *,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="One that was kept elsewhere.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The log's vkey, or a PEM.")] = None,
    require_anchor: Annotated[bool, typer.Option("--require-anchor", help="Exit 1 without an outside anchor.")] = False,
) -> int:
    """Recompute a log: integrity, completeness, time.

    Exit 0 when nothing wrong was found; 1 names the first bad seq and what is wrong with it.

    Example: eab audit verify --checkpoint kept-elsewhere.txt
    """
    session = session_of(context)
    path = log if log is not None else session.existing_home()
    if not path.exists():
        raise CliError(f"there is no log at {path}", remedy="name an export or a home", code="file")
    if path.is_dir() and not (path / "home.json").is_file() and not (path / "bus.db").is_file():
        raise CliError(f"{path} is no home", remedy="name a home, or an export", code="no_home")
    vkey = key or (path if path.is_dir() else session.home) / "keys" / "log.vkey"
    report = _verified(path, vkey, checkpoint)
    verdict = asdict(report)
    if session.json:
        print_json(verdict)
    else:
        show_verdict(session, verdict)
    return faults.DONE if is_fine(verdict, require_anchor=require_anchor) else faults.FOUND


def verify_home(home: Path) -> dict[str, Json]:
    """The verdicts on a home, by its own key."""
    return asdict(_verified(home, home / "keys" / "log.vkey", None))


def _verified(path: Path, key_file: Path, checkpoint: Path | None) -> Report:
    from enhanced_agent_bus.audit.several import verify
    from enhanced_agent_bus.audit.verify import Bad, Report, read_key, read_note

    if not key_file.is_file():
        raise CliError(f"there is no key {key_file}", remedy="name the log's vkey with --key FILE", code="file")
    try:
        key = read_key(key_file.read_text())
    except (ValueError, IndexError):
        what = f"{key_file} holds no public key"
        raise CliError(what, remedy="name the log's `keys/log.vkey`, or a PEM of it", code="file") from None
    try:
        outside = None if checkpoint is None else read_note(checkpoint.read_text())
    except ValueError as error:
        raise CliError(f"{checkpoint}: {error}", remedy="`eab audit checkpoint` prints one", code="file") from None
    try:
        return verify(path, key, outside)
    except ValueError as error:  # a checkpoint that was kept elsewhere, and another key: this is another log
        report = Report()
        report.blame("integrity", Bad(0, max(outside.size - 1, 0) if outside else 0, None, "replaced", str(error)))
        return report


def is_fine(verdict: Mapping[str, Json], *, require_anchor: bool = False) -> bool:
    """Whether nothing wrong was found; with `require_anchor` also that nothing is unanchored."""
    bad = verdict["first_bad"] is not None or "bad" in (verdict[name] for name in ("integrity", "completeness", "time"))
    return not bad and not (require_anchor and verdict["unanchored"])


def show_verdict(session: Session, verdict: Mapping[str, Json]) -> None:
    """The three verdicts, and what they cannot exclude."""
    lines = _verdict_lines(verdict)
    print_pairs((name, session.named(value) if isinstance(value, str) else value) for name, value in lines)


def _verdict_lines(verdict: Mapping[str, Json]) -> list[tuple[str, Any]]:
    size = verdict["size"]
    lines: list[tuple[str, Any]] = [(name, verdict[name]) for name in ("integrity", "completeness", "time")]
    lines.append(("records", size))
    if verdict["root"]:
        lines.append(("root", verdict["root"]))
    if verdict["checkpoint_size"] is not None:
        lines.append(("checkpoint", f"signed for the first {verdict['checkpoint_size']}"))
    if verdict["unanchored"] == size:
        lines.append(("unanchored", "no outside checkpoint was given: keep one, `eab audit checkpoint` prints it"))
    elif verdict["unanchored"]:
        after = size - verdict["unanchored"] - 1
        lines.append(("unanchored", f"after seq {after}: the outside checkpoint ends there"))
    if verdict["cannot_exclude"]:
        lines.append(("cannot exclude", ", ".join(verdict["cannot_exclude"])))
    if verdict.get("open"):
        lines.append(("open", f"{counted(verdict['open'], 'message')} not ended"))
    if verdict["erased"]:
        lines.append(("erased", verdict["erased"]))
    bad = verdict["first_bad"]
    if bad is not None:
        where = (
            f"seq {bad['seq']}" if bad["seq"] == bad["seq_to"] else f"somewhere in seq {bad['seq']} to {bad['seq_to']}"
        )
        lines.append(("first bad", f"{where}: {bad['damage']}: {bad['why']}"))
    return lines


# --- taking along --------------------------------------------------------------------------------------------------


@app.command()
def checkpoint(context: typer.Context) -> None:
    """Print the newest signed checkpoint.

    Keep it where the home is not.

    Example: eab audit checkpoint > kept-elsewhere.txt
    """
    from enhanced_agent_bus.audit.verify import read_note
    from enhanced_agent_bus.errors import StoreCorrupt

    session = session_of(context)
    home = session.existing_home()
    try:
        text = (home / "checkpoint").read_text(encoding="utf-8")
        note = read_note(text)
    except (FileNotFoundError, ValueError):
        remedy = "`eab audit verify` says what the log itself still proves"
        raise StoreCorrupt(f"the home {home} has no readable checkpoint", remedy=remedy) from None
    if session.json:
        print_json({"origin": text.partition("\n")[0], "size": note.size, "root": note.root.hex(), "note": text})
    else:
        sys.stdout.write(text)


@app.command()
def export(
    context: typer.Context,
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Else standard output.")] = None,
) -> None:
    """Write every stored record, byte for byte, one a line.

    Example: eab audit export -o log.jsonl
    """
    from enhanced_agent_bus.cli.reading import stored_records

    session = session_of(context)
    home = session.existing_home()
    if output is None:
        sys.stdout.flush()
        for body in stored_records(home):
            sys.stdout.buffer.write(body + b"\n")
        sys.stdout.buffer.flush()
        return
    count = 0
    with output.open("wb") as file:
        for body in stored_records(home):
            file.write(body + b"\n")
            count += 1
    if session.json:
        print_json({"file": str(output), "records": count})
    else:
        echo(f"wrote {counted(count, 'record')} to {safe(output)}")
