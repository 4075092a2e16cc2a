"""Who may ask next: a fixed number of questions at once, tenants in turn, and no tenant with all of the places.

A tenant may take a place while it holds fewer than are free, so that there is always one left for the next tenant.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

WAITING_MAX: Final = 8192  # questions that wait for a place; beyond: no
WAITING_PER_TENANT_MAX: Final = 4096


class Turns:
    """Places for questions, on one loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the tenant whose turn is next first
        self._count = 0

    async def take(self, tenant: str) -> bool:
        """Waits for a place; False where there is no room to wait. Who got one gives it back."""
        if tenant not in self._waiting and self._may(tenant):
            self._hold(tenant)
            return True
        line = self._waiting.get(tenant)
        if self._count >= WAITING_MAX or (line is not None and len(line) >= WAITING_PER_TENANT_MAX):
            return False
        if line is None:
            line = self._waiting[tenant] = deque()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(place)
        self._count += 1
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give_back(tenant)  # it came at the same moment
            else:
                self._forget(tenant, place)
            raise
        return True

    def give_back(self, tenant: str) -> None:
        """The next one goes."""
        self._free += 1
        held = self._held[tenant] - 1
        if held:
            self._held[tenant] = held
        else:
            del self._held[tenant]
        while self._free and self._call_next():
            pass

    def _call_next(self) -> bool:
        for tenant, line in self._waiting.items():
            if self._may(tenant):
                del self._waiting[tenant]  # and behind the others, where more of it wait
                place = line.popleft()
                if line:
                    self._waiting[tenant] = line
                self._count -= 1
                if not place.done():  # else it was given up a moment ago
                    self._hold(tenant)
                    place.set_result(None)
                return True
        return False

    def _forget(self, tenant: str, place: asyncio.Future[None]) -> None:
        line = self._waiting.get(tenant, deque())
        if place in line:
            line.remove(place)
            self._count -= 1
            if not line:
                del self._waiting[tenant]

    def _may(self, tenant: str) -> bool:
        return self._held.get(tenant, 0) < self._free

    def _hold(self, tenant: str) -> None:
        self._free -= 1
        self._held[tenant] = self._held.get(tenant, 0) + 1
