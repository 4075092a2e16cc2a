"""`eab policy testgen`: a recorded decision becomes a Rego test that passes where it was decided."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import open_bus
from enhanced_agent_bus.cli.app import run_command
from tests.developer import PATIENT, log
from tests.support import write_constitution

RULES = {
    "cap": 'admit if input.message.payload.amount <= 100\n\ncode := "over_cap"\n\n'
    'message := sprintf("%v is too much", [input.message.payload.amount])',
    "traced": "admit if not input.message.payload.traced\n\nadmit if input.message.headers.trace",
    "boss": 'admit if input.sender.id\n\nhold contains {"approvers": 1, "roles": ["boss"], "expires_in": 60} if {\n'
    "\tinput.message.payload.amount > 50\n}",
    "notes": 'admit if not "no" in object.get(input.facts.sender, "notes", [])\n\n'
    'remember contains {"scope": "sender", "key": "notes", "value": input.message.payload.note}\n\n'
    'obligations contains {"type": "sing"} if input.message.payload.sing',
    "broken": "admit if not input.message.payload.broken\n\nadmit if to_number(input.message.payload.broken) > 0",
}
ODD = 'a "quote", a \\ and \u2028 \u202e \U0001f600 \x00 \n\t {} é # not a comment'
MESSAGES: dict[str, tuple[dict[str, Any], dict[str, str] | None]] = {
    "allowed": ({"amount": 1, "note": "one"}, None),
    "odd": ({"amount": 1.0, "odd": {ODD: [ODD, 2.5e-10, 5e-7, -0.0, [[], {}, [None, True]]]}}, {"trace": ODD}),
    "traced": ({"amount": 2, "traced": True}, {"trace": "t-1"}),
    "untraced": ({"amount": 2, "traced": True}, None),
    "held": ({"amount": 60}, None),
    "over": ({"amount": 101}, None),
    "sings": ({"amount": 1, "sing": True}, None),
    "broken": ({"amount": 1, "broken": "x"}, None),
    "last": ({"amount": 1, "note": "no"}, None),
    "noted": ({"amount": 1}, None),
}


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a constitution and a home that has decided each of these messages."""
    folder = tmp_path_factory.mktemp("decided")

    async def fill() -> None:
        policies = write_constitution(folder / "policies", RULES)
        async with open_bus(folder / "home", constitution=policies, policy=PATIENT) as bus:
            desk = await bus.register("desk", tenant="acme", roles=["planner"])
            await bus.register("booker", lambda _message: None, tenant="acme")
            for name, (payload, headers) in MESSAGES.items():
                await desk.send("booker", payload, id=name, headers=headers)
            await desk.send("nobody", {"amount": 1}, id="lost")
            await bus.wait_idle(30)

    asyncio.run(fill())
    return folder


@pytest.fixture
def folder(decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, as the current folder."""
    shutil.copytree(decided, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAB_HOME", "home")
    return tmp_path


Captured = pytest.CaptureFixture[str]


def passes(opa: Path, capsys: Captured, names: list[str]) -> None:
    """Both runners find these tests in `policies`, and all of them pass."""
    assert run_command(["--json", "policy", "test", "policies"]) == 0
    tested = json.loads(capsys.readouterr().out)["tests"]
    assert {test["name"] for test in tested} == set(names)
    done = subprocess.run([opa, "test", "-b", "policies"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"PASS: {len(names)}/{len(names)}" in done.stdout


def test_decisions_become_tests_that_pass(folder: Path, capsys: Captured, opa_binary: Path) -> None:
    """Allowed, held and refused, with headers, facts and whatever text and number a payload can hold.

    Under strict built-ins and under stock OPA; and the file is ASCII, so that nothing in a message hides in it.
    """
    names = []
    for name in MESSAGES:
        if name == "broken":
            continue
        assert run_command(["--json", "policy", "testgen", f"desk/{name}", "-o", f"policies/bus/{name}_test.rego"]) == 0
        made = json.loads(capsys.readouterr().out)
        assert made["package"] == "bus.main_test"
        text = Path(made["file"]).read_text(encoding="ascii")
        assert text == made["test"]
        names.append(made["name"])
    assert len(set(names)) == len(MESSAGES) - 1
    passes(opa_binary, capsys, names)
    capsys.readouterr()
    assert run_command(["policy", "check", "policies"]) == 0
    limit = folder / "policies/bus/rules/cap/cap.rego"
    limit.write_text(limit.read_text().replace("100", "1000"))
    run_command(["--json", "policy", "test", "policies"])
    tested = json.loads(capsys.readouterr().out.splitlines()[-1])["tests"]
    assert [test["name"] for test in tested if not test["passed"]] == [names[list(MESSAGES).index("over")]]


def test_a_rule_can_be_tested_alone(folder: Path, capsys: Captured, opa_binary: Path) -> None:
    """In the package of its own tests: what it said to this message, and its code where it has one."""
    names = []
    for number, (message, rule) in enumerate([("over", "cap"), ("over", "boss"), ("untraced", "traced")]):
        place = f"policies/bus/rules/{rule}/{rule}_{number}_test.rego"
        assert run_command(["--json", "policy", "testgen", f"desk/{message}", "--rule", rule, "-o", place]) == 0
        made = json.loads(capsys.readouterr().out)
        assert made["package"] == f"bus.rules.{rule}_test"
        names.append(made["name"])
    assert 'data.bus.rules.cap.code == "over_cap"' in (folder / "policies/bus/rules/cap/cap_0_test.rego").read_text()
    assert "admit == true" in (folder / "policies/bus/rules/boss/boss_1_test.rego").read_text()
    assert run_command(["--json", "policy", "test", "policies"]) == 0
    tested = json.loads(capsys.readouterr().out)["tests"]
    assert [test["name"] for test in tested if test["passed"]] == sorted(names, key=[t["name"] for t in tested].index)
    done = subprocess.run([opa_binary, "test", "-b", "policies"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_goes_where_a_shell_sends_it(capsys: Captured, folder: Path, opa_binary: Path) -> None:
    """Without a file the test is printed, and what people should know goes to standard error."""
    assert run_command(["policy", "testgen", "desk/over"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("package bus.main_test\n")
    assert "payload of desk/over (14 bytes)" in err
    assert "--rule cap" in err
    assert "headers" not in err
    (folder / "policies/bus/any_test.rego").write_text(out)
    name = out.partition("\ntest_")[2].partition(" ")[0]
    passes(opa_binary, capsys, [f"test_{name}"])
    assert run_command(["policy", "testgen", "desk/traced"]) == 0
    assert "and its headers" in capsys.readouterr().err


def test_who_read_the_payload_is_recorded(folder: Path) -> None:
    """Before it is shown; and a decision can be named as well as a message."""
    (decision,) = log(folder / "home", "decision", message_id="desk/over")
    assert not log(folder / "home", "access")
    assert run_command(["policy", "testgen", str(decision["seq"])]) == 0
    assert run_command(["policy", "testgen", decision["decision_id"]]) == 0
    accesses = [(record["command"], record["what"]) for record in log(folder / "home", "access")]
    assert accesses == [("policy testgen", decision["decision_id"])] * 2


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["desk/broken"], 1, "a built-in failed"),
        (["desk/lost"], 1, "before the policy was asked"),
        (["desk/unknown"], 1, "desk/unknown"),
        (["desk/over", "--rule", "no_rule"], 1, "its rules are cap"),
        (["desk/over", "-o", "policies/bus/main.rego"], 2, "is there already"),
        (["desk/over", "-o", "nowhere/a_test.rego"], 2, "nowhere"),
        (["desk/over", "-o", "policies/bus/over.rego"], 2, "policies/bus/over_test.rego"),
        (["desk/over", "--home", "elsewhere"], 2, "elsewhere"),
        ([], 2, "ID"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_tested_is_one_sentence(arguments: list[str], status: int, said: str, capsys: Captured) -> None:
    """What no test can expect, and wrong usage; never a traceback, and never somebody's file written over."""
    assert run_command(["policy", "testgen", *arguments]) == status
    out, err = capsys.readouterr()
    assert said in out + err
    assert "Traceback" not in err
