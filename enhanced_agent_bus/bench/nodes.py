"""Nodes under load on a real NATS server: the routes that messages take between them, and a pair of nodes to drive.

Here an agent either sends or receives. The directory is that of the workload; of its agents only those register that
stand on a route, since each that receives has a consumer of its own on the server.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus import Agent, AgentBus, Message, open_bus
from enhanced_agent_bus.bench import workload
from enhanced_agent_bus.bench.house import MEMORY, PATIENT, REPLY, REQUEST_SECONDS, ask, drive
from enhanced_agent_bus.bench.jetstream import Server
from enhanced_agent_bus.bench.workload import Load, Profile

ROUTES_MAX: Final = 64
LEASE_SECONDS: Final = 60.0  # a busy neighbour must not cut a node off
LOOK_SECONDS: Final = 0.005


def routes(most: int = ROUTES_MAX) -> list[Load]:
    """At most so many questions that the policy admits, with their answers; no two share an agent."""
    found: list[Load] = []
    taken: set[str] = set()
    for load in workload.admitted(workload.directory(), asks=True):
        if not taken & {load.sender, load.recipient}:
            taken |= {load.sender, load.recipient}
            found.append(load)
        if len(found) == min(most, ROUTES_MAX):
            break
    return found


async def answer(message: Message) -> dict[str, Any] | None:
    """Replies to a question, and takes anything else."""
    return REPLY if message.type == "query" else None


@asynccontextmanager
async def node(home: Path | None, constitution: Path, server: Server, bus: str) -> AsyncIterator[AgentBus]:
    """One node of the bus of that name, with its ledger in memory where there is no home."""
    transport = {"url": server.url, "monitor": server.monitor, "name": bus, "lease_seconds": LEASE_SECONDS}
    place = MEMORY if home is None else home
    async with open_bus(place, constitution=constitution, policy=PATIENT, transport=transport) as opened:
        yield opened


async def receive(bus: AgentBus, loads: Sequence[Load]) -> None:
    """Registers the recipients of these here; other nodes may have them too."""
    profiles = workload.directory()
    for one in (profiles[load.recipient] for load in loads):
        await bus.register(one.id, answer, tenant=one.tenant, roles=one.roles, shared=True)


@dataclass(frozen=True, slots=True)
class Sender:
    """A node with the senders of some routes, whose recipients are on others."""

    bus: AgentBus
    agents: Mapping[str, Agent]
    loads: Sequence[Load]

    async def ask(self, load: Load) -> Message:
        return await ask(self.agents, load)

    async def send(self, load: Load) -> None:
        """Returns when it has ended on its receiver's node, and that is recorded here."""
        receipt = await self.agents[load.sender].send(
            load.recipient, load.payload, priority=load.priority, conversation=load.conversation
        )
        receipt.raise_for_refusal()
        if (await receipt.outcome(REQUEST_SECONDS)).state != "delivered":
            raise RuntimeError(f"{receipt.message_id} was not delivered")

    def some(self, count: int) -> Iterator[Load]:
        """So many messages, the same ones again and again."""
        return itertools.islice(itertools.cycle(self.loads), count)


async def sender(bus: AgentBus, loads: Sequence[Load]) -> Sender:
    """Registers the senders of these, and knows where their recipients are when it returns."""
    profiles: dict[str, Profile] = workload.directory()
    agents = {}
    for one in (profiles[load.sender] for load in loads):
        agents[one.id] = await bus.register(one.id, tenant=one.tenant, roles=one.roles)
    recipients = {load.recipient for load in loads}
    await _until(lambda: recipients <= {agent.id for agent in bus.agents()})
    return Sender(bus, agents, loads)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes of one bus in this process."""

    sender: Sender
    receiver: AgentBus

    async def rate(self, count: int, in_flight: int) -> float:
        """Requests a second, until each and its reply have ended on both nodes."""
        started = time.perf_counter()
        await drive(self.sender.ask, self.sender.some(count), in_flight)
        await settled(self.sender.bus, self.receiver)
        return count / (time.perf_counter() - started)


@asynccontextmanager
async def pair(
    folder: Path | None, constitution: Path, server: Server, bus: str, loads: Sequence[Load]
) -> AsyncIterator[Pair]:
    """A sending and a receiving node, with homes in `folder` where one is given."""
    async with AsyncExitStack() as stack:
        receiver, sending = [
            await stack.enter_async_context(node(folder / name if folder else None, constitution, server, bus))
            for name in ("receiver", "sender")
        ]
        await receive(receiver, loads)
        yield Pair(await sender(sending, loads), receiver)


async def settled(*buses: AgentBus) -> None:
    """Once no message of these is open, nor on its way."""
    for bus in buses:
        await bus.wait_idle()
    await _until(lambda: not any(bus.status().accounting["handed_over"] for bus in buses))


async def _until(so: Callable[[], bool]) -> None:
    while True:
        if so():
            return
        await asyncio.sleep(LOOK_SECONDS)
