"""What one tenant's trouble costs another: the time to decide beside evaluations that run into their deadline."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Final

from enhanced_agent_bus import Agent, open_bus
from enhanced_agent_bus.bench import workload
from enhanced_agent_bus.bench.figures import Figure, at_most, percentile
from enhanced_agent_bus.bench.house import MEMORY, Scale, take

DEADLINE_SECONDS: Final = 0.25
BOMBS_AT_ONCE: Final = 4
PAUSE_SECONDS: Final = 0.005  # between two messages of the tenant that is watched
SHARE: Final = 20
RULE: Final = """package bus.rules.bomb

import rego.v1

default admit := false

admit if input.message.payload.n >= 0

admit if {
	input.message.payload.bomb
	count([1 | some x in numbers.range(1, 4000); some y in numbers.range(1, 4000); x * y == 0]) == 1
}
"""


async def bombs(folder: Path, scale: Scale) -> list[Figure]:
    """The 99th percentile of one tenant's sends, alone and beside another's that never get an answer in time."""
    count = max(20, scale.messages // SHARE)
    quiet, beside = [], []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        policy = {"timeout_seconds": DEADLINE_SECONDS, "cache_entries": 0}
        async with open_bus(MEMORY, constitution=_constitution(Path(place)), policy=policy) as bus:
            watched, other = [await bus.register(f"{name}-in", tenant=name) for name in ("acme", "mallory")]
            for agent in (watched, other):
                await bus.register(f"{agent.tenant}-out", take, tenant=agent.tenant)
            for _ in range(scale.runs):
                quiet.append(percentile(await _times(watched, count), 0.99))
                beside.append(percentile(await _times(watched, count, other), 0.99))
    ratio = tuple(with_bombs / without for with_bombs, without in zip(beside, quiet, strict=True))
    return [
        Figure("bombs", "send to receipt, uncached, p99", "ms", tuple(quiet)),
        Figure(
            "bombs", f"the same beside {BOMBS_AT_ONCE} evaluations of another tenant that loop", "ms", tuple(beside)
        ),
        Figure("bombs", "p99 beside them as a multiple of p99 alone", "x", ratio, at_most(5.0)),
    ]


async def _times(watched: Agent, count: int, other: Agent | None = None) -> list[float]:
    """Milliseconds from send to receipt; `other` sends messages meanwhile that cannot be decided in time."""

    async def explode(agent: Agent) -> None:
        while True:
            receipt = await agent.send(f"{agent.tenant}-out", {"bomb": True})
            if receipt.code not in ("policy_timeout", "policy_unavailable"):
                raise RuntimeError(f"a message that cannot be decided got {receipt}")

    tasks = [asyncio.create_task(explode(other)) for _ in range(BOMBS_AT_ONCE)] if other is not None else []
    found = []
    try:
        await asyncio.sleep(DEADLINE_SECONDS / 2 if tasks else 0)  # they have begun
        for number in range(count):
            started = time.perf_counter()
            (await watched.send(f"{watched.tenant}-out", {"n": number})).raise_for_refusal()
            found.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(PAUSE_SECONDS)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


def _constitution(folder: Path) -> Path:
    workload.write(folder / ".manifest", json.dumps(workload.MANIFEST))
    workload.write(folder / "bus" / "main.rego", workload.MAIN)
    workload.write(folder / "bus" / "manifest" / "data.json", json.dumps({"rules": ["bomb"]}))
    workload.write(folder / "bus" / "rules" / "bomb" / "bomb.rego", RULE)
    return folder
