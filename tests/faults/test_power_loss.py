"""Power loss: what was not synced is gone. Nothing accepted is, nor the record of anything that was done.

`power_loss.c`, preloaded, keeps what is durable apart from what was written. The power goes at a sync, at a fault
point, or when all is done; what the disk then has is put in the home's place.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enhanced_agent_bus import Retry, open_bus
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.errors import BusError
from tests import history_checker
from tests.developer import PATIENT, Inbox, adds_up
from tests.entries import open_ledger
from tests.support import write_constitution

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPILER = shutil.which("cc") or shutil.which("gcc")
PAGE = 4096
HOMES = 2
LOSSES = 4  # of each home
MAKING = 40  # syncs, at most, until a home is made; that has a test of its own
SYNCS = 120  # about as many as a run has
POINTS = ("audit.before_commit", "audit.after_commit", "outcome.after_commit", "dispatch.before_handler")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or COMPILER is None, reason="a library to preload needs Linux and a C compiler"
)

# killed_program.py, folding its WAL into the database all the time rather than each 40 MB.
PROGRAM = f"""import runpy, sys
from enhanced_agent_bus.ledger import store
store.WAL_PAGES = 40
sys.argv = ["killed_program.py", *sys.argv[1:]]
runpy.run_path({str(HERE / "killed_program.py")!r}, run_name="__main__")
"""

# Makes a home, down to its log, and a folder for it first.
MAKE = """import asyncio, sys
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
async def make():
    ledger = await SqliteLedger.open(open_home(sys.argv[1]), clock=SystemClock())
    await ledger.close()
asyncio.run(make())
"""

# A database of its own: each number is noted outside once SQLite says that it is committed; then the process dies.
COMMITS = """import os, signal, sqlite3, sys
home, synchronous, acks = sys.argv[1:]
database = sqlite3.connect(f"{home}/numbers.db", isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute(f"PRAGMA synchronous = {synchronous}")
database.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
database.execute("PRAGMA wal_checkpoint")
with open(acks, "w") as file:
    for n in range(50):
        database.execute("INSERT INTO numbers VALUES (?)", (n,))
        file.write(f"{n}\\n")
        file.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


class Disk:
    """A home, what of it is durable, and what is left of it without power."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.home = folder / "home"
        self._library = library
        self._shadow = folder / "shadow"
        self.home.mkdir(parents=True)

    def environment(self, at: int = 0) -> dict[str, str]:
        """For one process, watched from its start on, that dies at its nth sync; 0: at none, -1: it stops at each."""
        shutil.rmtree(self._shadow, ignore_errors=True)
        for part in ("inodes", "names"):
            (self._shadow / part).mkdir(parents=True)
        shim = {"LD_PRELOAD": self._library, "POWER_LOSS_HOME": self.home, "POWER_LOSS_SHADOW": self._shadow}
        return os.environ | {name: str(path) for name, path in shim.items()} | {"POWER_LOSS_AT": str(at)}

    def lose_power(self, *, names: bool = False, pages: float = 0.0, generator: random.Random | None = None) -> None:
        """Puts what is left in the home's place."""
        part = self.left(self.home.with_name("home.part"), names=names, pages=pages, generator=generator)
        shutil.rmtree(self.home)
        part.rename(self.home)

    def left(
        self, to: Path, *, names: bool = False, pages: float = 0.0, generator: random.Random | None = None
    ) -> Path:
        """Makes a folder of what the disk has.

        With `names` it had also come to what was created, renamed and removed without a sync; with `pages` to such a
        part of what was written, here and there.
        """
        live = {path.stat().st_ino: path for path in self.home.rglob("*") if path.is_file()}
        chance = generator or random.Random(0)
        self._put(to, "d", 0o755, self.home.stat().st_ino, self.home if names else None, live, pages, chance)
        return to

    def _put(
        self, to: Path, kind: str, mode: int, inode: int, at: Path | None, live: dict[int, Path], pages: float,
        chance: random.Random,
    ) -> None:  # fmt: skip
        if kind == "d":
            to.mkdir()
            for kind_in, mode_in, inode_in, name in self._entries(inode, at):
                self._put(to / name, kind_in, mode_in, inode_in, at and at / name, live, pages, chance)
        else:
            synced = self._shadow / "inodes" / str(inode)
            content = bytearray(synced.read_bytes() if synced.exists() else b"")
            if pages and inode in live:
                _mix(content, live[inode].read_bytes(), pages, chance)
            to.write_bytes(content)
        to.chmod(mode)

    def _entries(self, inode: int, live: Path | None) -> Iterator[tuple[str, int, int, str]]:
        """What a folder holds: kind, mode, inode, name; nothing, where it was never synced."""
        if live is not None:
            for path in sorted(live.iterdir()):
                status = path.stat()
                if path.is_dir() or path.is_file():
                    yield "d" if path.is_dir() else "f", status.st_mode & 0o7777, status.st_ino, path.name
            return
        names = self._shadow / "names" / str(inode)
        for line in names.read_text().splitlines() if names.exists() else []:
            kind, mode, number, name = line.split(" ", 3)
            yield kind, int(mode, 8), int(number), name


def _mix(synced: bytearray, written: bytes, pages: float, chance: random.Random) -> None:
    """Takes over some of the pages that were written; a gap before one is zeros."""
    for at in range(0, len(written), PAGE):
        page = written[at : at + PAGE]
        if synced[at : at + PAGE] != page and chance.random() < pages:
            synced.extend(bytes(max(0, at + len(page) - len(synced))))
            synced[at : at + len(page)] = page


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, built."""
    path = tmp_path_factory.mktemp("shim") / "power_loss.so"
    assert COMPILER is not None
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-O1", "-pthread", "-o", path, HERE / "power_loss.c"], check=True, text=True
    )
    return path


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_shim_bites(library: Path, tmp_path: Path, synchronous: str) -> None:
    """Of 50 numbers that plain SQLite said were committed a power loss takes none with FULL, and some with NORMAL."""
    disk = Disk(library, tmp_path)
    words = [sys.executable, "-c", COMMITS, str(disk.home), synchronous, str(tmp_path / "acks")]
    assert subprocess.run(words, env=disk.environment(), check=False).returncode == -signal.SIGKILL
    before = _numbers(disk.home)
    disk.lose_power()
    acknowledged = [int(line) for line in (tmp_path / "acks").read_text().splitlines()]
    assert before == acknowledged == list(range(50)), "a process that only dies loses nothing"
    if synchronous == "FULL":
        assert _numbers(disk.home) == acknowledged
    else:
        assert len(_numbers(disk.home)) < len(acknowledged)


def _numbers(home: Path) -> list[int]:
    database = sqlite3.connect(home / "numbers.db")
    try:
        return [n for (n,) in database.execute("SELECT n FROM numbers ORDER BY n")]
    finally:
        database.close()


def test_shim_forgets_names_until_their_folder_is_synced(library: Path, tmp_path: Path) -> None:
    """A file that was renamed without a sync of its folder may have either name; what was not synced in it is gone."""
    disk = Disk(library, tmp_path)
    (disk.home / "old").write_text("before")
    program = """import os, sys
os.chdir(sys.argv[1])
for name, synced in [("new", True), ("empty", False)]:
    with open("part", "w") as file:
        file.write("after")
        file.flush()
        if synced:
            os.fsync(file.fileno())
    os.rename("part", name)
    if name == "new" and len(sys.argv) > 2:
        os.fsync(os.open(".", os.O_RDONLY))
os.unlink("old")
"""
    for words, names, expected in [
        ([], False, {"old": "before"}),
        ([], True, {"new": "after", "empty": ""}),
        (["sync"], False, {"old": "before", "new": "after"}),
    ]:
        run = [sys.executable, "-c", program, str(disk.home), *words]
        subprocess.run(run, env=disk.environment(), check=True)
        disk.lose_power(names=names)
        assert {path.name: path.read_text() for path in disk.home.iterdir()} == expected
        shutil.rmtree(disk.home)
        disk.home.mkdir()
        (disk.home / "old").write_text("before")


def test_power_loss_while_a_home_is_made(library: Path, tmp_path: Path) -> None:
    """Wherever the making of a home is cut off, by a death or a loss of power, the next opening makes or opens it."""
    homes = stopped_at_each_sync(Disk(library, tmp_path))
    assert len(homes) > 40
    with ThreadPoolExecutor(8) as threads:
        refused = [found for found in threads.map(why_not, homes) if found]
    assert not refused, "\n".join(refused)


def stopped_at_each_sync(disk: Disk) -> list[Path]:
    """Homes as they are at each sync of the making of one: after a death, and after losses of power."""
    homes: list[Path] = []
    environment = disk.environment(-1) | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", MAKE, str(disk.home)], env=environment) as process:
        while os.WIFSTOPPED(status := os.waitpid(process.pid, os.WUNTRACED)[1]):
            sync = disk.home.with_name(f"sync-{len(homes) // 3 + 1}")
            homes.append(shutil.copytree(disk.home, sync / "died"))
            homes.append(disk.left(sync / "only-synced-names", names=False))
            homes.append(disk.left(sync / "all-names", names=True))
            process.send_signal(signal.SIGCONT)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return homes


def why_not(home: Path) -> str:
    """Why a home does not open; nothing when it does."""

    async def open_and_close() -> None:
        await (await open_ledger(home)).close()

    there = sorted(path.name for path in home.iterdir())
    try:
        asyncio.run(open_and_close())
    except BusError as error:
        return f"{home.parent.name}, {home.name}: {type(error).__name__}, with {there}"
    return ""


def test_power_loss_leaves_the_folder_of_a_home(library: Path, tmp_path: Path) -> None:
    """A home that was made together with the folder it is in is still there."""
    disk = Disk(library, tmp_path)
    words = [sys.executable, "-c", MAKE, str(disk.home / "of" / "desk")]
    subprocess.run(words, env=disk.environment() | {"PYTHONPATH": str(ROOT)}, check=True)
    disk.lose_power()
    assert (disk.home / "of" / "desk" / "home.json").exists()


@pytest.mark.timeout(240)
async def test_power_loss(library: Path, tmp_path: Path, seed: int) -> None:
    """A home that loses power at a dozen moments keeps its word; acknowledged and lost = 0.

    After each loss it verifies, holds a prefix of what was written, and `tests/history_checker.py` finds an allow of
    its own for each handler run; it opens, every acknowledged id ends, and the accounting adds up.
    """
    async with asyncio.TaskGroup() as tasks:
        for number in range(HOMES):
            tasks.create_task(one_home(library, tmp_path / str(number), random.Random(f"{seed} {number}")))


@pytest.mark.soak
async def test_power_loss_for_long(library: Path, tmp_path: Path, seed: int, soak_seconds: float) -> None:
    """The same, home after home, for as long as it is told."""
    until, number = time.monotonic() + soak_seconds, 0
    while number == 0 or time.monotonic() < until:
        folder = tmp_path / f"long-{number}"
        await one_home(library, folder, random.Random(f"{seed} long {number}"), until)
        shutil.rmtree(folder)
        number += 1


async def one_home(library: Path, folder: Path, generator: random.Random, until: float = math.inf) -> None:
    """A home without power again and again, and what is left of it in the end; without all losses, when time is up."""
    disk = Disk(library, folder)
    for run in range(LOSSES):
        if run and time.monotonic() > until:
            break
        # Another constitution each time, so that opening activates one.
        policies = write_constitution(folder / f"policies-{run % 2}", name=f"number {run}")
        at, plan = generator.randint(1 if run else MAKING, SYNCS), ""
        if run and generator.random() < 0.3:
            at, plan = 0, f"{generator.choice(POINTS)}:{generator.randint(1, 6)}:kill"
        names, pages = generator.random() < 0.5, generator.choice((0.0, 0.3, 0.9))
        told = f"run {run}, sync {at}, {plan or 'no fault point'}, names {names}, pages {pages}"
        await run_until_dark(disk, policies, run, at, plan)
        checkpoint = _note(disk.home, folder)
        # Of a copy: to look at a database makes files beside it, and one may get the inode of a file that was synced.
        written = _bodies(shutil.copytree(disk.home, folder / "live", ignore=shutil.ignore_patterns("*.sock")))
        shutil.rmtree(folder / "live")
        disk.lose_power(names=names, pages=pages, generator=generator)
        judge(disk.home, folder, written, checkpoint, told)
    await judge_the_end(disk.home, folder)


async def run_until_dark(disk: Disk, policies: Path, run: int, at: int, plan: str) -> None:
    """Runs the program until the power goes: at a sync, at a fault point, or just after it was done."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(disk.home), str(policies), str(run),
        env=disk.environment(at) | {"EAB_FAULTPOINT": plan, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, error = await process.communicate()
    finally:
        if process.returncode is None:  # cancelled: the other home has failed
            process.kill()
            await process.wait()
    assert process.returncode in (0, -signal.SIGKILL), error.decode()


def judge(home: Path, folder: Path, written: list[bytes], checkpoint: Path | None, told: str) -> None:
    """What is left verifies, also against a checkpoint that could be read before, and knows of all that was done."""
    notes = _lines(folder / "home.notes")
    if not (home / "home.json").exists():
        assert not notes, f"a home that is gone: {told}"
        return
    copy = shutil.copytree(home, folder / "copy")
    against = [] if checkpoint is None else ["--checkpoint", str(checkpoint)]
    assert run_command(["audit", "verify", str(copy), *against]) == 0, told
    bodies = _bodies(copy)
    assert bodies == written[: len(bodies)], told
    found = history_checker.check(bodies, notes)
    assert not found, (found, told)
    shutil.rmtree(copy)


async def judge_the_end(home: Path, folder: Path) -> None:
    """With power again it opens, and every acknowledged message ends."""
    policies = write_constitution(folder / "policies-0", name="the last")
    async with open_bus(home, constitution=policies, policy=PATIENT) as bus:
        # Runs that failed or were cut off count, loss after loss: as many attempts as no message has had.
        await bus.register("booker", Inbox(), tenant="acme", retry=Retry.exponential(attempts=99))
        notes = [json.loads(line) for line in _lines(folder / "home.notes")]
        for message_id in {note["id"] if "told" in note else note["ran"] for note in notes}:
            outcome = await bus.outcome(message_id, timeout=30)
            assert outcome.state == "delivered", (message_id, outcome)
        await bus.wait_idle(timeout=30)
        counts = bus.status().accounting
        assert adds_up(counts)
        assert counts["accepted"] == counts["delivered"] + counts["discarded"], counts
    assert run_command(["audit", "verify", str(home)]) == 0


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _bodies(home: Path) -> list[bytes]:
    """Every record, in order; none where there is no log yet."""
    if not (home / "home.json").exists():
        return []
    database = sqlite3.connect(f"file:{home / 'bus.db'}?mode=ro", uri=True)
    try:
        return [bytes(body) for (body,) in database.execute("SELECT body FROM records ORDER BY seq")]
    finally:
        database.close()


def _note(home: Path, folder: Path) -> Path | None:
    """The newest checkpoint that anybody could read before the loss."""
    if not (home / "home.json").exists():
        return None
    return Path(shutil.copy(home / "checkpoint", folder / "checkpoint"))
