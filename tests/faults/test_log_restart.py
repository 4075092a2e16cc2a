"""The log across restarts: what is kept, and what is refused instead of being started afresh."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import sys
from pathlib import Path

import pytest

from enhanced_agent_bus.audit.homes import open_database
from enhanced_agent_bus.errors import AuditUnavailable, ConfigInvalid, StoreCorrupt, StoreLocked
from enhanced_agent_bus.ledger.checkpoint import Verifier
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.lock import control_socket
from enhanced_agent_bus.ports import AgentRow, Entry, FactChange
from tests.entries import decision, fill, move, open_ledger, put_all, putting, until
from tests.support import as_killed


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """Messages, states, facts, registrations, settings and counts are as they were when the home was closed."""
    home = tmp_path / "home"
    ledger = await open_ledger(home)
    fact = FactChange("agent", "desk", "spent", b"5")
    agent = AgentRow("desk", "acme", ("planner",), (), (), "latest", live=True)
    rows = await put_all(ledger, [decision(n, facts=[fact]) for n in range(5)])
    await put_all(ledger, [move(0, rows[0]), Entry("agent", {}, agent=agent, settings={"active": "a"})])
    accounting, size, bus = ledger.accounting(), ledger.size(), ledger.bus
    waiting = ledger.waiting(["queued"])
    await ledger.close()
    ledger = await open_ledger(home)
    assert ledger.bus == bus
    assert ledger.accounting() == accounting
    assert ledger.waiting(["queued"]) == waiting
    assert ledger.size() == size + 1, "close appends a checkpoint, and an opening without work nothing"
    assert ledger.facts("agent", "desk") == {"spent": b"5"}
    assert ledger.agents() == [agent]
    assert ledger.setting("active") == "a"
    await ledger.close()


async def test_new_home_has_names_keys_and_a_checkpoint(tmp_path: Path) -> None:
    """A home is made for its owner alone, with its names, a private key, a public key, and a first checkpoint."""
    home = tmp_path / "a" / "home"
    ledger = await open_ledger(home)
    names = json.loads((home / "home.json").read_text())
    assert (names["bus"], names["node"]) == (ledger.bus, ledger.node)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "keys" / "log.key").stat().st_mode) == 0o600
    verifier = Verifier.from_vkey((home / "keys" / "log.vkey").read_text())
    assert verifier.name == f"{ledger.bus}/{ledger.node}"
    assert verifier.open((home / "checkpoint").read_text()).size == 0
    await ledger.close()


async def test_checkpoint_file_is_the_newest_after_close(tmp_path: Path) -> None:
    """Closing signs the whole log; opening and closing without work adds nothing."""
    home = tmp_path / "home"
    size = await fill(home, 30)
    verifier = Verifier.from_vkey((home / "keys" / "log.vkey").read_text())
    newest = verifier.open((home / "checkpoint").read_text())
    with sqlite3.connect(home / "bus.db") as database:
        (count,) = database.execute("SELECT count(*) FROM records").fetchone()
        (body,) = database.execute("SELECT body FROM records ORDER BY seq DESC LIMIT 1").fetchone()
    database.close()
    record = json.loads(body)
    assert newest.size == count - 1 == size - 1
    assert (record["kind"], record["size"], record["root"]) == ("checkpoint", newest.size, newest.root.hex())
    assert record["note"] == (home / "checkpoint").read_text()
    await (await open_ledger(home)).close()
    assert verifier.open((home / "checkpoint").read_text()) == newest


async def test_checkpoints_come_every_so_many_records_and_seconds(tmp_path: Path) -> None:
    """A checkpoint is signed after `checkpoint_records`, and `checkpoint_seconds` after something changed."""
    home = tmp_path / "home"
    ledger = await open_ledger(home, checkpoint_records=10, checkpoint_seconds=0.05)
    verifier = Verifier.from_vkey((home / "keys" / "log.vkey").read_text())
    await put_all(ledger, [decision(n) for n in range(25)])
    async with asyncio.timeout(5):
        await until(lambda: verifier.open((home / "checkpoint").read_text()).size >= 26)
        await putting(ledger, decision(99))
        await until(lambda: verifier.open((home / "checkpoint").read_text()).size >= ledger.size() - 1)
    await ledger.close()


async def test_second_process_is_told_that_the_home_is_taken(tmp_path: Path) -> None:
    """Two processes cannot open one home: the second gets StoreLocked, and the first goes on."""
    ledger = await open_ledger(tmp_path / "home")
    with pytest.raises(StoreLocked):
        await open_ledger(tmp_path / "home")
    program = f"from enhanced_agent_bus.ledger.home import open_home; open_home({str(tmp_path / 'home')!r})"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    assert b"StoreLocked" in errors
    await put_all(ledger, [decision(1)])
    await ledger.close()
    await (await open_ledger(tmp_path / "home")).close()


async def test_lock_names_the_control_socket(tmp_path: Path) -> None:
    """Whoever finds the home locked finds the socket of the one who has it, until that one has gone."""
    home = open_home(tmp_path / "home")
    elsewhere = tmp_path / "s"
    server = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), elsewhere)
    assert control_socket(home.path) is None
    home.lock.announce(elsewhere)
    assert control_socket(home.path) == elsewhere
    home.release()
    assert control_socket(home.path) is None
    server.close()
    await server.wait_closed()


async def test_lost_database_is_never_a_fresh_start(tmp_path: Path) -> None:
    """A home without its bus.db, or with an empty one, is refused and stays as it is."""
    home = tmp_path / "home"
    await fill(home, 3)
    (home / "bus.db").write_bytes(b"")
    with pytest.raises(StoreCorrupt):
        await open_ledger(home)
    (home / "bus.db").unlink()
    with pytest.raises(StoreCorrupt):
        await open_ledger(home)
    assert not (home / "bus.db").exists()


@pytest.mark.parametrize("lost", ["home.json", "keys/log.key", "checkpoint"])
async def test_lost_part_of_a_home_is_refused(tmp_path: Path, lost: str) -> None:
    """A home that has lost its names, its key or its newest checkpoint is not opened."""
    home = tmp_path / "home"
    await fill(home, 3)
    (home / lost).unlink()
    with pytest.raises(StoreCorrupt) as refused:
        await open_ledger(home)
    assert refused.value.remedy


async def test_older_backup_is_refused(tmp_path: Path) -> None:
    """A database that is older than the home's newest checkpoint is not opened, and the error says why."""
    home = tmp_path / "home"
    await fill(home, 3)
    shutil.copy(home / "bus.db", tmp_path / "older.db")
    ledger = await open_ledger(home)
    await put_all(ledger, [decision(n) for n in range(10, 20)])
    await ledger.close()
    shutil.copy(tmp_path / "older.db", home / "bus.db")
    with pytest.raises(StoreCorrupt, match="vouches for"):
        await open_ledger(home)


async def test_folder_with_other_files_is_no_home(tmp_path: Path) -> None:
    """A folder with anything but an eab.toml is not made into a home; one with an eab.toml is."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(ConfigInvalid):
        await open_ledger(tmp_path / "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["a.txt"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "eab.toml").touch()
    await (await open_ledger(tmp_path / "home")).close()


async def test_home_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    """A process that died while it made a home, before the first record, leaves nothing in the way."""
    first = open_home(tmp_path / "home")
    first.release()
    assert not (tmp_path / "home" / "home.json").exists()
    ledger = await open_ledger(tmp_path / "home")
    assert ledger.bus != first.bus
    await ledger.close()


async def test_forked_child_cannot_write(tmp_path: Path) -> None:
    """In a forked child the ledger is unusable, and the parent's goes on."""
    ledger = await open_ledger(tmp_path / "home")
    pid = os.fork()
    if not pid:
        told: list[bool] = []
        entry = decision(1)
        entry.done = lambda seq, error: told.append(seq == -1 and isinstance(error, AuditUnavailable))
        ledger.put(entry)
        try:
            ledger.find("desk/order-1")
        except AuditUnavailable:
            told.append(True)
        os._exit(0 if told == [True, True] else 1)
    assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0
    await put_all(ledger, [decision(1)])
    await ledger.close()


async def test_mark_is_kept_in_home_json(tmp_path: Path) -> None:
    """The high-water mark is read back, also from a home that is only just being made."""
    home = open_home(tmp_path / "home")
    assert home.read_mark() is None
    home.write_mark({"revision": 7, "digest": "a" * 64})
    assert home.read_mark() == {"revision": 7, "digest": "a" * 64}
    home.release()


@pytest.mark.parametrize("messages", [5000])
async def test_restart_does_not_read_the_whole_log(tmp_path: Path, messages: int) -> None:
    """Only the end of a long log is verified at an opening, from a checkpoint on."""
    home = tmp_path / "home"
    await fill(home, messages, checkpoint_records=500)
    with sqlite3.connect(home / "bus.db") as database:
        (count,) = database.execute("SELECT count(*) FROM records").fetchone()
    database.close()
    assert count > 2 * messages
    ledger = await open_ledger(home)
    assert ledger.accounting()["delivered"] == messages
    await ledger.close()


async def test_home_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A home where nothing can be written is AuditUnavailable, with what to look at."""
    home = tmp_path / "home"
    await fill(home, 3)
    (home / "lock").unlink()
    (home / "lock").mkdir()
    with pytest.raises(AuditUnavailable, match="cannot be written") as refused:
        await open_ledger(home)
    assert refused.value.remedy


async def test_a_reader_leaves_the_index_of_a_bus_that_was_opened_meanwhile(tmp_path: Path) -> None:
    """What reading a crashed home made is removed again, and what a bus that came meanwhile works with is not."""
    home = tmp_path / "home"
    ledger = await open_ledger(tmp_path / "alive")
    await put_all(ledger, [decision(n) for n in range(5)])
    as_killed(tmp_path / "alive", home, "*-shm")
    await ledger.close()
    index = home / "bus.db-shm"
    with open_database(home) as database:
        assert database.execute("SELECT count(*) FROM records").fetchone()[0] > 5
        assert index.exists()
    assert not index.exists()
    with open_database(home) as database:
        database.execute("SELECT count(*) FROM records").fetchone()
        opened = await open_ledger(home)
        database.rollback()
    assert index.exists()
    await put_all(opened, [decision(n) for n in range(5, 10)])
    with open_database(home) as database:
        assert database.execute("SELECT count(*) FROM records WHERE kind = 'decision'").fetchone() == (10,)
    await opened.close()
