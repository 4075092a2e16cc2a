"""How long a message spends in each station: marks at the borders of the real road, so that the parts make the whole.

While it runs, the methods at which a message passes from one station to the next note the time. What that costs is
measured in the same run and named. Not here: where the time goes inside a station; a profiler shows that.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus import Message
from enhanced_agent_bus.admission.chain import Admission
from enhanced_agent_bus.admission.draft import Shape
from enhanced_agent_bus.bench.figures import Figure
from enhanced_agent_bus.bench.house import House, Scale, drive, house
from enhanced_agent_bus.bench.workload import Load
from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.ledger.memory import MemoryLedger
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.ports import Entry

IN_FLIGHT: Final = (1, 64)
DURABLE_SHARE: Final = 2
ALONE_SHARE: Final = 4
TURNS: Final = 3  # without marks and with them, in turns

#: A station ends at the mark of its name, and begins at the one before.
STATIONS: Final = {
    "shape": "send is called, until its form is checked and its bytes are frozen",
    "find and seal": "recipient, place in the mailbox, envelope with commitments and digest",
    "judge": "constitution, cache or policy, facts, the fields of the record",
    "record": "put, until the decision is durable",
    "deliver": "mailbox, the worker's turn, the ticket's last look, until the handler starts",
    "handler": "the benchmark's own, which does nothing",
    "outcome": "until how it ended is durable",
}
_BORDERS: Final = ("begin", *STATIONS)


class _Marks:
    """The instants of one message, in nanoseconds."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = {"begin": time.perf_counter_ns()}

    def note(self, border: str) -> None:
        self.at[border] = time.perf_counter_ns()


_sending: ContextVar[_Marks | None] = ContextVar("eab_bench_sending", default=None)


class _Watch:
    """Marks by message id, for those who know only that."""

    def __init__(self) -> None:
        self.marks: dict[str, _Marks] = {}

    async def handler(self, message: Message) -> None:
        if (marks := self.marks.get(message.id)) is not None:
            marks.note("deliver")
            marks.note("handler")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within this, messages leave marks."""
        with (
            replaced(Shape, "check", self._check),
            replaced(Admission, "judge_at_once", self._judge_at_once),
            replaced(Admission, "judge_asking", self._judge_asking),
            replaced(MemoryLedger, "put", self._put),
            replaced(SqliteLedger, "put", self._put),
        ):
            yield

    def _check(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def check(shape: Shape, draft: Any) -> Any:
            shaped = real(shape, draft)
            if (marks := _sending.get()) is not None:
                marks.note("shape")
            return shaped

        return check

    def _judge_at_once(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def judge_at_once(admission: Admission, case: Any) -> Any:
            marks = _sending.get()
            if marks is None:
                return real(admission, case)
            marks.note("find and seal")
            self.marks[case.addressed.envelope.id] = marks
            decided = real(admission, case)
            marks.note("judge")
            return decided

        return judge_at_once

    def _judge_asking(self, real: Callable[..., Any]) -> Callable[..., Any]:
        async def judge_asking(admission: Admission, case: Any) -> Any:
            decided = await real(admission, case)
            if (marks := _sending.get()) is not None:
                marks.note("judge")
            return decided

        return judge_asking

    def _put(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def put(ledger: object, entry: Entry) -> None:
            marks = self.marks.get(entry.message_id or "")
            done = entry.done
            if marks is not None and done is not None:
                border = "record" if entry.kind == "decision" else "outcome"

                def marked(seq: int, error: BusError | None) -> None:
                    marks.note(border)
                    done(seq, error)

                entry.done = marked
            real(ledger, entry)

        return put


@contextmanager
def replaced(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within this, a method of a class is another one, made of the real one."""
    real = getattr(owner, name)
    setattr(owner, name, wrap(real))
    try:
        yield
    finally:
        setattr(owner, name, real)


async def stations(folder: Path, scale: Scale) -> list[Figure]:
    """Microseconds in each station: both ledgers, alone and among 64."""
    found: list[Figure] = []
    for ledger in ("memory", "durable"):
        watch = _Watch()
        with tempfile.TemporaryDirectory(dir=folder) as place:
            home = None if ledger == "memory" else Path(place) / "home"
            async with house(home, folder / "constitution", scale, handler=watch.handler) as built:
                for in_flight in IN_FLIGHT:
                    count = scale.messages // (ALONE_SHARE if in_flight == 1 else DURABLE_SHARE)
                    found += await _measured(built, watch, f"{ledger} ledger, {in_flight} in flight", in_flight, count)
    return found


async def _measured(built: House, watch: _Watch, name: str, in_flight: int, count: int) -> list[Figure]:
    plain, marked = math.inf, math.inf
    for _ in range(TURNS):  # the least of several: what neighbours take is not the instrumentation's
        plain = min(plain, await _microseconds(built, in_flight, count))
        with watch.watching():
            marked = min(marked, await _microseconds(built, in_flight, count, _sending))
    kept, watch.marks = list(watch.marks.values()), {}
    spent = {
        border: [(marks.at[border] - marks.at[before]) / 1000 for marks in kept]
        for before, border in zip(_BORDERS, STATIONS, strict=False)
    }
    whole = sum(statistics.fmean(times) for times in spent.values())
    figures = [
        Figure(
            name,
            station,
            "us",
            tuple(times),
            note=f"{statistics.fmean(times) / whole:.0%} of the mean; {STATIONS[station]}",
        )
        for station, times in spent.items()
    ]
    totals = tuple(map(sum, zip(*spent.values(), strict=True)))
    return [
        *figures,
        Figure(name, "send to outcome", "us", totals, note="the stations together"),
        Figure(name, "clock, a message", "us", (plain,), note="without marks: elapsed time over messages"),
        Figure(name, "marks, a message", "us", (max(0.0, marked - plain),), note="what the instrumentation adds"),
    ]


async def _microseconds(
    built: House, in_flight: int, count: int, sending: ContextVar[_Marks | None] | None = None
) -> float:
    async def send(load: Load) -> None:
        if sending is not None:
            sending.set(_Marks())
        receipt = await built.send(load)
        await receipt.outcome()

    started = time.perf_counter()
    await drive(send, built.some(count), in_flight)
    return (time.perf_counter() - started) * 1e6 / count
