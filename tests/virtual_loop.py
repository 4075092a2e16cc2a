"""An event loop whose time is made up: what a seed has found, it finds again.

`VirtualLoop` is asyncio's own event loop with another clock and nothing to wait for. What asyncio promises is kept:
callbacks run in the order of `call_soon`, a timer never before its time. What it does not promise is drawn from the
seed: how long each turn takes (so that a disk, an engine or a deadline comes in between any two callbacks of a chain,
as threads and sockets do), and which of two timers of one instant is first. Nothing else is shuffled: an order that
asyncio cannot produce would find bugs that nobody has.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from dataclasses import dataclass
from random import Random
from typing import Any, Final

TURN_SECONDS_MAX: Final = 1e-4
TURNS_MAX: Final = 300_000  # of one run: beyond, something goes round in circles
TIE_SECONDS: Final = 1e-9
START_US: Final = 1_790_000_000_000_000  # some day in 2026


class Stuck(Exception):
    """Nothing is ready, nothing is due, and somebody still waits."""


class _Task(asyncio.Task[Any]):
    """A task that has the same place in a set in every run, and says in which context it began."""

    def __init__(self, *args: Any, number: int, **named: Any) -> None:
        self.number = number
        self.began_in = named.get("context") or contextvars.copy_context()
        super().__init__(*args, **named)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """Time jumps to the next timer when nothing is ready, and goes a little on with each turn."""

    def __init__(self, dice: Random) -> None:
        super().__init__()
        self._dice = dice
        self._now = 0.0
        self.turns = 0
        self._selector = self
        self.errors: list[dict[str, Any]] = []  # what asyncio would have logged
        self.set_exception_handler(lambda _, context: self.errors.append(context))
        numbers = itertools.count()
        self.set_task_factory(lambda loop, coro, **named: _Task(coro, loop=loop, number=next(numbers), **named))

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when + self._dice.random() * TIE_SECONDS, callback, *args, context=context)

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing is ready and nothing is due")
        self.turns += 1
        if self.turns > TURNS_MAX:
            raise Stuck(f"no end after {TURNS_MAX} turns of the loop")
        self._now += timeout or self._dice.random() * TURN_SECONDS_MAX
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


@dataclass(slots=True)
class Weather:
    """How often what fails: shares of all questions and commits."""

    engine: float = 0.0
    disk: float = 0.0
    slow: float = 0.0  # take seconds instead of milliseconds
    outage_seconds: float = 1.0  # how long a disk stays broken at most
    gate: float = 0.0  # of what a plug-in gate is asked: it says no, or breaks

    def clear_up(self) -> None:
        self.engine = self.disk = self.slow = self.outage_seconds = self.gate = 0.0


def while_seconds(dice: Random, slow: float, seconds_max: float) -> float:
    """How long something takes: often nothing, mostly little, at times seconds."""
    kind = dice.random()
    if kind < slow:
        return dice.random() * seconds_max
    return 0.0 if kind < 0.4 else dice.random() * (3e-4 if kind < 0.9 else 5e-3)
