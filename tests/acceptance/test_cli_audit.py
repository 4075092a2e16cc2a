"""`eab audit` and the first steps: what an auditor and a newcomer type."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus.cli.app import run_command
from tests.newcomer import newcomer, work_in_copy


def eab_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> list[Any]:
    """The documents of one command."""
    found = run_command(["--json", *arguments])
    out, err = capsys.readouterr()
    assert found == status, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `eab init` and the line that it prints have run."""
    folder = tmp_path_factory.mktemp("begun")
    with newcomer(folder):
        assert run_command(["run", "app.py:build", "--input", "messages.jsonl"]) == 0
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    work_in_copy(begun, tmp_path, monkeypatch)
    return tmp_path


def test_init_writes_what_it_says_and_the_line_it_prints_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An application, policies, messages, a home with keys; then `cd DIR && eab run ...`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAB_HOME", raising=False)
    [made] = eab_json(capsys, "init", "desk")
    assert made["next"] == "cd desk && eab run app.py:build --input messages.jsonl"
    for name in ("app.py", "policies/.manifest", "messages.jsonl", ".eab/home.json", ".eab/keys/log.vkey"):
        assert (tmp_path / "desk" / name).is_file(), name
    monkeypatch.chdir(tmp_path / "desk")
    [summary] = eab_json(capsys, "run", "app.py:build", "--input", "messages.jsonl")
    assert summary["delivered"]
    assert summary["refused"]
    assert not summary["bad_lines"]


def program(*arguments: str) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "enhanced_agent_bus", *arguments]


@pytest.mark.parametrize(
    "line",
    [["audit", "tail"], ["audit", "export"], ["audit", "tail", "--follow"], ["status"], ["--version"], ["nonsense"]],
)
def test_a_reader_that_has_seen_enough_ends_it_quietly(line: list[str], folder: Path) -> None:
    """`eab audit tail | head -1`: the status of a broken pipe and no word, also while there is nothing to write."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        program(*line), stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=folder, timeout=60
    )
    os.close(writing)
    if line == ["nonsense"]:  # it writes nothing there
        assert (done.returncode, done.stderr[:5]) == (2, "eab: ")
    else:
        assert (done.returncode, done.stderr) == (141, "")


def test_a_file_that_is_no_key_is_called_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not what a parser missed in it."""
    assert (folder / "app.py").is_file()
    assert run_command(["audit", "verify", "--key", "app.py"]) == 2
    assert "app.py holds no public key" in capsys.readouterr().err


def test_notes_that_nobody_reads_do_not_stop_a_run(folder: Path) -> None:
    """Standard error is closed by its reader: what was to be done is done."""
    reading, writing = os.pipe()
    os.close(reading)
    (folder / "messages.jsonl").write_text("nonsense\n" + (folder / "messages.jsonl").read_text())
    line = program("--json", "run", "app.py:build", "--input", "messages.jsonl")
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=writing, text=True, check=False, cwd=folder, timeout=60)
    os.close(writing)
    assert done.returncode == 0
    assert json.loads(done.stdout)["delivered"]
    line.remove("--json")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=writing, text=True, check=False, cwd=folder, timeout=60)
    os.close(writing)
    assert done.returncode == 0
    assert "bad lines" in done.stdout


@pytest.mark.parametrize(("line", "status"), [(["status"], 0), (["nonsense"], 2)])
def test_closed_streams_are_no_mishap(line: list[str], status: int, folder: Path) -> None:
    """`eab status >&- 2>&-`: the exit status is all that was wanted."""
    command = " ".join(map(shlex.quote, program(*line)))
    done = subprocess.run(["sh", "-c", f"{command} >&- 2>&-"], check=False, cwd=folder, timeout=60)
    assert done.returncode == status


def test_init_writes_over_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, and every byte is as it was; one file alone is enough to stop it."""
    before = (folder / "app.py").read_bytes()
    assert run_command(["init"]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert (folder / "app.py").read_bytes() == before
    (folder / "other").mkdir()
    (folder / "other" / "messages.jsonl").write_text("mine")
    assert run_command(["init", "other"]) == 2
    assert [path.name for path in (folder / "other").iterdir()] == ["messages.jsonl"]


def test_the_demo_ends_as_its_sample_says_and_verifies_its_log(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on every day, in a home of its own that it names."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sample = Path(__file__).resolve().parents[2] / "examples" / "travel_desk" / "sample.json"
    wanted = json.loads(sample.read_text())["expected"]
    [summary] = eab_json(capsys, "demo")
    assert {key: summary[key] for key in wanted} == wanted
    assert (summary["verify"]["integrity"], summary["verify"]["first_bad"]) == ("ok", None)
    assert Path(summary["home"], "home.json").is_file()


def test_records_are_shown_and_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By number, by message, by field, by word; every word must match."""
    assert folder.is_dir()
    records = eab_json(capsys, "audit", "tail", "-n", "1000")
    assert [record["seq"] for record in records] == list(range(len(records)))
    assert eab_json(capsys, "audit", "tail", "-n", "3") == records[-3:]
    refused = eab_json(capsys, "audit", "search", "verdict:refuse", "rule:same_tenant")
    assert refused == [r for r in records if r.get("verdict") == "refuse" and r["reasons"][0]["rule"] == "same_tenant"]
    [record] = refused
    assert eab_json(capsys, "audit", "show", str(record["seq"])) == [record]
    assert eab_json(capsys, "audit", "show", record["message_id"]) == [record]
    assert eab_json(capsys, "audit", "show", record["decision_id"]) == [record]
    assert eab_json(capsys, "audit", "search", "kind:decision", "nowhere-to-be-found") == []
    assert eab_json(capsys, "audit", "search", "kind:decision", "--since", "2999-01-01T00:00:00Z") == []
    assert run_command(["audit", "show", "999999"]) == 1
    assert run_command(["audit", "search", "x", "--since", "soon"]) == 2


def test_people_get_one_line_a_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Number, time, kind, and what it says."""
    assert run_command(["audit", "tail", "-n", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(eab_json(capsys, "audit", "tail", "-n", "1000"))
    assert any("refuse policy_denied by same_tenant: desk to globex-notes" in line for line in lines)
    assert folder.is_dir()


def test_a_payload_is_shown_on_request_and_that_is_recorded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --payload it is not in the output at all."""
    assert folder.is_dir()
    [record] = eab_json(capsys, "audit", "search", "rule:same_tenant")
    assert "hello" not in json.dumps(eab_json(capsys, "audit", "show", record["message_id"]))
    [shown] = eab_json(capsys, "audit", "show", record["message_id"], "--payload")
    assert shown["content"]["payload"] == {"note": "hello"}
    [access] = eab_json(capsys, "audit", "search", "kind:access")
    assert access["what"] == record["message_id"]


def test_an_export_is_the_stored_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One record a line, to a file and to standard output alike; it verifies with the home's key."""
    assert run_command(["audit", "export", "-o", "log.jsonl"]) == 0
    capsys.readouterr()
    with sqlite3.connect(folder / ".eab" / "bus.db") as database:
        bodies = [body for (body,) in database.execute("SELECT body FROM records ORDER BY seq")]
    database.close()
    assert Path("log.jsonl").read_bytes() == b"".join(body + b"\n" for body in bodies)
    assert run_command(["audit", "export"]) == 0
    assert capsys.readouterr().out == Path("log.jsonl").read_text()
    [verdict] = eab_json(capsys, "audit", "verify", "log.jsonl")
    assert (verdict["integrity"], verdict["size"]) == ("ok", len(bodies))
    eab_json(capsys, "audit", "verify", "log.jsonl", "--key", ".eab/keys/log.vkey")


def test_a_log_is_verified_against_a_checkpoint_that_was_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written; with the newest checkpoint little is unanchored, without one all is."""
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}
    run_command(["audit", "checkpoint"])
    note = capsys.readouterr().out
    [plain] = eab_json(capsys, "audit", "verify")
    assert (plain["integrity"], plain["completeness"], plain["time"]) == ("ok", "ok", "ok")
    assert plain["unanchored"] == plain["size"]
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in before} == before
    assert {path for path in folder.rglob("*") if path.is_file()} == set(before)
    kept = folder / "kept"
    kept.write_text(note)
    [anchored] = eab_json(capsys, "audit", "verify", "--checkpoint", str(kept))
    assert anchored["unanchored"] < plain["size"]
    assert run_command(["audit", "verify", "--require-anchor"]) == 1


def test_damage_is_named_and_exit_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An edited record, a record of another log, a checkpoint of another log."""
    run_command(["audit", "export", "-o", "log.jsonl"])
    lines = Path("log.jsonl").read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b'"verdict":"refuse"' in line)
    lines[place] = lines[place].replace(b'"verdict":"refuse"', b'"verdict":"allow"', 1)
    Path("log.jsonl").write_bytes(b"".join(lines))
    capsys.readouterr()
    [verdict] = eab_json(capsys, "audit", "verify", "log.jsonl", status=1)
    assert verdict["first_bad"]["damage"] == "altered"
    assert run_command(["audit", "verify", "log.jsonl"]) == 1
    assert "altered" in capsys.readouterr().out
    assert run_command(["init", "other"]) == 0
    capsys.readouterr()
    other = ["--home", "other/.eab", "audit"]
    [verdict] = eab_json(capsys, *other, "verify", "--checkpoint", ".eab/checkpoint", status=1)
    assert verdict["first_bad"]["damage"] == "replaced"
    assert folder.is_dir()


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "nowhere"],
        ["verify", "policies"],
        ["verify", "messages.jsonl", "--key", "nowhere"],
        ["verify", "--key", "app.py"],
        ["verify", "--checkpoint", "app.py"],
        ["verify", "--checkpoint", "nowhere"],
    ],
)
def test_what_cannot_be_verified_at_all_is_exit_2(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing file, a folder that is no home, a key that is none: one sentence that names it."""
    assert folder.is_dir()
    assert run_command(["audit", *arguments]) == 2
    err = capsys.readouterr().err
    assert arguments[-1] in err
    assert "Traceback" not in err


def test_an_empty_log_is_never_fine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing proves nothing."""
    (folder / "empty.jsonl").write_text("")
    eab_json(capsys, "audit", "verify", "empty.jsonl", status=1)
    (folder / ".eab" / "bus.db").unlink()
    eab_json(capsys, "audit", "verify", status=1)
