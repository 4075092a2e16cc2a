"""An agent's own handle: the only way to send. Who sends, and for which tenant, never comes from a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from enhanced_agent_bus.message import Message, Priority
from enhanced_agent_bus.outcome import Deliberated, Receipt

if TYPE_CHECKING:
    from enhanced_agent_bus.bus import AgentBus
    from enhanced_agent_bus.verdict import Party


class Draft(NamedTuple):
    """What a caller wants to send, before anything was checked: one a message, hence a named tuple (see Envelope)."""

    payload: object
    type: object
    priority: object
    id: object = None
    conversation: object = None
    cause: object = None
    headers: object = None
    expires_in: object = None


class Agent:
    """A registered agent. Made by `AgentBus.register` and `AgentBus.agent` only."""

    __slots__ = ("_bus", "_party")

    def __init__(self, bus: AgentBus, party: Party) -> None:
        self._bus = bus
        self._party = party

    def __repr__(self) -> str:
        return f"<Agent {self.id} of {self.tenant}>"

    @property
    def id(self) -> str:
        return self._party.id

    @property
    def tenant(self) -> str:
        return self._party.tenant

    @property
    def constitution(self) -> str:
        """The digest that this agent agreed to: the pinned one, else the one that is active."""
        pinned = self._party.constitution
        return self._bus.status_constitution() if pinned == "latest" else pinned

    async def send(
        self,
        to: str | None = None,
        payload: Any = None,
        *,
        capability: str | None = None,
        type: str = "command",
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        conversation: str | None = None,
        cause: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> Receipt:
        """Sends to one agent, or to the least loaded one of the tenant with a capability.

        Returns once the message is accepted (decided, recorded, queued), held or refused. `expires_in` is in seconds.
        Raises: AuditUnavailable, BusClosed; TypeError, when not exactly one of `to` and `capability` is given.
        """
        draft = Draft(payload, type, priority, id, conversation, cause, headers, expires_in)
        return await self._bus.dispatch(self._party, to, capability, draft)

    async def request(
        self,
        to: str | None = None,
        payload: Any = None,
        *,
        timeout: float,
        capability: str | None = None,
        type: str = "query",
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        conversation: str | None = None,
        cause: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> Message:
        """Sends and waits for the reply, at most `timeout` seconds.

        Raises: Refused; NotDelivered (`code` says why there is no reply); RequestTimeout; AuditUnavailable; BusClosed.
        """
        draft = Draft(payload, type, priority, id, conversation, cause, headers, expires_in)
        return await self._bus.ask(self._party, to, capability, draft, timeout)

    async def publish(
        self,
        topic: str,
        payload: Any = None,
        *,
        type: str = "event",
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        conversation: str | None = None,
        cause: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> list[Receipt]:
        """Sends to every subscriber of a topic of the tenant: a message, a decision and a receipt for each."""
        draft = Draft(payload, type, priority, id, conversation, cause, headers, expires_in)
        return await self._bus.fan_out(self._party, topic, draft)

    async def broadcast(
        self,
        payload: Any = None,
        *,
        type: str = "notification",
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        conversation: str | None = None,
        cause: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> list[Receipt]:
        """Sends to everyone else of the tenant: a message, a decision and a receipt for each.

        With `id=X` the messages are named `<sender>/X/<recipient>`, as those of a topic are.
        """
        draft = Draft(payload, type, priority, id, conversation, cause, headers, expires_in)
        return await self._bus.fan_out(self._party, None, draft)

    async def approve(self, message_id: str, *, comment: str | None = None) -> Deliberated:
        """Approves what is held of a message and wants a role of this agent; with the last approval it is decided anew.

        Raises: KeyError, when no such message is held; BusError (approval_refused), when this agent may not approve it;
        AuditUnavailable; BusClosed. Every attempt is recorded.
        """
        return await self._bus.approve(self._party, message_id, comment)

    async def reject(self, message_id: str, *, reason: str) -> Deliberated:
        """Ends a held message as refused (approval_rejected). Raises: as `approve` does."""
        return await self._bus.reject(self._party, message_id, reason)

    async def unregister(self) -> None:
        """Ends the registration; what waits for this agent becomes dead letters (handler_absent)."""
        await self._bus.unregister(self._party)
