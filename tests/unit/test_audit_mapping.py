"""Mappings of frameworks: what is shipped can be read, and what is wrong in one of a user's own is named."""

from __future__ import annotations

import json

import pytest

from enhanced_agent_bus.audit.mapping import BadMapping, read, shipped, shipped_text
from enhanced_agent_bus.audit.query import parse
from enhanced_agent_bus.audit.report import MEANS, Found, Setup, report
from enhanced_agent_bus.audit.sample import draw
from enhanced_agent_bus.audit.verify import Report

OURS = """
id = "ours"
name = "Ours"
source = "the handbook"

[[control]]
id = "1"
title = "Decided"
asks = "Everything is decided."
[[control.evidence]]
says = "decisions"
query = "kind:decision"
configured = ["always"]
"""


@pytest.mark.parametrize("framework", shipped())
def test_each_shipped_mapping_can_be_read(framework: str) -> None:
    """Its id is the name of its file, and it says of some controls that no log can show them."""
    found = read(shipped_text(framework))
    assert found.id == framework
    assert any(control.organisational for control in found.controls)
    assert any(control.evidence for control in found.controls)


def test_nothing_shipped_claims_compliance() -> None:
    """No mapping, and none of the four words, says that anything is fulfilled."""
    texts = [*map(shipped_text, shipped()), *MEANS, *MEANS.values()]
    assert not [text for text in texts if "complian" in text.lower().replace("a compliance team", "")]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('id = "ours"', "id = ", "not TOML"),
        ('source = "the handbook"', "", "needs a text source"),
        ('source = "the handbook"', 'source = "x"\nowner = "me"', "'owner'"),
        ('title = "Decided"', "title = 7", "needs a text title"),
        ('query = "kind:decision"', "", "either query or check"),
        ('query = "kind:decision"', 'query = "kid:decision"', "nearest is 'kind'"),
        ('query = "kind:decision"', 'check = "everything"', "check is one of"),
        ('configured = ["always"]', "", "needs configured"),
        ('configured = ["always"]', 'configured = ["sometimes"]', "a condition is"),
        ('asks = "Everything is decided."', 'asks = "x"\norganisational = "y"', "either [[control.evidence]]"),
        ("[[control]]", "[[controls]]", "'controls'"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, said: str) -> None:
    """One sentence with the place and what belongs there."""
    assert old in OURS
    with pytest.raises(BadMapping) as raised:
        read(OURS.replace(old, new))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_control_twice_is_named() -> None:
    """Two rows of one id could not be told apart."""
    with pytest.raises(BadMapping, match="control 1 stands there twice"):
        read(OURS + OURS[OURS.index("[[control]]") :])


def test_the_four_words() -> None:
    """Found: evidenced. Else configured, or not configured with what is lacking. Nothing to find: organisational."""
    controls = """
[[control]]
id = "2"
title = "Held"
asks = "x"
[[control.evidence]]
says = "holds"
query = "verdict:hold"
configured = ["constitution:hold", "without:no_witness"]
[[control]]
id = "3"
title = "Refused"
asks = "x"
[[control.evidence]]
says = "refusals"
query = "verdict:refuse"
configured = ["always"]
[[control]]
id = "4"
title = "People"
asks = "x"
organisational = "people"
"""
    record = b'{"v":1,"seq":0,"kind":"decision","at":"2026-11-21T09:00:00.000000Z","verdict":"allow","reasons":[]}'
    setup = Setup(frozenset({"no_witness"}), frozenset({"hold"}), frozenset())
    found = report(read(OURS + controls), [(json.loads(record), record)], setup=setup, verified=Report(), seed="1")
    assert [(one["id"], one["status"]) for one in found["controls"]] == [
        ("1", "evidenced"),
        ("2", "not configured"),
        ("3", "configured"),
        ("4", "organisational"),
    ]
    assert found["controls"][1]["evidence"][0]["lacks"] == ["without:no_witness"]
    assert found["statuses"] == dict.fromkeys(MEANS, 1)


def test_the_sample_is_that_of_the_smallest_lots() -> None:
    """As `eab audit sample` draws it, and the same whatever comes between."""
    found = Found(parse(["kind:decision"]), "7")
    for seq in range(200):
        found.add({"seq": seq, "kind": "decision", "at": ""})
    assert [one["seq"] for one in found.sample()] == sorted(seq for _, seq in draw(range(200), seed="7", number=3))
