"""Rulings kept by what the policy read to make them. A constitution that is gone leaves no reachable entry behind."""

from __future__ import annotations

from cachetools import FIFOCache

from enhanced_agent_bus.ports import Clock
from enhanced_agent_bus.verdict import Ruling


class DecisionCache:
    """At most `entries` rulings, the oldest forgotten first; none older than `seconds` by the monotonic clock."""

    def __init__(self, *, entries: int, seconds: float, clock: Clock) -> None:
        self._entries: FIFOCache[tuple[str, bytes], tuple[Ruling, str, float]] = FIFOCache(maxsize=entries)
        self._seconds = seconds
        self._clock = clock
        self._room = entries > 0
        self.hits = 0
        self.misses = 0

    def get(self, digest: str, key: bytes) -> tuple[Ruling, str] | None:
        """The ruling and the id of the decision that it was made for."""
        entry = self._entries.get((digest, key))
        if entry is not None and self._clock.monotonic() < entry[2]:
            self.hits += 1
            return entry[0], entry[1]
        self.misses += 1
        return None

    def put(self, digest: str, key: bytes, ruling: Ruling, decision_id: str) -> None:
        """Keeps a ruling; an error or a timeout never comes here, since it is none."""
        if self._room:
            self._entries[digest, key] = (ruling, decision_id, self._clock.monotonic() + self._seconds)
