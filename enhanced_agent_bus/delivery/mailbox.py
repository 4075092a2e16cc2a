"""One agent's mailbox: bounded places, higher priorities first, tenants in turn, none starved.

A place is reserved before a message is decided and kept until the message has ended or left for the dead letters, so
that retries and running handlers count too and a flood stops at the sender.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from enhanced_agent_bus.delivery.places import Places

T = TypeVar("T")

LEVELS: Final = 4
AGEING: Final = 8  # each eighth start goes to whoever has waited longest, whatever the priority


class Level(Generic[T]):
    """What waits at one priority: tenants in turn, each in the order of arrival."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[str, deque[tuple[int, T]]] = {}  # by tenant; the next turn is the first one's

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, arrival: int, item: T, tenant: str) -> None:
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = deque()
        queue.append((arrival, item))

    def arrival(self) -> int:
        """When that came which is next."""
        return next(iter(self._queues.values()))[0][0]

    def take(self) -> T:
        tenant = next(iter(self._queues))
        queue = self._queues[tenant]
        item = queue.popleft()[1]
        if not queue:
            del self._queues[tenant]
        elif len(self._queues) > 1:  # behind the others
            del self._queues[tenant]
            self._queues[tenant] = queue
        return item

    def remove(self, item: T) -> bool:
        for tenant, queue in self._queues.items():
            for index, (_, waiting) in enumerate(queue):
                if waiting is item:
                    del queue[index]
                    if not queue:
                        del self._queues[tenant]
                    return True
        return False

    def all(self, priority: int) -> list[tuple[int, T, int, str]]:
        """Everything with its arrival and tenant, for another order."""
        return [(arrival, item, priority, tenant) for tenant, queue in self._queues.items() for arrival, item in queue]


class Mailbox(Places, Generic[T]):
    """Places and order for one recipient.

    With a key (`order_by`), of the messages that share one a single one at a time is handed out, in the order of
    arrival, and the next when `done` was said of it.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._levels: tuple[Level[T], ...] = tuple(Level() for _ in range(LEVELS))
        self._key: Callable[[T], str] | None = None
        self._behind: dict[str, deque[tuple[T, int, str]]] = {}  # by key: what comes after the one that is out
        self._out: dict[int, str] = {}  # the key of each item that is ready or handed out, by its identity
        self._ready = 0
        self._arrivals = 0
        self._starts = 0
        self._takers: deque[asyncio.Future[None]] = deque()

    @property
    def ready(self) -> int:
        """Messages that could start now."""
        return self._ready

    def put(self, item: T, priority: int, tenant: str = "") -> None:
        """Makes a message ready that has its place already."""
        if self._key is not None:
            key = self._key(item)
            if key in self._behind:
                self._behind[key].append((item, priority, tenant))
                return
            self._behind[key] = deque()
            self._out[id(item)] = key
        self._make_ready(item, priority, tenant)

    def _make_ready(self, item: T, priority: int, tenant: str) -> None:
        self._arrivals += 1
        self._levels[priority].put(self._arrivals, item, tenant)
        self._ready += 1
        if self._takers:
            self._wake_one()

    def done(self, item: T) -> None:
        """What was handed out is out of the worker's hands: the next one of its key may start."""
        key = self._out.pop(id(item), None)
        if key is None:
            return
        if behind := self._behind[key]:
            following, priority, tenant = behind.popleft()
            self._out[id(following)] = key
            self._make_ready(following, priority, tenant)
        else:
            del self._behind[key]

    def order_by(self, key: Callable[[T], str] | None) -> None:
        """Sets the key, of what waits already too."""
        if key is None and self._key is None:
            return
        waiting = [found for priority, level in enumerate(self._levels) for found in level.all(priority)]
        waiting.sort(key=lambda found: found[0])
        after = [found for behind in self._behind.values() for found in behind]
        self._levels = tuple(Level() for _ in range(LEVELS))
        self._behind, self._out, self._ready, self._key = {}, {}, 0, key
        for item, priority, tenant in [*(found[1:] for found in waiting), *after]:
            self.put(item, priority, tenant)

    async def take(self) -> T:
        """The next message to start."""
        while not self._ready:
            taker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if self.ready:  # it may have been woken for this: somebody else takes it
                    self._wake_one()
                raise
        return self._next()

    def _wake_one(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

    def _next(self) -> T:
        self._ready -= 1
        self._starts += 1
        if self._starts % AGEING == 0:
            return min((level for level in self._levels if level), key=Level.arrival).take()
        low, normal, high, critical = self._levels
        return (critical or high or normal or low).take()

    def remove(self, item: T) -> bool:
        """Takes a message out before its turn (expired, discarded); False when it is not waiting here."""
        if any(level.remove(item) for level in self._levels):
            self._ready -= 1
            self.done(item)
            return True
        for behind in self._behind.values():
            for index, (waiting, _, _) in enumerate(behind):
                if waiting is item:
                    del behind[index]
                    return True
        return False

    def items(self) -> list[T]:
        """All that wait here, in no order to rely on."""
        waiting = [item for level in self._levels for _, item, _, _ in level.all(0)]
        return waiting + [item for behind in self._behind.values() for item, _, _ in behind]
