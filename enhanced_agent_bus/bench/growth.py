"""What grows: memory with messages (it must not), time with agents (neither), time with rules (only when uncached)."""

from __future__ import annotations

import itertools
import os
import statistics
from pathlib import Path
from typing import Final

from enhanced_agent_bus.bench import workload
from enhanced_agent_bus.bench.decisions import engine_with, times_alone
from enhanced_agent_bus.bench.figures import Figure, at_most, percentile
from enhanced_agent_bus.bench.house import Scale, drive, house, rate

IN_FLIGHT: Final = 64
SHARE: Final = 3
AGENTS: Final = (10, 1000)
RULES: Final = (1, 50, 500)
DECISIONS_TIMED: Final = 60
POINTS: Final = 5
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
CHILDREN: Final = Path("/proc/self/task")


async def memory(folder: Path, scale: Scale) -> list[Figure]:
    """Bytes that a message leaves behind, after the bounded memories have filled; Linux only."""
    if not CHILDREN.exists():
        return []
    async with house(None, folder / "constitution", scale) as built:
        await drive(built.send, built.some(scale.flat_messages), IN_FLIGHT)  # fills what is bounded
        sizes = [_resident(os.getpid())]
        for _ in range(POINTS):
            await drive(built.send, built.some(max(1, scale.flat_messages // POINTS)), IN_FLIGHT)
            await built.bus.wait_idle()
            sizes.append(_resident(os.getpid()))
        workers = [_resident(child) / 1e6 for child in _children()]
    turn = scale.flat_messages // POINTS
    steps = [(after - before) / turn for before, after in itertools.pairwise(sizes)]
    return [
        Figure("memory", "resident memory that a message leaves behind", "bytes", tuple(steps), at_most(16.0)),
        Figure("memory", "resident memory of the bus with 1,000 agents", "MB", tuple(size / 1e6 for size in sizes)),
        Figure("memory", "resident memory of a policy worker", "MB", tuple(workers), at_most(64.0)),
    ]


async def growth(folder: Path, scale: Scale) -> list[Figure]:
    """Time a message by agents and rules."""
    by_agents: dict[int, list[float]] = {}
    for agents in AGENTS:
        place = workload.write_constitution(folder / f"agents-{agents}", agents=agents)
        async with house(None, place, scale, agents=agents) as built:
            by_agents[agents] = [
                1e6 / await rate(built, built.send, scale.messages // SHARE, IN_FLIGHT) for _ in range(scale.runs)
            ]
    few, many = (by_agents[agents] for agents in AGENTS)
    ratio = tuple(more / less for less, more in zip(few, many, strict=True))
    found = [
        *(
            Figure("growth", f"governed send, cached, {agents:,} agents", "us", tuple(times))
            for agents, times in by_agents.items()
        ),
        Figure("growth", "time with 1,000 agents as a multiple of 10 agents", "x", ratio, at_most(1.5)),
    ]
    cached, uncached = [], []
    for rules in RULES:
        place = workload.write_constitution(folder / f"rules-{rules}", rules=rules)
        async with house(None, place, scale) as built:
            times = [1e6 / await rate(built, built.send, scale.messages // SHARE, IN_FLIGHT) for _ in range(scale.runs)]
        cached.append(Figure("growth", f"governed send, cached, {rules} rules", "us", tuple(times)))
        async with engine_with(place) as (engine, loaded):
            await times_alone(engine, loaded, DECISIONS_TIMED)
            medians = [
                percentile(await times_alone(engine, loaded, DECISIONS_TIMED), 0.5) * 1000 for _ in range(scale.runs)
            ]
        uncached.append(Figure("growth", f"decision, uncached, {rules} rules, p50", "us", tuple(medians)))
    span = RULES[-1] - RULES[0]
    each = tuple((more - less) / span for less, more in zip(uncached[0].values, uncached[-1].values, strict=True))
    flat = tuple(more / statistics.median(cached[0].values) for more in cached[-1].values)
    return [
        *found,
        *cached,
        Figure("growth", "cached time with 500 rules as a multiple of 1 rule", "x", flat, at_most(1.5)),
        *uncached,
        Figure("growth", "uncached time that each more rule takes", "us", each, at_most(8.0)),
    ]


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


def _children() -> list[int]:
    """The processes that this one started: the policy workers."""
    return [
        int(child)
        for thread in CHILDREN.iterdir()
        for child in (thread / "children").read_text(encoding="ascii").split()
    ]
