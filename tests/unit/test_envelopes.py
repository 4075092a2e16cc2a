"""Agents of other processes: how they join, and what is believed of what they sign."""

from __future__ import annotations

import json
from typing import Any, Final

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.ledger.checkpoint import Signer
from enhanced_agent_bus.letters import joining
from enhanced_agent_bus.letters.dsse import ENVELOPE, JOIN, BadLetter, decode, encode
from enhanced_agent_bus.letters.envelopes import Request, open_envelope, sign_envelope
from enhanced_agent_bus.letters.fields import write
from enhanced_agent_bus.letters.joining import (
    CHALLENGE_SECONDS,
    NAMES_MAX,
    Challenges,
    Session,
    Wants,
    open_challenge,
    open_join,
    seal_challenge,
    seal_join,
)
from enhanced_agent_bus.routing import registry

NODE: Final = Signer("bus-1/node-a", Ed25519PrivateKey.from_private_bytes(b"a" * 32))
DESK: Final = Signer("acme/desk", Ed25519PrivateKey.from_private_bytes(b"d" * 32))
KEYS: Final = {DESK.name: DESK.key.public_key()}
NODES: Final = {NODE.name: NODE.key.public_key()}
NOW: Final = 1_700_000_000_000_000
CHANCE: Final = b"r" * 16
SESSION: Final = Session(NODE.name, "desk", "acme", "0" * 80, DESK.key.public_key(), 4)
GOOD: Final[dict[str, Any]] = {
    "to": "booker",
    "payload": {"trip": 7},
    "type": "query",
    "priority": 2,
    "id": "order-7",
    "conversation": "trip/7",
    "cause": "booker/ask-6",
    "headers": {"trace": "1"},
    "expires_in": 5.5,
}


def envelope(message: dict[str, Any], n: int = 5) -> bytes:
    """One of desk's in SESSION."""
    return sign_envelope(DESK, "bus-1", SESSION.nonce, n, message)


def opened(letter: bytes, session: Session = SESSION, **limits: int) -> Request:
    """What it asks for."""
    request, after = open_envelope(letter, session, NOW, **limits)
    assert after.n > session.n
    return request


def code(letter: bytes, **limits: int) -> str:
    """Why it is refused."""
    with pytest.raises(BadLetter) as bad:
        open_envelope(letter, SESSION, NOW, **limits)
    assert len(str(bad.value)) < 500
    return bad.value.code


# --- joining -------------------------------------------------------------------------------------------------------


def test_a_challenge_is_met_once() -> None:
    """The second answer to it is refused, whoever copied it."""
    challenges = Challenges(NODE.name, b"s" * 32)
    challenge = open_challenge(seal_challenge(NODE, challenges.issue(CHANCE, NOW)), NODES)
    answer = seal_join(DESK, challenge, Wants(("planner",), ("flights",), ("trips.>",), "c" * 64))
    session, wants = open_join(answer, challenges, KEYS, NOW)
    assert (session.agent, session.tenant, session.bus, session.nonce, session.n) == (
        "desk",
        "acme",
        "bus-1",
        challenge.nonce,
        0,
    )
    assert wants == Wants(("planner",), ("flights",), ("trips.>",), "c" * 64)
    with pytest.raises(BadLetter) as bad:
        open_join(answer, challenges, KEYS, NOW + 1)
    assert bad.value.code == "replayed"


def test_a_challenge_is_met_in_time_and_on_its_node() -> None:
    """Within 30 s, of this process of this node: its secret is its own."""
    challenges = Challenges(NODE.name, b"s" * 32)
    challenge = challenges.issue(CHANCE, NOW)
    last = challenge.expires_us - 1
    assert last == NOW + CHALLENGE_SECONDS * 1_000_000 - 1
    for who, now_us, expected in (
        (Challenges(NODE.name, b"t" * 32), NOW, "identity_unproven"),
        (Challenges("bus-1/node-b", b"s" * 32), NOW, "identity_unproven"),
        (challenges, last + 1, "expired"),
    ):
        with pytest.raises(BadLetter) as bad:
            open_join(seal_join(DESK, challenge), who, KEYS, now_us)
        assert bad.value.code == expected
    assert open_join(seal_join(DESK, challenge), challenges, KEYS, last)[1] == Wants()


def test_an_answer_that_fails_does_not_use_the_challenge_up() -> None:
    """Nobody can spoil another's joining by an answer of his own making."""
    challenges = Challenges(NODE.name, b"s" * 32)
    challenge = challenges.issue(CHANCE, NOW)
    stranger = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
    for signer in (Signer("acme/desk", stranger), Signer("acme/other", stranger)):
        with pytest.raises(BadLetter) as bad:
            open_join(seal_join(signer, challenge), challenges, KEYS, NOW)
        assert bad.value.code == "identity_unproven"
    open_join(seal_join(DESK, challenge), challenges, KEYS, NOW)


@given(st.binary(min_size=16, max_size=64) | st.just(b"\0" * 40))
def test_a_nonce_cannot_be_made_up(nonce: bytes) -> None:
    """Nor one bit of one be changed."""
    challenges = Challenges(NODE.name, b"s" * 32)
    with pytest.raises(BadLetter):
        challenges.meet(nonce.hex(), NOW)
    given_out = bytearray.fromhex(challenges.issue(CHANCE, NOW).nonce)
    given_out[nonce[0] % len(given_out)] ^= 1 << nonce[1] % 8
    with pytest.raises(BadLetter):
        challenges.meet(given_out.hex(), NOW)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only challenges that were met, for their 30 s; beyond a number of them nobody joins until some are older."""
    monkeypatch.setattr(joining, "JOINED_MAX", 3)
    challenges = Challenges(NODE.name, b"s" * 32)
    for number in range(3):
        challenges.meet(challenges.issue(bytes([number]) * 16, NOW + number).nonce, NOW + number)
    with pytest.raises(BadLetter):
        challenges.meet(challenges.issue(CHANCE, NOW).nonce, NOW)
    later = NOW + CHALLENGE_SECONDS * 1_000_000
    challenges.meet(challenges.issue(CHANCE, later).nonce, later)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("roles", ["Planner"]),
        ("roles", "planner"),
        ("roles", ["r"] * (NAMES_MAX + 1)),
        ("roles", [7]),
        ("capabilities", None),
        ("topics", ["a b"]),
        ("constitution", "7"),
        ("constitution", None),
        ("admin", True),
    ],
)
def test_wishes_are_well_formed(field: str, value: object) -> None:
    """Names as a registration has them."""
    assert registry.NAMES_MAX == NAMES_MAX
    challenges = Challenges(NODE.name, b"s" * 32)
    document = orjson.loads(decode(seal_join(DESK, challenges.issue(CHANCE, NOW))).payload)
    document["wants"][field] = value
    with pytest.raises(BadLetter) as bad:
        open_join(encode(JOIN, write(document), DESK), challenges, KEYS, NOW)
    assert bad.value.code == "malformed"


@pytest.mark.parametrize("name", ["v", "origin", "agent", "tenant", "nonce", "wants"])
def test_each_field_of_an_answer_is_of_its_kind(name: str) -> None:
    """Or it is a bad letter, and no other error."""
    challenges = Challenges(NODE.name, b"s" * 32)
    document = orjson.loads(decode(seal_join(DESK, challenges.issue(CHANCE, NOW))).payload)
    for value in [*BAD, "0" * 33, "0" * 81, "0" * 32, "0" * 129, NODE.name + "x"]:
        letter = encode(JOIN, orjson.dumps({**document, name: value}), DESK)
        with pytest.raises(BadLetter) as bad:
            open_join(letter, challenges, KEYS, NOW)
        assert bad.value.code in {"malformed", "identity_unproven"}


def test_a_challenge_is_of_the_node_that_signed_it() -> None:
    """An agent that knows its node answers no other."""
    other = Signer("bus-1/node-b", Ed25519PrivateKey.from_private_bytes(b"b" * 32))
    challenge = Challenges(NODE.name, b"s" * 32).issue(CHANCE, NOW)
    with pytest.raises(BadLetter):
        open_challenge(seal_challenge(other, challenge._replace(origin=other.name)), NODES)
    forged = encode("application/vnd.eab.challenge+json", decode(seal_challenge(NODE, challenge)).payload, other)
    with pytest.raises(BadLetter) as bad:
        open_challenge(forged, {**NODES, other.name: other.key.public_key()})
    assert bad.value.code == "identity_unproven"


# --- envelopes -----------------------------------------------------------------------------------------------------


def test_what_an_agent_asks_for_comes_as_it_was_asked() -> None:
    """Each field; what is not given is left to the bus."""
    assert opened(envelope(GOOD)) == Request(
        "booker", None, None, {"trip": 7}, "query", 2, "order-7", "trip/7", "booker/ask-6", {"trace": "1"}, 5.5
    )
    assert opened(envelope({"topic": "trips"})) == Request(None, None, "trips", {}, None, 1, None, None, None, {}, None)
    assert opened(envelope({"to": "booker", "expires_us": NOW + 2_500_000})).expires_in == 2.5
    assert opened(envelope({"to": "booker", "expires_us": NOW})).expires_in == 0


def test_numbers_stay_what_they_are() -> None:
    """A float stays a float: 5.0 is not 5."""
    payload = opened(envelope({"to": "booker", "payload": {"a": 5.0, "b": 5, "c": 1e-7}})).payload
    assert json.dumps(payload) == '{"a": 5.0, "b": 5, "c": 1e-07}'


@given(st.lists(st.integers(1, 20), max_size=12))
def test_n_only_rises(numbers: list[int]) -> None:
    """In whatever order envelopes come, none is taken twice, nor one behind a later one."""
    session, taken = SESSION._replace(n=0), [0]
    for n in numbers:
        letter = envelope({"to": "booker"}, n)
        if n > taken[-1]:
            _, session = open_envelope(letter, session, NOW)
            taken.append(n)
            continue
        with pytest.raises(BadLetter) as bad:
            open_envelope(letter, session, NOW)
        assert bad.value.code == "replayed"
    assert session.n == taken[-1]


BAD: Final[list[Any]] = [None, "", 0, -1, 0.5, True, 2**53, "\N{SNOWMAN}", [], {}, {"a": 1}, ["a"]]


@pytest.mark.parametrize("name", [*GOOD, "v", "bus", "from", "tenant", "session", "n"])
def test_each_field_is_of_its_kind(name: str) -> None:
    """Or refused here; values of the right kind go on to be judged as those of any sender."""
    document = orjson.loads(decode(envelope(GOOD)).payload)
    kind = type(document[name])
    for value in BAD:
        letter = encode(ENVELOPE, orjson.dumps({**document, name: value}), DESK)
        right = type(value) is kind or (name == "expires_in" and type(value) is int)
        if not right or name in {"v", "bus", "from", "tenant", "session"}:
            assert code(letter) in {"malformed", "identity_unproven"}, (name, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'"payload":{"a":1,"a":2}', "malformed"),
        (b'"payload":{"a":NaN}', "malformed"),
        (b'"payload":{"a":9007199254740993}', "malformed"),
        (b'"payload":{"a":' * 1 + b"[" * 64 + b"]" * 64 + b"}", "too_deep"),
        (b'"payload":{},"payload":{}', "malformed"),
        (b'"payload":{}}{', "malformed"),
    ],
)
def test_the_signed_text_is_strict_json(text: bytes, expected: str) -> None:
    """Two readers of it can never take it for two messages."""
    whole = decode(envelope({"to": "booker"})).payload
    assert code(encode(ENVELOPE, whole[:-1] + b"," + text + b"}", DESK)) == expected


def test_limits_are_the_nodes() -> None:
    """As deep and large as it takes, and no more."""
    deep = envelope({"to": "booker", "payload": {"a": {"b": 1}}})
    assert opened(deep, depth=2).payload == {"a": {"b": 1}}
    assert code(deep, depth=1) == "too_deep"
    large = envelope({"to": "booker", "payload": {"a": "x" * 700_000}})
    assert code(large) == "too_large"
    assert opened(large, payload_bytes=1_000_000).payload["a"]


def test_no_byte_of_an_envelope_can_be_flipped() -> None:
    """Each in one bit."""
    letter = envelope(GOOD)
    for at in range(len(letter)):
        with pytest.raises(BadLetter):
            opened(letter[:at] + bytes([letter[at] ^ 1 << at % 8]) + letter[at + 1 :])


@pytest.mark.fuzz
@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_a_bad_letter(body: bytes) -> None:
    """Of an agent, signed by it or not."""
    challenges = Challenges(NODE.name, b"s" * 32)
    for letter in (body, encode(ENVELOPE, body, DESK), encode(JOIN, body, DESK)):
        with pytest.raises(BadLetter):
            open_envelope(letter, SESSION, NOW)
        with pytest.raises(BadLetter):
            open_join(letter, challenges, KEYS, NOW)
        with pytest.raises(BadLetter):
            open_challenge(letter, NODES)
