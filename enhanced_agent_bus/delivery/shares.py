"""How much one tenant may have under way: everything while it is alone, a share while others are about.

What is under way meets at the policy engine, the disk and the loop, which serve what has come, whosever it is. So what
bounds how long one tenant waits for another is how much of the other's is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from enhanced_agent_bus.delivery.places import Places

#: What a tenant may have under way beside one that sends a message at a time: a smaller one would hardly be felt.
SHARE: Final = 2
#: And so many more for each further one that the tenant with the least has had at once: who has much waits for his own.
SHARE_MORE: Final = 4
#: A tenant is about for so long after it has sent something, and up to twice as long.
LATELY_SECONDS: Final = 1.0


class SharedPlaces(Places):
    """Places for tenants that know of each other: none takes so many that another's next message waits for them."""

    def __init__(self, limit: int, monotonic: Callable[[], float]) -> None:
        super().__init__(limit)
        self._monotonic = monotonic
        self._held: dict[str, int] = {}
        self._most: dict[str, int] = {}  # what each tenant wanted at once at most, in this period
        self._most_before: dict[str, int] = {}  # and in the one before
        self._period_ends = 0.0
        self._share = limit

    def take(self, tenant: str) -> bool:
        """Takes a place; False when there is none for this tenant, or it has others in line."""
        if self._monotonic() >= self._period_ends:
            self._next_period()
        wanted = self._held.get(tenant, 0) + 1
        if wanted > self._most.get(tenant, 0):
            self._note(tenant, wanted)
        if wanted > self._share or self._taken >= self._limit or tenant in self._waiting:
            return False
        self._taken += 1
        self._held[tenant] = wanted
        return True

    async def wait(self, seconds: float, tenant: str) -> bool:
        """Takes a place when there is one for this tenant; False when none came in time."""
        self._note(tenant, self._held.get(tenant, 0) + len(self._waiting.get(tenant, ())) + 1)
        return await self._in_line(seconds, tenant)

    def give_back(self, tenant: str) -> None:
        """The next one in line goes."""
        self._held[tenant] -= 1
        self._taken -= 1
        if self._waiting:
            self._hand_on()

    def _note(self, tenant: str, wanted: int) -> None:
        """Whoever sends is about, with so much at once."""
        most = self._most.get(tenant, 0)
        self._most[tenant] = max(most, wanted)
        if not most and tenant not in self._most_before:  # it was not here lately
            self._set_share()

    def _next_period(self) -> None:
        self._period_ends = self._monotonic() + LATELY_SECONDS
        self._most_before, self._most = self._most, {}
        self._held = {tenant: held for tenant, held in self._held.items() if held}
        self._set_share()

    def _set_share(self) -> None:
        before, now = self._most_before, self._most
        tenants = before.keys() | now.keys()
        if len(tenants) > 1:
            least = min(max(before.get(tenant, 0), now.get(tenant, 0)) for tenant in tenants)
            self._share = SHARE + SHARE_MORE * (least - 1)
        else:
            self._share = self._limit

    def _may(self, tenant: str) -> bool:
        held = self._held.get(tenant, 0)
        if held >= self._share and self._monotonic() >= self._period_ends:
            self._next_period()
        return held < self._share

    def _next_tenant(self) -> str | None:
        return next((tenant for tenant in self._waiting if self._may(tenant)), None)

    def _given(self, tenant: str) -> None:
        self._held[tenant] = self._held.get(tenant, 0) + 1

    def _hand_back(self, tenant: str) -> None:
        self.give_back(tenant)
