"""AgentBus: what a program holds. Registrations, lists, status, opening and closing; messages go down the `road`.

Not here: what fills the ports (`wiring.py`), how anything is checked (admission), written (ledger) or run (delivery).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import BaseModel

from enhanced_agent_bus.admission.chain import Admission
from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.admission.seal import SALT_BYTES, Randomness, commitment
from enhanced_agent_bus.admission.trial import Limits, Rollout, checked_percent
from enhanced_agent_bus.agent import Agent, Draft
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.runner import Handler, is_async
from enhanced_agent_bus.delivery.strategies import ByKey
from enhanced_agent_bus.delivery.watchdog import Watchdog
from enhanced_agent_bus.errors import AgentExists, AuditUnavailable, BusError
from enhanced_agent_bus.message import REPLY_TYPES, TYPES, Message, shown
from enhanced_agent_bus.outcome import (
    Activation,
    AgentInfo,
    BlockedLoop,
    Candidate,
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
    FactChange,
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
from enhanced_agent_bus.road.replies import Replies
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.road.sending import Sending
from enhanced_agent_bus.road.shadowing import Shadowing, Spare
from enhanced_agent_bus.road.stopping import Stopping
from enhanced_agent_bus.road.witnessing import Witnessing
from enhanced_agent_bus.routing.registry import Registry
from enhanced_agent_bus.settings import Recovery as RecoverySettings
from enhanced_agent_bus.settings import Settings
from enhanced_agent_bus.verdict import Party, Refusal

BLOCKED_KEPT: Final = 10
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
        self._engine = engine
        self._weakenings = list(weakenings)
        self._witnesses = witnesses
        self._home = home
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
        self._nodes = None
        if joined is not None:
            stations = (desk, self._endings, self._mailroom, self._rescue, self._sending, replies, self.witnessing)
            shared = (self.charter, self._stopping, constitutions)
            self._nodes = Nodes(joined, *stations, *shared, let_go=self._let_go)
        self._carriage = Carriage(desk, self._endings, self._mailroom, self._rescue, replies)
        self.watchdog = Watchdog(self._carriage.agent_of, note_blocked, self._was_blocked)
        self._blocked: deque[BlockedLoop] = deque(maxlen=BLOCKED_KEPT)
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
        delivery, recovery = self._desk.settings.delivery, self._desk.settings.recovery
        if when_full not in (None, "wait", "refuse"):
            raise ValueError(f'when_full is "wait" or "refuse", not {when_full!r}')
        if (concurrency is not None and concurrency < 1) or (timeout is not None and not timeout > 0):
            raise ValueError("concurrency must be at least 1 and timeout more than 0 seconds")
        row = AgentRow(
            agent_id,
            tenant,
            tuple(sorted(set(roles))),
            tuple(sorted(set(capabilities))),
            tuple(sorted(set(topics))),
            constitution,
            live=True,
        )
        _check_retry(retry)
        if handler is not None and not callable(handler):
            raise TypeError(f"the handler is {type(handler).__name__}: give a function of a message")
        for name, given in (("roles", roles), ("capabilities", capabilities), ("topics", topics)):
            if isinstance(given, str):
                raise TypeError(f"{name} is a list of names, not the word {shown(given)}")
        before = self._desk.registry.row(agent_id)
        party = self._desk.registry.claim(row)
        try:
            fields = {"event": "registered", **_agent_fields(row), "has_handler": handler is not None}
            if self._nodes is not None and (gone := await self._nodes.register(row, shared=shared)) is not None:
                fields["taken_over_from"] = gone
            await self._desk.write(Entry("agent", fields, agent=row))
        except BaseException as error:
            # Cancelled, it is on its way to the disk all the same: then it is remembered, and not live.
            self._desk.registry.release(agent_id, forget=row if isinstance(error, asyncio.CancelledError) else before)
            raise
        if self._desk.closed:
            self._desk.registry.release(agent_id, forget=row)
            self._desk.require_open()
        post = self._desk.post(agent_id)
        order = handler.key if isinstance(handler, ByKey) else None
        post.mailbox.order_by(None if order is None else lambda parcel: order(Message(parcel.envelope)))
        post.handler = handler = handler.handler if isinstance(handler, ByKey) else handler
        post.on_loop = handler is not None and is_async(handler)
        post.model = payload
        post.seconds = timeout if timeout is not None else delivery.timeout_seconds
        post.retry = retry if isinstance(retry, Retry) else usual_retry(recovery)
        post.retries = dict(retry) if isinstance(retry, Mapping) else {}
        post.when_full = when_full or delivery.when_full
        if handler is not None:
            for parcel in post.mailbox.items():
                parcel.state = "queued"
            for _ in range(concurrency or delivery.concurrency):
                self._carriage.start_worker(post)
            if self._nodes is not None:
                await self._nodes.serve(agent_id)
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
        registry = self._desk.registry
        trusted = {row.agent: row for row in self._outsiders.trusted()}
        found = [
            AgentInfo(*row[:-1], live=False, has_handler=False, waiting=0, nodes=nodes)
            for row, nodes in registry.abroad()
        ]
        for row in registry.rows():
            if row.live and not registry.nodes_of(row.id):
                post = self._desk.posts.get(row.id)
                found.append(
                    AgentInfo(
                        row.id,
                        row.tenant,
                        row.roles,
                        row.capabilities,
                        row.topics,
                        row.constitution,
                        live=self._desk.registry.live(row.id) is not None,
                        has_handler=post is not None and post.handler is not None,
                        waiting=post.mailbox.taken if post is not None else 0,
                        breaker="closed" if post is None else post.breaker.state(self._desk.clock.monotonic()),
                        trusted=trusted.pop(row.id, None) is not None,
                    )
                )
        found.extend(
            AgentInfo(
                *(row.agent, row.tenant, row.roles, row.capabilities, row.topics, "latest"),
                live=False,
                has_handler=False,
                waiting=0,
                trusted=True,
            )
            for row in trusted.values()
            if not registry.nodes_of(row.agent)
        )
        return sorted(found, key=lambda info: info.id)

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
        for name, given in (("roles", roles), ("capabilities", capabilities), ("topics", topics)):
            if isinstance(given, str):
                raise TypeError(f"{name} is a list of names, not the word {shown(given)}")
        lists = (tuple(sorted(set(names))) for names in (roles, capabilities, topics))
        await self._outsiders.trust(Trusted(agent_id, tenant, key.strip(), *lists))

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
        return _facts(self._desk.ledger.fact_rows(scope, owner))

    async def shared_facts(self, scope: str | None = None, owner: str | None = None) -> list[Fact]:
        """The same, as all nodes of the bus have it now. Raises: TransportAway."""
        shared = await self._desk.admission.fact_rows()
        rows = [row for row in self._desk.ledger.fact_rows(scope, owner) if (row.scope, row.owner) not in shared]
        for name, theirs in shared.items():
            if scope in (None, name[0]) and owner in (None, name[1]):
                rows += theirs
        return _facts(sorted(rows))

    async def put_fact(self, scope: str, owner: str, key: str, value: str | float) -> None:
        """An operator's fact, recorded.

        Raises: ValueError, when it cannot be; AuditUnavailable; BusClosed; TransportAway.
        """
        self._desk.require_open()
        _check_scope(scope)
        changed = await self._desk.admission.put_fact(scope, owner, key, value)
        if isinstance(changed, Refusal):
            raise ValueError(changed.message)  # noqa: TRY004 - the type is right, the value is not
        await self._write_fact("put", changed)

    async def remove_fact(self, scope: str, owner: str, key: str) -> None:
        """Raises: KeyError, when there is no such fact; AuditUnavailable; BusClosed; TransportAway."""
        self._desk.require_open()
        _check_scope(scope)
        await self._write_fact("removed", await self._desk.admission.remove_fact(scope, owner, key))

    async def note_access(self, command: str, what: str) -> None:
        """Records that somebody was shown payloads."""
        self._desk.require_open()
        await self._desk.write(Entry("access", {"command": command[:200], "what": what[:500]}))

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
        active = self._desk.admission.active
        return Status(
            accounting=self._desk.accounting(),
            security_state=self.security_state(),
            constitution=active.digest,
            revision=active.revision,
            bus=self._desk.ledger.bus,
            node=self._desk.ledger.node,
            records=self._desk.ledger.size(),
            agents=sum(row.live for row in self._desk.registry.rows()),
            engine=dict(self._engine.label),
            home=self._home,
            shadow=None if self._desk.admission.shadow is None else self._desk.admission.shadow.candidate.digest,
            candidate=_candidate(self._desk.admission.rollout),
            breakers=self._breakers(),
            recovery_paused=self._desk.recoveries.paused,
            blocked=tuple(self._blocked),
            witnesses=tuple(self._witnesses.infos()),
            stopped=tuple(self._desk.stops),
            nodes=tuple(self._nodes.roster.infos()) if self._nodes is not None else (),
        )

    def _was_blocked(self, blocked: BlockedLoop) -> None:
        """The loop goes on: what held it up stands in the status, and in the log where an agent's handler did it."""
        self._blocked.append(blocked)
        if blocked.agent and not self._desk.closed:
            fields = {"event": "blocked_loop", "agent": blocked.agent, "where": blocked.where}
            self._desk.ledger.put(Entry("agent", {**fields, "duration_us": int(blocked.seconds * 1e6)}))

    def _breakers(self) -> dict[str, str]:
        now = self._desk.clock.monotonic()
        shut = (post for post in self._desk.posts.values() if post.breaker.shut)
        return {post.agent_id: post.breaker.state(now) for post in shut}

    def status_constitution(self) -> str:
        """The digest of the active constitution."""
        return self._desk.admission.active.digest

    def _unwitnessed(self) -> Sequence[str]:
        """Another node that has this log's newest checkpoint on record is a witness outside its home."""
        found = self._witnesses.weakenings
        if self._nodes is not None and self._nodes.witnessed:
            return [name for name in found if name != "no_witness"]
        return found

    def security_state(self) -> list[str]:
        """Every weakening in force, sorted."""
        admission = self._desk.admission
        found = {
            *self._weakenings,
            *self._unwitnessed(),
            *self._desk.ledger.weakenings,
            *self._engine.weakenings,
            *(self._nodes.weakenings if self._nodes is not None else ()),
        }
        for active in (admission.active, *(() if admission.rollout is None else (admission.rollout.candidate,))):
            if active.loaded.source == "folder":
                found.add("constitution_folder")
            elif not active.loaded.signed:
                found.add("unsigned_constitution")
        return sorted(found)

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
        if self._desk.registry.live(party.id) is not party:
            return
        row = self._desk.registry.row(party.id)
        assert row is not None
        gone = row._replace(live=False)
        self._desk.registry.release(party.id, forget=gone)

        def then(error: BusError | None) -> None:
            if error is None:
                self._dismiss(party.id)
            elif self._desk.registry.live(party.id) is None:
                self._desk.registry.restore(row, party)

        await self._desk.write(Entry("agent", {"event": "unregistered", **_agent_fields(gone)}, agent=gone), then)
        if self._nodes is not None:
            await self._nodes.unregister(row)

    def _let_go(self, agent_id: str) -> None:
        """An agent has gone: who is handling a message for it finishes, and serves no later registration."""
        post = self._desk.post(agent_id)
        post.handler = None
        idle = post.workers - post.busy
        post.workers.clear()
        for task in idle:
            task.cancel()

    def _dismiss(self, agent_id: str) -> None:
        """An agent was unregistered: what waits for it are dead letters."""
        self._let_go(agent_id)
        for parcel in list(self._desk.live.values()):
            waits = parcel.state in ("queued", "parked", "retrying") and not parcel.ending
            if waits and parcel.envelope.recipient == agent_id:
                self._endings.end(parcel, "dead_lettered", "handler_absent")

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

    async def _write_fact(self, event: str, changes: list[FactChange]) -> None:
        change = changes[0]
        value = _fact_value(change.value) if change.value is not None else None
        fields: dict[str, Any] = {"event": event, "scope": change.scope, "owner": change.owner, "key": change.key}
        entry = Entry("fact", fields, facts=changes)
        if isinstance(value, list):  # strings stand apart from records
            salt, body = self._desk.randomness.take(SALT_BYTES), orjson.dumps({"value": value})
            fields["texts"] = commitment(salt, body)
            entry.texts = (salt, body)
        else:
            fields["value"] = value

        def then(error: BusError | None) -> None:
            if error is None:
                self._desk.admission.facts.durable(changes)

        await self._desk.write(entry, then)


def usual_retry(recovery: RecoverySettings) -> Retry:
    """What the settings say of an agent that says nothing itself."""
    if recovery.strategy == "manual":
        return Retry.manual()
    if recovery.strategy == "immediate":
        return Retry.immediate(recovery.attempts)
    kind = Retry.linear if recovery.strategy == "linear" else Retry.exponential
    return kind(recovery.attempts, recovery.base_seconds, recovery.cap_seconds)


def _check_retry(retry: object) -> None:
    """Raises: TypeError, ValueError."""
    by_type: Mapping[Any, object] = retry if isinstance(retry, Mapping) else {}
    if unknown := set(by_type) - TYPES:
        raise ValueError(f"retry names {shown(min(unknown, key=str))}, which is no type of message")
    if not all(isinstance(each, Retry) for each in by_type.values()) or not isinstance(retry, Retry | Mapping | None):
        raise TypeError("retry is a Retry, or one for each type of message: {'command': Retry.immediate()}")


def _agent_fields(row: AgentRow) -> dict[str, Any]:
    return {
        "agent": row.id,
        "tenant": row.tenant,
        "roles": list(row.roles),
        "capabilities": list(row.capabilities),
        "topics": list(row.topics),
        "constitution": row.constitution,
    }


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


def _candidate(out: Rollout | None) -> Candidate | None:
    if out is None:
        return None
    candidate = out.candidate
    return Candidate(
        candidate.digest, candidate.revision, out.percent, out.decisions, out.newest, out.refusals, out.errors
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


def _facts(rows: Sequence[FactChange]) -> list[Fact]:
    return [
        Fact(row.scope, row.owner, row.key, _fact_value(row.value)) for row in rows if row.key and row.value is not None
    ]


def _fact_value(raw: bytes | None) -> str | int | float | list[str]:
    value = orjson.loads(raw or b"{}")
    return sorted(value["s"]) if "s" in value else value.get("n", 0)


def _check_scope(scope: str) -> None:
    if scope not in ("agent", "conversation", "tenant"):
        raise ValueError(f"a fact belongs to an agent, a conversation or a tenant, not to {scope!r}")
