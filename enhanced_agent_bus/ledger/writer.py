"""The thread that commits what the loop hands over, and mends the store when it broke.

Not here: who waits for a commit (sqlite), what a commit consists of (store).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from enhanced_agent_bus.errors import AuditUnavailable, BusError
from enhanced_agent_bus.ledger.home import Home
from enhanced_agent_bus.ledger.store import Queued, Store
from enhanced_agent_bus.ports import Clock, Entry

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
#: How often at the end, while somebody reads older pages.
CLEAN_TRIES_AT_END: Final = 10
LAST: Final = 2
_REMEDY: Final = "nothing was delivered; once the disk answers, send again with the same id"


class Committed(NamedTuple):
    """What the loop hears of a commit."""

    first: int
    entries: list[Entry]
    size: int
    accounting: dict[str, int]


class Job(NamedTuple):
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


class Hears(Protocol):
    """Whom the writer reports to: the ledger, on its loop."""

    def heard(self, committed: Committed) -> None: ...

    def refused(self, entry: Entry, error: BusError) -> None: ...

    def failed(self, entries: list[Entry], error: AuditUnavailable, generation: int) -> None: ...

    def last_words(self) -> None: ...


class Writer:
    """The thread that owns the store: takes what queued, commits, reports; mends the store when it broke."""

    def __init__(
        self, home: Home, clock: Clock, store: Store, checkpoint_seconds: float, checkpoint_records: int
    ) -> None:
        #: What was put in one turn of the loop, and in which generation of the store; None to end.
        self.queue: queue.SimpleQueue[tuple[int, list[Queued]] | Job | None] = queue.SimpleQueue()
        self._jobs: list[Job] = []  # for when all that waits is written
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

    def start(self, loop: asyncio.AbstractEventLoop, ledger: Hears) -> None:
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

    def _receive(self, handed: tuple[int, list[Queued]] | Job | None) -> None:
        if handed is None:
            self._stopping += 1
            return
        if isinstance(handed, Job):
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
        self._post(self._ledger.heard, Committed(first, entries, store.head.size, store.head.accounting))

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
