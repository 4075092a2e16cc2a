"""The words by which records are found, as a table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.audit.query import ALIASES, FIELDS, BadQuery, parse
from enhanced_agent_bus.ledger.rows import written

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DECISION: dict[str, Any] = {
    "v": 1,
    "seq": 17,
    "kind": "decision",
    "at": "2026-11-21T11:00:00.000000Z",
    "message_id": "desk/order-7",
    "cause": None,
    "sender": "desk",
    "tenant": "acme",
    "recipient": "booker",
    "priority": 2,
    "verdict": "refuse",
    "code": "policy_denied",
    "reasons": [{"rule": "daily_budget", "code": "over_day_budget"}, {"rule": "office_hours", "code": "closed"}],
    "decision_id": "desk/order-7#a1",
    "constitution": "ab" * 32,
    "revision": 7,
    "engine": {"name": "embedded", "opa": "1.22.2"},
    "input": {"sender": {"roles": ["planner", "chief"]}, "late": True},
    "eval_us": 290,
}
OUTCOME: dict[str, Any] = {
    "seq": 18,
    "kind": "outcome",
    "at": "2026-11-21T11:30:00.000000Z",
    "message_id": "desk/order-7",
    "state": "failed",
    "error": {"type": "Fehler\u2028\x1b[31m"},
    "duration_us": 1500,
}
AGENT: dict[str, Any] = {
    "seq": 3,
    "kind": "agent",
    "at": "2026-11-20T00:00:00.000000Z",
    "event": "registered",
    "agent": "desk",
    "roles": ["planner"],
}
POLICY: dict[str, Any] = {"seq": 1, "kind": "policy", "at": "2026-11-19T00:00:00.000000Z", "digest": "ab" * 32}
RECORDS = [POLICY, AGENT, DECISION, OUTCOME]


def found(query: str) -> list[int]:
    """The seqs of the records above that a query finds, read from the bytes that the ledger would store."""
    asked = parse([query], now=NOW)
    bodies = [b"{" + written(record["kind"], record)[1:] for record in RECORDS]
    seqs = [record["seq"] for body in bodies if (record := asked.read(body)) is not None]
    by_bytes = [orjson.loads(body)["seq"] for body in bodies if all(needle in body for needle in asked.needles)]
    assert set(seqs) <= set(by_bytes), "bytes that a record is thrown out for must not stand in one that is found"
    return seqs


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ("", [1, 3, 17, 18]),
        ("kind:decision", [17]),
        ("-kind:decision", [1, 3, 18]),
        ("verdict:refuse rule:daily_budget", [17]),
        ("verdict:refuse rule:same_tenant", []),
        ("rule:office_hours", [17]),
        ("code:closed", [17]),
        ("code:policy_denied", [17]),
        ("agent:desk", [3, 17]),
        ("agent:booker", [17]),
        ("agent:desk*", [3, 17]),
        ("agent:*sk", [3, 17]),
        ("agent:d*k", [3, 17]),
        ('agent:"desk*"', []),
        ("agent:des", []),
        ("sender:desk -recipient:booker", []),
        ("message:desk/order-7", [17, 18]),
        ("id:desk/*", [17, 18]),
        ("decision:desk/order-7#a1", [17]),
        (f"constitution:{'ab' * 32}", [1, 17]),
        ("constitution:abab*", [1, 17]),
        ("revision:7", [17]),
        ("revision:8", []),
        ("engine:embedded", [17]),
        ("engine.opa:1.22.2", [17]),
        ("input.sender.roles:chief", [17]),
        ("input.late:true", [17]),
        ("roles:planner", [3]),
        ("cause:*", []),
        ("-cause:*", [1, 3, 17, 18]),
        ("state:*", [18]),
        ("engine:*", [17]),
        ("priority:>=2", [17]),
        ("priority:>2", []),
        ("seq:<=3", [1, 3]),
        ("-seq:<=3", [17, 18]),
        ("duration_us:>1e3", [18]),
        ("since:45m", [18]),
        ("since:1h", [17, 18]),
        ("until:1h", [1, 3]),
        ("since:2026-11-20 until:2026-11-21", [3]),
        ("since:2026-11-21T12:30:00+01:00", [18]),
        ("since:1w since:45m", [18]),
        ("until:1h until:2d", [1]),
        ("day:2026-11-21", [17, 18]),
        ("day:2026-11-2*", [3, 17, 18]),
        ("-day:2026-11-21", [1, 3]),
        ("order-7", [17, 18]),
        ("-order-7", [1, 3]),
        ("order-7 booker", [17]),
        ('"order-7 booker"', []),
        ("desk/order-7", [17, 18]),
        ('"order-7#a1"', [17]),
        ("Fehler", [18]),
        ('error:"Fehler\u2028\x1b[31m"', [18]),
        ('error.type:"Fehler\u2028\x1b[31m"', [18]),
        ("error:Fehler*", [18]),
    ],
)
def test_what_a_query_finds(query: str, seqs: list[int]) -> None:
    """Every term must match; a minus turns one round; null is nothing; no bytes are asked for that are not there."""
    assert found(query) == seqs


@pytest.mark.parametrize(
    ("query", "message", "remedy"),
    [
        ("verdit:refuse", "no field 'verdit'; the nearest is 'verdict'", "verdict:refuse"),
        ("ruel:x", "the nearest is 'rule'", '"ruel:x"'),
        ("desk:1", "no field 'desk'", '"desk:1"'),
        ("agent.name:x", "no field 'agent.name'", '"agent.name:x"'),
        ("verdict:", "has no value", "verdict:*"),
        ('verdict:""', "has no value", "verdict:*"),
        ('verdict:"refuse', "not closed", '\\"'),
        ('"two words', "not closed", '\\"'),
        ('"two"words', "not closed", '\\"'),
        ("-", "nothing to look for", "minus"),
        ('""', "nothing to look for", "quotes"),
        ("since:soon", "'soon' is no time", "24h"),
        ("since:999999999w", "is no time", "24h"),
        ("-since:1h", "cannot be negated", "until:1h"),
        ("priority:>=high", "'high' is no number", ">=10"),
        ("priority:>nan", "'nan' is no number", ">=10"),
    ],
)
def test_a_query_that_means_nothing_says_what_was_meant(query: str, message: str, remedy: str) -> None:
    """Never an empty answer for a word that was misspelt."""
    with pytest.raises(BadQuery) as refused:
        parse([query], now=NOW)
    assert message in refused.value.message
    assert remedy in refused.value.remedy


def test_words_are_one_query_together_or_apart() -> None:
    """`'a b'` in one argument and `a b` in two are the same question."""
    assert str(parse(["agent:desk verdict:refuse"])) == str(parse(["agent:desk", "verdict:refuse"]))


VALUES = st.text(min_size=1).filter(lambda text: "\x00" not in text)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([*sorted(FIELDS), *ALIASES, None]), VALUES), max_size=4))
def test_a_query_written_out_is_the_same_query(terms: list[tuple[bool, str | None, str]]) -> None:
    """Whatever stands in quotes comes out of them as it went in, so that a sample can say how it was drawn."""
    quoted = ['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for _, _, value in terms]
    words = [
        f"{'-' if minus else ''}{f'{field}:' if field else ''}{value}"
        for (minus, field, _), value in zip(terms, quoted, strict=True)
    ]
    query = parse(words)
    assert [(term.negated, term.field, term.value) for term in query.terms] == terms
    again = parse([str(query)])
    assert (again.terms, again.needles) == (query.terms, query.needles)


TEXTS = st.text(min_size=1, max_size=8)


@given(st.dictionaries(st.sampled_from(["sender", "state", "code", "key"]), TEXTS, min_size=1), st.data())
def test_a_record_is_found_by_what_it_says(fields: dict[str, str], data: st.DataObject) -> None:
    """Whatever the text: by its field and by itself, in the bytes as they are stored."""
    record = {"at": "2026-11-21T11:00:00.000000Z", **fields}
    body = b"{" + written("fact", record)[1:]
    name = data.draw(st.sampled_from(sorted(fields)))
    text = '"' + fields[name].replace("\\", "\\\\").replace('"', '\\"') + '"'
    for query in (f"{name}:{text}", text):
        asked = parse([query])
        assert asked.read(body) == record
        assert all(needle in body for needle in asked.needles)
        assert parse([f"-{query}"]).read(body) is None
