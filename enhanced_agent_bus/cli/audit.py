"""`eab audit`: verify and checkpoint; reading is in `audit_read`, exporting in `audit_export`. Reads only."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enhanced_agent_bus.cli import (
    audit_collect,
    audit_export,
    audit_pack,
    audit_read,
    audit_report,
    audit_reproduce,
    faults,
)
from enhanced_agent_bus.cli.audit_witness import configured_witnesses, named_witnesses, witness_line
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import counted, print_json, print_pairs
from enhanced_agent_bus.cli.session import Json, Session, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.audit.verify import Report
    from enhanced_agent_bus.audit.witnessed import Kept

app = typer.Typer(help="Read, search, verify and export the log.", rich_markup_mode=None)
audit_read.add_to(app)
audit_export.add_to(app)
audit_collect.add_to(app)
audit_report.add_to(app)
audit_pack.add_to(app)
audit_reproduce.add_to(app)


# --- verifying -----------------------------------------------------------------------------------------------------


@app.command()
def verify(
    context: typer.Context,
    log: Annotated[Path | None, typer.Argument(metavar="[FILE|HOME]", help="An export or a home.")] = None,
    *,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="One that was kept elsewhere.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The log's vkey, or a PEM.")] = None,
    witness: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS|PATH", help="Read this witness (repeatable).")
    ] = None,
    require_anchor: Annotated[bool, typer.Option("--require-anchor", help="Exit 1 without an outside anchor.")] = False,
) -> int:
    """Recompute a log: integrity, completeness, time; against its witnesses too.

    Without --witness, those that the settings of a home name are read.
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
    kept: Sequence[Kept] = named_witnesses(witness) if witness else configured_witnesses(path)
    report, kept = verified(path, vkey, checkpoint, kept)
    verdict = asdict(report) | {"witnesses": [one.document(report) for one in kept]}
    if session.json:
        print_json(verdict)
    else:
        show_verdict(session, verdict)
    return faults.DONE if is_fine(verdict, require_anchor=require_anchor) else faults.FOUND


def verify_home(home: Path) -> dict[str, Json]:
    """The verdicts on a home, by its own key."""
    return asdict(verified(home, home / "keys" / "log.vkey", None, [])[0])


def verified(
    path: Path, key_file: Path, checkpoint: Path | None, witnesses: Sequence[Kept]
) -> tuple[Report, Sequence[Kept]]:
    """The verdicts, and what witnesses have of this log. Raises: CliError, for a key that cannot be read; OSError."""
    from enhanced_agent_bus.audit import witnessed
    from enhanced_agent_bus.audit.homes import read_key
    from enhanced_agent_bus.audit.several import verify
    from enhanced_agent_bus.audit.verify import Bad, Report, read_note

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
        if not witnesses:
            return verify(path, key, outside), []
        with suppress(ValueError, KeyError, TypeError):  # a log without a first record is found by the check itself
            witnesses = witnessed.of_log(witnessed.origin_of(path, key), witnesses)
        return witnessed.verify(path, key, outside, witnesses), witnesses
    except ValueError as error:  # a checkpoint that was kept elsewhere, and another key: this is another log
        report = Report()
        report.blame("integrity", Bad(0, max(outside.size - 1, 0) if outside else 0, None, "replaced", str(error)))
        return report, witnesses


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
    if verdict["unanchored"] == size and verdict.get("witnesses"):
        lines.append(("unanchored", "no witness has a checkpoint that this log's key signed"))
    elif verdict["unanchored"] == size:
        lines.append(("unanchored", "no outside checkpoint was given: keep one, `eab audit checkpoint` prints it"))
    elif verdict["unanchored"]:
        after = size - verdict["unanchored"] - 1
        lines.append(("unanchored", f"after seq {after}: what is kept outside ends there"))
    lines += [("key changed", f"at seq {change['seq']}, to {change['vkey']}") for change in verdict["rotations"]]
    lines += [("declared loss", _loss(loss)) for loss in verdict["losses"]]
    lines += [("witness", witness_line(one)) for one in verdict.get("witnesses", [])]
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


def _loss(loss: Mapping[str, Json]) -> str:
    known = "" if loss["size"] is None else f", which was signed up to {loss['size']} records"
    return f"seq {loss['seq']}: this log was begun in place of {loss['origin']}{known}"


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
