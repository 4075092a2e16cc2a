"""Homes as logs: their database for reading, what they have beside their records, and a check that takes that in.

`verify` checks exports and needs nothing but Python; this is what it takes for a home. Nothing here writes.
"""

from __future__ import annotations

import base64
import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enhanced_agent_bus.audit import verify as alone
from enhanced_agent_bus.audit.apart import hold_against
from enhanced_agent_bus.audit.tables import hold_tables_against
from enhanced_agent_bus.audit.verify import Bad, Key, Note, Report, Scan, Source, export, read_note

_PEM: Final = "-----BEGIN PUBLIC KEY-----"
_ED25519_BYTES: Final = 44  # of a public key, RFC 8410
_ED25519: Final = bytes.fromhex("302a300506032b6570032100")
_PAGE: Final = "SELECT seq, body FROM records WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT 1000"
_STATE: Final = "SELECT state, (SELECT max(seq) FROM records WHERE message_id = ?1) <= ?2 FROM messages WHERE id = ?1"


def read_key(text: str) -> Key:
    """A C2SP vkey, or a PEM with an Ed25519 public key. Raises: ValueError."""
    text = text.strip()
    if not text.startswith(_PEM):
        return alone.read_key(text)
    raw = base64.b64decode("".join(text.splitlines()[1:-1]), validate=True)
    if not raw.startswith(_ED25519) or len(raw) != _ED25519_BYTES:
        raise ValueError("the PEM is no Ed25519 public key")
    return Key("", raw[-32:])


@contextmanager
def open_database(home: Path) -> Iterator[sqlite3.Connection]:
    """A home's database for reading only; no file is left in the home that was not there."""
    wal, shm = (home / "bus.db-wal").exists(), (home / "bus.db-shm").exists()
    still = "" if wal else "&immutable=1"  # closed cleanly: nobody writes
    uri = f"{(home / 'bus.db').absolute().as_uri()}?mode=ro{still}"
    database = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        yield database
    finally:
        database.close()
        if wal and not shm:
            _remove_index(home)


def _remove_index(home: Path) -> None:
    """Removes the index of the `-wal` that reading made; not where a bus was opened meanwhile, whose index it is."""
    try:
        with (home / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (home / "bus.db-shm").unlink(missing_ok=True)
    except FileNotFoundError:  # no bus ever had this copy
        (home / "bus.db-shm").unlink(missing_ok=True)
    except OSError:
        return


@dataclass(frozen=True)
class Beside:
    """What a home says of its log beside the records: no proof against whoever can write there."""

    note: Note | None  # none that can be read
    size: int  # and the tree, as the writer keeps them in the database
    frontier: bytes


def verify(path: Path, key: Key, outside: Note | None = None, scanning: Callable[..., Scan] = Scan) -> Report:
    """As `verify.verify`, of an export or a home; a home is held against what it has beside its records as well.

    Raises: OSError, when there is nothing to check.
    """
    path.stat()
    if not path.is_dir():
        return alone.verify(export(path), key, outside, scanning)
    try:
        with open_database(path) as database:
            report = alone.verify(_source(path, database), key, outside, scanning)
            if report.integrity == "ok":
                hold_against(report, database)
                hold_tables_against(report, database)
            return report
    except (sqlite3.DatabaseError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        report = Report(completeness="bad")  # of what cannot be read nothing can be said to be there
        report.blame("integrity", Bad(0, 0, None, "altered", f"it cannot be read: {error!r}"))
        return report


def _source(home: Path, database: sqlite3.Connection) -> Source:
    note = None
    with suppress(OSError, ValueError):  # first: a running bus may write a newer one any moment
        note = read_note((home / "checkpoint").read_text())
    head = database.execute("SELECT size, frontier, (SELECT max(seq) FROM records) FROM head").fetchone()
    size, frontier, last = head or (0, b"", None)

    def rows(start: int) -> Iterator[tuple[int, bytes]]:
        # A page at a time, so that a running bus is not held up; what it adds meanwhile is left for next time.
        seq = start - 1
        with _as_os_errors():
            while page := database.execute(_PAGE, (seq, last)).fetchall():
                yield from page
                seq = page[-1][0]

    def state(message_id: str) -> str | None:
        with _as_os_errors():
            row = database.execute(_STATE, (message_id, last)).fetchone()
        return str(row[0]) if row and row[1] else None

    beside = Beside(note, size, frontier)
    return Source(rows, last, state, lambda scan: _unlike(scan, beside))


@contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise OSError(str(error)) from error


def _unlike(scan: Scan, beside: Beside) -> Bad | None:
    size, signed, note = scan.report.size, scan.seen[-1].size, beside.note
    if note is None:
        why = f"the home's file `checkpoint` is gone or unreadable, and {size} records are there: the end may be cut"
        return Bad(signed, max(signed, size - 1), None, "truncated", why)
    if scan.signed(note) and note.size > size:
        why = f"a checkpoint vouches for {note.size} records, {size} are left"
        return Bad(size, note.size - 1, None, "truncated", why)
    if all(one.text != note.text for one in scan.seen):
        return Bad(0, size - 1, None, "replaced", "the home's checkpoint is not one of this log's")
    frontier, known = b"".join(scan.frontier), beside.size
    if beside.frontier == frontier:
        return None
    damage = "altered" if known == size else "inserted" if known < size else "truncated"
    first = signed if known == size else min(known, size)
    why = "other records" if known == size else f"{known} records, and {size} are there"
    return Bad(first, max(known, size) - 1, None, damage, f"the database's own tree is over {why}")
