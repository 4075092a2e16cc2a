"""`kill -9` at every fault point: nothing happens without a recorded allow, and nothing that was accepted is lost."""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from enhanced_agent_bus import open_bus
from tests.developer import PATIENT, Inbox, adds_up, log
from tests.support import write_constitution

PROGRAM = Path(__file__).with_name("killed_program.py")
ROOT = PROGRAM.parents[2]
HOMES = 3  # three times nine kills

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


async def killed(home: Path, constitution: Path, run: int, plan: str) -> int:
    """Runs the program under a plan of fault points, and returns how it ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(home), str(constitution), str(run),
        env=os.environ | {"EAB_FAULTPOINT": plan, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, error = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in error, error.decode()
    return process.returncode


def lines(path: Path) -> list[str]:
    """The lines of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.timeout(240)
async def test_kill_at_every_fault_point(tmp_path: Path, seed: int) -> None:
    """A home whose process is killed at each fault point, one after the other, keeps its word.

    No handler ran without an allow record of its own that was on disk before it; every acknowledged id ends; a message
    that ran twice has one id; the accounting adds up; the log is whole and verifies.
    """
    async with asyncio.TaskGroup() as tasks:
        for number in range(HOMES):
            tasks.create_task(one_home(tmp_path / str(number), random.Random(seed + number)))


async def one_home(folder: Path, generator: random.Random) -> None:
    """A home that dies once at each point, in an order of its own, and what is left of it."""
    folder.mkdir()
    points = list(POINTS)
    generator.shuffle(points)
    home = folder / "home"
    for run, point in enumerate(points):
        # Another constitution each time, so that opening activates one.
        policies = write_constitution(folder / f"policies-{run % 2}", name=f"number {run}")
        plan = f"{point}:{generator.randint(1, POINTS[point])}:kill"
        assert await killed(home, policies, run, plan) == -signal.SIGKILL, (plan, points)

    effects = [line.split() for line in lines(folder / "home.effects")]
    runs: Counter[str] = Counter()
    for message_id, allowed_before in effects:
        runs[message_id] += 1
        assert int(allowed_before) >= runs[message_id], (message_id, points)

    policies = write_constitution(folder / "policies-0", name="the last")
    async with open_bus(home, constitution=policies, policy=PATIENT) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        for message_id in lines(folder / "home.acks"):
            assert (await bus.outcome(message_id, timeout=30)).state == "delivered", (message_id, points)
        await bus.wait_idle(timeout=30)
        for message_id in runs:
            assert (await bus.outcome(message_id, timeout=1)).state == "delivered", (message_id, points)
        counts = bus.status().accounting
        assert adds_up(counts)
        assert counts["accepted"] == sum(counts[state] for state in ("delivered", "discarded")), points
        desk = await bus.register("desk", tenant="acme")
        for message_id in lines(folder / "home.acks")[:5]:
            n = int(message_id.rpartition("-")[2])
            again = await desk.send("booker", {"n": n}, id=message_id)
            assert again.ok, "a repeated id is answered"
    allowed: Counter[str] = Counter(record["message_id"] for record in log(home, "decision", verdict="allow"))
    assert all(allowed[message_id] >= times for message_id, times in runs.items())
    assert [record["seq"] for record in log(home)] == list(range(len(log(home))))
    assert await verified(home) == 0


async def verified(home: Path) -> int:
    """The exit status of `eab audit verify` on the home's exported log."""
    words = (sys.executable, "-m", "enhanced_agent_bus", "--home", str(home), "audit")
    export = await asyncio.create_subprocess_exec(*words, "export", stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    exported, _ = await export.communicate()
    assert export.returncode == 0
    file = home.with_suffix(".jsonl")
    file.write_bytes(exported)
    assert len(exported.splitlines()) == len(log(home))
    verify = await asyncio.create_subprocess_exec(*words, "verify", str(file), cwd=ROOT)
    return await verify.wait()


@pytest.mark.parametrize("point", ["audit.before_commit", "outcome.before_commit", "retry.before_decide"])
async def test_input_output_error_at_a_fault_point_loses_nothing(tmp_path: Path, point: str) -> None:
    """An I/O error where something is written (raise) ends no process for good: what was accepted ends."""
    home = tmp_path / "home"
    policies = write_constitution(tmp_path / "policies")
    await killed_or_done(home, policies, f"{point}:2:raise")
    async with open_bus(home, policy=PATIENT) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        for message_id in lines(tmp_path / "home.acks"):
            assert (await bus.outcome(message_id, timeout=30)).state == "delivered"
        assert adds_up(bus.status().accounting)


async def killed_or_done(home: Path, policies: Path, plan: str) -> None:
    """Runs the program; a send that was told AuditUnavailable may end it with that error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(home), str(policies), "0",
        env=os.environ | {"EAB_FAULTPOINT": plan, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, error = await process.communicate()
    assert process.returncode == 0 or b"AuditUnavailable" in error, error.decode()
