"""What a decision saw: the input of contract §4, taken at one instant and written out only where somebody reads it.

Most messages are decided from the cache, and then the policy's input is needed by the log alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from enhanced_agent_bus.admission.facts import Added, FactBook, scopes
from enhanced_agent_bus.verdict import Addressed, Approval, Refusal

if TYPE_CHECKING:
    from enhanced_agent_bus.admission.chain import Active

COUNTED: Final = frozenset({"sender", "conversation"})  # the scopes for which the bus counts `sent` and `refused`


@dataclass(slots=True)
class Case:
    """A message before the gate: `why` it is here (contract §10), and what is known of its past."""

    addressed: Addressed
    why: str = "send"
    attempt: int = 1
    previous: str | None = None
    added: Sequence[Added] = ()
    approvals: Sequence[Approval] = ()
    cause: Mapping[str, Any] | None = None
    first: bool = True  # its first decision: counts in `sent` or `refused`
    counted: bool = False  # it is in `sent` already
    refusal: Refusal | None = None  # found before the gate: recorded like any other
    ticket: Mapping[str, Any] | None = None  # of another node: what it came with
    gates: Mapping[str, Any] | None = None  # the user's gates that were asked about it, as the record has them
    now_us: int = 0  # when it came, where that is just now; 0 asks the clock
    look: tuple[Sight, bytes | None] | None = None  # the last one, and its key, where the cache did not know that


class Sight:
    """One look at a case. What it holds is not changed later: facts are replaced, never edited."""

    __slots__ = ("_facts", "_now", "_now_us", "_numbers", "active", "case", "plain")

    def __init__(self, case: Case, active: Active, book: FactBook, now: datetime, now_us: int) -> None:
        self.case = case
        self.active = active
        self._now = now
        self._now_us = now_us
        self._facts: dict[str, dict[str, Any]] | None = None
        envelope = case.addressed.envelope
        sender = book.owner("agent", envelope.sender)
        recipient = book.owner("agent", envelope.recipient)
        conversation = book.owner("conversation", envelope.conversation)
        tenant = book.owner("tenant", envelope.tenant)
        #: Nothing but the bus's own counters has been remembered about anyone here.
        self.plain = not (sender.facts or recipient.facts or conversation.facts or tenant.facts)
        own = int(case.counted)  # it counts once, in `sent` too
        self._numbers = (sender.sent - own, sender.refused, conversation.sent - own, conversation.refused)
        if not self.plain:
            self._facts = self._remembered(book)

    def under(self, other: Active) -> Sight:
        """The same look, as if another constitution were to decide."""
        sight = Sight.__new__(Sight)
        for name in Sight.__slots__:
            setattr(sight, name, getattr(self, name))
        sight.active = other
        return sight

    def _remembered(self, book: FactBook) -> dict[str, dict[str, Any]]:
        case = self.case
        envelope = case.addressed.envelope
        seen: dict[str, dict[str, Any]] = {}
        owners = scopes(case.addressed.sender, case.addressed.recipient, envelope.conversation)
        for scope, (kind, name) in owners.items():
            view = book.without(kind, name, case.added, envelope.id)
            if scope in COUNTED:
                view["sent"] -= 1 if case.counted else 0
            else:
                del view["sent"], view["refused"]
            seen[scope] = view
        return seen

    def facts(self) -> dict[str, dict[str, Any]]:
        """The four scopes as the policy sees them, without what this message added before."""
        if self._facts is None:
            sent, refused, conversation_sent, conversation_refused = self._numbers
            self._facts = {
                "sender": {"sent": sent, "refused": refused},
                "recipient": {},
                "conversation": {"sent": conversation_sent, "refused": conversation_refused},
                "tenant": {},
            }
        return self._facts

    def question(self) -> bytes:
        """The input as an engine takes it: the payload is the very bytes that were frozen."""
        document = self.document()
        message = {**document["message"], "payload": orjson.Fragment(self.case.addressed.envelope.body)}
        return orjson.dumps({**document, "message": message})

    def document(self) -> dict[str, Any]:
        """The input without the payload, which stands beside it as bytes."""
        case, active, now = self.case, self.active, self._now
        addressed = case.addressed
        envelope = addressed.envelope
        message: dict[str, Any] = {
            "id": envelope.id,
            "type": envelope.type,
            "priority": envelope.priority,
            "headers": envelope.headers,
            "conversation": envelope.conversation,
            "hops": envelope.hops,
            "attempt": case.attempt,
            "size": len(envelope.body),
            "age_seconds": max(0, self._now_us - envelope.created_us) // 1_000_000,
        }
        if envelope.topic is not None:
            message["topic"] = envelope.topic
        agreed = addressed.sender.constitution
        document: dict[str, Any] = {
            "message": message,
            "sender": addressed.sender.document,
            "recipient": addressed.recipient.document,
            "constitution": {
                "digest": active.digest,
                "agreed": active.digest if agreed == "latest" else agreed,
                "revision": active.revision,
            },
            "clock": {
                "date": f"{now.year:04d}-{now.month:02d}-{now.day:02d}",
                "weekday": now.isoweekday(),
                "hour": now.hour,
                "minute": now.minute,
            },
            "facts": self.facts(),
            "approvals": [approval.document() for approval in case.approvals],
        }
        if case.cause is not None:
            document["cause"] = case.cause
        return document
