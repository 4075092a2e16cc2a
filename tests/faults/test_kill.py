"""`kill -9`, an I/O error and a delay at every fault point: nothing undecided happens, nothing accepted is lost.

`tests/history_checker.py`, which shares nothing with the bus, judges each run by the log and by what the program that
was killed had noted itself; a last word has `eab audit verify`. `make soak` does at least SOAK_RUNS runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from enhanced_agent_bus import Retry, open_bus
from tests import history_checker
from tests.developer import PATIENT, Inbox, adds_up
from tests.support import write_constitution

PROGRAM = Path(__file__).with_name("killed_program.py")
ROOT = PROGRAM.parents[2]
SOAK_RUNS = 200  # and more, as long as it is told

# The named places, and among how many of its first hits a run dies.
POINTS = {
    "audit.before_commit": 6,
    "audit.after_commit": 6,
    "dispatch.before_handler": 30,
    "handler.after_return": 30,
    "outcome.before_commit": 6,
    "outcome.after_commit": 6,
    "policy.before_swap": 1,
    "policy.after_swap": 1,
    "retry.before_decide": 6,
}


class Nursery:
    """A process that has imported everything, and forks one off for each run."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, home: Path, constitution: Path, run: int, plan: str) -> int:
        """Runs the program under a plan of fault points, and returns how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(home), str(constitution), str(run), plan]).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, "the program that forks has ended: see its errors above"
        return int(line)


@asynccontextmanager
async def nursery() -> AsyncIterator[Nursery]:
    """One, for as many runs as wanted."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM),
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Nursery(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def lines(path: Path) -> list[str]:
    """The lines of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


def bodies(home: Path) -> list[bytes]:
    """Every record of a home, in order."""
    with closing(sqlite3.connect(f"file:{home / 'bus.db'}?mode=ro", uri=True)) as database:
        return [bytes(body) for (body,) in database.execute("SELECT body FROM records ORDER BY seq")]


@pytest.mark.timeout(240)
async def test_every_fault_point(tmp_path: Path, seed: int) -> None:
    """A home whose process is killed, or fails, or dawdles at each fault point, one after the other, keeps its word.

    After each run: the handler ran on an allow of its own that was on disk before it, what was acknowledged is in the
    log, a message that ran twice has one id, attempt numbers do not fall. In the end everything has ended, `eab status`
    says what the records alone tell, and the log is whole and verifies.
    """
    generator = random.Random(seed)
    homes = {name: generator.sample(list(POINTS), len(POINTS)) for name in ("kill", "kill again", "raise", "delay")}
    await asyncio.gather(  # side by side: one that dawdles needs no processor
        *(
            one_home(tmp_path / name, random.Random(f"{seed} {name}"), [(point, name.split()[0]) for point in points])
            for name, points in homes.items()
        )
    )


@pytest.mark.soak
async def test_fault_points_for_long(tmp_path: Path, seed: int, soak_seconds: float) -> None:
    """The same, home after home: SOAK_RUNS runs, and more for as long as it is told."""
    least, until, runs = min(SOAK_RUNS, int(soak_seconds)), time.monotonic() + soak_seconds, 0
    generator = random.Random(f"{seed} long")
    while runs < least or time.monotonic() < until:
        actions = generator.choices(("kill", "raise", "delay"), (6, 2, 1), k=min(20, least))
        plans = [(generator.choice(list(POINTS)), action) for action in actions]
        await one_home(tmp_path / "long", generator, plans)
        shutil.rmtree(tmp_path / "long")
        runs += len(plans)


async def one_home(folder: Path, generator: random.Random, plans: Sequence[tuple[str, str]]) -> None:
    """A home with one fault in each run, and what is left of it."""
    folder.mkdir()
    home, story = folder / "home", []
    async with nursery() as program:
        for run, (point, action) in enumerate(plans):
            # Another constitution each time, so that opening activates one.
            policies = write_constitution(folder / f"policies-{run % 2}", name=f"number {run}")
            plan = f"{point}:{generator.randint(1, POINTS[point])}:{action}"
            story.append(plan)
            status, errors = await program.run(home, policies, run, plan), lines(folder / "home.errors")
            (folder / "home.errors").unlink(missing_ok=True)
            if action == "raise" and status == 1:  # its sender, or whoever opens the bus, is told what to do
                assert "AuditUnavailable" in "\n".join(errors), (errors, story)
            else:
                assert status == (-signal.SIGKILL if action == "kill" else 0), (errors, story)
            if (home / "home.json").exists():
                found = history_checker.check(bodies(home), lines(folder / "home.notes"))
                assert not found, (found, story)
    await judge_the_end(folder, story)


async def judge_the_end(folder: Path, story: Sequence[str]) -> None:
    """The home opens again, all ends as it should, and what was repeated is answered."""
    home, policies = folder / "home", write_constitution(folder / "policies-0", name="the last")
    told = [note for line in lines(folder / "home.notes") if "told" in (note := json.loads(line))]
    async with open_bus(home, constitution=policies, policy=PATIENT) as bus:
        last = Inbox()
        await bus.register("booker", last, tenant="acme", retry=Retry.exponential(attempts=99))
        await bus.wait_idle(timeout=60)
        for note in told:
            assert (await bus.outcome(note["id"], timeout=1)).state == "delivered", (note, story)
        counts = bus.status().accounting
        assert adds_up(counts)
        assert counts["accepted"] == sum(counts[state] for state in ("delivered", "discarded")), (counts, story)
        desk = await bus.register("desk", tenant="acme")
        for note in told[:5]:
            what = note["id"].removeprefix("desk/")
            again = await desk.send("booker", {"n": int(what.rpartition("-")[2]), "what": what}, id=what)
            assert again.digest == note["digest"], "a repeated id is answered"
    # What ran in this last process was noted by nobody else.
    runs = [
        json.dumps(
            {"ran": message.id, "what": message.payload["what"], "attempt": message.attempt, "digest": message.digest}
            | {"constitution": message.constitution, "records": len(bodies(home))}
        )
        for message in last.got
    ]
    with (folder / "home.notes").open("a") as notes:
        notes.writelines(f"{line}\n" for line in runs)
    assert await checked(home) == "", story


async def checked(home: Path) -> str:
    """What is wrong with a home at rest, for `eab audit verify` and for the checker; nothing where all is well."""
    eab = (sys.executable, "-m", "enhanced_agent_bus", "--home", str(home))
    export, status = home.with_suffix(".jsonl"), home.with_suffix(".status")
    export.write_text(await said(*eab, "audit", "export"))
    status.write_text(await said(*eab, "--json", "status"))
    found = await said(*eab, "audit", "verify", str(export), only_found=True)
    words = (sys.executable, "-I", str(ROOT / "tests" / "history_checker.py"))
    notes = str(home.with_suffix(".notes"))
    return found + await said(*words, str(export), notes, "--status", str(status), "--all-ended", only_found=True)


async def said(*command: str, only_found: bool = False) -> str:
    """What a command prints; with `only_found`, nothing when it ends with 0."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    output, _ = await process.communicate()
    assert process.returncode in ((0, 1) if only_found else (0,)), command
    return "" if only_found and process.returncode == 0 else output.decode()
