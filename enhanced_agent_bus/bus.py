"""AgentBus: what a program holds. Registrations, lists, status, opening and closing; messages go down the `road`.

Not here: what fills the ports (`wiring.py`), how anything is checked (admission), written (ledger) or run (delivery).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from enhanced_agent_bus.admission.chain import Admission
from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.admission.seal import Randomness
from enhanced_agent_bus.admission.trial import Limits, checked_percent
from enhanced_agent_bus.agent import Agent, Draft
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.runner import Handler
from enhanced_agent_bus.delivery.watchdog import Watchdog
from enhanced_agent_bus.errors import AgentExists, AuditUnavailable
from enhanced_agent_bus.message import REPLY_TYPES, Message
from enhanced_agent_bus.outcome import (
    Activation,
    AgentInfo,
    BlockedLoop,
    DeadLetter,
    Deliberated,
    Drained,
    Erasure,
    Fact,
    LegalHold,
    Outcome,
    Receipt,
    Recovery,
    Retention,
    ShadowReport,
    Status,
    Stopped,
    Waiting,
    instant_of,
)
from enhanced_agent_bus.ports import (
    AgentRow,
    Clock,
    Entry,
    Ledger,
    Listener,
    PolicyEngine,
    Runs,
    StoredMessage,
    Witnesses,
)
from enhanced_agent_bus.recovery.retry import Retry
from enhanced_agent_bus.road.asking import Asking
from enhanced_agent_bus.road.carriage import Carriage
from enhanced_agent_bus.road.charter import Charter
from enhanced_agent_bus.road.deliberating import Deliberating
from enhanced_agent_bus.road.desk import Desk, handling_now
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.erasing import Erasing
from enhanced_agent_bus.road.mailroom import Mailroom
from enhanced_agent_bus.road.nodes import Joined, Nodes
from enhanced_agent_bus.road.outsiders import Identity, Outsiders, Trusted
from enhanced_agent_bus.road.recovering import Recovering
from enhanced_agent_bus.road.registering import Duty, Registering, names_of
from enhanced_agent_bus.road.remembering import Remembering
from enhanced_agent_bus.road.replies import Replies
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.road.sending import Sending
from enhanced_agent_bus.road.shadowing import Shadowing, Spare
from enhanced_agent_bus.road.standing import Standing
from enhanced_agent_bus.road.stopping import Stopping
from enhanced_agent_bus.road.witnessing import Witnessing
from enhanced_agent_bus.routing.registry import Registry
from enhanced_agent_bus.settings import Settings
from enhanced_agent_bus.verdict import Party

WORKERS_SECONDS_MAX: Final = 1.0  # for handlers that are stopped to let go


class AgentBus:
    """The bus of one home. Made by `open_bus`."""

    def __init__(
        self,
        *,
        settings: Settings,
        ledger: Ledger,
        engine: PolicyEngine,
        admission: Admission,
        constitutions: Constitutions,
        registry: Registry,
        clock: Clock,
        randomness: Randomness,
        threads: Executor,
        chance: Callable[[], float],
        runs: Runs,
        weakenings: Sequence[str],
        witnesses: Witnesses,
        home: str,
        spare: Spare,
        note_blocked: Callable[[BlockedLoop | None], None],
        listener: Listener | None = None,
        joined: Joined | None = None,
        identity: Identity,
    ) -> None:
        self._desk = desk = Desk(
            settings=settings,
            ledger=ledger,
            admission=admission,
            registry=registry,
            clock=clock,
            randomness=randomness,
            threads=threads,
            chance=chance,
            runs=runs,
            listener=listener,
        )
        if listener is not None:
            listener.watch(desk.load)
        self.charter = Charter(desk, constitutions, engine)
        self._shadowing = Shadowing(desk, constitutions, spare)
        self._endings = Endings(desk)
        self._mailroom = Mailroom(desk, self._endings)
        self._recovering = Recovering(desk, self._endings, self._mailroom)
        self._rescue = Rescue(desk, self._endings, self._mailroom, self._recovering)
        self._sending = Sending(desk, self._endings, self._mailroom, self._rescue)
        self._asking = Asking(desk, self._sending)
        self._outsiders = Outsiders(desk, self._sending, self._asking, identity, self.register, self.unregister)
        self.witnessing = Witnessing(desk)
        self._erasing = Erasing(desk)
        replies = Replies(desk, self._endings, self._rescue, self._sending)
        self._deliberating = Deliberating(desk, self._endings, self._mailroom, self._rescue)
        self._stopping = Stopping(desk, self._mailroom)
        self._carriage = Carriage(desk, self._endings, self._mailroom, self._rescue, replies)
        self._registering = Registering(desk, self._endings, self._carriage)
        self._remembering = Remembering(desk)
        self._nodes = None
        if joined is not None:
            stations = (desk, self._endings, self._mailroom, self._rescue, self._sending, replies, self.witnessing)
            shared = (self.charter, self._stopping, constitutions)
            self._nodes = Nodes(joined, *stations, *shared, let_go=self._registering.let_go)
        self._registering.nodes = self._nodes
        self._standing = Standing(desk, engine, witnesses, self._nodes, weakenings=weakenings, home=home)
        self.watchdog = Watchdog(self._carriage.agent_of, note_blocked, self._standing.was_blocked)
        self._closing: asyncio.Task[Drained] | None = None
        self._closers: set[Parcel] = set()  # whose handlers wait for the close that waits for handlers

    # --- the public names ------------------------------------------------------------------------------------------

    async def register(
        self,
        agent_id: str,
        handler: Handler | None = None,
        *,
        tenant: str,
        roles: Sequence[str] = (),
        capabilities: Sequence[str] = (),
        topics: Sequence[str] = (),
        payload: type[BaseModel] | None = None,
        concurrency: int | None = None,
        timeout: float | None = None,
        retry: Retry | Mapping[str, Retry] | None = None,
        when_full: str | None = None,
        constitution: str = "latest",
        shared: bool = False,
    ) -> Agent:
        """Registers an agent, durably; a later process that opens the home takes it up again under the same names.

        `timeout` is seconds for one handler run, `concurrency` how many run at once. `retry` may name one a message
        type, {"command": Retry.manual()}; the other types are retried as the settings say. On a bus of several nodes
        an agent is on one of them, or, `shared`, on all that register it so: each message goes to one.
        Raises: AgentExists; ValueError for a name that is none; AuditUnavailable; BusClosed; TransportAway.
        """
        self._desk.require_open()
        duty = Duty(handler, payload, concurrency, timeout, retry, when_full).checked()
        named = names_of(roles, capabilities, topics)
        row = AgentRow(agent_id, tenant, *named, constitution, live=True)
        party = await self._registering.register(row, duty, shared=shared)
        return Agent(self, party)

    async def agent(self, agent_id: str) -> Agent:
        """The handle of a registered agent; one that the home remembers is taken up without a handler.

        Raises: KeyError, when nobody is registered under this id.
        """
        party = self._desk.registry.live(agent_id)
        if party is not None:
            return Agent(self, party)
        row = self._desk.registry.row(agent_id)
        if row is None or not row.live:
            raise KeyError(agent_id)
        try:
            return await self.register(
                row.id,
                tenant=row.tenant,
                roles=row.roles,
                capabilities=row.capabilities,
                topics=row.topics,
                constitution=row.constitution,
            )
        except AgentExists:  # somebody took it up at the same time
            return await self.agent(agent_id)

    def agents(self) -> list[AgentInfo]:
        """Everyone who is registered: in this process, in the home, or on another node; and who may join."""
        return self._registering.agents(self._outsiders.trusted())

    async def trust_agent(
        self,
        agent_id: str,
        *,
        tenant: str,
        key: str,
        roles: Sequence[str] = (),
        capabilities: Sequence[str] = (),
        topics: Sequence[str] = (),
    ) -> None:
        """Lets an agent of another process join under this name with this key (a vkey of `<tenant>/<agent>`); recorded.

        Joined, it has at most these roles, capabilities and topics. What was said of it before is replaced, and a
        session that it has ends.
        Raises: ValueError, for a name or key that is none; AgentExists, when it is another tenant's; AuditUnavailable;
        BusClosed.
        """
        self._desk.require_open()
        named = names_of(roles, capabilities, topics)
        await self._outsiders.trust(Trusted(agent_id, tenant, key.strip(), *named))

    async def distrust_agent(self, agent_id: str) -> None:
        """An agent of another process may not join any more; recorded. Joined, it is unregistered.

        Raises: KeyError, when it is not trusted; AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        await self._outsiders.distrust(agent_id)

    def challenge(self) -> str:
        """What an agent of another process has to answer within 30 s to join. Raises: BusClosed; StoreCorrupt."""
        self._desk.require_open()
        return self._outsiders.challenge()

    async def join(self, answer: str) -> AgentInfo:
        """Registers an agent of another process that has answered a challenge; a session that it had ends.

        Raises: BusError, with the code of what is wrong with the answer (recorded); AgentExists, when it is live here
        without having joined; AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        joined = await self._outsiders.join(answer)
        return next(info for info in self.agents() if info.id == joined)

    async def send_envelope(self, envelope: str) -> list[Receipt]:
        """Sends what an agent of another process has signed in its session, as `Agent.send` and `publish` would.

        One that proves nothing is refused on the record, and nothing in it is kept.
        Raises: AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        return await self._outsiders.send(envelope)

    async def activate(
        self,
        path: str | Path,
        *,
        percent: int = 100,
        max_refusals: float | None = None,
        max_errors: float | None = 0.01,
        over: int = 100,
    ) -> Activation:
        """Puts a constitution in force: after this no handler starts under the one before.

        With `percent` under 100 it decides in that share of the conversations, and the active one in the rest. It is
        taken back by itself when, of its newest `over` decisions, more than the share `max_refusals` are refusals or
        more than `max_errors` had no usable answer (None: no limit).
        Raises: ConstitutionRejected, and the old one goes on; ConfigInvalid; ValueError; AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        limits = Limits(max_refusals, max_errors, over).checked()
        return await self.charter.take(Path(path), given=False, percent=checked_percent(percent), limits=limits)

    async def roll_back(self) -> Activation:
        """The active constitution decides everything again. Raises: KeyError, when nothing is being rolled out."""
        self._desk.require_open()
        return await self.charter.roll_back()

    async def start_shadow(self, path: str | Path, *, percent: int = 100) -> ShadowReport:
        """Lets a candidate look on: it is asked what was just decided, of so many percent of the conversations.

        It never acts, and ends with the process. One that looks on already is stopped.
        Raises: ConstitutionRejected; ValueError; EngineMissing; AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        return await self._shadowing.start(Path(path), checked_percent(percent))

    def shadow(self) -> ShadowReport | None:
        """What the shadow has found so far; None when there is none."""
        return self._shadowing.report()

    async def stop_shadow(self) -> ShadowReport:
        """Ends the shadow; says what it found. Raises: KeyError, when there is none; AuditUnavailable; BusClosed."""
        self._desk.require_open()
        return await self._shadowing.stop()

    def queue(self) -> list[Waiting]:
        """What has not ended, by when it came."""
        return [_waiting(parcel) for parcel in sorted(self._desk.live.values(), key=lambda parcel: parcel.row)]

    def held(self) -> list[Waiting]:
        """What waits for approval."""
        return [waiting for waiting in self.queue() if waiting.state == "held"]

    def dead_letters(self) -> list[DeadLetter]:
        """What could not be delivered and waits for a replay or a discard."""
        letters: list[DeadLetter] = []
        after = -1
        while page := self._desk.ledger.waiting(["dead_lettered"], after_seq=after):
            letters.extend(_dead_letter(stored) for stored in page)
            after = page[-1].seq
        return letters

    async def outcome(self, message_id: str, timeout: float | None = None) -> Outcome:
        """How a message ended, after a restart too; waits for the end.

        Raises: TimeoutError; KeyError, when no message of this id was accepted; BusClosed, when it ends later.
        """
        return await self._endings.outcome(message_id, timeout)

    async def replay(self, message_id: str) -> Receipt:
        """Decides a dead letter, or a message parked by a manual retry, anew.

        Allowed, it is queued again, with its attempts and its time to live renewed; refused, it stays where it is.
        Raises: KeyError, when there is none of this id; AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        return await self._rescue.replay(self._rescue.replayable(message_id))

    async def discard(self, message_id: str, *, reason: str) -> None:
        """Ends a dead letter, or a message that waits. Raises: KeyError, when there is none of this id; BusClosed."""
        self._desk.require_open()
        parcel = self._desk.live.get(message_id)
        if parcel is None:
            parcel = self._rescue.parcel_of(self._rescue.dead(message_id))
            parcel.state = "dead_lettered"
            self._desk.rising.add(message_id)
        elif parcel.state == "in_flight" or parcel.ending:
            raise KeyError(f"{message_id} is being handled")
        await self._endings.end(parcel, "discarded", "discarded", text=str(reason)).wait()

    def recoveries(self, state: str | None = None) -> list[Recovery]:
        """What failed and is, or was, to be tried again: the newest that are over, then the rest by priority and time.

        Those that are over are this process's; what waits is taken up after a restart.
        """
        return self._recovering.view(state)

    async def pause_recovery(self, message_id: str | None = None) -> None:
        """Holds back every message that is to be tried again, after a restart too, or this one; new ones still run.

        Raises: KeyError, when this one is not waiting to be tried again; AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        await self._recovering.pause(message_id)

    async def resume_recovery(self, message_id: str | None = None) -> None:
        """Ends the pause; or tries this message now, which is decided anew. Raises: as `pause_recovery` does."""
        self._desk.require_open()
        await self._recovering.resume(message_id)

    async def cancel_recovery(self, message_id: str) -> None:
        """Tries this message no more: it becomes a dead letter. Raises: as `pause_recovery` does."""
        self._desk.require_open()
        await self._recovering.cancel(message_id)

    def facts(self, scope: str | None = None, owner: str | None = None) -> list[Fact]:
        """What decisions have remembered, as this node's log says it."""
        return self._remembering.facts(scope, owner)

    async def shared_facts(self, scope: str | None = None, owner: str | None = None) -> list[Fact]:
        """The same, as all nodes of the bus have it now. Raises: TransportAway."""
        return await self._remembering.shared(scope, owner)

    async def put_fact(self, scope: str, owner: str, key: str, value: str | float) -> None:
        """An operator's fact, recorded.

        Raises: ValueError, when it cannot be; AuditUnavailable; BusClosed; TransportAway.
        """
        self._desk.require_open()
        await self._remembering.put(scope, owner, key, value)

    async def remove_fact(self, scope: str, owner: str, key: str) -> None:
        """Raises: KeyError, when there is no such fact; AuditUnavailable; BusClosed; TransportAway."""
        self._desk.require_open()
        await self._remembering.remove(scope, owner, key)

    async def note_access(self, command: str, what: str, *, by: str = "operator") -> None:
        """Records that somebody was shown payloads."""
        self._desk.require_open()
        await self._desk.write(Entry("access", {"command": command[:200], "what": what[:500], "by": by[:200]}))

    async def checkpoint(self) -> str:
        """Signs a checkpoint of every record so far; returns the note. Raises: AuditUnavailable; BusClosed."""
        self._desk.require_open()
        return await self._desk.ledger.checkpoint()

    async def rotate_key(self) -> str:
        """Signs the log with a new key from now on, recorded under both; returns its vkey.

        Raises: AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        return await self._desk.ledger.rotate_key()

    async def witness(self, note: str) -> None:
        """Records the signed checkpoint of another log, in this one. The same again is no second record.

        Raises: ValueError, for what is no signed checkpoint, for this log's own, and for one that contradicts what was
        witnessed of that log before; AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        await self.witnessing.witness(note)

    def witnessed(self, origin: str) -> str | None:
        """The newest checkpoint of another log that this bus has witnessed; None when there is none."""
        return self.witnessing.witnessed(origin)

    async def erase(self, of: str, name: str, *, reason: str, by: str = "operator") -> Erasure:
        """Removes payloads, headers, salts and texts of a "message", a "conversation" or all of an "agent"; recorded.

        What has not ended, or is under a legal hold, is left, and the answer says so. When this returns no byte of the
        rest is left in the home.
        Raises: KeyError, when nothing is recorded of it; ValueError; AuditUnavailable, also while somebody reads older
        pages of the log for long: then the bytes go as soon as that ends; BusClosed.
        """
        self._desk.require_open()
        return await self._erasing.erase(of, name, reason=reason, by=by)

    def legal_holds(self) -> list[LegalHold]:
        """What must be kept."""
        return list(self._desk.holds)

    async def add_legal_hold(self, of: str, name: str, *, reason: str, by: str = "operator") -> LegalHold:
        """Keeps the content of a "message", a "conversation" or all of an "agent" from erasure and retention; recorded.

        Raises: KeyError, for a message that there is not; ValueError; AuditUnavailable; BusClosed.
        """
        self._desk.require_open()
        return await self._erasing.hold(of, name, reason=reason, by=by)

    async def remove_legal_hold(self, of: str, name: str, *, reason: str, by: str = "operator") -> None:
        """Ends a hold; recorded. Raises: KeyError, when there is none; ValueError; AuditUnavailable; BusClosed."""
        self._desk.require_open()
        await self._erasing.release(of, name, reason=reason, by=by)

    def stopped(self) -> list[Stopped]:
        """What `stop_traffic` has stopped."""
        return list(self._desk.stops)

    async def stop_traffic(self, of: str, name: str = "", *, reason: str, by: str = "operator") -> Stopped:
        """Stops an "agent", a "tenant" or "all", on every node, after a restart too, until `resume_traffic`; recorded.

        New messages from or to it are refused (gate_refused, by the rule stopped); no handler starts for what waits;
        handlers that run finish.
        Raises: ValueError; AuditUnavailable; TransportAway, when it is stopped here and the other nodes are told later;
        BusClosed.
        """
        self._desk.require_open()
        return await self._stopping.stop(of, name, reason=reason, by=by)

    async def resume_traffic(self, of: str, name: str = "", *, reason: str, by: str = "operator") -> None:
        """Ends a stop, on every node: what waits goes on, decided anew; recorded.

        Raises: KeyError, when it is not stopped; ValueError; AuditUnavailable; TransportAway, and it stays stopped;
        BusClosed.
        """
        self._desk.require_open()
        await self._stopping.resume(of, name, reason=reason, by=by)

    async def retention(self) -> Retention:
        """How long content is kept, and what is past its time."""
        self._desk.require_open()
        return await self._erasing.report()

    def status(self) -> Status:
        """The state of the bus: `accounting` sums up, and `security_state` names every weakening in force."""
        return self._standing.status()

    def status_constitution(self) -> str:
        """The digest of the active constitution."""
        return self._desk.admission.active.digest

    def security_state(self) -> list[str]:
        """Every weakening in force, sorted."""
        return self._standing.security_state()

    async def wait_idle(self, timeout: float | None = None) -> None:
        """Waits until nothing is queued, running or about to be retried. Raises: TimeoutError; BusClosed."""
        async with asyncio.timeout(timeout):
            busy = ("queued", "in_flight", "retrying")
            while self._desk.rising or any(parcel.state in busy for parcel in self._desk.live.values()):
                if self._desk.drained:
                    self._desk.require_open()
                self._desk.changed.clear()
                await self._desk.changed.wait()

    async def close(self, timeout: float | None = None) -> Drained:
        """Takes no more messages, drains for at most `timeout` seconds, keeps the rest in the home, and reports."""
        handling = handling_now.get()
        if handling is not None and not handling.over:
            self._closers.add(handling.parcel)
            self._desk.changed.set()
        if self._closing is None:
            self._desk.closed = True
            seconds = self._desk.settings.delivery.drain_seconds if timeout is None else timeout
            self._closing = asyncio.create_task(self._close(seconds))
        return await asyncio.shield(self._closing)

    async def under_one(self) -> bool:
        """At start: whether this bus is under what the nodes that it joins are under; alone, or the first, not yet."""
        return self._nodes is not None and await self._nodes.spread.take_first()

    # --- what agents call ------------------------------------------------------------------------------------------

    async def dispatch(self, sender: Party, to: str | None, capability: str | None, draft: Draft) -> Receipt:
        """One message. For `Agent.send`."""
        receipt, _ = await self._sending.dispatch(sender, to, capability, draft)
        return receipt

    async def ask(self, sender: Party, to: str | None, capability: str | None, draft: Draft, timeout: float) -> Message:
        """One message and its reply. For `Agent.request`."""
        return await self._asking.ask(sender, to, capability, draft, timeout)

    async def fan_out(self, sender: Party, topic: str | None, draft: Draft) -> list[Receipt]:
        """One message a subscriber, or for each of the tenant. For `Agent.publish` and `Agent.broadcast`."""
        return await self._asking.fan_out(sender, topic, draft)

    async def approve(self, approver: Party, message_id: str, comment: str | None) -> Deliberated:
        """An approval of what is held. For `Agent.approve`."""
        self._desk.require_open()
        return await self._deliberating.approve(approver, message_id, comment)

    async def reject(self, approver: Party, message_id: str, reason: str) -> Deliberated:
        """A rejection of what is held. For `Agent.reject`."""
        self._desk.require_open()
        return await self._deliberating.reject(approver, message_id, reason)

    # --- opening and closing ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up what was accepted and has not ended, to be decided anew; records that the bus is open."""
        if self._nodes is not None:
            await self._nodes.join()
        await self._desk.write(Entry("opened", {"security_state": self.security_state(), **_moment(self._desk.clock)}))
        after = -1
        states = ["queued", "retrying", "parked", "held", "handed_over"]
        while page := self._desk.ledger.waiting(states, after_seq=after):
            for stored in page:
                self._take_up(stored)
            after = page[-1].seq
        await self._erasing.finish()
        self._erasing.start()
        if self._nodes is not None:
            await self._nodes.start()
        self._desk.runs.forget()  # in the order of the log: what was noted of them is on its way to the disk before it

    def _take_up(self, stored: StoredMessage) -> None:
        parcel = self._rescue.parcel_of(stored)
        self._desk.live[parcel.envelope.id] = parcel
        if self._nodes is not None and self._nodes.takes_up(stored, parcel):
            return
        if (
            parcel.envelope.type in ("response", *REPLY_TYPES.values())
            and parcel.cause is not None
            and parcel.cause["sender"] == parcel.envelope.recipient
            and not stored.attempts
            and stored.state != "held"
        ):
            parcel.placed = False
            self._endings.end(parcel, "discarded", "reply_unexpected")  # whoever asked has gone with the process
            return
        post = self._desk.post(parcel.envelope.recipient)
        post.mailbox.occupy()
        self._endings.watch(parcel)
        if stored.state == "held":
            if self._deliberating.is_released(parcel):  # the last approval was in, and nothing was decided on it
                self._deliberating.release(parcel)
            return
        if stored.seq in self._desk.runs.interrupted() and not parcel.manual:
            self._rescue.interrupted(parcel)
        if parcel.manual:
            self._recovering.park(parcel, stored.code or "", stored.error or "")
        elif stored.state == "retrying" and stored.code is not None:
            wait_us = stored.due_us - self._desk.clock.now_us()
            self._recovering.later(parcel, max(0.0, wait_us / 1e6), stored.code, stored.error or "")
        else:
            self._mailroom.carry(post, parcel)

    async def unregister(self, party: Party) -> None:
        """Ends a registration; running handlers finish, what waits becomes dead letters."""
        self._desk.require_open()
        await self._registering.unregister(party)

    async def _close(self, seconds: float) -> Drained:
        desk, endings = self._desk, self._endings
        delivered, dead_lettered = endings.delivered, endings.dead_lettered
        for post in desk.posts.values():
            post.mailbox.close()
        with contextlib.suppress(TimeoutError):  # what is left by then is kept
            async with asyncio.timeout(seconds):
                while any(self._under_way(parcel) for parcel in desk.live.values()):
                    desk.changed.clear()
                    await desk.changed.wait()
        for parcel in desk.live.values():
            parcel.stop_timer()
        endings.stop()
        await self._deliberating.stop()
        await self._erasing.stop()
        await self._shadowing.close()
        await self.charter.close()
        await self._carriage.stop(WORKERS_SECONDS_MAX)
        if self._nodes is not None:
            await self._nodes.stop()
        drained = Drained(endings.delivered - delivered, len(desk.live), endings.dead_lettered - dead_lettered)
        fields = {"delivered": drained.delivered, "kept": drained.kept, "dead_lettered": drained.dead_lettered}
        entry = Entry("closed", {**fields, "security_state": self.security_state(), **_moment(desk.clock)})
        with contextlib.suppress(AuditUnavailable):  # the store says so itself; nothing that was accepted is lost by it
            await desk.write(entry)
        for parcel in desk.live.values():
            parcel.keep()
        desk.drained = True
        desk.changed.set()
        return drained

    def _under_way(self, parcel: Parcel) -> bool:
        """Whether closing waits for this message: not where its own handler waits for the closing."""
        return parcel.state in ("queued", "in_flight") and parcel not in self._closers


def _moment(clock: Clock) -> dict[str, Any]:
    return {"mono_us": int(clock.monotonic() * 1e6), "boot": clock.boot()}


def _waiting(parcel: Parcel) -> Waiting:
    envelope = parcel.envelope
    return Waiting(
        envelope.id,
        envelope.sender,
        envelope.recipient,
        envelope.type,
        parcel.state,
        envelope.priority,
        parcel.attempts,
        instant_of(parcel.since_us),
        instant_of(parcel.due_us) if parcel.state == "retrying" else None,
        parcel.hold_reasons,
    )


def _dead_letter(stored: StoredMessage) -> DeadLetter:
    envelope = stored.envelope
    return DeadLetter(
        envelope.id,
        envelope.sender,
        envelope.recipient,
        envelope.type,
        stored.code or "",
        stored.attempts,
        stored.error or "",
        instant_of(stored.since_us),
    )
