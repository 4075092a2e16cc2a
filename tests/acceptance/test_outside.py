"""What the log hands out, checked by others: Go's x/mod/sumdb, and the program of an auditor in examples/."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from enhanced_agent_bus.audit import proofs, tiles
from enhanced_agent_bus.audit.homes import read_key, verify
from enhanced_agent_bus.audit.verify import Note, read_note
from enhanced_agent_bus.errors import StoreCorrupt
from enhanced_agent_bus.ports import Entry
from examples.auditor.check import check
from tests.entries import decision, open_ledger, put_all
from tests.outsider import Outsider, Rejected, outsider

#: Around every power of two that matters here, and then some.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 127, 128, 129, 255, 256, 257, 511, 513, 1000, 1025)


class Log:
    """A closed home whose log was signed at each of the sizes."""

    def __init__(self, home: Path, notes: dict[int, str]) -> None:
        self.home = home
        self.notes = {size: read_note(note) for size, note in notes.items()}
        self.vkey = (home / "keys" / "log.vkey").read_text()
        self.database = sqlite3.connect(f"{(home / 'bus.db').as_uri()}?mode=ro", uri=True)

    def leaves(self, size: int) -> list[bytes]:
        """By a way of their own: every record, hashed."""
        return [sha256(b"\0" + record).digest() for _, record in proofs.stored(self.database, 0, size)]


async def signed_at(home: Path, sizes: tuple[int, ...], **settings: int) -> dict[int, str]:
    """Fills a log, and has it signed at each of these sizes."""
    ledger = await open_ledger(home, checkpoint_records=10_000, checkpoint_seconds=3600, **settings)
    notes: dict[int, str] = {}
    for size in sizes:
        while ledger.size() < size:
            missing = range(ledger.size(), size)
            await put_all(ledger, [Entry("opened", {"security_state": [], "mono_us": 1}) for _ in missing])
        notes[size] = await ledger.checkpoint()
    await ledger.close()
    return notes


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    """A log with signed checkpoints at the sizes."""
    home = tmp_path_factory.mktemp("log") / "home"
    made = Log(home, asyncio.run(signed_at(home, SIZES)))
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    """Another one."""
    home = tmp_path_factory.mktemp("other") / "home"
    made = Log(home, asyncio.run(signed_at(home, (9, 300))))
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def go() -> Iterator[Outsider]:
    """Whoever checks with x/mod/sumdb."""
    with outsider() as program:
        yield program


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1."""
    if len(leaves) == 1:
        return leaves[0]
    half = proofs.half_of(len(leaves))
    return sha256(b"\1" + by_definition(leaves[:half]) + by_definition(leaves[half:])).digest()


def test_checkpoints_are_what_others_read_in_them(log: Log, go: Outsider) -> None:
    """Size, root and signature of each checkpoint: the writer, Go, the auditor's program and the records agree."""
    for size, note in log.notes.items():
        assert note.size == size
        assert note.root == by_definition(log.leaves(size)) == proofs.Tree(log.database).root(0, size)
        assert go.ask("checkpoint", log.vkey, checkpoint=note.text) == f"{size} {base64.b64encode(note.root).decode()}"
        assert check(log.vkey, "checkpoint", note.text) == note.text


def test_every_record_is_proved_to_others(log: Log, go: Outsider, seed: int) -> None:
    """Of each tree the first record, the last and some between; both outsiders answer the record that is stored."""
    chance = random.Random(seed)
    for size, note in log.notes.items():
        for seq in sorted({0, size - 1, *(chance.randrange(size) for _ in range(12))}):
            proof = proofs.inclusion(log.database, seq, note)
            assert json.loads(proof.record)["seq"] == seq
            assert go.ask("proof", log.vkey, proof=proof.text) == proof.record.decode()
            assert check(log.vkey, "proof", proof.text) == proof.record.decode()


def test_growth_is_proved_to_others(log: Log, go: Outsider) -> None:
    """From each checkpoint to each later one."""
    for old in log.notes.values():
        for note in log.notes.values():
            if old.size <= note.size:
                proof = proofs.consistency(log.database, old, note)
                assert proof is not None
                go.ask("consistency", log.vkey, checkpoint=old.text, proof=proof.text)
                check(log.vkey, "growth", old.text, proof.text)


def test_what_did_not_grow_is_not_proved(log: Log, other: Log) -> None:
    """A checkpoint of another log of which this one is no continuation has no proof here, nor has a larger one."""
    stranger, newest = other.notes[9], log.notes[SIZES[-1]]
    assert proofs.consistency(log.database, stranger, newest) is None
    assert proofs.consistency(log.database, newest, log.notes[9]) is None


# --- corruptions ---------------------------------------------------------------------------------------------------


def flip(text: str, line: int) -> str:
    """Another base64 character at the start of a line's last word."""
    lines = text.split("\n")
    words = lines[line].split(" ")
    at = len(words[-1]) // 2
    words[-1] = words[-1][:at] + ("A" if words[-1][at] != "A" else "B") + words[-1][at + 1 :]
    lines[line] = " ".join(words)
    return "\n".join(lines)


def swap(text: str, line: int) -> str:
    """Two neighbouring lines change places."""
    lines = text.split("\n")
    lines[line], lines[line + 1] = lines[line + 1], lines[line]
    return "\n".join(lines)


def renumber(text: str, old: str, new: str) -> str:
    """One line says another number."""
    assert f"\n{old}\n" in text
    return text.replace(f"\n{old}\n", f"\n{new}\n", 1)


CORRUPTIONS: dict[str, Callable[[str], str]] = {
    "another record": lambda text: flip(text, 1),
    "another index": lambda text: renumber(text, "index 300", "index 301"),
    "an index behind the end": lambda text: renumber(text, "index 300", "index 1300"),
    "a hash": lambda text: flip(text, 3),
    "two hashes change places": lambda text: swap(text, 4),
    "a hash less": lambda text: "\n".join([*text.split("\n")[:3], *text.split("\n")[4:]]),
    "a hash more": lambda text: "\n".join([*text.split("\n")[:4], *text.split("\n")[3:]]),
    "no hashes": lambda text: "\n".join([*text.split("\n")[:3], *text.split("\n")[text.split("\n").index("") :]]),
    "another size": lambda text: renumber(text, "1000", "1001"),
    "another root": lambda text: flip(text, text.split("\n").index("") + 3),
    "another signature": lambda text: flip(text, -2),
    "no signature": lambda text: "\n".join(text.split("\n")[:-2]) + "\n",
    "cut short": lambda text: text[: len(text) // 2],
}


@pytest.mark.parametrize("how", CORRUPTIONS)
def test_corrupted_proof_is_rejected_by_others(how: str, log: Log, go: Outsider) -> None:
    """Whatever is changed in a proof, neither outsider takes it."""
    proof = proofs.inclusion(log.database, 300, log.notes[1000]).text
    corrupted = CORRUPTIONS[how](proof)
    assert corrupted != proof
    with pytest.raises(Rejected):
        go.ask("proof", log.vkey, proof=corrupted)
    with pytest.raises(Exception):  # noqa: B017, PT011 - any error is a no
        check(log.vkey, "proof", corrupted)


def test_proof_for_another_key_is_rejected(log: Log, other: Log, go: Outsider) -> None:
    """A proof of one log is none under the key of another."""
    proof = proofs.inclusion(log.database, 300, log.notes[1000]).text
    with pytest.raises(Rejected):
        go.ask("proof", other.vkey, proof=proof)
    with pytest.raises(ValueError, match="no key given signed"):
        check(other.vkey, "proof", proof)


@pytest.mark.parametrize("line", [1, 3, -2], ids=["a hash", "another hash", "the signature"])
def test_corrupted_growth_is_rejected_by_others(line: int, log: Log, go: Outsider) -> None:
    """A consistency proof with one character changed is none, nor one from another old checkpoint."""
    old, note = log.notes[257], log.notes[1000]
    proof = proofs.consistency(log.database, old, note)
    assert proof is not None
    for before, text in ((old, flip(proof.text, line)), (log.notes[256], proof.text)):
        with pytest.raises(Rejected):
            go.ask("consistency", log.vkey, checkpoint=before.text, proof=text)
        with pytest.raises(Exception):  # noqa: B017, PT011 - any error is a no
            check(log.vkey, "growth", before.text, text)


def test_damaged_log_proves_nothing(log: Log, tmp_path: Path) -> None:
    """A changed record, or a changed hash beside the checkpoints, ends in an error and not in a proof that is wrong."""
    for seq in (300, 301):
        home = shutil.copytree(log.home, tmp_path / str(seq))
        database = sqlite3.connect(home / "bus.db")
        database.execute("UPDATE records SET body = replace(body, 'mono', 'nomo') WHERE seq = 301")
        with pytest.raises(StoreCorrupt):
            proofs.inclusion(database, seq, log.notes[1000])
        database.rollback()
        database.execute("UPDATE checkpoints SET frontier = zeroblob(length(frontier))")
        with pytest.raises(StoreCorrupt):
            proofs.inclusion(database, seq, log.notes[1000])
        database.close()


# --- tiles ---------------------------------------------------------------------------------------------------------


def written(folder: Path) -> dict[str, bytes]:
    """Every file of an export."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tiles_are_read_by_others_from_start_to_end(log: Log, go: Outsider, tmp_path: Path) -> None:
    """At every size, whether the folder is new or goes on from the size before; full tiles are never written again."""
    grown = tmp_path / "grown"
    for size, note in log.notes.items():
        full = {
            path: path.stat().st_mtime_ns for path in grown.rglob("*") if path.is_file() and path.name != "checkpoint"
        }
        tiles.export(log.database, note, grown)
        assert full.items() <= {path: path.stat().st_mtime_ns for path in grown.rglob("*") if path.is_file()}.items()
        tiles.export(log.database, note, tmp_path / "new")
        assert written(tmp_path / "new").items() <= written(grown).items()
        for folder in (grown, tmp_path / "new"):
            root = base64.b64encode(note.root).decode()
            assert go.ask("tiles", log.vkey, folder=str(folder)) == f"{size} {root}"
        shutil.rmtree(tmp_path / "new")


def test_tiles_have_the_names_and_widths_of_the_format(log: Log, tmp_path: Path) -> None:
    """C2SP tlog-tiles: which files there are for 1,025 records, and how a large number is written."""
    done = tiles.export(log.database, log.notes[1025], tmp_path / "tiles")
    assert (done.before, done.size, done.tiles) == (0, 1025, 8)
    expected = {"checkpoint", "tile/0/004.p/1", "tile/entries/004.p/1", "tile/1/000.p/4"}
    expected |= {f"tile/{level}/00{number}" for level in ("0", "entries") for number in range(4)}
    assert set(written(tmp_path / "tiles")) == expected
    assert tiles.tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tiles.tile_path("entries", 1000, 3) == "tile/entries/x001/000.p/3"


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/003", "tile/0/004.p/1", "tile/1/000.p/4", "tile/entries/002"])
def test_damaged_tiles_are_rejected_by_others(name: str, log: Log, go: Outsider, tmp_path: Path) -> None:
    """One bit flipped in any file, or the file gone, and the outsider says no."""
    folder = tmp_path / "tiles"
    tiles.export(log.database, log.notes[1025], folder)
    whole = (folder / name).read_bytes()
    at = len(whole) // 2
    (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(Rejected):
        go.ask("tiles", log.vkey, folder=str(folder))
    (folder / name).unlink()
    with pytest.raises(Rejected):
        go.ask("tiles", log.vkey, folder=str(folder))


def test_export_does_not_go_on_from_what_is_not_its_own(log: Log, other: Log, tmp_path: Path) -> None:
    """Tiles of another log, damaged tiles, a larger log, other files: all stay as they are."""

    def refused(folder: Path, note: Note) -> None:
        before = written(folder)
        with pytest.raises(tiles.Foreign):
            tiles.export(log.database, note, folder)
        assert written(folder) == before

    tiles.export(other.database, other.notes[300], tmp_path / "other")
    refused(tmp_path / "other", log.notes[1025])
    tiles.export(log.database, log.notes[1000], tmp_path / "larger")
    refused(tmp_path / "larger", log.notes[513])
    tiles.export(log.database, log.notes[513], tmp_path / "damaged")
    (tmp_path / "damaged" / "tile" / "0" / "002.p" / "1").write_bytes(bytes(32))
    refused(tmp_path / "damaged", log.notes[1025])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused(tmp_path / "mine", log.notes[1025])


def test_log_signed_so_often_verifies(log: Log) -> None:
    """Checkpoints that were asked for are records like any others."""
    report = verify(log.home, read_key(log.vkey), log.notes[1025])
    assert (report.integrity, report.first_bad) == ("ok", None)
    assert report.checkpoint_size == 1025


async def test_checkpoint_covers_what_was_put_before_it(tmp_path: Path) -> None:
    """Asked for while records are on their way, it signs all that were put until then, and its file has it."""
    ledger = await open_ledger(tmp_path / "home", checkpoint_seconds=3600)
    putting = asyncio.gather(*[put_all(ledger, [decision(n)]) for n in range(40)])
    await asyncio.sleep(0)
    note = read_note(await ledger.checkpoint())
    seqs = [seq for (seq,) in await putting]
    assert max(seqs) < note.size
    assert (tmp_path / "home" / "checkpoint").read_text() == note.text
    await ledger.close()
