"""What a person types who means something else: one sentence that says which thing is wrong, and nothing is lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from enhanced_agent_bus import open_bus
from enhanced_agent_bus.cli.app import run_command
from tests.support import write_constitution

RULES = {"all": "admit if true"}


async def _fill(home: Path, policies: Path) -> None:
    async with open_bus(home, constitution=policies) as bus:
        desk = await bus.register("desk", tenant="acme")
        await desk.send("desk", {"n": 1}, id="one")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home that has an agent and a record of a message."""
    folder = tmp_path_factory.mktemp("made")
    asyncio.run(_fill(folder / ".eab", write_constitution(folder / "policies", RULES)))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a home and its constitution, to stand in."""
    place = tmp_path / "folder"
    shutil.copytree(made, place)
    monkeypatch.chdir(place)
    return place


def files(folder: Path) -> dict[str, str]:
    """Every file of a folder but the lock, with its digest."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "export", "-o"],
        ["audit", "export", "--format", "opa", "-o"],
        ["audit", "report", "--framework", "soc2", "--format", "json", "-o"],
        ["audit", "pack", "-o"],
        ["audit", "prove", "0", "-o"],
        ["audit", "collect", "-o"],
        ["policy", "build", "policies", "-o"],
        ["policy", "sign", "policies", "-o"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["bus.db", "bus.db-wal", "keys/new"])
def test_no_output_takes_the_place_of_a_file_of_a_home(
    words: list[str], name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a command writes for somebody, the log is not what it is written over."""
    before = files(folder)
    assert run_command([*words, f".eab/{name}"]) == 2
    assert "lies in the home" in capsys.readouterr().err
    assert files(folder) == before


def test_no_output_follows_a_link_into_a_home(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor where its name says nothing of it."""
    Path("log.jsonl").symlink_to(".eab/bus.db")
    before = files(folder)
    assert run_command(["audit", "export", "-o", "log.jsonl"]) == 2
    assert "lies in the home" in capsys.readouterr().err
    assert files(folder) == before


def test_a_bundle_is_not_built_into_its_own_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it would keep the folder from being a constitution."""
    before = files(folder)
    assert run_command(["policy", "build", "policies", "-o", "policies/bundle.tar.gz"]) == 2
    assert "policies/bundle.tar.gz lies in the folder that is built" in capsys.readouterr().err
    assert files(folder) == before


def without_rights(*words: str) -> subprocess.CompletedProcess[str]:
    """The command as somebody whom the modes of files hold back, as they do not hold back root."""
    ordinary = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*ordinary, sys.executable, "-m", "enhanced_agent_bus", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("words", [["audit", "verify"], ["audit", "verify", ".eab"], ["status"], ["audit", "tail"]])
def test_a_log_that_may_not_be_read_is_not_called_altered(words: list[str], folder: Path) -> None:
    """A verdict is for who could look; who could not gets exit 2 and the name of the file."""
    (folder / ".eab" / "bus.db").chmod(0)
    done = without_rights(*words)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert ".eab/bus.db: Permission denied" in done.stderr


@pytest.mark.parametrize("name", ["", "keys", "bus.db"])
def test_the_doctor_tells_what_it_may_not_look_at(name: str, folder: Path) -> None:
    """Among everything else that it found, and without sending the person to itself."""
    (folder / ".eab" / name).chmod(0)
    done = without_rights("doctor", "--json")
    (folder / ".eab" / name).chmod(0o700)
    assert done.returncode == 1, done
    found = json.loads(done.stdout)["findings"]
    wrong = [finding for finding in found if finding["state"] == "wrong"]
    assert any("Permission denied" in finding["detail"] for finding in wrong)
    assert not any("eab doctor" in finding["remedy"] for finding in found)
    assert {"python", "policy worker", "disk"} <= {finding["what"] for finding in found}


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["init", "policies/.manifest"], 2, "is a file, not a folder"),
        (["resume", "--reason", "x"], 2, "eab resume --help"),
        (["stop", "--all", "--agent", "desk", "--reason", "x"], 2, "eab stop --help"),
        (["facts", "put", "tenant", "No Name", "k", "1"], 2, "'No Name' is no name of a tenant"),
        (["facts", "put", "conversation", "no name", "k", "1"], 2, "'no name' is no name of a conversation"),
        (["facts", "put", "tenant", "acmee", "k", "1"], 0, "nobody is registered here with the tenant acmee"),
        (["nats", "permissions", "--nsc", ""], 2, "--nsc names no user"),
    ],
)
def test_a_slip_is_named(
    words: list[str], status: int, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the thing that was typed, with what to type instead."""
    assert folder.is_dir()
    assert run_command(words) == status
    assert says in capsys.readouterr().err


def test_a_fact_of_another_kind_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number and a text cannot stand under one key, and one of them has to go first."""
    assert folder.is_dir()
    assert run_command(["facts", "put", "agent", "desk", "k", "1"]) == 0
    assert run_command(["facts", "put", "agent", "desk", "k", "text"]) == 2
    assert "facts remove" in capsys.readouterr().err


def test_dead_letters_that_were_not_asked_for_are_not_denied(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty choice is said to be one."""
    assert folder.is_dir()
    assert run_command(["dlq", "list", "--sender", "nobody"]) == 0
    assert capsys.readouterr().out == "there are no such dead letters\n"
    assert run_command(["dlq", "list"]) == 0
    assert capsys.readouterr().out == "there are no dead letters\n"


def test_agents_are_listed_as_everything_else_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`eab agents list` is `eab agents`."""
    assert folder.is_dir()
    assert run_command(["agents"]) == 0
    alone = capsys.readouterr().out
    assert "desk" in alone
    assert run_command(["agents", "list"]) == 0
    assert capsys.readouterr().out == alone
    assert run_command(["--json", "agents", "list"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "desk"


def test_a_locked_key_is_called_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a key for ES256: making another one would not help."""
    locked = BestAvailableEncryption(b"word")
    key = generate_private_key(SECP256R1())
    (folder / "locked.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    assert run_command(["policy", "sign", "policies", "--key", "locked.pem", "-o", "signed.tar.gz"]) == 2
    assert "locked with a passphrase" in capsys.readouterr().err
    assert not Path("signed.tar.gz").exists()


def test_a_handler_that_wants_to_stop_the_program_does_so_quietly(folder: Path) -> None:
    """Exit 130, as after Ctrl-C, without a traceback."""
    (folder / "app.py").write_text(
        "async def build(bus):\n"
        "    async def work(message):\n"
        "        raise KeyboardInterrupt\n"
        "    await bus.register('worker', handler=work, tenant='acme')\n"
    )
    (folder / "lines.jsonl").write_text('{"from": "desk", "to": "worker", "payload": {}}\n')
    command = [sys.executable, "-m", "enhanced_agent_bus", "run", "app.py:build", "--input", "lines.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130, done
    assert "Traceback" not in done.stderr
