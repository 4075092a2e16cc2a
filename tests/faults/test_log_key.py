"""The log's key is changed, or the log itself is lost: what can be followed, and what is never passed over."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enhanced_agent_bus.audit.homes import read_key, verify
from enhanced_agent_bus.audit.verify import Key, Report, read_note
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.errors import StoreCorrupt
from enhanced_agent_bus.ledger import home as module
from enhanced_agent_bus.ledger import store as stores
from enhanced_agent_bus.ledger.checkpoint import Checkpoint, Signer, Verifier
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.store import Store
from tests.developer import log
from tests.entries import decision, fill, open_ledger, put_all


class Rotated:
    """A home whose key was changed twice, with what an auditor kept each time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.vkeys: list[str] = []
        self.kept: list[str] = []

    def keep(self) -> None:
        self.vkeys.append((self.home / "keys" / "log.vkey").read_text())
        self.kept.append((self.home / "checkpoint").read_text())

    def report(self, key: int, kept: int | None = None) -> Report:
        """By the key and the checkpoint of these times."""
        return verify(self.home, read_key(self.vkeys[key]), None if kept is None else read_note(self.kept[kept]))


async def make_rotated(home: Path) -> Rotated:
    """Messages, a new key, messages, another one, messages."""
    made = Rotated(home)
    await fill(home, 20, checkpoint_records=15)
    for number in (20, 21):
        made.keep()
        ledger = await open_ledger(home)
        assert await ledger.rotate_key() == (home / "keys" / "log.vkey").read_text().strip()
        await put_all(ledger, [decision(number, verdict="refuse")])
        await ledger.close()
    made.keep()
    return made


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Rotated:
    """Made once."""
    return asyncio.run(make_rotated(tmp_path_factory.mktemp("rotated") / "home"))


@pytest.fixture
def rotated(original: Rotated, tmp_path: Path) -> Rotated:
    """A copy."""
    copy = Rotated(shutil.copytree(original.home, tmp_path / "home"))
    copy.vkeys, copy.kept = original.vkeys, original.kept
    return copy


def test_any_of_its_keys_leads_to_the_newest(rotated: Rotated) -> None:
    """Whichever public key an auditor has, and whichever checkpoint was kept under which key, the log verifies."""
    changes = [record["seq"] for record in log(rotated.home, "key")]
    assert len(changes) == 2
    for key in range(3):
        for kept in (None, 0, 1, 2):
            report = rotated.report(key, kept)
            assert (report.integrity, report.first_bad) == ("ok", None)
            assert [change["seq"] for change in report.rotations] == changes


def test_old_public_keys_stay(rotated: Rotated) -> None:
    """In keys/, named by their id; of the log there is one private key, and it is the newest one's."""
    names = {path.name for path in (rotated.home / "keys").iterdir()}
    old = {f"log-{Verifier.from_vkey(vkey).key_id.hex()}.vkey" for vkey in rotated.vkeys[:2]}
    assert names == {"log.key", "log.vkey", "node.key", "node.vkey", "policy.key", "policy.pub", *old}


async def test_a_home_goes_on_after_its_key_was_changed(rotated: Rotated) -> None:
    """It opens, writes and signs with the new key alone."""
    ledger = await open_ledger(rotated.home)
    note = await ledger.checkpoint()
    await ledger.close()
    newest, *old = (read_key(vkey) for vkey in reversed(rotated.vkeys))
    assert newest.opens(note)
    assert not any(key.opens(note) for key in old)


async def test_a_retired_key_signs_nothing_later(tmp_path: Path) -> None:
    """A checkpoint behind the change that only the old key signed is not taken for one of this log."""
    await fill(tmp_path / "home", 3)
    home = open_home(tmp_path / "home")
    old = home.signer
    home.release()
    vkey = (tmp_path / "home" / "keys" / "log.vkey").read_text()
    ledger = await open_ledger(tmp_path / "home")
    await ledger.rotate_key()
    await put_all(ledger, [decision(3, verdict="refuse")])
    note = read_note(await ledger.checkpoint())
    await ledger.close()
    stale = read_note(old.sign(Checkpoint(old.name, note.size, note.root)))
    report = verify(tmp_path / "home", read_key(vkey), stale)
    assert report.first_bad is not None
    assert (report.first_bad.damage, "retired" in report.first_bad.why) == ("replaced", True)


def rewrite(home: Path, seq: int, old: bytes, new: bytes) -> None:
    """Changes a stored record."""
    database = sqlite3.connect(home / "bus.db", isolation_level=None)
    (body,) = database.execute("SELECT body FROM records WHERE seq = ?", (seq,)).fetchone()
    assert old in body
    database.execute("UPDATE records SET body = ? WHERE seq = ?", (body.replace(old, new), seq))
    database.close()


def test_a_change_that_the_old_key_did_not_sign_is_found(rotated: Rotated) -> None:
    """Somebody else's key put in the record's place does not have the tree that was signed."""
    seq = log(rotated.home, "key")[0]["seq"]
    stranger = Signer(Verifier.from_vkey(rotated.vkeys[0]).name, Ed25519PrivateKey.generate()).verifier.vkey
    rewrite(rotated.home, seq, rotated.vkeys[1].strip().encode(), stranger.encode())
    for key in range(3):
        report = rotated.report(key)
        assert report.integrity == "bad"
        assert report.first_bad is not None
        assert report.first_bad.seq <= seq + 1, "the record, or the checkpoint right behind it, which vouches for it"


@pytest.mark.parametrize("key", [0, 1, 2])
def test_tampering_before_a_change_is_placed_by_every_key(rotated: Rotated, key: int) -> None:
    """A field edited long before the change is found between the checkpoints around it, as ever."""
    victim = log(rotated.home, "decision")[10]["seq"]
    rewrite(rotated.home, victim, b'"acme"', b'"evil"')
    report = rotated.report(key, 0)
    assert report.first_bad is not None
    assert report.first_bad.damage == "altered"
    assert report.first_bad.seq <= victim <= report.first_bad.seq_to < log(rotated.home, "key")[0]["seq"]


def test_a_key_that_is_none_of_its_own_verifies_nothing(rotated: Rotated) -> None:
    """A log of this name under other keys is another log."""
    name = read_key(rotated.vkeys[0]).name
    report = verify(rotated.home, Key(name, Ed25519PrivateKey.generate().public_key().public_bytes_raw()))
    assert report.first_bad is not None
    assert report.first_bad.damage == "replaced"


class Cut(Exception):
    """The process ends here."""


@pytest.mark.parametrize("place", ["write", "file_checkpoint", "log-", "log.vkey"])
async def test_a_change_that_was_cut_off_is_done_or_not_at_all(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the process ends in it, the home opens again, signs with one key, and verifies by the first one."""
    home = tmp_path / "home"
    await fill(home, 3)
    first = read_key((home / "keys" / "log.vkey").read_text())
    locked = open_home(home)
    store = Store.open(locked, SystemClock())

    def cut(*_: Any, **__: Any) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        if hasattr(Store, place):
            patch.setattr(Store, place, cut)
        else:
            real = module.write_atomically

            def writing(path: Path, data: bytes, *, mode: int = 0o644) -> None:
                if path.name.startswith(place):
                    raise Cut
                real(path, data, mode=mode)

            patch.setattr(module, "write_atomically", writing)
        with pytest.raises(Cut):
            store.rotate()
    store.close()
    locked.release()
    ledger = await open_ledger(home)
    note = await ledger.checkpoint()
    await ledger.close()
    changed = len(log(home, "key"))
    assert changed == (place != "write")
    assert read_key((home / "keys" / "log.vkey").read_text()).opens(note)
    assert first.opens(note) == (not changed)
    assert not (home / "keys" / "log.key.next").exists()
    report = verify(home, first)
    assert (report.integrity, report.first_bad) == ("ok", None)


# --- a log that is lost --------------------------------------------------------------------------------------------


def eab(capsys: pytest.CaptureFixture[str], home: Path, *words: str, status: int = 0) -> Any:
    """One command's document, or what it says on standard error."""
    found = run_command(["--json", "--home", str(home), *words])
    out, err = capsys.readouterr()
    assert found == status, err
    return json.loads(out or err)


def lose_database(home: Path) -> None:
    """The file is gone."""
    (home / "bus.db").unlink()


def cut_database(home: Path) -> None:
    """Only its first pages are left."""
    with (home / "bus.db").open("r+b") as file:
        file.truncate(8192)


def edit_record(home: Path) -> None:
    """It opens as it always did, and is not what was signed."""
    rewrite(home, 5, b'"acme"', b'"evil"')


def lose_key(home: Path) -> None:
    """Nobody can sign for the old log."""
    (home / "keys" / "log.key").unlink()


@pytest.mark.parametrize("how", [lose_database, cut_database, edit_record, lose_key])
def test_a_new_log_declares_the_one_that_is_lost(how: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only when told so: the remains are put aside whole, and the first record says what was lost."""
    home = tmp_path / "home"
    asyncio.run(fill(home, 20, checkpoint_records=15))
    old = json.loads((home / "home.json").read_text())
    (home / "home.json").write_text(json.dumps({**old, "high_water": {"revision": 7, "digest": "d" * 64}}))
    newest = read_note((home / "checkpoint").read_text())
    how(home)
    remains = (home / "bus.db").read_bytes() if (home / "bus.db").exists() else None
    begun = eab(capsys, home, "init", "--new-log")
    first = log(home)[0]
    assert (first["seq"], first["kind"], first["origin"]) == (0, "gap", f"{old['bus']}/{old['node']}")
    assert (first["size"], first["root"], first["signed"]) == (newest.size, newest.root.hex(), True)
    names = json.loads((home / "home.json").read_text())
    assert (names["bus"], names["high_water"]["revision"]) == (old["bus"], 7)
    assert names["node"] != old["node"]
    assert "new_log" not in names
    assert begun["origin"] == f"{names['bus']}/{names['node']}"
    aside = home / first["aside"]
    assert (aside / "bus.db").read_bytes() == remains if remains is not None else not (aside / "bus.db").exists()
    verdict = eab(capsys, home, "audit", "verify")
    assert (verdict["integrity"], verdict["first_bad"]) == ("ok", None)
    assert verdict["losses"] == [{"seq": 0, "origin": first["origin"], "size": newest.size, "root": newest.root.hex()}]
    asyncio.run(fill(home, 3))  # and it goes on
    assert "goes on" in eab(capsys, home, "init", "--new-log", status=2)["error"]["message"]


def test_a_log_that_is_whole_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, and nothing of it has moved; nor is a home made where there is none."""
    home = tmp_path / "home"
    asyncio.run(fill(home, 3))
    before = log(home)
    assert eab(capsys, home, "init", "--new-log", status=2)["error"]
    assert log(home) == before
    assert not (home / "lost").exists()
    assert eab(capsys, tmp_path / "none", "init", "--new-log", status=2)["error"]["code"] == "no_home"


@pytest.mark.parametrize("place", ["bus.db", "checkpoint", "home.json", "log.key", "log.vkey", "finish"])
def test_a_new_log_whose_making_was_cut_off_is_begun_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until it is whole the home does not open, and what is declared in the end is the log that was lost first."""
    home = tmp_path / "home"
    asyncio.run(fill(home, 20))
    old = json.loads((home / "home.json").read_text())
    newest = read_note((home / "checkpoint").read_text())
    lose_database(home)
    real, written = module.write_atomically, 0

    def writing(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        nonlocal written
        written += path == home / "home.json"
        if path.name == place and (place != "home.json" or written == 2) and path.parent.name != "lost":
            raise OSError(5, "cut off")
        real(path, data, mode=mode)

    def cut(*_: object) -> None:
        raise OSError(5, "cut off")

    with monkeypatch.context() as patch:
        if place == "finish":
            patch.setattr(module.Home, "finish", cut)
        elif place == "bus.db":
            patch.setattr(stores.Store, "write", cut)
        else:
            patch.setattr(module, "write_atomically", writing)
            patch.setattr(stores, "write_atomically", writing)
        eab(capsys, home, "init", "--new-log", status=3)
    if place != "finish":
        with pytest.raises(StoreCorrupt):
            asyncio.run(open_ledger(home))
        eab(capsys, home, "init", "--new-log")
    first = log(home)[0]
    assert (first["kind"], first["origin"], first["size"]) == ("gap", f"{old['bus']}/{old['node']}", newest.size)
    assert eab(capsys, home, "audit", "verify")["integrity"] == "ok"
