"""Which constitution decides: one takes over once the log says so, and each attempt is recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import orjson

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.admission.chain import Active
from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.admission.trial import WHOLE, Limits, Rollout
from enhanced_agent_bus.errors import AuditUnavailable, BusError, ConfigInvalid, ConstitutionRejected
from enhanced_agent_bus.outcome import Activation
from enhanced_agent_bus.ports import Entry, Loaded, PolicyEngine
from enhanced_agent_bus.road.desk import RECORD_SECONDS_MAX, Desk, disk_silent
from enhanced_agent_bus.settings import EMBEDDED

ROLLOUT: Final = "rollout"  # the setting of the home that a roll-out is kept in
NOT_TAKEN: Final = "given_refused"  # that setting has what the settings name, where it could not take over
NONE: Final = "null"
RECALLED_MAX: Final = 50_000  # records that are looked through at a start for what a candidate has decided
log: Final = logging.getLogger("enhanced_agent_bus")


class Charter:
    """Activations of one bus, one at a time; and the candidate that decides a share, when there is one."""

    def __init__(self, desk: Desk, constitutions: Constitutions, engine: PolicyEngine) -> None:
        self._desk = desk
        self._constitutions = constitutions
        self._engine = engine
        self._activating = asyncio.Lock()
        self._settling: asyncio.Future[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()  # roll-outs that are being taken back by themselves
        self.known: Callable[[], object] = _nothing  # what the nodes are under as an activation begins
        self.agree: Callable[[Loaded, object], Awaitable[None]] | None = None  # makes it that of the other nodes first

    async def take(self, path: Path, *, given: bool, percent: int = WHOLE, limits: Limits | None = None) -> Activation:
        """Activates; `given` when it is the settings that name the path (at the next start only a change counts).

        Under 100 percent it decides in that share of the conversations, and is taken back when a limit is passed.
        """
        async with self._turn():
            return await self._activate(path, percent, limits or Limits(), given=given)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One change at a time: whoever comes next sees what became of the one before, also where that was cancelled.

        Raises: AuditUnavailable, when the disk does not say.
        """
        async with self._activating:
            if self._settling is not None:
                try:
                    async with asyncio.timeout(RECORD_SECONDS_MAX):
                        await asyncio.shield(self._settling)
                except TimeoutError:
                    raise disk_silent() from None
            yield

    async def _settle(self, entry: Entry, then: Callable[[], None]) -> None:
        """Writes what changes who decides; `then` makes it so, once it is durable, whoever still waits for that."""
        settling = self._settling = asyncio.get_running_loop().create_future()

        def settled(error: BusError | None) -> None:
            settling.set_result(None)
            if error is None:
                then()

        await self._desk.write(entry, settled)

    async def _activate(self, path: Path, percent: int, limits: Limits, *, given: bool) -> Activation:
        before, out = self._desk.admission.current, self._desk.admission.rollout
        self._require_able(percent)
        shared = self.known()
        try:
            loaded = await self._constitutions.prepare(path)
            if self.agree is not None:
                await self.agree(loaded, shared)
        except ConstitutionRejected as error:
            await self._note_rejected(path, error, given=given)
            raise
        known = before is not None and before.digest == loaded.digest
        if out is not None and out.candidate.digest != loaded.digest and not (known and percent < WHOLE):
            await self._take_back(out, "replaced")
        if known or percent == WHOLE:
            await self._adopt(loaded, "unchanged" if known else "activated", {"given": loaded.digest} if given else {})
            return Activation(loaded.digest, loaded.revision)
        await self._roll_out(loaded, percent, limits)
        return Activation(loaded.digest, loaded.revision, percent)

    async def follow(self, path: Path, digest: str, source: str, origin: str) -> None:
        """Takes over what another node has activated. Raises: ConstitutionRejected, also where it is another one."""
        async with self._turn():
            current, out = self._desk.admission.current, self._desk.admission.rollout
            if current is not None and current.digest == digest:
                return
            found = await self._constitutions.identify(path)
            if found != digest:
                what = f"what the nodes were given as {digest} is {found}"
                raise ConstitutionRejected(what, reason="invalid", remedy="activate it again", digest=digest)
            loaded = await self._constitutions.prepare(path)
            if out is not None:
                await self._take_back(out, "replaced")
            await self._adopt(replace(loaded, source=source), "activated", {}, origin)

    async def note_rejected(self, digest: str, error: ConstitutionRejected, origin: str) -> None:
        """Records why this node cannot take over what another one has activated. Raises: AuditUnavailable."""
        fields = {**_rejected(error), "digest": digest, "origin": origin}
        await self._desk.write(Entry("policy", fields))

    async def resume(self, digest: str, source: str) -> None:
        """At start: the constitution that was active decides again. Raises: ConstitutionRejected."""
        self._desk.admission.activate(await self._constitutions.load(digest, source))

    async def consider(self, path: Path, *, known: Collection[str | None], active: Mapping[str, Any]) -> bool:
        """At start: true when what the settings name took over; the one that was active may have expired.

        Raises: ConstitutionRejected, which is recorded.
        """
        try:
            digest = await self._constitutions.identify(path)
            if digest in known:
                await self._note_mended(digest, active)
                return False
            older = None if path.is_dir() else await self._constitutions.older_than(path, active["revision"])
        except ConstitutionRejected as error:
            await self._note_rejected(path, error, given=True)
            raise
        if older is None:
            await self.take(path, given=True)
            return True
        reason = "rollback" if older.revision < active["revision"] else "revision_reused"
        what = f"the constitution at {path} is ignored: its revision {older.revision} is not higher"
        self.say_not_taken(path, ConstitutionRejected(what, reason=reason), active)
        fields = {"event": "ignored", "digest": older.digest, "revision": older.revision, "reason": reason}
        await self._note_not_taken({**fields, "details": [], "path": str(path)}, given=True)
        return False

    def say_not_taken(self, path: Path, error: ConstitutionRejected, active: Mapping[str, Any]) -> None:
        """One line for whoever starts the bus: where nobody has set up logging it is on standard error."""
        message = error.message if str(path) in error.message else f"{path}: {error.message}"
        on = f"revision {active['revision']}, {active['digest']}, goes on deciding"
        log.warning("note: %s", " ".join(f"{message} ({error.reason}); {on}".split()))

    async def _note_rejected(self, path: Path, error: ConstitutionRejected, *, given: bool) -> None:
        await self._note_not_taken({**_rejected(error), "path": str(path)}, given=given)

    async def _note_not_taken(self, fields: Mapping[str, Any], *, given: bool) -> None:
        """Records it; of what the settings name not again at each start, while the same one decides."""
        ledger = self._desk.ledger
        active = orjson.loads(ledger.setting("constitution") or "{}")
        about = {key: fields[key] for key in ("event", "path", "digest", "revision", "reason")}
        noted = orjson.dumps({**about, "under": active.get("digest")}, option=orjson.OPT_SORT_KEYS).decode()
        if not given:
            await self._desk.write(Entry("policy", dict(fields)))
        elif ledger.setting(NOT_TAKEN) != noted:
            await self._desk.write(Entry("policy", dict(fields), settings={NOT_TAKEN: noted}))

    async def _note_mended(self, digest: str, active: Mapping[str, Any]) -> None:
        """What the settings name is in force, and was not at some start before."""
        if digest == active["digest"] and self._desk.ledger.setting(NOT_TAKEN) not in (None, NONE):
            fields = {"event": "unchanged", "digest": digest, "revision": active["revision"], "reason": None}
            await self._desk.write(Entry("policy", {**fields, "details": []}, settings={NOT_TAKEN: NONE}))

    async def _adopt(self, loaded: Loaded, event: str, noted: dict[str, str], origin: str | None = None) -> None:
        """Records that a constitution takes over everywhere, then lets it decide.

        Here alone one becomes the active one, so here its revision becomes the highest: a candidate's does not.
        """
        before = self._desk.admission.current
        fields = {"event": event, "digest": loaded.digest, "revision": loaded.revision, "reason": None, "details": []}
        if origin is not None:
            fields["origin"] = origin
        if event != "unchanged":
            fault("policy.before_swap")
        self._constitutions.raise_mark(loaded)
        facts = {"digest": loaded.digest, "revision": loaded.revision, "source": loaded.source, "signed": loaded.signed}
        settings = {"constitution": orjson.dumps(facts).decode(), **noted}
        if event != "unchanged" and self._desk.ledger.setting(ROLLOUT) not in (None, NONE):
            settings[ROLLOUT] = NONE

        def then() -> None:
            if event != "unchanged":
                self._desk.admission.activate(loaded)  # what the log says is active decides, whoever still waits here

        await self._settle(Entry("policy", fields, settings=settings), then)
        if event == "unchanged":
            return
        fault("policy.after_swap")
        if before is not None and before.digest != loaded.digest:
            await self._engine.drop(before.digest)

    # --- a share of the conversations ------------------------------------------------------------------------------

    def _require_able(self, percent: int) -> None:
        """Raises: ConfigInvalid, where there can be one constitution only."""
        if percent < WHOLE and self.agree is not None:
            raise ConfigInvalid(
                "a bus of several nodes is under one constitution: nothing can be rolled out by percentage there",
                remedy="try it with `eab policy shadow` or `eab policy backtest`, then activate it for all",
            )
        if percent < WHOLE and self._engine.label.get("name") != EMBEDDED:
            raise ConfigInvalid(
                "an OPA server serves one bundle, so nothing can be rolled out by percentage with policy.engine set",
                remedy="activate it for all, or set policy.engine to embedded",
            )

    async def _roll_out(self, loaded: Loaded, percent: int, limits: Limits) -> None:
        """Records that a candidate decides a share, then lets it."""
        shown = {"percent": percent, **asdict(limits)}
        fields = {"event": "rolling_out", "digest": loaded.digest, "revision": loaded.revision, "reason": None}
        kept = {"digest": loaded.digest, "revision": loaded.revision, "source": loaded.source, **shown}
        fault("policy.before_swap")

        entry = Entry("policy", {**fields, "details": [], **shown}, settings={ROLLOUT: orjson.dumps(kept).decode()})
        await self._settle(entry, lambda: self._begin(loaded, percent, limits))
        fault("policy.after_swap")

    def _begin(self, loaded: Loaded, percent: int, limits: Limits) -> None:
        rollout = Rollout(
            Active(loaded), percent=percent, salt=self._desk.ledger.bus, limits=limits, passed=self._passed
        )
        self._desk.admission.roll_out(rollout)

    @property
    def candidate(self) -> str | None:
        """The digest of the one that is being rolled out."""
        out = self._desk.admission.rollout
        return None if out is None else out.candidate.digest

    async def resume_rollout(self) -> None:
        """At start: a candidate goes on with its share; one that cannot be used any more is taken back."""
        kept = orjson.loads(self._desk.ledger.setting(ROLLOUT) or NONE)
        if kept is None:
            return
        limits = Limits(kept["max_refusals"], kept["max_errors"], kept["over"])
        try:
            self._require_able(kept["percent"])
            loaded = await self._constitutions.load(kept["digest"], kept["source"])
        except (ConfigInvalid, ConstitutionRejected) as error:
            reason = error.reason if isinstance(error, ConstitutionRejected) else "policy_server"
            fields = {"event": "rolled_back", "digest": kept["digest"], "revision": kept["revision"], "reason": reason}
            entry = Entry("policy", {**fields, "details": [], "percent": kept["percent"]}, settings={ROLLOUT: NONE})
            await self._desk.write(entry)
            return
        self._begin(loaded, kept["percent"], limits)
        out = self._desk.admission.rollout
        assert out is not None
        out.recall(self._recorded(loaded.digest))  # else one that is bad goes on for as long as the bus does not
        if (passed := out.passed) is not None:
            await self._take_back(out, passed)

    def _recorded(self, candidate: str) -> list[tuple[str, str | None]]:
        """Verdict and code of what a candidate has decided since its roll-out began, among the newest records."""
        ledger, found = self._desk.ledger, list[tuple[str, str | None]]()
        newest = ledger.size() - 1
        for seq in range(newest, max(newest - RECALLED_MAX, -1), -1):
            body = ledger.record(seq)
            if candidate.encode() not in body:
                continue
            record = orjson.loads(body)
            if record["kind"] == "policy" and record["event"] == "rolling_out":
                break
            if record["kind"] == "decision" and record["constitution"] == candidate:
                found.append((record["verdict"], record["code"]))
        found.reverse()
        return found

    async def roll_back(self, reason: str = "command") -> Activation:
        """On command, say: the active one decides everything. Raises: KeyError, when nothing is being rolled out."""
        async with self._turn():
            out = self._desk.admission.rollout
            if out is None:
                raise KeyError("nothing is being rolled out")
            await self._take_back(out, reason)
            active = self._desk.admission.active
            return Activation(active.digest, active.revision)

    def _passed(self, out: Rollout, what: str) -> None:
        """A limit was passed, and it is taken back: once, however many decisions find that."""
        if not self._ending and not self._desk.closed:
            task = asyncio.create_task(self._end(out, what), name="roll-out taken back")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _end(self, out: Rollout, what: str) -> None:
        try:
            async with self._turn():
                if self._desk.admission.rollout is out:  # and nobody was quicker
                    await self._take_back(out, what)
        except BusError:
            return  # it decides on; the next decision under it finds the limit passed again

    async def _take_back(self, out: Rollout, reason: str) -> None:
        """Records why a candidate decides no more, then lets the active one decide in its place."""
        candidate = out.candidate
        fields = {
            "event": "rolled_back",
            "digest": candidate.digest,
            "revision": candidate.revision,
            "reason": reason,
            "details": [],
            "percent": out.percent,
            "decisions": out.decisions,
            "newest": out.newest,
            "refusals": out.refusals,
            "errors": out.errors,
        }

        def then() -> None:
            if self._desk.admission.rollout is out:
                self._desk.admission.roll_out(None)

        await self._settle(Entry("policy", fields, settings={ROLLOUT: NONE}), then)
        await self._engine.drop(candidate.digest)

    async def close(self) -> None:
        """Waits for what is being taken back."""
        await asyncio.gather(*self._ending, return_exceptions=True)


def _nothing() -> object:
    """A bus of one node asks nobody."""
    return None


def _rejected(error: ConstitutionRejected) -> dict[str, Any]:
    details = [{key: str(value)[:150] for key, value in item.items()} for item in error.details[:10]]
    return {
        "event": "rejected",
        "digest": error.digest,
        "revision": error.revision,
        "reason": error.reason,
        "details": details or [{"message": error.message[:300]}],
    }


def fault(name: str) -> None:
    """Does what a test planned for this point; its I/O error is one of the log."""
    try:
        faultpoints.hit(name)
    except OSError as error:
        raise AuditUnavailable(f"{error}", remedy="activate it again") from error
