"""What a damaged log is said to be, where the first look would name another place or another kind of damage."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from enhanced_agent_bus.audit.homes import read_key, verify
from enhanced_agent_bus.audit.verify import Report, export, read_note
from enhanced_agent_bus.audit.verify import verify as verify_alone
from enhanced_agent_bus.cli.app import run_command
from tests.developer import log
from tests.entries import decision, fill, move, open_ledger, put_all


async def ended_late(home: Path) -> None:
    """Decisions first, and the outcomes of all of them behind: a cut between takes outcomes of what is left."""
    ledger = await open_ledger(home, checkpoint_records=20)
    rows = await put_all(ledger, [decision(number) for number in range(50)])
    await put_all(ledger, [move(number, row) for number, row in enumerate(rows)])
    await ledger.close()


def key_of(home: Path) -> str:
    """The public key that lies in it."""
    return (home / "keys" / "log.vkey").read_text()


def checked(home: Path) -> Report:
    """By its own key alone."""
    return verify(home, read_key(key_of(home)))


async def test_a_cut_end_is_truncated_also_where_outcomes_went_with_it(tmp_path: Path) -> None:
    """The home's own checkpoint says how long the log was: that is named, not the first message without an end."""
    await ended_late(tmp_path / "home")
    with sqlite3.connect(tmp_path / "home" / "bus.db") as connection:
        connection.execute("DELETE FROM records WHERE seq >= 70")
    connection.close()
    report = checked(tmp_path / "home")
    assert report.first_bad is not None
    assert (report.first_bad.damage, report.first_bad.seq) == ("truncated", 70)


async def test_a_record_taken_out_and_the_rest_renumbered_is_missing_somewhere(tmp_path: Path) -> None:
    """The next checkpoint counts one more than stand before it: a range is named, since the place is not provable."""
    await fill(tmp_path / "home", 60, checkpoint_records=20)
    with sqlite3.connect(tmp_path / "home" / "bus.db") as connection:
        find = "SELECT min(seq) FROM records WHERE kind = 'outcome' AND seq > 80"
        (victim,) = connection.execute(find).fetchone()
        connection.execute("DELETE FROM records WHERE seq = ?", (victim,))
        later = connection.execute("SELECT seq, body FROM records WHERE seq > ? ORDER BY seq", (victim,)).fetchall()
        for seq, body in later:
            moved = bytes(body).replace(b'"seq":%d,' % seq, b'"seq":%d,' % (seq - 1), 1)
            connection.execute("UPDATE records SET seq = ?, body = ? WHERE seq = ?", (seq - 1, moved, seq))
    connection.close()
    report = checked(tmp_path / "home")
    assert report.first_bad is not None
    assert report.first_bad.damage == "missing"
    assert report.completeness == "bad"
    assert 0 < report.first_bad.seq <= victim < report.first_bad.seq_to


async def test_a_home_without_its_checkpoint_is_still_held_against_one_that_was_kept(tmp_path: Path) -> None:
    """What is missing is named, and a cut end is found; without a checkpoint from outside it is not fine either."""
    home = tmp_path / "home"
    await fill(home, 40, checkpoint_records=20)
    note = read_note((home / "checkpoint").read_text())
    (home / "checkpoint").unlink()
    report = checked(home)
    assert report.first_bad is not None
    assert (report.integrity, report.first_bad.damage) == ("bad", "truncated")
    assert "checkpoint" in report.first_bad.why
    assert "Error" not in report.first_bad.why
    assert report.size == note.size + 1
    with sqlite3.connect(home / "bus.db") as connection:
        connection.execute("DELETE FROM records WHERE seq >= 50")
    connection.close()
    report = verify(home, read_key(key_of(home)), note)
    assert report.first_bad is not None
    assert (report.first_bad.damage, report.first_bad.seq) == ("truncated", 50)


async def test_changes_of_the_key_are_told_of_a_damaged_log_too(tmp_path: Path) -> None:
    """A record behind the change was edited: the change before it is still among `rotations`."""
    home = tmp_path / "home"
    await fill(home, 10)
    ledger = await open_ledger(home, checkpoint_records=20)
    await ledger.rotate_key()
    await put_all(ledger, [decision(number) for number in range(10, 60)])
    await ledger.close()
    changed = [record["seq"] for record in log(home) if record["kind"] == "key"]
    victim = changed[0] + 5
    with sqlite3.connect(home / "bus.db") as connection:
        (body,) = connection.execute("SELECT body FROM records WHERE seq = ?", (victim,)).fetchone()
        edited = bytes(body).replace(b'"acme"', b'"evil"')
        connection.execute("UPDATE records SET body = ? WHERE seq = ?", (edited, victim))
    connection.close()
    report = checked(home)
    assert report.first_bad is not None
    assert report.first_bad.seq <= victim <= report.first_bad.seq_to
    assert [change["seq"] for change in report.rotations] == changed


async def test_a_part_of_a_log_is_called_one(tmp_path: Path) -> None:
    """An export that begins later: no talk of a record before the first."""
    await fill(tmp_path / "home", 10)
    assert run_command(["--home", str(tmp_path / "home"), "audit", "export", "-o", str(tmp_path / "log")]) == 0
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[4:]))
    report = verify_alone(export(tmp_path / "log"), read_key(key_of(tmp_path / "home")))
    assert report.first_bad is not None
    assert report.first_bad.why == "it begins with record 4"


async def test_a_checkpoint_of_another_log_is_told_by_its_name(tmp_path: Path) -> None:
    """Whoever takes the wrong file reads whose it is."""
    for name in ("home", "other"):
        await fill(tmp_path / name, 5)
    note = read_note((tmp_path / "other" / "checkpoint").read_text())
    origin = note.text.partition("\n")[0]
    report = verify(tmp_path / "home", read_key(key_of(tmp_path / "home")), note)
    assert report.first_bad is not None
    assert f"of {origin}, was not signed" in report.first_bad.why
    shutil.rmtree(tmp_path / "other")
