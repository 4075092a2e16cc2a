"""A network within this process: `memory://NAME` joins the buses that open it, `memory://` joins nobody.

It keeps nothing: what is in it is gone when its last transport closes. It knows no time but that of the event loops
it is used on (which may be several, each in a thread of its own), so that tests can make it up.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from enhanced_agent_bus.errors import ConfigInvalid, TransportAway
from enhanced_agent_bus.ports import Conflict, Handed, Item, Letter
from enhanced_agent_bus.transports.names import checked_box, checked_bucket, checked_key, checked_letter

SCHEME: Final = "memory://"
BYTES_MAX: Final = 64 * 1024 * 1024

_SETTLED: Final = -1.0


class Disturbance(Protocol):
    """What goes wrong in a network, for tests."""

    def arrivals(self, letter: Letter) -> Sequence[float]:
        """After how many seconds each copy of a letter can be handed out; (0.0,) is an ordinary one."""
        ...

    def answer_lost(self, what: str) -> bool:
        """Whether what was asked for (post, done, again, get, put, swap) is done, and nobody is told so."""
        ...


@dataclass(slots=True, eq=False)
class _Kept:
    """A letter in a box. From `due` on it can be handed out, if it is not settled by then."""

    letter: Letter
    order: int
    taken_us: int
    due: float
    times: int = 0
    holder: _Held | None = None
    ready: bool = False


@dataclass(slots=True)
class _Box:
    """The letters of one box: those that can be handed out, and when others can."""

    ready: list[tuple[int, _Kept]] = field(default_factory=list)
    later: list[tuple[float, int, _Kept]] = field(default_factory=list)  # entries with another `due` are void
    servings: deque[_Serving] = field(default_factory=deque)
    known: set[str] = field(default_factory=set)
    since: deque[tuple[float, str]] = field(default_factory=deque)  # when each known id was put in, oldest first

    def due_at(self, kept: _Kept, due: float) -> None:
        kept.due, kept.ready = due, False
        heapq.heappush(self.later, (due, kept.order, kept))

    def now_ready(self, kept: _Kept) -> None:
        if kept.holder is not None:  # whoever had it was silent for too long, and has room for another
            kept.holder.let_go()
        kept.holder, kept.ready = None, True
        heapq.heappush(self.ready, (kept.order, kept))

    def next(self, now: float) -> _Kept | None:
        """The oldest one that can be handed out."""
        while self.later and self.later[0][0] <= now:
            due, _, kept = heapq.heappop(self.later)
            if kept.due == due and not kept.ready:
                self.now_ready(kept)
        while self.ready:
            kept = heapq.heappop(self.ready)[1]
            if kept.ready:
                kept.ready = False
                return kept
        return None

    def next_due(self) -> float | None:
        while self.later and (self.later[0][2].due != self.later[0][0] or self.later[0][2].ready):
            heapq.heappop(self.later)
        return self.later[0][0] if self.later else None


@dataclass(slots=True)
class _Shared:
    """What a bucket has, in the order of revisions, and who looks on."""

    items: dict[str, Item] = field(default_factory=dict)
    revision: int = 0
    watchers: list[_Watcher] = field(default_factory=list)

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
        self.boxes: dict[str, _Box] = {}
        self.buckets: dict[str, _Shared] = {}
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
            box = self.boxes.setdefault(letter.box, _Box())
            while box.since and box.since[0][0] + self.dedup_seconds <= now:
                box.known.discard(box.since.popleft()[1])
            if letter.id in box.known:
                return
            box.known.add(letter.id)
            box.since.append((now, letter.id))
            for seconds in self.disturbance.arrivals(letter) if self.disturbance else (0.0,):
                box.due_at(_Kept(letter, next(self._orders), self.now_us(), now), now + seconds)
            self.poke(box)

    def poke(self, box: _Box) -> None:
        """Something has changed in a box: those that serve it look, another one first each time."""
        box.servings.rotate(-1)
        for serving in list(box.servings):
            serving.poke()


class _Poked:
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


class _Held:
    """A letter in the hands of one serving."""

    def __init__(self, serving: _Serving, kept: _Kept) -> None:
        self._serving = serving
        self._kept = kept
        self.letter = kept.letter
        self.times = kept.times
        self.taken_us = kept.taken_us

    async def done(self) -> None:
        self._serving.settle(self, self._kept, None)

    async def again(self, seconds: float = 0.0) -> None:
        self._serving.settle(self, self._kept, max(0.0, seconds))

    def working(self) -> None:
        self._serving.prolong(self, self._kept)

    def let_go(self) -> None:
        self._serving.drop(self)


class _Serving(_Poked):
    """One transport's share of a box."""

    def __init__(self, transport: MemoryTransport, box: _Box, take: Callable[[Handed], None], at_once: int) -> None:
        super().__init__(asyncio.get_running_loop(), transport)
        self._network = transport.network
        self._box = box
        self._take = take
        self._at_once = at_once
        self._held: dict[_Held, _Kept] = {}
        self._timer: asyncio.TimerHandle | None = None

    def _look(self) -> None:
        """Hands out one letter, and looks again when there may be more."""
        now = self._loop.time()
        with self._network.lock:
            self._poked = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self.ended or not self._transport.connected or len(self._held) >= self._at_once:
                return
            kept = self._box.next(now)
            if kept is None:
                due = self._box.next_due()
                self._timer = None if due is None else self._loop.call_at(due, self._look)
                return
            kept.times += 1
            held = kept.holder = _Held(self, kept)
            self._held[held] = kept
            self._box.due_at(kept, now + self._network.ack_seconds)
            self.poke()
        self._take(held)

    def settle(self, held: _Held, kept: _Kept, again_seconds: float | None) -> None:
        """It is dealt with, or to come again after a pause. Raises: TransportAway."""
        with self._network.lock:
            self._held.pop(held, None)  # whatever comes of it, there is room for another
            self.poke()
            self._transport.reach()
            if again_seconds is None:
                kept.due, kept.ready, kept.holder = _SETTLED, False, None
            elif kept.holder is held:
                kept.holder = None
                self._box.due_at(kept, self._loop.time() + again_seconds)
            self._network.poke(self._box)
        self._transport.answer("done" if again_seconds is None else "again")

    def drop(self, held: _Held) -> None:
        """Called with the network's lock held."""
        if self._held.pop(held, None) is not None:
            self.poke()

    def prolong(self, held: _Held, kept: _Kept) -> None:
        with self._network.lock:
            if kept.holder is held and held in self._held and self._transport.connected:
                self._box.due_at(kept, self._loop.time() + self._network.ack_seconds)

    def end(self) -> None:
        """What it has in its hands can be handed out at once."""
        with self._network.lock:
            if self.ended:
                return
            self.ended = True
            self._box.servings.remove(self)
            for held, kept in list(self._held.items()):
                if kept.holder is held:
                    self._box.now_ready(kept)
            self._held.clear()
            self._network.poke(self._box)
            if self._timer is not None:
                call_on(self._loop, self._timer.cancel)


class _Watcher(_Poked):
    """Tells one who looks on of what he has not been told."""

    def __init__(self, transport: MemoryTransport, shared: _Shared, told: Callable[[Item], None]) -> None:
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

    def __init__(self, transport: MemoryTransport, shared: _Shared) -> None:
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
            watcher = _Watcher(self._transport, self._shared, told)
            self._shared.watchers.append(watcher)
            self._transport.watchers.append(watcher)
        watcher.begin()
        return watcher.end


class MemoryTransport:
    """Fills `ports.Transport` within one process."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.url = f"{SCHEME}{network.name}"
        self.weakenings: Sequence[str] = ()
        self.connected = True
        self.bytes_max = network.bytes_max
        self.watchers: list[_Watcher] = []
        self._loop = asyncio.get_running_loop()
        self._servings: list[_Serving] = []
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
            kept = self.network.boxes.setdefault(box, _Box())
            serving = _Serving(self, kept, take, at_once)
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
            return MemoryBucket(self, self.network.buckets.setdefault(name, _Shared()))

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
