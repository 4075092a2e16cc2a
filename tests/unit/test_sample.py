"""A sample that anybody can draw again, and the population it is drawn from."""

from __future__ import annotations

import hashlib
import random

import pytest

from enhanced_agent_bus.audit import sample
from enhanced_agent_bus.audit.sample import Population, draw, lot


def test_a_sample_is_the_smallest_lots() -> None:
    """By hand: sha256 of SEED:SEQ for each, sorted, the first N; whatever the order in which records are read."""
    by_hand = sorted((hashlib.sha256(f"2026-Q4:{seq}".encode()).hexdigest(), seq) for seq in range(0, 900, 3))
    seqs = list(range(0, 900, 3))
    random.shuffle(seqs)
    assert draw(seqs, seed="2026-Q4", number=40) == by_hand[:40]
    assert lot("2026-Q4", by_hand[0][1]) == by_hand[0][0]


def test_a_larger_sample_holds_the_smaller_one() -> None:
    """Who needs ten more looks at ten more, and not at others."""
    assert draw(range(1000), seed="x", number=50)[:40] == draw(range(1000), seed="x", number=40)
    assert draw(range(3), seed="x", number=40) == draw(range(3), seed="x", number=3)
    assert draw(range(1000), seed="y", number=40) != draw(range(1000), seed="x", number=40)


def test_a_population_is_counted_by_what_there_is() -> None:
    """A record counts once for each rule that it names, and not where it has no such field."""
    counts = Population()
    reasons = [
        {"rule": "b", "code": "x"},
        {"rule": "b", "code": "y"},
        {"rule": "a", "code": "x"},
        {"rule": "", "code": ""},
    ]
    decided = {"kind": "decision", "constitution": "c0", "reasons": []}
    counts.add({**decided, "at": "2026-11-21T00", "verdict": "refuse", "code": "c", "reasons": reasons})
    counts.add({**decided, "at": "2026-11-20T23", "verdict": "allow", "code": None, "sender": "a", "recipient": "b"})
    counts.add({"kind": "closed", "at": "2026-11-21T01"})
    assert counts.size == 3
    assert counts.document() == {
        "kind": {"decision": 2, "closed": 1},
        "verdict": {"refuse": 1, "allow": 1},
        "code": {"c": 1},
        "rule": {"b": 1, "a": 1},
        "sender": {"a": 1},
        "pair": {"a to b": 1},
        "tenant": {},
        "type": {},
        "day": {"2026-11-20": 1, "2026-11-21": 2},
    }
    assert counts.constitutions == {"c0"}


def test_pairs_beyond_those_that_are_kept_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log in which all talk to all takes no more memory than that, and the sum stays right."""
    monkeypatch.setattr(sample, "PAIRS_MAX", 2)
    counts = Population()
    for number in (1, 2, 3, 4, 1):
        counts.add({"kind": "checkpoint", "at": "2026-11-21", "sender": "a", "recipient": f"b{number}"})
    assert counts.document()["pair"] == {"a to b1": 2, "others": 2, "a to b2": 1}
