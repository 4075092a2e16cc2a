"""Looking on a loop of one's own, however many threads poke. Part of the network within a process (memory)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enhanced_agent_bus.transports.memory import MemoryTransport


class Poked:
    """Looks on its own loop when it is poked from any thread, once for several pokes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: MemoryTransport) -> None:
        self._loop = loop
        self._transport = transport
        self._poked = False
        self.ended = False

    def poke(self) -> None:
        """Called with the network's lock held."""
        if self._poked or self.ended:
            return
        self._poked = True
        call_on(self._loop, self._look)

    def _look(self) -> None:
        raise NotImplementedError


def call_on(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """Calls it on a loop soon; on one that is closed nobody can be told anything."""
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        loop.call_soon(what)
    elif not loop.is_closed():
        loop.call_soon_threadsafe(what)
