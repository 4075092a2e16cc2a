"""`eab audit prove` and `export --tiles`: what an auditor types, on a home at rest, a killed one and a running bus."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus.audit.verify import read_note
from enhanced_agent_bus.cli.app import run_command
from examples.auditor.check import check
from tests.developer import Inbox, log, small_bus
from tests.entries import fill
from tests.support import as_killed


class Typed:
    """Types commands for one home."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        """Standard output, or standard error where that is what is to be looked at."""
        found = run_command(["--home", str(self.home), *map(str, words)])
        out, err = self._capsys.readouterr()
        assert found == status, err
        assert "Traceback" not in err
        return str(out if status == 0 else err)

    def json(self, *words: str | Path) -> Any:
        return json.loads(self("--json", *words))

    @property
    def vkey(self) -> str:
        return (self.home / "keys" / "log.vkey").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home at rest with sixty messages."""
    home = tmp_path_factory.mktemp("made") / "home"
    asyncio.run(fill(home, 60, checkpoint_records=50))
    return home


@pytest.fixture
def eab(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """The command, for a copy of that home."""
    return Typed(shutil.copytree(made, tmp_path / "home"), capsys)


@pytest.fixture
async def running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Typed]:
    """The command, for the home of a bus that runs and has delivered something."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler=Inbox(), tenant="acme")
        receipt = await desk.send("booker", {"n": 1}, id="order-1")
        await receipt.outcome(timeout=10)
        yield Typed(tmp_path / "home", capsys)


def test_a_record_is_proved_by_any_of_its_names(eab: Typed, tmp_path: Path) -> None:
    """By seq, by decision, and by message, which stands for the newest decision on it; to a file or standard output."""
    decision = log(eab.home, "decision", message_id="desk/order-7")[-1]
    for name in (str(decision["seq"]), decision["decision_id"], "desk/order-7"):
        proof = eab("audit", "prove", name)
        assert json.loads(check(eab.vkey, "proof", proof)) == decision
    said = eab("audit", "prove", "desk/order-7", "-o", tmp_path / "it.tlog-proof")
    assert (tmp_path / "it.tlog-proof").read_text() == proof
    assert f"record {decision['seq']}" in said
    document = eab.json("audit", "prove", "desk/order-7")
    assert document["proof"] == proof
    assert (document["seq"], document["decision_id"]) == (decision["seq"], decision["decision_id"])
    assert document["checkpoint_size"] > document["seq"]


@pytest.mark.parametrize("name", ["desk/order-999", "99999", "desk/order-7#0000", "x'; --"])
def test_what_is_not_there_is_not_proved(eab: Typed, name: str) -> None:
    """One sentence, exit 1, and the home is as it was."""
    before = (eab.home / "bus.db").read_bytes()
    assert f"there is no record {name!r}" in eab("audit", "prove", name, status=1)
    assert (eab.home / "bus.db").read_bytes() == before


@pytest.mark.parametrize("words", [[], ["5", "--consistency", "x"], ["--consistency", "nowhere"]])
def test_wrong_usage_is_told(eab: Typed, words: Sequence[str]) -> None:
    """Nothing named, both named, a file that is not there."""
    assert eab("audit", "prove", *words, status=2)


def test_a_new_checkpoint_is_signed_where_the_newest_does_not_reach(eab: Typed) -> None:
    """A log ends in its newest checkpoint, which covers all but itself; proved, that is, a further one is signed."""
    before = log(eab.home)
    last = before[-1]["seq"]
    eab("audit", "prove", str(last - 1))
    assert log(eab.home) == before, "what is covered needs no writing"
    proof = eab("audit", "prove", str(last))
    assert json.loads(check(eab.vkey, "proof", proof)) == before[-1]
    assert [record["kind"] for record in log(eab.home)[len(before) :]] == ["checkpoint"]
    eab("audit", "verify")


def test_the_page_that_checks_proofs_says_in_a_sentence_what_is_not_shown(eab: Typed, tmp_path: Path) -> None:
    """A wrong key, a proof that was changed, no arguments: status 1 or 2; growth over a new key takes both."""
    page = Path(__file__).resolve().parents[2] / "examples" / "auditor" / "check.py"

    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, str(page), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    (tmp_path / "old").write_text(eab("audit", "checkpoint"))
    (tmp_path / "first.vkey").write_text(eab.vkey)
    eab("audit", "rotate-key")
    (tmp_path / "new").write_text(eab("audit", "checkpoint"))
    eab("audit", "prove", "--consistency", tmp_path / "old", "-o", tmp_path / "growth")
    (tmp_path / "both.vkey").write_text(f"{(tmp_path / 'first.vkey').read_text()}{eab.vkey}")
    assert run("both.vkey", "growth", "old", "growth")[0] == 0
    assert run("first.vkey", "checkpoint", "old")[0] == 0
    (tmp_path / "second.vkey").write_text(eab.vkey)
    status, said = run("second.vkey", "checkpoint", "old")
    assert (status, "no key given signed" in said) == (1, True)
    (tmp_path / "growth").write_text((tmp_path / "growth").read_text().replace("old ", "old 1", 1))
    assert run("both.vkey", "growth", "old", "growth")[0] == 1
    assert run()[0] == 2
    assert run("first.vkey", "checkpoint", "nowhere")[0] == 2


async def test_a_running_bus_signs_for_whoever_proves(running: Typed) -> None:
    """Through the control socket; the bus goes on."""
    newest = log(running.home)[-1]["seq"]
    proof = await asyncio.to_thread(running, "audit", "prove", str(newest))
    assert json.loads(check(running.vkey, "proof", proof))["seq"] == newest
    proof = await asyncio.to_thread(running, "audit", "prove", "desk/order-1")
    assert json.loads(check(running.vkey, "proof", proof))["message_id"] == "desk/order-1"
    assert (running.home / "checkpoint").read_text() in proof


async def test_a_killed_bus_leaves_a_log_that_is_proved(
    running: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its home as it lies there: what no checkpoint covers yet is signed under the lock, without a constitution."""
    killed = Typed(as_killed(running.home, tmp_path / "killed", "lock"), capsys)
    shutil.rmtree(killed.home / "constitutions")
    newest = log(killed.home)[-1]["seq"]
    proof = await asyncio.to_thread(killed, "audit", "prove", str(newest))
    assert json.loads(check(killed.vkey, "proof", proof))["seq"] == newest


def test_growth_is_proved_from_a_kept_checkpoint(eab: Typed, tmp_path: Path) -> None:
    """From an old checkpoint to the newest one, in the form that a witness takes."""
    kept = tmp_path / "kept.txt"
    kept.write_text(eab("audit", "checkpoint"))
    eab("audit", "prove", str(log(eab.home)[-1]["seq"]))
    proof = eab("audit", "prove", "--consistency", kept)
    check(eab.vkey, "growth", kept.read_text(), proof)
    assert proof.endswith((eab.home / "checkpoint").read_text())
    document = eab.json("audit", "prove", "--consistency", kept)
    assert (document["old_size"], document["proof"]) == (read_note(kept.read_text()).size, proof)


def test_growth_from_elsewhere_is_not_proved(eab: Typed, tmp_path: Path) -> None:
    """A checkpoint of another log, one that was changed, one that is none: exit 1, and 2 for no checkpoint at all."""
    asyncio.run(fill(tmp_path / "other", 3))
    assert "was not signed by this log" in eab(
        "audit", "prove", "--consistency", tmp_path / "other" / "checkpoint", status=1
    )
    forged = tmp_path / "forged"
    forged.write_text(eab("audit", "checkpoint").replace("\n1", "\n2", 1))
    assert "was not signed by this log" in eab("audit", "prove", "--consistency", forged, status=1)
    forged.write_text("hello\n")
    assert "no checkpoint" in eab("audit", "prove", "--consistency", forged, status=2)


def test_growth_of_a_log_that_was_cut_is_not_proved(eab: Typed, made: Path, tmp_path: Path) -> None:
    """An older backup in its place does not continue the checkpoint that was kept."""
    eab("audit", "prove", str(log(eab.home)[-1]["seq"]))
    kept = tmp_path / "kept.txt"
    kept.write_text(eab("audit", "checkpoint"))
    shutil.rmtree(eab.home)
    shutil.copytree(made, eab.home)
    assert "did not grow from" in eab("audit", "prove", "--consistency", kept, status=1)


def test_tiles_are_added_to(eab: Typed, tmp_path: Path) -> None:
    """An export of tiles writes nothing into the home, goes on from the last one, and leaves foreign files be."""
    before = sorted((path.name, path.stat().st_mtime_ns) for path in eab.home.iterdir())
    first = eab.json("audit", "export", "--tiles", tmp_path / "tiles")
    assert first["records"] == first["checkpoint_size"]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in eab.home.iterdir()) == before
    eab("audit", "prove", str(log(eab.home)[-1]["seq"]))
    more = eab.json("audit", "export", "--tiles", tmp_path / "tiles")
    assert (more["before"], more["records"]) == (first["records"], 1)
    assert "wrote 0 records" in eab("audit", "export", "--tiles", tmp_path / "tiles")
    assert "holds other files" in eab("audit", "export", "--tiles", eab.home, status=1)
    assert eab("audit", "export", "--tiles", tmp_path / "x", "-o", tmp_path / "y", status=2)
