"""`eab run`: a user's own agents and lines, to the end; and what a signal, a bad line or a full disk does to that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.cli.app import run_command
from tests.developer import log
from tests.support import write_constitution

APP = """
import asyncio
from enhanced_agent_bus import Message, Retry

async def build(bus):
    seen = []

    async def work(message: Message) -> dict:
        seen.append(message.payload.get("n"))
        if message.payload.get("slow"):
            await asyncio.sleep(message.payload["slow"])
        if message.payload.get("fails", 0) >= message.attempt:
            raise ConnectionError("the line is busy")
        with open("seen.txt", "a") as file:
            print(message.sender, message.payload.get("n"), file=file)
        return {"done": message.payload.get("n")}

    quick = Retry.exponential(attempts=2, base_seconds=0.01, cap_seconds=0.01)
    for name in ("a", "b"):
        await bus.register(name, tenant="acme", roles=["sender"])
    await bus.register("worker", handler=work, tenant="acme", capabilities=["work"], topics=["news"], retry=quick)
    await bus.register("absent", tenant="acme")

def broken(bus):
    raise LookupError("no such thing")
"""
RULES = {
    "no_secrets": 'admit if not "secret" in object.keys(input.message.payload)\n\ncode := "secret_found"',
    "before_noon": "admit if not input.message.payload.morning\n\nadmit if input.clock.hour < 12",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an application and a constitution, and no home yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAB_HOME", raising=False)
    (tmp_path / "desk.py").write_text(APP)
    write_constitution(tmp_path / "policies", RULES)
    return tmp_path


def write_lines(place: Path, *lines: dict[str, Any] | str) -> Path:
    """A file of lines; texts are written as they are."""
    path = place / "lines.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def work(n: int, sender: str = "a", **payload: Any) -> dict[str, Any]:
    """A line to the worker."""
    return {"from": sender, "to": "worker", "payload": {"n": n, **payload}}


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the one JSON document."""
    status = run_command(["--json", "run", *arguments])
    return status, json.loads(capsys.readouterr().out)


def eab(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "enhanced_agent_bus", *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def test_every_kind_of_end_is_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Delivered, refused by rule, retried, dead-lettered, parked, nobody there, bad lines: each line ends somewhere."""
    path = write_lines(
        place,
        work(1),
        work(2, secret=True),
        work(3, fails=1),
        work(4, fails=9),
        {"from": "a", "to": "absent", "payload": {}},
        {"from": "a", "to": "nobody", "payload": {}},
        {"from": "b", "topic": "silence", "payload": {}},
        {"from": "b", "topic": "news", "payload": {"n": 5}},
        {"from": "b", "capability": "work", "id": "x", "payload": {"n": 6}},
        {"from": "b", "capability": "work", "id": "x", "payload": {"n": 6}},
        '{"from": "a", "to": "worker", "payload": {"n": 1, "n": 2}}',
        {"from": "nobody", "to": "worker", "payload": {}},
    )
    status, summary = run_json(capsys, "desk.py:build", "--input", str(path))
    assert status == 0
    wanted = {
        "lines": 12,
        "delivered": 4,
        "refused": 2,
        "refused_by_code": {"policy_denied": 1, "recipient_unknown": 1},
        "refused_by_rule": {"no_secrets": 1},
        "retried": 2,
        "dead_lettered": 1,
        "parked": 1,
        "no_subscriber": 1,
        "repeated": 1,
        "bad_lines": 2,
    }
    assert {key: summary[key] for key in wanted} == wanted
    assert [bad["line"] for bad in summary["bad"]] == [11, 12]


def test_a_person_gets_a_table_and_is_told_how_to_look_closer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No escape codes where the output is no terminal; bad lines are named on standard error."""
    path = write_lines(place, work(1), work(2, secret=True), work(3, fails=9), "nonsense")
    assert run_command(["run", "desk.py:build", "--input", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "no_secrets" in out
    assert "eab audit show " in out
    assert "eab dlq list" in out
    assert "line 4: not JSON" in err
    assert "\x1b" not in out + err


def test_counts_are_said_in_words_that_fit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One message of one line; empty lines are counted, so that the sum is the file's."""
    assert run_command(["run", "desk.py:build", "--input", str(write_lines(place, work(1)))]) == 0
    assert "1 message of 1 line in " in capsys.readouterr().out
    path = write_lines(place, work(2), "", "nonsense", " ", work(3))
    assert run_command(["run", "desk.py:build", "--input", str(path)]) == 0
    assert "2 messages of 3 lines (2 more were empty) in " in capsys.readouterr().out


def test_lines_of_one_sender_go_in_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the other senders do meanwhile."""
    path = write_lines(place, *(work(n, "ab"[n % 2]) for n in range(40)))
    status, summary = run_json(capsys, "desk.py:build", "--input", str(path))
    assert (status, summary["delivered"]) == (0, 40)
    seen = [line.split() for line in (place / "seen.txt").read_text().splitlines()]
    for sender in "ab":
        numbers = [int(n) for name, n in seen if name == sender]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("lines", "option", "status"),
    [
        ([work(1, secret=True)], [], 0),
        ([work(1, secret=True)], ["--fail-on", "refused"], 1),
        (["nonsense"], ["--fail-on", "refused"], 0),
        (["nonsense"], ["--fail-on", "bad-line"], 1),
        ([work(1)], ["--fail-on", "refused", "--fail-on", "bad-line"], 0),
    ],
)
def test_verdicts_fail_a_run_only_when_asked(
    lines: list[dict[str, Any] | str],
    option: list[str],
    status: int,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 0 when every readable line has ended; --fail-on makes refusals and bad lines count."""
    found, _ = run_json(capsys, "desk.py:build", "--input", str(write_lines(place, *lines)), *option)
    assert found == status


@pytest.mark.parametrize(("at", "delivered"), [("2026-03-04T10:30:00Z", 1), ("2026-03-04T12:00:00Z", 0)])
def test_the_clock_of_policies_can_be_fixed(
    at: str, delivered: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a run ends the same on every day; the weakening is named."""
    path = write_lines(place, work(1, morning=True))
    _, summary = run_json(capsys, "desk.py:build", "--input", str(path), "--at", at)
    assert summary["delivered"] == delivered
    assert "fixed_clock" in summary["security_state"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["desk.py:build", "--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["desk.py:build", "--input", "policies"], "directory"),
        (["nowhere.py:build"], "nowhere.py"),
        (["desk.py:missing"], "missing"),
        (["desk.py:build", "--at", "noon"], "noon"),
        (["desk.py:build", "--fail-on", "anything"], "--fail-on"),
        (["desk.py:build", "--constitution", "nowhere"], "nowhere"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_made(
    arguments: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, one sentence, and no home."""
    assert run_command(["run", *arguments]) == 2
    assert says.lower() in capsys.readouterr().err.lower()
    assert not (place / ".eab").exists()


def test_an_application_that_fails_is_named_with_its_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, the exception, the line of the user's own file, and no traceback."""
    path = write_lines(place, work(1))
    assert run_command(["run", "desk.py:broken", "--input", str(path)]) == 2
    err = capsys.readouterr().err
    assert "LookupError: no such thing (desk.py, line" in err
    assert "Traceback" not in err


def test_a_constitution_that_cannot_be_activated_is_explained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 with file and line of the mistake, in words; nothing has run."""
    write_constitution(place / "policies", RULES | {"no_secrets": "admit if input.mesage.type"})
    path = write_lines(place, work(1))
    assert run_command(["run", "desk.py:build", "--input", str(path)]) == 1
    assert "no_secrets.rego:" in capsys.readouterr().err
    write_constitution(place / "policies", RULES | {"no_secrets": "admit if {"})
    assert run_command(["run", "desk.py:build", "--input", str(path)]) == 1
    err = capsys.readouterr().err
    assert "no_secrets.rego:" in err
    assert "ends too early" in err
    assert "token" not in err
    assert not (place / "seen.txt").exists()
    write_constitution(place / "policies", RULES)  # mended: the home that was made meanwhile takes it
    assert run_command(["run", "desk.py:build", "--input", str(path)]) == 0
    assert (place / "seen.txt").exists()


def test_lines_come_from_standard_input_too(place: Path) -> None:
    """As many as there are, until its end."""
    process = eab("--json", "run", "desk.py:build", "--input", "-", cwd=place)
    out, err = process.communicate("".join(json.dumps(work(n)) + "\n" for n in range(5)), timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["delivered"] == 5


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_a_run_that_is_interrupted_drains_and_loses_nothing(place: Path) -> None:
    """Ctrl-C while standard input is still open: what was read has ended, exit 130, and the summary says so."""
    process = eab("--json", "run", "desk.py:build", "--input", "-", cwd=place)
    assert process.stdin is not None
    process.stdin.write(json.dumps(work(1)) + "\n")
    process.stdin.flush()
    wait_for((place / "seen.txt").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stdout is not None
    summary = json.loads(process.stdout.read())
    assert (summary["delivered"], summary["stopped_by"]) == (1, "SIGINT")
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def test_an_interrupt_after_the_last_line_keeps_what_has_not_ended(place: Path) -> None:
    """What the drain had no time for is counted by its state; the exit status is the signal's, and no traceback."""
    path = write_lines(place, *(work(n, slow=30 * (n > 0)) for n in range(20)))
    home = place / ".eab"
    home.mkdir()
    (home / "eab.toml").write_text("[delivery]\ndrain_seconds = 0.1\n")
    process = eab("--json", "run", "desk.py:build", "--input", str(path), cwd=place)
    wait_for((place / "seen.txt").exists)
    wait_for(lambda: len(log(home, "decision", sender="a")) == 20)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (err, process.returncode) == ("", 143)
    summary = json.loads(out)
    assert (summary["messages"], summary["delivered"], summary["queued"]) == (20, 1, 19)


def test_an_interrupt_in_the_middle_keeps_what_was_accepted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that were read and not sent are counted; each message that was accepted is in one state of the home."""
    path = write_lines(place, *(work(n, "ab"[n % 2], slow=0.05) for n in range(3000)))
    process = eab("--json", "run", "desk.py:build", "--input", str(path), cwd=place)
    wait_for((place / "seen.txt").exists)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    summary = json.loads(out)
    assert summary["unsent"]
    assert summary["stopped_by"] == "SIGTERM"
    assert run_command(["--json", "status"]) == 0
    accounting = json.loads(capsys.readouterr().out)["accounting"]
    assert accounting["accepted"] == sum(count for state, count in accounting.items() if state != "accepted")
    ends = ("delivered", "refused", "held", "parked", "dead_lettered", "expired", "discarded", "queued")
    assert summary["messages"] == sum(summary[end] for end in ends)
    assert summary["messages"] <= accounting["accepted"]  # replies are messages too


def test_a_serving_bus_takes_messages_of_other_commands_and_drains(place: Path) -> None:
    """`eab send` goes through its control socket; SIGTERM ends it with exit 0 once what it took has ended."""
    process = eab("run", "desk.py:build", cwd=place)
    assert process.stderr is not None
    assert "serving" in process.stderr.readline()
    sent = eab("--json", "send", "--from", "a", "--to", "worker", "--app", "desk.py:build", '{"n": 7}', cwd=place)
    out, err = sent.communicate(timeout=60)
    assert sent.returncode == 0, err
    assert json.loads(out)["outcome"]["state"] == "delivered"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "while closing: 0 delivered" in out
    assert "in the whole run: 2 messages accepted, 2 delivered" in out  # the message and its reply
    assert (place / "seen.txt").read_text().split() == ["a", "7"]


def test_when_nothing_can_be_recorded_the_run_stops_and_says_where(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3; no handler has run for a line whose decision is not on disk."""
    path = write_lines(place, *(work(n) for n in range(5)))
    first = faultpoints.points.hits("audit.before_commit") + 1  # other tests of this process may have passed it
    monkeypatch.setenv("EAB_FAULTPOINT", f"audit.before_commit:{first}:raise")
    assert run_command(["run", "desk.py:build", "--input", str(path)]) == 3
    assert "stopped at line 1" in capsys.readouterr().err
    seen = (place / "seen.txt").read_text() if (place / "seen.txt").exists() else ""
    assert "a 0\n" not in seen, "the decision on the first line is not on disk"
