"""From an engine's answer to a ruling: whatever is not the declared shape refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.admission.answer import REASONS_MAX, TEXT_CHARS_MAX, ruling
from enhanced_agent_bus.verdict import Answer, Hold, Refusal, Remember, Ruling


def told(document: Any) -> Ruling | Refusal:
    """What becomes of an answer that is JSON."""
    return ruling(Answer(None, json.dumps(document).encode()))


def test_true_alone_allows() -> None:
    """The smallest allow, and the smallest no."""
    assert told({"allow": True}) == Ruling(allow=True)
    assert told({"allow": False}) == Ruling(allow=False)


def test_every_part_of_an_answer_arrives() -> None:
    """Reasons, holds, facts and obligations are read as contract §4 writes them."""
    answer = told(
        {
            "allow": True,
            "reasons": [{"rule": "spending", "code": "large", "message": "m", "remedy": "r"}],
            "hold": [{"rule": "spending", "approvers": 2, "roles": ["chief"], "expires_in": 60}],
            "remember": [
                {"scope": "sender", "key": "spent", "add": 5},
                {"scope": "recipient", "key": "label", "value": "secret"},
                {"scope": "tenant", "key": "ratio", "value": 1.5},
            ],
            "obligations": [
                {"type": "handler_timeout", "seconds": 2},
                {"type": "deliver_only_to", "agent": "booker"},
            ],
        }
    )
    assert isinstance(answer, Ruling)
    assert answer.allow
    assert answer.reasons[0].code == "large"
    assert answer.hold == (Hold("spending", 2, ("chief",), 60.0),)
    assert answer.remember == (
        Remember("sender", "spent", None, 5),
        Remember("recipient", "label", "secret", None),
        Remember("tenant", "ratio", 1.5, None),
    )
    assert [item["type"] for item in answer.obligations] == ["handler_timeout", "deliver_only_to"]


MALFORMED = [
    b"{}",
    b"null",
    b"true",
    b"1",
    b"[]",
    b'"true"',
    b"[true]",
    b'{"allow":"true"}',
    b'{"allow":1}',
    b'{"allow":1.0}',
    b'{"allow":null}',
    b'{"allow":[true]}',
    b'{"allow":{}}',
    b'{"Allow":true}',
    b'{"allow":true,"allowed":true}',
    b'{"allow":false,"allow":true}',
    b'{"allow":true,"allow":true}',
    b'{"allow":true,"reasons":[{"rule":"a","rule":"b"}]}',
    b'{"result":{"allow":true}}',
    b'{"allow":true',
    b'{"allow":true}}',
    b'{"allow":true} {"allow":true}',
    b'{"allow":tru}',
    b"{'allow':true}",
    b"\xff\xfe",
    b'\xef\xbb\xbf{"allow":true}',
    b"[" * 100_000,
    b'{"allow":true,"reasons":null}',
    b'{"allow":true,"reasons":{}}',
    b'{"allow":true,"reasons":["no"]}',
    b'{"allow":true,"reasons":[{"code":"x"}]}',
    b'{"allow":true,"reasons":[{"rule":1}]}',
    b'{"allow":true,"reasons":[{"rule":"a","more":1}]}',
    b'{"allow":true,"reasons":[{"rule":"\\ud800"}]}',
    b'{"allow":true,"hold":true}',
    b'{"allow":true,"hold":[{"rule":"r"}]}',
    b'{"allow":true,"hold":[{"rule":"r","roles":[]}]}',
    b'{"allow":true,"hold":[{"rule":"r","roles":["a"],"approvers":0}]}',
    b'{"allow":true,"hold":[{"rule":"r","roles":["a"],"approvers":"1"}]}',
    b'{"allow":true,"hold":[{"rule":"r","roles":["a"],"approvers":true}]}',
    b'{"allow":true,"hold":[{"rule":"r","roles":["a"],"expires_in":0}]}',
    b'{"allow":true,"hold":[{"rule":"r","roles":["a"],"expires_in":1e300}]}',
    b'{"allow":true,"hold":[{"rule":"r","roles":["a"],"expires_in":1e999}]}',
    b'{"allow":true,"remember":[{"scope":"all","key":"k","add":1}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k"}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k","add":1,"value":1}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k","value":true}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k","value":["a"]}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k","value":1e999}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k","value":NaN}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k","add":1.5}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k","add":"1"}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":"k","add":9007199254740992}]}',
    b'{"allow":true,"remember":[{"scope":"sender","key":7,"add":1}]}',
    b'{"allow":true,"obligations":["redact"]}',
    b'{"allow":true,"obligations":[{}]}',
    b'{"allow":true,"obligations":[{"type":7}]}',
    b'{"allow":true,"obligations":[{"type":[]}]}',
    b'{"allow":true,"obligations":[{"type":"handler_timeout"}]}',
    b'{"allow":true,"obligations":[{"type":"handler_timeout","seconds":0}]}',
    b'{"allow":true,"obligations":[{"type":"handler_timeout","seconds":"5"}]}',
    b'{"allow":true,"obligations":[{"type":"handler_timeout","seconds":true}]}',
    b'{"allow":true,"obligations":[{"type":"deliver_only_to"}]}',
    b'{"allow":true,"obligations":[{"type":"deliver_only_to","agent":null}]}',
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: body[:70].decode("ascii", "replace"))
def test_any_other_shape_refuses(body: bytes) -> None:
    """Whatever is not the declared shape is policy_malformed, with something to do."""
    answer = ruling(Answer(None, body))
    assert isinstance(answer, Refusal), answer
    assert answer.code == "policy_malformed"
    assert answer.remedy
    assert len(answer.message) < 500


def test_no_answer_and_errors_refuse() -> None:
    """An empty answer is undefined; each of the engine's own codes is a refusal of that code."""
    assert isinstance(empty := ruling(Answer(None, b"")), Refusal)
    assert empty.code == "policy_undefined"
    for code in ("policy_undefined", "policy_error", "policy_timeout", "policy_unavailable"):
        answer = ruling(Answer(code, b'{"allow":true}', detail="why"))
        assert isinstance(answer, Refusal)
        assert (answer.code, bool(answer.message), bool(answer.remedy)) == (code, True, True)


def test_an_unknown_obligation_refuses_an_allow_only() -> None:
    """A condition that this bus cannot keep refuses; a no stays a no."""
    answer = told({"allow": True, "obligations": [{"type": "encrypt", "path": "/a"}]})
    assert isinstance(answer, Refusal)
    assert answer.code == "obligation_unknown"
    assert isinstance(told({"allow": False, "obligations": [{"type": "encrypt", "path": "/a"}]}), Ruling)


def test_a_sender_is_told_where_a_built_in_failed_and_not_on_what() -> None:
    """OPA quotes the value that a built-in failed on; the sender sees file and line alone."""
    detail = 'bus/rules/net/net.rego:7: eval_builtin_error: net.cidr_contains: invalid CIDR address: "the secret"'
    answer = ruling(Answer("policy_error", detail=detail))
    assert isinstance(answer, Refusal)
    assert "net.rego:7" in answer.message
    assert "secret" not in answer.message


def test_a_rule_with_two_values_is_told_from_a_built_in_that_failed() -> None:
    """The code stays policy_error; the sender sees both places, and what to do is another thing."""
    text = "data.bus.rules.it.code got two values at once; it is defined at"
    what = f"{text} bus/rules/it/it.rego:7 and bus/rules/it/it.rego:9"
    answer = ruling(Answer("policy_error", detail=f"bus/rules/it/it.rego:9: eval_conflict_error: {what}"))
    assert isinstance(answer, Refusal)
    assert answer.code == "policy_error"
    assert answer.message == "a rule got two values at once, at bus/rules/it/it.rego:9 and bus/rules/it/it.rego:7"
    assert "exclude each other" in answer.remedy


def test_long_words_are_cut() -> None:
    """Reasons are capped in number and length, so that every record has room."""
    reason = {"rule": "r" * 5000, "code": "c" * 5000, "message": "m" * 5000, "remedy": "y" * 5000}
    answer = told({"allow": False, "reasons": [reason] * 500})
    assert isinstance(answer, Ruling)
    assert len(answer.reasons) == REASONS_MAX
    assert {len(answer.reasons[0].message), len(answer.reasons[0].remedy)} == {TEXT_CHARS_MAX}
    assert len(answer.reasons[0].rule) <= 64


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, st.dictionaries(st.sampled_from(["reasons", "hold", "remember", "obligations", "x"]), JSON, max_size=3))
def test_only_the_value_true_ever_allows(value: Any, rest: dict[str, Any]) -> None:
    """Whatever else is in the document: an allow comes of `"allow": true` and of nothing else."""
    answer = told({"allow": value, **rest})
    assert isinstance(answer, Refusal) or answer.allow is value
    assert not (isinstance(answer, Ruling) and "x" in rest)


@given(st.binary(max_size=40))
def test_no_bytes_raise(body: bytes) -> None:
    """Any bytes are a ruling or a refusal."""
    assert isinstance(ruling(Answer(None, body)), Ruling | Refusal)
