"""The bare group commit that the durable rows are compared with: one record a message, and nothing else.

The same SQLite settings, the same way of waking and answering, in a database of one table. Run by hand
(`python -m enhanced_agent_bus.bench.group_commit`) it also measures the ledger alone: decisions, then their outcomes.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.sql import chunks, insert
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.ledger.store import WAL_PAGES
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.ports import Entry, FactChange, Move, Opening

RECORD_BYTES: Final = 1024
IN_FLIGHT: Final = (1, 64, 512)
SECONDS: Final = 3.0
_AGENTS: Final = 1000
_INSERT: Final = insert("records", 2)


async def _drive(one: Callable[[], Awaitable[object]], in_flight: int, seconds: float) -> tuple[float, float]:
    """Calls `one` from so many tasks for so long; how many a second, and the median time of one in seconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (start := time.perf_counter()) < end:
            await one()
            times.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(in_flight)])
    return len(times) / (time.perf_counter() - start), sorted(times)[len(times) // 2]


async def bare_group_commit(folder: Path, in_flight: int, seconds: float) -> tuple[float, float]:
    """Records a second, and the median seconds until one of them is durable."""
    database = sqlite3.connect(folder / "bare.db", isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", f"wal_autocheckpoint = {WAL_PAGES}"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    loop = asyncio.get_running_loop()
    waiting: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()
    body = bytes(RECORD_BYTES)

    def answer(batch: list[asyncio.Future[None]]) -> None:
        for future in batch:
            future.set_result(None)

    def write() -> None:
        seq = 0
        while (first := waiting.get()) is not None:
            batch = [first]
            batch += [future for future in (waiting.get() for _ in range(waiting.qsize())) if future is not None]
            database.execute("BEGIN IMMEDIATE")
            last = seq + len(batch)
            for rows in chunks(len(batch)):
                values = [value for number in range(seq, seq + rows) for value in (number, body) if number < last]
                database.execute(_INSERT[rows], values + [None] * (2 * rows - len(values)))
                seq = min(seq + rows, last)
            database.execute("COMMIT")
            loop.call_soon_threadsafe(answer, batch)

    async def one() -> None:
        future: asyncio.Future[None] = loop.create_future()
        waiting.put(future)
        await future

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return await _drive(one, in_flight, seconds)
    finally:
        waiting.put(None)
        await asyncio.to_thread(writer.join)
        database.close()


class _Traffic:
    """Entries such as the bus makes them, for a 1 KB payload."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self._ledger = ledger
        self._number = 0
        self._body = b'{"note":"%s"}' % (b"x" * RECORD_BYTES)
        self._salt = bytes(32)
        self._commitment = sha256(self._salt + self._body).hexdigest()

    def _put(self, entry: Entry) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def done(seq: int, error: BusError | None) -> None:
            future.set_result(seq) if error is None else future.set_exception(error)

        entry.done = done
        self._ledger.put(entry)
        return future

    async def decision(self) -> None:
        await self._put(self._decision())

    async def message(self) -> None:
        """A decision, and once it is durable its outcome, which nobody waits for."""
        entry = self._decision()
        row = await self._put(entry)
        opening, message_id = entry.opening, entry.message_id
        assert opening is not None
        move = Move(row, "queued", "delivered", 1, 0, 0, None, None, opening.decision_id, b"", 0, None, forget=False)
        fields: dict[str, object] = {"message_id": message_id, "decision_id": opening.decision_id, "state": "delivered"}
        fields |= {"code": None, "attempt": 1, "duration_us": 5, "error": None}
        self._ledger.put(Entry("outcome", fields, message_id, move=move, certain=True))

    def _decision(self) -> Entry:
        number = self._number = self._number + 1
        message_id, sender = f"0193f0c4-7e2b-7000-8000-{number:012d}", f"agent-{number * 7919 % _AGENTS}"
        envelope = Envelope(
            id=message_id,
            type="command",
            priority=1,
            sender=sender,
            tenant="acme",
            recipient="booker",
            recipient_tenant="acme",
            topic=None,
            conversation=message_id,
            cause=None,
            created_us=0,
            expires_us=0,
            hops=0,
            headers={},
            body=self._body,
            salt=self._salt,
            commitment=self._commitment,
            headers_commitment=None,
            digest=self._commitment,
        )
        decision_id = f"{message_id}#{number:x}"
        party = {"id": sender, "tenant": "acme", "roles": ["planner"], "capabilities": []}
        fields = {
            "message_id": message_id,
            "sender_n": number,
            "digest": envelope.digest,
            "conversation": message_id,
            "cause": None,
            "sender": sender,
            "tenant": "acme",
            "recipient": "booker",
            "recipient_tenant": "acme",
            "topic": None,
            "type": "command",
            "priority": 1,
            "hops": 0,
            "attempt": 1,
            "verdict": "allow",
            "code": None,
            "reasons": [],
            "decision_id": decision_id,
            "constitution": self._commitment,
            "revision": 3,
            "engine": {"name": "embedded", "opa": "1.22.2"},
            "cached_from": decision_id,
            "why": "send",
            "previous": None,
            "input": {"message": {"id": message_id, "type": "command"}, "sender": party, "recipient": party},
            "payload": envelope.commitment,
            "eval_us": 0,
        }
        counters = b'{"n":%d,"sent":%d,"refused":0}' % (number, number)
        facts = [FactChange("agent", sender, "", counters), FactChange("conversation", message_id, "", counters)]
        return Entry(
            "decision", fields, message_id, opening=Opening(envelope, "queued", decision_id, b"", b"", 0), facts=facts
        )


async def ledger_alone(folder: Path, in_flight: int, seconds: float, *, outcomes: bool) -> tuple[float, float]:
    """Messages a second through the ledger, and the median seconds until a decision is durable."""
    ledger = await SqliteLedger.open(open_home(folder / "home"), clock=SystemClock())
    traffic = _Traffic(ledger)
    try:
        return await _drive(traffic.message if outcomes else traffic.decision, in_flight, seconds)
    finally:
        await ledger.close()


async def _main(folder: str) -> None:
    for in_flight in IN_FLIGHT:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            base, base_p50 = await bare_group_commit(Path(place), in_flight, SECONDS)
        print(f"{in_flight:4} in flight  bare {base:8.0f}/s p50 {base_p50 * 1e3:6.2f} ms", end="")
        for name, outcomes in (("decisions", False), ("with outcomes", True)):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                rate, p50 = await ledger_alone(Path(place), in_flight, SECONDS, outcomes=outcomes)
            print(f"   {name} {rate:8.0f}/s ({rate / base:.2f}) p50 {p50 * 1e3:6.2f} ms", end="")
        print(flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1] if len(sys.argv) > 1 else "."))
