"""The ledger that keeps: the loop hands over what it puts in a turn, one thread commits all that came since its last.

Not here: the thread (writer), what a commit consists of (store), what is read back (reads), what the home is (home).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from enhanced_agent_bus.errors import AuditUnavailable, BusError
from enhanced_agent_bus.ledger import erasing, rows
from enhanced_agent_bus.ledger.home import Home
from enhanced_agent_bus.ledger.news import News
from enhanced_agent_bus.ledger.reads import Reads
from enhanced_agent_bus.ledger.store import Queued, Store
from enhanced_agent_bus.ledger.writer import MEND_SECONDS, Committed, Job, Writer
from enhanced_agent_bus.ports import AgentRow, Clock, Content, Entry, FactChange, StoredMessage
from enhanced_agent_bus.verdict import Recorded

#: So long somebody who reads older pages is waited for, by whoever erases.
CLEAN_SECONDS_MAX: Final = 10.0
_FORKED: Final = "belongs to the process that was forked"


T = TypeVar("T")


class SqliteLedger:
    """Fills `ports.Ledger` with a home on disk; opened by `open`, put to on the loop's thread only."""

    weakenings: tuple[str, ...] = ()

    def __init__(self, home: Home, store: Store, writer: Writer) -> None:
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
        writer = Writer(home, clock, store, checkpoint_seconds, checkpoint_records)
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

    def newest_outcome(self, message_id: str) -> int | None:
        return self._read().newest_outcome(message_id)

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
        job = Job(work, self._loop.create_future())
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

    # --- what the writer reports, on the loop (`writer.Hears`) ---------------------------------------------------

    def heard(self, committed: Committed) -> None:
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
