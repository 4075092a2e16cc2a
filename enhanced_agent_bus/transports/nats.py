"""NATS JetStream: a stream for each kind of boxes, a durable pull consumer a box, a key-value store a bucket.

A stream is a work queue: a letter leaves it when it is settled, so that what fills it is only what nobody has dealt
with, and a full stream refuses the next letter instead of dropping the oldest. With a stream that keeps what is
settled, either age would remove letters that nobody has read yet, or settled ones would fill it.

The price: what the server knows of duplicates is in its memory once they are settled. One that was started again is
told by its new id, and `times` of what it took within the window before that counts from two. Which server that is
stands in a bucket of its own. In a cluster it is the leader of the stream that has to know them: one that was
elected since is treated like a server that was started again, for it may be. That is looked at for agents' letters; of
the others, which run no handler, nothing is known there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import orjson

from enhanced_agent_bus.errors import ConfigInvalid, TransportAway
from enhanced_agent_bus.ports import Conflict, Handed, Letter
from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.boxes import ID_HEADER, Serving
from enhanced_agent_bus.transports.buckets import NatsBucket, Watch, bucket_config
from enhanced_agent_bus.transports.jetstream import (
    NANO,
    NO_PEERS,
    NOT_ENABLED,
    NOT_FOUND,
    STREAM_EXISTS,
    ApiError,
    asked,
    away,
    published,
)
from enhanced_agent_bus.transports.line import ELECTION_SECONDS_MAX, Line, NobodyAnswers
from enhanced_agent_bus.transports.monitor import Said, said_at
from enhanced_agent_bus.transports.names import checked_box, checked_bucket, checked_bus, checked_letter, token
from enhanced_agent_bus.transports.server import Weakness, weaknesses
from enhanced_agent_bus.transports.subjects import (
    AGENTS,
    INFO,
    SERVERS,
    bucket_name,
    inbox_front,
    kind_of,
    letters_front,
    letters_stream,
    stream_create,
    stream_info,
    stream_update,
)

STREAM_BYTES_MAX: Final = 1024**3  # for what goes to agents
#: For the rest: replies and questions, settled once there was room for a notice; and what needs no room to be settled.
OTHER_BYTES_MAX: Final = {"node": 256 * 1024**2, "notices": 64 * 1024**2}
LETTER_BYTES_MAX: Final = 16 * 1024**2
HEADERS_BYTES_MAX: Final = 2048  # a box of 160 characters and an id of 256, as headers
ANSWER_SECONDS_MAX: Final = 5.0
PING_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.2
#: In a cluster: nobody tells a client that a stream has another leader, or is on another server.
LOOK_SECONDS: Final = 5.0
UNAVAILABLE: Final = 503
MONITOR_LOOKS: Final = 12  # the monitoring ports are asked each so many times


class NatsTransport:
    """Fills `ports.Transport`."""

    def __init__(
        self, line: Line, access: Access, bus: str, *, ack_seconds: float, dedup_seconds: float, replicas: int
    ) -> None:
        self.url = access.shown
        self.weaknesses: tuple[Weakness, ...] = ()
        self._line = line
        self._access = access
        self._bus = checked_bus(bus)
        self._stream = letters_stream(bus)
        self._ack_seconds = ack_seconds
        self._dedup_seconds = dedup_seconds
        self._replicas = replicas
        self._streams: dict[str, Mapping[str, Any]] = {}  # as STREAM.INFO has them
        self._said: list[Said] = []  # by the monitoring ports
        self._certain_us = math.inf  # from when on the server knows every duplicate within the window
        self._servings: set[Serving] = set()
        self._watches: set[Watch] = set()
        self._told: list[Callable[[bool], None]] = []
        self._ready = False
        self._closed = False
        self._monitor = ""
        line.up, line.down = self._up, self._down

    @property
    def weakenings(self) -> Sequence[str]:
        return [one.name for one in self.weaknesses]

    @property
    def connected(self) -> bool:
        return self._ready and self._line.connected

    @property
    def bytes_max(self) -> int:
        payload = int(self._line.info.get("max_payload", 0))
        stream = self._streams.get(self._stream)
        largest = -1 if stream is None else int(stream["config"].get("max_msg_size", -1))
        return max(0, min(payload, largest if largest > 0 else payload) - HEADERS_BYTES_MAX)

    async def post(self, letter: Letter) -> None:
        box = token(checked_letter(letter).box)
        if len(letter.body) > self.bytes_max:
            raise ConfigInvalid(
                f"a letter of {len(letter.body)} bytes is too large for {self.url}, which takes {self.bytes_max}",
                remedy="raise max_payload in the server's configuration, or lower limits.payload_bytes",
            )
        try:
            await published(self._line, self._subject(letter.box), letter.body, {ID_HEADER: f"{box}/{letter.id}"})
        except ApiError as error:
            raise away(self._line, error) from None

    async def serve(self, box: str, take: Callable[[Handed], None], *, at_once: int) -> Callable[[], Awaitable[None]]:
        serving = Serving(
            self._line,
            letters_stream(self._bus, kind_of(checked_box(box))),
            box,
            take,
            subject=self._subject(box),
            at_once=at_once,
            ack_seconds=self._ack_seconds,
            certain_us=partial(self._certain, kind_of(box)),
        )
        if self._closed:
            raise TransportAway(f"{self.url} is closed")
        self._servings.add(serving)

        async def end() -> None:
            self._servings.discard(serving)
            await serving.end()

        if self.connected:
            serving.up()
            try:
                await serving.served()
            except ApiError as error:
                await end()
                raise away(self._line, error) from None
        return end

    def _subject(self, box: str) -> str:
        return f"{letters_front(self._bus, kind_of(box))}{token(box)}"

    def _certain(self, kind: str) -> float:
        return math.inf if kind != AGENTS and self._line.elects else self._certain_us

    async def bucket(self, name: str) -> NatsBucket:
        return await self._bucket(checked_bucket(name))

    def on_change(self, told: Callable[[bool], None]) -> None:
        self._told.append(told)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed, self._ready = True, False
        for watch in list(self._watches):
            watch.end()
        await asyncio.gather(*(serving.end() for serving in self._servings))
        await self._line.close()

    async def prepare(self, monitor: str, stream_bytes: int) -> None:
        """Makes what the bus needs on a server, and looks at it. Raises: ConfigInvalid, TransportAway."""
        deadline = time.monotonic() + ELECTION_SECONDS_MAX
        while True:
            try:
                await self._make(stream_bytes)
                break
            except TransportAway:
                if not self._line.elects or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
        self._monitor = monitor
        await self._inspect()
        self._ready = True
        self._line.run(self._look_on())

    async def _make(self, stream_bytes: int) -> None:
        """Raises: ConfigInvalid, TransportAway."""
        try:
            await asked(self._line, INFO)
            for kind, size in {AGENTS: stream_bytes, **OTHER_BYTES_MAX}.items():
                await self._ensure(self._letters(kind, size))
            await self._look_at_server()
        except ApiError as error:
            if self._line.elects and error.code == UNAVAILABLE and error.number not in NOT_ENABLED:
                raise away(self._line, error) from None
            raise self._unfit(error) from None
        except NobodyAnswers:
            if self._line.elects:
                raise
            raise self._unfit(None) from None

    async def _inspect(self) -> None:
        """What is weak about the server of this connection, and about its cluster; the ports may take their time."""
        self._said = await said_at(self._monitor, self._access)
        self._weigh()

    def _weigh(self) -> None:
        found = weaknesses(self._access, self._line.info, list(self._streams.values()), self._said, self._replicas)
        self.weaknesses = tuple(found)

    async def _look_on(self) -> None:
        """While the servers are a cluster: its streams change places without a word to us."""
        for number in itertools.count(1):
            await asyncio.sleep(LOOK_SECONDS)
            if not self._line.elects:
                continue
            with contextlib.suppress(TransportAway, ApiError, ConfigInvalid):
                await self._look_at_server()
                if number % MONITOR_LOOKS == 0:
                    for name in list(self._streams):
                        self._streams[name] = await asked(self._line, stream_info(name))
                    await self._inspect()

    def _unfit(self, error: ApiError | None) -> ConfigInvalid:
        if error is None or error.number in NOT_ENABLED:
            return ConfigInvalid(
                f"the server at {self.url} has no JetStream for this account",
                remedy="start it with a `jetstream` block in its configuration",
            )
        return ConfigInvalid(
            f"the server at {self.url} cannot keep the bus {self._bus}: {error}",
            remedy="give the account more room or rights, or take another server",
        )

    def _letters(self, kind: str, stream_bytes: int) -> dict[str, Any]:
        return {
            "name": letters_stream(self._bus, kind),
            "subjects": [f"{letters_front(self._bus, kind)}*"],
            "retention": "workqueue",
            "discard": "new",
            "storage": "file",
            "num_replicas": self._replicas,
            "duplicate_window": int(max(self._dedup_seconds, 0.1) * NANO),
            "max_bytes": stream_bytes,
            "max_msg_size": LETTER_BYTES_MAX,
            "max_age": 0,
            "max_msgs": -1,
            "max_consumers": -1,
            "allow_direct": False,
        }

    async def _ensure(self, wanted: dict[str, Any]) -> None:
        """Makes a stream, or takes the one that there is. Raises: ApiError, ConfigInvalid, TransportAway."""
        name = wanted["name"]
        try:
            stream = await self._asked(stream_info(name))
        except ApiError as error:
            if error.code != NOT_FOUND:
                raise
            try:
                stream = await self._asked(stream_create(name), wanted)
            except ApiError as other:
                if other.number != STREAM_EXISTS:  # else another node was first
                    raise
                stream = await self._asked(stream_info(name))
        there = stream["config"]
        fixed = ("subjects", "retention", "discard", "max_msgs_per_subject")
        wrong = [key for key in fixed if there.get(key) != wanted.get(key, there.get(key))]
        if wrong or there.get("max_age") or there.get("sealed"):
            what = wrong[0] if wrong else "max_age" if there.get("max_age") else "sealed"
            raise ConfigInvalid(
                f"the stream {name} at {self.url} is not one of this bus: its {what} differs",
                remedy="choose another name for the bus, or remove that stream",
            )
        if there["duplicate_window"] < wanted["duplicate_window"]:  # raised, and never lowered: others may count on it
            longer = {**there, "duplicate_window": wanted["duplicate_window"]}
            stream = await asked(self._line, stream_update(name), longer)
        self._streams[name] = stream

    async def _asked(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Asked of a stream's leader; in a cluster an election is waited for. Raises: ApiError, TransportAway."""
        deadline = time.monotonic() + ELECTION_SECONDS_MAX
        while True:
            try:
                return await asked(self._line, what, body)
            except (TransportAway, ApiError) as error:
                passes = isinstance(error, TransportAway) or error.number == NO_PEERS
                if not passes or not self._line.elects or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _bucket(self, name: str) -> NatsBucket:
        full = bucket_name(self._bus, name)
        try:
            await self._ensure(bucket_config(full, self._replicas))
        except ApiError as error:
            raise away(self._line, error) from None
        self._weigh()
        return NatsBucket(self._line, full, self._watches)

    async def _look_at_server(self) -> None:
        """Notes when the server was first seen after it was started, or elected. Raises: TransportAway."""
        bucket = await self._bucket(SERVERS)
        mine = await self._who_knows()
        if mine is None:
            self._certain_us = math.inf
            return
        known = await bucket.newest("server")
        if known is None or known.value != mine:
            with contextlib.suppress(Conflict):  # another node has noted it
                await bucket.swap("server", mine, known.revision if known else 0)
        revision, seen_us = await bucket.set_at("server")
        first = revision == 1  # nothing was settled before it
        self._certain_us = 0 if first else seen_us + self._dedup_seconds * 1_000_000

    async def _who_knows(self) -> bytes | None:
        """Names the server that knows each letter that it took; None where nobody can tell. Raises: TransportAway."""
        if not self._line.info.get("cluster"):
            return orjson.dumps(str(self._line.info.get("server_id")))
        try:
            stream = self._streams[self._stream] = await self._asked(stream_info(self._stream))
        except ApiError as error:
            raise away(self._line, error) from None
        cluster = stream.get("cluster") or {}
        leader, since = cluster.get("leader"), cluster.get("leader_since")  # of one replica nothing is said
        return orjson.dumps([leader, since]) if leader and since else None

    def _up(self) -> None:
        self._line.run(self._arrive())

    async def _arrive(self) -> None:
        while True:
            try:
                await self._look_at_server()
                break
            except (TransportAway, ConfigInvalid):
                if not self._line.connected:
                    return
                await asyncio.sleep(RETRY_SECONDS)
        self._ready = True
        for serving in self._servings:
            serving.up()
        for watch in self._watches:
            watch.up()
        self._tell(connected=True)
        await self._inspect()  # it may be another server, or have another configuration

    def _down(self) -> None:
        was, self._ready, self._certain_us = self._ready, False, math.inf
        for serving in self._servings:
            serving.down()
        for watch in list(self._watches):
            watch.down()
        if was:
            self._tell(connected=False)

    def _tell(self, *, connected: bool) -> None:
        for told in list(self._told):
            told(connected)


async def open_nats(
    access: Access,
    bus: str,
    *,
    ack_seconds: float = 30.0,
    dedup_seconds: float = 600.0,
    replicas: int = 1,
    monitor: str = "",
    stream_bytes: int = STREAM_BYTES_MAX,
    answer_seconds: float = ANSWER_SECONDS_MAX,
    ping_seconds: float = PING_SECONDS,
) -> NatsTransport:
    """Connects, and makes what the bus of that name needs. Raises: ConfigInvalid, TransportAway."""
    checked_bus(bus)
    line = Line(
        access, name=f"eab {bus}", inbox=inbox_front(bus), answer_seconds=answer_seconds, ping_seconds=ping_seconds
    )
    transport = NatsTransport(
        line, access, bus, ack_seconds=ack_seconds, dedup_seconds=dedup_seconds, replicas=replicas
    )
    try:
        await line.open()
        await transport.prepare(monitor, stream_bytes)
    except BaseException:
        await transport.close()
        raise
    return transport
