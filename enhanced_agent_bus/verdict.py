"""Answers as values: what a gate says, what was decided, and the tickets that open the next door.

Not here: how an answer is found (admission) or written (ledger).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from enhanced_agent_bus.message import Envelope


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a message was refused or held: which rule, its code, what happened and what to do."""

    rule: str
    code: str
    message: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Pass:
    """A gate has nothing against this message."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A gate says no."""

    code: str
    message: str = ""
    remedy: str = ""
    reasons: tuple[Reason, ...] = ()


class Approval(NamedTuple):
    """One agent's yes to what one rule holds of one message, with the roles that it had then."""

    approver: str
    roles: tuple[str, ...]
    rule: str
    at: str  # RFC 3339 UTC

    def document(self) -> dict[str, Any]:
        """As policies see it (contract §4)."""
        return {"approver": self.approver, "roles": list(self.roles), "rule": self.rule, "at": self.at}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Approval:
        """What `document` made."""
        return cls(document["approver"], tuple(document["roles"]), document["rule"], document["at"])


@dataclass(frozen=True, slots=True)
class Hold:
    """What a rule wants before it admits: `approvers` agents with one of `roles`, within `expires_seconds`."""

    rule: str
    approvers: int
    roles: tuple[str, ...]
    expires_seconds: float

    def document(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        roles = list(self.roles)
        return {"rule": self.rule, "approvers": self.approvers, "roles": roles, "expires_in": self.expires_seconds}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Hold:
        """What `document` made."""
        roles = tuple(document["roles"])
        return cls(document["rule"], document["approvers"], roles, document["expires_in"])

    def missing(self, approvals: Sequence[Approval]) -> int:
        """How many approvals are not yet in; each agent counts once."""
        given = {
            one.approver for one in approvals if one.rule == self.rule and not set(one.roles).isdisjoint(self.roles)
        }
        return max(0, self.approvers - len(given))


@dataclass(frozen=True, slots=True)
class Remember:
    """A fact to write with an allow: exactly one of `value` (str adds to a set, number replaces) and `add` (sums)."""

    scope: str
    key: str
    value: str | int | float | None = None
    add: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine said to one question. `code` is None when `body` is the JSON of the decision document.

    Otherwise policy_undefined, policy_error, policy_timeout, policy_unavailable, policy_malformed or
    policy_revision_mismatch (the document may be there too, and decides nothing), and `detail` says why.
    """

    code: str | None
    body: bytes = b""
    eval_us: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """A decision document, parsed once and shared by every message that asks the same."""

    allow: bool
    reasons: tuple[Reason, ...] = ()
    hold: tuple[Hold, ...] = ()
    remember: tuple[Remember, ...] = ()
    obligations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Party:
    """An agent as the registry vouches for it; `document` is its part of the policy's input.

    Compared by identity: each registration makes a new one.
    """

    id: str
    tenant: str
    roles: tuple[str, ...]
    capabilities: tuple[str, ...]
    constitution: str = "latest"
    document: Mapping[str, Any] = field(default_factory=dict)


class Addressed(NamedTuple):
    """Routing's ticket: the message has one sender and one recipient, both known.

    (Tickets are made for each message: hence named tuples, see Envelope.)
    """

    envelope: Envelope
    sender: Party
    recipient: Party


class Admitted(NamedTuple):
    """Admission's ticket: an allow on exactly these bytes. The ledger takes this, never a bare message."""

    envelope: Envelope
    recipient: Party  # as it was when this was decided
    decision_id: str
    constitution: str
    revision: int
    obligations: tuple[Mapping[str, Any], ...] = ()


class Recorded(NamedTuple):
    """The ledger's ticket: the allow is on disk under `seq`. Delivery takes nothing else."""

    admitted: Admitted
    seq: int
