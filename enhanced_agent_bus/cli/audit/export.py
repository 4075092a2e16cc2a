"""`eab audit export`: the log, or a part of it, in a format that others read. `--payload` is recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from enhanced_agent_bus.cli.faults import UNDECIDED, CliError
from enhanced_agent_bus.cli.render import counted, echo, print_json, safe
from enhanced_agent_bus.cli.session import Session, note_access, require_outside_homes, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.audit.formats.row import Origin, Row
    from enhanced_agent_bus.cli.audit.masking import Masking

    Line = Callable[[Row, Origin], bytes | None]


class Format(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    OPA = "opa"
    OCSF = "ocsf"
    CLOUDEVENTS = "cloudevents"
    OTEL = "otel"


WHAT_CHARS_MAX: Final = 1000  # of a query, in the access record
#: What the records of a format are called when they are counted.
_ONE_OF: Final = {Format.OPA: "decision"}


def add_to(app: typer.Typer) -> None:
    """Makes the command known."""
    app.command()(export)


def export(
    context: typer.Context,
    *,
    format: Annotated[Format, typer.Option("--format", help="What it is written as.")] = Format.JSONL,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Else standard output.")] = None,
    query: Annotated[str, typer.Option(metavar="TEXT", help="Only what `eab audit search TEXT` finds.")] = "",
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Not before: a time, a date, 24h.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before: a time, a date, 24h.")] = None,
    payload: Annotated[
        bool, typer.Option("--payload", help="With what stands apart from decisions; recorded.")
    ] = False,
    tiles: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What is signed as C2SP tlog-tiles: written there, or added.")
    ] = None,
) -> None:
    """Write the log, one record a line.

    jsonl is every stored record byte for byte, and the only one that `eab audit verify` reads. The others are the same
    records for other systems: a table (parquet), OPA's decision log events, OCSF, CloudEvents, OpenTelemetry logs.

    Example: eab audit export --format opa -o decisions.jsonl
    """
    from enhanced_agent_bus.cli.audit.prove import export_tiles
    from enhanced_agent_bus.cli.reading.export import exported_rows, stored_bodies

    session = session_of(context)
    home = session.existing_home()
    if output is not None:
        require_outside_homes(output)
    if tiles is not None:
        if output is not None or since is not None or until is not None or payload or format is not Format.JSONL:
            raise CliError("tiles are the whole of what is signed, in a folder: --tiles DIR takes no other option")
        export_tiles(session, home, tiles)
        return
    if format is Format.JSONL and payload:
        remedy = "`--format cloudevents --payload` has each record with its payload"
        raise CliError("jsonl is the stored bytes, and payloads are not among them", remedy=remedy)
    rows = exported_rows(home, query=query, since=since, until=until, content=payload)
    origin, mask = (None, None) if format is Format.JSONL else _origin_and_mask(home)
    with ExitStack() as stack:
        if mask is not None and (payload or format is Format.OPA):
            rows = stack.enter_context(mask.applied(rows))
        if payload:
            bounds = [query, *(f"{name}:{time}" for name, time in (("since", since), ("until", until)) if time)]
            what = " ".join(["decisions", *filter(None, bounds)])
            note_access(session, "audit export", what[:WHAT_CHARS_MAX])
        if format is Format.PARQUET:
            count = _write_table(rows, output, content=payload)
        elif format is Format.JSONL and not (query or since or until):
            count = _write_lines(stored_bodies(home), output)
        else:
            count = _write_lines(_lines(rows, format, origin), output)
    if output is not None:
        _tell(session, format, output, count)
    if mask is not None and mask.failed:
        what = (
            f"the mask gave no usable answer to {counted(mask.failed, 'decision')}, exported without input and result"
        )
        raise CliError(what, remedy=mask.remedy, code="mask_failed", status=UNDECIDED)


def _tell(session: Session, format: Format, output: Path, count: int) -> None:
    if session.json:
        print_json({"file": str(output), "format": format.value, "records": count})
    else:
        echo(f"wrote {counted(count, _ONE_OF.get(format, 'record'))} to {safe(output)}")


def _origin_and_mask(home: Path) -> tuple[Origin, Masking | None]:
    """What the settings say. Raises: ConfigInvalid."""
    from enhanced_agent_bus import __version__
    from enhanced_agent_bus.audit.formats.row import Origin
    from enhanced_agent_bus.cli.audit.masking import Masking
    from enhanced_agent_bus.settings import load_settings

    settings = load_settings(home)
    origin = Origin(__version__, settings.policy.bundle)
    return origin, None if settings.audit.mask is None else Masking(settings.audit.mask, origin)


def _lines(rows: Iterable[Row], format: Format, origin: Origin | None) -> Iterator[bytes]:
    if origin is None:
        return (row.body for row in rows)
    from enhanced_agent_bus.audit.formats import cloudevents, ocsf, opa, otel

    line: Line = {
        Format.OPA: opa.line,
        Format.OCSF: ocsf.line,
        Format.CLOUDEVENTS: cloudevents.line,
        Format.OTEL: otel.line,
    }[format]
    return (found for row in rows if (found := line(row, origin)) is not None)


def _write_lines(lines: Iterable[bytes], output: Path | None) -> int:
    if output is None:
        sys.stdout.flush()
        for line in lines:
            sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
        return 0
    count = 0
    with output.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")
            count += 1
    return count


def _write_table(rows: Iterable[Row], output: Path | None, *, content: bool) -> int:
    from enhanced_agent_bus.audit.formats import parquet

    if output is None:
        raise CliError("Parquet is no text for a terminal or a pipe", remedy="name a file with -o FILE")
    try:
        return parquet.write(rows, output, content=content)
    except ImportError:
        remedy = "pip install 'opa-agent-bus[parquet]'"
        raise CliError("Parquet is written by pyarrow, which is not installed", remedy=remedy, code="extra") from None
