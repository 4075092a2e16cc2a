"""An envelope of an agent elsewhere: one message that it asks its node to send, signed by the agent.

It proves who asks, and that nobody asks twice with it. Whether the message itself is well formed, and may be sent, is
judged where that is judged of every message (admission). Not here: how a session begins (joining).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from enhanced_agent_bus.letters import fields as f
from enhanced_agent_bus.letters.dsse import (
    ENVELOPE,
    PAYLOAD_BYTES,
    BadLetter,
    Signs,
    bytes_max,
    decode,
    encode,
    verify,
)
from enhanced_agent_bus.letters.joining import Session
from enhanced_agent_bus.letters.tickets import DEPTH

_DESTINATIONS: Final = frozenset({"to", "capability", "topic"})


class Request(NamedTuple):
    """What an agent asks to be sent, as `Agent.send` and `Agent.publish` take it. Exactly one destination is set."""

    to: str | None
    capability: str | None
    topic: str | None
    payload: dict[str, Any]
    type: str | None  # None: as send and publish have it
    priority: int
    id: str | None
    conversation: str | None
    cause: str | None
    headers: dict[str, str]
    expires_in: float | None  # seconds from now; not more than 0 where it came too late


REQUIRED_FIELDS: Final = {
    "v": f.THIS_VERSION,
    "bus": f.NAME,
    "from": f.AGENT,
    "tenant": f.AGENT,
    "session": f.NONCE,
    "n": f.Field(lambda value: f.COUNT.good(value) and value > 0, "a whole number from 1"),
}
OPTIONAL_FIELDS: Final = {
    "to": f.TEXT,
    "capability": f.TEXT,
    "topic": f.TEXT,
    "type": f.TEXT,
    "priority": f.INTEGER,
    "id": f.TEXT,
    "conversation": f.TEXT,
    "cause": f.TEXT,
    "headers": f.STRINGS,
    "payload": f.OBJECT,
    "expires_in": f.NUMBER,
    "expires_us": f.COUNT,
}


def sign_envelope(signer: Signs, bus: str, session: str, n: int, message: Mapping[str, Any]) -> bytes:
    """An envelope, by the agent; the signer's name is `<tenant>/<agent>`.

    `session` is the nonce of the challenge that was met, `n` higher than that of the envelope before. `message` has
    one of to, capability and topic, and any of payload, type, priority, id, conversation, cause, headers, and
    expires_in (seconds) or expires_us.
    """
    tenant, _, agent = signer.name.partition("/")
    said = {"v": f.VERSION, "bus": bus, "from": agent, "tenant": tenant, "session": session, "n": n}
    return encode(ENVELOPE, orjson.dumps({**message, **said}), signer)


def open_envelope(
    body: bytes,
    session: Session,
    now_us: int,
    *,
    payload_bytes: int = PAYLOAD_BYTES,
    depth: int = DEPTH,
) -> tuple[Request, Session]:
    """What the agent of a session asks for, and the session from here on: the node's side. Raises: BadLetter."""
    name = f"{session.tenant}/{session.agent}"
    signed = decode(body, bytes_max=bytes_max(payload_bytes))
    payload = verify(signed, (ENVELOPE,), {name: session.key})
    said = f.parse_any(payload, "envelope", depth + 1)  # its payload is one level down
    document = f.check(said, REQUIRED_FIELDS, "envelope", OPTIONAL_FIELDS)
    if (document["from"], document["tenant"]) != (session.agent, session.tenant):
        raise BadLetter("identity_unproven", f"{name} has signed an envelope of somebody else")
    if (document["bus"], document["session"]) != (session.bus, session.nonce):
        raise BadLetter("identity_unproven", f"the envelope is not of this session of {name}: join again")
    if len(_DESTINATIONS & document.keys()) != 1:
        raise BadLetter("malformed", "the envelope does not have exactly one of to, capability and topic")
    if {"expires_in", "expires_us"} <= document.keys():
        raise BadLetter("malformed", "the envelope has expires_in and expires_us")
    if document["n"] <= session.n:
        raise BadLetter("replayed", f"n is {document['n']} after {session.n}: it has to rise with each envelope")
    return _request(document, now_us), session._replace(n=document["n"])


def _request(document: dict[str, Any], now_us: int) -> Request:
    expires_in = document.get("expires_in")
    if "expires_us" in document:
        expires_in = (document["expires_us"] - now_us) / 1_000_000
    return Request(
        document.get("to"),
        document.get("capability"),
        document.get("topic"),
        document.get("payload", {}),
        document.get("type"),
        document.get("priority", 1),
        document.get("id"),
        document.get("conversation"),
        document.get("cause"),
        document.get("headers", {}),
        expires_in,
    )
