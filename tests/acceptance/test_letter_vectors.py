"""The vectors of docs/reference/vectors: what they say holds here, and for a program in Go without our code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.letters import envelopes, joining, notices, tickets
from enhanced_agent_bus.letters.dsse import BadLetter, bytes_max, decode
from enhanced_agent_bus.letters.envelopes import open_envelope
from enhanced_agent_bus.letters.joining import Challenges, Session, Wants, open_challenge, open_join, seal_challenge
from enhanced_agent_bus.letters.keys import read_vkey
from enhanced_agent_bus.letters.notices import Answered, Notice, Notices, Question
from enhanced_agent_bus.letters.post import open_letter
from enhanced_agent_bus.letters.tickets import open_ticket
from tests import vectors
from tests.outsider import Outsider, Rejected, outsider

PAGE: Final = vectors.FILE.parents[1] / "envelope.md"
VECTORS: Final[dict[str, Any]] = json.loads(vectors.FILE.read_text(encoding="ascii"))
KEYS: Final[dict[str, Ed25519PublicKey]] = dict(read_vkey(key["vkey"]) for key in VECTORS["keys"].values())
NODES: Final = {name: key for name, key in KEYS.items() if name.startswith("bus-1/")}
AGENTS: Final = {name: key for name, key in KEYS.items() if name.startswith("acme/")}
NODE: Final = VECTORS["keys"]["bus-1/node-a"]["vkey"]
SEED: Final = VECTORS["keys"]["acme/desk"]["seed"]
NOW: Final = VECTORS["now_us"]


def named(kind: str) -> pytest.MarkDecorator:
    """The letters of a kind, by name."""
    return pytest.mark.parametrize("vector", VECTORS[kind], ids=[vector["name"] for vector in VECTORS[kind]])


@pytest.fixture(scope="module")
def go() -> Iterator[Outsider]:
    """Whoever has read the page and wrote a program in Go."""
    with outsider() as program:
        yield program


def test_the_file_is_what_the_code_makes() -> None:
    """To the byte; `python -m tests.vectors` writes it anew."""
    assert vectors.FILE.read_text(encoding="ascii") == vectors.text()


def test_keys_are_the_same_in_each_form() -> None:
    """Seed, public key and vkey."""
    for name, key in VECTORS["keys"].items():
        assert KEYS[name].public_bytes_raw().hex() == key["public"]
        assert vectors.SIGNERS[name].key.private_bytes_raw().hex() == key["seed"]


@pytest.mark.parametrize("vector", VECTORS["canonical"], ids=lambda vector: ascii(vector["text"][:40]))
def test_canonical_form_is_the_same_elsewhere(vector: dict[str, str], go: Outsider) -> None:
    """Or there is none, elsewhere too; its own canonical form is itself."""
    if "refused" in vector:
        with pytest.raises(Rejected):
            go.ask("canonical", "", text=vector["text"])
        return
    assert go.ask("canonical", "", text=vector["text"]) == vector["canonical"]
    assert go.ask("canonical", "", text=vector["canonical"]) == vector["canonical"]


def test_commitments_and_digests_are_plain_hashes() -> None:
    """As the page says: of salt and text, and of the canonical text of the fields."""
    for vector in VECTORS["commitments"]:
        content = bytes.fromhex(vector["salt"]) + vector["text"].encode()
        assert hashlib.sha256(content).hexdigest() == vector["commitment"]
    for vector in VECTORS["digests"]:
        assert rfc8785.dumps(json.loads(vector["text"])).decode() == vector["text"]
        assert hashlib.sha256(vector["text"].encode()).hexdigest() == vector["digest"]


@named("tickets")
def test_tickets(vector: dict[str, Any], go: Outsider) -> None:
    """Here and in Go: the message with its digest, or refused."""
    if "refused" in vector:
        with pytest.raises(BadLetter) as bad:
            open_ticket(vector["letter"].encode(), NODES)
        assert bad.value.code == vector["refused"]
        with pytest.raises(Rejected):
            go.ask("ticket", NODE, text=vector["letter"])
        return
    envelope, _ = open_ticket(vector["letter"].encode(), NODES)
    assert envelope.digest == vector["digest"] == go.ask("ticket", NODE, text=vector["letter"])
    assert json.loads(decode(vector["letter"].encode()).payload) == vector["says"]


@named("notices")
def test_notices_questions_and_answers(vector: dict[str, Any]) -> None:
    """What is signed is read, each by its kind."""
    if "refused" in vector:
        with pytest.raises(BadLetter) as bad:
            open_letter(vector["letter"].encode(), NODES)
        assert bad.value.code == vector["refused"]
        return
    read = open_letter(vector["letter"].encode(), NODES)
    if isinstance(read, Notices):
        assert [{"v": 1, **one._asdict()} for one in read.notices] == vector["says"]["notices"]
        return
    assert isinstance(read, Notice | Question | Answered)
    assert {"v": 1, **read._asdict()} == vector["says"]


def begin() -> tuple[Session, Wants]:
    """The session of the vectors: the challenge, and each answer in its turn."""
    first, *answers = VECTORS["joins"]
    challenge = open_challenge(first["letter"].encode(), NODES)
    assert (challenge.issued_us, challenge.origin) == (NOW, "bus-1/node-a")
    challenges = Challenges(challenge.origin, bytes.fromhex(first["secret"]))
    joined = None
    for vector in answers:
        now_us = vector.get("now_us", NOW)
        if "refused" in vector:
            with pytest.raises(BadLetter) as bad:
                open_join(vector["letter"].encode(), challenges, AGENTS, now_us)
            assert bad.value.code == vector["refused"], vector["name"]
        else:
            joined = open_join(vector["letter"].encode(), challenges, AGENTS, now_us)
            assert json.loads(decode(vector["letter"].encode()).payload) == vector["says"]
    assert joined is not None
    return joined


def test_a_session_begins_with_one_good_answer() -> None:
    """What is too late, another's or made up is refused by its code, and does not use the challenge up."""
    session, wants = begin()
    assert (session.agent, session.tenant, session.bus, session.n) == ("desk", "acme", "bus-1", 0)
    assert wants == Wants(("planner",), (), ("trips.>",), "latest")


def test_envelopes_of_a_session() -> None:
    """One after another: each says what it says, or is refused by its code and changes nothing."""
    session, _ = begin()
    for vector in VECTORS["envelopes"]:
        letter = vector["letter"].encode()
        if "refused" in vector:
            with pytest.raises(BadLetter) as bad:
                open_envelope(letter, session, NOW)
            assert bad.value.code == vector["refused"], vector["name"]
            continue
        request, session = open_envelope(letter, session, NOW)
        says = vector["says"]
        assert session.n == says["n"]
        for name, value in request._asdict().items():
            if name == "expires_in" and "expires_us" in says:
                assert value == 1.0
            elif name in says:
                assert value == says[name]
            else:
                assert value in (None, 1, {}), name


def test_an_agent_in_go_joins_and_sends(go: Outsider) -> None:
    """It checks our challenge, answers it, and signs envelopes that we open; it does not answer another node's."""
    signer = vectors.NODE
    challenges = Challenges(signer.name, b"s" * 32)
    challenge = seal_challenge(signer, challenges.issue(b"r" * 16, NOW)).decode()
    name = "acme/desk"
    with pytest.raises(Rejected):
        go.ask("join", VECTORS["keys"]["bus-1/node-b"]["vkey"], text=challenge, name=name, seed=SEED)
    answer = go.ask("join", NODE, text=challenge, name=name, seed=SEED)
    session, wants = open_join(answer.encode(), challenges, AGENTS, NOW)
    assert wants.roles == ("planner",)
    said = {"v": 1, "bus": "bus-1", "from": "desk", "tenant": "acme", "session": session.nonce}
    for n in (1, 2):
        text = json.dumps({**said, "n": n, "to": "booker", "payload": {"trip": n, "price": 5.0, "note": "\N{SNOWMAN}"}})
        letter = go.ask("envelope", "", text=text, name=name, seed=SEED).encode()
        request, session = open_envelope(letter, session, NOW)
        assert (request.to, session.n) == ("booker", n)
        assert json.dumps(request.payload) == json.dumps({"trip": n, "price": 5.0, "note": "\N{SNOWMAN}"})
        with pytest.raises(BadLetter, match="rise"):
            open_envelope(letter, session, NOW)


# --- the page ------------------------------------------------------------------------------------------------------


def fields_of(page: str, heading: str) -> list[str]:
    """The names in the first column of the table with this head, in order."""
    _, _, below = page.partition(f"| {heading} | |\n|---|---|\n")
    rows = below.partition("\n\n")[0].splitlines()
    assert rows, heading
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("field of the challenge", joining.CHALLENGE_FIELDS),
        ("field of the answer", joining.JOIN_FIELDS),
        ("field of an envelope", envelopes.REQUIRED_FIELDS | envelopes.OPTIONAL_FIELDS),
        ("field of `message`", tickets.MESSAGE_FIELDS),
        ("field of `ticket`", tickets.TICKET_FIELDS),
        ("field of `answers`", tickets.ENDED_FIELDS),
        ("field of a notice", notices.NOTICE_FIELDS),
        ("field of several notices", notices.NOTICES_FIELDS),
        ("field of a question", notices.QUESTION_FIELDS),
        ("field of an answer to it", notices.ANSWER_FIELDS),
    ],
)
def test_the_page_has_the_fields_of_the_code(heading: str, fields: dict[str, object]) -> None:
    """docs/reference/envelope.md has each field of each letter, and no other."""
    named = fields_of(PAGE.read_text(encoding="utf-8"), heading)
    assert sorted(named) == sorted(fields)


def test_the_page_shows_letters_of_the_vectors() -> None:
    """What its blocks print is in the vectors too."""
    page = PAGE.read_text(encoding="utf-8")
    assert VECTORS["envelopes"][0]["letter"] in page
    assert VECTORS["digests"][1]["digest"] in page
    assert f"{(2 * 262_144 + 65_536) * 4 // 3 + 16_384}" == str(bytes_max(262_144))


DOCUMENTS: Final = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@pytest.mark.fuzz
@given(DOCUMENTS)
def test_any_payload_has_the_same_canonical_form_elsewhere(go: Outsider, document: dict[str, Any]) -> None:
    """Or has none, elsewhere too: numbers, escapes and the order of keys."""
    expected = vectors.canonical_of(json.dumps(document))
    if "refused" in expected:
        with pytest.raises(Rejected):
            go.ask("canonical", "", text=expected["text"])
    else:
        assert go.ask("canonical", "", text=expected["text"]) == expected["canonical"]
