"""A bus under load: every agent of the directory registered, and messages driven through it so many at a time."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus import Agent, AgentBus, Message, Receipt, open_bus
from enhanced_agent_bus.bench import workload
from enhanced_agent_bus.bench.workload import Load

MEMORY: Final = ":memory:"
REPLY: Final = {"accepted": True}
REQUEST_SECONDS: Final = 30.0
#: A neighbour's load must not end a run: what is late is slow here, and not refused.
PATIENT: Final = {"timeout_seconds": 10.0}

Handler = Callable[[Message], Awaitable[dict[str, Any] | None]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How long a benchmark takes."""

    runs: int
    messages: int  # in a run of the memory ledger; others take a share of it
    distinct: int  # messages before they repeat: fewer than the decision cache holds
    seconds: float  # of a run that is bounded by time
    log_records: int
    flat_messages: int


QUICK: Final = Scale(runs=3, messages=6_000, distinct=2_000, seconds=0.6, log_records=20_000, flat_messages=30_000)
#: All rows within twelve minutes, where nothing else runs.
FULL: Final = Scale(runs=5, messages=20_000, distinct=2_000, seconds=2.0, log_records=100_000, flat_messages=250_000)
SMOKE: Final = Scale(runs=1, messages=100, distinct=50, seconds=0.1, log_records=400, flat_messages=400)


async def ask(agents: Mapping[str, Agent], load: Load) -> Message:
    """The reply to one message of the load."""
    return await agents[load.sender].request(
        load.recipient,
        load.payload,
        timeout=REQUEST_SECONDS,
        type=load.type,
        priority=load.priority,
        conversation=load.conversation,
    )


@dataclass(frozen=True, slots=True)
class House:
    """An open bus with its agents and the messages that go between them."""

    bus: AgentBus
    agents: Mapping[str, Agent]
    loads: Sequence[Load]

    async def send(self, load: Load) -> Receipt:
        receipt = await self.agents[load.sender].send(
            load.recipient,
            load.payload,
            type=load.type,
            priority=load.priority,
            conversation=load.conversation,
        )
        receipt.raise_for_refusal()
        return receipt

    async def ask(self, load: Load) -> Message:
        return await ask(self.agents, load)

    def some(self, count: int) -> Iterator[Load]:
        """So many messages, the same ones again and again."""
        return itertools.islice(itertools.cycle(self.loads), count)


async def take(_message: Message) -> None:
    """A handler that does nothing: what is measured is the bus."""


async def reply(_message: Message) -> dict[str, Any]:
    """A handler that answers."""
    return REPLY


@asynccontextmanager
async def house(
    home: Path | None,
    constitution: Path,
    scale: Scale,
    *,
    handler: Handler = take,
    agents: int = workload.AGENTS,
    asks: bool = False,
    warm: bool = True,
) -> AsyncIterator[House]:
    """Opens a bus (in memory without a home) with every agent; `warm` sends each message once, so that it is cached."""
    profiles = workload.directory(agents)
    async with open_bus(MEMORY if home is None else home, constitution=constitution, policy=PATIENT) as bus:
        names = list(profiles.values())
        registered = await asyncio.gather(
            *(bus.register(one.id, handler, tenant=one.tenant, roles=one.roles) for one in names)
        )
        loads = list(itertools.islice(workload.admitted(profiles, asks=asks), scale.distinct))
        built = House(bus, {agent.id: agent for agent in registered}, loads)
        if warm:
            await drive(built.ask if asks else built.send, loads, 64)
            await bus.wait_idle()
        yield built


async def drive(one: Callable[[Load], Awaitable[object]], loads: Iterable[Load], in_flight: int) -> None:
    """So many senders at once, each taking the next message as soon as its own is through."""
    shared = iter(loads)

    async def sender() -> None:
        for load in shared:
            await one(load)
            await asyncio.sleep(0)  # in memory nothing waits: without this one sender would do all the work

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(sender())


async def rate(built: House, one: Callable[[Load], Awaitable[object]], count: int, in_flight: int) -> float:
    """Messages a second, from the first send until the last has ended and its outcome is recorded."""
    started = time.perf_counter()
    await drive(one, built.some(count), in_flight)
    await built.bus.wait_idle()
    return count / (time.perf_counter() - started)


async def alone(built: House, count: int) -> list[float]:
    """Milliseconds from a send to its receipt, one at a time: each waits until the one before has ended."""
    found = []
    for load in built.some(count):
        started = time.perf_counter()
        receipt = await built.send(load)
        found.append((time.perf_counter() - started) * 1000)
        await receipt.outcome()
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
