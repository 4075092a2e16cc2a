"""Cache keys: two questions with one key have one answer, so what a policy can tell apart has keys apart."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.admission.chain import Active
from enhanced_agent_bus.admission.facts import FactBook
from enhanced_agent_bus.admission.seal import seal
from enhanced_agent_bus.admission.sight import Case, Sight
from enhanced_agent_bus.ports import AgentRow, Loaded
from enhanced_agent_bus.routing.registry import party_of
from enhanced_agent_bus.verdict import Addressed, Remember

AT = datetime(2026, 11, 21, 11, 39, tzinfo=UTC)


def active(*paths: str) -> Active:
    """A constitution that reads these paths; "input" is the whole."""
    read_paths = tuple(tuple(path.split(".")[1:]) for path in paths)
    loaded = Loaded("d" * 64, 1, "t", None, False, ("r",), read_paths, True, False, "folder")  # noqa: FBT003 - a row
    return Active(loaded)


def agent(agent_id: str, tenant: str = "acme", *roles: str) -> Any:
    """A party with these roles."""
    return party_of(AgentRow(agent_id, tenant, roles, (), (), "latest", live=True))


DESK, BOOKER = agent("desk"), agent("booker")


def key(
    constitution: Active, payload: Any = None, *, book: FactBook | None = None, at: datetime = AT, **changes: Any
) -> bytes:
    """The key of a message from desk to booker, with changes."""
    body = orjson.dumps(payload or {})
    fields: dict[str, Any] = {
        "id": "m1",
        "type": "command",
        "priority": 1,
        "sender": DESK,
        "recipient": BOOKER,
        "topic": None,
        "conversation": "c",
        "cause": None,
        "created_us": 1,
        "expires_us": 2,
        "hops": 0,
        "headers": {},
        "headers_bytes": b"{}",
        "body": body,
        "salt": b"s" * 32,
    }
    cause = changes.pop("cause_document", None)
    attempt = changes.pop("attempt", 1)
    fields |= changes
    case = Case(Addressed(seal(**fields), fields["sender"], fields["recipient"]), cause=cause, attempt=attempt)
    sight = Sight(case, constitution, book or FactBook(lambda *_: {}), at, 1)
    return constitution.reading.key(sight, orjson.loads(body) if constitution.reading.payload else None)


DISTINCT: list[Any] = [
    {},
    {"a": None},
    {"a": 1},
    {"a": 1.0},
    {"a": True},
    {"a": "1"},
    {"a": False},
    {"a": 0},
    {"a": []},
    {"a": {}},
    {"a": ""},
    {"a": [1]},
    {"a": {"b": 1}},
    {"a": [None]},
    {"a": [[]]},
    {"a": "null"},
]


@pytest.mark.parametrize("path", ["input", "input.message", "input.message.payload", "input.message.payload.a"])
def test_types_and_absence_are_kept_apart(path: str) -> None:
    """Absent, null, 1, 1.0, true, "1", empty and nested: each has a key of its own, however much is read."""
    constitution = active(path)
    assert len({key(constitution, payload) for payload in DISTINCT}) == len(DISTINCT)


def test_what_is_not_read_makes_no_difference() -> None:
    """Two messages that differ only in what the policy does not read share a key: that is what the cache is for."""
    constitution = active("input.message.payload.a", "input.sender.roles")
    one = key(constitution, {"a": 1, "b": 2}, id="m1", conversation="x", priority=3)
    assert one == key(constitution, {"a": 1, "b": 3}, id="m2", conversation="y", priority=0)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("input.message.id", {"id": "m2"}),
        ("input.message.type", {"type": "query"}),
        ("input.message.priority", {"priority": 2}),
        ("input.message.topic", {"topic": "trips"}),
        ("input.message.headers", {"headers": {"a": "b"}}),
        ("input.message.headers.a", {"headers": {"a": "b"}}),
        ("input.message.conversation", {"conversation": "d"}),
        ("input.message.hops", {"hops": 1}),
        ("input.message.attempt", {"attempt": 2}),
        ("input.message.size", {"body": b'{"a":1}'}),
        ("input.sender.id", {"sender": agent("desk2")}),
        ("input.sender.tenant", {"sender": agent("desk", "globex")}),
        ("input.sender.roles", {"sender": agent("desk", "acme", "chief")}),
        ("input.recipient.id", {"recipient": agent("booker2")}),
        ("input.recipient.tenant", {"recipient": agent("booker", "globex")}),
        ("input.recipient", {"recipient": agent("booker", "acme", "worker")}),
        ("input.cause.type", {"cause_document": {"id": "x", "type": "query", "sender": "a", "tenant": "b"}}),
        ("input.cause", {"cause_document": {"id": "x", "type": "query", "sender": "a", "tenant": "b"}}),
        ("input.clock.minute", {"at": AT.replace(minute=40)}),
        ("input.clock", {"at": AT.replace(day=22)}),
    ],
)
def test_every_field_that_is_read_is_in_the_key(path: str, change: dict[str, Any]) -> None:
    """A difference in one field gives another key where that field is read, alone, in its parent, or as the whole."""
    parent = path.rsplit(".", 1)[0]
    for constitution in (active(path), active(parent), active("input"), active("input.message.payload", path)):
        assert key(constitution) == key(constitution)
        assert key(constitution) != key(constitution, **change)


def test_sender_and_recipient_are_not_mixed_up() -> None:
    """Who sends to whom is kept apart from the other way round, whatever of both is read."""
    for paths in (("input.sender.id", "input.recipient.id"), ("input.sender", "input.recipient"), ("input",)):
        constitution = active(*paths)
        assert key(constitution) != key(constitution, sender=BOOKER, recipient=DESK)


def test_a_later_registration_is_looked_at_anew() -> None:
    """One id with other roles is another party: nothing is kept by name."""
    constitution = active("input.sender.roles")
    before, after = agent("desk", "acme", "chief"), agent("desk", "acme")
    assert key(constitution, sender=before) != key(constitution, sender=after)
    assert key(constitution, sender=after) == key(constitution, sender=agent("desk", "acme"))


@pytest.mark.parametrize("path", ["input", "input.facts", "input.facts.sender", "input.facts.sender.spent"])
def test_facts_that_are_read_are_in_the_key(path: str) -> None:
    """A fact that changes changes the key; and the scopes that are read are named, so that they can be locked."""
    constitution = active(path)
    book = FactBook(lambda *_: {})
    keys = {key(constitution, book=book)}
    for value in (1, 2):
        book.change(f"m{value}", [], [Remember("sender", "spent", value)], {"sender": ("agent", "desk")})
        keys.add(key(constitution, book=book))
    assert len(keys) == 3
    assert "sender" in constitution.reading.fact_scopes


def test_facts_that_are_not_read_are_not_in_the_key() -> None:
    """Another scope, or none: the cache is not spoilt by facts that no rule looks at."""
    book = FactBook(lambda *_: {})
    for path in ("input.facts.tenant.spent", "input.message.type"):
        constitution = active(path)
        before = key(constitution, book=book)
        book.owner("agent", "desk").sent += 1
        book.change("m", [], [Remember("sender", "spent", add=1)], {"sender": ("agent", "desk")})
        assert key(constitution, book=book) == before
    assert active("input.facts.tenant.spent").reading.fact_scopes == {"tenant"}
    assert active("input.message.type").reading.fact_scopes == frozenset()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, 1.5])
    | st.sampled_from(["", "1", "a", "]", '"']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
PAYLOADS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


def exactly(value: Any) -> bytes:
    """JSON text, which keeps types apart where Python's `==` does not."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


@given(PAYLOADS, PAYLOADS)
def test_one_key_means_one_reading(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Keys are equal exactly where the values at the paths that are read are, with absence and types."""
    constitution = active("input.message.payload.a", "input.message.payload.b.a", "input.message.type")

    def read(payload: dict[str, Any]) -> list[Any]:
        inner = payload.get("b")
        below = [inner["a"]] if isinstance(inner, dict) and "a" in inner else []
        return [[payload["a"]] if "a" in payload else [], below]

    assert (key(constitution, one) == key(constitution, two)) == (exactly(read(one)) == exactly(read(two)))
