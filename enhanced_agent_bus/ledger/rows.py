"""Between values and rows: messages, registrations, and the bytes of a record. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from operator import itemgetter
from typing import Any, Final

import orjson

from enhanced_agent_bus.errors import BusError, StoreCorrupt
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, WAITING_STATES
from enhanced_agent_bus.ports import AgentRow, Entry, Move, Opening, StoredMessage

RECORD_BYTES_MAX: Final = 65_535
#: Of that v, seq, kind, at, bus and node can take 512 at most.
_REST_BYTES_MAX: Final = RECORD_BYTES_MAX - 512
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: What both a decision record and an envelope say, in the envelope's order.
_IN_BOTH: Final = (
    "type",
    "priority",
    "sender",
    "tenant",
    "recipient",
    "recipient_tenant",
    "topic",
    "conversation",
    "cause",
    "hops",
    "payload",
    "digest",
)
_ENVELOPE_IN_RECORD: Final = itemgetter(*_IN_BOTH)
_IN_ENVELOPE: Final = itemgetter(
    *(Envelope._fields.index({"payload": "commitment"}.get(name, name)) for name in _IN_BOTH)
)
#: Bytes to store: `sqlite3` takes a bytearray as it is, and looks for a converter of bytes each time.
blob: Final = bytearray
_NO_HEADERS: Final = blob(b"{}")
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")


def rfc3339(at_us: int) -> str:
    """Microseconds since 1970 as RFC 3339 UTC with six decimals."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def fields_of(entry: Entry) -> dict[str, Any]:
    """What the kind adds; made now and kept, where the entry only says how it is made."""
    fields = entry.fields
    if not isinstance(fields, dict):
        fields = entry.fields = fields()
    return fields


def rest_of_record(entry: Entry) -> bytes:
    """What the kind adds, as ASCII JSON from the comma to the closing brace.

    Raises: BusError (too_large), for more than a record can take; TypeError or ValueError, for what JSON cannot say.
    """
    return written(entry.kind, fields_of(entry))


def written(kind: str, fields: Mapping[str, Any]) -> bytes:
    """`rest_of_record` of such fields."""
    rest = orjson.dumps(fields)
    if not rest.isascii():
        # Outside of strings JSON is ASCII, so every other character may be replaced by its escape.
        rest = _NOT_ASCII.sub(_escaped, rest.decode()).encode("ascii")
    if len(rest) > _REST_BYTES_MAX:
        raise BusError(
            f"a {kind} record of {len(rest)} bytes is more than a record can hold",
            code="too_large",
            remedy=f"keep it under {_REST_BYTES_MAX} bytes",
        )
    return b"," + rest[1:] if rest != b"{}" else b"}"


def message_row(seq: int, at_us: int, opening: Opening, *, told: bool) -> tuple[Any, ...]:
    """What a message is, as far as it is not told by the record that opens it."""
    envelope = opening.envelope
    text = orjson.dumps(
        (
            None if told else _IN_ENVELOPE(envelope),
            envelope.created_us,
            envelope.expires_us,
            envelope.headers_commitment,
            at_us,
            opening.decision_id,
            opening.added.decode(),
            opening.holds.decode(),
            opening.hold_expires_us,
        )
    )
    return (seq, envelope.id, opening.state, envelope.recipient, text.decode())


def tells(fields: Mapping[str, Any], envelope: Envelope) -> bool:
    """Whether a record with such fields says of an envelope all that it has in common with one."""
    try:
        return bool(_ENVELOPE_IN_RECORD(fields) == _IN_ENVELOPE(envelope))
    except KeyError:
        return False


def payload_row(seq: int, envelope: Envelope) -> tuple[Any, ...]:
    """What stands apart from the record, so that it can be erased."""
    headers = blob(orjson.dumps(envelope.headers)) if envelope.headers else _NO_HEADERS
    return (seq, blob(envelope.salt), blob(envelope.body), headers)


def move_row(move: Move) -> tuple[Any, ...]:
    """What has become of a message: everything that is not fixed by its opening."""
    text = orjson.dumps(
        (
            move.attempts,
            move.due_us,
            move.since_us,
            move.code,
            move.error,
            move.decision_id,
            move.added.decode(),
            move.expires_us,
            move.reply_id,
            move.notes.decode(),
        )
    )
    return (move.row, move.state, text.decode())


def stored_message(row: tuple[Any, ...]) -> StoredMessage:
    """A message from its row joined with its record and payload. Raises: StoreCorrupt, when they are not as stored."""
    seq, message_id, state, opening, life, record, salt, body, headers = row
    try:
        known, created_us, expires_us, headers_commitment, at_us, decision_id, added, holds, hold_us = orjson.loads(
            opening
        )
        known = known or _ENVELOPE_IN_RECORD(orjson.loads(record))
        attempts, due_us, since_us, code, error, reply_id, until_us = 0, 0, at_us, None, None, None, expires_us
        notes = "{}"
        if life is not None:
            attempts, due_us, since_us, code, error, decision_id, added, until_us, reply_id, notes = orjson.loads(life)
        *front, hops, commitment, digest = known
        envelope = Envelope._make(
            (
                message_id,
                *front,
                created_us,
                expires_us,
                hops,
                orjson.loads(headers) if headers else {},
                body or b"",
                salt or b"",
                commitment,
                headers_commitment,
                digest,
            )
        )
        bytes_added, bytes_holds, bytes_notes = added.encode(), holds.encode(), notes.encode()
    except (ValueError, KeyError, TypeError, AttributeError) as damage:
        raise _damaged(message_id) from damage
    if state not in WAITING_STATES and state not in END_STATES:
        raise _damaged(message_id)
    if body and sha256(salt + body).hexdigest() != commitment:
        raise _damaged(message_id)
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
        bytes_added,
        bytes_holds,
        hold_us,
        reply_id,
        bool(body),
        until_us,
        bytes_notes,
    )


def _damaged(message_id: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"the stored message {message_id} is not what was stored", remedy="restore the home from a backup"
    )


def agent_row(agent: AgentRow) -> tuple[str, str, str]:
    """A registration as the home keeps it."""
    return (agent.id, agent.tenant, orjson.dumps(tuple(agent)).decode())


def stored_agent(text: str) -> AgentRow:
    """The registration that `agent_row` wrote."""
    id_, tenant, roles, capabilities, topics, constitution, live = orjson.loads(text)
    return AgentRow(id_, tenant, tuple(roles), tuple(capabilities), tuple(topics), constitution, live)
