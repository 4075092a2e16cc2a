"""A network within this process: `memory://NAME` joins the buses that open it, `memory://` joins nobody.

It keeps nothing: what is in it is gone when its last transport closes. It knows no time but that of the event loops
it is used on (which may be several, each in a thread of its own), so that tests can make it up.

Not here: how letters are handed out (memory_boxes), and what the nodes share (memory_buckets).
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from enhanced_agent_bus.errors import ConfigInvalid, TransportAway
from enhanced_agent_bus.ports import Handed, Letter
from enhanced_agent_bus.transports.memory_boxes import Box, Kept, Serving
from enhanced_agent_bus.transports.memory_buckets import MemoryBucket, Shared, Watcher
from enhanced_agent_bus.transports.memory_looks import call_on
from enhanced_agent_bus.transports.names import checked_box, checked_bucket, checked_letter

SCHEME: Final = "memory://"
BYTES_MAX: Final = 64 * 1024 * 1024


class Disturbance(Protocol):
    """What goes wrong in a network, for tests."""

    def arrivals(self, letter: Letter) -> Sequence[float]:
        """After how many seconds each copy of a letter can be handed out; (0.0,) is an ordinary one."""
        ...

    def answer_lost(self, what: str) -> bool:
        """Whether what was asked for (post, done, again, get, put, swap) is done, and nobody is told so."""
        ...


class MemoryNetwork:
    """What its transports share. Nothing in it is durable."""

    def __init__(
        self,
        name: str = "",
        *,
        ack_seconds: float = 30.0,
        dedup_seconds: float = 600.0,
        bytes_max: int = BYTES_MAX,
        now_us: Callable[[], int] | None = None,
        disturbance: Disturbance | None = None,
    ) -> None:
        self.name = name
        self.ack_seconds = ack_seconds
        self.dedup_seconds = dedup_seconds
        self.bytes_max = bytes_max
        self.disturbance = disturbance
        self.now_us = now_us or (lambda: time.time_ns() // 1000)
        self.lock = threading.RLock()
        self.transports: list[MemoryTransport] = []
        self.boxes: dict[str, Box] = {}
        self.buckets: dict[str, Shared] = {}
        self._orders = itertools.count()

    def join(self) -> MemoryTransport:
        """A new transport on this network, for the loop that runs now."""
        with self.lock:
            transport = MemoryTransport(self)
            self.transports.append(transport)
        return transport

    def cut(self, transport: MemoryTransport) -> None:
        """It reaches nobody from now on; what it has in its hands comes again after `ack_seconds`."""
        transport.switch(connected=False)

    def mend(self, transport: MemoryTransport) -> None:
        """It reaches the others again."""
        transport.switch(connected=True)

    def kill(self, transport: MemoryTransport) -> None:
        """As if its process had died: it hears and says nothing more, and what it had comes again at once."""
        transport.leave()

    def take(self, letter: Letter) -> None:
        """Puts a letter into its box, unless it was put there within the window."""
        now = asyncio.get_running_loop().time()
        with self.lock:
            box = self.boxes.setdefault(letter.box, Box())
            while box.since and box.since[0][0] + self.dedup_seconds <= now:
                box.known.discard(box.since.popleft()[1])
            if letter.id in box.known:
                return
            box.known.add(letter.id)
            box.since.append((now, letter.id))
            for seconds in self.disturbance.arrivals(letter) if self.disturbance else (0.0,):
                box.due_at(Kept(letter, next(self._orders), self.now_us(), now), now + seconds)
            self.poke(box)

    def poke(self, box: Box) -> None:
        """Something has changed in a box: those that serve it look, another one first each time."""
        box.servings.rotate(-1)
        for serving in list(box.servings):
            serving.poke()


class MemoryTransport:
    """Fills `ports.Transport` within one process."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.url = f"{SCHEME}{network.name}"
        self.weakenings: Sequence[str] = ()
        self.connected = True
        self.bytes_max = network.bytes_max
        self.watchers: list[Watcher] = []
        self._loop = asyncio.get_running_loop()
        self._servings: list[Serving] = []
        self._told: list[Callable[[bool], None]] = []
        self._left = False

    async def post(self, letter: Letter) -> None:
        checked_letter(letter)
        if len(letter.body) > self.bytes_max:
            raise ConfigInvalid(
                f"a letter of {len(letter.body)} bytes is too large for {self.url}, which takes {self.bytes_max}",
                remedy="lower limits.payload_bytes",
            )
        with self.network.lock:
            self.reach()
            self.network.take(letter)
        self.answer("post")

    async def serve(self, box: str, take: Callable[[Handed], None], *, at_once: int) -> Callable[[], Awaitable[None]]:
        checked_box(box)
        with self.network.lock:
            if self._left:
                self.reach()
            kept = self.network.boxes.setdefault(box, Box())
            serving = Serving(self, kept, take, at_once)
            kept.servings.append(serving)
            self._servings.append(serving)
            serving.poke()

        async def end() -> None:
            serving.end()

        return end

    async def bucket(self, name: str) -> MemoryBucket:
        checked_bucket(name)
        with self.network.lock:
            self.reach()
            return MemoryBucket(self, self.network.buckets.setdefault(name, Shared()))

    def on_change(self, told: Callable[[bool], None]) -> None:
        self._told.append(told)

    async def close(self) -> None:
        self.leave()

    def reach(self) -> None:
        """Raises: TransportAway, when it is cut off or closed."""
        if not self.connected:
            raise TransportAway(f"{self.url} is {'closed' if self._left else 'away'}")

    def answer(self, what: str) -> None:
        """Raises: TransportAway, when the answer to what was done is to be lost."""
        if self.network.disturbance is not None and self.network.disturbance.answer_lost(what):
            raise TransportAway(f"{self.url} did not answer")

    def switch(self, *, connected: bool) -> None:
        """It is cut off from the others, or joined to them again."""
        with self.network.lock:
            if self._left or self.connected is connected:
                return
            self.connected = connected
            for poked in (*self._servings, *self.watchers):
                poked.poke()
        call_on(self._loop, lambda: self._tell(connected))

    def leave(self) -> None:
        """Ends all that it serves and watches; the last one takes the network with it."""
        with self.network.lock:
            if self._left:
                return
            self._left, self.connected = True, False
            for serving in self._servings:
                serving.end()
            for watcher in self.watchers:
                watcher.end()
            self._told.clear()
            self.network.transports.remove(self)
        _networks.forget(self.network)

    def _tell(self, connected: bool) -> None:  # noqa: FBT001 - as the port has it
        for told in list(self._told):
            told(connected)


class _Networks:
    """The networks of this process that have a name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: dict[str, MemoryNetwork] = {}

    def join(self, name: str, *, ack_seconds: float, dedup_seconds: float) -> MemoryTransport:
        with self._lock:
            network = self._named.get(name)
            if network is None:
                network = MemoryNetwork(name, ack_seconds=ack_seconds, dedup_seconds=dedup_seconds)
                if name:
                    self._named[name] = network
            return network.join()

    def forget(self, network: MemoryNetwork) -> None:
        with self._lock:
            if not network.transports and self._named.get(network.name) is network:
                del self._named[network.name]


_networks: Final = _Networks()


def open_memory(url: str, *, ack_seconds: float = 30.0, dedup_seconds: float = 600.0) -> MemoryTransport:
    """Joins the network of that name; the first one that does says for how long it waits and knows letters again."""
    return _networks.join(url.removeprefix(SCHEME), ack_seconds=ack_seconds, dedup_seconds=dedup_seconds)
