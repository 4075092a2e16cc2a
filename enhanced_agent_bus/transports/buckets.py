"""One bucket on a NATS server: a stream laid out as JetStream's key-value stores are, so that `nats kv` reads it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from enhanced_agent_bus.errors import TransportAway
from enhanced_agent_bus.ports import Conflict, Item
from enhanced_agent_bus.transports.jetstream import (
    NANO,
    NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    ApiError,
    asked,
    away,
    number_of,
    published,
)
from enhanced_agent_bus.transports.line import ELECTION_SECONDS_MAX, Line
from enhanced_agent_bus.transports.names import checked_key
from enhanced_agent_bus.transports.subjects import bucket_front, bucket_stream, consumer_create, message_get

HEARTBEAT_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.2
IDLE_SECONDS: Final = 30.0  # after which the server forgets a watch that nobody hears
OPERATION: Final = "KV-Operation"
EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


def bucket_config(bucket: str, replicas: int) -> dict[str, Any]:
    """One value a key, on disk; read from the stream's leader, since a replica may be behind."""
    return {
        "name": bucket_stream(bucket),
        "subjects": [f"{bucket_front(bucket)}>"],
        "max_msgs_per_subject": 1,
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": replicas,
        "allow_direct": False,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_age": 0,
        "duplicate_window": 120 * NANO,
    }


class NatsBucket:
    """Fills `ports.Bucket`."""

    def __init__(self, line: Line, name: str, watches: set[Watch]) -> None:
        self._line = line
        self._stream = bucket_stream(name)
        self._front = bucket_front(name)
        self._watches = watches  # of the whole transport, which tells them of the connection

    async def get(self, key: str) -> Item | None:
        item = await self.newest(key)
        return None if item is None or item.value is None else item

    async def put(self, key: str, value: bytes) -> int:
        return await self._set(key, value, {})

    async def swap(self, key: str, value: bytes | None, revision: int) -> int:
        headers = {EXPECTED: str(revision)} | ({OPERATION: "DEL"} if value is None else {})
        try:
            return await self._set(key, value or b"", headers)
        except Conflict:
            if revision != 0:
                raise
        removed = await self.newest(key)  # a removal is an entry of its own, with a revision
        if removed is None or removed.value is not None:
            raise Conflict(f"{key} does not have revision 0")
        return await self._set(key, value or b"", headers | {EXPECTED: str(removed.revision)})

    async def watch(self, told: Callable[[Item], None]) -> Callable[[], None]:
        watch = Watch(self._line, self._stream, self._front, told)

        def end() -> None:
            self._watches.discard(watch)
            watch.end()

        self._watches.add(watch)
        try:
            await watch.begin()
        except BaseException:  # cancelled too: nobody has what would end it
            end()
            raise
        return end

    async def newest(self, key: str) -> Item | None:
        """With a value of None where it was removed. Raises: TransportAway."""
        message = await self._stored(key)
        if message is None:
            return None
        headers = base64.b64decode(message.get("hdrs", ""))
        value = None if _removes(headers) else base64.b64decode(message.get("data", ""))
        return Item(key, value, int(message["seq"]))

    async def set_at(self, key: str) -> tuple[int, int]:
        """The revision of a key that there is, and the server's microseconds since 1970 then. Raises: TransportAway."""
        message = await self._stored(key)
        if message is None:
            raise TransportAway(f"{self._line.url} has lost {key}")
        return int(message["seq"]), int(datetime.fromisoformat(message["time"]).timestamp() * 1_000_000)

    async def _stored(self, key: str) -> Mapping[str, Any] | None:
        subject = f"{self._front}{checked_key(key)}"
        try:
            answer = await asked(self._line, message_get(self._stream), {"last_by_subj": subject})
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise away(self._line, error) from None
        message: Mapping[str, Any] = answer["message"]
        return message

    async def _set(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        """Raises: Conflict, TransportAway."""
        try:
            return await published(self._line, f"{self._front}{checked_key(key)}", value, headers or None)
        except ApiError as error:
            if error.number in WRONG_LAST_SEQUENCE:
                raise Conflict(f"{key} does not have revision {headers.get(EXPECTED)}") from None
            raise away(self._line, error) from None


def _removes(headers: bytes) -> bool:
    lines = (line.partition(b":") for line in headers.split(b"\r\n"))
    return any(name.strip().lower() == OPERATION.lower().encode() and value.strip() for name, _, value in lines)


class Watch:
    """An ordered consumer: begun anew behind the last revision when one is missing, or the server falls silent."""

    def __init__(self, line: Line, stream: str, front: str, told: Callable[[Item], None]) -> None:
        self._line = line
        self._stream = stream
        self._front = front
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._revision = 0
        self._next = 1  # the consumer's number of the next message
        self._generation = 0
        self._complete: asyncio.Future[None] = self._loop.create_future()
        self._anew = asyncio.Event()
        self._sign = 0.0
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    async def begin(self) -> None:
        """Tells of all that there is. Raises: TransportAway."""
        try:
            await self._first()
            while not self._complete.done():
                before = self._sign
                await asyncio.wait([self._complete], timeout=HEARTBEAT_SECONDS)
                if not self._complete.done() and self._sign == before:
                    raise TransportAway(f"{self._line.url} stopped in the middle of a bucket")
            self._complete.result()
        except ApiError as error:
            raise away(self._line, error) from None
        if self._line.connected and self._task is None:
            self._task = self._line.run(self._run())

    async def _first(self) -> None:
        """In a cluster a consumer can be put on a server that has just died: then another try finds another one."""
        deadline = self._loop.time() + ELECTION_SECONDS_MAX
        while True:
            try:
                await self._start()
            except TransportAway:
                if not self._line.elects or self._loop.time() > deadline:
                    raise
                await self._leave()
            else:
                return

    def up(self) -> None:
        if not self._ended and self._task is None:
            self._anew.set()
            self._task = self._line.run(self._run())

    def down(self) -> None:
        self._subscription = None
        if not self._complete.done():
            self._complete.set_exception(TransportAway(f"{self._line.url} went away in the middle of a bucket"))
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        subscription = self._subscription
        self.down()
        self._complete.exception()
        if subscription is not None and self._line.connected:
            self._line.run(_unsubscribed(subscription))

    async def _run(self) -> None:
        while self._task is asyncio.current_task():
            await self._silence()
            await self._leave()
            try:
                await self._start()
            except (TransportAway, ApiError):
                self._anew.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def _leave(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await _unsubscribed(subscription)

    async def _silence(self) -> None:
        """Returns when it has to begin anew."""
        while self._loop.time() - self._sign < 2 * HEARTBEAT_SECONDS:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._anew.wait()
                return

    async def _start(self) -> None:
        """Raises: ApiError, TransportAway."""
        self._anew.clear()
        self._generation += 1
        self._next, self._sign = 1, self._loop.time()
        inbox, generation = self._line.inbox(), self._generation
        self._subscription = await self._line.subscribe(inbox, lambda message: self._heard(message, generation))
        first = not self._complete.done()
        name = inbox.rpartition(".")[2]
        config: dict[str, Any] = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject" if first else "by_start_sequence",
            "filter_subject": f"{self._front}>",
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "idle_heartbeat": int(HEARTBEAT_SECONDS * NANO),
            "inactive_threshold": int(IDLE_SECONDS * NANO),
            "mem_storage": True,
            "num_replicas": 1,
        }
        if not first:
            config["opt_start_seq"] = self._revision + 1
        made = await asked(
            self._line, consumer_create(self._stream, name), {"stream_name": self._stream, "config": config}
        )
        if first and not made["num_pending"] and not made["delivered"]["consumer_seq"]:
            self._completed()

    def _heard(self, message: Msg, generation: int) -> None:
        if self._ended or generation != self._generation:
            return
        self._sign = self._loop.time()
        number = number_of(message)
        if number is None:
            self._status(message.headers or {})
            return
        if number.consumer != self._next:
            self._anew.set()
            return
        self._next += 1
        self._revision = number.stream
        removed = bool((message.headers or {}).get(OPERATION))
        if not removed or self._complete.done():
            self._told(
                Item(message.subject.removeprefix(self._front), None if removed else message.data, number.stream)
            )
        if not number.pending:
            self._completed()

    def _status(self, headers: Mapping[str, str]) -> None:
        """A heartbeat says what was sent last: more than has come is a gap."""
        last = headers.get("Nats-Last-Consumer")
        if headers.get("Status") != "100" or (last is not None and int(last) >= self._next):
            self._anew.set()

    def _completed(self) -> None:
        if not self._complete.done():
            self._complete.set_result(None)


async def _unsubscribed(subscription: Subscription) -> None:
    with contextlib.suppress(nats.errors.Error, OSError):
        await subscription.unsubscribe()
