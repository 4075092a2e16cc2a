"""Which constitution decides: one takes over once the log says so, and each attempt is recorded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.errors import AuditUnavailable, BusError, ConstitutionRejected
from enhanced_agent_bus.outcome import Activation
from enhanced_agent_bus.ports import Entry, Loaded, PolicyEngine
from enhanced_agent_bus.road.desk import Desk


class Charter:
    """Activations of one bus, one at a time."""

    def __init__(self, desk: Desk, constitutions: Constitutions, engine: PolicyEngine) -> None:
        self._desk = desk
        self._constitutions = constitutions
        self._engine = engine
        self._activating = asyncio.Lock()

    async def take(self, path: Path, *, given: bool) -> Activation:
        """Activates; `given` when it is the settings that name the path (at the next start only a change counts)."""
        async with self._activating:
            return await self._activate(path, given=given)

    async def _activate(self, path: Path, *, given: bool) -> Activation:
        before = self._desk.admission.current
        try:
            loaded = await self._constitutions.prepare(path)
        except ConstitutionRejected as error:
            details = [{key: str(value)[:150] for key, value in item.items()} for item in error.details[:10]]
            await self._desk.write(
                Entry(
                    "policy",
                    {
                        "event": "rejected",
                        "digest": error.digest,
                        "revision": None,
                        "reason": error.reason,
                        "details": details,
                    },
                )
            )
            raise
        event = "activated" if before is None or before.digest != loaded.digest else "unchanged"
        await self._adopt(loaded, event, {"given": loaded.digest} if given else {})
        return Activation(loaded.digest, loaded.revision)

    async def resume(self, digest: str, source: str) -> None:
        """At start: the constitution that was active decides again. Raises: ConstitutionRejected."""
        self._desk.admission.activate(await self._constitutions.load(digest, source))

    async def note_ignored(self, digest: str, revision: int) -> None:
        """At start: an older bundle was given than the active one."""
        fields = {"event": "ignored", "digest": digest, "revision": revision, "reason": "rollback", "details": []}
        await self._desk.write(Entry("policy", fields))

    async def _adopt(self, loaded: Loaded, event: str, noted: dict[str, str]) -> None:
        """Records that a constitution takes over, then lets it decide."""
        before = self._desk.admission.current
        fields = {"event": event, "digest": loaded.digest, "revision": loaded.revision, "reason": None, "details": []}
        if event != "unchanged":
            fault("policy.before_swap")
        self._constitutions.raise_mark(loaded)
        facts = {"digest": loaded.digest, "revision": loaded.revision, "source": loaded.source, "signed": loaded.signed}
        active = orjson.dumps(facts).decode()

        def then(error: BusError | None) -> None:
            if error is None and event != "unchanged":
                self._desk.admission.activate(loaded)  # what the log says is active decides, whoever still waits here

        await self._desk.write(Entry("policy", fields, settings={"constitution": active, **noted}), then)
        if event == "unchanged":
            return
        fault("policy.after_swap")
        if before is not None and before.digest != loaded.digest:
            await self._engine.drop(before.digest)


def fault(name: str) -> None:
    """Does what a test planned for this point; its I/O error is one of the log."""
    try:
        faultpoints.hit(name)
    except OSError as error:
        raise AuditUnavailable(f"{error}", remedy="activate it again") from error
