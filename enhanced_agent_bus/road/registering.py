"""Who is on the bus: registers an agent and gives it a post, lists all of them, and lets one go.

Not here: agents of other processes and their keys (outsiders), who is on which other node (roster), handles (agent).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from enhanced_agent_bus.delivery.runner import Handler, is_async, require_handler
from enhanced_agent_bus.delivery.strategies import ByKey
from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.message import TYPES, Message, shown
from enhanced_agent_bus.outcome import AgentInfo
from enhanced_agent_bus.ports import AgentRow, Entry
from enhanced_agent_bus.recovery.retry import Retry
from enhanced_agent_bus.road.carriage import Carriage
from enhanced_agent_bus.road.desk import Desk, Post
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.nodes import Nodes
from enhanced_agent_bus.road.outsiders import Trusted
from enhanced_agent_bus.settings import Recovery as RecoverySettings
from enhanced_agent_bus.verdict import Party

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Duty:
    """What an agent does with its messages, as it was registered; None where the settings say."""

    handler: Handler | None
    payload: type[BaseModel] | None
    concurrency: int | None
    seconds: float | None  # for one handler run
    retry: Retry | Mapping[str, Retry] | None
    when_full: str | None

    def checked(self) -> Duty:
        """Raises: ValueError, TypeError."""
        if self.when_full not in (None, "wait", "refuse"):
            raise ValueError(f'when_full is "wait" or "refuse", not {self.when_full!r}')
        if (self.concurrency is not None and self.concurrency < 1) or (
            self.seconds is not None and not self.seconds > 0
        ):
            raise ValueError("concurrency must be at least 1 and timeout more than 0 seconds")
        _check_retry(self.retry)
        if self.handler is not None:
            require_handler(self.handler.handler if isinstance(self.handler, ByKey) else self.handler)
        return self


class Registering:
    """Registrations, on record."""

    def __init__(self, desk: Desk, endings: Endings, carriage: Carriage) -> None:
        self._desk = desk
        self._endings = endings
        self._carriage = carriage
        self.nodes: Nodes | None = None  # where there are other nodes

    async def register(self, row: AgentRow, duty: Duty, *, shared: bool) -> Party:
        """Raises: AgentExists; ValueError, for a name that is none; AuditUnavailable; BusClosed; TransportAway."""
        registry = self._desk.registry
        before = registry.row(row.id)
        party = registry.claim(row)
        try:
            fields = {"event": "registered", **_agent_fields(row), "has_handler": duty.handler is not None}
            if self.nodes is not None and (gone := await self.nodes.register(row, shared=shared)) is not None:
                fields["taken_over_from"] = gone
            await self._desk.write(Entry("agent", fields, agent=row))
        except BaseException as error:
            # Cancelled, it is on its way to the disk all the same: then it is remembered, and not live.
            registry.release(row.id, forget=row if isinstance(error, asyncio.CancelledError) else before)
            raise
        if self._desk.closed:
            registry.release(row.id, forget=row)
            self._desk.require_open()
        post = self._take_post(row.id, duty)
        if post.handler is not None:
            for parcel in post.mailbox.items():
                parcel.state = "queued"
            for _ in range(duty.concurrency or self._desk.settings.delivery.concurrency):
                self._carriage.start_worker(post)
            if self.nodes is not None:
                await self.nodes.serve(row.id)
        return party

    def _take_post(self, agent_id: str, duty: Duty) -> Post:
        """The agent's post, with this duty from now on."""
        delivery, recovery = self._desk.settings.delivery, self._desk.settings.recovery
        post, handler, retry = self._desk.post(agent_id), duty.handler, duty.retry
        order = handler.key if isinstance(handler, ByKey) else None
        post.mailbox.order_by(None if order is None else lambda parcel: order(Message(parcel.envelope)))
        post.handler = handler = handler.handler if isinstance(handler, ByKey) else handler
        post.on_loop = handler is not None and is_async(handler)
        post.model = duty.payload
        post.seconds = duty.seconds if duty.seconds is not None else delivery.timeout_seconds
        post.retry = retry if isinstance(retry, Retry) else usual_retry(recovery)
        post.retries = dict(retry) if isinstance(retry, Mapping) else {}
        post.when_full = duty.when_full or delivery.when_full
        return post

    def agents(self, may_join: Iterable[Trusted]) -> list[AgentInfo]:
        """Everyone who is registered: in this process, in the home, or on another node; and who may join."""
        registry = self._desk.registry
        trusted = {row.agent: row for row in may_join}
        found = [
            AgentInfo(*row[:-1], live=False, has_handler=False, waiting=0, nodes=nodes)
            for row, nodes in registry.abroad()
        ]
        for row in registry.rows():
            if row.live and not registry.nodes_of(row.id):
                post = self._desk.posts.get(row.id)
                found.append(
                    AgentInfo(
                        row.id,
                        row.tenant,
                        row.roles,
                        row.capabilities,
                        row.topics,
                        row.constitution,
                        live=registry.live(row.id) is not None,
                        has_handler=post is not None and post.handler is not None,
                        waiting=post.mailbox.taken if post is not None else 0,
                        breaker="closed" if post is None else post.breaker.state(self._desk.clock.monotonic()),
                        trusted=trusted.pop(row.id, None) is not None,
                    )
                )
        found.extend(
            AgentInfo(
                *(row.agent, row.tenant, row.roles, row.capabilities, row.topics, "latest"),
                live=False,
                has_handler=False,
                waiting=0,
                trusted=True,
            )
            for row in trusted.values()
            if not registry.nodes_of(row.agent)
        )
        return sorted(found, key=lambda info: info.id)

    async def unregister(self, party: Party) -> None:
        """Ends a registration; running handlers finish, what waits becomes dead letters."""
        registry = self._desk.registry
        if registry.live(party.id) is not party:
            return
        row = registry.row(party.id)
        assert row is not None
        gone = row._replace(live=False)
        registry.release(party.id, forget=gone)

        def then(error: BusError | None) -> None:
            if error is None:
                self._dismiss(party.id)
            elif registry.live(party.id) is None:
                registry.restore(row, party)

        await self._desk.write(Entry("agent", {"event": "unregistered", **_agent_fields(gone)}, agent=gone), then)
        if self.nodes is not None:
            await self.nodes.unregister(row)

    def let_go(self, agent_id: str) -> None:
        """An agent has gone: who is handling a message for it finishes, and serves no later registration."""
        post = self._desk.post(agent_id)
        post.handler = None
        idle = post.workers - post.busy
        post.workers.clear()
        for task in idle:
            task.cancel()

    def _dismiss(self, agent_id: str) -> None:
        """An agent was unregistered: what waits for it are dead letters."""
        self.let_go(agent_id)
        for parcel in list(self._desk.live.values()):
            waits = parcel.state in ("queued", "parked", "retrying") and not parcel.ending
            if waits and parcel.envelope.recipient == agent_id:
                self._endings.end(parcel, "dead_lettered", "handler_absent")


def names_of(roles: Sequence[str], capabilities: Sequence[str], topics: Sequence[str]) -> tuple[Names, Names, Names]:
    """The lists, sorted, each name once. Raises: TypeError, for a word in the place of a list."""
    for name, given in (("roles", roles), ("capabilities", capabilities), ("topics", topics)):
        if isinstance(given, str):
            raise TypeError(f"{name} is a list of names, not the word {shown(given)}")
    return tuple(sorted(set(roles))), tuple(sorted(set(capabilities))), tuple(sorted(set(topics)))


def usual_retry(recovery: RecoverySettings) -> Retry:
    """What the settings say of an agent that says nothing itself."""
    if recovery.strategy == "manual":
        return Retry.manual()
    if recovery.strategy == "immediate":
        return Retry.immediate(recovery.attempts)
    kind = Retry.linear if recovery.strategy == "linear" else Retry.exponential
    return kind(recovery.attempts, recovery.base_seconds, recovery.cap_seconds)


def _check_retry(retry: object) -> None:
    """Raises: TypeError, ValueError."""
    by_type: Mapping[Any, object] = retry if isinstance(retry, Mapping) else {}
    if unknown := set(by_type) - TYPES:
        raise ValueError(f"retry names {shown(min(unknown, key=str))}, which is no type of message")
    if not all(isinstance(each, Retry) for each in by_type.values()) or not isinstance(retry, Retry | Mapping | None):
        raise TypeError("retry is a Retry, or one for each type of message: {'command': Retry.immediate()}")


def _agent_fields(row: AgentRow) -> dict[str, Any]:
    return {
        "agent": row.id,
        "tenant": row.tenant,
        "roles": list(row.roles),
        "capabilities": list(row.capabilities),
        "topics": list(row.topics),
        "constitution": row.constitution,
    }
