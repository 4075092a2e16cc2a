"""Agents of two tenants in a run in virtual time: what they send, and what their handlers do, drawn from a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any, Final

import orjson

from enhanced_agent_bus import (
    Agent,
    AgentBus,
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
from tests.observer import Observer
from tests.virtual import VirtualHome
from tests.world_rules import AGENTS, KINDS

STEPS: Final = 24  # turns after which something is cancelled at most: more than a send takes
LONG_SECONDS: Final = 10_000.0  # not for ever: a message parked by a manual retry waits for an operator
Work = Callable[..., Coroutine[Any, Any, Any]]
EXPECTED: Final = (BusError, KeyError, TimeoutError)


class Agents:
    """What agents do, on the bus that is open."""

    def __init__(self, dice: Random, watch: Observer, home: VirtualHome, numbers: Iterator[int]) -> None:
        self.dice = dice
        self.watch = watch
        self.home = home
        self.numbers = numbers
        self.agents: dict[str, Agent] = {}
        self.given: dict[str, list[tuple[str, int, str | None, bytes]]] = {name: [] for name in AGENTS}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.calm = False
        self.bus: AgentBus

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
            retry=self.dice.choice([*[None] * 8, Retry.exponential(2, 0.0, 0.0), Retry.manual()]),
        )
        self.agents[name] = agent
        concurrency = self.home.settings.delivery.concurrency
        self.watch.concurrency[name] = self.watch.concurrency.get(name, 0) + concurrency

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
            outcome = await receipt.outcome(timeout=self.dice.choice([LONG_SECONDS, 1]))
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
