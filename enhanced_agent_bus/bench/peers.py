"""Peers beside us, each asked the same: a request of about 1 KB and its reply, with nothing that decides or records.

They come with the extra `bench`; what is not installed is not measured. Nothing here is used for anything else.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.bench import workload
from enhanced_agent_bus.bench.figures import Figure
from enhanced_agent_bus.bench.house import REPLY, Scale, drive
from enhanced_agent_bus.bench.workload import Load

IN_FLIGHT: Final = 64
SHARE: Final = 4  # each peer gets a quarter of the messages


@dataclass
class Request:
    """What an agent of a peer is asked."""

    payload: dict[str, Any]


@dataclass
class Reply:
    """What it answers."""

    payload: dict[str, Any]


def installed(*modules: str) -> bool:
    """Whether these can be imported here."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


async def peers(_folder: Path, scale: Scale) -> list[Figure]:
    """Every peer that is installed, in turns."""
    found: dict[str, list[float]] = {"asyncio.Queue and a future": []}
    here = {name: peer for name, (modules, peer) in PEERS.items() if installed(*modules)}
    for _ in range(scale.runs):
        found["asyncio.Queue and a future"].append(await queue_and_future(scale.messages, IN_FLIGHT))
        for name, peer in here.items():
            found.setdefault(name, []).append(await peer(max(1, scale.messages // SHARE), IN_FLIGHT))
    return [
        Figure("peers", f"{name}: request/reply, 64 in flight", "/s", tuple(rates), note="no policy, no log")
        for name, rates in found.items()
    ]


async def queue_rate(count: int, in_flight: int) -> float:
    """Payloads a second through one bounded asyncio.Queue: so many producers, one consumer, nothing else."""
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(in_flight)
    loads = _loads(count)

    async def put(load: Load) -> None:
        await queue.put(load.payload)

    async def consume() -> None:
        for _ in range(count):
            await queue.get()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        group.create_task(consume())
        group.create_task(drive(put, loads, in_flight))
    return count / (time.perf_counter() - started)


async def queue_and_future(count: int, in_flight: int) -> float:
    """The least that a request can be inside one process."""
    queue: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = asyncio.Queue()

    async def serve() -> None:
        while True:
            _, answer = await queue.get()
            answer.set_result(REPLY)

    async def ask(load: Load) -> None:
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        await queue.put((load.payload, answer))
        await answer

    server = asyncio.create_task(serve())
    try:
        return await _rate(ask, count, in_flight)
    finally:
        server.cancel()


async def autogen(count: int, in_flight: int) -> float:
    """autogen-core: one agent on its single-threaded runtime."""
    core = importlib.import_module("autogen_core")

    class Booker(core.BaseAgent):  # type: ignore[misc, name-defined]  # its module is imported by name
        async def on_message_impl(self, _message: Request, _context: object) -> Reply:
            return Reply(REPLY)

    runtime = core.SingleThreadedAgentRuntime()
    for kind in (Request, Reply):
        runtime.add_message_serializer(core.try_get_known_serializers_for_type(kind))
    await Booker.register(runtime, "booker", lambda: Booker("answers"))
    recipient = core.AgentId("booker", "default")
    runtime.start()

    async def ask(load: Load) -> None:
        await runtime.send_message(Request(load.payload), recipient=recipient)

    try:
        return await _rate(ask, count, in_flight)
    finally:
        await runtime.stop()


async def faststream(count: int, in_flight: int) -> float:
    """FastStream: one subscriber on its in-memory broker."""
    nats = importlib.import_module("faststream.nats")
    broker = nats.NatsBroker()

    async def book(body: dict[str, Any]) -> dict[str, Any]:
        return REPLY if body else {}

    broker.subscriber("booker")(book)
    async with nats.TestNatsBroker(broker) as memory:

        async def ask(load: Load) -> None:
            await memory.request(load.payload, "booker")

        return await _rate(ask, count, in_flight)


async def taskiq(count: int, in_flight: int) -> float:
    """taskiq: one task on its in-memory broker, run in place."""
    module = importlib.import_module("taskiq")
    broker = module.InMemoryBroker(await_inplace=True)

    async def book(body: dict[str, Any]) -> dict[str, Any]:
        return REPLY if body else {}

    task = broker.task(task_name="book")(book)
    await broker.startup()

    async def ask(load: Load) -> None:
        started = await task.kiq(load.payload)
        await started.wait_result()

    try:
        return await _rate(ask, count, in_flight)
    finally:
        await broker.shutdown()


PEERS: Final[dict[str, tuple[tuple[str, ...], Callable[[int, int], Awaitable[float]]]]] = {
    "autogen-core": (("autogen_core",), autogen),
    "FastStream in memory": (("faststream", "nats"), faststream),
    "taskiq in memory": (("taskiq",), taskiq),
}


def _loads(count: int) -> itertools.islice[Load]:
    kept = list(itertools.islice(workload.admitted(workload.directory()), 500))
    return itertools.islice(itertools.cycle(kept), count)


async def _rate(ask: Callable[[Load], Awaitable[object]], count: int, in_flight: int) -> float:
    loads = _loads(count)
    started = time.perf_counter()
    await drive(ask, loads, in_flight)
    return count / (time.perf_counter() - started)
