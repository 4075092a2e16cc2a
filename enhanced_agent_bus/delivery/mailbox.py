"""One agent's mailbox: bounded places, higher priorities first, none starved.

A place is reserved before a message is decided and kept until the message has ended or left for the dead letters, so
that retries and running handlers count too and a flood stops at the sender.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

LEVELS: Final = 4
AGEING: Final = 8  # each eighth start goes to whoever has waited longest, whatever the priority


class Mailbox(Generic[T]):
    """Places and order for one recipient."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._levels: tuple[deque[tuple[int, T]], ...] = tuple(deque() for _ in range(LEVELS))
        self._ready = 0
        self._arrivals = 0
        self._starts = 0
        self._takers: deque[asyncio.Future[None]] = deque()
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._closed = False

    @property
    def taken(self) -> int:
        """Places in use: waiting, running, retrying."""
        return self._taken

    @property
    def ready(self) -> int:
        """Messages that could start now."""
        return self._ready

    def reserve(self) -> bool:
        """Takes a place; False when there is none."""
        if self._taken >= self._limit or self._waiting:
            return False
        self._taken += 1
        return True

    def occupy(self) -> None:
        """Takes a place for a message that was accepted before: it is never turned away."""
        self._taken += 1

    async def wait_for_place(self, seconds: float) -> bool:
        """Takes a place when there is one, in the order of asking; False when none came in time, or at `close`."""
        if self._closed or self.reserve():
            return not self._closed
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(seconds):
                return await place
        except TimeoutError:
            return self._gave_up(place)
        except asyncio.CancelledError:
            if self._gave_up(place):
                self.release()
            raise

    def close(self) -> None:
        """Nobody waits for a place any more; what is in here stays."""
        self._closed = True
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(False)

    def _gave_up(self, place: asyncio.Future[bool]) -> bool:
        """True when the place came in the same instant after all."""
        if place.done() and not place.cancelled():
            return place.result()
        place.cancel()
        if place in self._waiting:
            self._waiting.remove(place)
        self._hand_on()
        return False

    def release(self) -> None:
        """Gives a place back."""
        self._taken -= 1
        if self._waiting:
            self._hand_on()

    def _hand_on(self) -> None:
        while self._waiting and self._taken < self._limit:
            place = self._waiting.popleft()
            if not place.done():
                self._taken += 1
                place.set_result(True)

    def put(self, item: T, priority: int) -> None:
        """Makes a message ready that has its place already."""
        self._arrivals += 1
        self._levels[priority].append((self._arrivals, item))
        self._ready += 1
        if self._takers:
            self._wake_one()

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
            level = min((level for level in self._levels if level), key=lambda level: level[0][0])
            return level.popleft()[1]
        low, normal, high, critical = self._levels
        return (critical or high or normal or low).popleft()[1]

    def remove(self, item: T) -> bool:
        """Takes a message out before its turn (expired, discarded); False when it is not waiting here."""
        for level in self._levels:
            for index, (_, waiting) in enumerate(level):
                if waiting is item:
                    del level[index]
                    self._ready -= 1
                    return True
        return False

    def items(self) -> list[T]:
        """All that could start now, in no order to rely on."""
        return [item for level in self._levels for _, item in level]
