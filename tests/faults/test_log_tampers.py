"""The nine tampers: what `verify` says of each, with an outside checkpoint and without one."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enhanced_agent_bus.audit import verify as verifier
from enhanced_agent_bus.audit.homes import read_key, verify
from enhanced_agent_bus.audit.verify import Note, Report, read_note
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.ledger.home import Home, open_home
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.ports import Entry
from tests.entries import decision, fill, move, open_ledger, put_all
from tests.support import as_killed

MESSAGES = 60
VICTIM = 108  # a decision between two checkpoints


@contextmanager
def database(home: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes, as someone with access to the disk has one."""
    connection = sqlite3.connect(home / "bus.db", isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def body(connection: sqlite3.Connection, seq: int) -> bytes:
    """The stored record."""
    (found,) = connection.execute("SELECT body FROM records WHERE seq = ?", (seq,)).fetchone()
    return bytes(found)


def edit_field(home: Path) -> None:
    """One field says something else."""
    with database(home) as connection:
        changed = body(connection, VICTIM).replace(b'"acme"', b'"evil"')
        assert changed != body(connection, VICTIM)
        connection.execute("UPDATE records SET body = ? WHERE seq = ?", (changed, VICTIM))


def delete_row(home: Path) -> None:
    """A record is gone."""
    with database(home) as connection:
        connection.execute("DELETE FROM records WHERE seq = ?", (VICTIM,))


def swap_rows(home: Path) -> None:
    """Two neighbours have changed places."""
    with database(home) as connection:
        first, second = body(connection, VICTIM), body(connection, VICTIM + 1)
        connection.execute("UPDATE records SET body = ? WHERE seq = ?", (second, VICTIM))
        connection.execute("UPDATE records SET body = ? WHERE seq = ?", (first, VICTIM + 1))


def make_room(connection: sqlite3.Connection, seq: int) -> None:
    """Moves every row from seq on by one."""
    connection.execute("UPDATE records SET seq = -seq - 1 WHERE seq >= ?", (seq,))
    connection.execute("UPDATE records SET seq = -seq WHERE seq < 0")


def duplicate_row(home: Path) -> None:
    """A record stands twice, and the rest moved up."""
    with database(home) as connection:
        make_room(connection, VICTIM + 1)
        connection.execute(
            "INSERT INTO records SELECT ?, kind, message_id, body FROM records WHERE seq = ?", (VICTIM + 1, VICTIM)
        )


def insert_backdated_row(home: Path) -> None:
    """A forged record stands between others."""
    with database(home) as connection:
        forged = body(connection, VICTIM).replace(b'"acme"', b'"evil"')
        make_room(connection, VICTIM + 1)
        connection.execute("INSERT INTO records VALUES (?, 'decision', NULL, ?)", (VICTIM + 1, forged))


def append_backdated_row(home: Path) -> None:
    """A forged record stands at the end, with an older time."""
    with database(home) as connection:
        (size,) = connection.execute("SELECT max(seq) + 1 FROM records").fetchone()
        forged = body(connection, VICTIM).replace(b'"seq":%d,' % VICTIM, b'"seq":%d,' % size)
        connection.execute("INSERT INTO records VALUES (?, 'decision', NULL, ?)", (size, forged))


def cut_tail(home: Path) -> None:
    """The end is gone."""
    with database(home) as connection:
        connection.execute("DELETE FROM records WHERE seq >= ?", (VICTIM,))


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with its newest checkpoint kept elsewhere."""
    folder = tmp_path_factory.mktemp("origin")
    asyncio.run(fill(folder / "home", MESSAGES, checkpoint_records=20))
    shutil.copy(folder / "home" / "checkpoint", folder / "kept")
    return folder


def check(folder: Path, *, outside: bool) -> Report:
    """Verifies folder/home, by the checkpoint in folder/kept where that is asked for."""
    key = read_key((folder / "home" / "keys" / "log.vkey").read_text())
    return verify(folder / "home", key, read_note((folder / "kept").read_text()) if outside else None)


@pytest.fixture
def copy(origin: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(origin, tmp_path / "copy")


def test_untouched_log_is_fine(copy: Path) -> None:
    """Nothing is found in a log that nobody touched, and all of it is anchored by its newest checkpoint."""
    before = sorted(path.name for path in (copy / "home").iterdir())
    report = check(copy, outside=True)
    assert report.ok
    assert (report.integrity, report.completeness, report.time) == ("ok", "ok", "ok")
    assert (report.unanchored, report.cannot_exclude, report.first_bad, report.open) == (0, [], None, 0)
    assert report.checkpoint_size == report.size - 1
    assert sorted(path.name for path in (copy / "home").iterdir()) == before, "verifying makes no files"


def test_without_an_outside_checkpoint_it_says_what_it_cannot_exclude(copy: Path) -> None:
    """Without one the log may be cut or wholly replaced by whoever has its key, and the report says so."""
    report = check(copy, outside=False)
    assert report.ok
    assert report.cannot_exclude == ["replaced", "truncated"]
    assert report.unanchored == report.size


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize(
    ("tamper", "damage", "exact"),
    [
        (edit_field, "altered", False),
        (delete_row, "missing", True),
        (swap_rows, "out_of_order", True),
        (duplicate_row, "duplicated", True),
        (insert_backdated_row, "inserted", True),
    ],
)
def test_tampered_record_is_named(
    *, copy: Path, tamper: Callable[[Path], None], damage: str, exact: bool, outside: bool
) -> None:
    """A changed, deleted, swapped, doubled or inserted record is found; its seq is named, or the range around it."""
    tamper(copy / "home")
    report = check(copy, outside=outside)
    assert not report.ok
    assert report.first_bad is not None
    assert report.first_bad.damage == damage
    assert report.first_bad.seq <= VICTIM <= report.first_bad.seq_to
    assert (report.first_bad.seq == VICTIM) == exact
    assert report.first_bad.seq > 0


def test_appended_backdated_record_is_found(copy: Path) -> None:
    """A record added behind the end, with the time of an older one, is found by its time."""
    append_backdated_row(copy / "home")
    for outside in (True, False):
        report = check(copy, outside=outside)
        assert (report.time, report.ok) == ("bad", False)
        assert report.first_bad is not None
        assert (report.first_bad.damage, report.first_bad.seq) == ("inserted", report.size - 1)


def test_cut_tail_is_found(copy: Path) -> None:
    """A log without its end is found to be shorter than a checkpoint says, and is not complete."""
    cut_tail(copy / "home")
    report = check(copy, outside=True)
    assert (report.integrity, report.completeness) == ("bad", "bad")
    assert report.first_bad is not None
    assert (report.first_bad.damage, report.first_bad.seq) == ("truncated", VICTIM)
    assert report.first_bad.seq_to == read_note((copy / "kept").read_text()).size - 1


def test_a_database_that_cannot_be_read_is_not_called_complete(copy: Path) -> None:
    """Of what is no database, or is gone, nothing can be said to be there."""
    for content in (b"no database" * 1000, None):
        (copy / "home" / "bus.db").unlink()
        if content is not None:
            (copy / "home" / "bus.db").write_bytes(content)
        report = check(copy, outside=False)
        assert (report.integrity, report.completeness, report.ok) == ("bad", "bad", False)


async def test_deleted_wal_is_found(tmp_path: Path) -> None:
    """Deleting the -wal file under a bus that was killed takes records away; a checkpoint kept elsewhere shows it."""
    ledger = await open_ledger(tmp_path / "live", checkpoint_records=10)
    for number in range(20):
        (row,) = await put_all(ledger, [decision(number)])
        await put_all(ledger, [move(number, row)])
    as_killed(tmp_path / "live", tmp_path / "home")
    shutil.copy(tmp_path / "home" / "checkpoint", tmp_path / "kept")
    await ledger.close()
    before = sorted(path.name for path in (tmp_path / "home").iterdir())
    assert check(tmp_path, outside=True).ok
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == before
    (tmp_path / "home" / "bus.db-wal").unlink()
    (tmp_path / "home" / "bus.db-shm").unlink()
    report = check(tmp_path, outside=True)
    assert not report.ok
    assert report.first_bad is not None
    assert report.first_bad.damage in ("truncated", "altered")


async def test_older_backup_is_found(tmp_path: Path) -> None:
    """A whole home restored from an older backup is fine in itself, and shorter than the checkpoint kept elsewhere."""
    await fill(tmp_path / "home", 10)
    shutil.copytree(tmp_path / "home", tmp_path / "backup")
    ledger = await open_ledger(tmp_path / "home")
    await put_all(ledger, [Entry("opened", {})])
    await ledger.close()
    shutil.copy(tmp_path / "home" / "checkpoint", tmp_path / "kept")
    shutil.rmtree(tmp_path / "home")
    shutil.copytree(tmp_path / "backup", tmp_path / "home")
    alone = check(tmp_path, outside=False)
    assert alone.ok
    assert "truncated" in alone.cannot_exclude
    report = check(tmp_path, outside=True)
    assert report.first_bad is not None
    assert (report.first_bad.damage, report.first_bad.seq) == ("truncated", report.size)


async def test_other_log_is_found(copy: Path, tmp_path: Path) -> None:
    """A log that is consistent in itself and another one is found: by its key, or by the outside checkpoint."""
    await fill(tmp_path / "other", MESSAGES)
    key = read_key((copy / "home" / "keys" / "log.vkey").read_text())
    report = verify(tmp_path / "other", key)
    assert report.first_bad is not None
    assert (report.first_bad.damage, report.first_bad.seq) == ("replaced", 0)


async def test_log_rewritten_with_the_stolen_key_is_found(copy: Path, tmp_path: Path) -> None:
    """Whoever has the key can write another log of the same name; only the outside checkpoint shows it."""
    stolen, empty = open_home(copy / "home"), open_home(tmp_path / "home")
    ledger = await SqliteLedger.open(
        Home(empty.path, stolen.bus, stolen.node, stolen.signer, empty.lock, fresh=True), clock=SystemClock()
    )
    stolen.release()
    await put_all(ledger, [Entry("opened", {})])
    await put_all(ledger, [decision(n) for n in range(4 * MESSAGES)])
    await ledger.close()
    shutil.copy(copy / "home" / "keys" / "log.vkey", tmp_path / "home" / "keys" / "log.vkey")
    shutil.copy(copy / "kept", tmp_path / "kept")
    assert check(tmp_path, outside=False).ok
    report = check(tmp_path, outside=True)
    assert report.first_bad is not None
    assert (report.first_bad.damage, report.first_bad.seq) == ("replaced", 0)


async def test_outcome_without_its_decision_is_a_bypass(tmp_path: Path) -> None:
    """A handler's outcome that no allow came before is found, however well the log is signed."""
    ledger = await open_ledger(tmp_path / "home")
    await put_all(ledger, [decision(0), decision(1, verdict="refuse")])
    rogue = Entry("outcome", move(1, 0).fields, move(1, 0).message_id)
    (seq,) = await put_all(ledger, [rogue])
    await ledger.close()
    report = check(tmp_path, outside=False)
    assert (report.integrity, report.completeness) == ("ok", "bad")
    assert report.first_bad is not None
    assert (report.first_bad.seq, report.first_bad.kind, report.first_bad.damage) == (seq, "outcome", "missing")


async def test_gap_in_a_senders_count_is_found(tmp_path: Path) -> None:
    """A decision that a sender counted and that is not in the log is missed."""
    ledger = await open_ledger(tmp_path / "home")
    seqs = await put_all(ledger, [decision(0), decision(1), decision(3)])
    await ledger.close()
    report = check(tmp_path, outside=False)
    assert report.completeness == "bad"
    assert report.first_bad is not None
    assert report.first_bad.seq == seqs[2]


async def test_ended_message_without_an_outcome_is_found(tmp_path: Path) -> None:
    """A message that the home says has ended needs an outcome record; one that waits is counted as open."""
    ledger = await open_ledger(tmp_path / "home")
    seqs = await put_all(ledger, [decision(0), decision(1)])
    await ledger.close()
    assert check(tmp_path, outside=False).open == 2
    with database(tmp_path / "home") as connection:
        connection.execute("UPDATE messages SET state = 'delivered' WHERE seq = ?", (seqs[1],))
    report = check(tmp_path, outside=False)
    assert (report.completeness, report.open) == ("bad", 1)
    assert report.first_bad is not None
    assert report.first_bad.seq == seqs[1]


def export(home: Path, file: Path) -> list[bytes]:
    """The log as JSON lines."""
    with database(home) as connection:
        lines = [bytes(line) for (line,) in connection.execute("SELECT body FROM records ORDER BY seq")]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return lines


def run(*arguments: Path | str) -> tuple[int, str]:
    """The verifier as an outsider runs it: one file, no site-packages, no environment."""
    command = [sys.executable, "-I", verifier.__file__, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.returncode, finished.stdout


def test_export_is_verified_by_one_file_alone(copy: Path) -> None:
    """verify.py runs on its own, on an export and with the public key, and its exit status is the verdict."""
    key, log = copy / "home" / "keys" / "log.vkey", copy / "log.jsonl"
    lines = export(copy / "home", log)
    status, printed = run(log, "--key", key, "--checkpoint", copy / "kept", "--json", "--require-anchor")
    assert status == 0
    report = json.loads(printed)
    assert (report["integrity"], report["size"], report["first_bad"]) == ("ok", len(lines), None)
    assert run(log, "--key", key, "--require-anchor")[0] == 1
    assert run(log, "--key", key)[0] == 0
    log.write_bytes(b"".join(line + b"\n" for n, line in enumerate(lines) if n != VICTIM))
    status, printed = run(log, "--key", key, "--json")
    bad = json.loads(printed)["first_bad"]
    assert (status, bad["seq"], bad["seq_to"], bad["damage"]) == (1, VICTIM, VICTIM, "missing")


def test_a_key_in_another_form_is_said_to_be_one(copy: Path) -> None:
    """The verifier that stands alone takes the log's vkey, and says so to who gives it anything else."""
    export(copy / "home", copy / "log.jsonl")
    for text in ("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n", "", "a+b"):
        (copy / "key").write_text(text)
        command = [sys.executable, "-I", verifier.__file__, str(copy / "log.jsonl"), "--key", str(copy / "key")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.splitlines()[-1].partition("keys/")[2]) == (2, "log.vkey")


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"v":1,"seq":108,"kind":"decision","at":"', b"null"]
)
def test_garbage_in_place_of_a_record_is_found(copy: Path, line: bytes) -> None:
    """Whatever stands in a record's place, the verifier says which record it is and does not fall over."""
    log = copy / "log.jsonl"
    lines = export(copy / "home", log)
    lines[VICTIM] = line
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    report = verify(log, read_key((copy / "home" / "keys" / "log.vkey").read_text()))
    assert report.first_bad is not None
    assert (report.first_bad.seq, report.first_bad.damage) == (VICTIM, "altered")


@pytest.mark.parametrize("seq", [VICTIM, 0])
def test_record_cut_short_is_found(copy: Path, seq: int) -> None:
    """A record that begins as it should and breaks off is named."""
    log = copy / "log.jsonl"
    lines = export(copy / "home", log)
    lines[seq] = lines[seq][:250]
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    report = verify(log, read_key((copy / "home" / "keys" / "log.vkey").read_text()))
    assert report.first_bad is not None
    assert (report.first_bad.seq, report.first_bad.damage) == (seq, "altered")


def test_empty_or_missing_log_is_never_ok(copy: Path, tmp_path: Path) -> None:
    """An empty file, a home without its database and a file that is not there are not verified."""
    key = copy / "home" / "keys" / "log.vkey"
    (tmp_path / "empty").touch()
    assert run(tmp_path / "empty", "--key", key)[0] == 1
    assert run(tmp_path / "nowhere", "--key", key)[0] == 2
    assert run(copy / "home", "--key", key)[0] == 2
    (copy / "home" / "bus.db").unlink()
    assert not verify(copy / "home", read_key(key.read_text())).ok


def test_forged_checkpoint_from_outside_is_refused(copy: Path) -> None:
    """An outside checkpoint that the log's key did not sign: this is another log, for `verify` and for `verify.py`."""
    note = (copy / "kept").read_text()
    forged = read_note(note.replace(f"\n{note.splitlines()[1]}\n", "\n7\n", 1))
    assert isinstance(forged, Note)
    key = copy / "home" / "keys" / "log.vkey"
    report = verify(copy / "home", read_key(key.read_text()), forged)
    assert report.integrity == "bad"
    assert report.first_bad is not None
    assert (report.first_bad.seq, report.first_bad.seq_to, report.first_bad.damage) == (0, 6, "replaced")
    assert "not signed" in report.first_bad.why
    export(copy / "home", copy / "log.jsonl")
    (copy / "forged").write_text(forged.text)
    status, printed = run(copy / "log.jsonl", "--key", key, "--checkpoint", copy / "forged", "--json")
    assert (status, json.loads(printed)["first_bad"]) == (1, vars(report.first_bad))
    (copy / "forged").write_text("no checkpoint")
    assert run(copy / "log.jsonl", "--key", key, "--checkpoint", copy / "forged")[0] == 2


async def test_running_bus_is_verified_while_it_writes(tmp_path: Path) -> None:
    """A log that grows while it is read is fine: what came later is left for next time, and no writer is disturbed."""
    ledger = await open_ledger(tmp_path / "home", checkpoint_records=7)
    key = read_key((tmp_path / "home" / "keys" / "log.vkey").read_text())
    checks = [asyncio.create_task(asyncio.to_thread(verify, tmp_path / "home", key)) for _ in range(3)]
    number = 0
    while not all(check.done() for check in checks) or number < 50:
        (row,) = await put_all(ledger, [decision(number)])
        await put_all(ledger, [move(number, row)])
        number += 1
        if number % 10 == 0:
            checks.append(asyncio.create_task(asyncio.to_thread(verify, tmp_path / "home", key)))
        if number > 50:
            await asyncio.gather(*checks)
    for check in checks:
        report = check.result()
        assert report.ok, report.first_bad
    await ledger.close()
