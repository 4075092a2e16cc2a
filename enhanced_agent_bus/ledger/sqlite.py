"""The ledger that keeps: the loop hands over what it puts in a turn, one thread commits all that came since its last.

Not here: what a commit consists of (store), what is read back (reads), what the home is (home).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from enhanced_agent_bus.errors import AuditUnavailable, BusError
from enhanced_agent_bus.ledger import erasing, rows
from enhanced_agent_bus.ledger.home import Home
from enhanced_agent_bus.ledger.news import News
from enhanced_agent_bus.ledger.reads import Reads
from enhanced_agent_bus.ledger.store import Queued, Store
from enhanced_agent_bus.ports import AgentRow, Clock, Content, Entry, FactChange, StoredMessage
from enhanced_agent_bus.verdict import Recorded

#: More entries than this wait for the next commit; a commit of so many takes some 50 ms.
BATCH_ENTRIES_MAX: Final = 2000
#: A broken store is tried again at the next put, and at least this often.
MEND_SECONDS: Final = 0.25
#: What SQLite says of values that it will never take; the disk is fine.
UNWRITABLE: Final = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    KeyError,
    TypeError,
    OverflowError,
)
#: What was forgotten is overwritten this often, and less often where it takes longer than a hundredth of that time.
CLEAN_SECONDS: Final = 10.0
CLEAN_SHARE: Final = 0.01
#: So long somebody who reads older pages is waited for, by whoever erases; and how often it is tried at the end.
CLEAN_SECONDS_MAX: Final = 10.0
CLEAN_TRIES_AT_END: Final = 10
LAST: Final = 2
_FORKED: Final = "belongs to the process that was forked"
_REMEDY: Final = "nothing was delivered; once the disk answers, send again with the same id"


T = TypeVar("T")


class _Committed(NamedTuple):
    """What the loop hears of a commit."""

    first: int
    entries: list[Entry]
    size: int
    accounting: dict[str, int]


class _Job(NamedTuple):
    """Something else that the writer does with its store, between two commits."""

    work: Callable[[Store], Any]
    answer: asyncio.Future[Any]

    def tell(self, result: object, error: BusError | None) -> None:
        if self.answer.done():  # whoever asked has gone
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(error)


class SqliteLedger:
    """Fills `ports.Ledger` with a home on disk; opened by `open`, put to on the loop's thread only."""

    weakenings: tuple[str, ...] = ()

    def __init__(self, home: Home, store: Store, writer: _Writer) -> None:
        self.on_failure: Callable[[], None] | None = None
        self._home = home
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._put: list[Queued] = []  # the writer gets them at the end of a turn of the loop: see `_hand_over`
        self._news = News(_durable)
        self._telling = False  # the next turn goes on with it
        self._reads = Reads(home.database)
        self._pid = os.getpid()
        self._generation = 0
        self._closed = False  # takes no more, but for what has happened
        self._ended = False  # and takes nothing at all
        self._size = store.head.size
        self._accounting = store.head.accounting.copy()

    @classmethod
    async def open(
        cls, home: Home, *, clock: Clock, checkpoint_seconds: float = 10.0, checkpoint_records: int = 1000
    ) -> SqliteLedger:
        """Opens and verifies the log of a home that this process has locked.

        Raises: StoreCorrupt; AuditUnavailable, when the disk does not answer.
        """
        store = await asyncio.to_thread(_open_store, home, clock)
        writer = _Writer(home, clock, store, checkpoint_seconds, checkpoint_records)
        ledger = cls(home, store, writer)
        writer.start(asyncio.get_running_loop(), ledger)
        return ledger

    @property
    def bus(self) -> str:
        return self._home.bus

    @property
    def node(self) -> str:
        return self._home.node

    def put(self, entry: Entry) -> None:
        closed = self._ended or (self._closed and not entry.certain)
        if closed or (not self._put and os.getpid() != self._pid):
            _tell(entry, -1, _over("is closed") if closed else _over(_FORKED))
            return
        fields, opening = entry.fields, entry.opening
        try:
            if not isinstance(fields, dict):
                fields = fields()  # and not kept: the collector of cyclic garbage has the less to walk over
            rest = rows.written(entry.kind, fields)
        except BusError as error:
            _tell(entry, -1, error)
            return
        except (TypeError, ValueError) as error:
            _tell(entry, -1, BusError(f"a {entry.kind} record cannot be written as JSON: {error}", code="malformed"))
            return
        if not self._put and not self._news:
            self._loop.call_soon(self._hand_over)
        self._news.ask(entry.tenant)
        told = opening is not None and rows.tells(fields, opening.envelope)
        self._put.append((entry, rest, told))

    def _hand_over(self) -> None:
        """Gives the writer what was put in this turn, in one piece; while there is news to tell, `_tell_on` does.

        Woken by the first entry, it would commit that one alone, and wait for Python's lock while the loop is busy.
        """
        put, self._put = self._put, []
        if not put:
            return
        if os.getpid() != self._pid:
            for entry, _, _ in put:
                _tell(entry, -1, _over(_FORKED))
            return
        self._writer.queue.put((self._generation, put))

    def size(self) -> int:
        return self._size

    def accounting(self) -> dict[str, int]:
        counts = self._accounting.copy()
        for entry in self._news:  # as whoever is not told of it still sees it
            if entry.opening is not None:
                counts["accepted"] -= 1
                counts[entry.opening.state] -= 1
            if entry.move is not None:
                counts[entry.move.state] -= 1
                counts[entry.move.was] += 1
        return counts

    def find(self, message_id: str) -> StoredMessage | None:
        return self._read().find(message_id)

    def waiting(
        self, states: Sequence[str], *, recipient: str | None = None, after_seq: int = -1, limit: int = 1000
    ) -> list[StoredMessage]:
        return self._read().waiting(states, recipient, after_seq, limit)

    def facts(self, scope: str, owner: str) -> dict[str, bytes]:
        return self._read().facts(scope, owner)

    def fact_rows(self, scope: str | None = None, owner: str | None = None) -> list[FactChange]:
        return self._read().fact_rows(scope, owner)

    def record(self, seq: int) -> bytes:
        return self._read().record(seq)

    def decision(self, message_id: str, decision_id: str) -> bytes | None:
        return self._read().decision(message_id, decision_id)

    def texts(self, seq: int) -> bytes | None:
        return self._read().texts(seq)

    def agents(self) -> list[AgentRow]:
        return self._read().agents()

    def setting(self, key: str) -> str | None:
        return self._read().setting(key)

    async def checkpoint(self) -> str:
        return str(await self._ask(Store.sign))

    async def rotate_key(self) -> str:
        return str(await self._ask(Store.rotate))

    async def _ask(self, work: Callable[[Store], Any]) -> Any:
        """Has the writer do something after all that was put until now."""
        if self._closed or os.getpid() != self._pid:
            raise _over("is closed" if self._closed else _FORKED)
        self._hand_over()
        job = _Job(work, self._loop.create_future())
        self._writer.queue.put(job)
        return await job.answer

    async def contents(
        self, *, message: str | None = None, conversation: str | None = None, agent: str | None = None
    ) -> list[Content]:
        find = partial(erasing.contents, message=message, conversation=conversation, agent=agent)
        return await asyncio.to_thread(self._apart, find)

    async def contents_before(
        self, kind: str, before_us: int, *, after_seq: int = -1, limit: int = 200
    ) -> tuple[list[Content], int]:
        find = partial(erasing.contents_before, kind=kind, before_us=before_us, after_seq=after_seq, limit=limit)
        return await asyncio.to_thread(self._apart, find)

    def _apart(self, find: Callable[[sqlite3.Connection], T]) -> T:
        """What takes long is read on a connection of its own, off the loop."""
        reads = Reads(self._home.database)
        try:
            return reads.with_connection(find)
        finally:
            reads.close()

    async def clean(self) -> None:
        until = self._loop.time() + CLEAN_SECONDS_MAX
        while not await self._ask(Store.clean):
            if self._loop.time() > until:
                raise AuditUnavailable(
                    "what was erased is no longer in the log, and its bytes are still in the files: somebody reads"
                    " an older state of the database",
                    remedy="end long readings of the log, such as an export; it is tried again until it is done",
                )
            await asyncio.sleep(MEND_SECONDS)

    def _read(self) -> Reads:
        if os.getpid() != self._pid:
            raise _over(_FORKED)
        return self._reads

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        # Read connections first: the last one to close folds the WAL into the database.
        self._reads.close()
        await self._writer.close()
        if self._home.checkpoints is not None:
            await self._home.checkpoints.close()
        self._home.release()

    def last_words(self) -> None:
        """All that was handed over is written and told; what was put on hearing of that is the end."""
        self._news.tell_all()
        self._hand_over()
        self._ended = True
        self._writer.queue.put(None)

    # --- what the writer reports, on the loop ----------------------------------------------------------------------

    def heard(self, committed: _Committed) -> None:
        """A commit is durable."""
        first, entries, self._size, self._accounting = committed
        self._news.add(first, entries)
        if self._ended:  # the loop may not come back
            self._news.tell_all()
            return
        self._news.tell_some()
        self._go_on()

    def _go_on(self) -> None:
        """What is left to tell is told in the next turns, when those told now have had theirs."""
        if not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell_on)

    def _tell_on(self) -> None:
        """The next slice; where tenants share the bus, only while nothing is on its way to the disk.

        Else what one tenant goes on with would be in the way of a commit that another waits for: the writer, which is a
        thread of the same process, and the turn of the loop that hears of it.
        """
        self._telling = False
        if self._news and self._news.shared and self._news.asking:
            self._hand_over()
        elif self._news:
            self._news.tell_some()
            self._go_on()
        else:
            self._hand_over()

    def refused(self, entry: Entry, error: BusError) -> None:
        """The store will never take this entry."""
        self._news.answered(entry.tenant)
        _tell(entry, -1, error)
        self._go_on()

    def failed(self, entries: list[Entry], error: AuditUnavailable, generation: int) -> None:
        """The store broke; entries put until now belong to what is void."""
        self._news.tell_all()
        self._hand_over()
        if generation > self._generation:
            self._generation = generation
            self._reads.close()
            if self.on_failure is not None:
                self.on_failure()
        for entry in entries:
            self._news.answered(entry.tenant)
            _tell(entry, -1, error)


def _durable(seq: int, entry: Entry) -> None:
    if entry.admitted is not None:
        entry.recorded = Recorded(entry.admitted, seq)
    done, entry.done = entry.done, None  # what it is bound to often holds the entry: a circle otherwise
    if done is not None:
        try:
            done(seq, None)
        except Exception as broken:  # noqa: BLE001 - see `_broken`
            _broken(broken)


def _tell(entry: Entry, seq: int, error: BusError) -> None:
    done, entry.done = entry.done, None
    if done is None:
        return
    try:
        done(seq, error)
    except Exception as broken:  # noqa: BLE001 - see `_broken`
        _broken(broken)


def _broken(error: Exception) -> None:
    """As asyncio does: one caller's bug must not cost the others their answer."""
    asyncio.get_running_loop().call_exception_handler({"message": "Entry.done raised", "exception": error})


def _over(why: str) -> AuditUnavailable:
    return AuditUnavailable(f"the log {why}", remedy="open the bus anew")


def _open_store(home: Home, clock: Clock) -> Store:
    try:
        store = Store.open(home, clock)
        doubt = home.read_doubt()
        if doubt is not None:
            try:
                store.end_doubtful(doubt)
            except BaseException:
                store.close()
                raise
        store.clean()
    except (sqlite3.Error, OSError) as error:
        raise AuditUnavailable(f"the log cannot be opened: {error}", remedy="look at the disk it is on") from error
    return store


class _Writer:
    """The thread that owns the store: takes what queued, commits, reports; mends the store when it broke."""

    def __init__(
        self, home: Home, clock: Clock, store: Store, checkpoint_seconds: float, checkpoint_records: int
    ) -> None:
        #: What was put in one turn of the loop, and in which generation of the store; None to end.
        self.queue: queue.SimpleQueue[tuple[int, list[Queued]] | _Job | None] = queue.SimpleQueue()
        self._jobs: list[_Job] = []  # for when all that waits is written
        self._waiting: list[Queued] = []  # handed over, for this commit and those after it
        self._home = home
        self._clock = clock
        self._store: Store | None = store
        self._checkpoint_seconds = checkpoint_seconds
        self._checkpoint_records = checkpoint_records
        self._generation = 0
        self._broken_at = 0  # size of the log when the store broke
        self._doubtful: list[Queued] = []  # the batch that may or may not be on disk
        self._certain: list[Queued] = []  # what has happened and must still be written
        self._cleaned_monotonic = time.monotonic()
        self._clean_seconds = 0.0  # how long it took last
        self._stopping = 0  # 1: asked to end; LAST: and nothing more will come

    def start(self, loop: asyncio.AbstractEventLoop, ledger: SqliteLedger) -> None:
        self._loop = loop
        self._ledger = ledger
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="eab-ledger", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        self.queue.put(None)
        await self._ended.wait()
        self._thread.join()

    def _run(self) -> None:
        asked = False
        while self._waiting or self._stopping < LAST:
            if self._stopping and not self._waiting and not asked:
                asked = True
                self._post(self._ledger.last_words)
            batch = self._take()
            try:
                self._turn(batch)
                self._work()
            except Exception as error:  # noqa: BLE001 - whatever broke, nothing of this batch counts as recorded
                self._break(batch, error)
        self._finish()
        self._post(self._ended.set)

    def _take(self) -> list[Queued]:
        """All that was handed over, waiting for the first until something else is due."""
        if not self._waiting:
            with contextlib.suppress(queue.Empty):
                self._receive(self.queue.get(timeout=self._idle_seconds()))
        self._receive_all()
        batch = self._waiting[:BATCH_ENTRIES_MAX]
        del self._waiting[:BATCH_ENTRIES_MAX]
        return batch

    def _receive_all(self) -> None:
        while not self.queue.empty():
            self._receive(self.queue.get_nowait())

    def _receive(self, handed: tuple[int, list[Queued]] | _Job | None) -> None:
        if handed is None:
            self._stopping += 1
            return
        if isinstance(handed, _Job):
            self._jobs.append(handed)
            return
        generation, put = handed
        if generation < self._generation:
            # Put before the loop had heard that the store broke: void like the rest of that time.
            stale = [entry for entry, _, _ in put if not entry.certain]
            if stale:
                self._post(self._ledger.failed, stale, _unavailable("the log broke meanwhile"), self._generation)
            self._certain += [item for item in put if item[0].certain]
            return
        self._waiting += put

    def _idle_seconds(self) -> float:
        if self._store is None:
            return MEND_SECONDS
        due = self._store.checkpoint_due_in(self._checkpoint_seconds)
        file_due = self._store.file_due_in()
        # A moment of quiet is when the file is written; it is overdue only under load.
        return 0.0 if file_due is not None else max(0.0, min(due, self._clean_due_in(self._store)))

    def _clean_due_in(self, store: Store) -> float:
        period = max(CLEAN_SECONDS, self._clean_seconds / CLEAN_SHARE)
        return self._cleaned_monotonic + period - time.monotonic() if store.unclean else math.inf

    def _turn(self, batch: list[Queued]) -> None:
        store = self._store if self._store is not None else self._mend()
        if self._certain:
            store.put_right(entry for entry, _, _ in self._certain)
            batch[:0] = self._certain
            self._certain = []
        due = (
            store.records_since_checkpoint() + len(batch) >= self._checkpoint_records and _is_news(store, batch)
        ) or store.checkpoint_due_in(self._checkpoint_seconds) <= 0
        if batch or due:
            self._write(store, batch, checkpoint=due)
            batch.clear()
        file_due = store.file_due_in()
        if file_due is not None and (file_due <= 0 or (self.queue.empty() and not self._waiting)):
            store.file_checkpoint()
        if self._clean_due_in(store) <= 0:
            self._clean(store)

    def _clean(self, store: Store) -> bool:
        begun = time.monotonic()
        clean = store.clean()
        self._cleaned_monotonic = time.monotonic()
        self._clean_seconds = self._cleaned_monotonic - begun if clean else 0.0
        return clean

    def _work(self) -> None:
        """Does what was asked for once nothing waits before it. Raises: what breaks the store."""
        while self._jobs and not self._waiting:
            store, job = self._store, self._jobs.pop(0)
            assert store is not None
            try:
                result = job.work(store)
            except BusError as error:
                self._post(job.tell, None, error)
            except Exception as error:
                self._post(job.tell, None, _unavailable(f"nothing can be recorded: {error}"))
                raise
            else:
                self._report(store, store.head.size, [])
                self._post(job.tell, result, None)

    def _write(self, store: Store, batch: list[Queued], *, checkpoint: bool) -> None:
        try:
            first = store.write(batch, checkpoint=checkpoint)
        except UNWRITABLE:
            store.roll_back()
            self._write_singly(store, batch)
        else:
            self._report(store, first, batch)

    def _write_singly(self, store: Store, batch: list[Queued]) -> None:
        """Something in this batch cannot be stored by anyone (a second message with one id): that entry fails alone."""
        for item in batch.copy():
            try:
                first = store.write([item])
            except UNWRITABLE as error:
                store.roll_back()
                refusal = BusError(f"a {item[0].kind} record cannot be stored: {error}", code="malformed")
                self._post(self._ledger.refused, item[0], refusal)
            else:
                self._report(store, first, [item])
            del batch[0]

    def _report(self, store: Store, first: int, batch: list[Queued]) -> None:
        entries = [entry for entry, _, _ in batch]
        self._post(self._ledger.heard, _Committed(first, entries, store.head.size, store.head.accounting))

    def _post(self, function: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *values)
        except RuntimeError:  # the loop is closed: nobody is left who could be told
            self._stopping = LAST

    # --- when the store breaks -------------------------------------------------------------------------------------

    def _break(self, batch: list[Queued], error: Exception) -> None:
        """Nothing of this batch counts, nor of what queued behind it; the store is closed, if it was open."""
        doubtful = batch.copy()
        self._receive_all()
        batch += self._waiting
        self._waiting.clear()
        lost = [entry for entry, _, _ in batch if not entry.certain]
        self._certain += [item for item in batch if item[0].certain]
        store, self._store = self._store, None
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            self._post(job.tell, None, _unavailable(f"nothing can be recorded: {error}"))
        if store is not None or lost:
            self._generation += 1
        if store is not None:
            self._broken_at, self._doubtful = store.head.size, doubtful
            store.close()
            with contextlib.suppress(OSError):  # best effort: the next opening looks here, this process remembers
                self._home.write_doubt(self._broken_at)
        self._post(self._ledger.failed, lost, _unavailable(f"nothing can be recorded: {error}"), self._generation)

    def _mend(self) -> Store:
        """Opens the store again, verified, and settles what was in doubt. Raises: what opening raises."""
        store = Store.open(self._home, self._clock, verify_records=0)  # from the newest checkpoint on
        try:
            store.require(self._broken_at)
            # A commit is there wholly or not at all, and nothing that queued behind it is.
            found = self._doubtful[: store.head.size - self._broken_at]
            store.end_doubtful(self._broken_at, found)
        except BaseException:
            store.close()
            raise
        settled = {id(item) for item in found}
        self._certain = [item for item in self._certain if id(item) not in settled]
        for seq, item in enumerate(found, self._broken_at):
            if item[0].certain:
                self._report(store, seq, [item])
        self._store, self._doubtful = store, []
        return store

    def _finish(self) -> None:
        """What is left, a last checkpoint, and the end."""
        batch: list[Queued] = []
        try:
            self._turn(batch)
            store = self._store
            if store is not None:
                if store.changed:
                    self._write(store, [], checkpoint=True)
                store.file_checkpoint()
                for _ in range(CLEAN_TRIES_AT_END):  # else at the next opening
                    if self._clean(store):
                        break
                store.close()
        except Exception as error:  # noqa: BLE001 - as in `_run`: what could not be written is said to be so
            self._break(batch, error)
            left, self._certain = [entry for entry, _, _ in self._certain], []
            self._post(self._ledger.failed, left, _unavailable(f"nothing can be recorded: {error}"), self._generation)


def _is_news(store: Store, batch: Sequence[Queued]) -> bool:
    """Whether there is more than what other logs had signed: two that witness each other would never come to rest."""
    return store.changed or any(entry.kind != "witness" for entry, _, _ in batch)


def _unavailable(why: str) -> AuditUnavailable:
    return AuditUnavailable(why, remedy=_REMEDY)
