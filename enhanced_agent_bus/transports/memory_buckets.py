"""The buckets of a network within a process, and those who look on.

Not here: the network and its transports (memory).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enhanced_agent_bus.ports import Conflict, Item
from enhanced_agent_bus.transports.memory_looks import Poked
from enhanced_agent_bus.transports.names import checked_key

if TYPE_CHECKING:
    from enhanced_agent_bus.transports.memory import MemoryTransport


@dataclass(slots=True)
class Shared:
    """What a bucket has, in the order of revisions, and who looks on."""

    items: dict[str, Item] = field(default_factory=dict)
    revision: int = 0
    watchers: list[Watcher] = field(default_factory=list)

    def set(self, key: str, value: bytes | None) -> int:
        self.revision += 1
        self.items.pop(key, None)
        self.items[key] = Item(key, value, self.revision)
        for watcher in self.watchers:
            watcher.poke()
        return self.revision

    def newer(self, revision: int) -> list[Item]:
        """What was changed after a revision, in order."""
        return list(itertools.takewhile(lambda item: item.revision > revision, reversed(self.items.values())))[::-1]


class Watcher(Poked):
    """Tells one who looks on of what he has not been told."""

    def __init__(self, transport: MemoryTransport, shared: Shared, told: Callable[[Item], None]) -> None:
        super().__init__(asyncio.get_running_loop(), transport)
        self._shared = shared
        self._told = told
        self._revision = 0

    def begin(self) -> None:
        """Tells of all keys that there are."""
        with self._transport.network.lock:
            items = [item for item in self._shared.items.values() if item.value is not None]
            self._revision = self._shared.revision
        for item in items:
            self._told(item)
        with self._transport.network.lock:
            self.poke()

    def _look(self) -> None:
        with self._transport.network.lock:
            self._poked = False
            if self.ended or not self._transport.connected:
                return
            items = self._shared.newer(self._revision)
            self._revision = self._shared.revision
        for item in items:
            if not self.ended:
                self._told(item)

    def end(self) -> None:
        with self._transport.network.lock:
            if not self.ended:
                self.ended = True
                self._shared.watchers.remove(self)


class MemoryBucket:
    """Fills `ports.Bucket` with a dictionary."""

    def __init__(self, transport: MemoryTransport, shared: Shared) -> None:
        self._transport = transport
        self._shared = shared

    async def get(self, key: str) -> Item | None:
        checked_key(key)
        with self._transport.network.lock:
            self._transport.reach()
            item = self._shared.items.get(key)
        self._transport.answer("get")
        return None if item is None or item.value is None else item

    async def put(self, key: str, value: bytes) -> int:
        checked_key(key)
        with self._transport.network.lock:
            self._transport.reach()
            revision = self._shared.set(key, value)
        self._transport.answer("put")
        return revision

    async def swap(self, key: str, value: bytes | None, revision: int) -> int:
        checked_key(key)
        with self._transport.network.lock:
            self._transport.reach()
            item = self._shared.items.get(key)
            free = item is None or item.value is None
            if revision != (0 if item is None else item.revision) and not (free and revision == 0):
                raise Conflict(f"{key} does not have revision {revision}")
            new = self._shared.set(key, value)
        self._transport.answer("swap")
        return new

    async def watch(self, told: Callable[[Item], None]) -> Callable[[], None]:
        with self._transport.network.lock:
            self._transport.reach()
            watcher = Watcher(self._transport, self._shared, told)
            self._shared.watchers.append(watcher)
            self._transport.watchers.append(watcher)
        watcher.begin()
        return watcher.end
