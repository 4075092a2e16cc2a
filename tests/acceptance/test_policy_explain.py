"""`eab policy explain`: of every message that was refused, the expression that mattered and what it saw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from enhanced_agent_bus.authoring.answers import Explained
from enhanced_agent_bus.authoring.workbench import workbench
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.cli.reading.home import recorded_question
from tests.developer import log
from tests.support import write_constitution

ROOT: Final = Path(__file__).resolve().parents[2]
AT: Final = ("--at", "2026-03-04T10:30:00Z")


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the document."""
    capsys.readouterr()
    status = run_command(["--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def run_lines(home: Path, example: Path, policies: Path, lines: Sequence[str]) -> None:
    """Sends these lines, and waits until all have ended."""
    file = home.parent / "lines.jsonl"
    file.write_text("".join(line + "\n" for line in lines))
    app = f"{example / 'app.py'}:build"
    where = ["--home", str(home), "--json", "run", app, "--input", str(file), "--constitution", str(policies)]
    assert run_command([*where, *AT]) == 0


# --- the examples --------------------------------------------------------------------------------------------------

#: Of each refused message of examples/back_office, rule by rule: place, expression, and some of what it saw.
BACK_OFFICE: Final[dict[str, dict[str, tuple[str, str, dict[str, Any]]]]] = {
    "analyst/tainted": {
        "taint": ("taint.rego:16", "not tainted", {"data.bus.rules.taint.tainted": True}),
        "checked_first": (
            "checked_first.rego:21",
            "input.message.payload.invoice in input.facts.conversation.checked",
            {"input.message.payload.invoice": "I-9"},
        ),
    },
    "helper/second-hand": {
        "taint": ("taint.rego:16", "not tainted", {"data.bus.rules.taint.tainted": True}),
        "checked_first": (
            "checked_first.rego:21",
            "input.message.payload.invoice in input.facts.conversation.checked",
            {"input.message.payload.invoice": "I-9"},
        ),
    },
    "clerk/unchecked": {
        "checked_first": (
            "checked_first.rego:21",
            "input.message.payload.invoice in input.facts.conversation.checked",
            {"input.message.payload.invoice": "I-0"},
        ),
    },
    "clerk/other-invoice": {
        "checked_first": (
            "checked_first.rego:21",
            "input.message.payload.invoice in input.facts.conversation.checked",
            {"input.message.payload.invoice": "I-2", "input.facts.conversation.checked": ["I-1"]},
        ),
    },
    "buyer/too-much": {
        "team_budget": (
            "team_budget.rego:24",
            "spent + input.message.payload.amount <= settings.day_budget",
            {"input.message.payload.amount": 1001, "data.bus.rules.team_budget.settings.day_budget": 1000},
        ),
    },
}


def test_each_message_of_the_back_office_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was refused names the expression that mattered; what was held says for whom; the rest is allowed."""
    home, example = tmp_path / "home", ROOT / "examples" / "back_office"
    monkeypatch.setenv("EAB_HOME", str(home))
    run_lines(home, example, example / "policies", (example / "messages.jsonl").read_text().splitlines())
    decided = {record["message_id"]: record["verdict"] for record in log(home, "decision")}
    assert len(decided) == 9
    for message_id, verdict in decided.items():
        status, explained = answer(capsys, "policy", "explain", message_id, "--payload")
        assert (explained["verdict"], status) == (verdict, int(verdict == "refuse")), message_id
        refusing = {rule["name"]: rule["failing"] for rule in explained["rules"] if not rule["admit"]}
        expected = BACK_OFFICE.get(message_id, {})
        assert set(refusing) == set(expected), message_id
        for name, (place, text, values) in expected.items():
            step = refusing[name]
            assert (f"{Path(step['file']).name}:{step['row']}", step["text"]) == (place, text)
            assert step["values"].items() >= values.items()
    status, held = answer(capsys, "policy", "explain", "clerk/first-payment", "--payload")
    assert (status, held["verdict"]) == (0, "hold")
    assert held["hold"] == [{"rule": "known_payee", "approvers": 1, "roles": ["controller"], "expires_in": 86400}]
    assert {"scope": "tenant", "key": "payees", "value": "Paper Ltd"} in held["remember"]
    assert run_command(["policy", "explain", "clerk/first-payment"]) == 0
    out = capsys.readouterr().out
    assert "waits for known_payee: 1 approval by controller, within 86400 s" in out
    assert "Paper Ltd" not in out


def mattered(rule: str, document: dict[str, Any]) -> str:
    """The expression that a person would name, for each trouble of the travel desk."""
    payload, roles = document["message"]["payload"], document["sender"]["roles"]
    amount = payload.get("amount")
    if rule == "daily_budget":
        if isinstance(amount, str):
            return "is_number(amount)"
        return "amount > 0" if amount is None or amount <= 0 else "spent + amount <= settings.day_budget"
    return {
        "same_tenant": "input.sender.tenant == input.recipient.tenant",
        "message_types": "input.message.type in settings." + ("roles[role]" if roles else "everyone"),
        "priority_ceiling": "input.message.priority <= ceiling",
        "personal_data": "role in settings.cleared_roles",
        "secret_stays_home": "not labelled",
        "tool_allow_list": "allowed(tool)" if isinstance(payload.get("tools"), list) else "is_array(asked)",
        "office_hours": "input.clock.hour >= window.from_hour"
        if isinstance(payload.get("action"), str)
        else "is_string(action)",
    }[rule]


@pytest.mark.timeout(180)
def test_each_kind_of_refusal_of_the_travel_desk_is_explained_by_what_mattered(tmp_path: Path) -> None:
    """A whole day: the rules that said no are those of the record, each with what a person would name.

    Of the messages that the same rules refused for the same expressions, the first.
    """
    home, example = tmp_path / "home", ROOT / "examples" / "travel_desk"
    run_lines(home, example, ROOT / "policies", (example / "messages.jsonl").read_text().splitlines())
    records = log(home, "decision", code="policy_denied")  # on a busy machine some may be policy_timeout
    assert len(records) > 40
    kinds: dict[tuple[str, ...], tuple[dict[str, Any], Any]] = {}
    for record in records:
        question = recorded_question(home, record["decision_id"])
        rules = sorted(reason["rule"] for reason in record["reasons"])
        kind = tuple(f"{rule}: {mattered(rule, question.document)}" for rule in rules)
        kinds.setdefault(kind, (record, question))
    assert len(kinds) > 8
    records, questions = [record for record, _ in kinds.values()], [question for _, question in kinds.values()]

    async def ask() -> list[Explained]:
        places = asyncio.Semaphore(4)
        async with workbench() as bench:

            async def one(document: dict[str, Any], constitution: Path) -> Explained:
                async with places:
                    return await bench.explain(constitution, json.dumps(document).encode())

            return await asyncio.gather(*[one(each.document, each.constitution) for each in questions])

    for record, question, explained in zip(records, questions, asyncio.run(ask()), strict=True):
        refusing = {rule.name: rule for rule in explained.rules if not rule.admit}
        assert set(refusing) == {reason["rule"] for reason in record["reasons"]}
        for name, rule in refusing.items():
            assert rule.failing is not None
            assert rule.failing.text == mattered(name, question.document), record["message_id"]
            assert rule.failing.values
            assert rule.failing in rule.ways


def test_what_the_policy_never_saw_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message that was refused before no rule has seen: exit 1, with the code."""
    home, example = tmp_path / "home", ROOT / "examples" / "travel_desk"
    monkeypatch.setenv("EAB_HOME", str(home))
    run_lines(home, example, ROOT / "policies", ['{"from": "desk", "to": "nobody", "payload": {}}'])
    (record,) = log(home, "decision")
    assert run_command(["policy", "explain", record["decision_id"]]) == 1
    assert "refused as recipient_unknown before the policy was asked" in capsys.readouterr().err


# --- one input -----------------------------------------------------------------------------------------------------


def document(payload: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A whole input."""
    plain = {
        "message": {
            "id": "a/1",
            "type": "command",
            "priority": 1,
            "payload": payload,
            "headers": {},
            "conversation": "a/1",
            "hops": 0,
            "attempt": 1,
            "size": 10,
            "age_seconds": 0,
        },
        "sender": {"id": "a", "tenant": "acme", "roles": ["clerk"], "capabilities": []},
        "recipient": {"id": "b", "tenant": "acme", "roles": [], "capabilities": []},
        "constitution": {"digest": "0" * 64, "agreed": "0" * 64, "revision": 1},
        "clock": {"date": "2026-03-04", "weekday": 3, "hour": 10, "minute": 30},
        "facts": {"sender": {}, "recipient": {}, "conversation": {}, "tenant": {}},
        "approvals": [],
    }
    return plain | more


class Asker:
    """Explains one input under one rule, `it`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, rule: str, payload: dict[str, Any], **more: Any) -> tuple[int, dict[str, Any]]:
        """The exit status and the document."""
        write_constitution(self.folder / "policies", {"it": rule})
        (self.folder / "message.json").write_text(json.dumps(document(payload, **more)))
        return answer(self._capsys, *self.words)

    @property
    def words(self) -> list[str]:
        """The command line."""
        return ["policy", "explain", str(self.folder / "message.json"), "--constitution", str(self.folder / "policies")]

    def shown(self) -> str:
        """The same for people."""
        run_command(self.words)
        return self._capsys.readouterr().out


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Asker:
    """In a folder without a home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAB_HOME", raising=False)
    return Asker(tmp_path, capsys)


def test_of_several_ways_the_nearest_is_named_and_the_others_stand_below(ask: Asker) -> None:
    """The one of which most was true; where each other one ended is a line of its own."""
    rule = """admit if input.message.type == "event"

admit if {
	input.message.type == "command"
	input.message.payload.amount > 0
	input.message.payload.amount <= limit
}

admit if {
	is_number(input.message.payload.amount)
	not clerk
}

limit := 100

clerk if "clerk" in input.sender.roles
"""
    status, explained = ask(rule, {"amount": 120})
    (it,) = explained["rules"]
    assert (status, explained["verdict"], explained["code"]) == (1, "refuse", "policy_denied")
    assert it["failing"]["text"] == "input.message.payload.amount <= limit"
    assert it["failing"]["values"] == {"input.message.payload.amount": 120, "data.bus.rules.it.limit": 100}
    assert [way["row"] for way in it["ways"]] == [5, 10, 15]
    because = it["ways"][2]["because"]
    assert (because["row"], because["values"]) == (20, {"input.sender.roles": ["clerk"]})
    out = ask.shown()
    assert "it: no, at bus/rules/it/it.rego:10" in out
    assert 'bus/rules/it/it.rego:5: input.message.type == "event"' in out
    assert "limit = 100" in out


def test_a_field_that_is_missing_is_said_to_be(ask: Asker) -> None:
    """Not a value of null, and not left out."""
    _, explained = ask('admit if input.message.payload.kind != "secret"', {})
    (it,) = explained["rules"]
    assert (it["failing"]["values"], it["failing"]["missing"]) == ({}, ["input.message.payload.kind"])
    assert "input.message.payload.kind has no value" in ask.shown()


def test_another_value_than_true_is_shown(ask: Asker) -> None:
    """A body that was true and does not say `true` does not admit."""
    _, explained = ask('admit := "yes" if input.message.id', {})
    (it,) = explained["rules"]
    assert not it["admit"]
    assert it["failing"]["values"] == {"data.bus.rules.it.admit": "yes", "input.message.id": "a/1"}


def test_a_function_is_followed_to_where_it_ended(ask: Asker) -> None:
    """The call with its arguments, and inside it the expression."""
    rule = "admit if small(input.message.payload)\n\nsmall(p) if {\n\tis_number(p.amount)\n\tp.amount < 10\n}"
    _, explained = ask(rule, {"amount": 12})
    (it,) = explained["rules"]
    assert (it["failing"]["row"], it["failing"]["inside"]["row"]) == (5, 9)
    assert it["failing"]["inside"]["values"]["p.amount"] == 12


def test_what_breaks_is_shown_where_it_broke(ask: Asker) -> None:
    """A built-in that failed: refused as policy_error, with what it got; the rule broke, it did not say no."""
    rule = 'admit if {\n\tsome word in input.message.payload.words\n\tlower(word) == "x"\n}'
    status, explained = ask(rule, {"words": ["a", 7]})
    assert (status, explained["verdict"], explained["code"]) == (1, "refuse", "policy_error")
    (it,) = explained["rules"]
    assert (it["admit"], it["failing"]) == (False, None)
    for broken in (explained["broken"], it["broken"]):
        assert broken["message"] == "lower: operand 1 must be string but got number"
        assert (broken["at"]["row"], broken["at"]["values"]["word"]) == (7, 7)
    assert "refused (policy_error): lower: operand 1 must be string but got number" in ask.shown()


def test_what_the_rule_index_skips_does_not_break_here_either(ask: Asker) -> None:
    """The answer is the one that decides, even where looking at every way would fail on one."""
    rule = 'admit if startswith(input.message.payload.command, "ls ")\n\nadmit if input.message.payload.free'
    status, explained = ask(rule, {"command": 5, "free": True})
    assert (status, explained["verdict"]) == (0, "allow")
    assert explained["rules"][0]["admit"]


@pytest.mark.parametrize(
    ("more", "verdict", "code", "status"),
    [
        ('obligations contains {"type": "redact", "path": "/card"}', "allow", None, 0),
        ('obligations contains {"type": "encrypt"}', "refuse", "obligation_unknown", 1),
        ('obligations contains {"type": "deliver_only_to", "agent": "c"}', "refuse", "policy_denied", 1),
        ('obligations contains {"type": "deliver_only_to", "agent": "b"}', "allow", None, 0),
        ('hold contains {"roles": ["finance"], "approvers": 2}', "hold", None, 0),
        ('hold contains {"approvers": 2}', "refuse", "policy_malformed", 1),
        ('remember contains {"scope": "sender", "key": "k", "add": 1.5}', "refuse", "policy_malformed", 1),
        ('code := "a" if true\n\ncode := "b" if input.message.id', "allow", None, 0),
    ],
)
def test_the_verdict_is_what_the_bus_makes_of_the_decision(
    more: str, verdict: str, code: str | None, status: int, ask: Asker
) -> None:
    """Not only yes and no: what is held, what is asked for, and answers that the bus does not take."""
    got, explained = ask(f"admit if input.message.id\n\n{more}", {})
    assert (explained["verdict"], explained["code"], got) == (verdict, code, status)
    assert {"hold", "obligations", "remember"} <= set(explained)


@pytest.mark.parametrize(
    ("rule", "place", "said"),
    [
        ('remember contains {"scope": "sender", "key": "sent", "add": 1}', "remember.0", "sent"),
        ('remember contains {"scope": "sender", "key": "k", "add": 1.5}', "remember.0.add", "whole number"),
        ('remember contains {"scope": "sender", "key": "k", "value": "x"}', "remember.0", "mixes numbers"),
        ('obligations contains {"type": "handler_timeout", "seconds": "5"}', "obligations.handler_timeout", "number"),
        ('hold contains {"roles": [], "approvers": 1}', "hold.0.roles", "1 or more"),
    ],
)
def test_an_answer_that_the_bus_does_not_take_is_refused_with_its_place(
    rule: str, place: str, said: str, ask: Asker
) -> None:
    """The first line is what the bus would do: which part of the decision, why, and which rule writes it."""
    facts = {"sender": {"k": 1, "sent": 3, "refused": 0}, "recipient": {}, "conversation": {}, "tenant": {}}
    status, explained = ask(f"admit if input.message.id\n\n{rule}", {}, facts=facts)
    assert (status, explained["verdict"], explained["code"]) == (1, "refuse", "policy_malformed")
    assert explained["problem"]["place"].startswith(place)
    assert explained["problem"]["rules"] == ["it"]
    shown = ask.shown()
    [head] = [line for line in shown.splitlines() if line.startswith("refused (policy_malformed)")]
    for words in (f"data.bus.decision {place}", said, "from the rule it"):
        assert words in head
    assert "allowed" not in shown.splitlines()


def test_facts_that_are_missing_in_an_input_are_none(ask: Asker) -> None:
    """An input that somebody writes need not be whole."""
    rule = 'admit if input.message.payload\n\nremember contains {"scope": "tenant", "key": "k", "add": 1}'
    for facts in ({}, {"tenant": {"k": True}}, {"tenant": 3}):
        assert ask(rule, {}, facts=facts)[1]["verdict"] == "allow"
    (ask.folder / "message.json").write_text('{"message": {"payload": {}}}')
    assert run_command(ask.words) == 0


def test_a_recorded_answer_that_was_malformed_is_so_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --payload the place is told too, and nothing that was made of the payload."""
    home, example = tmp_path / "home", ROOT / "examples" / "back_office"
    monkeypatch.setenv("EAB_HOME", str(home))
    rules = {
        "counts": 'admit if input.message.id\n\nremember contains {"scope": "sender", "key": "sent", "add": 1}',
        "plain": "admit if input.message.id",
    }
    lines = [json.dumps({"from": "clerk", "to": "bank", "payload": {"word": "okapi"}})]
    run_lines(home, example, write_constitution(tmp_path / "policies", rules), lines)
    (record,) = log(home, "decision")
    assert record["code"] == "policy_malformed"
    capsys.readouterr()
    assert run_command(["policy", "explain", record["message_id"]]) == 1
    assert (
        "refused (policy_malformed): data.bus.decision remember.0: "
        "the key sent is one that the bus itself keeps, from the rule counts"
    ) in capsys.readouterr().out
    loud = {
        "counts": 'admit if input.message.id\n\nremember contains {"scope": "sender", "key": word, "add": 1}\n\n'
        'word := concat("", [input.message.payload.word | some i in numbers.range(1, 99)])'
    }
    write_constitution(tmp_path / "loud", loud)
    assert run_command(["policy", "explain", record["message_id"], "--constitution", str(tmp_path / "loud")]) == 1
    assert "okapi" not in capsys.readouterr().out


@pytest.mark.parametrize("fields", [{}, {"to": "b", "topic": "news"}])
def test_a_line_that_goes_nowhere_says_what_it_needs(
    fields: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly one of to, capability and topic."""
    home, example = tmp_path / "home", ROOT / "examples" / "back_office"
    monkeypatch.setenv("EAB_HOME", str(home))
    run_lines(home, example, write_constitution(tmp_path / "policies"), [])
    (tmp_path / "m.json").write_text(json.dumps({"from": "clerk", "payload": {}, **fields}))
    assert run_command(["policy", "explain", str(tmp_path / "m.json")]) == 2
    assert "exactly one of to, capability and topic" in capsys.readouterr().err


def test_approvals_that_are_in_are_counted(ask: Asker) -> None:
    """One of two is not enough, and one agent counts once."""
    rule = 'admit if input.message.id\n\nhold contains {"roles": ["finance"], "approvers": 2}'
    given = [{"approver": name, "roles": ["finance"], "rule": "it", "at": "2026-03-04T10:30:00Z"} for name in "xxy"]
    assert ask(rule, {}, approvals=given[:2])[1]["verdict"] == "hold"
    assert "waits for it: 1 approval by finance" in ask.shown()
    assert ask(rule, {}, approvals=given)[1]["verdict"] == "allow"


def test_what_is_asked_for_is_shown(ask: Asker) -> None:
    """Obligations and what would be remembered, one a line."""
    ask(
        'admit if input.message.id\n\nobligations contains {"type": "handler_timeout", "seconds": 5}\n\n'
        'remember contains {"scope": "sender", "key": "k", "add": 1}',
        {},
    )
    out = ask.shown()
    assert 'obligation handler_timeout: {"seconds": 5}' in out
    assert 'remembers for the sender: {"key": "k", "add": 1}' in out or '{"add": 1, "key": "k"}' in out


def test_a_recorded_payload_stays_hidden_in_everything_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In refs, variables, calls, rules and errors; with --payload it is shown, and that is recorded."""
    secret = "zebra-quagga-okapi"
    rule = """admit if {
	word := input.message.payload.word
	upper(word) == shouted
	input.message.priority > 9
}

admit if every letter in split(input.message.payload.word, "-") { short(letter) }

short(letter) if count(letter) < 3

shouted := upper(input.message.payload.word)

admit if input.message.priority > count(input.sender.roles) + 7
"""
    home, example = tmp_path / "home", ROOT / "examples" / "back_office"
    monkeypatch.setenv("EAB_HOME", str(home))
    policies = write_constitution(tmp_path / "policies", {"it": rule})
    run_lines(home, example, policies, [json.dumps({"from": "clerk", "to": "bank", "payload": {"word": secret}})])
    (record,) = log(home, "decision")
    for words in (["--json"], []):
        capsys.readouterr()
        assert run_command([*words, "policy", "explain", record["message_id"]]) == 1
        out = capsys.readouterr().out.lower()
        assert not [part for part in secret.split("-") if part in out]
        assert "input.message.priority" in out
        assert "hidden" in out or not words
    assert not log(home, "access")
    _, explained = answer(capsys, "policy", "explain", record["message_id"], "--payload")
    assert "zebra" in json.dumps(explained)
    assert len(log(home, "access")) == 1


def test_a_decision_that_a_live_bus_would_not_wait_for_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an explanation may take is not what a live decision may: the home's own limit is what counts."""
    monkeypatch.chdir(tmp_path)
    policies = write_constitution(tmp_path / "policies", {"fine": "admit if input.message.payload.n > 0"})
    (tmp_path / "message.json").write_text(
        json.dumps({"message": {"payload": {"n": 1}}, "sender": {"id": "a"}, "recipient": {"id": "b"}})
    )
    explain = ["policy", "explain", "message.json", "--constitution", str(policies)]
    monkeypatch.setenv("EAB_POLICY__TIMEOUT_SECONDS", "60")
    status, quick = answer(capsys, *explain)
    assert (status, quick["timeout_seconds"], quick["too_slow"]) == (0, 60, False)
    assert quick["took_us"] > 0
    monkeypatch.setenv("EAB_POLICY__TIMEOUT_SECONDS", "0.000001")
    status, slow = answer(capsys, *explain)
    assert (status, slow["verdict"], slow["too_slow"]) == (0, "allow", True)
    assert run_command(explain) == 0
    said = capsys.readouterr().out
    assert "note: the decision took " in said
    assert "a live one is refused after 1e-06 s (policy.timeout_seconds)" in said
