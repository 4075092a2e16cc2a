"""The rows of `eab bench`, in their order, and the run of some or all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.bench import cluster, decisions, growth, logs, neighbours, peers, sends, server, workload
from enhanced_agent_bus.bench.figures import Figure, Missing, machine
from enhanced_agent_bus.bench.house import QUICK, Scale
from enhanced_agent_bus.bench.stations import stations
from enhanced_agent_bus.engines.worker import WorkerEngine

Row = Callable[[Path, Scale], Awaitable[list[Figure]]]

ROWS: Final[dict[str, Row]] = {
    "send": sends.send,
    "request": sends.request,
    "durable": sends.durable,
    "durable_request": sends.durable_request,
    "decision": decisions.decision,
    "server": server.server,
    "cache": decisions.cache,
    "bombs": neighbours.bombs,
    "start": decisions.start,
    "log": logs.log,
    "peers": peers.peers,
    "memory": growth.memory,
    "growth": growth.growth,
    "nats": cluster.nats,
}
WORKLOAD: Final = (
    f"messages of about 1 KB between {workload.AGENTS:,} agents of {workload.TENANTS} tenants, {QUICK.distinct:,} "
    f"different ones that the policy admits; one rule of {len(workload.AUTHZ.splitlines())} lines; log on, decisions "
    "cached unless said"
)


@dataclass(frozen=True, slots=True)
class Ran:
    """What was measured, on which machine, and what was not, with the reason."""

    machine: dict[str, Any]
    figures: list[Figure]
    missing: dict[str, str]  # by row


async def run(names: Iterable[str], scale: Scale, *, place: Path | None, told: Callable[[str], None]) -> Ran:
    """Runs these rows; `told` hears the name of each before it starts. Homes are made in `place`."""
    return await _run({name: ROWS[name] for name in names}, scale, place, told)


async def run_stations(scale: Scale, *, place: Path | None, told: Callable[[str], None]) -> Ran:
    """Measures the stations instead."""
    return await _run({"stations": stations}, scale, place, told)


async def _run(rows: dict[str, Row], scale: Scale, place: Path | None, told: Callable[[str], None]) -> Ran:
    figures: list[Figure] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="eab-bench-", dir=place) as name:
        folder = Path(name)
        workload.write_constitution(folder / "constitution")
        engine = await WorkerEngine.start(workers=1)
        label = engine.label["opa"]
        await engine.close()
        for row, measure in rows.items():
            told(row)
            try:
                figures += await measure(folder, scale)
            except Missing as why:
                missing[row] = str(why)
    return Ran(machine(label), figures, missing)
