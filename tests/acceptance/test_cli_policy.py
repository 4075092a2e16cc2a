"""`eab policy`: what an author is told about a constitution, and that it is enough to mend it."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus.cli.app import run_command
from tests.support import constitution_digest, write_constitution

RULES = {
    "same_tenant": "admit if input.sender.tenant == input.recipient.tenant",
    "small": 'admit if input.message.payload.amount < data.bus.rules.small.limit\n\ncode := "too_much"',
}
DATA = {"small": {"limit": 10}}
TESTS = {"small": "test_small if data.bus.rules.small.admit with input.message.payload.amount as 5"}


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A constitution of two rules, one of them tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAB_HOME", raising=False)
    return write_constitution(tmp_path / "policies", RULES, data=DATA, tests=TESTS)


def document(amount: int, recipient: str = "acme") -> dict[str, Any]:
    """An input document."""
    return {
        "message": {"type": "command", "payload": {"amount": amount}},
        "sender": {"id": "a", "tenant": "acme", "roles": [], "capabilities": []},
        "recipient": {"id": "b", "tenant": recipient, "roles": [], "capabilities": []},
    }


def eab_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the document."""
    status = run_command(["--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_the_hash_is_what_sha256sum_says(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64 digits and nothing else; the bundle of the folder has the same."""
    assert run_command(["policy", "hash", str(policies)]) == 0
    digest = capsys.readouterr().out
    assert digest == constitution_digest(policies) + "\n"
    assert run_command(["policy", "build", str(policies), "-o", "b.tar.gz"]) == 0
    capsys.readouterr()
    run_command(["policy", "hash", "b.tar.gz"])
    assert capsys.readouterr().out == digest


def test_a_bundle_is_the_same_bytes_whoever_builds_it(policies: Path) -> None:
    """Sorted, without times and owners, and of the source's own bytes."""
    run_command(["policy", "build", str(policies), "-o", "one.tar.gz"])
    for file in policies.rglob("*"):
        file.touch()
    run_command(["policy", "build", str(policies), "--output", "two.tar.gz"])
    one, two = Path("one.tar.gz"), Path("two.tar.gz")
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as bundle:
        names = bundle.getnames()
    assert "CONSTITUTION.md" in [name.lstrip("./") for name in names]


def test_a_good_constitution_shows_what_it_reads(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, the rules, the tests that passed, and every path under input."""
    assert run_command(["policy", "check", str(policies)]) == 0
    out = capsys.readouterr().out
    assert constitution_digest(policies) in out
    for path in ("input.sender.tenant", "input.recipient.tenant", "input.message.payload.amount"):
        assert path in out
    status, checked = eab_json(capsys, "policy", "check", str(policies))
    assert (status, checked["ok"], checked["rules"]) == (0, True, ["same_tenant", "small"])
    assert checked["tests"]["passed"] == 1


def test_a_path_that_is_wider_than_written_names_its_line(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that an author sees why decisions are seldom cached."""
    wide = 'admit if {\n\tsome role in input.sender.roles\n\trole == "x"\n}'
    write_constitution(policies, {**RULES, "wide": wide}, data=DATA)
    assert run_command(["policy", "check", str(policies)]) == 0
    assert "widened by bus/rules/wide/wide.rego:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ("admit if input.mesage.type", r"bus/rules/small/small.rego:5:"),
        ("admit if input.message.type == == 1", r"bus/rules/small/small.rego:5:"),
        ("admit if no_such(input.message.type)", r"bus/rules/small/small.rego:5:"),
        ("admit if data.bus.rules.smal.limit", r"bus/rules/small/small.rego:5:"),
    ],
)
def test_a_mistake_is_shown_with_its_line_and_a_caret(
    rule: str, place: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1; file, row and column, the line itself and where in it."""
    write_constitution(policies, {**RULES, "small": rule}, data=DATA)
    assert run_command(["policy", "check", str(policies)]) == 1
    out = capsys.readouterr().out
    assert re.search(place, out), out
    assert re.search(r"^ +\^$", out, re.MULTILINE), out
    assert "cannot be activated" in out


def test_tests_are_run_and_what_they_leave_out_is_shown(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 when all pass, with the lines that no test has run."""
    status, tested = eab_json(capsys, "policy", "test", str(policies))
    assert (status, [test["passed"] for test in tested["tests"]]) == (0, [True])
    coverage = {file["file"]: file for file in tested["coverage"]}
    assert coverage["bus/rules/same_tenant/same_tenant.rego"]["uncovered_rows"]
    assert run_command(["policy", "test", str(policies)]) == 0
    out = capsys.readouterr().out
    assert "1 test passed, 0 failed" in out


def test_a_test_that_fails_is_exit_1(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its file and line; so does a constitution without any test."""
    write_constitution(policies, RULES, data=DATA, tests={"small": TESTS["small"].replace("as 5", "as 50")})
    assert run_command(["policy", "test", str(policies)]) == 1
    assert "bus/rules/small/small_test.rego:3: test_small" in capsys.readouterr().out
    (policies / "bus/rules/small/small_test.rego").unlink()
    assert run_command(["policy", "test", str(policies)]) == 1
    assert "there are no tests" in capsys.readouterr().out


def test_an_answer_is_explained_rule_by_rule(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rule that said no, its first failing expression, and the value that it saw."""
    Path("message.json").write_text(json.dumps(document(12)))
    status, explained = eab_json(capsys, "policy", "explain", "message.json", "--constitution", str(policies))
    assert (status, explained["allow"]) == (1, False)
    answers = {rule["name"]: rule for rule in explained["rules"]}
    assert answers["same_tenant"]["admit"]
    assert not answers["small"]["admit"]
    assert "amount" in answers["small"]["failing"]["text"]
    assert answers["small"]["failing"]["values"]["input.message.payload.amount"] == 12
    run_command(["policy", "explain", "message.json", "--constitution", str(policies)])
    out = capsys.readouterr().out
    assert "input.message.payload.amount = 12" in out
    assert "refused (policy_denied)" in out
    Path("message.json").write_text(json.dumps(document(2)))
    assert run_command(["policy", "explain", "message.json", "--constitution", str(policies)]) == 0


@pytest.mark.parametrize("command", ["check", "test", "hash", "build", "activate"])
def test_a_path_that_is_not_there_is_exit_2(command: str, policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence that names it."""
    assert run_command(["policy", command, str(policies / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "test"])
def test_a_folder_that_is_no_constitution_is_exit_1(
    command: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what is missing and shows no traceback."""
    folder = policies.parent / "other"
    folder.mkdir()
    (folder / "main.py").write_text("print()")
    assert run_command(["policy", command, str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "main.py" in out + err or ".manifest" in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("content", "status"), [("{", 2), ("[]", 2), ('{"message": {}, "message": {}}', 2), ("\xff", 2)]
)
def test_a_message_file_that_cannot_be_read_is_exit_2(
    content: str, status: int, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that says what is wrong with it."""
    Path("message.json").write_bytes(content.encode("latin-1"))
    assert run_command(["policy", "explain", "message.json", "--constitution", str(policies)]) == status
    assert "message.json" in capsys.readouterr().err
