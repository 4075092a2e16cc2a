"""Which candidate looks on: started and stopped on command, each recorded, gone with the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from enhanced_agent_bus.admission.chain import Active
from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.admission.shadow import Shadow
from enhanced_agent_bus.errors import AuditUnavailable
from enhanced_agent_bus.outcome import ShadowReport, instant_of
from enhanced_agent_bus.ports import Entry, PolicyEngine
from enhanced_agent_bus.road.desk import Desk

#: Starts an engine of its own: what a candidate does to it, the engine that decides does not feel.
Spare = Callable[[], Awaitable[PolicyEngine]]


@dataclass(slots=True)
class _Running:
    shadow: Shadow
    engine: PolicyEngine
    task: asyncio.Task[None]
    since: datetime


class Shadowing:
    """At most one shadow of one bus."""

    def __init__(self, desk: Desk, constitutions: Constitutions, spare: Spare) -> None:
        self._desk = desk
        self._constitutions = constitutions
        self._spare = spare
        self._changing = asyncio.Lock()
        self._running: _Running | None = None

    async def start(self, path: Path, percent: int) -> ShadowReport:
        """A new shadow, in place of the one that there may be. Raises: ConstitutionRejected; EngineMissing."""
        async with self._changing:
            self._desk.require_open()
            engine = await self._spare()
            async with AsyncExitStack() as undone:
                undone.push_async_callback(engine.close)
                loaded = await self._constitutions.on(engine).prepare(path)
                await self._stop("replaced")
                await self._desk.write(_entry("shadow_started", loaded.digest, loaded.revision, {"percent": percent}))
                self._desk.require_open()
                undone.pop_all()
            shadow = Shadow(
                Active(loaded),
                engine,
                percent=percent,
                salt=self._desk.ledger.bus,
                policy_seconds=self._desk.settings.policy.timeout_seconds,
            )
            task = asyncio.create_task(shadow.run(), name="shadow")
            task.add_done_callback(_ended)
            self._running = _Running(shadow, engine, task, instant_of(self._desk.clock.now_us()))
            self._desk.admission.watch(shadow)
            return _report(self._running)

    def report(self) -> ShadowReport | None:
        """What it has found so far; None when nobody looks on."""
        return None if self._running is None else _report(self._running)

    async def stop(self) -> ShadowReport:
        """Raises: KeyError, when there is none."""
        async with self._changing:
            report = await self._stop("command")
            if report is None:
                raise KeyError("no shadow is running")
            return report

    async def close(self) -> None:
        """With the bus; what cannot be recorded any more is not."""
        async with self._changing:
            try:
                await self._stop("closed")
            except AuditUnavailable:
                return

    async def _stop(self, reason: str) -> ShadowReport | None:
        running = self._running
        if running is None:
            return None
        self._running = None
        self._desk.admission.watch(None)
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)
        await running.engine.close()
        report = _report(running)
        counts = {
            "percent": report.percent,
            "seen": report.seen,
            "compared": report.compared,
            "dropped": report.dropped,
            "same": report.same,
            "flips": report.flips,
            "errors": report.errors,
        }
        await self._desk.write(_entry("shadow_stopped", report.digest, report.revision, counts, reason))
        return report


def _entry(event: str, digest: str, revision: int, more: dict[str, Any], reason: str | None = None) -> Entry:
    fields = {"event": event, "digest": digest, "revision": revision, "reason": reason, "details": []}
    return Entry("policy", fields | more)


def _report(running: _Running) -> ShadowReport:
    shadow = running.shadow
    return ShadowReport(
        digest=shadow.candidate.digest,
        revision=shadow.candidate.revision,
        percent=shadow.percent,
        since=running.since,
        seen=shadow.seen,
        compared=shadow.compared,
        dropped=shadow.dropped,
        same=shadow.same,
        other_reasons=shadow.other_reasons,
        other_facts=shadow.other_facts,
        flips=dict(shadow.flips),
        errors=dict(shadow.errors),
        rules=dict(shadow.rules),
        divergences=tuple(shadow.divergences),
    )


def _ended(task: asyncio.Task[None]) -> None:
    """A shadow that breaks is no reason to stop the bus; from then on all it sees is dropped."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": f"the shadow ended: {type(error).__name__}", "exception": error, "task": task}
        )
