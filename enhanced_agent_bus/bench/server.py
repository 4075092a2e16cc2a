"""Decisions of an OPA server: through the engine, and through plain httpx on the same server, in turns.

Measured where an `opa` is found, on PATH or in a checkout's .tools/bin; the server has a port of this machine.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import orjson

from enhanced_agent_bus.bench.decisions import IN_FLIGHT, decide, questions
from enhanced_agent_bus.bench.figures import Figure, Missing, at_least
from enhanced_agent_bus.bench.house import Scale, free_port
from enhanced_agent_bus.engines.server import DECISION, ServerEngine

SHARE: Final = 12  # of the messages of a run: plain httpx is slow with as many connections
READY_SECONDS_MAX: Final = 30.0
CHECKOUT: Final = Path(__file__).resolve().parents[2] / ".tools" / "bin" / "opa"

Question = tuple[str, bytes]


class _Took(NamedTuple):
    """Seconds for some questions, and how many of them this thread was at work."""

    seconds: float
    working: float
    asked: int

    @property
    def rate(self) -> float:
        return self.asked / self.seconds

    @property
    def share(self) -> float:
        return self.working / self.seconds

    @property
    def us(self) -> float:
        return self.working / self.asked * 1e6


def opa_binary() -> str | None:
    """Where a stock OPA is."""
    return shutil.which("opa") or (str(CHECKOUT) if CHECKOUT.is_file() else None)


async def server(folder: Path, scale: Scale) -> list[Figure]:
    """64 in flight: the engine beside one httpx client with 64 connections, on one server. Raises: Missing."""
    binary = opa_binary()
    if binary is None:
        raise Missing("there is no opa on PATH, nor in a checkout's .tools/bin")
    ours, plain = [], []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        async with _engine(binary, folder / "constitution", Path(place)) as (engine, url):
            loaded = await engine.load(folder / "constitution")
            asked = list(itertools.islice(questions(loaded), max(IN_FLIGHT, scale.messages // SHARE)))

            async def through_engine(question: Question) -> None:
                await decide(engine, loaded, question)

            limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=READY_SECONDS_MAX) as client:

                async def through_httpx(question: Question) -> None:
                    body = b'{"input":%b}' % question[1]
                    answer = await client.post(DECISION, content=body, headers={"Content-Type": "application/json"})
                    if not orjson.loads(answer.content)["result"]["allow"]:
                        raise RuntimeError("the server did not allow what the workload means to be allowed")

                for _ in range(scale.runs + 1):  # the first turn only warms both
                    ours.append(await _timed(through_engine, asked))
                    plain.append(await _timed(through_httpx, asked))
    return _figures(ours[1:], plain[1:])


def _figures(ours: list[_Took], plain: list[_Took]) -> list[Figure]:
    ratio = tuple(one.rate / other.rate for one, other in zip(ours, plain, strict=True))
    return [
        Figure("server", "uncached decision, OPA server, 64 in flight", "/s", tuple(took.rate for took in ours)),
        Figure(
            "server",
            "plain httpx on the same server, one client, 64 connections",
            "/s",
            tuple(took.rate for took in plain),
            note="for scale",
        ),
        Figure("server", "OPA server as a multiple of plain httpx", "x", ratio, at_least(1.5)),
        Figure(
            "server", "share of the time that the client works, the rest is the server's", "x",
            tuple(took.share for took in ours),
        ),
        Figure(
            "server", "the same of plain httpx", "x", tuple(took.share for took in plain), note="for scale"
        ),
        Figure("server", "processor time of the client, a decision", "us", tuple(took.us for took in ours)),
        Figure(
            "server", "the same of plain httpx", "us", tuple(took.us for took in plain), note="for scale"
        ),
    ]  # fmt: skip


async def _timed(ask: Callable[[Question], Awaitable[None]], asked: list[Question]) -> _Took:
    shared = iter(asked)

    async def work() -> None:
        for question in shared:
            await ask(question)

    started, working = time.perf_counter(), time.thread_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(work())
    return _Took(time.perf_counter() - started, time.thread_time() - working, len(asked))


@asynccontextmanager
async def _engine(binary: str, constitution: Path, place: Path) -> AsyncIterator[tuple[ServerEngine, str]]:
    """An engine, and the server that it asks, with the bundle of this constitution."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    engine = await ServerEngine.start(url)
    try:
        bundle = place / "bundle.tar.gz"
        await engine.pack(constitution, bundle)
        process = await asyncio.create_subprocess_exec(
            *(binary, "run", "--server", "--log-level", "error", "--disable-telemetry", "--addr", f"127.0.0.1:{port}"),
            *("--set", f"bundles.eab.resource={bundle.as_uri()}"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                while not (await engine.inspect(1.0)).ready:
                    if process.returncode is not None:
                        raise RuntimeError(f"{binary} ended with status {process.returncode}")
                    await asyncio.sleep(0.05)
            yield engine, url
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    finally:
        await engine.close()
