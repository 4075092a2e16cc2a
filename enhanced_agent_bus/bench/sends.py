"""Governed sends and requests, in memory and durable; durable ones as ratios to the bare group commit of one record.

The bare group commit writes one record a message and waits for its fsync; the bus writes message, decision, facts and
state before the handler starts, and the outcome after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enhanced_agent_bus.bench.figures import Figure, at_least, at_most, percentile
from enhanced_agent_bus.bench.group_commit import bare_group_commit
from enhanced_agent_bus.bench.house import Scale, alone, house, rate, reply
from enhanced_agent_bus.bench.peers import autogen, installed, queue_rate

IN_FLIGHT: Final = 64
MANY_IN_FLIGHT: Final = 512
ALONE_SHARE: Final = 5  # one at a time takes a fifth of the messages
DURABLE_SHARE: Final = 2


async def send(folder: Path, scale: Scale) -> list[Figure]:
    """Governed send, memory ledger, cached decision."""
    rates, queue, ratios, p50, p99 = [], [], [], [], []
    async with house(None, folder / "constitution", scale) as built:
        for _ in range(scale.runs):
            queue.append(await queue_rate(scale.messages, IN_FLIGHT))
            rates.append(await rate(built, built.send, scale.messages, IN_FLIGHT))
            ratios.append(rates[-1] / queue[-1])
            times = await alone(built, scale.messages // ALONE_SHARE)
            p50.append(percentile(times, 0.5))
            p99.append(percentile(times, 0.99))
    return [
        Figure("send", "governed send, memory ledger, 64 in flight", "/s", tuple(rates), at_least(60_000)),
        Figure("send", "governed send, memory ledger, as a share of asyncio.Queue alone", "x", tuple(ratios)),
        Figure("send", "send to receipt, 1 in flight, p50", "ms", tuple(p50)),
        Figure("send", "send to receipt, 1 in flight, p99", "ms", tuple(p99), at_most(0.1)),
        Figure("send", "asyncio.Queue alone, 64 producers", "/s", tuple(queue), note="for scale"),
    ]


async def request(folder: Path, scale: Scale) -> list[Figure]:
    """Governed request and reply: two admissions each."""
    async with house(None, folder / "constitution", scale, handler=reply, asks=True) as built:
        count = scale.messages // DURABLE_SHARE
        rates = [await rate(built, built.ask, count, IN_FLIGHT) for _ in range(scale.runs)]
    what = "governed request/reply, memory ledger, 64 in flight"
    return [Figure("request", what, "/s", tuple(rates), at_least(25_000))]


async def durable(folder: Path, scale: Scale) -> list[Figure]:
    """Durable governed send beside the bare group commit, turn by turn on the same disk."""
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        async with house(Path(place) / "home", folder / "constitution", scale) as built:
            for in_flight, limit in ((IN_FLIGHT, 0.4), (MANY_IN_FLIGHT, 0.5)):
                ours, bare = [], []
                for _ in range(scale.runs):
                    bare.append((await _bare(place, in_flight, scale))[0])
                    ours.append(await rate(built, built.send, scale.messages // DURABLE_SHARE, in_flight))
                what = f"durable governed send, {in_flight} in flight"
                found += [
                    Figure("durable", what, "/s", tuple(ours)),
                    Figure("durable", f"bare group commit, {in_flight} in flight", "/s", tuple(bare), note="for scale"),
                    Figure("durable", f"{what}, as a share of the bare one", "x", _ratios(ours, bare), at_least(limit)),
                ]
            ours, bare = [], []
            for _ in range(scale.runs):
                bare.append((await _bare(place, 1, scale))[1] * 1000)
                ours.append(percentile(await alone(built, scale.messages // ALONE_SHARE), 0.5))
    return [
        *found,
        Figure("durable", "durable send to receipt, 1 in flight, p50", "ms", tuple(ours)),
        Figure("durable", "bare group commit, 1 in flight, p50", "ms", tuple(bare), note="for scale"),
        Figure("durable", "durable p50 as a multiple of the bare one", "x", _ratios(ours, bare), at_most(1.5)),
    ]


async def durable_request(folder: Path, scale: Scale) -> list[Figure]:
    """Durable request and reply, beside autogen-core where that is installed."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        async with house(Path(place) / "home", folder / "constitution", scale, handler=reply, asks=True) as built:
            for _ in range(scale.runs):
                ours.append(await rate(built, built.ask, scale.messages // DURABLE_SHARE, IN_FLIGHT))
                if installed("autogen_core"):
                    theirs.append(await autogen(scale.messages // DURABLE_SHARE, IN_FLIGHT))
    found = [Figure("durable_request", "durable governed request/reply, 64 in flight", "/s", tuple(ours))]
    if theirs:
        what = "durable request/reply as a multiple of autogen-core, which has no policy, log or durability"
        found.append(Figure("durable_request", what, "x", _ratios(ours, theirs), at_least(1.0)))
    return found


async def _bare(place: str, in_flight: int, scale: Scale) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=place) as empty:
        return await bare_group_commit(Path(empty), in_flight, scale.seconds)


def _ratios(ours: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    return tuple(one / other for one, other in zip(ours, others, strict=True))
