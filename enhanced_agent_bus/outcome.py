"""What a sender gets back: the receipt at once, the outcome at the end; and the lists that operators read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from enhanced_agent_bus.errors import Refused
from enhanced_agent_bus.message import Message
from enhanced_agent_bus.verdict import Reason

ReceiptState = Literal["accepted", "held", "refused"]
OutcomeState = Literal["delivered", "refused", "expired", "dead_lettered", "discarded"]

#: The states in which a message can wait, and those in which it ends (contract §2).
WAITING_STATES = ("queued", "in_flight", "retrying", "parked", "held", "handed_over")
END_STATES = ("delivered", "refused", "expired", "dead_lettered", "discarded")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a message ended. `reply` is what the handler returned, once that was itself decided.

    `error` is the type of the handler's error that it ended with, never the text.
    """

    state: OutcomeState
    attempts: int = 0
    code: str | None = None
    reply: Message | None = None
    error: str | None = None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_of(us: int) -> datetime:
    """The instant so many microseconds after 1970, UTC."""
    return _EPOCH + timedelta(microseconds=us)


async def _no_outcome(_timeout_seconds: float | None) -> Outcome:
    raise RuntimeError("this receipt was made without a bus")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one send: accepted, held or refused, and where that stands in the log."""

    message_id: str
    recipient: str
    digest: str | None
    state: ReceiptState
    code: str | None
    reasons: tuple[Reason, ...]
    decision_id: str
    constitution: str
    revision: int
    audit_seq: int
    origin: str = ""  # of which log that is the index: <bus>/<node>
    _outcome: Callable[[float | None], Awaitable[Outcome]] = field(default=_no_outcome, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """True when the message was accepted (a held one is not yet)."""
        return self.state == "accepted"

    def raise_for_refusal(self) -> None:
        """Raises: Refused, when the message was refused; accepted and held ones pass."""
        if self.state == "refused":
            raise Refused(self)

    async def outcome(self, timeout: float | None = None) -> Outcome:
        """Waits for the end of the message, at most `timeout` seconds.

        Raises: TimeoutError, when it has not ended by then; the message goes on.
        """
        return await self._outcome(timeout)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be delivered and waits for a replay or a discard."""

    message_id: str
    sender: str
    recipient: str
    type: str
    code: str
    attempts: int
    error: str  # the error's type; its text stands with the payload
    since: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that has not ended, as `eab queue list` and `eab held list` show it."""

    message_id: str
    sender: str
    recipient: str
    type: str
    state: str
    priority: int
    attempts: int
    since: datetime
    due: datetime | None = None
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Recovery:
    """A message whose handler failed, as `eab recovery list` shows it; its own state stays one of the contract's.

    pending: due, and held back by a pause or the retry budget, or parked until somebody decides; waiting: until `due`;
    retrying: decided anew, in the mailbox or in its handler; succeeded, failed or cancelled: over.
    """

    message_id: str
    sender: str
    recipient: str
    priority: int
    attempts: int  # handler runs when it failed last
    code: str
    error: str  # the error's type
    state: str
    due: datetime | None = None


@dataclass(frozen=True, slots=True)
class BlockedLoop:
    """A time that the event loop stood still. `agent` is whose handler it was; empty where it was something else."""

    agent: str
    where: str  # file:line, as it was seen
    seconds: float
    at: datetime  # when it was seen
    over: bool


@dataclass(frozen=True, slots=True)
class Deliberated:
    """What became of a held message with an approval or a rejection.

    `missing` has, for each rule that still holds it, how many approvals are not yet in. Held with none missing, it
    could not be decided just now, and is asked again.
    """

    message_id: str
    state: ReceiptState
    code: str | None
    missing: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """What decisions remembered: a number, or a sorted list of strings, under an owner's key."""

    scope: str  # agent (as a sender or a recipient), conversation or tenant
    owner: str
    key: str
    value: str | int | float | list[str]


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was erased: so many payloads (with headers and salts) and texts, of so many messages.

    `left` says of each message that was not erased why: a legal hold, or that it has not ended. `elsewhere` names the
    other nodes of the bus that may keep what was meant, in homes of their own: each erases its own.
    """

    messages: int = 0
    payloads: int = 0
    texts: int = 0
    left: dict[str, str] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()  # origins, as `eab status` has them

    def __add__(self, other: Erasure) -> Erasure:
        return Erasure(
            self.messages + other.messages,
            self.payloads + other.payloads,
            self.texts + other.texts,
            self.left | other.left,
            tuple(sorted({*self.elsewhere, *other.elsewhere})),
        )


@dataclass(frozen=True, slots=True)
class LegalHold:
    """What must be kept, until the hold is removed: the content of a message, a conversation, or all of an agent's."""

    of: str  # message, conversation or agent
    name: str
    reason: str
    by: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Stopped:
    """What was stopped until somebody resumes it: an agent, a tenant, or all (then `name` is empty)."""

    of: str  # agent, tenant or all
    name: str
    reason: str
    by: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Retention:
    """How many days content is kept (0: for good), and how much of it is past its time and not erased yet."""

    keep_payloads_days: float
    keep_texts_days: float
    keep_floor_days: float
    due_payloads: int
    due_texts: int
    left: int  # past its time, and kept: under a legal hold, or not ended


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """A registration: live in this process, on other nodes of the bus, or remembered by the home."""

    id: str
    tenant: str
    roles: tuple[str, ...]
    capabilities: tuple[str, ...]
    topics: tuple[str, ...]
    constitution: str
    live: bool
    has_handler: bool
    waiting: int
    breaker: str = "closed"  # or open, or half_open
    nodes: tuple[str, ...] = ()  # the other nodes that have it
    trusted: bool = False  # an operator lets it join from another process


@dataclass(frozen=True, slots=True)
class Activation:
    """The constitution that decides from now on, in so many percent of the conversations."""

    digest: str
    revision: int
    percent: int = 100


@dataclass(frozen=True, slots=True)
class Candidate:
    """A constitution that is being rolled out: it decides in so many percent of the conversations.

    `refusals` and `errors` are counted among the `newest` of its decisions.
    """

    digest: str
    revision: int
    percent: int
    decisions: int = 0  # since this process began it, or the percentage was changed
    newest: int = 0
    refusals: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Divergence:
    """A decision that a shadow would have made otherwise. `was` and `would_be` are allow, hold or a code."""

    message_id: str
    decision_id: str
    sender: str
    tenant: str
    was: str
    would_be: str
    rules: tuple[str, ...]  # that would say no, or that did where it would be allowed


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """What a shadow has found so far. `flips` counts by verdicts ("allow->refuse"), `errors` by code."""

    digest: str
    revision: int
    percent: int
    since: datetime
    seen: int
    compared: int
    dropped: int
    same: int
    other_reasons: int  # of them: the same verdict for other reasons
    other_facts: int  # of those compared: it would remember something else
    flips: dict[str, int]
    errors: dict[str, int]
    rules: dict[str, int]
    divergences: tuple[Divergence, ...]  # the newest, oldest first


@dataclass(frozen=True, slots=True)
class Drained:
    """What closing did with the messages that were under way."""

    delivered: int
    kept: int
    dead_lettered: int


@dataclass(frozen=True, slots=True)
class WitnessInfo:
    """How far a witness has the log."""

    witness: str  # its address, as in the settings
    size: int | None  # of the newest checkpoint that it has taken; None before the first
    at: datetime | None  # when that was
    behind_seconds: float  # for how long it has lacked a checkpoint that is signed; 0 when it has the newest
    error: str | None  # why it did not take the newest one
    contradicts: bool = False  # it has a checkpoint of this log that this log did not sign


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node of the bus: whether its lease holds, and how long ago it was renewed, as far as this node has heard."""

    node: str
    alive: bool
    heard_seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the bus, with every weakening that is in force."""

    accounting: dict[str, int]
    security_state: list[str]
    constitution: str
    revision: int
    bus: str
    node: str
    records: int
    agents: int
    engine: dict[str, str]
    home: str
    running: bool = True
    shadow: str | None = None  # the digest of a candidate that looks on
    candidate: Candidate | None = None  # beside `constitution`, while one is rolled out
    breakers: dict[str, str] = field(default_factory=dict)  # of the agents whose breaker is open or half_open
    recovery_paused: bool = False
    blocked: tuple[BlockedLoop, ...] = ()  # the newest times that the event loop stood still, oldest first
    witnesses: tuple[WitnessInfo, ...] = ()
    stopped: tuple[Stopped, ...] = ()  # from or to what no message goes
    nodes: tuple[NodeInfo, ...] = ()  # where the bus has more than this one
