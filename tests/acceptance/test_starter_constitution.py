"""The starter constitution, judged by stock OPA: a policy author can read it, test it, and not fool it with shapes.

Nothing of the bus runs here; what the bus makes of the decisions is tested with the bus.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT: Final = Path(__file__).resolve().parents[2]
OPA: Final = ROOT / ".tools" / "bin" / "opa"
POLICIES: Final = ROOT / "policies"
RULES: Final[list[str]] = json.loads((POLICIES / "bus/manifest/data.json").read_text())["rules"]

#: One JSON value of each kind, and some that look like what they are not.
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1.5, 2**53 - 1, "", "x", "40", "\u0000", "é" * 50, [], [None], [[]], {}, {"a": None},
    {"amount": 5}, ["search.flights", 7], "search.flights", "sign_contract", ["sign_contract"], {"sign_contract": 1},
)  # fmt: skip
WEDNESDAY: Final = {"date": "2026-03-04", "weekday": 3, "hour": 10, "minute": 30}
BASE: Final[dict[str, Any]] = {
    "message": {
        "id": "desk/1",
        "type": "command",
        "priority": 1,
        "payload": {"trip": 7},
        "headers": {},
        "conversation": "desk/1",
        "hops": 0,
        "attempt": 1,
        "size": 10,
        "age_seconds": 0,
    },
    "sender": {"id": "desk", "tenant": "acme", "roles": ["planner"], "capabilities": []},
    "recipient": {"id": "booker", "tenant": "acme", "roles": ["worker"], "capabilities": ["flights"]},
    "constitution": {"digest": "0" * 64, "agreed": "0" * 64, "revision": 1},
    "clock": WEDNESDAY,
    "facts": {
        "sender": {"sent": 0, "refused": 0},
        "recipient": {"sent": 0, "refused": 0},
        "conversation": {"sent": 0, "refused": 0},
        "tenant": {},
    },
    "approvals": [],
}


def opa(*arguments: str, stdin: str | None = None) -> str:
    """What stock OPA prints; anything but success fails the test."""
    done = subprocess.run([OPA, *arguments], input=stdin, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"opa {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def decide(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The decision on each input; a built-in that fails, as the bus runs it, fails the test."""
    query = "[answer | some one in input; answer := data.bus.decision with input as one]"
    answer = opa(
        "eval", "-b", str(POLICIES), "--stdin-input", "--strict-builtin-errors", "--format", "json", query,
        stdin=json.dumps(inputs),
    )  # fmt: skip
    decisions: list[dict[str, Any]] = json.loads(answer)["result"][0]["expressions"][0]["value"]
    assert len(decisions) == len(inputs), "some input has no decision"
    return decisions


def changed(path: str, value: Any, *, of: dict[str, Any] = BASE) -> dict[str, Any]:
    """A copy of an input with one value in another's place; `...` leaves it out."""
    document = copy.deepcopy(of)
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def with_payload(payload: Any, *, capabilities: tuple[str, ...] = ("flights",)) -> dict[str, Any]:
    """BASE with another payload, to a recipient with these capabilities."""
    document = changed("message.payload", payload)
    document["recipient"]["capabilities"] = list(capabilities)
    return document


def test_stock_opa_accepts_and_tests_the_folder() -> None:
    """`opa test -b` and a strict `opa check -b` pass, and the sources are formatted."""
    opa("check", "--bundle", "--strict", str(POLICIES))
    assert opa("fmt", "--list", str(POLICIES)) == ""
    assert re.search(r"PASS: (\d+)/\1\b", opa("test", "--bundle", str(POLICIES)))


def test_each_rule_is_a_folder_with_rule_tests_and_data() -> None:
    """At least eight rules; every folder is listed, and every listed rule has its three files and a description."""
    folders = sorted(entry.name for entry in (POLICIES / "bus/rules").iterdir())
    assert folders == sorted(RULES)
    assert len(RULES) >= 8
    for rule in RULES:
        folder = POLICIES / "bus/rules" / rule
        assert {entry.name for entry in folder.iterdir()} == {f"{rule}.rego", f"{rule}_test.rego", "data.json"}
        source = (folder / f"{rule}.rego").read_text()
        assert source.startswith("# METADATA\n# title: ")
        assert "\n# description: |\n" in source
        assert "\ndefault admit := false\n" in source
        assert f"\npackage bus.rules.{rule}\n" in source
        assert (folder / f"{rule}_test.rego").read_text().startswith(f"package bus.rules.{rule}_test\n")


def test_the_constitution_names_each_rule_once_as_enforcing() -> None:
    """Each principle of CONSTITUTION.md names the rules that enforce it, and no rule is without a principle."""
    text = (POLICIES / "CONSTITUTION.md").read_text()
    enforcing = [
        name for line in re.findall(r"^Enforced by .*$", text, re.MULTILINE) for name in re.findall("`(.+?)`", line)
    ]
    assert sorted(enforcing) == sorted(RULES)


def test_an_ordinary_message_is_allowed() -> None:
    """The message that every hostile case starts from is a good one."""
    assert decide([BASE]) == [{"allow": True, "reasons": [], "hold": [], "remember": [], "obligations": []}]


@pytest.mark.parametrize(
    ("rule", "field", "capabilities", "right"),
    [
        ("daily_budget", "amount", ("payments",), lambda value: type(value) is int and 0 < value <= 5000),
        ("daily_budget", "amount", ("flights",), lambda value: type(value) in (int, float)),
        ("tool_allow_list", "tools", ("flights",), lambda value: value == []),
        ("office_hours", "action", ("flights",), lambda value: isinstance(value, str)),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_by_its_rule(
    rule: str, field: str, capabilities: tuple[str, ...], right: Any
) -> None:
    """Whatever stands where a rule looks: no built-in fails, and only what is of the right type is admitted."""
    decisions = decide([with_payload({field: value}, capabilities=capabilities) for value in ODD])
    for value, decision in zip(ODD, decisions, strict=True):
        refused = {reason["rule"] for reason in decision["reasons"] if not decision["allow"]}
        assert (rule not in refused) == right(value), (field, value, decision)
        assert decision["allow"] is (not refused)


#: A message that needs every fact the rules go by: a payment with personal data, to somebody cleared for them.
NEEDS_ALL: Final = {
    **with_payload({"amount": 40, "passport": "SAMPLE"}),
    "recipient": {"id": "payments", "tenant": "acme", "roles": ["records"], "capabilities": ["payments"]},
}
VOUCHED: Final = (
    "message", "message.type", "message.priority", "message.payload", "sender", "sender.tenant", "sender.roles",
    "recipient", "recipient.tenant", "recipient.roles", "recipient.capabilities", "facts", "facts.sender", "clock",
    "clock.date",
)  # fmt: skip


@pytest.mark.parametrize("path", VOUCHED)
def test_what_the_bus_vouches_for_cannot_be_left_out(path: str) -> None:
    """A missing field ends in no, and so does one of another type; no built-in fails over either."""
    odd: list[Any] = [None, True, -1, {"a": [[]]}]
    inputs = [changed(path, value, of=NEEDS_ALL) for value in odd]
    if path != "facts.sender":  # there any object will do: nothing was spent
        inputs.append(changed(path, {}, of=NEEDS_ALL))
    else:
        inputs.remove(changed(path, {"a": [[]]}, of=NEEDS_ALL))
    inputs.append(changed(path, ..., of=NEEDS_ALL))
    assert decide([NEEDS_ALL])[0]["allow"] is True
    assert [decision["allow"] for decision in decide(inputs)] == [False] * len(inputs)


SECRET: Final = "value-that-nobody-may-see"
NAMES: Final = st.sampled_from(["amount", "tools", "action", "passport", "Email", "a"])
NUMBERS: Final = st.integers(1 - 2**53, 2**53 - 1) | st.floats(-(2.0**53), 2.0**53)
JSON: Final = st.recursive(
    st.sampled_from([*ODD, SECRET]) | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
PAYLOADS: Final = st.lists(st.dictionaries(NAMES, JSON, max_size=4), min_size=20, max_size=40)
CAPABILITIES: Final = st.sampled_from(["payments", "flights", "outside_mail", "secrets"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(payloads=PAYLOADS, capability=CAPABILITIES)
def test_no_payload_breaks_a_rule_or_comes_back_in_a_reason(payloads: list[dict[str, Any]], capability: str) -> None:
    """Every payload gets a decision; each reason says what to do, in bounds, and repeats no text of the payload."""
    inputs = [with_payload(payload, capabilities=(capability,)) for payload in payloads]
    for payload, decision in zip(payloads, decide(inputs), strict=True):
        assert decision["allow"] is (
            [reason for reason in decision["reasons"] if reason["code"] != "needs_approval"] == []
        )
        if decision["allow"]:
            assert personal_free(payload)
            assert isinstance(payload.get("action", ""), str)
            assert isinstance(payload.get("tools", []), list)
            assert type(payload.get("amount", 1)) in (int, float)
        for reason in decision["reasons"]:
            assert {"rule", "code", "message", "remedy"} == set(reason)
            assert all(0 < len(text) < 1000 for text in reason.values())
            assert SECRET not in json.dumps(reason)


def personal_free(value: Any) -> bool:
    """Whether no key at any depth names a personal field of the cases above."""
    if isinstance(value, dict):
        return not {"passport", "email"} & {key.lower() for key in value} and all(map(personal_free, value.values()))
    return not isinstance(value, list) or all(map(personal_free, value))
