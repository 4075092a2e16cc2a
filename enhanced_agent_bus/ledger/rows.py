"""Between values and rows: messages, registrations, and the bytes of a record. No I/O."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

import orjson

from enhanced_agent_bus.errors import BusError, StoreCorrupt
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, WAITING_STATES
from enhanced_agent_bus.ports import AgentRow, Entry, Move, Opening, StoredMessage

RECORD_BYTES_MAX: Final = 65_535
#: What v, seq, kind, at, bus and node can take of that, at most.
_FRONT_BYTES_MAX: Final = 512
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")


def rfc3339(at_us: int) -> str:
    """Microseconds since 1970 as RFC 3339 UTC with six decimals."""
    return f"{_EPOCH + timedelta(microseconds=at_us):%Y-%m-%dT%H:%M:%S.%f}Z"


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def rest_of_record(entry: Entry) -> bytes:
    """What the kind adds, as ASCII JSON from the comma to the closing brace.

    Raises: BusError (too_large), for more than a record can take; TypeError or ValueError, for what JSON cannot say.
    """
    rest = orjson.dumps(entry.fields)
    if not rest.isascii():
        # Outside of strings JSON is ASCII, so every other character may be replaced by its escape.
        rest = _NOT_ASCII.sub(_escaped, rest.decode()).encode("ascii")
    if len(rest) > RECORD_BYTES_MAX - _FRONT_BYTES_MAX:
        raise BusError(
            f"a {entry.kind} record of {len(rest)} bytes is more than a record can hold",
            code="too_large",
            remedy=f"keep it under {RECORD_BYTES_MAX - _FRONT_BYTES_MAX} bytes",
        )
    return b"," + rest[1:] if len(rest) > len(b"{}") else b"}"


def message_row(seq: int, at_us: int, opening: Opening) -> tuple[Any, ...]:
    envelope = opening.envelope
    return (
        seq,
        envelope.id,
        opening.state,
        envelope.recipient,
        envelope_text(envelope),
        0,
        0,
        at_us,
        None,
        None,
        opening.decision_id,
        opening.added,
        opening.holds,
        opening.hold_expires_us,
        envelope.expires_us,
        None,
    )


def payload_row(seq: int, envelope: Envelope) -> tuple[Any, ...]:
    headers = orjson.dumps(envelope.headers) if envelope.headers else b"{}"
    return (seq, envelope.id, envelope.salt, envelope.body, headers)


def move_row(move: Move) -> tuple[Any, ...]:
    return (
        move.row,
        move.state,
        move.attempts,
        move.due_us,
        move.since_us,
        move.code,
        move.error,
        move.decision_id,
        move.added,
        move.expires_us,
        move.reply_id,
    )


def envelope_text(envelope: Envelope) -> str:
    """The parts of an envelope that nothing is looked up by, as one JSON list."""
    return orjson.dumps(
        (
            envelope.type,
            envelope.priority,
            envelope.sender,
            envelope.tenant,
            envelope.recipient_tenant,
            envelope.topic,
            envelope.conversation,
            envelope.cause,
            envelope.created_us,
            envelope.hops,
            envelope.commitment,
            envelope.headers_commitment,
            envelope.digest,
        )
    ).decode()


def stored_message(row: tuple[Any, ...]) -> StoredMessage:
    """A message from its row joined with its payload's. Raises: StoreCorrupt, when these are not what was stored."""
    (seq, message_id, state, recipient, text, attempts, due_us, since_us, code, error) = row[:10]
    (decision_id, added, holds, hold_expires_us, expires_us, reply_id, salt, body, headers) = row[10:]
    try:
        (kind, priority, sender, tenant, recipient_tenant, topic, conversation, cause, created_us, hops, *rest) = (
            orjson.loads(text)
        )
        commitment, headers_commitment, digest = rest
        known_headers = orjson.loads(headers) if headers else {}
    except ValueError as damage:
        raise _damaged(message_id) from damage
    if state not in WAITING_STATES and state not in END_STATES:
        raise _damaged(message_id)
    if body is not None and sha256(salt + body).hexdigest() != commitment:
        raise _damaged(message_id)
    envelope = Envelope(
        message_id,
        kind,
        priority,
        sender,
        tenant,
        recipient,
        recipient_tenant,
        topic,
        conversation,
        cause,
        created_us,
        expires_us,
        hops,
        known_headers,
        body or b"",
        salt or b"",
        commitment,
        headers_commitment,
        digest,
    )
    return StoredMessage(
        seq,
        envelope,
        state,
        attempts,
        due_us,
        since_us,
        code,
        error,
        decision_id,
        added,
        holds,
        hold_expires_us,
        reply_id,
        body is not None,
    )


def _damaged(message_id: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"the stored message {message_id} is not what was stored", remedy="restore the home from a backup"
    )


def agent_row(agent: AgentRow) -> tuple[str, str, str]:
    return (agent.id, agent.tenant, orjson.dumps(tuple(agent)).decode())


def stored_agent(text: str) -> AgentRow:
    id_, tenant, roles, capabilities, topics, constitution, live = orjson.loads(text)
    return AgentRow(id_, tenant, tuple(roles), tuple(capabilities), tuple(topics), constitution, live)
