"""The least that a durable request and its reply over JetStream cost: nats-py alone, with nothing that decides.

A stream with the settings of the bus's own; two connections, each publishing with an acknowledgement and hearing a
durable consumer; what was heard is acknowledged once what follows from it is stored.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import nats
import orjson
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from enhanced_agent_bus.bench.house import REPLY, drive
from enhanced_agent_bus.bench.workload import Load

STREAM: Final = "BARE"
ALONE: Final = "BARE_ALONE"
REQUESTS: Final = "bare.requests"
REPLIES: Final = "bare.replies"
ANSWER_SECONDS_MAX: Final = 30.0
DUPLICATE_SECONDS: Final = 600.0
STREAM_BYTES_MAX: Final = 1024**3


@asynccontextmanager
async def stream_of(url: str) -> AsyncIterator[JetStreamContext]:
    """A connection of its own; what was said on it has been heard when it ends."""
    client = await nats.connect(url)
    try:
        yield client.jetstream(timeout=ANSWER_SECONDS_MAX)
    finally:
        await client.drain()


def settings(name: str, subject: str) -> StreamConfig:
    """As the bus's own stream has them."""
    return StreamConfig(
        name=name,
        subjects=[subject],
        retention=RetentionPolicy.WORK_QUEUE,
        discard=DiscardPolicy.NEW,
        storage=StorageType.FILE,
        num_replicas=1,
        duplicate_window=DUPLICATE_SECONDS,
        max_bytes=STREAM_BYTES_MAX,
        allow_direct=False,
    )


async def bare_rate(url: str, loads: Sequence[Load], count: int, in_flight: int) -> float:
    """Requests a second that are answered, here or in another process (`answering`), with so many at once."""
    waiting: dict[int, asyncio.Future[None]] = {}
    numbers = itertools.count()
    async with stream_of(url) as stream:
        await stream.add_stream(settings(STREAM, "bare.*"))

        async def heard(message: Msg) -> None:
            waiting[orjson.loads(message.data)["to"]].set_result(None)
            await message.ack()

        async def ask(load: Load) -> None:
            number = next(numbers)
            answer = waiting[number] = asyncio.get_running_loop().create_future()
            await stream.publish(REQUESTS, orjson.dumps({"number": number, "payload": load.payload}))
            await answer
            del waiting[number]

        await stream.subscribe(REPLIES, durable="asker", cb=heard, manual_ack=True)
        started = time.perf_counter()
        await drive(ask, itertools.islice(itertools.cycle(loads), count), in_flight)
        return count / (time.perf_counter() - started)


@asynccontextmanager
async def answering(url: str) -> AsyncIterator[None]:
    """Answers requests, each once its reply is stored."""
    under_way: set[asyncio.Task[None]] = set()
    async with stream_of(url) as stream:
        await stream.add_stream(settings(STREAM, "bare.*"))

        async def reply(message: Msg) -> None:
            asked: dict[str, Any] = orjson.loads(message.data)
            await stream.publish(REPLIES, orjson.dumps({"to": asked["number"], "payload": REPLY}))
            await message.ack()

        async def heard(message: Msg) -> None:
            task = asyncio.create_task(reply(message))  # nats-py hears the next one when this returns
            under_way.add(task)
            task.add_done_callback(under_way.discard)

        await stream.subscribe(REQUESTS, durable="answerer", cb=heard, manual_ack=True)
        yield


async def stored_rate(url: str, body: bytes, count: int, in_flight: int) -> float:
    """Messages of these bytes that one stream of the server stores in a second."""
    async with stream_of(url) as stream:
        await stream.add_stream(settings(ALONE, "alone"))
        left = iter(range(count))

        async def publish() -> None:
            for _ in left:
                await stream.publish("alone", body)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(publish())
        seconds = time.perf_counter() - started
        await stream.delete_stream(ALONE)
        return count / seconds


async def stored(url: str, names: Iterable[str]) -> int:
    """How many messages streams have taken since they were made."""
    async with stream_of(url) as stream:
        return sum([int((await stream.stream_info(name)).state.last_seq) for name in names])
