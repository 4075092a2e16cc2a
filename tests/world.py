"""Everybody who takes part in a run in virtual time: agents of two tenants, operators, handlers, drawn from a seed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Final

import orjson

from enhanced_agent_bus import (
    Agent,
    AgentBus,
    AgentExists,
    AuditUnavailable,
    BusClosed,
    BusError,
    Message,
    NotDelivered,
    Receipt,
    Refused,
    RequestTimeout,
    Retry,
)
from enhanced_agent_bus.ports import Loaded
from enhanced_agent_bus.settings import Settings
from tests.observer import Observer
from tests.virtual import Constitution, VirtualHome
from tests.virtual_loop import Stuck, VirtualLoop

STEPS: Final = 24  # turns after which something is cancelled at most: more than a send takes
HOURS_2: Final = 7200.0
#: id, tenant, roles, topics, capabilities
AGENTS: Final[Mapping[str, tuple[str, list[str], list[str], list[str]]]] = {
    "ann": ("acme", ["boss"], [], []),
    "bob": ("acme", [], ["news"], ["work"]),
    "cleo": ("acme", [], ["news"], ["work"]),
    "dan": ("bolt", ["boss"], ["news"], ["work"]),
    "eve": ("bolt", [], ["news"], []),
}
KINDS: Final = ("plain", "plain", "plain", "odd", "rare", "big", "costly")
Work = Callable[..., Coroutine[Any, Any, Any]]
EXPECTED: Final = (BusError, KeyError, TimeoutError)


def about(question: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that the answers of `constitution` depend on, but for facts and approvals."""
    payload = question["message"]["payload"]
    kinds = question["sender"]["tenant"], question["recipient"]["tenant"], payload.get("kind"), payload.get("cost")
    return tuple(kinds)


def constitution(number: int, forbidden: set[str], *, cross: bool, budget: int | None, cacheable: bool) -> Constitution:
    """One that forbids some kinds, and, unless `cross`, what leaves a tenant; `big` wants approval."""

    def decide(question: Mapping[str, Any]) -> Mapping[str, Any]:
        sender, recipient, kind, cost = about(question)
        spent = question["facts"]["sender"].get("spent", 0)
        allow = (cross or sender == recipient) and kind not in forbidden
        allow = allow and (budget is None or spent + (cost or 0) <= budget)
        hold = [{"rule": "big", "approvers": 1, "roles": ["boss"], "expires_in": 60}] if kind == "big" else []
        remember = [{"scope": "sender", "key": "spent", "add": cost}] if cost else []
        return {"allow": allow, "hold": hold if allow else [], "remember": remember if allow else []}

    paths = [("sender", "tenant"), ("recipient", "tenant"), ("message", "payload", "kind")]
    paths += [("message", "payload", "cost"), ("approvals",)]
    name = f"constitution-{number}"
    loaded = Loaded(
        digest=sha256(name.encode()).hexdigest(),
        revision=number,
        name=name,
        not_after=None,
        signed=False,
        rules=("all",),
        read_paths=(*paths, *([("facts", "sender", "spent")] if budget is not None else [])),
        cacheable=cacheable,
        facts_read=budget is not None,
        source="folder",
    )
    return Constitution(loaded, decide)


def settings_of(dice: Random) -> Settings:
    """Small rooms and short times, so that they run out."""
    return Settings.model_validate(
        {
            "policy": {"timeout_seconds": dice.choice([0.01, 0.25]), "cache_entries": dice.choice([0, 100])},
            "limits": {
                "mailbox": dice.choice([1, 2, 3, 100]),
                "inflight": dice.choice([1, 2, 100]),
                "hops": 3,
                "expires_seconds": dice.choice([0.05, 5, 600, 600]),
            },
            "delivery": {
                "timeout_seconds": dice.choice([0.01, 1.0]),
                "concurrency": dice.choice([1, 1, 3]),
                "when_full": dice.choice(["wait", "refuse"]),
                "drain_seconds": dice.choice([0, 0.01, 10]),
            },
            "recovery": {"attempts": dice.choice([1, 2, 3]), "base_seconds": dice.choice([0, 0.01, 1])},
        }
    )


class World:
    """Everybody's part in one seed's run."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = Random(seed)
        self.loop = VirtualLoop(dice)
        self.watch = Observer(self.loop.time, about)
        self.budget = dice.choice([None, None, 12])
        cacheable = dice.random() < 0.7
        self.constitutions = [
            constitution(
                number,
                set(dice.sample(["odd", "rare", "costly"], dice.randrange(3))),
                cross=dice.random() < 0.7,
                budget=self.budget,
                cacheable=cacheable,
            )
            for number in range(1, 5)
        ]
        settings = settings_of(dice)
        self.home = VirtualHome(self.loop, dice, settings, self.constitutions, self.watch)
        self.home.engine.heard = self.watch.engine_said
        self.watch.places = dict.fromkeys(AGENTS, settings.limits.mailbox)
        self.numbers = itertools.count(1)
        self.agents: dict[str, Agent] = {}
        self.given: dict[str, list[tuple[str, int, str | None, bytes]]] = {name: [] for name in AGENTS}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.calm = False
        self.bus: AgentBus

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self.everything())
        except Stuck as stuck:
            self.watch.blame(f"stuck: {stuck}")
        finally:
            self.loop.close()
        for context in self.loop.errors:
            self.watch.blame(f"asyncio was told: {context.get('message')} {context.get('exception')!r}")

    async def everything(self) -> None:
        dice = self.dice
        for _ in range(dice.choice([1, 1, 2, 3])):
            if not await self.open():
                continue
            if dice.random() < 0.4:
                self.change_weather()
            actors = [self.start(self.acting, name) for name in AGENTS]
            self.start(self.operating)
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random() * dice.choice([0.01, 0.1, 1]))
            else:
                await asyncio.wait(actors)
            if dice.random() < 0.4:
                await self.crash()
            else:
                await self.close(dice.choice([None, 0, 0.1]))
        await self.end_well()

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def open(self) -> bool:
        opened = self.watch.opening(self.home.store.size())
        try:
            self.bus = await self.home.open()
        except AuditUnavailable:
            self.home.weather.clear_up()
            await self.home.ledger.close()
            return False
        self.watch.bus = self.bus
        self.watch.concurrency = {}
        self.agents = {}
        for name in AGENTS:
            if self.calm or self.dice.random() < 0.9:
                try:
                    await self.register(opened, name)
                except BusError as error:
                    self.watch.note("not registered", name, type(error).__name__)
        return True

    async def register(self, opened: int, name: str) -> None:
        tenant, roles, topics, capabilities = AGENTS[name]
        has_handler = self.calm or self.dice.random() < 0.95
        agent = await self.bus.register(
            name,
            self.handler(opened, name) if has_handler else None,
            tenant=tenant,
            roles=roles,
            topics=topics,
            capabilities=capabilities,
            retry=None if self.dice.random() < 0.8 else Retry.exponential(2, 0.0, 0.0),
        )
        self.agents[name] = agent
        concurrency = self.home.settings.delivery.concurrency
        self.watch.concurrency[name] = self.watch.concurrency.get(name, 0) + concurrency

    async def close(self, timeout: float | None) -> None:
        drained = await self.bus.close(timeout)
        self.watch.note("closed", drained)
        self.watch.closing()
        await self.home.ledger.close()
        await self.all_let_go()

    async def crash(self) -> None:
        self.watch.note("crash")
        self.home.ledger.crash()
        self.watch.opening(self.home.store.size())  # what goes on now is not seen by anybody
        self.watch.closing()
        self.home.weather.clear_up()
        me = asyncio.current_task()
        while left := [task for task in asyncio.all_tasks() if task is not me]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=1)
        self.tasks.clear()

    async def all_let_go(self) -> None:
        """After a close everybody who waits is answered, and no task is left over."""
        me = asyncio.current_task()
        while self.tasks:
            done, late = await asyncio.wait(self.tasks, timeout=100)
            if not done:
                self.watch.blame(f"after close there still wait: {late}")
                break
        left = [task for task in asyncio.all_tasks() if task is not me]
        if left:
            self.watch.blame(f"left over after close: {left}")
            for task in left:
                task.cancel()
        self.tasks.clear()

    async def end_well(self) -> None:
        """The sky clears: what was acknowledged ends, all is where it is said to be, and nothing comes after."""
        self.calm = True
        self.home.weather.clear_up()
        if not await self.open():
            self.watch.blame("it does not open again")
            return
        try:
            await self.bus.wait_idle(HOURS_2)
        except TimeoutError:
            self.watch.blame(f"P5: never idle: {self.bus.queue()}")
            return
        while not self.home.ledger.quiet:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0)
        self.watch.at_rest()
        for message_id in self.watch.acknowledged:
            if self.watch.lives[message_id].state != "held":
                self.watch.outcome(message_id, await self.bus.outcome(message_id, timeout=1))
        self._check_budget()
        await self.close(None)
        runs = self.watch.runs
        await asyncio.sleep(HOURS_2)
        if self.watch.runs != runs:
            self.watch.blame("a handler ran after everything had ended")

    def _check_budget(self) -> None:
        """Two messages never both pass on the same remaining budget, and each counts once."""
        spent = dict.fromkeys(AGENTS, 0)
        for life in self.watch.lives.values():
            payload = orjson.loads(life.body)
            if life.state == "delivered":
                spent[self.watch.sent[payload["n"]].sender] += payload.get("cost", 0)
        for name, sum_of in spent.items():
            if self.budget is not None and sum_of > self.budget:
                self.watch.blame(f"{name} has spent {sum_of} of {self.budget}")

    # --- agents ------------------------------------------------------------------------------------------------------

    def start(self, work: Work, *args: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(self.tolerant(work, *args), name=work.__name__)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def tolerant(self, work: Work, *args: Any) -> None:
        """What the bus may raise is noted; anything else is not its to raise."""
        try:
            await work(*args)
        except EXPECTED as error:
            self.watch.note("raised", work.__name__, type(error).__name__, getattr(error, "code", ""))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a find
            self.watch.blame(f"{work.__name__} raised {error!r}")

    async def pause(self) -> None:
        kind = self.dice.random()
        if kind < 0.4:
            for _ in range(self.dice.randrange(4)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self.dice.random() * (3e-3 if kind < 0.95 else 2.0))

    async def acting(self, name: str) -> None:
        for _ in range(self.dice.randrange(1, 4)):
            await self.pause()
            if name in self.agents:
                await self.perhaps_cancelled(self.one_act, self.agents[name])

    async def perhaps_cancelled(self, work: Work, *args: Any) -> None:
        task = self.start(work, *args)
        if self.dice.random() < 0.2:
            if self.dice.random() < 0.7:
                for _ in range(self.dice.randrange(STEPS)):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(self.dice.random() * 3e-3)
            self.watch.note("cancel", task.get_name())
            task.cancel()
        if self.dice.random() < 0.7:
            await asyncio.wait([task])

    async def one_act(self, agent: Agent) -> None:
        kind = self.dice.random()
        if kind < 0.45:
            await self.send(agent)
        elif kind < 0.6 and self.given[agent.id]:
            await self.send_again(agent)
        elif kind < 0.8:
            await self.request(agent)
        elif kind < 0.9:
            await self.publish(agent)
        else:
            await self.twins(agent)

    def content(self, agent: str, message_id: str | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        number = next(self.numbers)
        payload = {"n": number, "kind": self.dice.choice(KINDS), **more}
        if payload["kind"] == "costly":
            payload["cost"] = self.dice.randrange(1, 8)
        self.watch.sending(number, agent, payload, message_id)
        return number, payload

    def somebody(self) -> str:
        return self.dice.choice([*AGENTS, "nobody"])

    async def send(self, agent: Agent, message_id: str | None = None) -> None:
        if message_id is None and self.dice.random() < 0.5:
            message_id = f"m{next(self.numbers)}"
        number, payload = self.content(agent.id, message_id)
        to = self.somebody()
        if message_id is not None:
            self.given[agent.id].append((message_id, number, to, orjson.dumps(payload)))
        capability = self.dice.random() < 0.15
        expires = self.dice.choice([None, None, None, 0.002, 1])
        priority = self.dice.randrange(4)
        where: dict[str, Any] = {"capability": "work"} if capability else {"to": to}
        await self.sent(agent, number, payload, id=message_id, priority=priority, expires_in=expires, **where)

    async def twins(self, agent: Agent) -> None:
        """The same id twice at once; at times with the same content."""
        to, message_id = self.somebody(), f"t{next(self.numbers)}"
        number, payload = self.content(agent.id, message_id)
        first = number, payload
        second = (number, payload.copy()) if self.dice.random() < 0.7 else self.content(agent.id, message_id)
        work = [self.sent(agent, n, body, to=to, id=message_id) for n, body in (first, second)]
        for answer in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer

    async def send_again(self, agent: Agent) -> None:
        message_id, number, to, body = self.dice.choice(self.given[agent.id])
        payload = orjson.loads(body)
        if self.dice.random() < 0.2:
            number, payload = self.content(agent.id, message_id)
        await self.sent(agent, number, payload, to=to, id=message_id)

    async def sent(self, agent: Agent, number: int, payload: dict[str, Any], **how: Any) -> None:
        has_id = self.watch.sent[number].id is not None
        try:
            receipt = await agent.send(payload=payload, **how)
        except (AuditUnavailable, BusClosed) as error:
            if not has_id:
                self.watch.not_sent(number, f"audit {error}" if isinstance(error, AuditUnavailable) else "closed")
            raise
        payload["kind"] = "changed by its sender"
        self.receipt(number, receipt)
        if receipt.state != "refused" and self.dice.random() < 0.7:
            outcome = await receipt.outcome(timeout=self.dice.choice([None, 1]))
            self.watch.outcome(receipt.message_id, outcome)
            if outcome.reply is not None:
                self.reply(agent, receipt.message_id, outcome.reply)

    def receipt(self, number: int, receipt: Receipt) -> None:
        try:
            record = orjson.loads(self.home.store.record(receipt.audit_seq))
        except KeyError:
            record = None
        self.watch.receipt(number, receipt, record)

    def reply(self, agent: Agent, message_id: str, reply: Message) -> None:
        self.watch.note("reply", reply.id, "to", message_id)
        life = self.watch.lives.get(reply.id)
        if life is None or orjson.loads(life.body) != reply.payload:
            self.watch.blame(f"P2: the reply {reply.id} is not on disk as it came")
        if (reply.cause, reply.recipient) != (message_id, agent.id):
            self.watch.blame(f"P4: the reply {reply.id} answers {reply.cause}, and came for {message_id}")

    async def request(self, agent: Agent) -> None:
        number, payload = self.content(agent.id, f"q{next(self.numbers)}")
        sent = self.watch.sent[number]
        to = self.somebody()
        timeout = self.dice.choice([0.003, 0.1, 5])
        try:
            reply = await agent.request(to, payload, timeout=timeout, id=sent.id)
        except (NotDelivered, Refused, RequestTimeout) as error:
            self.watch.note("no reply", sent.id, error.code)
            if isinstance(error, NotDelivered):
                self.watch.outcome(str(sent.id), error.outcome)
            raise
        self.reply(agent, str(sent.id), reply)

    async def publish(self, agent: Agent) -> None:
        message_id = f"p{next(self.numbers)}"
        number, payload = self.content(agent.id, message_id)
        for receipt in await agent.publish("news", payload, id=message_id):
            self.receipt(number, receipt)

    # --- operators ---------------------------------------------------------------------------------------------------

    async def operating(self) -> None:
        dice, bus, opened = self.dice, self.bus, self.watch.opened
        for _ in range(dice.randrange(8)):
            await self.pause()
            kind = dice.random()
            if kind < 0.25:
                await self.perhaps_cancelled(self.activate, bus)
            elif kind < 0.45:
                await self.perhaps_cancelled(self.one_of_the_dead, bus)
            elif kind < 0.6:
                await self.perhaps_cancelled(self.one_of_the_held, bus)
            elif kind < 0.7 and self.agents:
                name = dice.choice(sorted(self.agents))
                await self.perhaps_cancelled(self.leave_and_come, opened, name)
            elif kind < 0.75:
                await self.perhaps_cancelled(self.discard, bus)
            else:
                self.change_weather()
        self.home.weather.clear_up()

    def change_weather(self) -> None:
        weather, dice = self.home.weather, self.dice
        weather.engine = dice.choice([0, 0.3, 1])
        weather.disk = dice.choice([0, 0, 0.1, 0.5])
        weather.slow = dice.choice([0, 0.1, 0.3])
        weather.outage_seconds = dice.choice([0.01, 2])

    async def activate(self, bus: AgentBus) -> None:
        name = self.dice.choice([*(one.loaded.name for one in self.constitutions), "no-such"])
        active = await bus.activate(Path(name))
        self.watch.note("activate returned", active.digest[:4])
        if bus.status().constitution != self.watch.active:
            self.watch.blame("P1: another constitution decides than the log says")

    async def discard(self, bus: AgentBus) -> None:
        if waiting := bus.queue():
            await bus.discard(self.dice.choice(waiting).message_id, reason="no longer")

    async def one_of_the_dead(self, bus: AgentBus) -> None:
        dead = bus.dead_letters()
        if not dead:
            return
        message_id = self.dice.choice(dead).message_id
        if self.dice.random() < 0.7:
            receipt = await bus.replay(message_id)
            self.watch.note("replayed", message_id, receipt.state, receipt.code)
        else:
            await bus.discard(message_id, reason="no longer wanted")
            if self.watch.lives[message_id].state != "discarded":
                self.watch.blame(f"P5: {message_id} was discarded, and is {self.watch.lives[message_id].state}")

    async def one_of_the_held(self, bus: AgentBus) -> None:
        held = bus.held()
        bosses = [agent for name, agent in self.agents.items() if "boss" in AGENTS[name][1]]
        if not held or not bosses:
            return
        message_id, boss = self.dice.choice(held).message_id, self.dice.choice(bosses)
        if self.dice.random() < 0.8:
            await boss.approve(message_id)
        else:
            await boss.reject(message_id, reason="no")

    async def leave_and_come(self, opened: int, name: str) -> None:
        await self.agents[name].unregister()
        await self.pause()
        try:
            await self.register(opened, name)
        except AgentExists:
            self.watch.note("taken up by another", name)

    # --- handlers ----------------------------------------------------------------------------------------------------

    def handler(self, opened: int, name: str) -> Any:
        if self.dice.random() < 0.2:

            def plain(message: Message) -> Any:
                self.watch.started(opened, name, message)
                try:
                    return self.at_once(name, message)
                finally:
                    self.watch.ended(opened, message)

            return plain

        async def handle(message: Message) -> Any:
            self.watch.started(opened, name, message)
            try:
                return await self.behave(name, message)
            finally:
                self.watch.ended(opened, message)

        return handle

    def at_once(self, name: str, message: Message) -> Any:
        """What a handler can do without waiting."""
        message.payload["kind"] = "changed by its handler"
        kind = 0.0 if self.calm else self.dice.random()
        if kind < 0.45:
            return None
        if kind < 0.75:
            return self.content(name)[1]
        if kind < 0.9:
            raise ValueError("it did not work")
        if kind < 0.94:
            return object()
        if kind < 0.97:
            raise asyncio.CancelledError
        raise SystemExit(3)

    async def behave(self, name: str, message: Message) -> Any:
        kind = 1.0 if self.calm else self.dice.random()
        if kind < 0.3:
            await self.pause()
        elif kind < 0.36:
            await asyncio.sleep(1e6)
        elif kind < 0.4:
            try:
                await asyncio.sleep(1e6)
            except asyncio.CancelledError:
                return None
        elif kind < 0.5 and name in self.agents:
            await self.tolerant(self.send, self.agents[name])
        elif kind < 0.55 and name in self.agents:
            await self.tolerant(self.request, self.agents[name])
        return self.at_once(name, message)
