"""Files cut short and bits flipped: what opens is what was written, from the start on; the rest is refused."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from enhanced_agent_bus.audit.homes import read_key, verify
from enhanced_agent_bus.errors import StoreCorrupt
from tests.entries import decision, move, open_ledger, put_all
from tests.support import as_killed

RUNS = 60
SOAK_RUNS = 250  # of four kinds; bus.db and its -wal may have fewer places to cut
SOAK_RUNS_SECONDS = 60
VARIANTS = 500


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home as it lies there when its process was killed: part of the log in bus.db, part in the -wal file."""
    return asyncio.run(make_killed(tmp_path_factory.mktemp("killed")))


async def make_killed(folder: Path) -> Path:
    """Copies a home under a running ledger."""
    ledger = await open_ledger(folder / "live", checkpoint_records=15)
    rows = await put_all(ledger, [decision(n) for n in range(20)])
    await put_all(ledger, [move(n, row) for n, row in enumerate(rows)])
    await ledger.close()
    ledger = await open_ledger(folder / "live", checkpoint_records=15)
    for n in range(20, 40):
        (row,) = await put_all(ledger, [decision(n)])
        await put_all(ledger, [move(n, row)])
    as_killed(folder / "live", folder / "home")
    await ledger.close()
    return folder / "home"


def records(home: Path) -> list[bytes]:
    """Every stored record."""
    database = sqlite3.connect(f"{(home / 'bus.db').as_uri()}?mode=ro", uri=True)
    found = [bytes(body) for (body,) in database.execute("SELECT body FROM records ORDER BY seq")]
    database.close()
    return found


async def judge(damaged: Path, written: list[bytes]) -> bool:
    """Whether the home opened; then it holds a prefix of what was written, which verifies.

    Its other tables may be torn all the same: an opening does not read them whole, `verify` of the home does.
    """
    try:
        ledger = await open_ledger(damaged)
    except StoreCorrupt:
        return False
    opened = ledger.size()
    for seq in range(opened):
        assert ledger.record(seq) == written[seq]
    assert opened, "never an empty fresh log in its place"
    await put_all(ledger, [decision(1000)])
    await ledger.close()
    export = damaged / "export.jsonl"
    export.write_bytes(b"".join(body + b"\n" for body in records(damaged)))
    assert verify(export, read_key((damaged / "keys" / "log.vkey").read_text())).integrity == "ok"
    return True


async def test_untouched_copy_opens_whole(killed: Path, tmp_path: Path) -> None:
    """The home of a killed process opens with everything that was committed."""
    written = records(shutil.copytree(killed, tmp_path / "read"))
    assert len(written) > 80
    assert await judge(shutil.copytree(killed, tmp_path / "home"), written)


@pytest.mark.parametrize("name", ["bus.db", "bus.db-wal"])
async def test_cut_file_opens_as_a_prefix_or_is_refused(killed: Path, tmp_path: Path, seed: int, name: str) -> None:
    """A database or WAL cut anywhere opens as a verified prefix, or is refused."""
    await cut(killed, tmp_path, seed, name, RUNS)


async def cut(killed: Path, tmp_path: Path, seed: int, name: str, runs: int) -> int:
    """Cuts so many copies, and one at its beginning; how many that were."""
    written = records(shutil.copytree(killed, tmp_path / "read"))
    size = (killed / name).stat().st_size
    places = range(0, size, 512)
    chosen = random.Random(seed).sample(places, min(runs, len(places)))
    for run, length in enumerate([0, *chosen]):
        damaged = shutil.copytree(killed, tmp_path / f"cut-{run}")
        with (damaged / name).open("r+b") as file:
            file.truncate(length)
        await judge(damaged, written)
        shutil.rmtree(damaged)
    return 1 + len(chosen)


@pytest.mark.parametrize("name", ["bus.db", "bus.db-wal"])
async def test_flipped_bit_is_never_a_wrong_record(killed: Path, tmp_path: Path, seed: int, name: str) -> None:
    """One bit flipped anywhere in database or WAL: a verified prefix, or a refusal, never a wrong record."""
    await flip(killed, tmp_path, seed, name, RUNS)


async def flip(killed: Path, tmp_path: Path, seed: int, name: str, runs: int) -> int:
    """Flips a bit in so many copies; how many that were."""
    written = records(shutil.copytree(killed, tmp_path / "read"))
    chance = random.Random(seed)
    content = (killed / name).read_bytes()
    for run in range(runs):
        damaged = shutil.copytree(killed, tmp_path / f"flip-{run}")
        at = chance.randrange(len(content))
        flipped = content[at] ^ (1 << chance.randrange(8))
        (damaged / name).write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        await judge(damaged, written)
        shutil.rmtree(damaged)
    return runs


@pytest.mark.soak
async def test_five_hundred_torn_files_open_as_prefixes_or_are_refused(
    killed: Path, tmp_path: Path, seed: int, soak_seconds: float
) -> None:
    """As many as that where there is time for them, half cut and half with a flipped bit; a few in the suite."""
    runs = SOAK_RUNS if soak_seconds >= SOAK_RUNS_SECONDS else 2
    done = 0
    for name in ("bus.db", "bus.db-wal"):
        done += await cut(killed, tmp_path / f"cut-{name}", seed + 1, name, runs)
        done += await flip(killed, tmp_path / f"flip-{name}", seed + 1, name, runs)
    assert done >= (VARIANTS if runs == SOAK_RUNS else 8)
