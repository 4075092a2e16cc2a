"""Policy workers killed at random under load: never a wrong answer, never a lost message, and it goes on by itself."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from enhanced_agent_bus import Agent, Message
from enhanced_agent_bus.cli.app import run_command
from tests.developer import adds_up, log, small_bus

SENDERS = 32
#: Numbers below 100 that are divisible by 7 are refused; `n` is read, so that new numbers are new questions.
RULE = """admit if {
	input.message.payload.n % 7 != 0
	count([x | some x in numbers.range(1, 50); x % 7 == input.message.payload.n % 7]) > 0
}"""
UNDECIDED = {"policy_timeout", "policy_unavailable"}


def workers() -> list[int]:
    """The processes that this one has started: the workers, while nothing else is running."""
    found: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text(encoding="ascii").split()]
    return [pid for pid in found if "eab-pdp" in _command(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""


class Load:
    """What was sent, what came of it, and what handlers saw."""

    def __init__(self) -> None:
        self.delivered: Counter[str] = Counter()
        self.accepted: list[str] = []
        self.kills = 0

    async def work(self, message: Message) -> None:
        self.delivered[message.id] += 1

    async def send(self, desk: Agent, own: random.Random, end: float) -> None:
        """Until the end; every answer is checked against what the rule says."""
        while asyncio.get_running_loop().time() < end:
            number = own.randrange(1, 100_000)
            receipt = await desk.send("worker", {"n": number})
            if receipt.code in UNDECIDED:
                continue
            assert receipt.code in (None, "policy_denied"), receipt
            assert receipt.ok is (number % 7 != 0), f"{number}: {receipt}"
            if receipt.ok:
                self.accepted.append(receipt.message_id)

    async def kill(self, own: random.Random, end: float) -> None:
        """Until the end: a worker that is gone, or stands still."""
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(own.uniform(0.02, 0.4))
            alive = workers()
            if alive:
                os.kill(own.choice(alive), own.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]))
                self.kills += 1


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds its workers in /proc")
async def test_random_kills_change_no_answer_and_lose_no_message(
    tmp_path: Path, seed: int, soak_seconds: float
) -> None:
    """SIGKILL and SIGSTOP hit workers all the time: every answer is the policy's or says that there is none."""
    load = Load()
    policy = {"workers": 2, "timeout_seconds": 1.0, "cache_entries": 100}
    async with small_bus(tmp_path, {"sevens": RULE}, policy=policy) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("worker", load.work, tenant="acme", concurrency=4)
        end = asyncio.get_running_loop().time() + soak_seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(load.kill(random.Random(seed), end))
            for number in range(SENDERS):
                group.create_task(load.send(desk, random.Random(seed + number), end))
        async with asyncio.timeout(30):  # and by itself it is well again
            while (await desk.send("worker", {"n": 1})).code in UNDECIDED:
                pass
        await bus.wait_idle(60)
        accounting = bus.status().accounting
    assert adds_up(accounting)
    assert accounting["dead_lettered"] == accounting["refused"] == 0
    assert load.kills > 0
    assert load.accepted
    assert set(load.accepted) <= set(load.delivered)
    assert set(load.delivered.values()) == {1}
    home = tmp_path / "home"
    allowed = {record["message_id"] for record in log(home, "decision", verdict="allow")}
    assert allowed == set(load.delivered)
    assert await asyncio.to_thread(run_command, ["--home", str(home), "audit", "verify"]) == 0
