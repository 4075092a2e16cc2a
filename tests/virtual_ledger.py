"""The disk of a bus in virtual time: what `ledger/sqlite.py` promises, with neither a thread nor a file.

Its commits take time that the seed chooses, fail, and may be on disk though they were said to have failed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, Protocol

from enhanced_agent_bus import AuditUnavailable, BusError
from enhanced_agent_bus.ledger import rows
from enhanced_agent_bus.ledger.memory import MemoryLedger
from enhanced_agent_bus.outcome import END_STATES
from enhanced_agent_bus.ports import AgentRow, Content, Entry, FactChange, Move, StoredMessage
from enhanced_agent_bus.verdict import Recorded
from tests.virtual_loop import START_US, VirtualLoop, Weather, while_seconds

MEND_SECONDS: Final = 0.25


class Listener(Protocol):
    """Sees the log as it is written: what is durable, then that the bus has heard of it."""

    def durable(self, seq: int, entry: Entry) -> None: ...

    def told(self, seq: int, entry: Entry) -> None: ...

    def settled(self, accounting: Mapping[str, int]) -> None: ...


class VirtualLedger:
    """Fills `ports.Ledger` as `ledger/sqlite.py` does: batches that take time, fail, and may be on disk all the same.

    `store` is the disk. It outlives this ledger, which `close` leaves after all is written, and `crash` at once.
    """

    weakenings: tuple[str, ...] = ()
    bus: str = "bus-virtual"
    node: str = "node-virtual"

    def __init__(self, store: MemoryLedger, loop: VirtualLoop, dice: Random, weather: Weather, to: Listener) -> None:
        self.on_failure: Callable[[], None] | None = None
        self._store = store
        self._loop = loop
        self._dice = dice
        self._weather = weather
        self._listener = to
        self._size = store.size()
        self._accounting = store.accounting()
        self._closed = False
        self._gone = False
        self._crashed = False
        self._put: list[Entry] = []
        self._posts: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._generation = 0  # as the loop knows it
        # The writer's:
        self._queue: list[tuple[int, list[Entry]]] = []
        self._writing: list[Entry] | None = None
        self._awake = False
        self._stall_seconds = 0.0
        self._breaks = 0  # its generation
        self._broken_until: float | None = None
        self._broken_at = 0
        self._settle_doubt: list[tuple[int, Entry, Any]] = []
        self._doubtful: list[Entry] = []  # what is on disk though it was said to have failed
        self._certain: list[Entry] = []

    # --- on the loop -------------------------------------------------------------------------------------------------

    async def contents(self, **what: str | None) -> list[Content]:
        return await self._store.contents(**what)

    async def contents_before(
        self, kind: str, before_us: int, *, after_seq: int = -1, limit: int = 200
    ) -> tuple[list[Content], int]:
        return await self._store.contents_before(kind, before_us, after_seq=after_seq, limit=limit)

    async def clean(self) -> None:
        """There are no files."""

    def put(self, entry: Entry) -> None:
        if self._gone or (self._closed and not entry.certain):
            self._tell(entry, AuditUnavailable("the log is closed"))
            return
        try:
            rows.rest_of_record(entry)
        except BusError as error:
            self._tell(entry, error)
            return
        if not self._put:
            self._loop.call_soon(self._hand_over)
        self._put.append(entry)

    def _hand_over(self) -> None:
        put, self._put = self._put, []
        if put and not self._gone:
            self._queue.append((self._generation, put))
            self._wake(0.0)

    def _heard(self, done: list[tuple[int, Entry, Any]], size: int, accounting: dict[str, int]) -> None:
        self._size, self._accounting = size, accounting
        for seq, entry, told in self._tenants_in_turn(done):
            if entry.admitted is not None:
                entry.recorded = Recorded(entry.admitted, seq)
            self._listener.told(seq, entry)
            if told is not None:
                told(seq, None)
        self._listener.settled(accounting)

    def _tenants_in_turn(self, done: list[tuple[int, Entry, Any]]) -> list[tuple[int, Entry, Any]]:
        """As the port allows: in order within a tenant, any tenant's first, none past an entry that is of none."""
        dice = Random(self._size)  # its own: seeds that have found something are to find it again
        told: list[tuple[int, Entry, Any]] = []
        lines: dict[str, deque[tuple[int, Entry, Any]]] = {}
        for item in [*done, None]:
            if item is not None and item[1].tenant:
                lines.setdefault(item[1].tenant, deque()).append(item)
                continue
            while lines:
                tenant = dice.choice(list(lines))
                told.append(lines[tenant].popleft())
                if not lines[tenant]:
                    del lines[tenant]
            if item is not None:
                told.append(item)
        return told

    def _failed(self, lost: list[Entry], generation: int) -> None:
        self._hand_over()
        if generation > self._generation:
            self._generation = generation
            if self.on_failure is not None:
                self.on_failure()
        for entry in lost:
            self._tell(entry, AuditUnavailable("the disk was taken away"))

    def _tell(self, entry: Entry, error: BusError) -> None:
        done, entry.done = entry.done, None
        if done is not None and not self._crashed:
            done(-1, error)

    # --- the writer --------------------------------------------------------------------------------------------------

    def _post(self, function: Callable[..., None], *values: object) -> None:
        self._posts.append((function, values))
        self._loop.call_later(while_seconds(self._dice, 0, 0), self._deliver)

    def _deliver(self) -> None:
        function, values = self._posts.popleft()  # in order, whichever timer this is
        if not self._gone:
            function(*values)

    def _wake(self, seconds: float) -> None:
        if not self._awake and self._writing is None:
            self._awake = True
            self._loop.call_later(seconds, self._take)

    def _take(self) -> None:
        self._awake = False
        if self._gone:
            return
        batch = self._received()
        if self._broken_until is not None and not self._mend():
            self._break(batch)
            return
        states: dict[int, str] = {}
        for entry in self._certain:  # as `Store.put_right`
            if (move := entry.move) is not None and entry.message_id is not None:
                found = self._store.find(entry.message_id)
                was = states.get(move.row, found.state if found is not None else move.was)
                entry.move = move._replace(was=was)
                states[move.row] = move.state
        self._writing = self._certain + batch
        self._certain = []
        seconds, self._stall_seconds = self._stall_seconds, 0.0
        self._loop.call_later(seconds or while_seconds(self._dice, self._weather.slow, 12), self._commit)

    def _received(self) -> list[Entry]:
        batch: list[Entry] = []
        for generation, put in self._queue:
            stale = [entry for entry in put if generation < self._breaks and not entry.certain]
            if stale:
                self._post(self._failed, stale, self._breaks)
            if generation == self._breaks:
                batch += put
            else:
                self._certain += [entry for entry in put if entry.certain]
        self._queue = []
        return batch

    def _commit(self) -> None:
        batch, self._writing = self._writing, None
        if self._gone or batch is None:
            return
        if batch and self._dice.random() < self._weather.disk:
            self._broken_at = self._store.size()
            if self._dice.random() < 0.5:
                self._doubtful = batch
            self._break(batch)
            return
        done = self._written(batch)
        self._post(self._heard, done, self._store.size(), self._store.accounting())
        if self._queue:
            self._wake(0.0)

    def _written(self, batch: list[Entry]) -> list[tuple[int, Entry, Any]]:
        """Into the store, in one piece: each entry's seq, and who is to be told of it."""
        written = []
        for entry in batch:
            told, entry.done = entry.done, None
            seq = self._store.size()
            self._store.put(entry)
            entry.recorded = None
            if self._store.size() == seq:  # a second message with one id
                entry.done = told
                self._post(self._tell, entry, BusError("there is such a message already", code="malformed"))
                continue
            self._listener.durable(seq, entry)
            written.append((seq, entry, told))
        return written

    def _break(self, batch: list[Entry]) -> None:
        batch = batch + self._received()
        lost = [entry for entry in batch if not entry.certain]
        self._certain += [entry for entry in batch if entry.certain]
        first = self._broken_until is None
        if first or lost:
            self._breaks += 1
        if first:
            self._broken_until = self._loop.time() + self._dice.random() * self._weather.outage_seconds
            if self._doubtful:
                self._settle_doubt = self._put_on_disk(self._doubtful)
        self._post(self._failed, lost, self._breaks)
        self._wake(MEND_SECONDS)

    def _put_on_disk(self, batch: list[Entry]) -> list[tuple[int, Entry, Any]]:
        kept = [entry.done for entry in batch]
        written = self._written(batch)
        for entry, done in zip(batch, kept, strict=True):
            entry.done = done  # they are told that it failed, or, of what is certain, when the store is mended
        return written

    def _mend(self) -> bool:
        if self._broken_until is None or self._loop.time() < self._broken_until:
            return False
        self._broken_until = None
        if self._doubtful:
            found, self._doubtful = self._doubtful, []
            self._end_doubtful(found)
            here = {id(entry) for entry in found}
            self._certain = [entry for entry in self._certain if id(entry) not in here]
            report = [
                (seq, entry, done)
                for seq, entry, _ in self._settle_doubt
                if entry.certain and (done := entry.done) is not None
            ]
            for _, entry, _ in report:
                entry.done = None
            self._post(self._heard, report, self._store.size(), self._store.accounting())
        return True

    def _end_doubtful(self, batch: Sequence[Entry]) -> None:
        """As `ledger/store.py`: what was said to have failed and is on disk, ends there."""
        now_us = START_US + int(self._loop.time() * 1e6)
        opened = self._store.waiting(["queued", "parked", "held", "retrying"], after_seq=self._broken_at - 1)
        ends = [(stored.envelope.id, _discarded(stored, now_us)) for stored in opened]
        for entry in reversed(batch):
            move = entry.move
            if move is None or move.was == move.state or entry.message_id is None or entry.certain:
                continue
            found = self._store.find(entry.message_id)
            if found is not None and found.state == move.state:
                undone = move._replace(was=move.state, state=move.was, since_us=now_us, code="audit_unavailable")
                ends.append((entry.message_id, undone))
        self._written([_end(message_id, move) for message_id, move in ends])

    def stall(self, seconds: float) -> None:
        """The next commit takes so long."""
        self._stall_seconds = seconds

    def crash(self) -> None:
        """The process is killed: what is being written is on disk, wholly or not at all."""
        if self._writing and self._dice.random() < 0.5:
            self._written(self._writing)
        if self._doubtful:
            self._end_doubtful(())
        self._closed = self._gone = self._crashed = True

    async def close(self) -> None:
        self._hand_over()
        self._closed = True
        while not self.quiet:  # noqa: ASYNC110 - its writer is no task, and sets no event
            await asyncio.sleep(MEND_SECONDS)
        if self._doubtful:
            self._end_doubtful(self._doubtful)
        self._gone = True

    @property
    def quiet(self) -> bool:
        """All that was put is on disk, and the bus has heard of it."""
        return not (self._put or self._queue or self._writing or self._certain or self._posts)

    # --- reading -----------------------------------------------------------------------------------------------------

    def size(self) -> int:
        return self._size

    def accounting(self) -> dict[str, int]:
        return self._accounting.copy()

    def find(self, message_id: str) -> StoredMessage | None:
        return self._store.find(message_id)

    def waiting(
        self, states: Sequence[str], *, recipient: str | None = None, after_seq: int = -1, limit: int = 1000
    ) -> list[StoredMessage]:
        return self._store.waiting(states, recipient=recipient, after_seq=after_seq, limit=limit)

    def facts(self, scope: str, owner: str) -> dict[str, bytes]:
        return self._store.facts(scope, owner)

    def fact_rows(self, scope: str | None = None, owner: str | None = None) -> list[FactChange]:
        return self._store.fact_rows(scope, owner)

    def record(self, seq: int) -> bytes:
        return self._store.record(seq)

    def decision(self, message_id: str, decision_id: str) -> bytes | None:
        return self._store.decision(message_id, decision_id)

    def newest_outcome(self, message_id: str) -> int | None:
        return self._store.newest_outcome(message_id)

    def texts(self, seq: int) -> bytes | None:
        return self._store.texts(seq)

    def agents(self) -> list[AgentRow]:
        return self._store.agents()

    def setting(self, key: str) -> str | None:
        return self._store.setting(key)

    async def checkpoint(self) -> str:
        return await self._store.checkpoint()

    async def rotate_key(self) -> str:
        return await self._store.rotate_key()


def _discarded(stored: StoredMessage, now_us: int) -> Move:
    return Move(
        row=stored.seq,
        was=stored.state,
        state="discarded",
        attempts=stored.attempts,
        due_us=0,
        since_us=now_us,
        code="audit_unavailable",
        error=None,
        decision_id=stored.decision_id,
        added=stored.added,
        expires_us=stored.envelope.expires_us,
        reply_id=None,
        forget=False,
        notes=stored.notes,
    )


def _end(message_id: str, move: Move) -> Entry:
    state = move.state if move.state in END_STATES or move.state == "parked" else "failed"
    fields = {"message_id": message_id, "decision_id": move.decision_id, "state": state, "code": "audit_unavailable"}
    return Entry(
        "outcome", {**fields, "attempt": move.attempts, "duration_us": 0, "error": None}, message_id, move=move
    )
