"""`eab policy check`: five kinds of mistakes are shown where they stand with what to write instead, and so are traps.

Warnings are about what can be activated; that they are silent about what is right matters as much as that they speak.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from enhanced_agent_bus.cli.app import run_command
from tests.support import write_constitution

ROOT: Final = Path(__file__).resolve().parents[2]
TESTS: Final = """test_yes if data.bus.rules.it.admit with data.bus.rules.it as {"admit": true}"""
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """The answer to a check of a constitution with this one rule, `it`, beside the exit status."""

    def run(rule: str, *arguments: str, **more: Any) -> dict[str, Any]:
        policies = write_constitution(tmp_path / "policies", {"it": rule}, **more)
        status = run_command(["--json", "policy", "check", str(policies), *arguments])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document | {"status": status}

    return run


def kinds(checked: dict[str, Any]) -> list[str]:
    """The kinds of the warnings, without those about tests, which most constitutions here have none of."""
    return [warning["kind"] for warning in checked["warnings"] if warning["kind"] != "untested"]


MISTAKES: Final[dict[str, tuple[str, int, str, str]]] = {
    # the rule; the column; what is said; what to write instead
    "a field of the input": ("admit if input.mesage.type == 1", 16, "input.mesage.type", "input.message.type?"),
    "a field of the sender": (
        'admit if input.sender.tennant == "acme"',
        23,
        "input.sender.tennant",
        "input.sender.tenant? by the input's schema input.sender has capabilities, id, roles, tenant",
    ),
    "a field of a text": ("admit if input.message.type.name", 24, "input.message.type.name", "of the type string"),
    "a rule's data": (
        "limit := 3\n\nadmit if input.message.priority < data.bus.rules.it.limt",
        53,
        "there is no data.bus.rules.it.limt",
        "did you mean data.bus.rules.it.limit?",
    ),
    "a package": (
        "admit if data.bus.manifst.rules",
        19,
        "there is no data.bus.manifst.rules",
        "did you mean data.bus.manifest.rules?",
    ),
    "a rule of its own": (
        "limit := 3\n\nadmit if input.message.priority < limt",
        35,
        "var limt is unsafe",
        "did you mean limit?",
    ),
    "a built-in": ('admit if startwith(input.message.type, "c")', 10, "undefined function startwith", "startswith?"),
    "a function of its own": (
        "small(x) if x < 2\n\nadmit if smal(input.message.priority)",
        10,
        "undefined function smal",
        "did you mean small?",
    ),
    "types that are never equal": (
        'admit if input.message.priority == "1"',
        10,
        "number and string are never equal",
        "same type",
    ),
    "an argument of another type": (
        'admit if startswith(input.message.priority, "1")',
        10,
        "it takes (search: string, base: string) and gets (number, string)",
        "same type",
    ),
    "strict mode": ('admit if {\n\tx := input.message.type\n\tinput.message.topic == "a"\n}', 2, "x unused", "_"),
    "&&": ("admit if input.message.priority > 1 && input.message.hops < 3", 37, "cannot stand here", "{ a; b }"),
    "and": ("admit if input.message.priority > 1 and input.message.hops < 3", 37, "this is no rule", "{ a; b }"),
    "=<": ("admit if input.message.hops =< 3", 29, "< cannot stand here", "did you mean `<=`?"),
    "another language's name": ("admit if is_list(input.sender.roles)", 10, "undefined function is_list", "is_array?"),
    "a value too many": ("admit if is_number(input.message.hops, 1)", 10, "takes 1 value and gets 2", "1 value"),
    "||": ("admit if input.message.priority > 1 || true", 37, "cannot stand here", "`rule if a` and `rule if b`"),
    "!": ("admit if !input.message.topic", 10, "!", "write `not`"),
    "single quotes": ("admit if input.message.type == 'command'", 32, "no Rego", '"double quotes"'),
    "a text without an end": ('admit if input.message.type == "command', 32, "no closing", "syntax"),
    "the old form": ('admit { input.message.type == "command" }', 1, "`if` keyword", "Rego v1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_once_with_its_place_and_the_right_word(
    case: str, tmp_path: Path, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    """One problem for one mistake: the source line, a caret below the word itself, the nearest name that is known."""
    rule, column, said, hint = MISTAKES[case]
    checked = check(rule)
    assert (checked["status"], checked["ok"]) == (1, False)
    (problem,) = checked["problems"]
    line = (tmp_path / "policies" / problem["file"]).read_text().splitlines()[problem["row"] - 1]
    assert (problem["file"], problem["col"], problem["text"]) == ("bus/rules/it/it.rego", column, line)
    assert hint in problem["hint"]
    assert run_command(["policy", "check", str(tmp_path / "policies")]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert said in shown[0]
    assert shown[2] == " " * (4 + column - 1) + "^"
    assert shown[-1].endswith("cannot be activated: 1 problem")


def test_a_file_that_ends_too_early_is_shown_where_it_ends(check: Check) -> None:
    """Behind the last character, not on the empty line after it."""
    (problem,) = check('admit if {\n\tinput.message.type == "command"\n')["problems"]
    assert (problem["row"], problem["col"]) == (6, 34 - 1)


def test_a_rule_in_another_package_is_told_its_own(check: Check) -> None:
    """The folder says which package it has to be."""
    (problem,) = check("package bus.rule.it\n\ndefault admit := false\n\nadmit if input.message.id")["problems"]
    assert "is in package bus.rule.it" in problem["message"]
    assert "package bus.rules.it" in problem["hint"]


WARNED: Final[dict[str, tuple[str, str, str]]] = {
    # the rule; the kind; what to write instead
    'not input.message.payload.kind == "secret"': (
        'admit if not input.message.payload.kind == "secret"',
        "negation_true",
        "is_string(input.message.payload.kind)",
    ),
    "not a field": ("admit if not input.message.payload.secret", "negation_true", "input.message.payload.secret"),
    "not a header": ('admit if not input.message.headers.draft == "yes"', "negation_true", "is_string"),
    "not a cause": ('admit if not input.cause.type == "query"', "negation_true", "is_string(input.cause.type)"),
    "not a rule": (
        'admit if not secret\n\nsecret if input.message.payload.kind == "secret"',
        "negation_true",
        "input.message.payload.kind",
    ),
    "not a function of the message": (
        'admit if not secret(input.message)\n\nsecret(m) if m.payload.kind == "secret"',
        "negation_true",
        "input.message.payload.kind",
    ),
    "no denials": (
        'admit if count(deny) == 0\n\ndeny contains "it" if input.message.payload.kind == "secret"',
        "negation_true",
        "input.message.payload.kind",
    ),
    "no denials, as a set": (
        'admit if deny == set()\n\ndeny contains "it" if input.message.payload.kind == "secret"',
        "negation_true",
        "input.message.payload.kind",
    ),
    "not f(input.missing)": (
        'admit if not startswith(input.message.payload.name, "x")',
        "negation_undefined",
        'not startswith(object.get(input.message.payload, "name", ""), "x")',
    ),
    "not in a fact": (
        'admit if not "secret" in input.facts.sender.labels',
        "negation_undefined",
        'not "secret" in object.get(input.facts.sender, "labels", [])',
    ),
    "not a topic in": (
        'admit if not input.message.topic in {"news"}',
        "negation_undefined",
        'object.get(input.message, "topic", "")',
    ),
    "unequal": (
        'admit if input.message.payload.kind != "secret"',
        "undefined_unequal",
        'object.get(input.message.payload, "kind", "") != "secret"',
    ),
    "unequal number": ("admit if input.message.payload.n != 4", "undefined_unequal", '"n", 0) != 4'),
    "null is less": (
        "admit if input.message.payload.amount <= 100",
        "untyped_order",
        "is_number(input.message.payload.amount)",
    ),
    "null is not more": (
        "admit if {\n\tinput.message.payload.amount\n\tnot input.message.payload.amount > 100\n}",
        "untyped_order",
        "is_number(input.message.payload.amount)",
    ),
    "null in a variable": (
        "admit if {\n\tamount := input.message.payload.amount\n\tamount <= 100\n}",
        "untyped_order",
        "is_number(amount)",
    ),
    "a text is more": (
        "admit if input.message.payload.age >= 18",
        "untyped_order",
        "is_number(input.message.payload.age)",
    ),
    "a number before a text": ('admit if input.clock.hour < "18"', "mixed_order", "without quotes: 18"),
    "a field before a text": (
        'admit if input.message.payload.trip < "18"',
        "untyped_order",
        "`is_number(input.message.payload.trip)` on a line before, and the number without quotes: 18",
    ),
    "in a function": (
        'admit if open(input.message.payload)\n\nopen(p) if not p.kind == "secret"',
        "negation_true",
        "is_string(p.kind)",
    ),
    "in a function of a function": (
        "admit if open(input.message)\n\nopen(m) if small(m.payload)\n\nsmall(p) if p.amount < 5",
        "untyped_order",
        "is_number(p.amount)",
    ),
    "of each element": (
        "admit if every item in input.message.payload.items { not item.secret }",
        "negation_true",
        "write `item.secret` on a line before",
    ),
    "of some element": (
        'admit if {\n\tsome item in input.message.payload.items\n\titem.kind != "secret"\n}',
        "undefined_unequal",
        'object.get(item, "kind", "") != "secret"',
    ),
    "in a comprehension": (
        "admit if count([1 | some item in input.message.payload.items; not item.paid]) < 3",
        "negation_true",
        "item.paid",
    ),
    "object.get": ('admit if object.get(input.message, "prioritty", 0) == 0', "unknown_field", '"priority"?'),
    "object.get of a path": ('admit if object.get(input, ["sender", "rolez"], []) == []', "unknown_field", '"roles"?'),
    "everything": ("admit if true", "always_admits", "admit if {"),
    "two values": ('admit if input.message.id\n\ncode := "a"\n\ncode := "b"', "conflicting", "default"),
    "one value and sometimes another": (
        'admit if input.message.hops < 3\n\ncode := "a"\n\ncode := "b" if input.message.priority > 2',
        "conflicting",
        "`default` for the one that is to hold otherwise",
    ),
    "what nobody could approve": (
        'admit if input.message.hops < 3\n\nhold contains {"approvers": 1, "roles": []} if admit',
        "part",
        '"roles": ["finance"]',
    ),
    "a hold without contains": (
        'admit if input.message.hops < 3\n\nhold := {"roles": ["finance"]} if admit',
        "part",
        "write `hold contains {…}`",
    ),
    "a scope that is not there": (
        'admit if input.message.hops < 3\n\nremember contains {"scope": "conv", "key": "n", "add": 1} if admit',
        "part",
        'did you mean "conversation"?',
    ),
    "an obligation that the bus cannot keep": (
        'admit if input.message.hops < 3\n\nobligations contains {"type": "encrypt"} if admit',
        "part",
        "it is one of deliver_only_to, handler_timeout, redact",
    ),
    "a misspelt part": ('admit if input.message.hops < 3\n\nremeddy := "later"', "part", "did you mean `remedy`?"),
}


@pytest.mark.parametrize("case", WARNED)
def test_a_trap_is_a_warning_with_what_to_write_instead(case: str, check: Check) -> None:
    """Exit 0, one warning, at the line that it is about; and with --strict-warnings exit 1."""
    rule, kind, hint = WARNED[case]
    checked = check(rule)
    assert (checked["status"], checked["ok"], kinds(checked)) == (0, True, [kind])
    (warning,) = [warning for warning in checked["warnings"] if warning["kind"] == kind]
    assert warning["file"] == "bus/rules/it/it.rego"
    assert warning["text"]
    assert hint in warning["hint"]
    assert check(rule, "--strict-warnings")["status"] == 1


RIGHT: Final = {
    "a guard of the type": (
        'admit if {\n\tis_string(input.message.payload.kind)\n\tnot input.message.payload.kind == "secret"\n}'
    ),
    "a guard in a rule": (
        'admit if {\n\tknown\n\tinput.message.payload.kind != "secret"\n}\n\n'
        "known if is_string(input.message.payload.kind)"
    ),
    "a guard in a function": (
        'admit if {\n\tknown(input.message.payload)\n\tnot input.message.payload.kind in {"secret"}\n}\n\n'
        "known(p) if is_string(p.kind)"
    ),
    "a guard before the call": (
        "admit if {\n\tis_string(input.message.payload.kind)\n\topen(input.message.payload)\n}\n\n"
        'open(p) if not p.kind == "secret"'
    ),
    "a guard of each element": (
        'admit if every item in input.message.payload.items {\n\tis_string(item.kind)\n\tnot item.kind == "secret"\n}'
    ),
    "an element that is compared": (
        'admit if {\n\tsome item in input.message.payload.items\n\titem != "secret"\n\tnot item in {"other"}\n}'
    ),
    "a header, which is a text": 'admit if input.message.headers.level >= "b"',
    "what the bus vouches for": 'admit if {\n\tsome role in input.sender.roles\n\tnot role == "guest"\n}',
    "a default": 'admit if object.get(input.message.payload, "kind", "") != "secret"',
    "a variable": 'admit if {\n\tkind := input.message.payload.kind\n\tkind != "secret"\n\tnot kind == "other"\n}',
    "what is always there": 'admit if {\n\tnot input.sender.id == "x"\n\tinput.message.type != "event"\n}',
    "a number that is one": (
        "admit if {\n\tis_number(input.message.payload.amount)\n\tinput.message.payload.amount <= 100\n}"
    ),
    "a number between": "admit if {\n\tinput.message.payload.n > 0\n\tinput.message.payload.n <= 100\n}",
    "a number that is counted with": (
        "admit if {\n\tround(input.message.payload.n) == 3\n\tinput.message.payload.n < 3.2\n}"
    ),
    "what nobody has remembered yet": "admit if not input.facts.sender.blocked == 1",
    "the bus's own counters": "admit if input.facts.sender.sent < 100",
    "every": 'admit if every tool in input.message.payload.tools { not tool == "shell" }',
    "a field of the schema": 'admit if object.get(input, ["message", "topic"], "") == ""',
    "two values that exclude each other": (
        'admit if input.message.id\n\ncode := "a" if input.message.hops > 3\n\ncode := "b" if input.message.hops <= 3'
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_not_warned_about(case: str, check: Check) -> None:
    """A guard is seen where it stands: in the body, in a rule, in a function."""
    checked = check(RIGHT[case])
    assert (checked["ok"], kinds(checked)) == (True, [])


NEVER: Final[dict[str, tuple[str, str]]] = {
    "false": ("admit if false", "remove this body"),
    "a constant": ('admit if {\n\tis_string(input.message.id)\n\t"a" == "b"\n}', "compare with something"),
    "no such type": ('admit if input.message.type == "comand"', 'did you mean "command"?'),
    "none of these": ('admit if input.message.type in {"comand", "qury"}', 'did you mean "command"?'),
    "no such priority": ("admit if input.message.priority > 3", "input.message.priority is 0 to 3"),
    "no such day": ("admit if input.clock.weekday == 0", "input.clock.weekday is 1 to 7"),
    "two types": (
        'admit if {\n\tinput.message.type == "command"\n\tinput.message.type == "query"\n}',
        "bodies of their own",
    ),
    "past midnight": ("admit if {\n\tinput.clock.hour >= 22\n\tinput.clock.hour < 6\n}", "bodies of their own"),
    "a gap": (
        "admit if {\n\tn := input.message.payload.n\n\tis_number(n)\n\tn > 5\n\tn < 3\n}",
        "bodies of their own",
    ),
    "a type that it is not": ("admit if is_number(input.message.type)", "input.message.type is of the type string"),
    "a rule that cannot be": ('admit if open\n\nopen if input.message.type == "comand"', "mend that rule"),
}


@pytest.mark.parametrize("case", NEVER)
def test_a_rule_that_can_never_admit_is_named_and_why(case: str, check: Check) -> None:
    """Whatever is sent: the expression that is never true, and the rule that therefore refuses everything."""
    rule, hint = NEVER[case]
    checked = check(rule)
    assert (checked["status"], checked["ok"]) == (0, True)
    assert set(kinds(checked)) == {"never_true", "never_admits"}
    assert any(hint in warning["hint"] for warning in checked["warnings"])


@pytest.mark.parametrize(
    "rule", ["admit := false if input.message.id", 'admit := "yes" if input.message.id', "limit := 1"]
)
def test_a_rule_that_says_something_else_than_true_never_admits(rule: str, check: Check) -> None:
    """Only `true` admits: another value does not, nor does the default by itself."""
    assert kinds(check(rule)) == ["never_admits"]


def test_an_empty_list_admits_nobody(check: Check) -> None:
    """The constitution's own data count: they are as fixed as its rules."""
    rule = "admit if input.sender.id in data.bus.rules.it.names"
    assert set(kinds(check(rule, data={"it": {"names": []}}))) == {"never_true", "never_admits"}
    assert kinds(check(rule, data={"it": {"names": ["desk"]}})) == []


@pytest.mark.parametrize(
    "text", ['allow if input.sender.id == "boss"', 'decision := {"allow": true} if input.sender.id == "boss"']
)
def test_a_second_file_that_goes_round_the_rules_is_named(text: str, check: Check) -> None:
    """Such a message travels without every listed rule admitting it: it can be activated, and is said."""
    checked = check("admit if input.message.hops < 3", files={"bus/extra.rego": f"package bus\n\n{text}\n"})
    assert (checked["ok"], kinds(checked)) == (True, ["core"])
    warning = next(warning for warning in checked["warnings"] if warning["kind"] == "core")
    assert (warning["file"], warning["row"], warning["text"]) == ("bus/extra.rego", 3, text)
    assert "without every listed rule admitting it" in warning["message"]


def test_a_limit_that_is_a_text_is_named_with_its_file(check: Check) -> None:
    """In Rego's order a number comes before every text: such a limit lets everything pass."""
    rule = (
        "admit if {\n\tbooked := input.message.payload.booked\n\tis_number(booked)\n"
        "\tbooked < data.bus.rules.it.highest\n}"
    )
    checked = check(rule, data={"it": {"highest": "3"}})
    assert (checked["ok"], kinds(checked)) == (True, ["mixed_order"])
    warning = next(warning for warning in checked["warnings"] if warning["kind"] == "mixed_order")
    assert "is always true" in warning["message"]
    assert 'write the number without quotes in bus/rules/it/data.json: `"highest": 3`' in warning["hint"]
    assert kinds(check(rule, data={"it": {"highest": 3}})) == []


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (None, 'no test asks the rule "it"'),
        ('test_no if not it.admit with input as {"message": {"hops": 9}}', "admit: it may be that it never does"),
        ('test_yes if it.admit with input as {"message": {"hops": 1}}', "refuse: it may be that it never does"),
        (
            'test_both if {\n\tit.admit with input as {"message": {"hops": 1}}\n\tnot it.admit with input as {}\n}',
            None,
        ),
    ],
)
def test_a_rule_whose_answers_no_test_has_seen_is_named(test: str | None, said: str | None, check: Check) -> None:
    """A rule that was never seen to admit may never do so, and one that was never seen to refuse lets all pass."""
    tests = {} if test is None else {"it": f"import data.bus.rules.it\n\n{test}"}
    checked = check("admit if input.message.hops < 3", tests=tests)
    assert checked["ok"]
    assert [said in warning["message"] for warning in checked["warnings"] if said] == [True] * (said is not None)
    assert len(checked["warnings"]) == (said is not None)


def test_a_test_that_asks_the_whole_decision_is_sent_elsewhere(check: Check) -> None:
    """The compiler says recursion; the warning says where such a test belongs."""
    checked = check("admit if input.message.id", tests={"it": "test_all if data.bus.decision.allow with input as {}"})
    assert not checked["ok"]
    (warning,) = checked["warnings"]
    assert (warning["kind"], warning["file"], warning["row"]) == ("test_asks_decision", "bus/rules/it/it_test.rego", 3)
    assert "bus.main_test" in warning["hint"]


def test_warnings_stand_apart_from_problems(tmp_path: Path, check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    """Each begins with `warning:`, has its line and a caret, and the last line counts them."""
    check('admit if not input.message.payload.kind == "secret"', tests={"it": TESTS})
    assert run_command(["policy", "check", str(tmp_path / "policies")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^warning: bus/rules/it/it\.rego:5:10: `not .*` is true when there is no", out, re.MULTILINE)
    assert re.search(r"^ +\^$", out, re.MULTILINE)
    assert re.search(r"can be activated, \d+ warnings?$", out.strip())
    assert "strict built-ins" in out


@pytest.mark.parametrize("folder", ["policies", "examples/back_office/policies"])
def test_what_is_shipped_has_no_warning(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the starter constitution nor the examples do what their authors are warned about."""
    assert run_command(["--json", "policy", "check", str(ROOT / folder), "--strict-warnings"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
