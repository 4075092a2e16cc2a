"""Locks by owner of facts: messages that share facts which the policy reads are decided in turn."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lock:
    """A lock of one owner, and how many want it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Held:
    """A lock by owner that exists while somebody wants it."""

    def __init__(self, locks: dict[tuple[str, str], Lock], owner: tuple[str, str]) -> None:
        self._locks = locks
        self._owner = owner

    async def __aenter__(self) -> None:
        entry = self._locks.setdefault(self._owner, Lock())
        entry.users += 1
        try:
            await entry.lock.acquire()
        except BaseException:
            self._leave(entry)
            raise

    async def __aexit__(self, *_: object) -> None:
        entry = self._locks[self._owner]
        entry.lock.release()
        self._leave(entry)

    def _leave(self, entry: Lock) -> None:
        entry.users -= 1
        if not entry.users:
            del self._locks[self._owner]
