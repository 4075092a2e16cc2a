"""The commands of an operator: what a home holds, read without changing it; and what can be changed, recorded."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
import shutil
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Message, Retry, open_bus
from enhanced_agent_bus.cli import doctor
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.outcome import instant_of
from enhanced_agent_bus.weakenings import WEAKENINGS
from tests.developer import SteppedClock, log, small_bus
from tests.support import write_constitution

APP = """
async def build(bus):
    async def work(message):
        return {"secret-answer": message.payload.get("n")}
    await bus.register("worker", handler=work, tenant="acme", roles=["worker"])
"""
RULES = {
    "no_secrets": "admit if not input.message.payload.secret",
    "large": (
        "admit if true\n\n"
        'hold contains {"approvers": 1, "roles": ["boss"], "expires_in": 3600} if input.message.payload.n > 100'
    ),
    "labels": (
        "admit if true\n\n"
        'remember contains {"scope": "sender", "key": "seen", "value": "x"} if input.message.payload.n == 1\n\n'
        'remember contains {"scope": "sender", "key": "total", "add": 2} if input.message.payload.n == 1'
    ),
}
READING = [
    ["status"],
    ["agents"],
    ["queue", "list"],
    ["held", "list"],
    ["held", "show", "desk/large"],
    ["dlq", "list"],
    ["dlq", "show", "desk/dead"],
    ["facts", "list"],
    ["policy", "history"],
    ["policy", "explain", "desk/one"],
]


async def fill(home: Path, policies: Path) -> None:
    """One message in each state that lasts."""

    async def work(message: Message) -> dict[str, Any]:
        return {"n": message.payload["n"]}

    async def fail(_message: Message) -> None:
        raise ConnectionError("the secret cause")

    async with open_bus(home, constitution=policies) as bus:
        desk = await bus.register("desk", tenant="acme", roles=["planner"])
        await bus.register("worker", handler=work, tenant="acme", roles=["worker"], capabilities=["work"])
        quick = Retry.exponential(attempts=2, base_seconds=0.001, cap_seconds=0.001)
        await bus.register("fails", handler=fail, tenant="acme", retry=quick)
        await bus.register("absent", tenant="acme", topics=["news"])
        await desk.send("worker", {"n": 1}, id="one", headers={"trace": "secret-header"})
        await desk.send("worker", {"n": 200}, id="large")
        await desk.send("worker", {"n": 2, "secret": "secret-word"}, id="refused")
        await desk.send("fails", {"n": 3, "word": "secret-word"}, id="dead")
        await desk.send("absent", {"n": 4}, id="parked")
        await bus.wait_idle(30)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home that has seen every state, closed, and its constitution."""
    folder = tmp_path_factory.mktemp("filled")
    asyncio.run(fill(folder / "home", write_constitution(folder / "policies", RULES)))
    return folder


@pytest.fixture
def home(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that home."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EAB_POLICY__TIMEOUT_SECONDS", "10")  # a busy machine may take its time
    return tmp_path / "home"


def eab_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    """The documents of one command: one, or the list of them."""
    found = run_command(["--json", *arguments])
    out, err = capsys.readouterr()
    assert found == status, err
    return [json.loads(line) for line in out.splitlines()]


def fingerprint(home: Path) -> dict[str, str]:
    """Every file and what is in it."""
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def test_status_adds_up_without_a_running_bus(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each accepted message is in one state, and the weakenings are those of the last opening."""
    [status] = eab_json(capsys, "status")
    accounting = status["accounting"]
    assert accounting["accepted"] == sum(count for state, count in accounting.items() if state != "accepted")
    assert (accounting["held"], accounting["parked"], accounting["dead_lettered"]) == (1, 1, 1)
    assert "constitution_folder" in status["security_state"]
    assert (status["running"], status["revision"], status["home"]) == (False, 1, str(home))
    assert run_command(["status"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: {WEAKENINGS[name].meaning}" in out for name in status["security_state"])


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "show", "desk/held", "--payload"],
        ["held", "show", "desk/held", "--payload"],
        ["audit", "export", "--format", "opa", "--payload"],
    ],
)
def test_who_reads_payloads_changes_nothing_but_the_record_of_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No bus is opened: what is past its time stays where it is, and what was weak at the last start is still said."""
    home = tmp_path / "home"

    async def live() -> None:
        clock = SteppedClock()
        clock.weakenings, clock.ahead_seconds = ("fixed_clock",), -3600.0
        async with small_bus(tmp_path, {"large": RULES["large"]}, clock=clock) as bus:
            desk = await bus.register("desk", tenant="acme")
            await bus.register("absent", tenant="acme")
            await desk.send("absent", {"n": 500}, id="held", expires_in=60)
            await desk.send("absent", {"n": 1}, id="parked", expires_in=60)

    asyncio.run(live())
    where = ["--home", str(home)]
    before, size = eab_json(capsys, *where, "status")[0], len(log(home))
    assert (before["accounting"]["held"], before["accounting"]["parked"]) == (1, 1)
    assert "fixed_clock" in before["security_state"]
    assert run_command([*where, *words]) == 0
    capsys.readouterr()
    assert {record["kind"] for record in log(home)[size:]} == {"access", "checkpoint"}
    after = eab_json(capsys, *where, "status")[0]
    assert {**after, "records": 0} == {**before, "records": 0}


def test_a_held_message_is_shown_and_approved(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an approver decides about, who may not, and what a yes leads to; payloads only when asked for."""
    [view] = eab_json(capsys, "held", "show", "desk/large")
    assert set(view["reasons"][0]) == {"rule", "code"}  # its words may hold what the message holds
    assert (view["message_id"], view["sender"], view["hold"][0]["rule"]) == ("desk/large", "desk", "large")
    assert "payload_content" not in view
    [view] = eab_json(capsys, "held", "show", "desk/large", "--payload")
    assert set(view["reasons"][0]) == {"rule", "code", "message", "remedy"}
    ends = {record["message_id"]: record for record in log(home, "decision")}["desk/large"]["expires_us"]
    assert instant_of(ends) >= datetime.fromisoformat(view["hold_expires"]), "a hold does not outlive its message"
    assert view["payload_content"] == {"n": 200}
    assert run_command(["held", "approve", "desk/large", "--as", "desk"]) == 1
    assert "does not decide about its own message" in capsys.readouterr().err
    assert run_command(["held", "approve", "desk/large", "--as", "nobody"]) == 1
    assert "agents` shows" in capsys.readouterr().err
    assert run_command(["held", "approve", "desk/one", "--as", "desk"]) == 1
    assert "held list" in capsys.readouterr().err
    asyncio.run(hire(home, "anna"))
    [done] = eab_json(capsys, "held", "approve", "desk/large", "--as", "anna", "--comment", "a secret-word")
    assert (done["state"], done["missing"]) == ("accepted", [])
    assert eab_json(capsys, "held", "list") == []
    assert run_command(["audit", "search", "kind:approval"]) == 0
    assert "secret-word" not in capsys.readouterr().out


def test_a_held_message_is_rejected_with_a_reason(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends as refused, and that is done: exit status 0."""
    asyncio.run(hire(home, "anna"))
    assert run_command(["held", "reject", "desk/large", "--as", "anna", "--reason", " "]) == 2
    assert run_command(["held", "reject", "desk/large", "--as", "anna", "--reason", "too dear"]) == 0
    assert "approval_rejected" in capsys.readouterr().out
    assert eab_json(capsys, "status")[0]["accounting"]["held"] == 0


async def hire(home: Path, name: str) -> None:
    """A boss, registered in the home."""
    async with open_bus(home) as bus:
        await bus.register(name, tenant="acme", roles=["boss"])


async def test_status_asks_a_bus_that_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is live is only known there."""
    async with open_bus(home) as bus:
        await bus.register("worker", tenant="acme")
        assert await asyncio.to_thread(run_command, ["--json", "status"]) == 0
        assert json.loads(capsys.readouterr().out)["running"]
        assert await asyncio.to_thread(run_command, ["--json", "agents"]) == 0
        agents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [agent["id"] for agent in agents if agent["live"]] == ["worker"]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_reading_changes_no_byte_and_needs_no_constitution(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a file more, not one changed; and what a payload held is not shown."""
    before = fingerprint(home)
    assert run_command(command) == 0
    out, err = capsys.readouterr()
    assert out
    assert "secret" not in (out + err).replace("no_secrets", "").replace("message.payload.secret", "")
    assert fingerprint(home) == before


def test_lists_name_what_waits_and_why(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Queue, held and dead letters, one JSON document a line."""
    assert home.is_dir()
    [held] = eab_json(capsys, "held", "list")
    assert (held["message_id"], held["hold"][0]["rule"], held["hold"][0]["roles"]) == ("desk/large", "large", ["boss"])
    queued = {row["message_id"]: row["state"] for row in eab_json(capsys, "queue", "list")}
    assert queued == {"desk/large": "held", "desk/parked": "parked"}
    [dead] = eab_json(capsys, "dlq", "list")
    assert (dead["message_id"], dead["code"], dead["attempts"]) == ("desk/dead", "attempts_exhausted", 2)
    assert dead["error"] == "ConnectionError"
    agents = {row["id"]: row for row in eab_json(capsys, "agents")}
    assert agents["worker"]["capabilities"] == ["work"]
    assert agents["absent"]["waiting"] == 1


def test_a_payload_is_shown_only_once_that_is_recorded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--payload` writes an access record first; when that cannot be, nothing is shown."""
    [before] = eab_json(capsys, "status")
    [letter] = eab_json(capsys, "dlq", "show", "desk/dead", "--payload")
    assert letter["payload"] == {"n": 3, "word": "secret-word"}
    [after] = eab_json(capsys, "status")
    assert after["records"] > before["records"]
    (home / "bus.db").chmod(0o400)
    (home / "keys" / "log.key").rename(home / "keys" / "gone")
    assert run_command(["dlq", "show", "desk/dead", "--payload"]) == 3
    assert "secret" not in capsys.readouterr().out


def test_a_recorded_decision_can_be_explained(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the constitution that made it; values of the payload are hidden until they are asked for."""
    assert home.is_dir()
    [hidden] = eab_json(capsys, "policy", "explain", "desk/refused", status=1)
    rule = next(rule for rule in hidden["rules"] if rule["name"] == "no_secrets")
    assert not rule["admit"]
    assert "secret-word" not in json.dumps(hidden)
    [shown] = eab_json(capsys, "policy", "explain", "desk/refused", "--payload", status=1)
    assert "secret-word" in json.dumps(shown)
    eab_json(capsys, "policy", "explain", "desk/one")


def test_a_line_is_explained_with_the_agents_and_facts_of_the_home(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if it were sent now."""
    assert home.is_dir()
    Path("line.json").write_text(json.dumps({"from": "desk", "to": "worker", "payload": {"n": 9}}))
    [explained] = eab_json(capsys, "policy", "explain", "line.json")
    assert explained["allow"]
    Path("line.json").write_text(json.dumps({"from": "nobody", "to": "worker", "payload": {"n": 9}}))
    assert run_command(["policy", "explain", "line.json"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_facts_are_listed_put_and_removed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A string joins the set, a number replaces; what is removed is gone, and what is not there is exit 1."""
    assert home.is_dir()
    facts = {(row["owner"], row["key"]): row["value"] for row in eab_json(capsys, "facts", "list")}
    assert facts["desk", "seen"] == ["x"]
    assert facts["desk", "total"] == 2
    eab_json(capsys, "facts", "put", "agent", "desk", "seen", "y")
    eab_json(capsys, "facts", "put", "sender", "desk", "total", "7")
    eab_json(capsys, "facts", "put", "tenant", "acme", "closed", "yes")
    rows = eab_json(capsys, "facts", "list", "--scope", "agent", "--owner", "desk")
    assert {row["key"]: row["value"] for row in rows} == {"seen": ["x", "y"], "total": 7}
    eab_json(capsys, "facts", "remove", "agent", "desk", "seen")
    assert run_command(["facts", "remove", "agent", "desk", "seen"]) == 1
    assert run_command(["facts", "put", "world", "desk", "seen", "y"]) == 2
    assert run_command(["facts", "put", "agent", "desk", "total", "a word"]) == 2
    assert run_command(["facts", "put", "agent", "desk", "total", "[1]"]) == 2


def test_a_dead_letter_is_replayed_or_discarded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replay is decided anew and queued; a discard ends it; an unknown id is exit 1."""
    [receipt] = eab_json(capsys, "dlq", "replay", "desk/dead")
    assert receipt["state"] == "accepted"
    assert eab_json(capsys, "dlq", "list") == []
    for command in (["replay"], ["show"], ["discard", "--reason", "x"]):
        assert run_command(["dlq", *command, "desk/none"]) == 1
        assert "desk/none" in capsys.readouterr().err
    for command in (["replay"], ["show"]):
        assert run_command(["dlq", *command, "desk/dead"]) == 1
        assert "'desk/dead' is no dead letter: it is queued now" in capsys.readouterr().err
    [status] = eab_json(capsys, "status")
    assert status["accounting"]["dead_lettered"] == 0
    assert home.is_dir()


def test_a_dead_letter_can_be_ended_for_good(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is discarded, and counted there."""
    eab_json(capsys, "dlq", "discard", "desk/dead", "--reason", "done by hand")
    [status] = eab_json(capsys, "status")
    assert (status["accounting"]["dead_lettered"], status["accounting"]["discarded"]) == (0, 1)
    assert home.is_dir()


def test_a_replay_that_is_refused_stays_a_dead_letter(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 with the rule that said no."""
    policies = write_constitution(home.parent / "policies", RULES | {"no_secrets": "admit if input.message.hops > 5"})
    eab_json(capsys, "policy", "activate", str(policies))
    assert run_command(["dlq", "replay", "desk/dead"]) == 1
    assert "no_secrets" in capsys.readouterr().out
    assert len(eab_json(capsys, "dlq", "list")) == 1
    history = eab_json(capsys, "policy", "history")
    assert [entry["event"] for entry in history] == ["activated", "activated"]


def test_a_rejected_constitution_leaves_the_old_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1, recorded with its reason."""
    [before] = eab_json(capsys, "status")
    broken = write_constitution(home.parent / "broken", {"x": "admit if input.mesage.type"})
    assert run_command(["--json", "policy", "activate", str(broken)]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["reason"]) == ("constitution_rejected", "invalid")
    [after] = eab_json(capsys, "status")
    assert after["constitution"] == before["constitution"]
    assert [entry["event"] for entry in eab_json(capsys, "policy", "history")] == ["activated", "rejected"]


def test_what_was_parked_is_taken_up_by_an_application(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A message sent without its handler waits in the home; the next run that has the handler delivers it."""
    app = home.parent / "later.py"
    app.write_text(APP)
    [sent] = eab_json(capsys, "send", "--from", "desk", "--to", "worker", '{"n": 5}')
    assert (sent["receipt"]["state"], sent["outcome"]) == ("accepted", None)
    [status] = eab_json(capsys, "status")
    assert status["accounting"]["parked"] == 2
    [sent] = eab_json(capsys, "send", "--from", "desk", "--to", "worker", "--app", f"{app}:build", '{"n": 6}')
    assert sent["outcome"]["state"] == "delivered"
    [status] = eab_json(capsys, "status")
    assert status["accounting"]["parked"] == 1


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        ("{", "malformed", "not JSON"),
        ("[1]", "malformed", "not a JSON object"),
        ('{"n": 1, "n": 2}', "malformed", "twice"),
        ('{"n": NaN}', "malformed", "JSON"),
        ('{"n": ' + "[" * 70 + "]" * 70 + "}", "too_deep", "deep"),
        ('{"n": ' + "[" * 100_000, "too_deep", "deep"),
        ('{"n": "' + "x" * 300_000 + '"}', "too_large", "bytes"),
        ('{"n": "' + "x" * 17_000_000 + '"}', "too_large", "bytes"),
    ],
)
def test_a_payload_that_cannot_be_read_is_a_refusal(
    payload: str, code: str, says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1, with a receipt that says what is wrong, and a place in the log."""
    Path("payload.json").write_text(payload)
    [before] = eab_json(capsys, "status")
    [sent] = eab_json(capsys, "send", "--from", "desk", "--to", "worker", "@payload.json", status=1)
    assert (sent["receipt"]["state"], sent["receipt"]["code"]) == ("refused", code)
    assert says in sent["receipt"]["reasons"][0]["message"]
    assert sent["receipt"]["audit_seq"] >= before["records"]
    assert home.is_dir()


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ("[1]", "the payload is a JSON array, not a JSON object"),
        ("7", "the payload is a JSON number, not a JSON object"),
        ("", "not JSON: there is nothing"),
        ("\udcff", "not JSON: byte 1 is 0xff, which is not UTF-8"),
    ],
)
def test_a_payload_is_spoken_of_as_json(
    payload: str, says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as Python's types: whoever typed it may know none."""
    assert home.is_dir()
    assert run_command(["send", "--from", "desk", "--to", "worker", payload]) == 1
    out = capsys.readouterr().out
    assert says in out
    assert "one JSON object, like {" in out
    assert not any(word in out for word in ("dict", "pydantic", "str ", "None"))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (["--to", "nobody"], " to nobody"),
        (["--to", "two words"], " to two words"),
        (["--capability", "flying"], " to the capability flying"),
        (["--topic", "silence"], "nobody subscribed to the topic silence"),
    ],
)
def test_a_message_to_nobody_says_where_it_was_sent(
    where: list[str], says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was typed, not a question mark."""
    assert home.is_dir()
    assert run_command(["send", "--from", "desk", *where, "{}"]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert says in first
    assert "?" not in first


def test_a_message_that_ends_as_a_dead_letter_says_how_to_look_at_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is there to be copied, and works."""
    Path("fails.py").write_text(
        "from enhanced_agent_bus import Retry\n\n"
        "async def build(bus):\n"
        "    async def fail(message):\n"
        "        raise ConnectionError('the line is busy')\n"
        "    quick = Retry.exponential(attempts=2, base_seconds=0.001, cap_seconds=0.001)\n"
        "    await bus.register('fails', handler=fail, tenant='acme', retry=quick)\n"
    )
    assert home.is_dir()
    line = ["send", "--from", "desk", "--to", "fails", "--id", "again", "--app", "fails.py:build", '{"n": 5}']
    assert run_command(line) == 1
    hint = next(line for line in capsys.readouterr().out.splitlines() if "dlq show" in line)
    words = shlex.split(hint)
    assert run_command(words[words.index("eab") + 1 :]) == 0
    assert "the line is busy" not in capsys.readouterr().out.splitlines()[0]


def test_a_hold_says_whom_it_waits_for(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the rule has no message of its own."""
    assert home.is_dir()
    assert run_command(["send", "--from", "desk", "--to", "worker", '{"n": 300}']) == 0
    out = capsys.readouterr().out
    assert "large: waits for an approval by boss" in out
    assert "held list" in out


def test_a_dead_letter_is_not_ended_without_a_reason(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, and it stays; the log is to say why."""
    assert home.is_dir()
    assert run_command(["dlq", "discard", "desk/dead", "--reason", " "]) == 2
    assert "--reason is empty" in capsys.readouterr().err
    assert [row["message_id"] for row in eab_json(capsys, "dlq", "list")] == ["desk/dead"]


def test_status_does_not_let_a_refusal_be_misread(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accounting counts what was accepted; what was refused at once is found in the log."""
    assert home.is_dir()
    assert run_command(["status"]) == 0
    out = capsys.readouterr().out
    assert "refused later" in out
    assert f"refused at once is not among these: eab --home {home} audit search verdict:refuse" in out
    assert run_command(["audit", "search", "verdict:refuse"]) == 0
    assert "desk/refused" in capsys.readouterr().out
    [status] = eab_json(capsys, "status")
    assert {"accepted", "refused", "in_flight", "dead_lettered"} <= set(status["accounting"])


@pytest.mark.parametrize("command", [["queue"], ["held"], ["dlq"], ["facts"]])
def test_a_list_of_nothing_says_so(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence in place of an empty table, and no line at all as JSON."""
    monkeypatch.chdir(tmp_path)

    async def make() -> None:
        async with open_bus(".eab", constitution=write_constitution(tmp_path / "policies", RULES)):
            pass

    asyncio.run(make())
    assert run_command([*command, "list"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert "no" in line
    assert "  " not in line
    assert eab_json(capsys, *command, "list") == []


def test_a_file_in_the_place_of_the_home_is_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By commands that read and by those that open a bus."""
    monkeypatch.chdir(tmp_path)
    Path("afile").write_text("")
    Path("app.py").write_text(APP)
    for command in (["status"], ["run", "app.py:build", "--input", "app.py"], ["send", "--from", "a", "--to", "b"]):
        assert run_command(["--home", "afile", *command]) == 2
        assert "afile is a file, not a home" in capsys.readouterr().err


def test_sending_says_what_is_wrong_with_the_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown sender is exit 1, a missing file and two recipients are exit 2."""
    assert home.is_dir()
    assert run_command(["send", "--from", "nobody", "--to", "worker", "{}"]) == 1
    assert "nobody" in capsys.readouterr().err
    assert run_command(["send", "--from", "desk", "--to", "worker", "@nowhere.json"]) == 2
    assert "nowhere.json" in capsys.readouterr().err
    assert run_command(["send", "--from", "desk", "--to", "worker", "--topic", "news", "{}"]) == 2
    assert run_command(["send", "--from", "desk", "--to", "worker", "--priority", "99", "{}"]) == 2
    assert run_command(["send", "--from", "desk", "--to", "nobody", "{}"]) == 1
    assert run_command(["send", "--from", "desk", "--topic", "news", '{"n": 1}']) == 0


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("bus.db", b""),
        ("bus.db", b"SQLite format 3\x00" + b"\x00" * 4000),
        ("bus.db", None),
        ("home.json", None),
        ("home.json", b"{"),
        ("keys/log.key", None),
    ],
)
def test_a_damaged_home_is_said_to_be_one(
    name: str, damage: bytes | None, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3 from whatever would write, one sentence, and nothing fresh in its place."""
    file = home / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert run_command(["facts", "put", "agent", "desk", "k", "v"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("eab: ")
    assert "Traceback" not in err
    assert run_command(["doctor"]) == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("DELETE FROM records WHERE seq = 7", "seq 7: missing"),
        ("DELETE FROM records WHERE seq >= (SELECT size - 5 FROM head)", "truncated"),
        ("UPDATE messages SET state = 'delivered' WHERE id = 'desk/dead'", "says delivered of desk/dead"),
    ],
)
def test_the_doctor_finds_a_log_that_is_not_whole(
    damage: str, says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what is wrong, and that the home is evidence; it changes nothing."""
    assert finding(capsys, "home")["state"] == "ok"
    with closing(sqlite3.connect(home / "bus.db", isolation_level=None)) as connection:
        assert connection.execute(damage).rowcount
    before = fingerprint(home)
    found = finding(capsys, "home", status=1)
    assert found["state"] == "wrong"
    assert says in found["detail"]
    assert "evidence" in found["remedy"]
    assert fingerprint(home) == before


def test_the_doctor_leaves_a_long_log_to_verify(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays quick, says who checks it whole, and still misses an end that was cut off."""
    monkeypatch.setattr(doctor, "VERIFIED_RECORDS_MAX", 10)
    assert "`eab audit verify` checks" in finding(capsys, "home")["detail"]
    with closing(sqlite3.connect(home / "bus.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM records WHERE seq >= (SELECT size - 1 FROM head)")
    assert finding(capsys, "home", status=1)["state"] == "wrong"


async def test_the_doctor_looks_at_a_home_beside_its_running_bus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is written meanwhile is no damage."""
    home = tmp_path / "home"
    async with open_bus(home, constitution=write_constitution(tmp_path / "policies")) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("worker", handler=_nothing, tenant="acme")
        looking = asyncio.create_task(asyncio.to_thread(run_command, ["--json", "--home", str(home), "doctor"]))
        while not looking.done():
            await (await desk.send("worker", {"n": 1})).outcome(timeout=10)
        assert await looking == 0, capsys.readouterr().out


async def _nothing(_message: Message) -> None:
    """A handler that does nothing."""


def finding(capsys: pytest.CaptureFixture[str], what: str, status: int = 0) -> dict[str, str]:
    """What `doctor` finds of one thing."""
    [found] = eab_json(capsys, "doctor", status=status)
    [one] = [each for each in found["findings"] if each["what"] == what]
    return dict(one)


@pytest.mark.parametrize(
    ("toml", "says"),
    [("[limits]\npayload_byte = 1\n", "limits.payload_bytes"), ("[limits\n", "TOML"), ("strict = 7\n", "strict")],
)
def test_a_setting_that_cannot_be_is_exit_2(
    toml: str, says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the nearest known name; `doctor` says so too."""
    (home / "eab.toml").write_text(toml)
    assert run_command(["facts", "put", "agent", "desk", "k", "v"]) == 2
    assert says in capsys.readouterr().err
    assert run_command(["doctor"]) == 1
