"""Several nodes of one bus in virtual time, on a network that doubles, delays, loses answers and is cut; from a seed.

Each node is the real bus with the disk and the engine of `virtual.py`; what they share is the real network of one
process. `sea_watch.py` says what must hold.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

from enhanced_agent_bus import AgentBus, BusError, Message, Retry
from enhanced_agent_bus.ledger.checkpoint import Signer
from enhanced_agent_bus.ports import Bucket, Handed, Item, Letter
from enhanced_agent_bus.road.nodes import Joined
from enhanced_agent_bus.settings import Settings
from enhanced_agent_bus.transports.memory import MemoryNetwork, MemoryTransport
from tests.sea_watch import NodeWatch, SeaWatch
from tests.virtual import VirtualHome
from tests.virtual_loop import Stuck, VirtualLoop
from tests.world_rules import constitution, settings_of

BUS: Final = "bus-virtual"
LEASE_SECONDS: Final = 3.0
CALM_SECONDS: Final = 3000.0
AGENTS: Final = {
    "ann": ("acme", ["boss"], [], 0),
    "bob": ("acme", [], ["news"], 1),
    "cleo": ("acme", [], ["news"], 2),
    "dan": ("bolt", ["boss"], ["news"], 0),
    "eve": ("bolt", [], [], 1),
    "crew": ("acme", [], ["news"], -1),  # shared by all
}
KINDS: Final = ("plain", "plain", "plain", "plain", "odd", "big", "ask")
_here: contextvars.ContextVar[int] = contextvars.ContextVar("life of a node", default=0)


class Storm:
    """What goes wrong in the network: copies, delays, and answers that nobody gets."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self.doubled = dice.choice([0.0, 0.3])
        self.late = dice.choice([0.0, 0.3])
        self.lost = dice.choice([0.0, 0.0, 0.1])

    def calm(self) -> None:
        self.doubled = self.late = self.lost = 0.0

    def arrivals(self, letter: Letter) -> Sequence[float]:  # noqa: ARG002 - the port's
        copies = 1 + (self._dice.random() < self.doubled)
        return [self._dice.random() * 5 if self._dice.random() < self.late else 0.0 for _ in range(copies)]

    def answer_lost(self, what: str) -> bool:  # noqa: ARG002 - the port's
        return self._dice.random() < self.lost


class Anchored:
    """A node's end of the network: what comes in is its own doing, and once it is dead nothing does."""

    def __init__(self, inner: MemoryTransport, context: contextvars.Context) -> None:
        self.inner = inner
        self.url, self.weakenings, self.bytes_max = inner.url, inner.weakenings, inner.bytes_max
        self._context = context
        self.dead = False

    @property
    def connected(self) -> bool:
        return self.inner.connected

    async def post(self, letter: Letter) -> None:
        if self.dead:
            await asyncio.get_running_loop().create_future()
        await self.inner.post(letter)

    async def serve(self, box: str, take: Callable[[Handed], None], *, at_once: int) -> Callable[[], Awaitable[None]]:
        return await self.inner.serve(box, lambda handed: self._context.copy().run(take, handed), at_once=at_once)

    async def bucket(self, name: str) -> Bucket:
        return _AnchoredBucket(await self.inner.bucket(name), self._context)

    def on_change(self, told: Callable[[bool], None]) -> None:
        self.inner.on_change(told)

    async def close(self) -> None:
        await self.inner.close()


class _AnchoredBucket:
    def __init__(self, inner: Bucket, context: contextvars.Context) -> None:
        self._context = context
        self._inner = inner
        self.get, self.put, self.swap = inner.get, inner.put, inner.swap

    async def watch(self, told: Callable[[Item], None]) -> Callable[[], None]:
        return await self._inner.watch(lambda item: self._context.copy().run(told, item))


class Node:
    """A home and its bus, opened and killed in turn."""

    def __init__(self, sea: Sea, number: int, settings: Settings, ahead_seconds: float) -> None:
        self.name = f"node-{number}"
        self.number = number
        self._sea = sea
        self.watch = NodeWatch(sea.watch, self.name)
        self.home = VirtualHome(
            sea.loop, sea.dice, settings, sea.constitutions, self.watch, names=(BUS, self.name),
            ahead_seconds=ahead_seconds,
        )  # fmt: skip
        self.home.store._records = deque()  # noqa: SLF001 - a home forgets no record
        self._signer = Signer.fresh(f"{BUS}/{self.name}")
        self.bus: Any = None  # an AgentBus, while one is open
        self.life = 0
        self._context = contextvars.copy_context()
        self._transport: Anchored

    async def inside(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Awaits work that belongs to this life of the node; its end is everybody's end."""
        task = self._sea.loop.create_task(work, context=self._context.copy())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Dead from None
            task.cancel()
            raise

    async def open(self) -> None:
        self._sea.lives += 1
        self.life = self._sea.lives
        self._context = contextvars.copy_context()
        self._context.run(_here.set, self.life)
        self._transport = Anchored(self._sea.network.join(), self._context)
        self.watch.open(self.home.store.size())
        joined = Joined(self._transport, self._signer, None, LEASE_SECONDS)
        try:
            bus = await self.inside(self.home.open(joined))
        except BusError as error:
            self._sea.watch.note(self.name, "does not open", error)
            await self.kill()
            return
        self.bus = self.watch.bus = bus
        for name, (*_, number) in AGENTS.items():
            if number in (self.number, -1):
                await self.register(name)

    async def register(self, name: str) -> None:
        tenant, roles, topics, number = AGENTS[name]
        bus, life = self.bus, self.life

        async def handle(message: Message) -> Any:
            if life == self.life and self.bus is bus:
                self.watch.runs(message)
            return await self._sea.behave(message)

        if bus is None:
            return
        how: Any = {"roles": roles, "topics": topics, "shared": number < 0, "tenant": tenant}
        try:
            await self.inside(bus.register(name, handle, retry=Retry.exponential(attempts=3, base_seconds=0.1), **how))
            self._sea.watch.note(self.name, "has", name)
        except (BusError, Dead) as error:
            self._sea.watch.note(self.name, "has not", name, type(error).__name__, error)

    async def close(self) -> None:
        bus = self.bus
        if bus is None:
            return
        self._sea.watch.note(self.name, "closes")
        with_bus = self._sea.dice.choice([None, 0, 0.1])
        await self.inside(bus.close(with_bus))
        self.bus = self.watch.bus = None
        await self.inside(self.home.ledger.close())
        await self._transport.close()
        await asyncio.sleep(2)
        if left := self._tasks():
            self._sea.watch.blame(f"{self.name} has left over after close: {left[:3]}")
        await self._end_tasks()

    async def kill(self) -> None:
        self._sea.watch.note(self.name, "is killed")
        self._sea.watch.rough = True
        self.bus = self.watch.bus = None
        self.home.ledger.crash()
        self._transport.dead = True
        self._sea.network.kill(self._transport.inner)
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        while left := self._tasks():
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=1)

    def _tasks(self) -> list[asyncio.Task[Any]]:
        me = asyncio.current_task()
        tasks: list[Any] = [task for task in asyncio.all_tasks() if task is not me]
        return [task for task in tasks if task.began_in.get(_here) == self.life]

    def cut(self) -> None:
        self._sea.watch.note(self.name, "is cut off")
        self._sea.watch.rough = True
        self._sea.network.cut(self._transport.inner)

    def mend(self) -> None:
        self._sea.watch.note(self.name, "is back")
        self._sea.network.mend(self._transport.inner)


class Dead(Exception):
    """The node that was asked has died."""


class Sea:
    """One seed's run."""

    def __init__(self, seed: int) -> None:
        dice = self.dice = Random(seed)
        self.loop = VirtualLoop(dice)
        self.watch = SeaWatch(self.loop.time)
        forbidden = dice.choice([set(), {"odd"}])
        self.constitutions = [constitution(1, forbidden, cross=True, budget=None, cacheable=True)]
        settings = settings_of(dice)
        if dice.random() < 0.3:
            settings = settings.model_copy(
                update={"audit": settings.audit.model_copy(update={"store_payloads": False})}
            )
        self.storm = Storm(dice)
        self.network = MemoryNetwork(ack_seconds=dice.choice([2.5, 10.0]), disturbance=self.storm)
        self.lives = 0
        self.nodes = [
            Node(self, number, settings, dice.choice([0, 0, 0, 0, 3600, -3600]))
            for number in range(dice.choice([2, 3]))
        ]
        self._numbers = 0
        self._calm = False
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self._everything())
        except Stuck as stuck:
            self.watch.blame(f"stuck: {stuck}")
        except BusError as error:
            self.watch.blame(f"stopped: {error!r}")
        finally:
            self.loop.close()
        for context in self.loop.errors:
            self.watch.blame(f"asyncio was told: {context.get('message')} {context.get('exception')!r}")

    async def _everything(self) -> None:
        for node in self.nodes:
            await node.open()
        actors = [asyncio.create_task(self._acting()) for _ in range(4)]
        trouble = asyncio.create_task(self._trouble())
        await asyncio.gather(*actors)
        self._calm = True
        await trouble
        await self._end_well()

    # --- what agents do ----------------------------------------------------------------------------------------------

    async def _acting(self) -> None:
        for _ in range(self.dice.randrange(4, 10)):
            await asyncio.sleep(self.dice.random() * self.dice.choice([0.01, 0.1, 1, 5]))
            node = self.dice.choice(self.nodes)
            bus = node.bus
            if bus is None:
                continue
            live = [info.id for info in bus.agents() if info.live]
            if live:
                try:
                    await node.inside(self._act(node, bus, self.dice.choice(live)))
                except Dead:
                    self.watch.note("its node died")

    async def _act(self, node: Node, bus: AgentBus, name: str) -> None:
        dice = self.dice
        self._numbers += 1
        to = dice.choice(list(AGENTS))
        payload = {"n": self._numbers, "kind": dice.choice(KINDS)}
        given = f"m-{self._numbers}" if dice.random() < 0.5 else None
        try:
            agent = await bus.agent(name)
            kind = dice.random()
            if kind < 0.6:
                receipts = [await agent.send(to, payload, id=given)]
            elif kind < 0.7:
                receipts = await asyncio.gather(*(agent.send(to, payload, id=f"m-{self._numbers}") for _ in range(2)))
            elif kind < 0.8:
                receipts = await agent.publish("news", payload)
            else:
                receipts = []
                payload["kind"] = "ask"
                work = agent.request(to, payload, timeout=dice.choice([0.05, 2, 30]), id=given)
                if dice.random() < 0.2:
                    async with asyncio.timeout(dice.random()):
                        await work
                else:
                    reply = await work
                    if reply.payload != {"answer": payload["n"]}:
                        self.watch.blame(f"{payload} was answered with {reply.payload}")
        except (BusError, TimeoutError, KeyError) as error:
            self.watch.note(name, "got", type(error).__name__, error)
            return
        for receipt in receipts:
            if receipt.ok:
                self.watch.accepted(node.name, receipt.message_id)

    async def behave(self, message: Message) -> Any:
        dice = self.dice
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random() * dice.choice([0.01, 1]))
        if not self._calm and dice.random() < 0.1:
            raise ValueError("no")
        return {"answer": message.payload["n"]} if message.payload["kind"] == "ask" else None

    # --- trouble -----------------------------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        dice = self.dice
        while not self._calm:
            await asyncio.sleep(dice.random() * 3)
            node = dice.choice(self.nodes)
            what = dice.choice(
                ["kill", "close", "cut", "approve", "approve", "replay", "leave", "move", "none", "none"]
            )
            try:
                if node.bus is None:
                    await node.open()
                elif what == "kill":
                    await node.kill()
                elif what == "close":
                    await node.close()
                elif what == "cut":
                    node.cut()
                    await asyncio.sleep(dice.random() * dice.choice([1, 10]))
                    if node.bus is not None:
                        node.mend()
                else:
                    await getattr(self, f"_{what}")(node)
            except (BusError, Dead, KeyError) as error:
                self.watch.note("operator got", type(error).__name__, error)

    async def _none(self, node: Node) -> None:
        """Nothing happens."""

    async def _approve(self, node: Node) -> None:
        for waiting in node.bus.held():
            for boss in ("ann", "dan"):
                if any(info.id == boss and info.live for info in node.bus.agents()):
                    await node.inside(_approved(node.bus, boss, waiting.message_id))

    async def _replay(self, node: Node) -> None:
        for letter in node.bus.dead_letters():
            await node.inside(node.bus.replay(letter.message_id))

    async def _leave(self, node: Node) -> None:
        live = [info.id for info in node.bus.agents() if info.live]
        if live:
            name = self.dice.choice(live)
            self.watch.note(node.name, "lets go of", name)
            agent = await node.inside(node.bus.agent(name))
            await node.inside(agent.unregister())

    async def _move(self, node: Node) -> None:
        await node.register(self.dice.choice(list(AGENTS)))

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _end_well(self) -> None:
        self.watch.note("calm")
        self.storm.calm()
        for node in self.nodes:
            if node.bus is None:
                await node.open()
            else:
                node.mend()
        await asyncio.sleep(2 * LEASE_SECONDS)
        for _ in range(3):
            for name in AGENTS:
                if not any(info.id == name and info.live for node in self.nodes for info in node.bus.agents()):
                    for node in self.nodes:  # one of them remembers it, or nobody does
                        await node.register(name)
            await asyncio.sleep(1)
        until = self.loop.time() + CALM_SECONDS
        while self.loop.time() < until and (self._open() or self._unsettled()):
            await asyncio.sleep(5)
            for node in self.nodes:
                for waiting in node.bus.held():
                    await node.inside(node.bus.discard(waiting.message_id, reason="the end"))
        if left := self._open():
            self.watch.blame(f"never ended: {left[:5]}")
        if unsettled := self._unsettled():
            self.watch.blame(f"never settled: {unsettled[:5]}")
        for node in self.nodes:
            tasks = node.bus._nodes._outbox._tasks  # noqa: SLF001 - nothing grows
            if len(tasks) > 1 and not left:
                self.watch.blame(f"{node.name} still has {[task.get_name() for task in tasks]}")
        self.watch.at_rest({node.name: node.bus for node in self.nodes})
        for node in self.nodes:
            await node.close()
        me = asyncio.current_task()
        if left_over := [task for task in asyncio.all_tasks() if task is not me]:
            self.watch.blame(f"left over: {left_over[:3]}")
            for task in left_over:
                task.cancel()

    def _open(self) -> list[tuple[str, str, str, str]]:
        return [
            (node.name, waiting.message_id, waiting.state, waiting.recipient)
            for node in self.nodes
            for waiting in node.bus.queue()
        ]

    def _unsettled(self) -> list[tuple[str, str]]:
        found = []
        for name, box in self.network.boxes.items():
            kept = {id(one): one for _, one in box.ready} | {id(one): one for _, _, one in box.later}
            found += [(name, one.letter.id) for one in kept.values() if one.ready or one.due >= 0]
        return found


async def _approved(bus: AgentBus, boss: str, message_id: str) -> None:
    with suppress(BusError, KeyError):
        await (await bus.agent(boss)).approve(message_id)
