"""`eab audit`: the group, with verify and checkpoint, which only read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.audit import collect, erase, export, hold, pack, prove, read, report, reproduce
from enhanced_agent_bus.cli.audit import joined as several
from enhanced_agent_bus.cli.audit.witness import configured_witnesses, kept_checkpoint, named_witnesses, witness_line
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.reading.readable import require_readable
from enhanced_agent_bus.cli.render import counted, echo, print_json, print_pairs, safe
from enhanced_agent_bus.cli.session import Json, Session, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.audit.verify import Report
    from enhanced_agent_bus.audit.witnessed import Kept

app = typer.Typer(help="Read, search, verify and export the log.", rich_markup_mode=None)
for module in (read, export, collect, report, pack, reproduce):
    module.add_to(app)


# --- verifying -----------------------------------------------------------------------------------------------------


@app.command()
def verify(
    context: typer.Context,
    log: Annotated[list[Path] | None, typer.Argument(metavar="[FILE|HOME]", help="An export or a home.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Several nodes' logs, and whether they fit together.")] = False,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="One that was kept elsewhere; with --all, one a log.")
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="The log's vkey, or a PEM; with --all, repeatable.")
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS|PATH", help="Read this witness (repeatable).")
    ] = None,
    require_anchor: Annotated[
        bool, typer.Option("--require-anchor", help="Exit 1 where no outside checkpoint covers the end.")
    ] = False,
) -> int:
    """Recompute a log: integrity, completeness, time; against its witnesses too.

    Without --witness, those that the settings of a home name are read.
    With --all it takes the logs of several nodes of one bus, and holds them against each other.
    Exit 0 when nothing wrong was found; 1 names the first bad seq and what is wrong with it.

    Example: eab audit verify --checkpoint kept-elsewhere.txt
    """
    session = session_of(context)
    for path in log or ():
        _require_log(path)
    if every:
        given = (log or [], key or [], checkpoint or [], witness or [])
        return _verify_all(session, *given, require_anchor=require_anchor)
    if any(len(given or ()) > 1 for given in (log, key, checkpoint)):
        what = "several logs, keys or checkpoints were named"
        raise CliError(what, remedy="name one of each, or give --all to hold several logs against each other")
    path = log[0] if log else session.existing_home()
    _require_log(path)
    vkey = key[0] if key else (path if path.is_dir() else session.home) / "keys" / "log.vkey"
    kept: Sequence[Kept] = named_witnesses(witness) if witness else configured_witnesses(path)
    outside = checkpoint[0] if checkpoint else None
    report, kept = verified(path, vkey, outside, kept)
    verdict = asdict(report) | {"witnesses": [one.document(report) for one in kept]}
    if session.json:
        print_json(verdict)
    else:
        more = _compared(verdict, outside, require_anchor=require_anchor)
        show_verdict(session, verdict, [*more, *_what_to_do(verdict, of_home=path.is_dir())])
    return faults.DONE if is_fine(verdict, require_anchor=require_anchor) else faults.FOUND


def _require_log(path: Path) -> None:
    if not path.exists():
        raise CliError(f"there is no log at {path}", remedy="name an export or a home", code="file")
    if path.is_dir() and not (path / "home.json").is_file() and not (path / "bus.db").is_file():
        raise CliError(f"{path} is no home", remedy="name a home, or an export", code="no_home")
    _require_export(path)


#: How files begin that auditors have at hand and that are no exports, and what to do with them.
_NO_EXPORTS = (
    (b"PK\x03\x04", "a zip", "unpack it, and verify its log.jsonl"),
    (b"\x1f\x8b", "a compressed file", "unpack it first"),
    (b"SQLite format 3", "the database of a home", "name the home that it lies in"),
)


def _require_export(path: Path) -> None:
    """Raises: CliError, for a file that was never an export, and OSError, where reading is denied: no damaged logs."""
    if path.is_dir():
        if (path / "bus.db").is_file():
            require_readable(path)
        return
    with path.open("rb") as file:
        begins = file.read(16)
    for magic, what, remedy in _NO_EXPORTS:
        if begins.startswith(magic):
            raise CliError(f"{path} is {what}, not an export", remedy=remedy, code="file")


def _verify_all(
    session: Session,
    paths: Sequence[Path],
    keys: Sequence[Path],
    checkpoints: Sequence[Path],
    witnesses: Sequence[str],
    *,
    require_anchor: bool,
) -> int:
    """Each log as `verify` does, then all of them against each other, where none of them is damaged."""
    vkeys = several.keys_of(paths, keys)
    names = {path: vkey.read_text(encoding="ascii").partition("+")[0] for path, vkey in zip(paths, vkeys, strict=True)}
    outside = several.checkpoints_of(list(names.values()), checkpoints)
    kept = named_witnesses(witnesses) if witnesses else None
    verdicts: dict[Path, dict[str, Json]] = {}
    for path, vkey in zip(paths, vkeys, strict=True):
        own = configured_witnesses(path) if kept is None else kept
        report, theirs = verified(path, vkey, outside.get(names[path]), own)
        verdicts[path] = asdict(report) | {"witnesses": [one.document(report) for one in theirs]}
    joined = None
    if all(verdict["integrity"] == "ok" for verdict in verdicts.values()):
        joined = several.join(paths, vkeys)
        for path, verdict in verdicts.items():
            several.anchored(verdict, joined, names[path])
    if session.json:
        print_json(several.document({names[path]: verdict for path, verdict in verdicts.items()}, joined))
    else:
        for path, verdict in verdicts.items():
            echo(f"{names[path]} ({safe(path)})")
            more = _compared(verdict, outside.get(names[path]), require_anchor=require_anchor)
            show_verdict(session, verdict, [*more, *_what_to_do(verdict, of_home=path.is_dir())])
            echo("")
        several.show(joined)
    fine = all(is_fine(verdict, require_anchor=require_anchor) for verdict in verdicts.values())
    return faults.DONE if fine and joined is not None and joined.ok else faults.FOUND


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

    if not key_file.is_file():
        raise CliError(f"there is no key {key_file}", remedy="name the log's vkey with --key FILE", code="file")
    try:
        key = read_key(key_file.read_text())
    except (ValueError, IndexError):
        what = f"{key_file} holds no public key"
        raise CliError(what, remedy="name the log's `keys/log.vkey`, or a PEM of it", code="file") from None
    outside = None if checkpoint is None else kept_checkpoint(checkpoint)
    if not witnesses:
        return verify(path, key, outside), []
    with suppress(ValueError, KeyError, TypeError):  # a log without a first record is found by the check itself
        witnesses = witnessed.of_log(witnessed.origin_of(path, key), witnesses)
    return witnessed.verify(path, key, outside, witnesses), witnesses


def is_fine(verdict: Mapping[str, Json], *, require_anchor: bool = False) -> bool:
    """Whether nothing wrong was found; with `require_anchor` also that nothing is unanchored."""
    bad = verdict["first_bad"] is not None or "bad" in (verdict[name] for name in ("integrity", "completeness", "time"))
    return not bad and not (require_anchor and verdict["unanchored"])


def show_verdict(session: Session, verdict: Mapping[str, Json], more: Sequence[tuple[str, str]] = ()) -> None:
    """The three verdicts, and what they cannot exclude."""
    lines = [*_verdict_lines(verdict), *more]
    print_pairs((name, session.named(value) if isinstance(value, str) else value) for name, value in lines)


def _verdict_lines(verdict: Mapping[str, Json]) -> list[tuple[str, Any]]:
    size = verdict["size"]
    lines: list[tuple[str, Any]] = [(name, verdict[name]) for name in ("integrity", "completeness", "time")]
    stopped = verdict["integrity"] == "bad" and not verdict["root"]  # what stands behind cannot be placed
    lines.append(("records", f"{size} read, up to what is bad" if stopped else size))
    if verdict["root"]:
        lines.append(("root", verdict["root"]))
    if verdict["checkpoint_size"] is not None:
        lines.append(("checkpoint", f"signed for the first {verdict['checkpoint_size']}"))
    if verdict["unanchored"] == size and verdict.get("witnesses"):
        lines.append(("unanchored", "no witness has a checkpoint that this log's key signed"))
    elif verdict["unanchored"] == size:
        keep = "" if verdict["integrity"] == "bad" else ": keep one, `eab audit checkpoint` prints it"
        lines.append(("unanchored", f"no outside checkpoint was given{keep}"))
    elif verdict["unanchored"]:
        after = size - verdict["unanchored"] - 1
        lines.append(("unanchored", f"after seq {after}: what is kept outside ends there"))
    lines += [("key changed", f"at seq {change['seq']}, to {change['vkey']}") for change in verdict["rotations"]]
    lines += [
        ("clock step", f"at seq {step['seq']}: {step['seconds']:+.1f} s against the machine's steady clock")
        for step in verdict["clock_steps"]
    ]
    lines += [("declared loss", _loss(loss)) for loss in verdict["losses"]]
    lines += [("witness", witness_line(one)) for one in verdict.get("witnesses", [])]
    if verdict["cannot_exclude"]:
        lines.append(("cannot exclude", ", ".join(verdict["cannot_exclude"])))
    if verdict.get("open"):
        lines.append(("open", f"{counted(verdict['open'], 'message')} not ended"))
    lines.append(("content", _content(verdict)))
    if verdict["erased"]:
        lines.append(("erased", verdict["erased"]))
    bad = verdict["first_bad"]
    if bad is not None:
        where = (
            f"seq {bad['seq']}" if bad["seq"] == bad["seq_to"] else f"somewhere in seq {bad['seq']} to {bad['seq_to']}"
        )
        lines.append(("first bad", f"{where}: {bad['damage']}: {bad['why']}"))
    return lines


def _content(verdict: Mapping[str, Json]) -> str:
    """What is said of payloads and texts."""
    bad, count = verdict["integrity"] == "bad", verdict["content"]
    if count is None:
        return "not looked at: the records are damaged" if bad else "not looked at: it stands in the home, not here"
    what = f"{counted(count, 'payload or text', 'payloads and texts')} beside the records"
    return what if bad or not count else f"{what}, as these commit to"


def _compared(
    verdict: Mapping[str, Json], checkpoint: Path | None, *, require_anchor: bool
) -> Iterator[tuple[str, str]]:
    """What the checkpoint that was given showed, and why an exit of 1 is one where nothing wrong was found."""
    if checkpoint is not None and is_fine(verdict):
        yield "kept", f"{checkpoint}: its first {kept_checkpoint(checkpoint).size} records are the first of this log"
    if require_anchor and is_fine(verdict) and verdict["unanchored"]:
        first, last = verdict["size"] - verdict["unanchored"], verdict["size"] - 1
        why = "nothing wrong was found, but no checkpoint from outside covers them, as --require-anchor wants: exit 1"
        yield "not anchored", f"seq {first} to {last}: {why}"


_DAMAGED = "copy it as it is, it is evidence; an export or a backup from before shows what stood there"
_REPLACED = (
    "see whether key and checkpoint are of this log, and whether its key was changed meanwhile"
    " (HOME/keys has the older ones, for --key); if they fit, somebody has written it anew: copy it, it is evidence"
)
_CUT_HOME = "look for the newest bus.db, bus.db-wal and backup; what is gone was decided, and may have been delivered"
_CUT_FILE = "export the log again, in case this was done before that checkpoint was signed; otherwise its end was cut"


def _what_to_do(verdict: Mapping[str, Json], *, of_home: bool) -> Iterator[tuple[str, str]]:
    """About the first thing that is bad."""
    bad = verdict["first_bad"]
    if bad is None:
        return
    if bad["damage"] == "truncated":
        yield "what to do", _CUT_HOME if of_home else _CUT_FILE
    elif bad["damage"] == "missing" and bad["seq"] == 0 and not of_home:
        yield "what to do", "verify a whole export: `eab audit export` without --since, --until and --query writes one"
    else:
        yield "what to do", _REPLACED if bad["damage"] == "replaced" else _DAMAGED


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


app.command("prove")(prove.prove)
app.command("rotate-key")(prove.rotate_key)
app.command()(erase.erase)
app.command()(erase.retention)
app.add_typer(hold.app, name="hold")
