"""The log on disk as one connection sees it: opened and verified, a batch written in one transaction, checkpoints.

Everything here is synchronous and belongs to one thread at a time. Not here: who waits for a batch (sqlite), what is
looked at when the log is opened (opening), reading for the bus (reads), and the SQL itself (sql).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import orjson

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.errors import StoreCorrupt
from enhanced_agent_bus.ledger import doubtful, erasing, merkle, rows, sql
from enhanced_agent_bus.ledger.checkpoint import Checkpoint, Signer
from enhanced_agent_bus.ledger.home import Home, write_atomically
from enhanced_agent_bus.ledger.opening import RESTORE, CheckpointRow, Found, Head, damage, verified
from enhanced_agent_bus.ports import Clock, Entry, Move

#: How much of the log is verified at an opening at least, where it is that long: a quarter second's worth.
VERIFY_RECORDS_MIN: Final = 20_000
WAL_PAGES: Final = 10_000
CACHE_KIBIBYTES: Final = 16_384
#: A newer checkpoint file is not written more often than this, but at a quiet moment and at close.
CHECKPOINT_FILE_SECONDS: Final = 0.2
HEARTBEAT_SECONDS: Final = 3600.0
#: How long a reader of older pages is waited for at a time; the next entries wait as long.
READER_SECONDS: Final = 0.1
BUSY_SECONDS: Final = 5.0
_RECORD: Final = rows.blob(b'{"v":1,"seq":%d%b%b')
_VKEY: Final = "log.vkey"  # the setting that names the key of the newest rotation

#: An entry on its way to the disk, what its record will hold, and whether that tells the envelope which it opens.
#: (A bare tuple, because two are made for each message.)
Queued = tuple[Entry, bytes, bool]


@dataclass(slots=True)
class _Rows:
    """The parameters of one batch, table by table, flat as the statements want them."""

    records: list[Any] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    payloads: list[Any] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)
    moves: dict[int, Move] = field(default_factory=dict)
    forgets: list[int] = field(default_factory=list)
    facts: dict[tuple[str, str, str], bytes | None] = field(default_factory=dict)
    rare: list[Entry] = field(default_factory=list)  # with rows of tables that seldom change
    decisions: bool = False
    outcomes: bool = False
    erasures: bool = False


class Store:
    """An open `bus.db`, verified up to its end."""

    def __init__(self, home: Home, database: sqlite3.Connection, clock: Clock) -> None:
        self._home = home
        self._db = database
        self._clock = clock
        self.head = Head()
        self._noted = -1  # size of the newest checkpoint
        self._noted_monotonic = self._clock.monotonic()
        self._changed = True  # records other than checkpoints since
        self._unfiled: str | None = None  # the newest note, while HOME/checkpoint is older
        self._filed_monotonic = 0.0
        self.unclean = False  # bytes of what was erased or forgotten may be left in the files

    # --- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, home: Home, clock: Clock, *, verify_records: int = VERIFY_RECORDS_MIN) -> Store:
        """Makes the log of a fresh home, or verifies that of an old one: so many records at its end, or more.

        Raises: StoreCorrupt; sqlite3.OperationalError and OSError, when the disk does not answer.
        """
        made = home.fresh or home.loss is not None
        database = _connect(home, "rwc" if made else "rw")
        store = cls(home, database, clock)
        try:
            store._prepare()
            if made:
                database.executescript(sql.SCHEMA)
                store.write([] if home.loss is None else [_queued(Entry("gap", dict(home.loss)))], checkpoint=True)
                store.file_checkpoint()
                home.finish()
            else:
                store._take_up(verified(home, database, verify_records))
                store._take_next_key()
        except sqlite3.Error as error:
            store.close()
            raise damage(error) or error from None
        except BaseException:
            store.close()
            raise
        return store

    def _prepare(self) -> None:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            f"wal_autocheckpoint = {WAL_PAGES}",
            f"cache_size = -{CACHE_KIBIBYTES}",
            "secure_delete = ON",
            "temp_store = MEMORY",
            "trusted_schema = OFF",
            "cell_size_check = ON",
        ):
            self._db.execute(f"PRAGMA {pragma}")

    def _take_up(self, log: Found) -> None:
        self.head = log.head
        self.unclean = log.unclean
        self._noted = log.newest.size
        self._unfiled = log.newest.note  # a crash may have come between the record and the file
        # A log that ends in its newest checkpoint has nothing new to vouch for.
        self._changed = log.newest.seq != log.head.size - 1

    def require(self, size: int) -> None:
        """Raises: StoreCorrupt, when less is left than was durable."""
        if self.head.size < size:
            raise StoreCorrupt(f"{size} records were durable, {self.head.size} are left", remedy=RESTORE)

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self, batch: Sequence[Queued], *, checkpoint: bool = False, also: Signer | None = None) -> int:
        """Writes a batch in one transaction; its first entry gets the seq that is returned, the rest follow.

        With `checkpoint` the same transaction ends in one: the signed root of all records before it, signed by `also`
        as well.

        Raises: whatever went wrong; then nothing is known of what is on disk, and this store must be closed.
        """
        head = self.head.copy()
        head.at_us = max(head.at_us, self._clock.now_us())
        first, table = head.size, _Rows()
        self._add(table, batch, head)
        signed = self._add_checkpoint(table, head, also) if checkpoint else None
        self._db.execute("BEGIN IMMEDIATE")
        self._put(table, head)
        for entry in table.rare:
            self._put_rare(entry)
        if signed is not None:
            self._db.execute(sql.PUT_CHECKPOINT, signed)
        self._commit(table)
        self.head = head
        # What other logs had signed is covered by the next checkpoint, and is no reason for one: two buses that witness
        # each other would never come to rest.
        self._changed = signed is None and (self._changed or any(entry.kind != "witness" for entry, _, _ in batch))
        if signed is not None:
            self._noted, self._noted_monotonic, self._unfiled = signed.size, self._clock.monotonic(), signed.note
        return first

    def _add_checkpoint(self, table: _Rows, head: Head, also: Signer | None) -> CheckpointRow:
        """Signs the tree of all records so far and appends that as a record, which the next one will cover."""
        size, root = head.size, merkle.root_hash(head.frontier)
        note = self._home.signer.sign(Checkpoint(self._home.origin, size, root), also)
        signed = CheckpointRow(size, size, note, merkle.pack(head.frontier))
        fields = {
            "size": size,
            "root": root.hex(),
            "note": note,
            "mono_us": int(self._clock.monotonic() * 1e6),
            "boot": self._clock.boot(),
        }
        entry = Entry("checkpoint", fields)
        self._add(table, [_queued(entry)], head)
        return signed

    def roll_back(self) -> None:
        """After values that cannot be stored: the transaction is as if it had not been begun."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _add(self, table: _Rows, batch: Sequence[Queued], head: Head) -> None:
        """Numbers the entries, takes them into the tree and the counts, and says which rows they make."""
        at = rows.rfc3339(head.at_us)
        back = f'","at":"{at}","bus":"{self._home.bus}","node":"{self._home.node}"'.encode()
        middles: dict[str, bytes] = {}
        leaves: list[bytes] = []
        accounting, at_us, seq = head.accounting, head.at_us, head.size
        records, messages, payloads, moves = table.records, table.messages, table.payloads, table.moves
        for entry, rest, told in batch:
            kind = entry.kind
            middle = middles.get(kind)
            if middle is None:
                middle = middles[kind] = b',"kind":"' + kind.encode() + back
            body = _RECORD % (seq, middle, rest)
            leaves.append(sha256(b"\0" + body).digest())
            records += (seq, kind, entry.message_id, body)
            opening, move = entry.opening, entry.move
            if opening is not None:
                messages += rows.message_row(seq, at_us, opening, told=told)
                payloads += rows.payload_row(seq, opening.envelope)
                accounting["accepted"] += 1
                accounting[opening.state] += 1
            elif entry.keep is not None:
                payloads += rows.payload_row(seq, entry.keep)
            if move is not None:
                moves[move.row] = move
                accounting[move.was] -= 1
                accounting[move.state] += 1
                if move.forget:
                    table.forgets.append(move.row)
            if entry.texts is not None:
                salt, text = entry.texts
                table.texts += (seq, rows.blob(salt), rows.blob(text))
            for change in entry.facts:
                table.facts[change[:3]] = change[3]
            if entry.agent is not None or entry.settings or entry.erased is not None:
                table.rare.append(entry)
                table.erasures |= entry.erased is not None
            seq += 1
        table.decisions |= "decision" in middles
        table.outcomes |= "outcome" in middles
        merkle.extend(head.frontier, head.size, leaves)
        head.size = seq

    def _put(self, table: _Rows, head: Head) -> None:
        self._many(sql.INSERT_RECORDS, table.records, sql.RECORD_WIDTH)
        if table.messages:
            self._many(sql.INSERT_MESSAGES, table.messages, sql.MESSAGE_WIDTH)
        if table.payloads:
            self._many(sql.INSERT_PAYLOADS, table.payloads, sql.PAYLOAD_WIDTH)
        if table.texts:
            self._many(sql.INSERT_TEXTS, table.texts, sql.TEXT_WIDTH)
        if table.moves:
            moves: list[Any] = []
            for move in table.moves.values():
                moves += rows.move_row(move)
            self._many(sql.MOVE_MESSAGES, moves, sql.MOVE_WIDTH)
        if table.forgets:
            self._many(sql.FORGET_PAYLOADS, table.forgets, 1)
        if (table.forgets or table.erasures) and not self.unclean:
            self._db.execute(sql.SET_UNCLEAN)
        if table.facts:
            facts: list[Any] = []
            for key, value in table.facts.items():
                if value is None:
                    self._db.execute(sql.REMOVE_FACT, key)
                else:
                    facts += (*key, rows.blob(value))
            if facts:
                self._many(sql.PUT_FACTS, facts, sql.FACT_WIDTH)
        self._db.execute(
            sql.PUT_HEAD, (head.size, head.at_us, merkle.pack(head.frontier), orjson.dumps(head.accounting).decode())
        )

    def _put_rare(self, entry: Entry) -> None:
        if entry.agent is not None:
            self._db.execute(sql.PUT_AGENT, rows.agent_row(entry.agent))
        for setting in (entry.settings or {}).items():
            self._db.execute(sql.PUT_SETTING, setting)
        if entry.erased is not None:
            erasing.erase(self._db, entry.erased)

    def _many(self, statements: Mapping[int, str], values: list[Any], width: int) -> None:
        count = len(values) // width
        if count > sql.ROWS_MAX:
            for start in range(0, len(values), sql.ROWS_MAX * width):
                self._many(statements, values[start : start + sql.ROWS_MAX * width], width)
            return
        room = sql.FITTING[count]
        values += [sql.NO_ROW] * ((room - count) * width)
        self._db.execute(statements[room], values)

    def _commit(self, table: _Rows) -> None:
        hit = faultpoints.hit
        if table.decisions:
            hit("audit.before_commit")
        if table.outcomes:
            hit("outcome.before_commit")
        if table.erasures:
            hit("erasure.before_commit")
        self._db.execute("COMMIT")
        self.unclean |= table.erasures or bool(table.forgets)
        if table.erasures:
            hit("erasure.after_commit")
        if table.decisions:
            hit("audit.after_commit")
        if table.outcomes:
            hit("outcome.after_commit")

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def checkpoint_due_in(self, checkpoint_seconds: float) -> float:
        """Seconds until the next checkpoint is due; not more than 0 when it is."""
        period = checkpoint_seconds if self._changed else HEARTBEAT_SECONDS
        return self._noted_monotonic + period - self._clock.monotonic()

    def records_since_checkpoint(self) -> int:
        return self.head.size - self._noted

    @property
    def changed(self) -> bool:
        return self._changed

    def file_due_in(self) -> float | None:
        """Seconds until HOME/checkpoint must follow the newest checkpoint; None when it has."""
        if self._unfiled is None:
            return None
        return self._filed_monotonic + CHECKPOINT_FILE_SECONDS - self._clock.monotonic()

    def file_checkpoint(self) -> None:
        if self._unfiled is not None:
            write_atomically(self._home.checkpoint, self._unfiled.encode())
            if self._home.checkpoints is not None:
                self._home.checkpoints.signed(self._unfiled)
            self._unfiled, self._filed_monotonic = None, self._clock.monotonic()

    def sign(self) -> str:
        """Signs a checkpoint of every record so far, in the log and in its file; returns the note."""
        self.write([], checkpoint=True)
        note = self._unfiled
        assert note is not None
        self.file_checkpoint()
        return note

    def rotate(self) -> str:
        """Begins with a new key: a record of it under a checkpoint that both keys sign; returns the new vkey.

        The transaction is the change: a process that ends after it takes up the new key at the next opening.
        """
        old, new = self._home.signer, self._home.next_signer()
        fields = {"event": "rotated", "previous": old.verifier.vkey, "vkey": new.verifier.vkey}
        entry = Entry("key", fields, settings={_VKEY: new.verifier.vkey})
        self.write([_queued(entry)], checkpoint=True, also=new)
        self._take_next_key()
        return new.verifier.vkey

    def _take_next_key(self) -> None:
        if not self._home.has_next_key:
            return
        row = self._db.execute(sql.SETTING, (_VKEY,)).fetchone()
        self.file_checkpoint()  # which both keys signed, before one of them is not there any more
        self._home.take_next_key(None if row is None else row[0])

    # --- what was erased -------------------------------------------------------------------------------------------

    def clean(self) -> bool:
        """Overwrites what was erased or forgotten, wherever bytes of it are left; False while older pages are read.

        Bytes are left in the -wal, and in pages from which rows were moved to others before they were deleted there.
        """
        if not self.unclean:
            return True
        faultpoints.hit("erasure.before_overwrite")
        self._db.execute(f"PRAGMA busy_timeout = {int(READER_SECONDS * 1000)}")
        (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        if busy:
            return False
        erasing.overwrite_moved(self._home.database, self._db)
        self._db.close()  # what it has of pages in its cache is older than the file
        self._db = _connect(self._home, "rw")
        self._prepare()
        faultpoints.hit("erasure.after_overwrite")
        self._db.execute(sql.SET_CLEAN)
        self.unclean = False
        return True

    # --- doubt and the end -----------------------------------------------------------------------------------------

    def end_doubtful(self, first: int, batch: Sequence[Queued] = ()) -> None:
        """Ends what was reported as not written and is on disk after all, from the record `first` on.

        Messages opened there are discarded: their senders were told that nothing is recorded. Moves of `batch`, where
        it is known, are taken back.
        """
        if ends := doubtful.ends(self._db, first, [entry for entry, _, _ in batch], self._clock.now_us()):
            self.write([_queued(entry) for entry in ends])
        self._home.write_doubt(None)

    def put_right(self, carried: Iterable[Entry]) -> None:
        """What has waited while the store was mended begins where its message is now, whatever was expected then."""
        doubtful.put_right(self._db, carried)

    def close(self) -> None:
        self._db.close()


def _queued(entry: Entry) -> Queued:
    return entry, rows.rest_of_record(entry), False


def _connect(home: Home, mode: str) -> sqlite3.Connection:
    """Opened by one thread and used by another, one at a time."""
    return sqlite3.connect(
        f"{home.database.as_uri()}?mode={mode}",
        timeout=BUSY_SECONDS,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
