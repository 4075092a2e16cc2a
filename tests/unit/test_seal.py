"""The envelope's digest and commitments, recomputed as the documentation says; ids and randomness."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.admission.seal import SALT_BYTES, Randomness, commitment, from_instant, instant, seal
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.ports import AgentRow
from enhanced_agent_bus.routing.registry import party_of

DESK = party_of(AgentRow("desk", "acme", (), (), (), "latest", live=True))
BOOKER = party_of(AgentRow("booker", "globex", (), (), (), "latest", live=True))
FIELDS: dict[str, Any] = {
    "id": "desk/order-7",
    "type": "command",
    "priority": 2,
    "sender": DESK,
    "recipient": BOOKER,
    "topic": None,
    "conversation": "trip/7",
    "cause": None,
    "created_us": 1_700_000_000_000_000,
    "expires_us": 1_700_000_001_000_000,
    "hops": 3,
    "headers": {},
    "headers_bytes": b"{}",
    "body": b'{"a":1}',
    "salt": b"s" * SALT_BYTES,
}


def sealed(**changes: Any) -> Envelope:
    """The envelope of FIELDS, with changes."""
    return seal(**{**FIELDS, **changes})


def digest_of(envelope: Envelope) -> str:
    """As documented: sha256 of the canonical JSON of the envelope, the commitment in the payload's place."""
    return hashlib.sha256(
        rfc8785.dumps(
            {
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
                "headers": envelope.headers_commitment,
                "payload": envelope.commitment,
            }
        )
    ).hexdigest()


IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", fullmatch=True)


@given(IDS, IDS, st.none() | IDS, st.none() | IDS, st.integers(0, 3), st.integers(0, 10_000), st.binary(max_size=20))
def test_anyone_can_recompute_the_digest(
    message_id: str, conversation: str, cause: str | None, topic: str | None, priority: int, hops: int, body: bytes
) -> None:
    """With any ids that pass, with and without topic, cause and headers."""
    for headers, raw in (({}, b"{}"), ({"a": "b"}, b'{"a":"b"}')):
        envelope = sealed(
            id=message_id,
            conversation=conversation,
            cause=cause,
            topic=topic,
            priority=priority,
            hops=hops,
            body=body,
            headers=headers,
            headers_bytes=raw,
        )
        assert envelope.commitment == hashlib.sha256(envelope.salt + body).hexdigest()
        assert envelope.headers_commitment == (hashlib.sha256(envelope.salt + raw).hexdigest() if headers else None)
        assert envelope.digest == digest_of(envelope)


def test_every_field_is_in_the_digest() -> None:
    """A change of any one field changes the digest, the salt's too."""
    changes: dict[str, Any] = {
        "id": "desk/order-8",
        "type": "query",
        "priority": 1,
        "sender": BOOKER,
        "recipient": DESK,
        "topic": "trips",
        "conversation": "trip/8",
        "cause": "x",
        "created_us": 1,
        "expires_us": 2,
        "hops": 4,
        "body": b'{"a":1.0}',
        "salt": b"t" * SALT_BYTES,
    }
    digests = {sealed().digest, *(sealed(**{name: value}).digest for name, value in changes.items())}
    digests.add(sealed(headers={"a": "b"}, headers_bytes=b'{"a":"b"}').digest)
    assert len(digests) == len(changes) + 2


def test_the_same_payload_has_other_commitments_each_time() -> None:
    """Nobody can guess a small payload from its commitment: the salt is 32 random bytes, never twice the same."""
    randomness = Randomness()
    salts = [randomness.take(SALT_BYTES) for _ in range(1000)]
    assert {len(salt) for salt in salts} == {32}
    assert len({commitment(salt, b"{}") for salt in salts}) == 1000


def test_randomness_is_what_the_source_gave() -> None:
    """Each byte of the source is handed out at most once."""
    given_out: list[bytes] = []

    def source(count: int) -> bytes:
        given_out.append(os.urandom(count))
        return given_out[-1]

    randomness = Randomness(source)
    taken = [randomness.take(10 + number % 50) for number in range(2000)]
    assert len(set(taken)) == len(taken)
    assert all(any(one in pool for pool in given_out) for one in taken)


def test_a_forked_child_draws_its_own() -> None:
    """Parent and child never share what is left of a pool."""
    randomness = Randomness()
    randomness.take(SALT_BYTES)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, randomness.take(SALT_BYTES))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, SALT_BYTES)
    os.close(read)
    os.close(write)
    assert len(theirs) == SALT_BYTES
    assert theirs != randomness.take(SALT_BYTES)


@given(st.integers(0, (1 << 48) * 1000 - 1))
def test_ids_are_uuid_version_7(now_us: int) -> None:
    """RFC 9562 §5.7: the time in milliseconds, version 7, the variant, and lower-case hex."""
    text = Randomness().uuid7(now_us)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", text)
    value = uuid.UUID(text)
    assert value.version == 7
    assert value.variant == uuid.RFC_4122
    assert value.int >> 80 == now_us // 1000


def test_ids_of_later_milliseconds_sort_later() -> None:
    """Ids are ordered by the time they were made; within one millisecond they only differ."""
    randomness = Randomness()
    made = [randomness.uuid7(1_700_000_000_000_000 + number * 1000) for number in range(1000)]
    assert made == sorted(made)
    assert len({randomness.uuid7(1_700_000_000_000_000) for _ in range(1000)}) == 1000


@given(st.integers(0, 253_402_300_799_999_999))
def test_instants_come_back(us: int) -> None:
    """RFC 3339 UTC with six decimals, and back to the same microsecond."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", instant(us))
    assert from_instant(instant(us)) == us


@pytest.mark.parametrize("text", ["2026-11-21T10:00:00", "yesterday", ""])
def test_an_instant_without_a_zone_is_none(text: str) -> None:
    """A time without a zone names no instant."""
    with pytest.raises(ValueError, match=r"zone|format"):
        from_instant(text)
