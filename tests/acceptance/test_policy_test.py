"""`eab policy test`: which tests run, how much of the lines, and for one that fails what stood where it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from enhanced_agent_bus.cli.app import run_command
from tests.support import write_constitution

ROOT: Final = Path(__file__).resolve().parents[2]
WAIT_SECONDS: Final = 60
RULES: Final = {
    "small": """admit if within

within if {
	some role in input.sender.roles
	input.message.priority <= data.bus.rules.small.highest[role]
}
""",
    "spoken": 'admit if not silent(input.message)\n\nsilent(message) if message.payload.text == ""',
}
DATA: Final = {"small": {"highest": {"guest": 0, "planner": 2}}}


def small(test: str) -> dict[str, str]:
    """Tests of the rule `small`."""
    return {"small": f"import data.bus.rules.small\n\n{test}"}


def asked(priority: int, *roles: str) -> str:
    """An input."""
    return json.dumps({"message": {"priority": priority}, "sender": {"roles": list(roles)}})


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two rules, one with a test that passes."""
    monkeypatch.chdir(tmp_path)
    tests = small(f"test_small if small.admit with input as {asked(1, 'planner')}")
    return write_constitution(tmp_path / "policies", RULES, data=DATA, tests=tests)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the document."""
    status = run_command(["--json", "policy", "test", *arguments])
    return status, json.loads(capsys.readouterr().out)


def failing(capsys: pytest.CaptureFixture[str], tests: dict[str, str], policies: Path) -> dict[str, Any]:
    """Where the one test ended that does not pass."""
    write_constitution(policies, RULES, data=DATA, tests=tests)
    status, tested = answer(capsys, str(policies))
    assert (status, tested["ok"]) == (1, False)
    (failed,) = [test for test in tested["tests"] if not test["passed"]]
    found: dict[str, Any] = failed["failing"]
    return found


def test_a_test_that_fails_names_its_expression_and_the_rules_behind_it(
    policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line of the test, what was replaced in it, and the rule's own expression with its refs and variables."""
    step = failing(capsys, small(f"test_high if {{\n\tsmall.admit with input as {asked(2, 'guest')}\n}}"), policies)
    assert (step["file"], step["row"]) == ("bus/rules/small/small_test.rego", 6)
    assert step["text"].startswith("small.admit with input as")
    assert step["values"]["data.bus.rules.small.admit"] is False
    assert step["values"]["input"]["sender"]["roles"] == ["guest"]
    inside = step["inside"]
    assert (inside["file"], inside["row"], inside["via"]) == (
        "bus/rules/small/small.rego",
        9,
        ["data.bus.rules.small.within"],
    )
    assert inside["text"] == "input.message.priority <= data.bus.rules.small.highest[role]"
    assert inside["values"] == {"input.message.priority": 2, "data.bus.rules.small.highest[role]": 0, "role": "guest"}


def test_a_not_that_fails_says_what_was_true(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The body that held, with what it saw under the test's own data."""
    test = f"test_no if not small.admit with input as {asked(3, 'guest')} with data.bus.rules.small.highest as high"
    step = failing(capsys, small(f'high := {{"guest": 9}}\n\n{test}'), policies)
    because = step["because"]
    assert (because["file"], because["row"]) == ("bus/rules/small/small.rego", 8)
    assert because["values"]["data.bus.rules.small.highest[role]"] == 9
    assert because["values"]["input.message.priority"] == 3


def test_a_comparison_that_fails_shows_both_sides(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Variables, what a call gave, and what had no value at all."""
    test = 'test_sides if {\n\tsaid := upper("a")\n\tconcat("", [said, "b"]) == "ab"\n}'
    assert failing(capsys, {"small": test}, policies)["values"] == {'concat("", [said, "b"])': "Ab", "said": "A"}
    test = 'test_gone if {\n\tsaid := upper("a")\n\tcount([said, input.message.topic]) == 2\n}'
    step = failing(capsys, {"small": test}, policies)
    assert (step["values"], step["missing"]) == ({"said": "A"}, ["input.message.topic"])


def test_an_every_that_fails_names_the_element(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one that it was not true for, and not the whole list."""
    test = """test_each if every role in ["planner", "guest"] {
	small.admit with input.sender.roles as [role]
		with input.message.priority as 1
}"""
    step = failing(capsys, small(test), policies)
    assert step["values"]["role"] == "guest"
    assert step["inside"]["values"]["input.message.priority"] == 1


def test_a_test_that_does_not_end_is_ended_and_said_in_a_sentence(
    policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within how long, and how long the bus gives a decision; and the other tests are run."""
    every = "some a in numbers.range(1, 20000); some b in numbers.range(1, 20000)"
    tests = f"test_slow if count([1 | {every}; a == b]) > 5\n\ntest_quick if 1 + 1 == 2\n"
    write_constitution(policies, RULES, data=DATA, tests={"small": tests})
    status, tested = answer(capsys, str(policies))
    slow, quick = (
        next(test for test in tested["tests"] if test["name"] == name) for name in ("test_slow", "test_quick")
    )
    assert (status, quick["passed"], slow["passed"]) == (1, True, False)
    assert slow["error"].startswith(
        "it did not end within 5 s, and the bus gives a whole decision policy.timeout_seconds"
    )


def test_a_test_with_cases_names_those_that_fail(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As OPA's own test cases: one rule, several names."""
    test = """test_case[name] if {
	some name, priority in {"low": 0, "high": 2}
	small.admit with input as {"message": {"priority": priority}, "sender": {"roles": ["guest"]}}
}"""
    write_constitution(policies, RULES, data=DATA, tests=small(test))
    status, tested = answer(capsys, str(policies))
    assert status == 1
    assert tested["tests"][0]["cases"] == ["high"]
    assert tested["tests"][0]["failing"]["values"]["priority"] == 2


def test_a_built_in_that_fails_shows_what_it_got(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it broke, in the rule and not in the test, with the value of that one time."""
    rules = {**RULES, "lowered": 'admit if {\n\tsome word in input.message.payload.words\n\tlower(word) == "x"\n}'}
    test = 'test_words if data.bus.rules.lowered.admit with input as {"message": {"payload": {"words": ["a", 7]}}}'
    write_constitution(policies, rules, data=DATA, tests={"lowered": test})
    status, tested = answer(capsys, str(policies), "--run", "words")
    (failed,) = tested["tests"]
    assert (status, failed["error"]) == (1, "lower: operand 1 must be string but got number")
    step = failed["failing"]
    assert (step["file"], step["row"]) == ("bus/rules/lowered/lowered.rego", 7)
    assert step["values"]["word"] == 7


def test_a_failure_is_shown_with_its_values(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people: file and line of both expressions, a line for each name, names as the source has them."""
    test = small(f"test_high if small.admit with input as {asked(2, 'guest')}")
    write_constitution(policies, RULES, data=DATA, tests=test)
    assert run_command(["policy", "test", str(policies)]) == 1
    out = capsys.readouterr().out
    assert "bus/rules/small/small_test.rego:5: test_high: it was not true" in out
    assert "at bus/rules/small/small_test.rego:5:" in out
    assert "small.admit = false" in out
    assert "where it ended at bus/rules/small/small.rego:9, in within:" in out
    assert 'role = "guest"' in out


@pytest.mark.parametrize(
    ("run", "count"), [("small", 1), ("spoken_test", 1), ("^data.bus.rules.small_test.test_small$", 1), ("t", 2)]
)
def test_run_chooses_tests_by_their_full_name(
    run: str, count: int, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A regular expression that may be found anywhere in package and name."""
    (policies / "bus/rules/spoken/spoken_test.rego").write_text(
        'package bus.rules.spoken_test\n\ntest_hello if data.bus.rules.spoken.admit with input as {"message": {}}\n'
    )
    status, tested = answer(capsys, str(policies), "--run", run)
    assert (status, len(tested["tests"])) == (0, count)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--run", "nothing_like_it"], 1, "no test's name is found by nothing_like_it"),
        (["--run", "(["], 2, "is no regular expression"),
        (["--run", "(?!x)"], 2, "is no regular expression"),
        (["--threshold", "101"], 2, "--threshold"),
        (["--threshold", "-1"], 2, "--threshold"),
        (["--threshold", "much"], 2, "--threshold"),
    ],
)
def test_what_cannot_be_run_is_said(
    arguments: Sequence[str], status: int, said: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing found is exit 1, for nothing was shown; a wrong option is exit 2."""
    assert run_command(["policy", "test", str(policies), *arguments]) == status
    out, err = capsys.readouterr()
    assert said in out + err
    assert "Traceback" not in out + err


def test_too_little_coverage_is_exit_1(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all lines that decide, tests not counted; reached exactly is reached."""
    status, tested = answer(capsys, str(policies), "--threshold", "100")
    assert (status, tested["ok"]) == (1, False)
    lines = [file for file in tested["coverage"] if not file["file"].endswith("_test.rego")]
    percent = 100 * sum(file["covered"] for file in lines) / sum(file["total"] for file in lines)
    assert tested["percent"] == int(percent * 10) / 10
    assert answer(capsys, str(policies), "--threshold", str(tested["percent"]))[0] == 0
    assert run_command(["policy", "test", str(policies), "--threshold", "100"]) == 1
    assert "below the threshold of 100 %" in capsys.readouterr().out


# --- watch ---------------------------------------------------------------------------------------------------------


@contextmanager
def watching(policies: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`eab policy test --watch` as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "enhanced_agent_bus", *arguments, "policy", "test", str(policies), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)


def next_run(process: subprocess.Popen[str]) -> list[str]:
    """The lines of one run; the last one sums it up."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not ("passed" in lines[-1] or "not valid" in lines[-1]):
        line = process.stdout.readline()
        assert line, "it ended"
        lines.append(line.rstrip("\n"))
    return lines


@pytest.mark.timeout(4 * WAIT_SECONDS)
def test_watch_runs_again_on_every_change_until_ctrl_c(policies: Path) -> None:
    """One line for a run in which all pass; a change, a new file, a file that goes; a mistake does not end it."""
    rule = policies / "bus/rules/small/small.rego"
    with watching(policies) as process:
        (line,) = next_run(process)
        assert "1 test passed, 0 failed" in line
        source = rule.read_text()
        rule.write_text(source.replace("<=", "<"))
        (line,) = next_run(process)
        assert "1 test passed, 0 failed" in line
        rule.write_text(source.replace("<=", ">"))
        *shown, line = next_run(process)
        assert "0 tests passed, 1 failed" in line
        assert any("small.rego:9" in text for text in shown)
        rule.write_text(source.replace("input.message", "input.mesage"))
        *shown, line = next_run(process)
        assert line.endswith("not valid: 1 problem")
        assert any("did you mean input.message.priority?" in text for text in shown)
        rule.write_text(source)
        assert len(next_run(process)) == 1
        more = policies / "bus/rules/spoken/spoken_test.rego"
        more.write_text(
            'package bus.rules.spoken_test\n\ntest_more if data.bus.rules.spoken.admit with input as {"message": {}}\n'
        )
        assert "2 tests passed" in next_run(process)[-1]
        more.unlink()
        assert "1 test passed" in next_run(process)[-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=WAIT_SECONDS) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.timeout(4 * WAIT_SECONDS)
def test_watch_as_json_is_a_document_a_run(policies: Path) -> None:
    """Each on one line."""
    with watching(policies, "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["ok"] is True
        (policies / "bus/rules/small/small.rego").write_text("package")
        document = json.loads(process.stdout.readline())
        assert (document["ok"], document["error"]["reason"]) == (False, "invalid")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=WAIT_SECONDS) == 130


#: What Vim, Emacs, Kate and JetBrains keep beside a file that is being written.
EDITORS: Final = (
    ".main.rego.swp",
    ".main.rego.swx",
    "main.rego~",
    "#main.rego#",
    "4913",
    ".main.rego.kate-swp",
    "main.rego___jb_tmp___",
)


@pytest.mark.timeout(4 * WAIT_SECONDS)
def test_watch_does_not_mind_an_editor(policies: Path) -> None:
    """Its files come and go without a run, and the next run is not the worse for one that is there."""
    rule = policies / "bus/rules/small/small.rego"
    with watching(policies) as process:
        assert "1 test passed" in next_run(process)[-1]
        for name in EDITORS:
            (rule.parent / name).write_bytes(b"\0")
        (rule.parent / ".#small.rego").symlink_to("somebody@somewhere.1234")
        rule.write_text(rule.read_text() + "\n# said anew\n")
        assert len(shown := next_run(process)) == 1, shown
        assert "1 test passed, 0 failed" in shown[-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=WAIT_SECONDS) == 130


@pytest.mark.parametrize("name", [*EDITORS[:5], ".#main.rego"])
def test_an_editors_file_is_named_as_one(name: str, policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but the parts of a constitution belongs in one; what it is and what to do is said."""
    if name.startswith(".#"):
        (policies / "bus" / name).symlink_to("somebody@somewhere.1234")
    else:
        (policies / "bus" / name).write_bytes(b"\0")
    assert run_command(["policy", "check", str(policies)]) == 1
    said = capsys.readouterr().out
    assert f"bus/{name}: it looks like an editor's own file" in said
    assert "close the editor and delete what it left" in said


def test_rules_without_a_test_are_named(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A note, and no failure; a test file without a test is none."""
    status, tested = answer(capsys, str(policies))
    assert (status, tested["untested"]) == (0, ["spoken"])
    (policies / "bus/rules/spoken/spoken_test.rego").write_text("package bus.rules.spoken_test\n\nhelper := 1\n")
    assert run_command(["policy", "test", str(policies)]) == 0
    assert "note: no test in the folder of spoken" in capsys.readouterr().out
    (policies / "bus/rules/spoken/spoken_test.rego").write_text(
        'package bus.rules.spoken_test\n\ntest_it if data.bus.rules.spoken.admit with input as {"message": {}}\n'
    )
    assert run_command(["policy", "test", str(policies)]) == 0
    assert "note:" not in capsys.readouterr().out


def test_watch_wants_something_to_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there is a mistake and not something to wait for."""
    assert run_command(["policy", "test", str(tmp_path / "nowhere"), "--watch"]) == 2
    assert "nowhere" in capsys.readouterr().err
