"""Checks a log against all that its witnesses have: every checkpoint, of every size, and not only the newest.

The newest one that the log's key signed is the anchor, and what `verify` says of it stands. The others show more: a
log that was cut and grew again, or one that told two witnesses two histories. Not here: reading witnesses (room
`witness`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.audit import homes
from enhanced_agent_bus.audit import verify as alone
from enhanced_agent_bus.audit.several import _Together
from enhanced_agent_bus.audit.verify import Bad, Key, Note, Report, Scan, Source
from enhanced_agent_bus.ports import SignedNote

#: One of so many of the newest was signed by the log's key, or this is another log; a signature takes some ms.
NEWEST_TRIED: Final = 100
TWO_HISTORIES: Final = "two histories"


@dataclass
class Kept:
    """What one witness has of this log; `error` says why that is not known."""

    witness: str
    notes: list[SignedNote] = field(default_factory=list)
    error: str | None = None

    def document(self, report: Report) -> dict[str, Any]:
        """For people and programs: how far this witness covers the log."""
        newest = max((note.size for note in self.notes), default=None)
        covers = None if newest is None or report.integrity == "bad" else min(newest, report.size)
        return {
            "witness": self.witness,
            "checkpoints": len(self.notes),
            "newest_size": newest,
            "covers": covers,  # how many records, from the first on
            "error": self.error,
        }


def of_log(origin: str, witnesses: Iterable[Kept]) -> list[Kept]:
    """The same without what they have of other logs; whether one has any of this one is for the caller."""
    return [Kept(one.witness, [note for note in one.notes if note.origin == origin], one.error) for one in witnesses]


def origin_of(path: Path, key: Key) -> str:
    """The name of a log: its key says it, or its first record. Raises: OSError, ValueError, KeyError, TypeError."""
    if key.name:
        return key.name
    with _records(path) as records:
        first = json.loads(next(records, b"null"))
    return f"{first['bus']}/{first['node']}"


def verify(path: Path, key: Key, outside: Note | None, witnesses: Sequence[Kept]) -> Report:
    """As `verify.verify`, and against each checkpoint of each witness.

    Raises: OSError, when there is nothing to check.
    """
    scans: list[Scan] = []

    def scanning(source: Source, key: Key, outside: Note | None) -> Scan:
        scans.append(_Together(path, source, key, outside))
        return scans[-1]

    every = _newest_first(witnesses)
    keys = [key, *_later_keys(path)] if every else [key]
    signed = next((note for note, _ in every[:NEWEST_TRIED] if _opened(keys, note.text)), None)
    anchor = outside
    if outside is not None and not _opened(keys, outside.text):
        return homes.verify(path, key, outside)  # which says so
    if signed is not None and (outside is None or signed.size > outside.size):
        if outside is not None:
            every.append((SignedNote(key.name, outside.size, outside.root, outside.text), "the checkpoint given"))
        anchor = Note(signed.size, signed.root, signed.text)
    report = homes.verify(path, key, anchor, scanning)
    if scans:
        for bad in _contradictions(path, scans[-1], keys, every):
            report.blame("integrity", bad)
            if (
                bad.why.startswith(TWO_HISTORIES)
                and report.first_bad
                and report.first_bad.seq != report.first_bad.seq_to
            ):
                report.first_bad = bad  # says more than that the log is not what one of them vouches for
    return report


def _newest_first(witnesses: Sequence[Kept]) -> list[tuple[SignedNote, str]]:
    return sorted(((note, one.witness) for one in witnesses for note in one.notes), key=lambda each: -each[0].size)


def vouched(path: Path, key: Key, witnesses: Sequence[Kept]) -> int:
    """How many records this log has at least, by the newest checkpoint of its key that a witness has. Raises: OSError.

    Read without checking the log.
    """
    keys = [key, *_later_keys(path)]
    return next((note.size for note, _ in _newest_first(witnesses)[:NEWEST_TRIED] if _opened(keys, note.text)), 0)


def _contradictions(
    path: Path, scan: Scan, keys: Sequence[Key], every: Sequence[tuple[SignedNote, str]]
) -> Iterator[Bad]:
    """What the checkpoints say against the log and against each other, those that vouch for least first."""
    size = scan.report.size
    known = {note.size: note.root for note in scan.seen}
    whole = scan.report.integrity == "ok"  # otherwise what comes after the place that is bad cannot be judged
    if whole:
        known |= _roots(path, {note.size for note, _ in every if note.size <= size} - set(known))
    first: dict[int, tuple[SignedNote, str]] = {}
    good = 0  # so many records are as a witness has them
    for note, witness in sorted(every, key=lambda each: (each[0].size, known.get(each[0].size) != each[0].root)):
        root = known.get(note.size)
        if root == note.root:
            good = note.size
            first.setdefault(note.size, (note, witness))
            continue
        if not _opened(keys, note.text):
            why = f"{witness} has a checkpoint of {note.size} records of this log that another key signed"
            yield Bad(0, max(note.size - 1, 0), None, "replaced", why)
            return
        twin, other = first.setdefault(note.size, (note, witness))
        if twin.root != note.root:
            why = f"{TWO_HISTORIES}: {other} and {witness} have different roots of {note.size} records, both signed"
            yield Bad(good, max(note.size - 1, 0), None, "replaced", why)
            return
        if note.size > size:
            why = f"{witness} has a checkpoint of {note.size} records, {size} are left"
            yield Bad(size, note.size - 1, None, "truncated", why)
        elif root is not None:
            why = f"not the log of which {witness} has a checkpoint of {note.size} records"
            yield Bad(good, max(note.size - 1, 0), None, "replaced", why)


def _opened(keys: Sequence[Key], note: str) -> bool:
    return any(key.opens(note) for key in keys)


def _later_keys(path: Path) -> list[Key]:
    """Every key that the log says it had; whether it was handed on rightly is `verify`'s to say."""
    with suppress(OSError, ValueError, KeyError, TypeError, sqlite3.Error), _records(path) as records:
        changes = [json.loads(body) for body in records if b',"kind":"key",' in body[:64]]
        return [alone.read_key(change[name]) for change in changes for name in ("previous", "vkey")]
    return []


def _roots(path: Path, sizes: set[int]) -> dict[int, bytes]:
    """The root of the log at sizes at which it has no checkpoint of its own."""
    if not sizes:
        return {}
    found, frontier = {}, list[bytes]()
    with _records(path) as records:
        for size, body in enumerate(records):
            if size in sizes:
                found[size] = alone.root_of(frontier)
            alone.grow(frontier, size, sha256(b"\0" + body).digest())
    return found  # that of the whole has been looked at as the anchor


@contextmanager
def _records(path: Path) -> Iterator[Iterator[bytes]]:
    """A home's or an export's records, from the first on."""
    if path.is_dir():
        with homes.open_database(path) as database:
            rows = database.execute("SELECT body FROM records ORDER BY seq")
            yield (bytes(body) for (body,) in rows)
    else:
        with path.open("rb") as file:
            yield (line.removesuffix(b"\n") for line in file)
