"""Makes docs/reference/vectors/letters.json: `python -m tests.vectors` writes it, and a test holds it to this.

Everything in it is fixed: keys, salts, nonces and times are written here. The keys are known to everyone: use none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enhanced_agent_bus.admission.canonical import NotJson, canonical, freeze, loads_strict
from enhanced_agent_bus.admission.seal import commitment, seal
from enhanced_agent_bus.ledger.checkpoint import Signer
from enhanced_agent_bus.letters.dsse import ENVELOPE, JOIN, NOTICE, NOTICES, TICKET, decode, encode
from enhanced_agent_bus.letters.envelopes import sign_envelope
from enhanced_agent_bus.letters.fields import write
from enhanced_agent_bus.letters.joining import Challenges, Wants, seal_challenge, seal_join
from enhanced_agent_bus.letters.notices import (
    Answered,
    Notice,
    Question,
    seal_answer,
    seal_notice,
    seal_notices,
    seal_question,
)
from enhanced_agent_bus.letters.tickets import Ended, Ticket, seal_ticket
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.verdict import Party, Refusal

FILE: Final = Path(__file__).resolve().parents[1] / "docs" / "reference" / "vectors" / "letters.json"
NOW: Final = 1_790_000_000_000_000
SEEDS: Final = {"bus-1/node-a": b"a" * 32, "bus-1/node-b": b"b" * 32, "acme/desk": b"d" * 32}
SIGNERS: Final = {name: Signer(name, Ed25519PrivateKey.from_private_bytes(seed)) for name, seed in SEEDS.items()}
STRANGER: Final = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
NODE, OTHER, AGENT = SIGNERS["bus-1/node-a"], SIGNERS["bus-1/node-b"], SIGNERS["acme/desk"]
SALT: Final = bytes(range(32))
SECRET: Final = b"m" * 32  # of the node's challenges

TEXTS: Final = (
    '{"b": 1, "a": [true, null, "x"]}',
    '{"n": [5.0, 5, 1.50, 1e2, -0.0, 0.0000015, 1.5e-7, 5e-324, 123456789.125, 9007199254740991]}',
    '{"e\\u20ac": "\\u00e9\\u0007\\n\\"\\\\\\/", "\\ud83d\\ude00": 1, "\\ufb33": 2}',
    '{"": {}, " ": []}',
    '{"a": 1, "a": 1}',
    '{"a": NaN}',
    '{"a": 9007199254740992}',
    '{"a": 1e300}',
    '{"a": "\\ud800"}',
    '{"a": "\\uffff"}',
    '{"a": 01}',
    "[1]",
    '{"a": ' * 64 + "{}" + "}" * 64,
)


def made() -> dict[str, Any]:
    """The whole file."""
    return {
        "about": "docs/reference/envelope.md",
        "now_us": NOW,
        "keys": {name: key_of(signer, SEEDS[name]) for name, signer in SIGNERS.items()},
        "canonical": [canonical_of(text) for text in TEXTS],
        "commitments": [
            {"salt": SALT.hex(), "text": text, "commitment": commitment(SALT, text.encode())}
            for text in ("{}", '{"trip":7}', '{"note":"\N{SNOWMAN}"}')
        ],
        "digests": [digest_of(envelope()), digest_of(REPLY)],
        "tickets": tickets(),
        "notices": notices(),
        "joins": joins(),
        "envelopes": envelopes(),
    }


def key_of(signer: Signer, seed: bytes) -> dict[str, str]:
    """A key in each form that it is met in."""
    public = signer.key.public_key().public_bytes_raw()
    return {"seed": seed.hex(), "public": public.hex(), "vkey": signer.verifier.vkey}


def canonical_of(text: str) -> dict[str, str]:
    """A payload as it was sent, and its canonical form or why it has none."""
    try:
        frozen = freeze(loads_strict(text, bytes_max=10_000, depth_max=64), bytes_max=10_000, depth_max=64)
    except NotJson as error:
        return {"text": text, "refused": error.code}
    if isinstance(frozen, Refusal):
        return {"text": text, "refused": frozen.code}
    return {"text": text, "canonical": frozen.decode()}


def envelope(
    payload: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, **new: Any
) -> Envelope:
    """A message of desk's."""
    headers = {"trace": "1"} if headers is None else dict(headers)
    fields: dict[str, Any] = {
        "id": "desk/order-7",
        "type": "command",
        "priority": 2,
        "sender": Party("desk", "acme", (), ()),
        "recipient": Party("booker", "globex", (), ()),
        "topic": None,
        "conversation": "trip/7",
        "cause": None,
        "created_us": NOW,
        "expires_us": NOW + 3_600_000_000,
        "hops": 0,
        "headers": headers,
        "headers_bytes": canonical(headers),
        "body": canonical(payload or {"trip": 7, "price": 5.0, "note": '\N{SNOWMAN} "quoted"'}),
        "salt": SALT,
    }
    return seal(**{**fields, **new})


REPLY: Final = envelope({"booked": True}, {}, id="desk/reply-6", type="response", cause="booker/ask-6", topic="trips")


def digest_of(sealed: Envelope) -> dict[str, Any]:
    """What a digest covers, and the text that is hashed."""
    names = ("id", "type", "priority", "sender", "tenant", "recipient", "recipient_tenant", "topic", "conversation")
    fields = {name: getattr(sealed, name) for name in (*names, "cause", "created_us", "expires_us", "hops")}
    fields |= {"payload": sealed.commitment, "headers": sealed.headers_commitment}
    return {"text": canonical(fields).decode(), "digest": sealed.digest}


def ticket(sealed: Envelope, **new: Any) -> Ticket:
    """The allow of one."""
    fields: dict[str, Any] = {
        "origin": NODE.name,
        "seq": 17,
        "decision_id": f"{sealed.id}#65be2f1d2a1c0",
        "digest": sealed.digest,
        "constitution": "c" * 64,
        "revision": 4,
        "issued_us": NOW,
        "expires_us": sealed.expires_us,
        "nonce": "0123456789abcdef" * 2,
    }
    return Ticket(**{**fields, **new})


# --- good and bad letters ------------------------------------------------------------------------------------------


def good(name: str, letter: bytes, **more: Any) -> dict[str, Any]:
    """A letter that is to be believed, and its signed text."""
    return {"name": name, "letter": letter.decode(), "says": orjson.loads(decode(letter).payload), **more}


def bad(name: str, letter: bytes, refused: str, **more: Any) -> dict[str, Any]:
    """One that is not, and the code that it is refused with."""
    return {"name": name, "letter": letter.decode(), "refused": refused, **more}


def signed(document: Any, signer: Signer = NODE, kind: str = TICKET) -> bytes:
    """A letter that says anything at all."""
    return encode(kind, write(document), signer)


def said(letter: bytes, **new: Mapping[str, Any]) -> dict[str, Any]:
    """The signed text of a letter, with changes in its parts."""
    document: dict[str, Any] = orjson.loads(decode(letter).payload)
    for part, changes in new.items():
        document[part] = {**document[part], **changes}
    return document


def outside(letter: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """A letter with another outside."""
    return orjson.dumps(change(orjson.loads(letter)))


def looser(sig: str) -> str:
    """The same bytes in another spelling of base64: the bits that stand for nothing are set."""
    return sig[:-3] + chr(ord(sig[-3]) + 1) + "=="


def outsides(letter: bytes) -> list[dict[str, Any]]:
    """What is wrong with a letter before anybody looks at what it says."""
    (signature,) = orjson.loads(letter)["signatures"]
    flipped = base64.b64encode(bytes(64)).decode()
    return [
        bad("signature of nothing", outside(letter, lambda it: it | {"signatures": []}), "malformed"),
        bad("two signatures", outside(letter, lambda it: it | {"signatures": [signature] * 2}), "malformed"),
        bad("a field more", outside(letter, lambda it: it | {"note": ""}), "malformed"),
        bad("a key twice", letter.replace(b"{", b'{"payloadType":"x",', 1), "malformed"),
        bad(
            "loose base64",
            outside(letter, lambda it: it | {"signatures": [signature | {"sig": looser(signature["sig"])}]}),
            "malformed",
        ),
        bad(
            "another signature",
            outside(letter, lambda it: it | {"signatures": [signature | {"sig": flipped}]}),
            "identity_unproven",
        ),
        bad(
            "an unknown signer",
            outside(letter, lambda it: it | {"signatures": [signature | {"keyid": "bus-1/node-x"}]}),
            "identity_unproven",
        ),
        bad("another kind", outside(letter, lambda it: it | {"payloadType": "application/json"}), "malformed"),
        bad("cut off", letter[:-1], "malformed"),
    ]


def tickets() -> list[dict[str, Any]]:
    """Messages of node-a, opened with the keys of both nodes."""
    whole = envelope()
    letter = seal_ticket(NODE, whole, ticket(whole))
    ended = Ended("booker/ask-6", "d" * 64, "delivered", None, 1, 1200, None)
    spelled = envelope(body=b'{"trip": 7}')
    changed: list[tuple[str, dict[str, Any]]] = [
        ("a message changed by its node", {"message": {"priority": 3}}),
        ("a payload changed by its node", {"message": {"payload": '{"trip":8}'}}),
        ("a salt changed by its node", {"message": {"salt": "0" * 64}}),
        ("headers without their commitment", {"message": {"headers_commitment": None}}),
        ("a ticket of another message", {"ticket": {"digest": "0" * 64}}),
        ("a decision on another message", {"ticket": {"decision_id": "desk/order-8#1"}}),
        ("a type that there is not", {"message": {"type": "order"}}),
        ("a field more in the message", {"message": {"note": ""}}),
    ]
    return [
        good("a command", letter, digest=whole.digest),
        good("a reply", seal_ticket(NODE, REPLY, ticket(REPLY, answers=ended)), digest=REPLY.digest),
        *outsides(letter),
        *(bad(name, signed(said(letter, **parts)), "malformed") for name, parts in changed),
        bad(
            "a payload in another spelling",
            signed(said(seal_ticket(NODE, spelled, ticket(spelled)))),
            "malformed",
        ),
        bad("another node's ticket", signed(said(letter), OTHER), "identity_unproven"),
        bad("another agent's id", signed(said(letter, message={"id": "other/order-7"})), "identity_unproven"),
        bad("another key under its name", signed(said(letter), Signer(NODE.name, STRANGER)), "identity_unproven"),
    ]


def notices() -> list[dict[str, Any]]:
    """Small letters between the two nodes."""
    notice = Notice(
        origin=OTHER.name,
        seq=5,
        message_id="desk/order-7",
        digest=envelope().digest,
        state="dead_lettered",
        code="attempts_exhausted",
        attempts=5,
        error="ValueError",
        reply_id=None,
        decision_id="desk/order-7#65be2f1d2a1ff",
        at_us=NOW,
        nonce="f" * 32,
    )
    question = Question(OTHER.name, NODE.name, "desk/order-7", "desk/order-7#65be2f1d2a1c0", NOW, "e" * 32)
    answer = Answered(
        NODE.name, "desk/order-7", "desk/order-7#65be2f1d2a1c0", open=False, state="expired", at_us=NOW, nonce="e" * 32
    )
    letter = seal_notice(OTHER, notice)
    several = seal_notices(OTHER, [notice, notice._replace(message_id="desk/order-8", decision_id="desk/order-8#1")])
    each = said(several)["notices"]
    return [
        good("a notice", letter),
        good("two notices", several),
        bad("no list of notices", signed({"v": 1, "notices": each[0]}, OTHER, NOTICES), "malformed"),
        bad("too many notices", signed({"v": 1, "notices": each[:1] * 33}, OTHER, NOTICES), "malformed"),
        bad(
            "a good notice and a bad one",
            signed({"v": 1, "notices": [each[0], each[1] | {"state": "queued"}]}, OTHER, NOTICES),
            "malformed",
        ),
        bad("another node's notices", signed(said(several), NODE, NOTICES), "identity_unproven"),
        good("a question", seal_question(OTHER, question)),
        good("an answer", seal_answer(NODE, answer)),
        bad("a state that is no end", signed(said(letter) | {"state": "queued"}, OTHER, NOTICE), "malformed"),
        bad("another node's notice", signed(said(letter), NODE, NOTICE), "identity_unproven"),
    ]


# --- agents elsewhere ----------------------------------------------------------------------------------------------


CHALLENGES: Final = Challenges(NODE.name, SECRET)
CHALLENGE: Final = CHALLENGES.issue(bytes(16), NOW)


def joins() -> list[dict[str, Any]]:
    """Answers to one challenge, one after another: the one that is taken uses it up."""
    joining = seal_join(AGENT, CHALLENGE, Wants(("planner",), (), ("trips.>",)))
    other = Challenges(NODE.name, b"n" * 32).issue(bytes(16), NOW)
    late = {"now_us": CHALLENGE.expires_us}
    return [
        {"name": "the challenge", "letter": seal_challenge(NODE, CHALLENGE).decode(), "secret": SECRET.hex()},
        bad("too late", joining, "expired", **late),
        bad("to another node", signed(said(joining) | {"origin": OTHER.name}, AGENT, JOIN), "identity_unproven"),
        bad("in another tenant", signed(said(joining) | {"tenant": "globex"}, AGENT, JOIN), "identity_unproven"),
        bad("to no challenge", seal_join(AGENT, other), "identity_unproven"),
        bad("a wish more", signed(said(joining, wants={"admin": True}), AGENT, JOIN), "malformed"),
        good("in time", joining),
        bad("again", joining, "replayed"),
    ]


def envelopes() -> list[dict[str, Any]]:
    """What desk asks for in its session, one after another: each that is taken counts for those behind it."""
    session = CHALLENGE.nonce

    def by(n: int, message: dict[str, Any], signer: Signer = AGENT, bus: str = "bus-1", nonce: str = session) -> bytes:
        return sign_envelope(signer, bus, nonce, n, message)

    booking = {"to": "booker", "payload": {"trip": 7}}
    whole = {
        **booking,
        "type": "query",
        "priority": 2,
        "id": "order-7",
        "conversation": "trip/7",
        "cause": "booker/ask-6",
        "headers": {"trace": "1"},
        "expires_in": 5.5,
    }
    first = by(1, booking)
    return [
        good("a message", first),
        bad("the same again", first, "replayed"),
        good("with all that there is", by(5, whole)),
        good("by capability, until a time", by(6, {"capability": "flights", "expires_us": NOW + 1_000_000})),
        good("to a topic", by(7, {"topic": "trips", "payload": {"note": "delay"}})),
        bad("a lower n", by(6, booking), "replayed"),
        bad("to two", by(8, booking | {"topic": "trips"}), "malformed"),
        bad("to nobody", by(8, {"payload": {}}), "malformed"),
        bad("two times", by(8, booking | {"expires_in": 1, "expires_us": NOW + 1}), "malformed"),
        bad("a field more", by(8, booking | {"role": "admin"}), "malformed"),
        bad("null in place of nothing", by(8, booking | {"id": None}), "malformed"),
        bad("a key twice", encode(ENVELOPE, decode(first).payload.replace(b"{", b'{"n":9,', 1), AGENT), "malformed"),
        bad("a payload that is no object", by(8, {"to": "booker", "payload": [7]}), "malformed"),
        bad("of another agent", signed(said(first) | {"from": "other", "n": 8}, AGENT, ENVELOPE), "identity_unproven"),
        bad("of another session", by(8, booking, nonce="0" * 80), "identity_unproven"),
        bad("for another bus", by(8, booking, bus="bus-2"), "identity_unproven"),
        bad("another key", by(8, booking, Signer(AGENT.name, STRANGER)), "identity_unproven"),
        *outsides(by(8, booking)),
        good("and goes on", by(8, booking)),
    ]


def text() -> str:
    """The file as it is written."""
    return json.dumps(made(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(), encoding="ascii")
