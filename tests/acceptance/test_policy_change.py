"""`eab policy backtest` and `diff`: what another constitution would change, seen on recorded decisions."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, Message, Pass, Refusal, Retry, open_bus
from enhanced_agent_bus.authoring import backtest as asking
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.cli.reading.recorded import Log, kept_constitution
from enhanced_agent_bus.engines.worker import WorkerEngine
from tests.developer import PATIENT, log, until
from tests.support import constitution_digest, write_constitution

RULES = {
    "cap": 'admit if input.message.payload.amount <= data.bus.rules.cap.limit\n\ncode := "over_cap"\n\n'
    'message := sprintf("%v is too much", [input.message.payload.amount])',
    "boss": 'admit if input.sender.id\n\nhold contains {"approvers": 1, "roles": ["boss"], "expires_in": 3600} if {\n'
    "\tinput.message.payload.amount > data.bus.rules.boss.above\n}",
    "payees": "admit if input.message.headers.trace\n\nadmit if not input.message.headers.trace\n\n"
    'remember contains {"scope": "conversation", "key": "payee", "value": input.recipient.id} if {\n'
    "\tinput.message.payload.amount > 1\n}\n\n"
    'remember contains {"scope": "sender", "key": "spent", "add": input.message.payload.amount} if {\n'
    "\tinput.message.payload.amount > 1\n}",
    "seldom": 'admit if count(object.get(input.facts.conversation, "payee", [])) < 3',
}
DATA: Mapping[str, Mapping[str, Any]] = {"cap": {"limit": 100}, "boss": {"above": 50}}


def constitution(
    folder: Path, *, limit: int = 100, above: int = 50, revision: str = "2", rules: Mapping[str, str] | None = None
) -> Path:
    """Payments up to a limit, with an approval above another one."""
    data = {"cap": {"limit": limit}, "boss": {"above": above}}
    return write_constitution(folder, {**RULES, **(rules or {})}, data=data, revision=revision)


async def trade(bus: AgentBus) -> None:
    """Messages with every verdict, some of them decided more than once, and one that nobody was asked about."""

    async def fail(_message: Message) -> None:
        raise ConnectionError("not today")

    desk = await bus.register("desk", tenant="acme", roles=["planner"])
    mint = await bus.register("mint", tenant="globex")
    boss = await bus.register("chief", tenant="acme", roles=["boss"])
    for agent in ("booker", "payer"):
        await bus.register(agent, lambda _message: None, tenant="acme")
    quick = Retry.exponential(attempts=3, base_seconds=0.001, cap_seconds=0.001)
    await bus.register("fails", fail, tenant="acme", retry=quick)
    for amount in (1, 2, 40, 120, 400):
        headers = {"trace": "t-1"} if amount == 40 else None
        await desk.send("booker", {"amount": amount}, id=f"pay-{amount}", conversation="trip", headers=headers)
    await desk.send("payer", {"amount": 3}, id="again", conversation="trip")
    await desk.send("fails", {"amount": 4}, id="dead", conversation="trip")
    await mint.send("booker", {"amount": 120}, id="foreign")
    await desk.send("booker", {"amount": 60}, id="held")
    await desk.send("booker", {"amount": 70}, id="held-for-good")
    await boss.approve("desk/held")
    await desk.send("nobody", {"amount": 1}, id="lost")
    await bus.wait_idle(30)


@pytest.fixture(scope="module")
def traded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home that has decided a dozen payments, closed, and its constitution."""
    folder = tmp_path_factory.mktemp("traded")

    async def fill() -> None:
        async with open_bus(folder / "home", constitution=folder / "policies", policy=PATIENT) as bus:
            await trade(bus)

    constitution(folder / "policies", revision="1")
    asyncio.run(fill())
    return folder


@pytest.fixture
def folder(traded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, as the current folder."""
    shutil.copytree(traded, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAB_HOME", "home")
    return tmp_path


Captured = pytest.CaptureFixture[str]


def backtest(capsys: Captured, *arguments: str, status: int = 0) -> dict[str, Any]:
    """What a backtest says, as JSON."""
    found = run_command(["--json", "policy", "backtest", *arguments])
    out, err = capsys.readouterr()
    assert found == status, out + err
    document: dict[str, Any] = json.loads(out)
    return document


def counts(rows: list[dict[str, Any]], *columns: str) -> dict[Any, int]:
    """The counts of a table by some of its columns."""
    return {tuple(row[column] for column in columns): row["count"] for row in rows}


def test_every_decision_comes_out_again(folder: Path, capsys: Captured) -> None:
    """Allowed, held, released, refused and tried again: under its own constitution each is decided as it was."""
    decided = log(folder / "home", "decision")
    assert {record["verdict"] for record in decided} == {"allow", "hold", "refuse"}
    assert {"send", "retry", "release"} <= {record["why"] for record in decided}
    found = backtest(capsys, "--candidate", "policies")
    assert found["decisions"] == len(decided)
    assert counts(found["not_replayed"], "why") == {("before_policy",): 1}
    assert found["replayed"] == found["same"] == len(decided) - 1
    assert (found["conclusive"], found["flipped"], found["differences"]["count"]) == (True, 0, 0)


def test_what_would_be_decided_otherwise_is_counted_with_examples(folder: Path, capsys: Captured) -> None:
    """A lower limit refuses what was allowed, and a higher one allows what was refused: by verdict, rule and agent."""
    found = backtest(capsys, "--candidate", str(constitution(folder / "new", limit=200, above=30)))
    assert counts(found["flips"], "from", "to") == {("refuse", "hold"): 2, ("allow", "hold"): 1}
    assert counts(found["by_rule"], "rule", "from", "to") == {
        ("boss", "refuse", "hold"): 2,
        ("boss", "allow", "hold"): 1,
    }
    assert counts(found["by_agent"], "agent", "from", "to")["mint", "refuse", "hold"] == 1
    assert counts(found["by_tenant"], "tenant", "from", "to")["globex", "refuse", "hold"] == 1
    (held,) = [row for row in found["flips"] if row["from"] == "allow"]
    assert held["sample"] == ["desk/pay-40"]
    found = backtest(capsys, "--candidate", str(constitution(folder / "new", limit=300, above=500)))
    assert counts(found["flips"], "from", "to") == {("refuse", "allow"): 2, ("hold", "allow"): 2}
    found = backtest(capsys, "--candidate", str(constitution(folder / "new", limit=39)))
    assert counts(found["flips"], "from", "to") == {("allow", "refuse"): 2, ("hold", "refuse"): 2}
    assert counts(found["by_rule"], "rule") == {("cap",): 2}


class OneByOne(WorkerEngine):
    """Asks under each constitution by itself, as when a worker is lost."""

    async def compare(self, *_: object) -> None:
        """Never both at once."""


def test_both_constitutions_at_once_say_what_each_says_alone(folder: Path) -> None:
    """Whether a decision is asked under both at once or under one after the other: the same counts and examples."""

    async def tally(kind: type[WorkerEngine], candidate: Path) -> dict[str, Any]:
        engine = await kind.start(workers=1)
        try:
            found = await asking.backtest(
                engine, Log(folder / "home"), lambda digest: kept_constitution(folder / "home", digest), candidate
            )
        finally:
            await engine.close()
        return found.document()

    candidates = (
        constitution(folder / "words", revision="5"),
        constitution(folder / "limit", limit=39),
        constitution(folder / "both", limit=300, above=30),
        constitution(folder / "rule", rules={"seldom": "admit if input.message.payload.amount != 3"}),
        constitution(folder / "error", rules={"seldom": 'admit if to_number(input.message.headers["trace"]) > 0'}),
        constitution(folder / "facts", rules={"payees": 'admit if input.sender.id == "desk"'}),
        constitution(folder / "more", rules={"more": "admit if input.constitution.revision == 2"}),
    )
    for candidate in candidates:
        together, alone = (asyncio.run(tally(kind, candidate)) for kind in (WorkerEngine, OneByOne))
        assert together == alone, candidate
        assert together["conclusive"]


def test_the_other_reasons_of_the_same_verdict_are_counted(folder: Path, capsys: Captured) -> None:
    """What stays refused, by another rule, is no flip and is told."""
    payments = 'admit if input.message.payload.amount < 120\n\ncode := "payments"'
    found = backtest(capsys, "--candidate", str(constitution(folder / "new", limit=1000, rules={"boss": payments})))
    assert found["other_reasons"]["count"] == 3
    assert counts(found["flips"], "from", "to") == {("hold", "allow"): 2}


def test_the_same_rules_are_asked_once(folder: Path, capsys: Captured) -> None:
    """A candidate that differs in texts, tests and its revision gives the same answers: nothing is asked twice."""
    words = {"CONSTITUTION.md": "# other words\n"}
    tests = {"cap": "test_cap if not data.bus.rules.cap.admit with input.message.payload.amount as 1000"}
    write_constitution(folder / "words", RULES, data=DATA, revision="2", files=words, tests=tests)
    itself = backtest(capsys, "--candidate", "policies")
    assert backtest(capsys, "--candidate", "words")["evaluated"] == itself["evaluated"]
    reads = {"seldom": RULES["seldom"] + "\n\nadmit if input.constitution.revision == 2"}  # that is not the same
    constitution(folder / "reads", rules=reads)
    assert backtest(capsys, "--candidate", "reads")["evaluated"] == 2 * itself["evaluated"]


def test_a_rule_that_counts_otherwise_is_told(folder: Path, capsys: Captured) -> None:
    """What a candidate would remember otherwise changes later verdicts, and those are not seen: so it is said."""
    payees = RULES["payees"].replace('"add": input', '"add": 2 * input')
    constitution(folder / "new", rules={"payees": payees})
    found = backtest(capsys, "--candidate", "new")
    assert (found["flipped"], found["other_facts"]["count"]) == (0, 7)
    assert found["other_facts"]["sample"][0] == "desk/pay-2"
    assert backtest(capsys, "--candidate", "policies")["other_facts"] == {"count": 0, "sample": []}
    assert run_command(["policy", "backtest", "--candidate", "new"]) == 0
    assert "it would remember other facts" in capsys.readouterr().out
    assert run_command(["policy", "diff", "policies", "new"]) == 1
    assert "it would remember other facts" in capsys.readouterr().out


def test_a_table_for_people(folder: Path, capsys: Captured) -> None:
    """The same as text: what was compared, what flips, by whom; and no payload."""
    constitution(folder / "new", limit=39)
    assert run_command(["policy", "backtest", "--candidate", "new"]) == 0
    out = capsys.readouterr().out
    assert "refused before the policy was asked" in out
    assert "allow -> refuse" in out
    assert "desk/pay-40" in out
    assert constitution_digest(folder / "new") in out
    assert "too much" not in out
    assert run_command(["policy", "backtest", "--candidate", "policies"]) == 0
    assert "no verdict would change" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limit", "above", "fail_on", "status"),
    [
        (300, 500, "allow", 1),
        (300, 500, "any", 1),
        (300, 500, "refuse", 0),
        (39, 50, "allow", 0),
        (39, 50, "refuse", 1),
        (39, 50, "any", 1),
        (100, 50, "any", 0),
    ],
)
def test_a_flip_can_fail_a_build(
    limit: int, above: int, fail_on: str, status: int, folder: Path, capsys: Captured
) -> None:
    """`--fail-on allow` ends with 1 when something becomes allowed, `refuse` when something becomes refused."""
    new = constitution(folder / "new", limit=limit, above=above)
    backtest(capsys, "--candidate", str(new), "--fail-on", fail_on, status=status)


def test_only_some_decisions_can_be_asked_for(folder: Path, capsys: Captured) -> None:
    """`--limit` takes the newest; `--since` those from a time on."""
    decided = log(folder / "home", "decision")
    found = backtest(capsys, "--candidate", "policies", "--limit", "3")
    assert found["decisions"] == 3
    assert counts(found["not_replayed"], "why") == {("before_policy",): 1}  # the last one
    found = backtest(capsys, "--candidate", "policies", "--since", decided[4]["at"])
    assert found["decisions"] == sum(record["at"] >= decided[4]["at"] for record in decided)
    found = backtest(capsys, "--candidate", "policies", "--since", "2001-01-01", "--limit", "1000")
    assert found["decisions"] == len(decided)
    found = backtest(capsys, "--candidate", "policies", "--since", "2999-01-01")
    assert (found["decisions"], found["conclusive"]) == (0, False)


@pytest.mark.usefixtures("folder")
def test_a_check_of_nothing_does_not_pass(capsys: Captured) -> None:
    """With --fail-on somebody relies on it: where nothing could be compared the exit status is 1."""
    backtest(capsys, "--candidate", "policies", "--since", "2999-01-01", "--fail-on", "allow", status=1)
    assert run_command(["policy", "backtest", "--candidate", "policies", "--since", "2999-01-01"]) == 0
    assert "nothing is known about the candidate" in capsys.readouterr().out


def write(home: Path, statement: str, *values: object) -> None:
    """Changes a home behind the bus's back."""
    database = sqlite3.connect(home / "bus.db")
    with database:
        database.execute(statement, values)
    database.close()


def test_what_is_gone_is_counted_by_reason(folder: Path, capsys: Captured) -> None:
    """Payloads and texts that were erased, and a constitution that is not kept, are no errors: they are not asked."""
    home = folder / "home"
    (seq,) = (record["seq"] for record in log(home, "decision", message_id="desk/pay-2"))
    write(home, "DELETE FROM payloads WHERE seq = ?", seq)
    (seq,) = (record["seq"] for record in log(home, "decision", message_id="desk/again"))
    write(home, "DELETE FROM texts WHERE seq = ?", seq)
    (seq,) = (record["seq"] for record in log(home, "decision", message_id="desk/pay-40"))
    write(home, "UPDATE payloads SET body = ? WHERE seq = ?", b'{"amount":1}', seq)
    found = backtest(capsys, "--candidate", "policies")
    why = {row["why"]: row for row in found["not_replayed"]}
    assert {reason: (row["count"], row["sample"]) for reason, row in why.items()} == {
        "before_policy": (1, ["desk/lost"]),
        "payload_gone": (1, ["desk/pay-2"]),
        "texts_gone": (1, ["desk/again"]),
        "payload_altered": (1, ["desk/pay-40"]),
    }
    assert found["conclusive"]
    (kept,) = (home / "constitutions").glob("*.tar.gz")
    kept.unlink()
    found = backtest(capsys, "--candidate", str(constitution(folder / "new", limit=39)))
    assert counts(found["not_replayed"], "why")["constitution_missing",] == found["decisions"] - 4
    assert not found["conclusive"]


@pytest.mark.parametrize(
    ("code", "engine"),
    [
        ("policy_timeout", "embedded"),
        ("policy_unavailable", "embedded"),
        ("policy_revision_mismatch", "server"),
        ("policy_malformed", "server"),
    ],
)
def test_what_nobody_answered_then_is_not_asked(code: str, engine: str, folder: Path, capsys: Captured) -> None:
    """A timeout says nothing about the message, and a server may lose its bundle and find it again."""
    home = folder / "home"
    (record,) = log(home, "decision", message_id="desk/pay-120")
    text = json.dumps({**record, "code": code, "engine": {**record["engine"], "name": engine}})
    write(home, "UPDATE records SET body = ? WHERE seq = ?", text.encode(), record["seq"])
    found = backtest(capsys, "--candidate", "policies")
    assert counts(found["not_replayed"], "why")["undecided",] == 1
    assert found["conclusive"]


async def test_what_is_not_kept_is_not_asked(tmp_path: Path, capsys: Captured) -> None:
    """With audit.store_payloads = false the payloads of what has ended are gone; dead letters keep theirs."""
    constitution(tmp_path / "policies", revision="1")
    home = tmp_path / "home"
    async with open_bus(
        home, constitution=tmp_path / "policies", policy=PATIENT, audit={"store_payloads": False}
    ) as bus:
        await trade(bus)
        found = await asyncio.to_thread(
            backtest, capsys, "--home", str(home), "--candidate", str(tmp_path / "policies")
        )
    assert found["replayed"] == sum(
        row["message_id"] in ("desk/dead", "desk/held-for-good") for row in log(home, "decision")
    )
    assert counts(found["not_replayed"], "why")["payload_gone",] > 0


def test_a_decision_that_does_not_come_out_again_ends_it(folder: Path, capsys: Captured) -> None:
    """A constitution gives one answer to one input: where the record says otherwise nothing can be concluded."""
    home = folder / "home"
    (record,) = log(home, "decision", message_id="desk/pay-40")
    said = {"verdict": "refuse", "code": "policy_denied", "reasons": [{"rule": "x", "code": "y"}]}
    text = json.dumps({**record, **said, "engine": {**record["engine"], "opa": "1.0.1"}})
    write(home, "UPDATE records SET body = ? WHERE seq = ?", text.encode(), record["seq"])
    found = backtest(capsys, "--candidate", "policies", status=1)
    assert (found["conclusive"], found["differences"]["count"]) == (False, 1)
    (different,) = found["differences"]["sample"]
    assert different["message_id"] == "desk/pay-40"
    assert different["recorded"] == {
        "verdict": "refuse",
        "code": "policy_denied",
        "reasons": [{"rule": "x", "code": "y"}],
    }
    assert different["replayed"] == {"verdict": "allow", "code": None, "reasons": []}
    assert run_command(["policy", "backtest", "--candidate", "policies"]) == 1
    out = capsys.readouterr().out
    assert "nothing can be concluded" in out
    assert "they were decided by OPA 1.0.1, and this is" in out
    assert "desk/pay-40" in out


def test_other_words_of_a_rule_are_a_difference(folder: Path, capsys: Captured) -> None:
    """What a rule said stands apart from the record, and is compared as long as it is kept."""
    home = folder / "home"
    (record,) = log(home, "decision", message_id="desk/pay-120")
    write(home, "UPDATE texts SET body = CAST(replace(body, '120', '121') AS BLOB) WHERE seq = ?", record["seq"])
    found = backtest(capsys, "--candidate", "policies")
    assert {"why": "texts_altered", "count": 1, "sample": ["desk/pay-120"]}.items() <= found["not_replayed"][1].items()
    with closing(sqlite3.connect(home / "bus.db")) as database:
        salt, text = database.execute("SELECT salt, body FROM texts WHERE seq = ?", (record["seq"],)).fetchone()
    fits = sha256(salt + text).hexdigest()  # as if the rule had said so when it was recorded
    swap = "UPDATE records SET body = CAST(replace(body, ?, ?) AS BLOB) WHERE seq = ?"
    write(home, swap, record["texts"], fits, record["seq"])
    found = backtest(capsys, "--candidate", "policies", status=1)
    (different,) = found["differences"]["sample"]
    assert (different["message_id"], different["only_words"]) == ("desk/pay-120", True)


class Picky:
    """A gate that refuses one conversation."""

    name = "picky"

    async def check(self, message: Message) -> Pass | Refusal:
        return Refusal("no", "not that one") if message.conversation == "other" else Pass()


STRANGE = {
    "everything": "admit if not input.message.payload.no",
    "strange": "admit if not input.message.payload.broken\n\nadmit if to_number(input.message.payload.broken) > 0",
    "notes": "admit if true\n\n"
    'obligations contains {"type": "deliver_only_to", "agent": "payer"} if input.message.payload.only\n\n'
    'obligations contains {"type": "sing"} if input.message.payload.sing\n\n'
    'remember contains {"scope": "recipient", "key": "k", "add": 1} if input.message.payload.number\n\n'
    'remember contains {"scope": "recipient", "key": "k", "value": "s"} if input.message.payload.text\n\n'
    'remember contains {"scope": "tenant", "key": sprintf("key-%v", [n]), "add": 1} if {\n'
    "\tsome n in numbers.range(1, input.message.payload.keys)\n}\n\n"
    'hold contains {"roles": ["boss"]} if input.message.payload.wait',
}


async def test_whatever_was_decided_comes_out_again(tmp_path: Path, capsys: Captured) -> None:
    """Undefined, malformed and failing answers, obligations, facts that have no room, gates: each as it was."""
    policies = write_constitution(tmp_path / "policies", STRANGE)
    home = tmp_path / "home"
    payloads: list[dict[str, Any]] = [
        {"a": 1},
        {"no": True},
        {"broken": "x"},
        {"broken": "1"},
        {"only": True},
        {"sing": True},
        {"number": True},
        {"text": True},
        {"keys": 250},
        {"keys": 257},
        {"wait": True},
    ]
    async with open_bus(home, constitution=policies, policy=PATIENT, gates=[Picky()]) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", lambda _message: None, tenant="acme")
        for payload in payloads:
            await desk.send("booker", payload)
        await desk.send("desk", {"number": True})
        await desk.send("booker", {"a": 1}, conversation="other")
        await bus.wait_idle(30)
    codes = [record["code"] or record["verdict"] for record in log(home, "decision")]
    assert codes == [
        *("allow", "policy_denied", "policy_error", "allow", "policy_denied", "obligation_unknown", "allow"),
        *("policy_malformed", "allow", "facts_full", "hold", "allow", "gate_refused"),
    ]
    found = await asyncio.to_thread(backtest, capsys, "--home", str(home), "--candidate", str(policies))
    assert counts(found["not_replayed"], "why") == {("before_policy",): 1}
    assert (found["replayed"], found["flipped"]) == (len(codes) - 1, 0)
    assert counts(found["errors"], "code") == {
        ("policy_error",): 1,
        ("obligation_unknown",): 1,
        ("policy_malformed",): 1,
    }


async def test_it_works_beside_a_running_bus(tmp_path: Path, capsys: Captured) -> None:
    """It takes no lock and writes nothing: the bus goes on, and what it adds meanwhile is left for the next time."""
    policies = constitution(tmp_path / "policies", revision="1")
    home = tmp_path / "home"
    async with open_bus(home, constitution=policies, policy=PATIENT) as bus:
        await trade(bus)
        size = bus.status().records
        arguments = ("--home", str(home), "--candidate", str(constitution(tmp_path / "new", limit=39)))
        asked = asyncio.create_task(asyncio.to_thread(backtest, capsys, *arguments))
        desk = await bus.agent("desk")
        while not asked.done():
            await desk.send("booker", {"amount": 1})
            await asyncio.sleep(0.01)
        found = await asked
        await until(lambda: bus.status().records > size)
    assert found["flipped"] == 4


async def test_decisions_of_several_constitutions(tmp_path: Path, capsys: Captured) -> None:
    """Each is asked under the one that made it; a pinned agent is taken to agree to the candidate."""
    home = tmp_path / "home"
    policies = constitution(tmp_path / "policies", revision="1")
    bound = "admit if input.constitution.agreed == input.constitution.digest"
    async with open_bus(home, constitution=policies, policy=PATIENT) as bus:
        await trade(bus)
        await bus.activate(constitution(policies, limit=39, revision="2"))
        desk = await bus.agent("desk")
        await desk.send("booker", {"amount": 40}, id="later")
        await bus.activate(constitution(policies, limit=39, revision="3", rules={"bound": bound}))
        await desk.send("booker", {"amount": 1}, id="latest")
    (later,) = log(home, "decision", message_id="desk/later")
    assert later["verdict"] == "refuse"
    found = await asyncio.to_thread(backtest, capsys, "--home", str(home), "--candidate", str(policies))
    assert (found["conclusive"], found["replayed"]) == (True, found["decisions"] - 1)
    assert counts(found["flips"], "from", "to") == {("allow", "refuse"): 2, ("hold", "refuse"): 2}
    again = await asyncio.to_thread(
        backtest, capsys, "--home", str(home), "--candidate", later["constitution"]
    )  # by its digest
    assert again["candidate"]["revision"] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--candidate", "nowhere"], 2, "nowhere"),
        (["--candidate", "0" * 64], 2, "0" * 64),
        (["--candidate", "policies", "--since", "noon"], 2, "noon"),
        (["--candidate", "policies", "--limit", "0"], 2, "limit"),
        (["--candidate", "policies", "--fail-on", "hold"], 2, "fail-on"),
        (["--candidate", "broken"], 1, "not valid"),
        ([], 2, "candidate"),
        (["--candidate", "policies", "--home", "elsewhere"], 2, "elsewhere"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    arguments: list[str], status: int, said: str, folder: Path, capsys: Captured
) -> None:
    """Wrong usage is 2, and a candidate that does not compile is 1; never a traceback."""
    constitution(folder / "broken", rules={"cap": "admit if input.mesage"})
    assert run_command(["policy", "backtest", *arguments]) == status
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in out + err


# --- diff ----------------------------------------------------------------------------------------------------------


def diff(capsys: Captured, *arguments: str, status: int = 1) -> dict[str, Any]:
    """What differs, as JSON."""
    found = run_command(["--json", "policy", "diff", *arguments])
    out, err = capsys.readouterr()
    assert found == status, out + err
    document: dict[str, Any] = json.loads(out)
    return document


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a home, and no other one named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAB_HOME", raising=False)
    return tmp_path


def test_the_same_bytes_are_no_difference(no_home: Path, capsys: Captured) -> None:
    """Exit 0, and a bundle is the same as the folder that it was built of."""
    constitution(no_home / "a")
    constitution(no_home / "b")
    assert diff(capsys, "a", "b", status=0)["same"]
    run_command(["policy", "build", "b", "-o", "b.tar.gz"])
    capsys.readouterr()
    assert run_command(["policy", "diff", "a", "b.tar.gz"]) == 0
    assert "they are the same" in capsys.readouterr().out


def test_what_differs_is_named(no_home: Path, capsys: Captured) -> None:
    """Rules that came, went and changed, with their files; data by its path; what is read; the revision."""
    tests = {"cap": "test_cap if data.bus.rules.cap.admit with input.message.payload.amount as 5"}
    write_constitution(no_home / "a", RULES, data={**DATA, "cap": {"limit": 100, "a list": [1], "gone": {"x": 1}}})
    changed = {
        **{name: body for name, body in RULES.items() if name != "seldom"},
        "few": "admit if input.message.hops < 3",
    }
    changed["boss"] += "\n\nmessage := input.message.topic"
    data = {**DATA, "cap": {"limit": 100.0, "a list": [1, 2], "come": None}}
    write_constitution(no_home / "b", changed, data=data, tests=tests, revision="2", name="other")
    found = diff(capsys, "a", "b")
    assert found["rules"] == {
        "added": ["few"],
        "removed": ["seldom"],
        "changed": [
            {
                "rule": "cap",
                "files": [
                    {"file": "bus/rules/cap/cap_test.rego", "change": "added"},
                    {"file": "bus/rules/cap/data.json", "change": "changed"},
                ],
            },
            {"rule": "boss", "files": [{"file": "bus/rules/boss/boss.rego", "change": "changed"}]},
        ],
        "reordered": False,
    }
    assert {one["path"]: (one["change"], one.get("from"), one.get("to")) for one in found["data"]} == {
        "data.bus.manifest.rules": ("changed", list(RULES), list(changed)),
        'data.bus.rules.cap["a list"]': ("changed", [1], [1, 2]),
        "data.bus.rules.cap.come": ("added", None, None),
        "data.bus.rules.cap.gone": ("removed", {"x": 1}, None),
        "data.bus.rules.cap.limit": ("changed", 100, 100.0),
    }
    assert found["reads"] == {
        "added": ["input.message.hops", "input.message.topic"],
        "removed": ["input.facts.conversation"],
    }
    assert (found["revision"], found["name"], found["not_after"]) == (
        {"from": 1, "to": 2},
        {"from": "small", "to": "other"},
        None,
    )
    assert found["decisions"] is None  # there is no home
    assert run_command(["policy", "diff", "a", "b"]) == 1
    out = capsys.readouterr().out
    for said in ("few", "seldom", "data.bus.rules.cap.limit", "input.message.hops", "revision: 1 -> 2"):
        assert said in out


def test_with_a_home_the_flips_between_the_two(folder: Path, capsys: Captured) -> None:
    """Each recorded decision is asked under the one and under the other, whatever was recorded; digests will do."""
    constitution(folder / "low", limit=39)
    constitution(folder / "high", limit=300, above=500)
    found = diff(capsys, "low", "high")["decisions"]
    assert counts(found["flips"], "from", "to") == {("refuse", "allow"): 6}
    assert (found["replayed"], found["same"]) == (found["decisions"] - 1, found["replayed"] - 6)
    (kept,) = (folder / "home" / "constitutions").glob("*.tar.gz")
    digest = kept.name.removesuffix(".tar.gz")
    found = diff(capsys, digest, "low")["decisions"]
    assert counts(found["flips"], "from", "to") == {("allow", "refuse"): 2, ("hold", "refuse"): 2}
    assert diff(capsys, digest, "low", "--limit", "2")["decisions"]["decisions"] == 2
    assert diff(capsys, digest, "low", "--no-decisions")["decisions"] is None
    assert run_command(["policy", "diff", "low", "high"]) == 1
    assert "refuse -> allow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["a"], 2, "B"),
        (["a", "nowhere"], 2, "nowhere"),
        (["a", "0" * 64], 2, "keeps no constitution"),
        (["a", "broken"], 1, "not valid"),
        (["a", "a", "--home", "elsewhere"], 2, "elsewhere"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    arguments: list[str], status: int, said: str, no_home: Path, capsys: Captured
) -> None:
    """A missing argument, path, digest or home is 2."""
    constitution(no_home / "a")
    constitution(no_home / "broken", rules={"cap": "admit if input.mesage"})
    assert run_command(["policy", "diff", *arguments]) == status
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in out + err
