"""A ticket letter: a message as it was frozen on its sender's node, and what was decided on it there.

It proves what the sender's node says, not that it may run here: the receiver decides anew. Not here: whether the
message is known already, and when a letter is posted again (road).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from enhanced_agent_bus.admission.canonical import freeze, freeze_headers
from enhanced_agent_bus.admission.seal import seal
from enhanced_agent_bus.letters import fields as f
from enhanced_agent_bus.letters.dsse import (
    PAYLOAD_BYTES,
    TICKET,
    BadLetter,
    Signs,
    bytes_max,
    decode,
    encode,
    verify,
)
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.verdict import Party, Refusal

DEPTH: Final = 64  # where nobody says otherwise: limits.depth


class Ended(NamedTuple):
    """What became of the request that a reply answers, so that no notice of it is needed."""

    message_id: str
    digest: str
    state: str
    code: str | None
    attempts: int
    duration_us: int
    seq: int | None  # of the record of it, on the log of the reply's node; None where that is not written yet


class Ticket(NamedTuple):
    """The allow or hold that a message left its node with."""

    origin: str  # <bus>/<node>: the log that has the decision
    seq: int
    decision_id: str
    digest: str
    constitution: str
    revision: int
    issued_us: int
    expires_us: int
    nonce: str  # 16 to 64 bytes in hex
    answers: Ended | None = None


_LETTER: Final = {"v": f.THIS_VERSION, "message": f.OBJECT, "ticket": f.OBJECT, "answers": f.or_null(f.OBJECT)}
TICKET_FIELDS: Final = {
    "origin": f.ORIGIN,
    "seq": f.COUNT,
    "decision_id": f.DECISION,
    "digest": f.HASH,
    "constitution": f.HASH,
    "revision": f.COUNT,
    "issued_us": f.COUNT,
    "expires_us": f.COUNT,
    "nonce": f.NONCE,
}
ENDED_FIELDS: Final = {
    "message_id": f.ID,
    "digest": f.HASH,
    "state": f.END,
    "code": f.CODE,
    "attempts": f.COUNT,
    "duration_us": f.COUNT,
    "seq": f.or_null(f.COUNT),
}
MESSAGE_FIELDS: Final = {
    "id": f.ID,
    "type": f.TYPE,
    "priority": f.PRIORITY,
    "sender": f.AGENT,
    "tenant": f.AGENT,
    "recipient": f.AGENT,
    "recipient_tenant": f.AGENT,
    "topic": f.or_null(f.AGENT),
    "conversation": f.ID,
    "cause": f.or_null(f.ID),
    "created_us": f.COUNT,
    "expires_us": f.COUNT,
    "hops": f.COUNT,
    "headers": f.TEXT,
    "payload": f.TEXT,
    "salt": f.HASH,
    "commitment": f.HASH,
    "headers_commitment": f.or_null(f.HASH),
}


def seal_ticket(signer: Signs, envelope: Envelope, ticket: Ticket) -> bytes:
    """The letter, signed by the node that the ticket's origin names. The envelope must have its payload and headers."""
    assert signer.name == ticket.origin, f"{signer.name} cannot sign for {ticket.origin}"
    assert envelope.digest == ticket.digest, f"the ticket is not that of {envelope.id}"
    assert envelope.body, f"the payload of {envelope.id} was forgotten"
    headers = freeze_headers(envelope.headers) if envelope.headers else ({}, b"{}")
    assert not isinstance(headers, Refusal), f"the headers of {envelope.id} were not frozen"
    message = {
        "id": envelope.id,
        "type": envelope.type,
        "priority": envelope.priority,
        "sender": envelope.sender,
        "tenant": envelope.tenant,
        "recipient": envelope.recipient,
        "recipient_tenant": envelope.recipient_tenant,
        "topic": envelope.topic,
        "conversation": envelope.conversation,
        "cause": envelope.cause,
        "created_us": envelope.created_us,
        "expires_us": envelope.expires_us,
        "hops": envelope.hops,
        "headers": headers[1].decode(),
        "payload": envelope.body.decode(),
        "salt": envelope.salt.hex(),
        "commitment": envelope.commitment,
        "headers_commitment": envelope.headers_commitment,
    }
    said = ticket._asdict()
    answers = said.pop("answers")
    document = {
        "v": f.VERSION,
        "message": message,
        "ticket": said,
        "answers": answers._asdict() if answers is not None else None,
    }
    return encode(TICKET, f.write(document), signer)


def open_ticket(
    body: bytes,
    keys: Mapping[str, Ed25519PublicKey],
    *,
    payload_bytes: int = PAYLOAD_BYTES,
    depth: int = DEPTH,
) -> tuple[Envelope, Ticket]:
    """The message and its ticket, when the node that the ticket names has signed them and all of it fits together.

    `keys` are those of the nodes that are believed, by origin. Time is not looked at: see `check_time`.
    Raises: BadLetter.
    """
    signed = decode(body, bytes_max=bytes_max(payload_bytes))
    payload = verify(signed, (TICKET,), keys)
    return read_ticket(signed.keyid, payload, payload_bytes=payload_bytes, depth=depth)


def check_time(ticket: Ticket, now_us: int) -> None:
    """Raises: BadLetter, when the ticket was good only until before now."""
    if ticket.expires_us <= now_us:
        raise BadLetter("expired", f"the ticket of {ticket.decision_id} was good until {ticket.expires_us} µs")


def read_ticket(origin: str, payload: bytes, *, payload_bytes: int, depth: int) -> tuple[Envelope, Ticket]:
    """Reads the signed text of a ticket letter. Raises: BadLetter."""
    document = f.check(f.parse(payload, "ticket letter"), _LETTER, "ticket letter")
    message = f.check(document["message"], MESSAGE_FIELDS, "message")
    said = f.check(document["ticket"], TICKET_FIELDS, "ticket")
    answers = document["answers"]
    if answers is not None:
        answers = Ended(**f.check(answers, ENDED_FIELDS, "answered request"))
    ticket = Ticket(**said, answers=answers)
    envelope = _sealed(message, payload_bytes, depth)
    if ticket.origin != origin:
        raise BadLetter("identity_unproven", f"a ticket of {ticket.origin} was signed by {origin}")
    if not f.is_id_of(envelope.id, envelope.sender):
        raise BadLetter("identity_unproven", f"{envelope.id} is not an id of {envelope.sender}")
    if ticket.digest != envelope.digest:
        raise BadLetter("malformed", f"the digest of {envelope.id} is not that of its ticket")
    if ticket.decision_id.rpartition("#")[0] != envelope.id:
        raise BadLetter("malformed", f"{ticket.decision_id} is no decision on {envelope.id}")
    if answers is not None and answers.message_id != envelope.cause:
        raise BadLetter("malformed", f"{envelope.id} brings the end of another message than its cause")
    return envelope, ticket


def _sealed(message: dict[str, Any], payload_bytes: int, depth: int) -> Envelope:
    """Freezes the message again, from its bytes alone, and finds what it was frozen to. Raises: BadLetter."""
    body = _canonical(message["payload"], payload_bytes, depth)
    headers, headers_bytes = _headers(message["headers"])
    envelope = seal(
        id=message["id"],
        type=message["type"],
        priority=message["priority"],
        sender=Party(message["sender"], message["tenant"], (), ()),
        recipient=Party(message["recipient"], message["recipient_tenant"], (), ()),
        topic=message["topic"],
        conversation=message["conversation"],
        cause=message["cause"],
        created_us=message["created_us"],
        expires_us=message["expires_us"],
        hops=message["hops"],
        headers=headers,
        headers_bytes=headers_bytes,
        body=body,
        salt=bytes.fromhex(message["salt"]),
    )
    if (envelope.commitment, envelope.headers_commitment) != (message["commitment"], message["headers_commitment"]):
        raise BadLetter("malformed", f"{envelope.id} does not have the payload and headers that its commitments are of")
    return envelope


def _canonical(text: str, payload_bytes: int, depth: int) -> bytes:
    """The bytes of a payload that is its own canonical form. Raises: BadLetter."""
    given = text.encode()
    frozen = freeze(_loads(given, "payload"), bytes_max=payload_bytes, depth_max=depth)
    if isinstance(frozen, Refusal):
        raise BadLetter(frozen.code, frozen.message)
    if frozen != given:
        raise BadLetter("malformed", "the payload is not canonical JSON")
    return frozen


def _headers(text: str) -> tuple[dict[str, str], bytes]:
    """Headers, and their bytes, which are their own canonical form. Raises: BadLetter."""
    given = text.encode()
    frozen = freeze_headers(_loads(given, "headers"))
    if isinstance(frozen, Refusal):
        raise BadLetter(frozen.code, frozen.message)
    if frozen[1] != given:
        raise BadLetter("malformed", "the headers are not canonical JSON")
    return frozen


def _loads(text: bytes, what: str) -> Any:
    """Any JSON; whatever orjson lets pass that is not strict does not freeze to the same bytes again."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadLetter("malformed", f"the {what} is not JSON") from None
