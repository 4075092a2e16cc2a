"""What travels: an envelope frozen once, and the view of it that handlers and gates get.

Not here: the checks that make an envelope (admission) and the bytes of a record (ledger).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Final, NamedTuple

import orjson

AGENT_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}", re.ASCII)
MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
REPLY_TYPES: Final = {"task_request": "task_response", "governance_request": "governance_response"}
TYPES: Final = frozenset(
    {
        "command",
        "query",
        "response",
        "event",
        "notification",
        "heartbeat",
        "governance_request",
        "governance_response",
        "constitutional_validation",
        "task_request",
        "task_response",
    }
)
_LONG: Final = 10**9  # of a number in a sentence
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def shown(value: object) -> str:
    """A foreign value in a sentence for people: short, ASCII, and made quickly whatever it is."""
    if isinstance(value, str):
        return ascii(value[:80])
    if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < _LONG):
        return str(value)
    return f"of type {type(value).__name__}"


class Priority(IntEnum):
    """Higher ones start first; none is starved."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class Envelope(NamedTuple):
    """A message as it was frozen: every field that the digest covers, and the canonical payload bytes.

    A named tuple, because one is made for each message: a frozen dataclass of this width costs three times as much.
    """

    id: str
    type: str
    priority: int
    sender: str
    tenant: str
    recipient: str
    recipient_tenant: str
    topic: str | None
    conversation: str
    cause: str | None
    created_us: int  # microseconds since 1970, UTC
    expires_us: int
    hops: int
    headers: dict[str, str]  # never handed out, only copies
    body: bytes  # canonical JSON of the payload
    salt: bytes  # 32 random bytes
    commitment: str  # hex sha256 of salt and body
    headers_commitment: str | None  # hex sha256 of salt and canonical headers; None when there are none
    digest: str  # hex sha256 over all of the above but body, headers and salt


class Message:
    """One message as a handler or gate sees it: read-only, with a payload of its own.

    The payload is parsed from the decided bytes for this view alone, so that changing it changes nothing else.
    """

    __slots__ = ("_agreed", "_attempt", "_envelope", "_payload")

    def __init__(self, envelope: Envelope, *, attempt: int = 1, constitution: str = "", payload: Any = None) -> None:
        self._envelope = envelope
        self._attempt = attempt
        self._agreed = constitution
        self._payload = payload

    def carrying(self, payload: Any) -> Message:
        """The same message with a payload that the recipient's model has made of it."""
        return Message(self._envelope, attempt=self._attempt, constitution=self._agreed, payload=payload)

    def __repr__(self) -> str:
        envelope = self._envelope
        return f"<Message {envelope.id} {envelope.type} {envelope.sender} -> {envelope.recipient}>"

    @property
    def id(self) -> str:
        return self._envelope.id

    @property
    def type(self) -> str:
        return self._envelope.type

    @property
    def priority(self) -> Priority:
        return Priority(self._envelope.priority)

    @property
    def sender(self) -> str:
        return self._envelope.sender

    @property
    def tenant(self) -> str:
        """The sender's tenant."""
        return self._envelope.tenant

    @property
    def recipient(self) -> str:
        return self._envelope.recipient

    @property
    def topic(self) -> str | None:
        return self._envelope.topic

    @property
    def payload(self) -> Any:
        """A plain dict, or the model that the recipient registered."""
        if self._payload is None:
            self._payload = orjson.loads(self._envelope.body)
        return self._payload

    @property
    def headers(self) -> dict[str, str]:
        return dict(self._envelope.headers)

    @property
    def conversation(self) -> str:
        return self._envelope.conversation

    @property
    def cause(self) -> str | None:
        """The id of the message that this one answers or follows from."""
        return self._envelope.cause

    @property
    def created_at(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self._envelope.created_us)

    @property
    def expires_at(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self._envelope.expires_us)

    @property
    def hops(self) -> int:
        return self._envelope.hops

    @property
    def attempt(self) -> int:
        """Which handler run this is, from 1."""
        return self._attempt

    @property
    def constitution(self) -> str:
        """The digest of the constitution under which this run was decided."""
        return self._agreed

    @property
    def digest(self) -> str:
        return self._envelope.digest
