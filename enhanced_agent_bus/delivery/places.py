"""Places: how much may be under way at once. Who has to wait for one gets it in turn with the other tenants."""

from __future__ import annotations

import asyncio
from collections import deque


class Places:
    """A bounded number of places. A tenant that asks for many does not stand before another that asks for one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: dict[str, deque[asyncio.Future[bool]]] = {}  # by tenant; the next turn is the first one's
        self._closed = False

    @property
    def taken(self) -> int:
        """Places in use."""
        return self._taken

    def reserve(self) -> bool:
        """Takes a place; False when there is none, or others wait for one."""
        if self._taken >= self._limit or self._waiting:
            return False
        self._taken += 1
        return True

    def occupy(self) -> None:
        """Takes a place for what was accepted before: it is never turned away."""
        self._taken += 1

    async def wait_for_place(self, seconds: float, tenant: str = "") -> bool:
        """Takes a place when there is one: tenants in turn, each in the order of asking.

        False when none came in time, or at `close`.
        """
        if self._closed or self.reserve():
            return not self._closed
        return await self._in_line(seconds, tenant)

    async def _in_line(self, seconds: float, tenant: str) -> bool:
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(place)
        try:
            async with asyncio.timeout(seconds):
                return await place
        except TimeoutError:
            return self._gave_up(place, tenant)
        except asyncio.CancelledError:
            if self._gave_up(place, tenant):
                self._hand_back(tenant)
            raise

    def close(self) -> None:
        """Nobody waits for a place any more; who has one keeps it."""
        self._closed = True
        while (place := self._next_in_turn()) is not None:
            place.set_result(False)

    def release(self) -> None:
        """Gives a place back."""
        self._taken -= 1
        if self._waiting:
            self._hand_on()

    def _gave_up(self, place: asyncio.Future[bool], tenant: str) -> bool:
        """True when the place came in the same instant after all."""
        if place.done() and not place.cancelled():
            return place.result()
        place.cancel()
        if (queue := self._waiting.get(tenant)) is not None and place in queue:
            queue.remove(place)
            if not queue:
                del self._waiting[tenant]
        self._hand_on()
        return False

    def _hand_on(self) -> None:
        while self._taken < self._limit and (place := self._next_in_turn()) is not None:
            self._taken += 1
            place.set_result(True)

    def _next_in_turn(self) -> asyncio.Future[bool] | None:
        """Whoever has waited longest of the tenant whose turn it is."""
        while (tenant := self._next_tenant()) is not None:
            queue = self._waiting[tenant]
            del self._waiting[tenant]
            place = queue.popleft()
            if queue:
                self._waiting[tenant] = queue  # behind the others
            if not place.done():
                self._given(tenant)
                return place
        return None

    def _next_tenant(self) -> str | None:
        return next(iter(self._waiting), None)

    def _given(self, tenant: str) -> None:
        """A place that this tenant has waited for is its own."""

    def _hand_back(self, _tenant: str) -> None:
        """Nobody wants it any more."""
        self.release()
