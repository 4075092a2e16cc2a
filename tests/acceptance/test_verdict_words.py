"""What `eab audit verify` tells a person: why it ends with 1, what was compared, and what to do about damage."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.cli.audit.timeline import told_approval
from tests.developer import Inbox, small_bus
from tests.entries import decision, fill, open_ledger, put_all


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose first checkpoint was kept, and that has grown since."""
    folder = tmp_path_factory.mktemp("grown")

    async def grow() -> None:
        await fill(folder / "home", 10)
        shutil.copy(folder / "home" / "checkpoint", folder / "kept")
        ledger = await open_ledger(folder / "home")
        await put_all(ledger, [decision(number, verdict="refuse") for number in range(10, 15)])
        await ledger.close()

    asyncio.run(grow())
    return folder


@pytest.fixture
def home(grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the folder where commands are typed."""
    shutil.copytree(grown, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAB_HOME", "home")
    return tmp_path / "home"


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int) -> dict[str, str]:
    """What stands behind each name."""
    found = run_command(["audit", "verify", *arguments])
    out, err = capsys.readouterr()
    assert found == status, out + err
    return {name.strip(): said.strip() for name, _, said in (line.partition("  ") for line in out.splitlines())}


def change(home: Path, statement: str) -> None:
    """Somebody writes into the database."""
    connection = sqlite3.connect(home / "bus.db", isolation_level=None)
    connection.execute(statement)
    connection.close()


def test_a_checkpoint_that_was_kept_is_named_with_what_it_showed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever brings one reads that it was compared, also where another vouches for more."""
    size = Path("kept").read_text().splitlines()[1]
    said = told(capsys, "--checkpoint", "kept", status=0)
    assert said["kept"] == f"kept: its first {size} records are the first of this log"
    change(home, "DELETE FROM records WHERE seq > 3")
    assert "kept" not in told(capsys, "--checkpoint", "kept", status=1)


def test_an_anchor_that_is_required_and_lacking_says_why_the_status_is_1(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three times ok and an exit 1 would leave anybody guessing."""
    assert home.is_dir()
    size = int(Path("kept").read_text().splitlines()[1])
    said = told(capsys, "--checkpoint", "kept", "--require-anchor", status=1)
    assert said["integrity"] == "ok"
    assert said["not anchored"].startswith(f"seq {size + 1} to ")
    assert "exit 1" in said["not anchored"]
    assert "not anchored" not in told(capsys, "--checkpoint", "kept", status=0)


@pytest.mark.parametrize(
    ("statement", "do"),
    [
        ("UPDATE records SET body = x'ff00' WHERE seq = 7", "evidence"),
        ("DELETE FROM records WHERE seq = 7", "evidence"),
        ("DELETE FROM records WHERE seq >= 7", "bus.db-wal"),
    ],
)
def test_damage_comes_with_what_to_do(statement: str, do: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what was read is not passed off as what there was."""
    change(home, statement)
    said = told(capsys, status=1)
    assert do in said["what to do"]
    if "seq = 7" in statement:
        assert said["records"] == "7 read, up to what is bad"


async def test_an_export_that_is_older_than_what_vouches_is_to_be_made_again(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file cannot tell that from a cut end, and the words say both."""
    run_command(["audit", "export", "-o", "log.jsonl"])
    ledger = await open_ledger(home)
    await put_all(ledger, [decision(20, verdict="refuse")])
    await ledger.close()
    capsys.readouterr()
    said = told(capsys, "log.jsonl", "--checkpoint", "home/checkpoint", status=1)
    assert "truncated" in said["first bad"]
    assert "export the log again" in said["what to do"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04 and so on", "unpack it"),
        (b"SQLite format 3\x00 and so on", "name the home"),
        (b"\x1f\x8b", "unpack"),
    ],
)
def test_files_that_auditors_have_at_hand_are_told_apart_from_exports(
    content: bytes, says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pack and a database are no damaged logs."""
    assert home.is_dir()
    Path("file").write_bytes(content)
    assert run_command(["audit", "verify", "file"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a text\n"])
def test_a_file_without_any_checkpoint_is_no_witness(
    content: bytes, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever names one by hand wants it compared; an empty comparison is not a fine one."""
    assert home.is_dir()
    Path("file").write_bytes(content)
    assert run_command(["audit", "verify", "--witness", "file"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_is_no_text_is_told_in_words(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not in those of Python."""
    assert home.is_dir()
    Path("file").write_bytes(b"\xff\xfe\x00")
    assert run_command(["audit", "verify", "--checkpoint", "file"]) == 2
    err = capsys.readouterr().err
    assert "codec" not in err
    assert "no checkpoint" in err
    assert run_command(["audit", "prove", "--consistency", "file"]) == 2
    assert "codec" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        ["search"],
        ["show", "7"],
        ["tail", "-n", "100"],
        ["population"],
        ["sample", "--seed", "1"],
        ["export", "--format", "ocsf"],
        ["report", "--framework", "soc2"],
    ],
)
def test_a_record_that_is_none_any_more_is_called_damage(
    line: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No surprise, and no promise that nothing was lost: something that the home keeps was changed, and who says it."""
    change(home, "UPDATE records SET body = x'ff00' WHERE seq = 7")
    assert run_command(["audit", *line]) == 3
    err = capsys.readouterr().err
    assert "unexpected" not in err
    assert "nothing was lost" not in err
    assert "damaged" in err
    assert "audit verify" in err


def test_the_stored_bytes_are_exported_whatever_they_are(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged log can be taken along as evidence, and the export has the same damage at the same place."""
    change(home, "UPDATE records SET body = x'ff00' WHERE seq = 7")
    assert run_command(["audit", "export", "-o", "log.jsonl"]) == 0
    assert Path("log.jsonl").read_bytes().splitlines()[7] == b"\xff\x00"
    capsys.readouterr()
    assert told(capsys, "log.jsonl", status=1)["first bad"] == "seq 7: altered: this is no record"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["pack", "-o", "folder"], "folder is a folder"),
        (["export", "--tiles", "kept"], "kept is a file"),
        (["sample", "--seed", " "], "--seed is empty"),
    ],
)
def test_what_is_in_the_way_is_named_as_it_was_given(
    line: list[str], says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder where a file is to be written, a file where a folder is; a seed that anybody could foresee."""
    assert home.is_dir()
    Path("folder").mkdir()
    assert run_command(["audit", *line]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 2, "and what to do"


async def test_many_messages_that_are_left_for_one_reason_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who erases an agent that is held sees why, and not one line for each message; JSON has them all."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler=Inbox(), tenant="acme")
        for number in range(30):
            await (await desk.send("booker", {"n": number})).outcome(timeout=10)
    where = ["--home", str(tmp_path / "home")]
    held = ["audit", "hold", "add", "--agent", "booker", "--reason", "case 1"]
    assert await asyncio.to_thread(run_command, [*where, *held]) == 0
    capsys.readouterr()
    erase = ["audit", "erase", "--agent", "booker", "--reason", "request 1"]
    assert await asyncio.to_thread(run_command, [*where, *erase]) == 1
    out = capsys.readouterr().out
    assert "30 messages" in out
    assert out.count("legal hold on agent booker: case 1") == 1
    assert len(out.splitlines()) < 10
    assert await asyncio.to_thread(run_command, [*where, "--json", *erase]) == 1
    assert len(json.loads(capsys.readouterr().out)["left"]) == 30


def test_an_approval_that_was_not_taken_is_not_told_as_a_refusal_of_the_message() -> None:
    """The one who tried, what they tried, and why it did not count."""
    step = {"event": "refused", "act": "approve", "approver": "desk", "roles": [], "why": "the sender"}
    assert next(told_approval(step)) == "approve by desk (no roles), not taken"
