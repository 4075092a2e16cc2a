"""The log as it is found when it is opened: that it is one, and whole up to its end.

It trusts what this log has signed, in the database and in the file beside it. Not here: making a log, and what is
written to it (store); the verdict of an auditor, who trusts less (audit).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson

from enhanced_agent_bus.errors import StoreCorrupt
from enhanced_agent_bus.ledger import merkle, sql
from enhanced_agent_bus.ledger.checkpoint import Checkpoint
from enhanced_agent_bus.ledger.home import Home
from enhanced_agent_bus.outcome import END_STATES, WAITING_STATES

RESTORE: Final = (
    "copy the home as it is first, it is evidence; then restore it from a backup; without one,"
    " `eab init --new-log` begins anew"
)
_PAGE_ROWS: Final = 1000


@dataclass(slots=True)
class Head:
    """Where the log stands: what a commit changes together with the rows."""

    size: int = 0
    at_us: int = 0
    frontier: list[bytes] = field(default_factory=list)
    accounting: dict[str, int] = field(
        default_factory=lambda: {"accepted": 0, **dict.fromkeys(WAITING_STATES, 0), **dict.fromkeys(END_STATES, 0)}
    )

    def copy(self) -> Head:
        return Head(self.size, self.at_us, self.frontier.copy(), self.accounting.copy())


class CheckpointRow(NamedTuple):
    """A checkpoint as the database keeps it, with the tree that it was signed over."""

    size: int
    seq: int
    note: str
    frontier: bytes

    def tree(self) -> list[bytes]:
        return merkle.unpack(self.frontier, self.size)


class Found(NamedTuple):
    """A log that was verified."""

    head: Head
    newest: CheckpointRow
    unclean: bool  # bytes of what was erased or forgotten may be left in its files


def verified(home: Home, database: sqlite3.Connection, verify_records: int) -> Found:
    """Verifies that this is a log, and its end: so many records, or more.

    Raises: StoreCorrupt; sqlite3.Error.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    if application != sql.APPLICATION_ID or version != sql.SCHEMA_VERSION:
        raise StoreCorrupt(f"{home.database} is not a log that this version writes", remedy=RESTORE)
    row = database.execute(sql.GET_HEAD).fetchone()
    if row is None:
        raise StoreCorrupt("the log has lost its head", remedy=RESTORE)
    size, at_us, frontier, accounting = row
    (count,) = database.execute(sql.COUNT_RECORDS).fetchone()
    if count != size or not size:
        raise StoreCorrupt(f"the log has {count} records where {size} were written", remedy=RESTORE)
    _verify_file(home, database, size)
    newest = _checkpoint_row(home, database.execute(sql.NEWEST_CHECKPOINT).fetchone())
    # Where to begin is not trusted (an older key may have signed it): the newest root would not come out.
    tree, begin = _start(database, max(0, size - verify_records))
    _replay(database, tree, begin, newest.size)
    if tree != newest.tree():
        raise StoreCorrupt(f"a record before {newest.size} is not what was signed", remedy=RESTORE)
    _replay(database, tree, newest.size, size)
    if merkle.pack(tree) != frontier:
        raise StoreCorrupt(f"the log's end does not have the tree that was written (size {size})", remedy=RESTORE)
    head = Head(size, at_us, tree, {**Head().accounting, **orjson.loads(accounting)})
    _verify_states(database, head)
    unclean = database.execute(sql.SETTING, (sql.UNCLEAN,)).fetchone() is not None
    return Found(head, newest, unclean)


def _start(database: sqlite3.Connection, size: int) -> tuple[list[bytes], int]:
    """The newest tree that is not larger than this; at the least the empty one."""
    row = database.execute(sql.CHECKPOINT_BEFORE, (size,)).fetchone()
    if row is None:
        return [], 0
    start = CheckpointRow(*row)
    try:
        return start.tree(), start.size
    except ValueError as error:
        raise StoreCorrupt(f"the checkpoint at size {start.size} is damaged: {error}", remedy=RESTORE) from None


def _replay(database: sqlite3.Connection, tree: list[bytes], seq: int, end: int) -> None:
    """Grows a tree of `seq` leaves over every record up to `end`."""
    while seq < end:
        page = database.execute(sql.RECORDS_FROM, (seq, min(_PAGE_ROWS, end - seq))).fetchall()
        for expected, (found, body) in enumerate(page, seq):
            if found != expected or not isinstance(body, bytes) or not body.startswith(b'{"v":1,"seq":%d,' % found):
                raise StoreCorrupt(f"record {expected} is missing or damaged", remedy=RESTORE)
        if not page:
            raise StoreCorrupt(f"record {seq} is missing", remedy=RESTORE)
        merkle.extend(tree, seq, [merkle.leaf_hash(body) for _, body in page])
        seq += len(page)


def _checkpoint_row(home: Home, row: tuple[int, int, str, bytes] | None) -> CheckpointRow:
    if row is None:
        raise StoreCorrupt("the log has lost its checkpoints", remedy=RESTORE)
    known = CheckpointRow(*row)
    size = known.size
    try:
        frontier = known.tree()
        vouched = home.signer.verifier.open(known.note)
    except ValueError as error:
        raise StoreCorrupt(f"the checkpoint at size {size} is damaged: {error}", remedy=RESTORE) from None
    if vouched != Checkpoint(home.origin, size, merkle.root_hash(frontier)):
        raise StoreCorrupt(f"the checkpoint at size {size} does not match the log", remedy=RESTORE)
    return known


def _verify_file(home: Home, database: sqlite3.Connection, size: int) -> None:
    """HOME/checkpoint stands outside the database: it knows when the database has become older."""
    try:
        note = home.checkpoint.read_text()
        vouched = home.signer.verifier.open(note)
    except (OSError, ValueError) as error:
        raise StoreCorrupt(
            f"{home.checkpoint} cannot be read or was not signed by this log ({error})",
            remedy="restore it from a backup: it is the newest signed checkpoint of the log",
        ) from None
    if vouched.size > size:
        raise StoreCorrupt(
            f"the log has {size} records, and its newest checkpoint vouches for {vouched.size}: the end is lost",
            remedy="restore bus.db with bus.db-wal from a backup; without one, `eab init --new-log` begins anew",
        )
    row = database.execute(sql.CHECKPOINT_AT, (vouched.size,)).fetchone()
    if row is None or row[2] != note:
        raise StoreCorrupt(
            f"the log is not the one that {home.checkpoint} vouches for (size {vouched.size})", remedy=RESTORE
        )


def _verify_states(database: sqlite3.Connection, head: Head) -> None:
    """The states that wait are not in the tree, so they are counted."""
    found = dict(database.execute(sql.COUNT_LISTED).fetchall())
    for state in sql.LISTED_STATES:
        expected = head.accounting[state]
        if found.get(state, 0) != expected:
            raise StoreCorrupt(
                f"{found.get(state, 0)} messages are {state} where {expected} were written", remedy=RESTORE
            )


def damage(error: sqlite3.Error) -> StoreCorrupt | None:
    """A database that cannot be read as one, told from a disk that does not answer."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or not isinstance(error, sqlite3.OperationalError):
        return StoreCorrupt(f"bus.db is damaged: {error}", remedy=RESTORE)
    return None
