"""`eab audit verify --all`: the logs of several nodes of one bus, each by itself and then against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from enhanced_agent_bus.cli.audit.witness import kept_checkpoint
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import counted, echo, safe
from enhanced_agent_bus.cli.session import Json

if TYPE_CHECKING:
    from enhanced_agent_bus.audit.joined import Joined, Log
    from enhanced_agent_bus.audit.verify import Key

_FROM = "SELECT body FROM records WHERE seq >= ? ORDER BY seq"


def keys_of(paths: Sequence[Path], named: Sequence[Path]) -> list[Path]:
    """The file with the key of each log: a home has its own, and an export that one of `named` that has its name.

    Raises: CliError, for logs that are not several of one bus, or whose key nobody named.
    """
    from enhanced_agent_bus.audit.homes import read_key

    if len(paths) < 2:  # noqa: PLR2004 - several
        raise CliError("--all takes the logs of at least two nodes", remedy="name a home or an export of each")
    found: list[Path] = []
    names: list[str] = []
    for path in paths:
        name = _name_of(path)
        if name in names:
            raise CliError(f"{path} is the log of {name}, which was named before", remedy="name each log once")
        if names and name.partition("/")[0] != names[0].partition("/")[0]:
            what = f"{path} is of the bus {name.partition('/')[0]}, and {paths[0]} of {names[0].partition('/')[0]}"
            raise CliError(what, remedy="name the logs of one bus")
        names.append(name)
        own = path / "keys" / "log.vkey"
        fits = [own] if path.is_dir() else [file for file in named if _names(file, name, read_key)]
        if not fits:
            what = f"nobody named the key of {path}, the log of {name}"
            raise CliError(what, remedy="name its `keys/log.vkey` with --key FILE, once for each export", code="file")
        found.append(fits[0])
    return found


def checkpoints_of(names: Sequence[str], files: Sequence[Path]) -> dict[str, Path]:
    """The checkpoint that was kept of each log, by the origin that it names.

    Raises: CliError, for what is no checkpoint, of none of these logs, or the second one of a log.
    """
    found: dict[str, Path] = {}
    for file in files:
        origin = kept_checkpoint(file).text.partition("\n")[0]
        if origin not in names:
            raise CliError(f"the checkpoint {file} is of {origin}, which is none of these logs", remedy="leave it out")
        if origin in found:
            what = f"the checkpoints {found[origin]} and {file} are of one log, {origin}"
            raise CliError(what, remedy="name one of them, or both as witnesses with --witness FILE")
        found[origin] = file
    return found


def _names(file: Path, name: str, read_key: object) -> bool:
    assert callable(read_key)
    try:
        return bool(read_key(file.read_text(encoding="ascii")).name == name)
    except OSError as error:
        raise CliError(f"the key {file} cannot be read: {error.strerror}", remedy="name its log.vkey") from None
    except (ValueError, IndexError):
        what = f"{file} holds no public key"
        raise CliError(what, remedy="name the log's `keys/log.vkey`", code="file") from None


def _name_of(path: Path) -> str:
    """Raises: CliError, for what is no log."""
    import sqlite3

    try:
        record = json.loads(next(iter(_records(path, 0)), b"null"))
        return f"{record['bus']}/{record['node']}"
    except (sqlite3.Error, OSError, ValueError, KeyError, TypeError):
        raise CliError(f"{path} is no log", remedy="name a home, or an export", code="file") from None


def _records(path: Path, start: int) -> Iterator[bytes]:
    from enhanced_agent_bus.audit.homes import open_database
    from enhanced_agent_bus.audit.joined import export

    if path.is_dir():
        with open_database(path) as database:
            for (body,) in database.execute(_FROM, (start,)):
                yield bytes(body)
    else:
        yield from export(path).records(start)


def join(paths: Sequence[Path], keys: Sequence[Path]) -> Joined:
    """Holds logs against each other, which have been verified."""
    from enhanced_agent_bus.audit import joined
    from enhanced_agent_bus.audit.homes import read_key

    logs: list[Log] = []
    for path, file in zip(paths, keys, strict=True):
        every = [read_key(file.read_text()), *_later_keys(path)]
        opens = partial(_opened, every)
        logs.append(joined.Log(_name_of(path), partial(_records, path), opens))
    return joined.join(logs)


def _opened(keys: Sequence[Key], note: str) -> bool:
    return any(key.opens(note) for key in keys)


def _later_keys(path: Path) -> list[Key]:
    """Every key that the log says it had, which has been verified."""
    from enhanced_agent_bus.audit.verify import read_key

    changes = [json.loads(body) for body in _records(path, 0) if b',"kind":"key",' in body[:64]]
    return [read_key(change[name]) for change in changes for name in ("previous", "vkey")]


def anchored(verdict: dict[str, Json], joined: Joined, name: str) -> None:
    """Another node's log that has a checkpoint of this one is an anchor outside it."""
    vouched = joined.witnessed.get(name, -1) + 1  # the record that carries the checkpoint is known through it
    verdict["unanchored"] = max(0, min(verdict["unanchored"], verdict["size"] - vouched))
    if not verdict["unanchored"]:
        verdict["cannot_exclude"] = []


def document(logs: Mapping[str, Json], joined: Joined | None) -> dict[str, Json]:
    """For programs; `joined` is null where a log is damaged, so that nothing can be said of what it has."""
    return {"logs": dict(logs), "joined": None if joined is None else asdict(joined) | {"ok": joined.ok}}


def show(joined: Joined | None) -> None:
    """In words: what was held against each other, then a line for each thing."""
    if joined is None:
        echo("joined         not looked at: mend or replace the log that is damaged first")
        return
    said = [f"{counted(joined.received, 'message')} went from node to node", f"{joined.on_its_way} on the way"]
    said += [f"{joined.open} open on both", f"{joined.notice_under_way} whose notice is under way"]
    said += [f"{joined.twice} delivered twice"] if joined.twice else []
    said += [f"{joined.crossed} ended on both, each by itself"] if joined.crossed else []
    echo(f"joined         {'ok' if joined.ok else 'bad'}: {', '.join(said)}")
    for origin, size in sorted(joined.witnessed.items()):
        echo(f"witnessed      {safe(origin)}: the first {size} records, by another of these logs")
    for finding in (*joined.found, *joined.listed):
        echo(safe(finding.line()))
