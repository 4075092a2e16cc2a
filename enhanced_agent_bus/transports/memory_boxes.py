"""The boxes of a network within a process: their letters, whose hands those are in, and handing them out.

Not here: the network and its transports (memory).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from enhanced_agent_bus.ports import Handed, Letter
from enhanced_agent_bus.transports.memory_looks import Poked, call_on

if TYPE_CHECKING:
    from enhanced_agent_bus.transports.memory import MemoryTransport

_SETTLED: Final = -1.0


@dataclass(slots=True, eq=False)
class Kept:
    """A letter in a box. From `due` on it can be handed out, if it is not settled by then."""

    letter: Letter
    order: int
    taken_us: int
    due: float
    times: int = 0
    holder: Held | None = None
    ready: bool = False


@dataclass(slots=True)
class Box:
    """The letters of one box: those that can be handed out, and when others can."""

    ready: list[tuple[int, Kept]] = field(default_factory=list)
    later: list[tuple[float, int, Kept]] = field(default_factory=list)  # entries with another `due` are void
    servings: deque[Serving] = field(default_factory=deque)
    known: set[str] = field(default_factory=set)
    since: deque[tuple[float, str]] = field(default_factory=deque)  # when each known id was put in, oldest first

    def due_at(self, kept: Kept, due: float) -> None:
        kept.due, kept.ready = due, False
        heapq.heappush(self.later, (due, kept.order, kept))

    def now_ready(self, kept: Kept) -> None:
        if kept.holder is not None:  # whoever had it was silent for too long, and has room for another
            kept.holder.let_go()
        kept.holder, kept.ready = None, True
        heapq.heappush(self.ready, (kept.order, kept))

    def next(self, now: float) -> Kept | None:
        """The oldest one that can be handed out."""
        while self.later and self.later[0][0] <= now:
            due, _, kept = heapq.heappop(self.later)
            if kept.due == due and not kept.ready:
                self.now_ready(kept)
        while self.ready:
            kept = heapq.heappop(self.ready)[1]
            if kept.ready:
                kept.ready = False
                return kept
        return None

    def next_due(self) -> float | None:
        while self.later and (self.later[0][2].due != self.later[0][0] or self.later[0][2].ready):
            heapq.heappop(self.later)
        return self.later[0][0] if self.later else None


class Held:
    """A letter in the hands of one serving."""

    def __init__(self, serving: Serving, kept: Kept) -> None:
        self._serving = serving
        self._kept = kept
        self.letter = kept.letter
        self.times = kept.times
        self.taken_us = kept.taken_us

    async def done(self) -> None:
        self._serving.settle(self, self._kept, None)

    async def again(self, seconds: float = 0.0) -> None:
        self._serving.settle(self, self._kept, max(0.0, seconds))

    def working(self) -> None:
        self._serving.prolong(self, self._kept)

    def let_go(self) -> None:
        self._serving.drop(self)


class Serving(Poked):
    """One transport's share of a box."""

    def __init__(self, transport: MemoryTransport, box: Box, take: Callable[[Handed], None], at_once: int) -> None:
        super().__init__(asyncio.get_running_loop(), transport)
        self._network = transport.network
        self._box = box
        self._take = take
        self._at_once = at_once
        self._held: dict[Held, Kept] = {}
        self._timer: asyncio.TimerHandle | None = None

    def _look(self) -> None:
        """Hands out one letter, and looks again when there may be more."""
        now = self._loop.time()
        with self._network.lock:
            self._poked = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self.ended or not self._transport.connected or len(self._held) >= self._at_once:
                return
            kept = self._box.next(now)
            if kept is None:
                due = self._box.next_due()
                self._timer = None if due is None else self._loop.call_at(due, self._look)
                return
            kept.times += 1
            held = kept.holder = Held(self, kept)
            self._held[held] = kept
            self._box.due_at(kept, now + self._network.ack_seconds)
            self.poke()
        self._take(held)

    def settle(self, held: Held, kept: Kept, again_seconds: float | None) -> None:
        """It is dealt with, or to come again after a pause. Raises: TransportAway."""
        with self._network.lock:
            self._held.pop(held, None)  # whatever comes of it, there is room for another
            self.poke()
            self._transport.reach()
            if again_seconds is None:
                kept.due, kept.ready, kept.holder = _SETTLED, False, None
            elif kept.holder is held:
                kept.holder = None
                self._box.due_at(kept, self._loop.time() + again_seconds)
            self._network.poke(self._box)
        self._transport.answer("done" if again_seconds is None else "again")

    def drop(self, held: Held) -> None:
        """Called with the network's lock held."""
        if self._held.pop(held, None) is not None:
            self.poke()

    def prolong(self, held: Held, kept: Kept) -> None:
        with self._network.lock:
            if kept.holder is held and held in self._held and self._transport.connected:
                self._box.due_at(kept, self._loop.time() + self._network.ack_seconds)

    def end(self) -> None:
        """What it has in its hands can be handed out at once."""
        with self._network.lock:
            if self.ended:
                return
            self.ended = True
            self._box.servings.remove(self)
            for held, kept in list(self._held.items()):
                if kept.holder is held:
                    self._box.now_ready(kept)
            self._held.clear()
            self._network.poke(self._box)
            if self._timer is not None:
                call_on(self._loop, self._timer.cancel)
