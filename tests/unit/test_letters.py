"""Letters between nodes: what was sealed comes out, and nothing that was changed anywhere does."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any, Final

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.ledger.checkpoint import Signer, Verifier
from enhanced_agent_bus.letters.dsse import (
    ANSWER,
    LETTER_BYTES,
    NOTICE,
    QUESTION,
    TICKET,
    BadLetter,
    bytes_max,
    decode,
    encode,
    pre_authentication,
    verify,
)
from enhanced_agent_bus.letters.fields import write
from enhanced_agent_bus.letters.keys import read_vkey, write_vkey
from enhanced_agent_bus.letters.notices import (
    Answered,
    Notice,
    Question,
    check_answer,
    open_answer,
    open_notice,
    open_question,
    seal_answer,
    seal_notice,
    seal_question,
)
from enhanced_agent_bus.letters.post import open_letter
from enhanced_agent_bus.letters.tickets import Ended, check_time, open_ticket, seal_ticket
from tests.vectors import NODE as HERE
from tests.vectors import NOW, envelope, ticket
from tests.vectors import OTHER as THERE

KEYS: Final = {one.name: one.key.public_key() for one in (HERE, THERE)}
SECONDS_MAX: Final = 0.05  # of this thread's own time: the machine may be busy with others

ENVELOPE: Final = envelope({"trip": 7, "note": 'a "quoted" \N{SNOWMAN} 5.0'}, {"trace": "1"})
LETTER: Final = seal_ticket(HERE, ENVELOPE, ticket(ENVELOPE))
ENDED: Final = Ended("desk/order-6", "d" * 64, "delivered", None, 1, 1200, None)
REPLY: Final = envelope(type="response", cause="desk/order-6", id="desk/reply-6")
NOTE: Final = Notice(
    origin=THERE.name,
    seq=5,
    message_id="desk/order-7",
    digest="d" * 64,
    state="dead_lettered",
    code="attempts_exhausted",
    attempts=5,
    error="ValueError",
    reply_id=None,
    decision_id="desk/order-7#1f",
    at_us=NOW,
    nonce="f" * 32,
)
QUERY: Final = Question(THERE.name, HERE.name, "desk/order-7", "desk/order-7#1f", NOW, "e" * 32)
TOLD: Final = Answered(HERE.name, "desk/order-7", "desk/order-7#1f", open=True, state=None, at_us=NOW, nonce="e" * 32)
LETTERS: Final[dict[str, tuple[bytes, Callable[[bytes], object]]]] = {
    "ticket": (LETTER, lambda body: open_ticket(body, KEYS)),
    "reply": (
        seal_ticket(HERE, REPLY, ticket(REPLY, answers=ENDED)),
        lambda body: open_ticket(body, KEYS),
    ),
    "notice": (seal_notice(THERE, NOTE), lambda body: open_notice(body, KEYS)),
    "question": (seal_question(THERE, QUERY), lambda body: open_question(body, KEYS)),
    "answer": (seal_answer(HERE, TOLD), lambda body: open_answer(body, KEYS)),
}


def refused(body: bytes, read: Callable[[bytes], object] = lambda body: open_ticket(body, KEYS)) -> BadLetter:
    """Why a letter is not believed, within its time; the sentence has nothing of a payload."""
    start = time.thread_time()
    with pytest.raises(BadLetter) as bad:
        read(body)
    taken = time.thread_time() - start
    assert taken < SECONDS_MAX, f"{taken:.3f} s"
    assert str(bad.value)
    assert len(str(bad.value)) < 500
    return bad.value


def said(letter: bytes) -> dict[str, Any]:
    """The signed text of a letter."""
    document: dict[str, Any] = orjson.loads(decode(letter, bytes_max=10_000_000).payload)
    return document


def signed_anew(document: Any, signer: Signer = HERE, kind: str = TICKET) -> bytes:
    """A letter of a node that signs whatever it likes."""
    return encode(kind, write(document), signer)


# --- DSSE ----------------------------------------------------------------------------------------------------------


def test_what_is_signed_is_the_protocols() -> None:
    """The example of the protocol's page, byte for byte."""
    assert (
        pre_authentication("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_letter_is_a_dsse_envelope() -> None:
    """Anyone with a base64 decoder and Ed25519 can check one."""
    document = json.loads(LETTER)
    assert document.keys() == {"payload", "payloadType", "signatures"}
    assert document["payloadType"] == "application/vnd.eab.ticket+json"
    (signature,) = document["signatures"]
    assert signature["keyid"] == HERE.name
    payload = base64.b64decode(document["payload"], validate=True)
    HERE.key.public_key().verify(
        base64.b64decode(signature["sig"]), b"DSSEv1 %d %b %d %b" % (31, TICKET.encode(), len(payload), payload)
    )


def test_spaces_and_order_outside_the_signed_text_are_no_difference() -> None:
    """Other writers of JSON are read; what is signed is the text inside."""
    document = json.loads(LETTER)
    spaced = json.dumps(dict(reversed(document.items())), indent=2).encode()
    assert open_ticket(spaced, KEYS) == open_ticket(LETTER, KEYS)


OUTSIDE: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "no signature": lambda letter: {**letter, "signatures": []},
    "two signatures": lambda letter: {**letter, "signatures": letter["signatures"] * 2},
    "signatures that are none": lambda letter: {**letter, "signatures": {"sig": ""}},
    "a signature that is none": lambda letter: {**letter, "signatures": ["sig"]},
    "no keyid": lambda letter: {**letter, "signatures": [{"sig": letter["signatures"][0]["sig"]}]},
    "a keyid that is none": lambda letter: {**letter, "signatures": [{**letter["signatures"][0], "keyid": 7}]},
    "a field more": lambda letter: {**letter, "note": ""},
    "a field more in the signature": lambda letter: {
        **letter,
        "signatures": [{**letter["signatures"][0], "alg": "none"}],
    },
    "no payload": lambda letter: {name: letter[name] for name in ("payloadType", "signatures")},
    "a payload that is none": lambda letter: {**letter, "payload": None},
    "URL-safe base64": lambda letter: {
        **letter,
        "payload": base64.urlsafe_b64encode(base64.b64decode(letter["payload"]) + b"\xfb\xff\xfe").decode(),
    },
    "base64 without padding": lambda letter: {**letter, "signatures": [_edited(letter, lambda sig: sig.rstrip("="))]},
    "base64 with a line end": lambda letter: {**letter, "signatures": [_edited(letter, lambda sig: sig + "\n")]},
    "base64 of loose bits": lambda letter: {
        **letter,
        "signatures": [_edited(letter, lambda sig: sig[:-3] + chr(ord(sig[-3]) + 1) + "==")],
    },
    "base64 in other letters": lambda letter: {**letter, "payload": letter["payload"].replace("A", "\N{SNOWMAN}")},
    "a type that is none": lambda letter: {**letter, "payloadType": ["ticket"]},
    "a list": lambda letter: [letter],
    "null": lambda _: None,
}


def _edited(letter: dict[str, Any], edit: Callable[[str], str]) -> dict[str, str]:
    signature: dict[str, str] = letter["signatures"][0]
    return {**signature, "sig": edit(signature["sig"])}


@pytest.mark.parametrize("how", OUTSIDE)
def test_what_is_no_such_envelope_is_malformed(how: str) -> None:
    """One signature, the fields that there are, one spelling of base64: anything else is refused before a key is."""
    changed = json.dumps(OUTSIDE[how](json.loads(LETTER))).encode()
    assert json.loads(changed) != json.loads(LETTER)
    assert refused(changed).code == "malformed"


@pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 128])
def test_a_signature_has_its_length(length: int) -> None:
    """Any other number of bytes is no signature, and no other error."""
    letter = json.loads(LETTER)
    letter["signatures"][0]["sig"] = base64.b64encode(b"s" * length).decode()
    assert refused(json.dumps(letter).encode()).code == "identity_unproven"


def test_a_key_that_stands_twice_is_malformed() -> None:
    """Two readers could take two of them."""
    twice = LETTER.replace(b'{"payload":', b'{"payloadType":"application/vnd.eab.notice+json","payload":', 1)
    assert refused(twice).code == "malformed"


def test_another_key_or_name_is_not_believed() -> None:
    """A signature counts under the name and key that are known, for the node that the text names, and nowhere else."""
    stranger = Signer("bus-1/node-x", Ed25519PrivateKey.from_private_bytes(b"x" * 32))
    impostor = Signer(HERE.name, stranger.key)
    document = said(LETTER)
    for signer in (stranger, impostor, THERE):
        assert refused(signed_anew(document, signer)).code == "identity_unproven"
    with pytest.raises(BadLetter):
        open_ticket(LETTER, {})


def test_a_text_of_one_kind_is_none_of_another() -> None:
    """The kind is signed: a notice is not opened as a question, whatever its fields are."""
    for kind, (letter, read) in LETTERS.items():
        for other, (foreign, _) in LETTERS.items():
            if {kind, other} != {"ticket", "reply"} and kind != other:
                assert refused(foreign, read).code == "malformed"
        renamed = json.loads(letter)
        renamed["payloadType"] = NOTICE if kind != "notice" else QUESTION
        with pytest.raises(BadLetter):
            open_letter(json.dumps(renamed).encode(), KEYS)


def test_any_letter_is_opened_by_what_it_says_it_is() -> None:
    """One door for all that a node can write; what it says is the same as through the door of its own."""
    for letter, read in LETTERS.values():
        assert open_letter(letter, KEYS) == read(letter)
    with pytest.raises(BadLetter):
        open_letter(encode("application/vnd.eab.envelope+json", b"{}", HERE), KEYS)


@pytest.mark.parametrize("kind", LETTERS)
def test_no_byte_can_be_flipped(kind: str) -> None:
    """Each byte of a letter, each changed in one bit and in all: it is refused, as a bad letter and nothing else."""
    letter, read = LETTERS[kind]
    for at in range(len(letter)):
        for change in (1 << at % 8, 0xFF):
            changed = letter[:at] + bytes([letter[at] ^ change]) + letter[at + 1 :]
            with pytest.raises(BadLetter) as bad:
                read(changed)
            assert bad.value.code in {"malformed", "identity_unproven"}


@pytest.mark.fuzz
@given(st.data())
def test_no_letter_is_opened_that_was_changed_somehow(data: st.DataObject) -> None:
    """Cut, lengthened, with bytes moved, or of other bytes: a bad letter, never another error, never an answer."""
    letter, read = LETTERS[data.draw(st.sampled_from(sorted(LETTERS)))]
    start = data.draw(st.integers(0, len(letter)))
    end = data.draw(st.integers(start, len(letter)))
    put = data.draw(st.binary(max_size=40) | st.just(letter[:start]))
    changed = letter[:start] + put + letter[end:]
    opened = believed(read, changed)
    assert opened is None or json.loads(changed) == json.loads(letter)  # spaces between, at most


@pytest.mark.fuzz
@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_a_bad_letter(body: bytes) -> None:
    """Whatever comes out of the network."""
    for _, read in LETTERS.values():
        with pytest.raises(BadLetter):
            read(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 1_000_000,
        b'{"payload":"' + b"A" * 100_000_000,
        b'{"payload":"' + b"A" * 600_000 + b'"}',
        b'{"a":' * 100_000,
        b'{"payload":' + b"9" * 500_000 + b"}",
        b'"' + b"\\u0041" * 100_000 + b'"',
        b"\xff" * 500_000,
        b"{}" + b" " * 500_000,
    ],
    ids=len,
)
def test_large_and_deep_bodies_are_refused_at_once(body: bytes) -> None:
    """Nothing is parsed that is too large, and nothing recurses as deep as it likes."""
    for _, read in LETTERS.values():
        assert refused(body, read).code in {"malformed", "too_large"}


# --- tickets -------------------------------------------------------------------------------------------------------


def test_a_ticket_brings_the_message_as_it_was_frozen() -> None:
    """Every field, to the byte, and the ticket beside it."""
    assert open_ticket(LETTER, KEYS) == (ENVELOPE, ticket(ENVELOPE))
    opened, proof = open_ticket(seal_ticket(HERE, REPLY, ticket(REPLY, answers=ENDED)), KEYS)
    assert (opened, proof.answers) == (REPLY, ENDED)


TEXT: Final = st.text(
    st.characters(exclude_categories=["Cs"]).filter(
        lambda c: ord(c) & 0xFFFE != 0xFFFE and not 0xFDD0 <= ord(c) <= 0xFDEF
    ),
    max_size=20,
)
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e9, 1e9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
IDS: Final = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", fullmatch=True)


@pytest.mark.fuzz
@given(
    st.dictionaries(TEXT, VALUES, max_size=4),
    st.dictionaries(TEXT, TEXT, max_size=3),
    IDS,
    st.none() | IDS,
    st.integers(0, 3),
    st.sampled_from(["command", "event", "task_request"]),
)
def test_whatever_can_be_sent_travels(
    payload: dict[str, Any], headers: dict[str, str], own: str, cause: str | None, priority: int, kind: str
) -> None:
    """Any payload and headers that admission freezes come out as the same bytes, with the same digest."""
    sealed = envelope(payload, headers, id=f"desk/{own}", cause=cause, priority=priority, type=kind)
    assert open_ticket(seal_ticket(HERE, sealed, ticket(sealed)), KEYS) == (sealed, ticket(sealed))


def test_a_payload_of_the_largest_size_travels() -> None:
    """As large as limits.payload_bytes says, and spelled so that it grows most on the way; one byte more does not."""
    room = 262_144 - len(b'{"a":"","b":[]}')
    for text in ('"' * (room // 2), "\N{SNOWMAN}" * (room // 3), "\x01" * (room // 6)):
        sealed = envelope({"a": text, "b": []}, {"h" * 8: '"' * 8184})
        letter = seal_ticket(HERE, sealed, ticket(sealed))
        assert len(letter) <= bytes_max()
        assert open_ticket(letter, KEYS)[0] == sealed
    over = envelope({"a": "x" * (room + 1), "b": []})
    assert refused(seal_ticket(HERE, over, ticket(over))).code == "too_large"
    assert open_ticket(seal_ticket(HERE, over, ticket(over)), KEYS, payload_bytes=300_000)[0] == over


def test_the_receivers_limits_count() -> None:
    """Deeper or larger than the receiver takes is refused by its name, whatever the sender's node let pass."""
    deep = envelope({"a": {"b": {"c": 1}}})
    letter = seal_ticket(HERE, deep, ticket(deep))
    assert open_ticket(letter, KEYS, depth=3)[0] == deep
    assert refused(letter, lambda body: open_ticket(body, KEYS, depth=2)).code == "too_deep"
    assert refused(letter, lambda body: open_ticket(body, KEYS, payload_bytes=18)).code == "too_large"


#: Other values for each field, by its place: each fits its pattern, so that only what belongs together refuses it.
OTHERS: Final[dict[tuple[str, str], Any]] = {
    ("message", "id"): "desk/order-8",
    ("message", "type"): "query",
    ("message", "priority"): 1,
    ("message", "sender"): "dusk",
    ("message", "tenant"): "globex",
    ("message", "recipient"): "broker",
    ("message", "recipient_tenant"): "acme",
    ("message", "topic"): "trips",
    ("message", "conversation"): "trip/8",
    ("message", "cause"): "trip/8",
    ("message", "created_us"): NOW + 1,
    ("message", "expires_us"): NOW,
    ("message", "hops"): 2,
    ("message", "headers"): '{"trace":"2"}',
    ("message", "payload"): '{"trip":8}',
    ("message", "salt"): "0" * 64,
    ("message", "commitment"): "0" * 64,
    ("message", "headers_commitment"): None,
    ("ticket", "origin"): THERE.name,
    ("ticket", "digest"): "0" * 64,
    ("ticket", "decision_id"): "desk/order-8#655e3",
}


@pytest.mark.parametrize("place", OTHERS, ids=" ".join)
def test_a_node_cannot_sign_what_does_not_belong_together(place: tuple[str, str]) -> None:
    """Any field of the message changed by a node that signs it so: the digest is recomputed from the bytes."""
    document = said(LETTER)
    document[place[0]][place[1]] = OTHERS[place]
    assert refused(signed_anew(document)).code in {"malformed", "identity_unproven"}


def test_every_field_of_a_message_is_among_those() -> None:
    """Fields that come later are tried too."""
    assert {name for part, name in OTHERS if part == "message"} == said(LETTER)["message"].keys()


WRONG: Final[list[Any]] = [None, "", 0, -1, 1.5, True, 2**53, "A" * 400, "\N{SNOWMAN}", [], {}]
BAD: Final[list[Any]] = [*WRONG, "desk\n", " desk", "x/y", "#", "ab", "0" * 33]


@pytest.mark.parametrize("kind", LETTERS)
def test_every_field_is_what_it_may_be(kind: str) -> None:
    """Each field of each letter gone, doubled under another name, or of any other kind: nothing gets through."""
    letter, read = LETTERS[kind]
    payload_type, signer = (decode(letter).payload_type, HERE if decode(letter).keyid == HERE.name else THERE)
    whole = said(letter)
    parts: list[tuple[str, ...]] = [()] + [(name,) for name, value in whole.items() if isinstance(value, dict)]
    for path in parts:
        for name in said_at(whole, path):
            for change in (gone, more, *(to(value) for value in BAD)):
                document = said(letter)
                change(said_at(document, path), name)
                body = signed_anew(document, signer, payload_type)
                if document != whole and (opened := believed(read, body)) is not None:
                    assert name in FREE, f"{path} {name} = {said_at(document, path).get(name)!r}"
                    assert opened != read(letter)


#: Fields that say what only the signer knows: another value that fits is another letter.
FREE: Final = frozenset(
    {"to", "seq", "revision", "attempts", "duration_us", "code", "error", "reply_id", "issued_us"}
) | {
    "answers",
    "expires_us",
    "at_us",
}


def believed(read: Callable[[bytes], object], body: bytes) -> object:
    """What is read, or None."""
    try:
        return read(body)
    except BadLetter:
        return None


def said_at(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """A part of a document."""
    for name in path:
        document = document[name]
    return document


def gone(part: dict[str, Any], name: str) -> None:
    """The field is missing."""
    del part[name]


def more(part: dict[str, Any], name: str) -> None:
    """There is one more."""
    part[name + "2"] = part[name]


def to(value: object) -> Callable[[dict[str, Any], str], None]:
    """The field has another value."""

    def change(part: dict[str, Any], name: str) -> None:
        part[name] = value

    return change


@pytest.mark.parametrize(
    "text",
    [
        '{"trip": 7}',
        '{"trip":7} ',
        '{"b":1,"a":2}',
        '{"a":1,"a":1}',
        '{"a":1.50}',
        '{"a":-0}',
        '{"a":1e2}',
        '{"a":"\\u0041"}',
        '{"a":NaN}',
        '{"a":9007199254740992}',
        '{"a":123456789012345678901234567890}',
        '{"a":1e400}',
        '{"a":"\\ud800"}',
        '{"a":"\\uffff"}',
        '["a"]',
        "7",
        "",
        "{",
    ],
)
def test_a_payload_is_its_own_canonical_form(text: str) -> None:
    """One payload has one text: another spelling is refused, though its node signed it with commitments that fit."""
    document = said(LETTER)
    sealed = envelope(body=text.encode())
    document["message"] |= {"payload": text, "headers": "{}", "headers_commitment": None}
    document["message"]["commitment"] = sealed.commitment
    document["ticket"]["digest"] = sealed.digest
    assert refused(signed_anew(document)).code == "malformed"


@pytest.mark.parametrize("text", ['{"a": "1"}', '{"a":1}', '{"b":"1","a":"2"}', "[]", '{"a":"1","a":"2"}', ""])
def test_headers_are_their_own_canonical_form(text: str) -> None:
    """The same for headers, which are strings."""
    document = said(LETTER)
    sealed = envelope(headers={"a": "1"}, headers_bytes=text.encode(), body=ENVELOPE.body)
    document["message"] |= {"headers": text, "headers_commitment": sealed.headers_commitment}
    document["message"]["commitment"] = sealed.commitment
    document["ticket"]["digest"] = sealed.digest
    assert refused(signed_anew(document)).code == "malformed"


@pytest.mark.parametrize("text", [b'{"v": 1}', b'{"v":1,"v":1}', b"[]", b"7", b"{", b"\xff", b"", b"[" * 5000])
def test_a_signed_text_is_canonical_json(text: bytes) -> None:
    """A node writes its letters in one way."""
    for kind, read in ((TICKET, open_ticket), (NOTICE, open_notice), (QUESTION, open_question), (ANSWER, open_answer)):
        with pytest.raises(BadLetter) as bad:
            read(encode(kind, text, HERE), KEYS)
        assert bad.value.code == "malformed"


@pytest.mark.parametrize(
    "id", ["other/order-7", "order-7", "desk", "desk/", "0190a0b0-0000-4000-8000-000000000000", "desk/-", "desk//x"]
)
def test_an_id_is_its_senders_or_made_by_a_bus(id: str) -> None:
    """A node cannot take the id of another agent's message."""
    sealed = envelope(id=id)
    assert refused(seal_ticket(HERE, sealed, ticket(sealed))).code in {"identity_unproven", "malformed"}
    made = envelope(id="0190a0b0-0000-7000-8000-000000000000")
    assert open_ticket(seal_ticket(HERE, made, ticket(made)), KEYS)[0] == made


def test_a_reply_brings_the_end_of_its_cause() -> None:
    """And of no other message."""
    other = ENDED._replace(message_id="desk/order-5")
    assert refused(seal_ticket(HERE, REPLY, ticket(REPLY, answers=other))).code == "malformed"


def test_a_ticket_is_good_until_it_expires() -> None:
    """From that microsecond on it is not."""
    proof = ticket(ENVELOPE)
    check_time(proof, proof.expires_us - 1)
    with pytest.raises(BadLetter) as bad:
        check_time(proof, proof.expires_us)
    assert bad.value.code == "expired"


def test_a_node_seals_only_what_is_its_own() -> None:
    """Under another's origin, with another's digest, or without its bytes: that is a mistake of the program."""
    for signer, sealed, proof in (
        (THERE, ENVELOPE, ticket(ENVELOPE)),
        (HERE, ENVELOPE, ticket(REPLY)),
        (HERE, ENVELOPE._replace(body=b""), ticket(ENVELOPE)),
    ):
        with pytest.raises(AssertionError):
            seal_ticket(signer, sealed, proof)


# --- notices and questions -----------------------------------------------------------------------------------------


def test_notices_questions_and_answers_come_as_they_were_written() -> None:
    """Every field."""
    assert open_notice(seal_notice(THERE, NOTE), KEYS) == NOTE
    assert open_question(seal_question(THERE, QUERY), KEYS) == QUERY
    assert open_answer(seal_answer(HERE, TOLD), KEYS) == TOLD
    for letter, _ in LETTERS.values():
        assert len(letter) <= LETTER_BYTES


def test_any_name_of_an_error_travels() -> None:
    """A class can have any name; the end of its message is told all the same."""
    for name in ("Fehler\N{SNOWMAN}", "x" * 10_000, "\ud800", ""):
        error = open_notice(seal_notice(THERE, NOTE._replace(error=name)), KEYS).error
        assert error is not None
        assert error.isascii()


def test_an_answer_is_of_the_node_that_was_asked_and_of_that_question() -> None:
    """An older answer, or that of another node, settles nothing."""
    check_answer(TOLD, QUERY)
    check_answer(TOLD._replace(open=False, state="expired"), QUERY)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"origin": THERE.name}, "identity_unproven"),
        ({"nonce": "0" * 32}, "replayed"),
        ({"message_id": "desk/order-8"}, "replayed"),
        ({"decision_id": "desk/order-7#2f"}, "replayed"),
    ]
    for change, code in changes:
        with pytest.raises(BadLetter) as bad:
            check_answer(TOLD._replace(**change), QUERY)
        assert bad.value.code == code


def test_an_answer_says_one_thing() -> None:
    """Open without an end, or an end."""
    for open_, state in ((True, "delivered"), (False, None)):
        letter = seal_answer(HERE, TOLD._replace(open=open_, state=state))
        assert refused(letter, lambda body: open_answer(body, KEYS)).code == "malformed"


# --- keys ----------------------------------------------------------------------------------------------------------


def test_a_vkey_is_that_of_the_log() -> None:
    """One form of public keys: written and read as log.vkey is."""
    assert write_vkey(HERE.name, HERE.key.public_key()) == HERE.verifier.vkey
    name, key = read_vkey(HERE.verifier.vkey + "\n")
    assert (name, key.public_bytes_raw()) == (HERE.name, HERE.key.public_key().public_bytes_raw())
    assert Verifier.from_vkey(write_vkey("acme/desk", key)).name == "acme/desk"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a+b",
        "a+b+c",
        "a+00000000+AQ==",
        HERE.verifier.vkey[1:],
        HERE.verifier.vkey[:-4],
        "+" + "0" * 8 + "+AA==",
    ],
)
def test_what_is_no_vkey_is_refused(text: str) -> None:
    """With one kind of error."""
    with pytest.raises(ValueError, match="vkey"):
        read_vkey(text)


def test_verify_takes_what_decode_gives() -> None:
    """The two halves of opening, for who needs the text alone."""
    assert orjson.loads(verify(decode(LETTER), (TICKET,), KEYS))["v"] == 1
