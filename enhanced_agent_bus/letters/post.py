"""Any letter of one node to another, opened by what it says it is. Not here: letters of agents (envelopes)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from enhanced_agent_bus.letters.dsse import (
    ANSWER,
    NOTICE,
    NOTICES,
    PAYLOAD_BYTES,
    QUESTION,
    TICKET,
    bytes_max,
    decode,
    verify,
)
from enhanced_agent_bus.letters.notices import (
    Answered,
    Notice,
    Notices,
    Question,
    read_answer,
    read_notice,
    read_notices,
    read_question,
)
from enhanced_agent_bus.letters.tickets import DEPTH, Ticket, read_ticket
from enhanced_agent_bus.message import Envelope

KINDS: Final = frozenset({TICKET, NOTICE, NOTICES, QUESTION, ANSWER})
_READ: Final[Mapping[str, Callable[[str, bytes], Notice | Notices | Question | Answered]]] = {
    NOTICE: read_notice,
    NOTICES: read_notices,
    QUESTION: read_question,
    ANSWER: read_answer,
}


class TicketLetter(NamedTuple):
    """A message on its way, and what it left with."""

    envelope: Envelope
    ticket: Ticket


def open_letter(
    body: bytes,
    keys: Mapping[str, Ed25519PublicKey],
    *,
    payload_bytes: int = PAYLOAD_BYTES,
    depth: int = DEPTH,
) -> TicketLetter | Notice | Notices | Question | Answered:
    """What a node has written, when one of these has signed it as itself. `keys` are by origin. Raises: BadLetter."""
    signed = decode(body, bytes_max=bytes_max(payload_bytes))
    payload = verify(signed, KINDS, keys)
    if signed.payload_type == TICKET:
        return TicketLetter(*read_ticket(signed.keyid, payload, payload_bytes=payload_bytes, depth=depth))
    return _READ[signed.payload_type](signed.keyid, payload)
