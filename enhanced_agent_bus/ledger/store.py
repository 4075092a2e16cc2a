"""The log on disk as one connection sees it: opened and verified, a batch written in one transaction, checkpoints.

Everything here is synchronous and belongs to one thread at a time. Not here: who waits for a batch (sqlite), reading
for the bus (reads), and the SQL itself (sql).
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.errors import StoreCorrupt
from enhanced_agent_bus.ledger import erasing, merkle, rows, sql
from enhanced_agent_bus.ledger.checkpoint import Checkpoint, Signer
from enhanced_agent_bus.ledger.home import Home, write_atomically
from enhanced_agent_bus.outcome import END_STATES, WAITING_STATES
from enhanced_agent_bus.ports import Clock, Entry, Move, StoredMessage

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
_PAGE_ROWS: Final = 1000
_RECORD: Final = rows.blob(b'{"v":1,"seq":%d%b%b')
_VKEY: Final = "log.vkey"  # the setting that names the key of the newest rotation
_DOUBT: Final = "audit_unavailable"

RESTORE: Final = "restore the home from a backup; without one, `eab init --new-log` begins anew"


#: An entry on its way to the disk, what its record will hold, and whether that tells the envelope which it opens.
#: (A bare tuple, because two are made for each message.)
Queued = tuple[Entry, bytes, bool]


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
                store._recover(verify_records)
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

    def _recover(self, verify_records: int) -> None:
        """Verifies that this is a log, and its end."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        if application != sql.APPLICATION_ID or version != sql.SCHEMA_VERSION:
            raise StoreCorrupt(f"{self._home.database} is not a log that this version writes", remedy=RESTORE)
        self._verify(verify_records)

    def _verify(self, verify_records: int) -> None:
        row = self._db.execute(sql.GET_HEAD).fetchone()
        if row is None:
            raise StoreCorrupt("the log has lost its head", remedy=RESTORE)
        size, at_us, frontier, accounting = row
        (count,) = self._db.execute(sql.COUNT_RECORDS).fetchone()
        if count != size or not size:
            raise StoreCorrupt(f"the log has {count} records where {size} were written", remedy=RESTORE)
        self._verify_file(size)
        newest = self._checkpoint_row(self._db.execute(sql.NEWEST_CHECKPOINT).fetchone())
        # Where to begin is not trusted (an older key may have signed it): the newest root would not come out.
        tree, begin = self._start(max(0, size - verify_records))
        self._replay(tree, begin, newest.size)
        if tree != newest.tree():
            raise StoreCorrupt(f"a record before {newest.size} is not what was signed", remedy=RESTORE)
        self._replay(tree, newest.size, size)
        if merkle.pack(tree) != frontier:
            raise StoreCorrupt(f"the log's end does not have the tree that was written (size {size})", remedy=RESTORE)
        self.head = Head(size, at_us, tree, {**Head().accounting, **orjson.loads(accounting)})
        self._verify_states()
        self.unclean = self._db.execute(sql.SETTING, (sql.UNCLEAN,)).fetchone() is not None
        self._noted = newest.size
        self._unfiled = newest.note  # a crash may have come between the record and the file
        # A log that ends in its newest checkpoint has nothing new to vouch for.
        self._changed = newest.seq != size - 1

    def _start(self, size: int) -> tuple[list[bytes], int]:
        """The newest tree that is not larger than this; at the least the empty one."""
        row = self._db.execute(sql.CHECKPOINT_BEFORE, (size,)).fetchone()
        if row is None:
            return [], 0
        start = _CheckpointRow(*row)
        try:
            return start.tree(), start.size
        except ValueError as error:
            raise StoreCorrupt(f"the checkpoint at size {start.size} is damaged: {error}", remedy=RESTORE) from None

    def _replay(self, tree: list[bytes], seq: int, end: int) -> None:
        """Grows a tree of `seq` leaves over every record up to `end`."""
        while seq < end:
            page = self._db.execute(sql.RECORDS_FROM, (seq, min(_PAGE_ROWS, end - seq))).fetchall()
            for expected, (found, body) in enumerate(page, seq):
                if found != expected or not isinstance(body, bytes) or not body.startswith(b'{"v":1,"seq":%d,' % found):
                    raise StoreCorrupt(f"record {expected} is missing or damaged", remedy=RESTORE)
            if not page:
                raise StoreCorrupt(f"record {seq} is missing", remedy=RESTORE)
            merkle.extend(tree, seq, [merkle.leaf_hash(body) for _, body in page])
            seq += len(page)

    def _checkpoint_row(self, row: tuple[int, int, str, bytes] | None) -> _CheckpointRow:
        if row is None:
            raise StoreCorrupt("the log has lost its checkpoints", remedy=RESTORE)
        known = _CheckpointRow(*row)
        size = known.size
        try:
            frontier = known.tree()
            vouched = self._home.signer.verifier.open(known.note)
        except ValueError as error:
            raise StoreCorrupt(f"the checkpoint at size {size} is damaged: {error}", remedy=RESTORE) from None
        if vouched != Checkpoint(self._home.origin, size, merkle.root_hash(frontier)):
            raise StoreCorrupt(f"the checkpoint at size {size} does not match the log", remedy=RESTORE)
        return known

    def _verify_file(self, size: int) -> None:
        """HOME/checkpoint stands outside the database: it knows when the database has become older."""
        try:
            note = self._home.checkpoint.read_text()
            vouched = self._home.signer.verifier.open(note)
        except (OSError, ValueError) as error:
            raise StoreCorrupt(
                f"{self._home.checkpoint} cannot be read or was not signed by this log ({error})",
                remedy="restore it from a backup: it is the newest signed checkpoint of the log",
            ) from None
        if vouched.size > size:
            raise StoreCorrupt(
                f"the log has {size} records, and its newest checkpoint vouches for {vouched.size}: the end is lost",
                remedy="restore bus.db with bus.db-wal from a backup; without one, `eab init --new-log` begins anew",
            )
        row = self._db.execute(sql.CHECKPOINT_AT, (vouched.size,)).fetchone()
        if row is None or row[2] != note:
            raise StoreCorrupt(
                f"the log is not the one that {self._home.checkpoint} vouches for (size {vouched.size})", remedy=RESTORE
            )

    def _verify_states(self) -> None:
        """The states that wait are not in the tree, so they are counted."""
        found = dict(self._db.execute(sql.COUNT_LISTED).fetchall())
        for state in sql.LISTED_STATES:
            expected = self.head.accounting[state]
            if found.get(state, 0) != expected:
                raise StoreCorrupt(
                    f"{found.get(state, 0)} messages are {state} where {expected} were written", remedy=RESTORE
                )

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

    def _add_checkpoint(self, table: _Rows, head: Head, also: Signer | None) -> _CheckpointRow:
        """Signs the tree of all records so far and appends that as a record, which the next one will cover."""
        size, root = head.size, merkle.root_hash(head.frontier)
        note = self._home.signer.sign(Checkpoint(self._home.origin, size, root), also)
        signed = _CheckpointRow(size, size, note, merkle.pack(head.frontier))
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
        now_us = self._clock.now_us()
        opened = self._db.execute(sql.OPENED_SINCE, (first, *END_STATES)).fetchall()
        ends = [(message.envelope.id, _discarded(message, now_us)) for message in map(rows.stored_message, opened)]
        for entry, _, _ in reversed(batch):
            move = entry.move
            if move is None or move.was == move.state or entry.message_id is None or entry.certain:
                continue  # what changed no state (an approval) may stay
            if self._is_in(move):
                undone = move._replace(was=move.state, state=move.was, since_us=now_us, code=_DOUBT, forget=False)
                ends.append((entry.message_id, undone))
        if ends:
            self.write([_queued(entry) for entry in itertools.starmap(_end, ends)])
        self._home.write_doubt(None)

    def put_right(self, carried: Iterable[Entry]) -> None:
        """What has waited while the store was mended begins where its message is now, whatever was expected then."""
        states: dict[int, str] = {}
        for entry in carried:
            if (move := entry.move) is not None:
                if move.row not in states:
                    (states[move.row],) = self._db.execute(sql.STATE_OF, (move.row,)).fetchone() or (move.was,)
                entry.move = move._replace(was=states[move.row])
                states[move.row] = move.state

    def _is_in(self, move: Move) -> bool:
        """Whether a message is where this move took it: not, when that was taken back before."""
        return bool(self._db.execute(sql.STATE_OF, (move.row,)).fetchone() == (move.state,))

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


def _discarded(message: StoredMessage, now_us: int) -> Move:
    return Move(
        row=message.seq,
        was=message.state,
        state="discarded",
        attempts=message.attempts,
        due_us=0,
        since_us=now_us,
        code=_DOUBT,
        error=None,
        decision_id=message.decision_id,
        added=message.added,
        expires_us=message.envelope.expires_us,
        reply_id=None,
        forget=False,
        notes=message.notes,
    )


def _end(message_id: str, move: Move) -> Entry:
    """The outcome record of a decision that was reported as not recorded."""
    fields = {
        "message_id": message_id,
        "decision_id": move.decision_id,
        "state": move.state if move.state in ("discarded", "dead_lettered", "parked") else "failed",
        "code": _DOUBT,
        "attempt": move.attempts,
        "duration_us": 0,
        "error": None,
    }
    return Entry("outcome", fields, message_id, move=move)


class _CheckpointRow(NamedTuple):
    size: int
    seq: int
    note: str
    frontier: bytes

    def tree(self) -> list[bytes]:
        return merkle.unpack(self.frontier, self.size)


def damage(error: sqlite3.Error) -> StoreCorrupt | None:
    """A database that cannot be read as one, told from a disk that does not answer."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or not isinstance(error, sqlite3.OperationalError):
        return StoreCorrupt(f"bus.db is damaged: {error}", remedy=RESTORE)
    return None
