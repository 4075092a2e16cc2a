"""NATS JetStream: one stream a bus for its letters, a durable pull consumer a box, a key-value store a bucket.

The stream is a work queue: a letter leaves it when it is settled, so that what fills it is only what nobody has dealt
with, and a full stream refuses the next letter instead of dropping the oldest. With a stream that keeps what is
settled, either age would remove letters that nobody has read yet, or settled ones would fill it.

The price: what the server knows of duplicates is in its memory once they are settled. One that was started again is
told by its new id, and `times` of what it took within the window before that counts from two. Which server that is
stands in a bucket of its own. Of the servers of a cluster nobody here knows when they were started, nor whether each
has every duplicate; but with replicas one that is left has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from enhanced_agent_bus.errors import ConfigInvalid, TransportAway
from enhanced_agent_bus.ports import Conflict, Handed, Letter
from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.boxes import ID_HEADER, Serving
from enhanced_agent_bus.transports.buckets import NatsBucket, Watch, bucket_config
from enhanced_agent_bus.transports.jetstream import (
    NANO,
    NOT_ENABLED,
    NOT_FOUND,
    STREAM_EXISTS,
    ApiError,
    asked,
    away,
    published,
)
from enhanced_agent_bus.transports.line import Line, NobodyAnswers
from enhanced_agent_bus.transports.names import checked_box, checked_bucket, checked_bus, checked_letter, token
from enhanced_agent_bus.transports.server import Weakness, inspected
from enhanced_agent_bus.transports.subjects import (
    INFO,
    SERVERS,
    bucket_name,
    inbox_front,
    letters_front,
    letters_stream,
    stream_create,
    stream_info,
    stream_update,
)

STREAM_BYTES_MAX: Final = 1024**3
LETTER_BYTES_MAX: Final = 16 * 1024**2
HEADERS_BYTES_MAX: Final = 2048  # a box of 160 characters and an id of 256, as headers
ANSWER_SECONDS_MAX: Final = 5.0
PING_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.2


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
        self._front = letters_front(bus)
        self._ack_seconds = ack_seconds
        self._dedup_seconds = dedup_seconds
        self._replicas = replicas
        self._configs: dict[str, Mapping[str, Any]] = {}
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
        largest = int(self._configs.get(self._stream, {}).get("max_msg_size", -1))
        return max(0, min(payload, largest if largest > 0 else payload) - HEADERS_BYTES_MAX)

    async def post(self, letter: Letter) -> None:
        box = token(checked_letter(letter).box)
        if len(letter.body) > self.bytes_max:
            raise ConfigInvalid(
                f"a letter of {len(letter.body)} bytes is too large for {self.url}, which takes {self.bytes_max}",
                remedy="raise max_payload in the server's configuration, or lower limits.payload_bytes",
            )
        try:
            await published(self._line, f"{self._front}{box}", letter.body, {ID_HEADER: f"{box}/{letter.id}"})
        except ApiError as error:
            raise away(self._line, error) from None

    async def serve(self, box: str, take: Callable[[Handed], None], *, at_once: int) -> Callable[[], Awaitable[None]]:
        serving = Serving(
            self._line,
            self._stream,
            checked_box(box),
            take,
            subject=f"{self._front}{token(box)}",
            at_once=at_once,
            ack_seconds=self._ack_seconds,
            certain_us=lambda: self._certain_us,
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
        try:
            await asked(self._line, INFO)
            await self._ensure(self._letters(stream_bytes))
            await self._look_at_server()
        except ApiError as error:
            raise self._unfit(error) from None
        except NobodyAnswers:
            raise self._unfit(None) from None
        self._monitor = monitor
        await self._inspect()
        self._ready = True

    async def _inspect(self) -> None:
        """What is weak about the server of this connection; the monitoring port may take its time."""
        streams = list(self._configs.values())
        found = await inspected(self._access, self._line.info, streams, self._monitor, self._replicas)
        self.weaknesses = tuple(found)

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

    def _letters(self, stream_bytes: int) -> dict[str, Any]:
        return {
            "name": self._stream,
            "subjects": [f"{self._front}*"],
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
            there = (await asked(self._line, stream_info(name)))["config"]
        except ApiError as error:
            if error.code != NOT_FOUND:
                raise
            try:
                there = (await asked(self._line, stream_create(name), wanted))["config"]
            except ApiError as other:
                if other.number != STREAM_EXISTS:  # else another node was first
                    raise
                there = (await asked(self._line, stream_info(name)))["config"]
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
            there = (await asked(self._line, stream_update(name), longer))["config"]
        self._configs[name] = there

    async def _bucket(self, name: str) -> NatsBucket:
        full = bucket_name(self._bus, name)
        try:
            await self._ensure(bucket_config(full, self._replicas))
        except ApiError as error:
            raise away(self._line, error) from None
        return NatsBucket(self._line, full, self._watches)

    async def _look_at_server(self) -> None:
        """Notes when the server was first seen after it was started. Raises: TransportAway."""
        bucket = await self._bucket(SERVERS)
        mine = orjson.dumps(str(self._line.info.get("server_id")))
        if self._line.info.get("cluster"):
            self._certain_us = 0
            return
        known = await bucket.newest("server")
        if known is None or known.value != mine:
            with contextlib.suppress(Conflict):  # another node has noted it
                await bucket.swap("server", mine, known.revision if known else 0)
        revision, seen_us = await bucket.set_at("server")
        first = revision == 1  # nothing was settled before it
        self._certain_us = 0 if first else seen_us + self._dedup_seconds * 1_000_000

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
