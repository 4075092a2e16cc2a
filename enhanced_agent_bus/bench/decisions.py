"""Decisions: uncached ones of the embedded engine, cache hits, and the first one after a start."""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from enhanced_agent_bus.admission.reading import Reading
from enhanced_agent_bus.bench import workload
from enhanced_agent_bus.bench.figures import Figure, at_least, at_most, percentile
from enhanced_agent_bus.bench.house import Scale, drive, house
from enhanced_agent_bus.bench.stations import replaced
from enhanced_agent_bus.bench.workload import Load, Profile
from enhanced_agent_bus.engines.cache import DecisionCache
from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.ports import Loaded, PolicyEngine

IN_FLIGHT: Final = 64
DECISION_SECONDS: Final = 10.0
SHARE: Final = 4  # uncached decisions take a quarter of the messages, one at a time an eighth of those
ALONE_SHARE: Final = 32
HITS_TIMED: Final = 5000
START_SECONDS_MAX: Final = 60.0

Call = Callable[[], object]


@asynccontextmanager
async def engine_with(constitution: Path) -> AsyncIterator[tuple[WorkerEngine, Loaded]]:
    """The embedded engine with a constitution loaded."""
    engine = await WorkerEngine.start()
    try:
        yield engine, await engine.load(constitution)
    finally:
        await engine.close()


def document(profiles: dict[str, Profile], load: Load, number: int, loaded: Loaded) -> dict[str, Any]:
    """The input of one message as the bus asks it (contract §4)."""
    sender, recipient = profiles[load.sender], profiles[load.recipient]
    counted = {"sent": number, "refused": 0}
    return {
        "message": {
            "id": f"message-{number}",
            "type": load.type,
            "priority": load.priority,
            "payload": load.payload,
            "headers": {},
            "conversation": load.conversation,
            "hops": 0,
            "attempt": 1,
            "size": 700,
            "age_seconds": 0,
        },
        "sender": {"id": sender.id, "tenant": sender.tenant, "roles": sender.roles, "capabilities": []},
        "recipient": {"id": recipient.id, "tenant": recipient.tenant, "roles": recipient.roles, "capabilities": []},
        "constitution": {"digest": loaded.digest, "agreed": loaded.digest, "revision": loaded.revision},
        "clock": {"date": "2026-11-21", "weekday": 6, "hour": 11, "minute": 39},
        "facts": {"sender": counted, "recipient": {}, "conversation": counted, "tenant": {}},
        "approvals": [],
    }


def questions(loaded: Loaded, agents: int = workload.AGENTS) -> Iterator[tuple[str, bytes]]:
    """Tenants and input documents, without end."""
    profiles = workload.directory(agents)
    for number, load in enumerate(workload.admitted(profiles)):
        yield profiles[load.sender].tenant, orjson.dumps(document(profiles, load, number, loaded))


async def decide(engine: PolicyEngine, loaded: Loaded, question: tuple[str, bytes]) -> None:
    """One decision, which must be an allow."""
    answer = await engine.decide(loaded.digest, question[0], question[1], DECISION_SECONDS)
    if answer.code is not None or not orjson.loads(answer.body)["allow"]:
        raise RuntimeError(f"the engine did not allow what the workload means to be allowed: {answer}")


async def times_alone(engine: WorkerEngine, loaded: Loaded, count: int) -> list[float]:
    """Milliseconds of decisions, one at a time."""
    found = []
    for question in list(itertools.islice(questions(loaded), count)):
        started = time.perf_counter()
        await decide(engine, loaded, question)
        found.append((time.perf_counter() - started) * 1000)
    return found


async def decision(folder: Path, scale: Scale) -> list[Figure]:
    """Uncached decisions, one at a time and 64 at once."""
    p50, rates = [], []
    async with engine_with(folder / "constitution") as (engine, loaded):
        asked = list(itertools.islice(questions(loaded), scale.messages // SHARE))
        for _ in range(scale.runs + 1):  # the first turn only warms the workers
            p50.append(percentile(await times_alone(engine, loaded, max(1, scale.messages // ALONE_SHARE)), 0.5))
            rates.append(await _rate(engine, loaded, asked))
    return [
        Figure("decision", "uncached decision, embedded, 1 in flight, p50", "ms", tuple(p50[1:]), at_most(0.30)),
        Figure("decision", "uncached decision, embedded, 64 in flight", "/s", tuple(rates[1:]), at_least(9500)),
    ]


async def _rate(engine: WorkerEngine, loaded: Loaded, asked: list[tuple[str, bytes]]) -> float:
    shared = iter(asked)

    async def ask() -> None:
        for question in shared:
            await decide(engine, loaded, question)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(ask())
    return len(asked) / (time.perf_counter() - started)


async def cache(folder: Path, scale: Scale) -> list[Figure]:
    """A cache hit: the payload parsed, the key made of what the policy reads, the ruling found.

    The calls are those of real sends, caught on their way and made again.
    """
    keys: list[Call] = []
    gets: list[Call] = []
    p50 = []
    async with house(None, folder / "constitution", scale) as built:
        loads = list(built.some(scale.distinct))
        with replaced(Reading, "key", _caught(keys)), replaced(DecisionCache, "get", _caught(gets)):
            await drive(built.send, loads, 1)
        bodies = [orjson.dumps(load.payload) for load in loads]
        for _ in range(scale.runs):
            times = []
            for body, key, get in itertools.islice(itertools.cycle(zip(bodies, keys, gets, strict=True)), HITS_TIMED):
                started = time.perf_counter_ns()
                orjson.loads(body)
                key()
                found = get()
                times.append((time.perf_counter_ns() - started) / 1000)
                if found is None:
                    raise RuntimeError("a ruling that was kept is not found")
            p50.append(percentile(times, 0.5))
    return [Figure("cache", "cache hit, p50", "us", tuple(p50), at_most(5.0))]


def _caught(calls: list[Call]) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def catch(*given: object) -> object:
            calls.append(partial(real, *given))
            return real(*given)

        return catch

    return wrap


async def start(folder: Path, scale: Scale) -> list[Figure]:
    """From nothing to the first decision, each time in a process of its own."""
    opened, whole = [], []
    for _ in range(scale.runs):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "enhanced_agent_bus.bench.first", str(folder / "constitution"), place),
                stdout=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(START_SECONDS_MAX):
                said, _ = await process.communicate()
            if process.returncode != 0:
                raise RuntimeError("the process that makes a first decision ended with an error")
            found = orjson.loads(said)
            opened.append(found["open_seconds"])
            whole.append(found["decided_monotonic"] - began)
    return [
        Figure("start", "open_bus to the first decision, durable", "s", tuple(opened), at_most(0.3)),
        Figure("start", "process start to the first decision, imports included", "s", tuple(whole)),
    ]
