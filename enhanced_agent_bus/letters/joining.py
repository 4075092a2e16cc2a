"""How an agent of another process joins: the node's challenge, the agent's signed answer, and the session that begins.

An agent's key is known under `<tenant>/<agent>`, so that nobody joins in another tenant's name. What it asks for is
not what it gets: that is the node's business. Not here: its messages (envelopes).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from enhanced_agent_bus.letters import fields as f
from enhanced_agent_bus.letters.dsse import CHALLENGE, JOIN, BadLetter, Signs, decode, encode, verify

CHALLENGE_SECONDS: Final = 30
CHANCE_BYTES: Final = 16
NAMES_MAX: Final = 32  # roles, capabilities or topics of one agent
JOINED_MAX: Final = 10_000  # challenges that were met within their time; beyond, nobody joins until some are older
_MAC_BYTES: Final = 16
_TIME_BYTES: Final = 8
_SUBSCRIPTION: Final = re.compile(r"[a-z0-9*>][a-z0-9._*>-]{0,127}", re.ASCII)
_CONSTITUTION: Final = re.compile(r"latest|[0-9a-f]{64}", re.ASCII)


class Challenge(NamedTuple):
    """What a node sends to whoever wants to join; the nonce of the answer becomes that of the session."""

    origin: str  # <bus>/<node>
    nonce: str
    issued_us: int
    expires_us: int


class Wants(NamedTuple):
    """As what an agent asks to be registered."""

    roles: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    constitution: str = "latest"


class Session(NamedTuple):
    """An agent that has joined. Each envelope that is opened gives the next one, which takes only later envelopes."""

    origin: str
    agent: str
    tenant: str
    nonce: str
    key: Ed25519PublicKey
    n: int = 0  # of the last envelope

    @property
    def bus(self) -> str:
        return self.origin.partition("/")[0]


class Challenges:
    """The challenges of one node, each good once and for 30 s; only those that were met are remembered.

    `secret` are 32 random bytes, new with each process: what was asked before a restart is met by nobody.
    """

    def __init__(self, origin: str, secret: bytes) -> None:
        self.origin = origin
        self._secret = secret
        self._met: dict[str, int] = {}  # nonce -> when it would have expired

    def issue(self, chance: bytes, now_us: int) -> Challenge:
        """A new one. `chance` are 16 random bytes."""
        assert len(chance) == CHANCE_BYTES
        head = chance + now_us.to_bytes(_TIME_BYTES, "big")
        nonce = (head + self._mac(head)).hex()
        return Challenge(self.origin, nonce, now_us, now_us + CHALLENGE_SECONDS * 1_000_000)

    def meet(self, nonce: str, now_us: int) -> None:
        """Uses up one of these. Raises: BadLetter, when it is none, too old, or was used."""
        raw = bytes.fromhex(nonce)
        head, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if len(head) != CHANCE_BYTES + _TIME_BYTES or not hmac.compare_digest(mac, self._mac(head)):
            raise BadLetter("identity_unproven", f"this is the answer to no challenge of {self.origin}")
        issued_us = int.from_bytes(head[CHANCE_BYTES:], "big")
        expires_us = issued_us + CHALLENGE_SECONDS * 1_000_000
        if expires_us <= now_us:
            raise BadLetter("expired", f"the challenge was to be answered within {CHALLENGE_SECONDS} s")
        self._met = {nonce: until for nonce, until in self._met.items() if until > now_us}
        if nonce in self._met:
            raise BadLetter("replayed", "the challenge was answered before")
        if len(self._met) >= JOINED_MAX:
            raise BadLetter("identity_unproven", f"more than {JOINED_MAX} agents have joined just now: join later")
        self._met[nonce] = expires_us

    def _mac(self, head: bytes) -> bytes:
        return hmac.new(self._secret, self.origin.encode() + b"\n" + head, sha256).digest()[:_MAC_BYTES]


CHALLENGE_FIELDS: Final = {
    "v": f.THIS_VERSION,
    "origin": f.ORIGIN,
    "nonce": f.NONCE,
    "issued_us": f.COUNT,
    "expires_us": f.COUNT,
}
JOIN_FIELDS: Final = {
    "v": f.THIS_VERSION,
    "origin": f.ORIGIN,
    "agent": f.AGENT,
    "tenant": f.AGENT,
    "nonce": f.NONCE,
    "wants": f.OBJECT,
}
_NAMES: Final = f.names(f.AGENT, NAMES_MAX)
_WANTS: Final = {
    "roles": _NAMES,
    "capabilities": _NAMES,
    "topics": f.names(f.pattern(_SUBSCRIPTION, "a topic"), NAMES_MAX),
    "constitution": f.pattern(_CONSTITUTION, '"latest" or 64 hex digits'),
}


def seal_challenge(signer: Signs, challenge: Challenge) -> bytes:
    """Signs a challenge, by the node."""
    assert signer.name == challenge.origin, f"{signer.name} cannot sign for {challenge.origin}"
    return encode(CHALLENGE, f.write({"v": f.VERSION, **challenge._asdict()}), signer)


def open_challenge(body: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Challenge:
    """A challenge, when one of these nodes has signed it as itself: the agent's side. Raises: BadLetter."""
    signed = decode(body)
    document = f.check(f.parse(verify(signed, (CHALLENGE,), keys), "challenge"), CHALLENGE_FIELDS, "challenge")
    del document["v"]
    challenge = Challenge(**document)
    if challenge.origin != signed.keyid:
        raise BadLetter("identity_unproven", f"a challenge of {challenge.origin} was signed by {signed.keyid}")
    return challenge


def seal_join(signer: Signs, challenge: Challenge, wants: Wants | None = None) -> bytes:
    """Answers a challenge, by the agent; the signer's name is `<tenant>/<agent>`."""
    tenant, _, agent = signer.name.partition("/")
    document: dict[str, Any] = {"v": f.VERSION, "origin": challenge.origin, "agent": agent, "tenant": tenant}
    return encode(JOIN, f.write(document | {"nonce": challenge.nonce, "wants": (wants or Wants())._asdict()}), signer)


def open_join(
    body: bytes, challenges: Challenges, keys: Mapping[str, Ed25519PublicKey], now_us: int
) -> tuple[Session, Wants]:
    """The session of an agent that has met a challenge, and as what it asks to be registered: the node's side.

    `keys` are those of the agents that may join, by `<tenant>/<agent>`. Raises: BadLetter.
    """
    signed = decode(body)
    document = f.check(f.parse_any(verify(signed, (JOIN,), keys), "answer"), JOIN_FIELDS, "answer")
    wants = f.check(document["wants"], _WANTS, "answer's wants")
    name = f"{document['tenant']}/{document['agent']}"
    if name != signed.keyid:
        raise BadLetter("identity_unproven", f"the answer of {name} was signed by {signed.keyid}")
    if document["origin"] != challenges.origin:
        raise BadLetter("identity_unproven", f"the answer is to {document['origin']}, not to {challenges.origin}")
    challenges.meet(document["nonce"], now_us)
    session = Session(document["origin"], document["agent"], document["tenant"], document["nonce"], keys[name])
    asked = (tuple(wants["roles"]), tuple(wants["capabilities"]), tuple(wants["topics"]))
    return session, Wants(*asked, wants["constitution"])
