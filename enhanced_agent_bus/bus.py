"""AgentBus: the road. A message is found a recipient, judged, recorded, carried, and rescued where that fails.

Each station does one verb, and each hands on a ticket that only it can make: routing an `Addressed`, admission an
`Admitted`, the ledger's word a `Recorded`; a handler starts on nothing else. What follows a durable record happens in
the record's own callback, not in the sender's task: a sender that is cancelled has either sent or not.

Not here: what fills the ports (`wiring.py`), how anything is checked (admission), written (ledger) or run (delivery).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import BaseModel

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.admission.chain import Admission, Decided
from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.admission.draft import Shape, Shaped
from enhanced_agent_bus.admission.facts import Added
from enhanced_agent_bus.admission.seal import SALT_BYTES, Randomness, commitment, seal
from enhanced_agent_bus.admission.sight import Case
from enhanced_agent_bus.agent import Agent, Draft
from enhanced_agent_bus.delivery.mailbox import Mailbox
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.runner import (
    ERROR_TEXT_CHARS_MAX,
    Alarm,
    Failed,
    Handler,
    Overtaken,
    Returned,
    is_async,
    misfits,
    run,
)
from enhanced_agent_bus.errors import (
    AgentExists,
    AuditUnavailable,
    BusClosed,
    BusError,
    ConstitutionRejected,
    NotDelivered,
    RequestTimeout,
)
from enhanced_agent_bus.message import MESSAGE_ID, REPLY_TYPES, TYPES, Envelope, Message, shown
from enhanced_agent_bus.outcome import (
    END_STATES,
    WAITING_STATES,
    Activation,
    AgentInfo,
    DeadLetter,
    Drained,
    Fact,
    Outcome,
    Receipt,
    Status,
    Waiting,
    instant_of,
)
from enhanced_agent_bus.ports import (
    AgentRow,
    Clock,
    Entry,
    FactChange,
    Ledger,
    Loaded,
    Move,
    Opening,
    PolicyEngine,
    StoredMessage,
)
from enhanced_agent_bus.recovery.retry import GiveUp, Retry, next_step
from enhanced_agent_bus.routing.registry import Registry
from enhanced_agent_bus.routing.router import Router
from enhanced_agent_bus.settings import Settings
from enhanced_agent_bus.verdict import Addressed, Admitted, Party, Reason, Recorded, Refusal

RECORD_SECONDS_MAX: Final = 10.0  # how long a send waits for the disk
TOLD_SECONDS: Final = 0.005  # from a commit on disk until the loop has heard of it
AGAIN_SECONDS: Final = 0.5  # until a message is decided again that could not be decided or recorded
FAN_OUT_AT_ONCE: Final = 256  # subscribers of one publish that are decided at the same time
TURN_MESSAGES: Final = 64  # handled in a row before other tasks get the loop
NOBODY: Final = Party("", "", (), (), "latest", {"id": "", "tenant": "", "roles": [], "capabilities": []})
KEEPS_NOTHING: Final = frozenset({"malformed", "too_large", "too_deep"})
UNDECIDED: Final = frozenset({"policy_timeout", "policy_unavailable"})  # nobody said no: asked again while it waits


@dataclass(slots=True)
class Handling:
    """The message that the current task is handling, or was: a task that a handler leaves behind is its consequence."""

    parcel: Parcel
    over: bool = False  # the handler has ended: what is sent from here on has a time of its own


_handling: ContextVar[Handling | None] = ContextVar("eab_handling", default=None)


@dataclass(slots=True, eq=False)
class Post:
    """One recipient's mailbox, and the workers that serve it while it is live and has a handler."""

    agent_id: str
    mailbox: Mailbox[Parcel]
    handler: Handler | None = None
    on_loop: bool = True
    model: type[BaseModel] | None = None
    seconds: float = 30.0
    retry: Retry = field(default_factory=Retry.exponential)
    when_full: str = "wait"
    workers: set[asyncio.Task[None]] = field(default_factory=set)  # of this registration: who is not in it stops
    busy: set[asyncio.Task[None]] = field(default_factory=set)


class Written:
    """The fate of one entry, for a task that waits for it."""

    __slots__ = ("_future", "_then", "abandoned", "error", "seq")

    def __init__(self, then: Callable[[BusError | None], None] | None = None) -> None:
        self.seq = -1
        self.error: BusError | None = None
        self.abandoned = False
        self._then = then
        self._future: asyncio.Future[None] | None = None

    def settle(self, seq: int, error: BusError | None) -> None:
        if not self.abandoned:
            self.seq, self.error = seq, error
        if self._then is not None:
            self._then(error)
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> int:
        """The seq. Raises: AuditUnavailable, when it could not be written or not within RECORD_SECONDS_MAX."""
        if self.seq < 0 and self.error is None:
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            timer = loop.call_later(RECORD_SECONDS_MAX, self._give_up)
            try:
                await self._future
            finally:
                timer.cancel()
        if self.error is not None:
            raise self.error
        return self.seq

    def _give_up(self) -> None:
        self.abandoned = True
        self.error = _disk_silent()
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


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
        weakenings: Sequence[str],
        home: str,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._engine = engine
        self._admission = admission
        self._constitutions = constitutions
        self._registry = registry
        self._clock = clock
        self._randomness = randomness
        self._threads = threads
        self._chance = chance
        self._weakenings = list(weakenings)
        self._home = home
        self._shape = Shape(
            payload_bytes=settings.limits.payload_bytes,
            depth=settings.limits.depth,
            expires_seconds=settings.limits.expires_seconds,
        )
        self._router = Router(registry, lambda agent_id: self._post(agent_id).mailbox.taken)
        self._posts: dict[str, Post] = {}
        self._live: dict[str, Parcel] = {}  # accepted or held, and not ended
        self._claims: dict[str, asyncio.Future[None]] = {}  # given ids that are being sent right now
        self._putting: dict[str, asyncio.Future[None] | None] = {}  # of them, those on their way to the disk
        self._rising: set[str] = set()  # dead letters that are being replayed or discarded right now
        self._ends = {state: ledger.accounting().get(state, 0) for state in END_STATES}
        self._room = asyncio.Semaphore(settings.limits.inflight)
        self._activating = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._expiry_us = 0
        self._closing: asyncio.Task[Drained] | None = None
        self._closed = False  # takes no more
        self._drained = False  # and does no more
        self._broken: BaseException | None = None
        self._stalled = False  # the last thing heard of the disk was a failure
        self._changed = asyncio.Event()
        self._delivered = 0
        self._dead_lettered = 0
        ledger.on_failure = self._ledger_failed

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
        retry: Retry | None = None,
        when_full: str | None = None,
        constitution: str = "latest",
    ) -> Agent:
        """Registers an agent, durably; a later process that opens the home takes it up again under the same names.

        `timeout` is seconds for one handler run, `concurrency` how many run at once.
        Raises: AgentExists; ValueError for a name that is none; AuditUnavailable; BusClosed.
        """
        self._require_open()
        delivery, recovery = self._settings.delivery, self._settings.recovery
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
        before = self._registry.row(agent_id)
        party = self._registry.claim(row)
        try:
            await self._write(
                Entry(
                    "agent",
                    {"event": "registered", **_agent_fields(row), "has_handler": handler is not None},
                    agent=row,
                )
            )
        except BaseException as error:
            # Cancelled, it is on its way to the disk all the same: then it is remembered, and not live.
            self._registry.release(agent_id, forget=row if isinstance(error, asyncio.CancelledError) else before)
            raise
        if self._closed:
            self._registry.release(agent_id, forget=row)
            self._require_open()
        post = self._post(agent_id)
        post.handler = handler
        post.on_loop = handler is not None and is_async(handler)
        post.model = payload
        post.seconds = timeout if timeout is not None else delivery.timeout_seconds
        post.retry = retry or Retry.exponential(recovery.attempts, recovery.base_seconds, recovery.cap_seconds)
        post.when_full = when_full or delivery.when_full
        if handler is not None:
            for parcel in post.mailbox.items():
                parcel.state = "queued"
            for _ in range(concurrency or delivery.concurrency):
                self._start_worker(post)
        return Agent(self, party)

    async def agent(self, agent_id: str) -> Agent:
        """The handle of a registered agent; one that the home remembers is taken up without a handler.

        Raises: KeyError, when nobody is registered under this id.
        """
        party = self._registry.live(agent_id)
        if party is not None:
            return Agent(self, party)
        row = self._registry.row(agent_id)
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
        """Everyone who is registered, in this process or in the home."""
        found: list[AgentInfo] = []
        for row in self._registry.rows():
            if row.live:
                post = self._posts.get(row.id)
                found.append(
                    AgentInfo(
                        row.id,
                        row.tenant,
                        row.roles,
                        row.capabilities,
                        row.topics,
                        row.constitution,
                        live=self._registry.live(row.id) is not None,
                        has_handler=post is not None and post.handler is not None,
                        waiting=post.mailbox.taken if post is not None else 0,
                    )
                )
        return found

    async def activate(self, path: str | Path) -> Activation:
        """Puts a constitution in force: after this no handler starts under the one before.

        Raises: ConstitutionRejected, and the old one goes on; AuditUnavailable; BusClosed.
        """
        self._require_open()
        return await self.take(Path(path), given=False)

    async def take(self, path: Path, *, given: bool) -> Activation:
        """Activates; `given` when it is the settings that name the path (at the next start only a change counts)."""
        async with self._activating:
            return await self._activate(path, given=given)

    def queue(self) -> list[Waiting]:
        """What has not ended, by when it came."""
        return [_waiting(parcel) for parcel in sorted(self._live.values(), key=lambda parcel: parcel.row)]

    def held(self) -> list[Waiting]:
        """What waits for approval."""
        return [waiting for waiting in self.queue() if waiting.state == "held"]

    def dead_letters(self) -> list[DeadLetter]:
        """What could not be delivered and waits for a replay or a discard."""
        letters: list[DeadLetter] = []
        after = -1
        while page := self._ledger.waiting(["dead_lettered"], after_seq=after):
            letters.extend(_dead_letter(stored) for stored in page)
            after = page[-1].seq
        return letters

    async def outcome(self, message_id: str, timeout: float | None = None) -> Outcome:
        """How a message ended, after a restart too; waits for the end.

        Raises: TimeoutError; KeyError, when no message of this id was accepted; BusClosed, when it ends later.
        """
        async with asyncio.timeout(timeout):
            while (parcel := self._live.get(message_id)) is None:
                stored = self._ledger.find(message_id)
                if stored is None:
                    raise KeyError(message_id)
                if stored.state in END_STATES:
                    return self._stored_outcome(stored)
                self._require_open()
                await asyncio.sleep(TOLD_SECONDS)
            return await parcel.ended(None)

    async def replay(self, message_id: str) -> Receipt:
        """Decides a dead letter anew; allowed, it is queued again; refused, it stays where it is.

        Raises: KeyError, when there is no dead letter of this id; AuditUnavailable; BusClosed.
        """
        self._require_open()
        return await self._replay(self._dead(message_id))

    async def discard(self, message_id: str, *, reason: str) -> None:
        """Ends a dead letter, or a message that waits. Raises: KeyError, when there is none of this id; BusClosed."""
        self._require_open()
        parcel = self._live.get(message_id)
        if parcel is None:
            parcel = self._parcel_of(self._dead(message_id))
            parcel.state = "dead_lettered"
            self._rising.add(message_id)
        elif parcel.state == "in_flight" or parcel.ending:
            raise KeyError(f"{message_id} is being handled")
        await self._end(parcel, "discarded", "discarded", text=str(reason)).wait()

    def facts(self, scope: str | None = None, owner: str | None = None) -> list[Fact]:
        """What decisions have remembered."""
        return [
            Fact(row.scope, row.owner, row.key, _fact_value(row.value))
            for row in self._ledger.fact_rows(scope, owner)
            if row.key and row.value is not None
        ]

    async def put_fact(self, scope: str, owner: str, key: str, value: str | float) -> None:
        """An operator's fact, recorded. Raises: ValueError, when it cannot be; AuditUnavailable; BusClosed."""
        self._require_open()
        _check_scope(scope)
        changed = self._admission.facts.put(scope, owner, key, value)
        if isinstance(changed, Refusal):
            raise ValueError(changed.message)  # noqa: TRY004 - the type is right, the value is not
        await self._write_fact("put", changed)

    async def remove_fact(self, scope: str, owner: str, key: str) -> None:
        """Raises: KeyError, when there is no such fact; AuditUnavailable; BusClosed."""
        self._require_open()
        _check_scope(scope)
        await self._write_fact("removed", self._admission.facts.remove(scope, owner, key))

    async def note_access(self, command: str, what: str) -> None:
        """Records that somebody was shown payloads."""
        self._require_open()
        await self._write(Entry("access", {"command": command[:200], "what": what[:500]}))

    def status(self) -> Status:
        """The state of the bus: `accounting` sums up, and `security_state` names every weakening in force."""
        active = self._admission.active
        return Status(
            accounting=self._accounting(),
            security_state=self.security_state(),
            constitution=active.digest,
            revision=active.revision,
            bus=self._ledger.bus,
            node=self._ledger.node,
            records=self._ledger.size(),
            agents=sum(row.live for row in self._registry.rows()),
            engine=dict(self._engine.label),
            home=self._home,
        )

    def status_constitution(self) -> str:
        """The digest of the active constitution."""
        return self._admission.active.digest

    def security_state(self) -> list[str]:
        """Every weakening in force, sorted."""
        loaded = self._admission.active.loaded
        found = {*self._weakenings, *self._ledger.weakenings}
        found.add("constitution_folder" if loaded.source == "folder" else "unsigned_constitution")
        return sorted(found)

    async def wait_idle(self, timeout: float | None = None) -> None:
        """Waits until nothing is queued, running or about to be retried. Raises: TimeoutError; BusClosed."""
        async with asyncio.timeout(timeout):
            while any(parcel.state in ("queued", "in_flight", "retrying") for parcel in self._live.values()):
                if self._drained:
                    self._require_open()
                self._changed.clear()
                await self._changed.wait()

    async def close(self, timeout: float | None = None) -> Drained:
        """Takes no more messages, drains for at most `timeout` seconds, keeps the rest in the home, and reports."""
        if self._closing is None:
            self._closed = True
            seconds = self._settings.delivery.drain_seconds if timeout is None else timeout
            handling = _handling.get()
            self._closing = asyncio.create_task(self._close(seconds, handling.parcel if handling else None))
        return await asyncio.shield(self._closing)

    # --- the road: find, judge, record, carry ----------------------------------------------------------------------

    async def dispatch(
        self,
        sender: Party,
        to: str | None,
        capability: str | None,
        draft: Draft,
        *,
        topic: str | None = None,
        replier: asyncio.Future[Message] | None = None,
    ) -> tuple[Receipt, Parcel | None]:
        """One message down the road. The parcel is None when it was refused, or was sent before."""
        self._require_open()
        if (to is None) == (capability is None):
            raise TypeError("give exactly one of `to` and `capability`")
        given = draft.id
        if given is None:
            return await self._send(
                self._randomness.uuid7(self._clock.now_us()), sender, to, capability, topic, draft, replier
            )
        message_id = _own_id(sender.id, given)
        if message_id is None:
            refusal = Refusal("malformed", f"the id {shown(given)} is not one", "use [A-Za-z0-9._:/-], at most 128")
            return await self._turn_away(
                self._randomness.uuid7(self._clock.now_us()), sender, NOBODY, topic, draft, refusal
            )
        while (claim := self._claims.get(message_id)) is not None:
            try:
                async with asyncio.timeout(RECORD_SECONDS_MAX if self._putting.get(message_id) is claim else None):
                    await asyncio.shield(claim)
            except TimeoutError:
                raise _disk_silent() from None
            self._require_open()
        claim = self._claims[message_id] = asyncio.get_running_loop().create_future()
        try:
            stored = self._stored(message_id)
            if stored is not None:
                return await self._again(stored, message_id, sender, to, topic, draft)
            return await self._send(message_id, sender, to, capability, topic, draft, replier)
        finally:
            if message_id in self._putting:  # its sender leaves before it is on disk: a twin waits for that
                self._claims[message_id] = self._putting[message_id] = asyncio.get_running_loop().create_future()
            else:
                del self._claims[message_id]
            claim.set_result(None)

    async def _send(
        self,
        message_id: str,
        sender: Party,
        to: str | None,
        capability: str | None,
        topic: str | None,
        draft: Draft,
        replier: asyncio.Future[Message] | None,
    ) -> tuple[Receipt, Parcel | None]:
        shaped = self._shape.check(draft)
        if isinstance(shaped, Refusal):
            return await self._turn_away(message_id, sender, NOBODY, topic, draft, shaped)
        found = await self._find(sender, to, capability, shaped)
        if isinstance(found, tuple):
            return await self._turn_away(message_id, sender, found[1] or NOBODY, topic, draft, found[0], shaped)
        post = self._post(found.id)
        accepted = False
        try:
            misfit = misfits(post.model, shaped.body)
            if misfit:
                if sender.tenant != found.tenant:
                    misfit = "its tenant can say why"  # nobody has decided yet that this sender may know more
                refusal = Refusal("malformed", f"{found.id} does not take this payload: {misfit}", "send what it takes")
                return await self._turn_away(message_id, sender, found, topic, draft, refusal, shaped)
            async with self._room:
                case, parcel = self._addressed(message_id, sender, found, topic, shaped, replier)
                decided = await self._admission.judge(case)
                if decided.verdict != "refuse":
                    accepted = True
                written = self._record(parcel, decided, post)
                seq = await written.wait()
        finally:
            if not accepted:
                post.mailbox.release()
        return self._receipt(
            case.addressed.envelope, decided, seq, parcel if accepted else None
        ), parcel if accepted else None

    async def _find(
        self, sender: Party, to: str | None, capability: str | None, shaped: Shaped
    ) -> Party | tuple[Refusal, Party | None]:
        """The recipient, with a place in its mailbox reserved."""
        deadline = self._clock.monotonic() + shaped.expires_seconds
        while True:
            if self._registry.live(sender.id) is not sender:
                return Refusal("sender_unregistered", f"{sender.id} is not registered", "register it again"), None
            found = self._router.find(to) if capability is None else self._router.capable(sender, capability)
            if isinstance(found, Refusal):
                return found, None
            post = self._post(found.id)
            if post.mailbox.reserve():
                return found
            full = Refusal(
                "queue_full",
                f"the mailbox of {found.id} has no place",
                "send again later, or more slowly",
            )
            handling = _handling.get()
            if post.when_full == "refuse" or post.handler is None or (handling is not None and not handling.over):
                return full, found
            if not await post.mailbox.wait_for_place(deadline - self._clock.monotonic()):
                self._require_open()
                return Refusal("expired", f"no place in the mailbox of {found.id} in time", "send again later"), found
            if self._registry.party(found.id) is found and not self._closed:
                return found
            post.mailbox.release()
            self._require_open()

    def _addressed(
        self,
        message_id: str,
        sender: Party,
        recipient: Party,
        topic: str | None,
        shaped: Shaped,
        replier: asyncio.Future[Message] | None,
    ) -> tuple[Case, Parcel]:
        now_us = self._clock.now_us()
        expires_us = now_us + int(shaped.expires_seconds * 1e6)
        handling = _handling.get()
        cause, cause_id, hops, conversation = None, shaped.cause, 0, shaped.conversation
        if handling is not None or cause_id is not None:
            parent = self._parent(handling, cause_id, sender)
            if handling is not None and not handling.over:
                expires_us = min(expires_us, handling.parcel.expires_us)
            if parent is not None:
                cause_id, hops = parent.id, parent.hops + 1
                conversation = conversation or parent.conversation
                cause = {"id": parent.id, "type": parent.type, "sender": parent.sender, "tenant": parent.tenant}
        fresh = conversation is None
        envelope = seal(
            id=message_id,
            type=shaped.type,
            priority=shaped.priority,
            sender=sender,
            recipient=recipient,
            topic=topic,
            conversation=conversation or message_id,
            cause=cause_id,
            created_us=now_us,
            expires_us=expires_us,
            hops=hops,
            headers=shaped.headers,
            headers_bytes=shaped.headers_bytes,
            body=shaped.body,
            salt=self._randomness.take(SALT_BYTES),
        )
        if fresh:
            self._admission.facts.owner("conversation", message_id, fresh="/" not in message_id)
        refusal = None
        if hops > self._settings.limits.hops:
            refusal = Refusal(
                "hop_limit", f"{hops} hops, {self._settings.limits.hops} are allowed", "break the loop of agents"
            )
        case = Case(Addressed(envelope, sender, recipient), cause=cause, refusal=refusal)
        return case, Parcel(envelope, expires_us, now_us, cause=cause, replier=replier)

    def _parent(self, handling: Handling | None, cause_id: str | None, sender: Party) -> Envelope | None:
        """The message that this one follows from: the one being handled, or one that its sender got."""
        if handling is not None and cause_id in (None, handling.parcel.envelope.id):
            return handling.parcel.envelope
        if cause_id is None:
            return None
        parcel = self._live.get(cause_id)
        stored = None if parcel is not None else self._ledger.find(cause_id)
        envelope = parcel.envelope if parcel is not None else stored.envelope if stored is not None else None
        return envelope if envelope is not None and envelope.recipient == sender.id else None

    def _record(
        self, parcel: Parcel, decided: Decided, post: Post | None, then: Callable[[BusError | None], None] | None = None
    ) -> Written:
        """Puts a first decision with all that goes with it; what is accepted goes on as soon as that is durable."""
        envelope = parcel.envelope
        written = Written(then)
        entry = Entry("decision", decided.fields, message_id=envelope.id, facts=decided.changes, texts=decided.texts)
        if decided.verdict == "refuse":
            entry.done = lambda seq, error: self._settle_refusal(decided, written, seq, error)
            if self._settings.audit.store_payloads and decided.code not in KEEPS_NOTHING and envelope.digest:
                entry.keep = envelope
        else:
            parcel.decision_id = decided.decision_id
            parcel.added = list(decided.added)
            parcel.state = self._first_state(parcel, decided, post)
            parcel.stored = "queued" if parcel.state == "in_flight" else parcel.state
            entry.opening = Opening(
                envelope,
                parcel.stored,
                decided.decision_id,
                orjson.dumps(parcel.added),
                orjson.dumps([_hold_fields(hold) for hold in decided.hold]),
                parcel.hold_expires_us,
            )
            if envelope.id in self._claims:
                self._putting[envelope.id] = None
            entry.done = lambda seq, error: self._accepted(parcel, decided, post, written, seq, error)
        self._ledger.put(entry)
        return written

    def _first_state(self, parcel: Parcel, decided: Decided, post: Post | None) -> str:
        if decided.verdict == "hold":
            parcel.hold_reasons = decided.reasons
            parcel.hold_expires_us = parcel.since_us + int(min(hold.expires_seconds for hold in decided.hold) * 1e6)
            return "held"
        if post is None:
            return "in_flight"  # a reply: whoever asked takes it
        return "queued" if post.handler is not None else "parked"

    def _ledger_failed(self) -> None:
        """Nothing derived in memory can be trusted, and no handler starts before a record is on disk again."""
        self._stalled = True
        self._admission.facts.forget_all()

    def _settle_refusal(self, decided: Decided, written: Written, seq: int, error: BusError | None) -> None:
        if error is None:
            self._stalled = False
            self._admission.facts.durable(decided.changes)
        written.settle(seq, error)

    def _accepted(
        self, parcel: Parcel, decided: Decided, post: Post | None, written: Written, seq: int, error: BusError | None
    ) -> None:
        """The first decision is durable: the message is accepted or held, whatever became of its sender's task."""
        orphan = self._putting.pop(parcel.envelope.id, None)
        if orphan is not None:
            del self._claims[parcel.envelope.id]
            orphan.set_result(None)
        if error is not None:
            if post is not None:
                post.mailbox.release()
            written.settle(seq, error)
            return
        self._stalled = False
        self._admission.facts.durable(decided.changes)
        parcel.row = seq
        self._live[parcel.envelope.id] = parcel
        if written.abandoned:  # its sender was told that it was not: then it must not be
            self._end(parcel, "discarded", "audit_unavailable")
            return
        self._watch_expiry(parcel)
        if decided.admitted is not None:
            parcel.counted = True
            parcel.recorded = Recorded(decided.admitted, seq)
            if post is not None:
                self._carry(post, parcel)
        written.settle(seq, None)

    def _carry(self, post: Post, parcel: Parcel) -> None:
        """Into the mailbox; `recorded` is the ticket, or a worker gets a new one first."""
        if self._registry.party(post.agent_id) is None:
            self._end(parcel, "dead_lettered", "handler_absent")
            return
        parcel.state = "queued" if post.handler is not None else "parked"
        post.mailbox.put(parcel, parcel.envelope.priority)
        if parcel.state == "parked":
            self._changed.set()

    async def _turn_away(
        self,
        message_id: str,
        sender: Party,
        recipient: Party,
        topic: str | None,
        draft: Draft,
        refusal: Refusal,
        shaped: Shaped | None = None,
    ) -> tuple[Receipt, None]:
        """Records a refusal that was found before the gate."""
        if shaped is not None:
            case, parcel = self._addressed(message_id, sender, recipient, _safe_topic(topic), shaped, None)
            case.refusal = refusal
        else:
            now_us = self._clock.now_us()
            kind = draft.type if isinstance(draft.type, str) and draft.type in TYPES else ""
            envelope = Envelope(
                message_id,
                kind,
                1,
                sender.id,
                sender.tenant,
                recipient.id,
                recipient.tenant,
                _safe_topic(topic),
                message_id,
                None,
                now_us,
                now_us,
                0,
                {},
                b"",
                b"",
                "",
                None,
                "",
            )
            parcel = Parcel(envelope, now_us, now_us)
            case = Case(Addressed(envelope, sender, recipient), refusal=refusal)
        decided = await self._admission.judge(case)
        seq = await self._record(parcel, decided, None).wait()
        return self._receipt(case.addressed.envelope, decided, seq, None), None

    def _receipt(self, envelope: Envelope, decided: Decided, seq: int, parcel: Parcel | None) -> Receipt:
        state = {"allow": "accepted", "hold": "held", "refuse": "refused"}[decided.verdict]
        ended = parcel.ended if parcel is not None else _refused_outcome(decided.code)
        return Receipt(
            envelope.id,
            envelope.recipient,
            envelope.digest or None,
            state,  # type: ignore[arg-type]
            decided.code,
            decided.reasons,
            decided.decision_id,
            decided.constitution,
            decided.revision,
            seq,
            ended,
        )

    # --- the same id again -----------------------------------------------------------------------------------------

    def _stored(self, message_id: str) -> StoredMessage | None:
        return self._ledger.find(message_id)

    async def _again(
        self, stored: StoredMessage, message_id: str, sender: Party, to: str | None, topic: str | None, draft: Draft
    ) -> tuple[Receipt, Parcel | None]:
        """The first receipt for the same content; refused(replayed) for any other."""
        shaped = self._shape.check(draft)
        if isinstance(shaped, Refusal):
            return await self._turn_away(message_id, sender, NOBODY, topic, draft, shaped)
        before = stored.envelope
        same = (
            before.salt != b""
            and (to is None or before.recipient == to)
            and before.topic == topic
            and before.type == shaped.type
            and before.priority == shaped.priority
            and shaped.conversation in (None, before.conversation)
            and before.commitment == commitment(before.salt, shaped.body)
            and before.headers_commitment == (commitment(before.salt, shaped.headers_bytes) if shaped.headers else None)
        )
        if not same:
            refusal = Refusal(
                "replayed", f"{message_id} was sent before with other content", "give the new message an id of its own"
            )
            party = self._registry.party(before.recipient) or NOBODY
            return await self._turn_away(message_id, sender, party, topic, draft, refusal, shaped)
        return self._first_receipt(stored), self._live.get(message_id)

    def _first_receipt(self, stored: StoredMessage) -> Receipt:
        envelope = stored.envelope
        try:
            first = orjson.loads(self._ledger.record(stored.seq))
        except KeyError:  # a ledger in memory forgets records sooner than messages
            first = {
                "reasons": [],
                "verdict": "allow",
                "decision_id": stored.decision_id,
                "constitution": "",
                "revision": 0,
            }
        reasons = tuple(Reason(item["rule"], item["code"]) for item in first["reasons"])
        return Receipt(
            envelope.id,
            envelope.recipient,
            envelope.digest,
            "held" if first["verdict"] == "hold" else "accepted",
            None,
            reasons,
            first["decision_id"],
            first["constitution"],
            first["revision"],
            stored.seq,
            lambda timeout: self.outcome(envelope.id, timeout),
        )

    # --- requests and topics ---------------------------------------------------------------------------------------

    async def ask(self, sender: Party, to: str | None, capability: str | None, draft: Draft, timeout: float) -> Message:
        """A request: the message, then its reply. Raises: Refused, NotDelivered, RequestTimeout."""
        loop = asyncio.get_running_loop()
        replier: asyncio.Future[Message] = loop.create_future()
        deadline = loop.time() + timeout
        if draft.expires_in is None:
            draft = Draft(
                draft.payload,
                draft.type,
                draft.priority,
                draft.id,
                draft.conversation,
                draft.cause,
                draft.headers,
                timeout,
            )
        try:
            async with asyncio.timeout_at(deadline):
                receipt, parcel = await self.dispatch(sender, to, capability, draft, replier=replier)
                receipt.raise_for_refusal()
                if parcel is not None and parcel.replier is not replier:  # sent before: its end has the reply
                    return _reply_of(receipt.message_id, await parcel.ended(None))
                if parcel is None:
                    return _reply_of(receipt.message_id, await receipt.outcome())
                return await replier
        except TimeoutError:
            message_id = getattr(draft, "id", None) or "this request"
            raise RequestTimeout(
                f"no reply to {message_id} within {timeout:g} s",
                remedy="the message goes on and its reply would be refused; see `eab queue list`",
            ) from None
        finally:
            if not replier.done():
                replier.cancel()
            elif not replier.cancelled():
                replier.exception()  # it may have come in the same instant as the deadline: it is seen

    async def fan_out(self, sender: Party, topic: str, draft: Draft) -> list[Receipt]:
        """A message, a decision and a receipt for each subscriber; without one, a refused decision and no receipt."""
        self._require_open()
        found = self._router.subscribers(sender, topic)
        if isinstance(found, Refusal):
            shaped = self._shape.check(draft)
            message_id = self._randomness.uuid7(self._clock.now_us())
            if isinstance(shaped, Refusal):
                await self._turn_away(message_id, sender, NOBODY, topic, draft, shaped)
            else:
                await self._turn_away(message_id, sender, NOBODY, topic, draft, found, shaped)
            return []
        if isinstance(draft.id, str):
            own = _own_id(sender.id, draft.id)
            drafts = [_with_id(draft, f"{own}/{party.id}" if own else draft.id) for party in found]
        else:
            drafts = [draft] * len(found)
        receipts: list[Receipt] = []
        pairs = list(zip(found, drafts, strict=True))
        for start in range(0, len(pairs), FAN_OUT_AT_ONCE):
            part = pairs[start : start + FAN_OUT_AT_ONCE]
            work = (self.dispatch(sender, to.id, None, each, topic=topic) for to, each in part)
            for sent in await asyncio.gather(*work, return_exceptions=True):  # none is left running behind an error
                if isinstance(sent, BaseException):
                    raise sent
                receipts.append(sent[0])
        return receipts

    # --- delivery --------------------------------------------------------------------------------------------------

    def _post(self, agent_id: str) -> Post:
        post = self._posts.get(agent_id)
        if post is None:
            post = self._posts[agent_id] = Post(agent_id, Mailbox(self._settings.limits.mailbox))
        return post

    def _start_worker(self, post: Post) -> None:
        post.workers.add(self._own_task(self._work(post), f"worker of {post.agent_id}"))

    def _own_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that the bus owns: it is cancelled on close, and its unexpected end stops the bus loudly."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = self._broken or error
            task.get_loop().call_exception_handler(
                {"message": f"the bus stops taking messages: {task.get_name()} ended", "exception": error, "task": task}
            )

    async def _work(self, post: Post) -> None:
        alarm = Alarm(asyncio.get_running_loop())
        task = asyncio.current_task()
        assert task is not None
        turns = 0
        try:
            while task in post.workers and not task.cancelling():
                parcel = await post.mailbox.take()
                post.busy.add(task)
                await self._serve(post, parcel, alarm)
                post.busy.discard(task)
                turns += 1
                if turns % TURN_MESSAGES == 0:
                    await asyncio.sleep(0)
        finally:
            alarm.close()
            post.busy.discard(task)
            post.workers.discard(task)

    async def _serve(self, post: Post, parcel: Parcel, alarm: Alarm) -> None:
        """One message from the mailbox: on a ticket of the constitution that is active now, or not at all."""
        parcel.state = "in_flight"  # in a worker's hands: nobody else ends it
        while not parcel.ending:
            if self._clock.now_us() >= parcel.expires_us:
                self._end(parcel, "expired", "expired")
                return
            recorded = parcel.recorded
            if recorded is not None and self._holds(recorded) and not self._stalled:
                await self._deliver(post, parcel, recorded, alarm)  # its first step has no await before the handler
                return
            parcel.recorded = None
            if self._registry.party(post.agent_id) is None:
                self._carry(post, parcel)
                return
            if not await self._readmit(parcel):
                return

    def _holds(self, recorded: Recorded) -> bool:
        """Whether what was decided on is still so: the constitution, and who the recipient is."""
        admitted = recorded.admitted
        if admitted.constitution != self._admission.active.digest:
            return False
        party = self._registry.party(admitted.recipient.id)
        return party is None or party is admitted.recipient or party.document == admitted.recipient.document

    async def _deliver(self, post: Post, parcel: Parcel, recorded: Recorded, alarm: Alarm) -> None:
        handler = post.handler
        if handler is None:  # the agent has gone between two steps
            self._carry(post, parcel)
            return
        parcel.recorded = None  # a ticket is good for one run
        parcel.attempts += 1
        message = Message(parcel.envelope, attempt=parcel.attempts, constitution=recorded.admitted.constitution)
        seconds = _seconds(recorded.admitted, post.seconds)
        started = self._clock.monotonic()
        handling = Handling(parcel)
        token = _handling.set(handling)
        try:
            faultpoints.hit("dispatch.before_handler")
            result = await run(
                handler,
                message,
                on_loop=post.on_loop,
                model=post.model,
                seconds=seconds,
                alarm=alarm,
                threads=self._threads,
                still=lambda: self._admission.active.digest == message.constitution,
            )
            faultpoints.hit("handler.after_return")
        except OSError as error:  # only a fault point raises here
            result = Failed("handler_failed", type(error).__name__, str(error))
        finally:
            handling.over = True
            _handling.reset(token)
        duration_us = int((self._clock.monotonic() - started) * 1e6)
        if isinstance(result, Overtaken):
            parcel.attempts -= 1  # it never ran: its allow is one of a constitution that has gone meanwhile
            self._carry(post, parcel)
        elif isinstance(result, Failed):
            self._rescue(post, parcel, result, duration_us)
        elif result.reply is None:
            self._end(parcel, "delivered", None, duration_us=duration_us)
        else:
            await self._answer(post, parcel, result, duration_us)

    async def _answer(self, post: Post, parcel: Parcel, result: Returned, duration_us: int) -> None:
        """A reply is a message of its own, on the same road; what was asked has ended once that is decided."""
        body = self._shape.body(result.reply)
        if isinstance(body, Refusal):
            failed = Failed("handler_failed", "TypeError", f"the reply cannot be sent: {body.message}")
            self._rescue(post, parcel, failed, duration_us)
            return
        asked = parcel.envelope
        sender = self._registry.party(asked.recipient)
        recipient = self._registry.party(asked.sender)
        shaped = Shaped(
            body,
            {},
            b"{}",
            REPLY_TYPES.get(asked.type, "response"),
            asked.priority,
            asked.conversation,
            None,
            self._settings.limits.expires_seconds,
        )
        token = _handling.set(Handling(parcel))
        try:
            case, reply = self._addressed(
                self._randomness.uuid7(self._clock.now_us()), sender or NOBODY, recipient or NOBODY, None, shaped, None
            )
        finally:
            _handling.reset(token)
        case.refusal = _cannot_reply(parcel, sender, recipient)  # a reply runs no handler: no hop limit
        reply.placed = False
        reply.replier = parcel.replier
        decided = await self._admission.judge(case)
        allowed = decided.verdict == "allow"
        self._record(
            reply,
            decided,
            None,
            lambda error: self._answered(parcel, reply, duration_us, allowed=allowed and error is None),
        )

    def _answered(self, parcel: Parcel, reply: Parcel, duration_us: int, *, allowed: bool) -> None:
        """The decision on a reply is on disk, or could not be written."""
        if not allowed:
            self._end(parcel, "delivered", "reply_refused", duration_us=duration_us)
            return
        message = Message(reply.envelope, constitution=reply.recorded.admitted.constitution if reply.recorded else "")
        parcel.reply, parcel.reply_id = message, reply.envelope.id
        reply.attempts = 1
        if parcel.replier is not None and not parcel.replier.done():
            parcel.replier.set_result(message)
        self._end(reply, "delivered", None)
        self._end(parcel, "delivered", None, duration_us=duration_us)

    # --- recovery --------------------------------------------------------------------------------------------------

    def _rescue(self, post: Post, parcel: Parcel, failed: Failed, duration_us: int) -> None:
        """After a failed attempt: wait and be decided anew, or among the dead letters."""
        step = next_step(
            post.retry,
            parcel.attempts - parcel.attempts_before,
            self._chance(),
            never=failed.code if failed.never_again else None,
        )
        if isinstance(step, GiveUp):
            code = failed.code if failed.never_again else step.code
            self._end(parcel, "dead_lettered", code, error=failed.error, text=failed.text, duration_us=duration_us)
            return
        parcel.why = "retry"
        due_us = self._clock.now_us() + int(step.seconds * 1e6)
        self._outcome_entry(
            parcel, "failed", failed.code, "retrying", due_us, failed.error, failed.text, duration_us, None
        )
        self._later(parcel, step.seconds)

    def _later(self, parcel: Parcel, seconds: float) -> None:
        """Back into the mailbox after a while, to be decided anew."""
        parcel.state = "retrying"
        parcel.recorded = None
        parcel.due_us = self._clock.now_us() + int(seconds * 1e6)
        parcel.timer = asyncio.get_running_loop().call_later(seconds, self._due, parcel)
        self._watch_expiry(parcel)
        self._changed.set()

    def _due(self, parcel: Parcel) -> None:
        parcel.timer = None
        if not parcel.ending and not self._closed:
            self._carry(self._post(parcel.envelope.recipient), parcel)

    async def _readmit(self, parcel: Parcel) -> bool:
        """Decides a waiting message anew; True when it may go on, on a new ticket that is on disk."""
        case = self._case_again(parcel)
        try:
            if parcel.why == "retry":
                faultpoints.hit("retry.before_decide")
            decided = await self._admission.judge(case)
            written = self._record_again(parcel, decided)
            seq = await written.wait()
        except (AuditUnavailable, OSError):  # nothing could be recorded: it waits, and is asked again
            if not self._closed:
                self._later(parcel, AGAIN_SECONDS)
            return False
        parcel.decision_id = decided.decision_id
        if decided.admitted is not None:
            parcel.recorded = Recorded(decided.admitted, seq)
            parcel.why = "activation"
            return True
        if decided.verdict == "hold":
            parcel.state = "held"
            self._watch_expiry(parcel)
            self._changed.set()
            return False
        if decided.code in UNDECIDED:
            self._later(parcel, AGAIN_SECONDS)
            return False
        if not parcel.attempts:
            parcel.added = []
        self._end(parcel, "refused", decided.code, facts=self._admission.take_back(case) if not parcel.attempts else ())
        return False

    def _case_again(self, parcel: Parcel) -> Case:
        envelope = parcel.envelope
        sender, recipient = self._registry.party(envelope.sender), self._registry.party(envelope.recipient)
        refusal = None
        if sender is None:
            refusal = Refusal("sender_unregistered", f"{envelope.sender} is no longer registered", "register it again")
        elif recipient is None:
            refusal = Refusal("recipient_unknown", f"{envelope.recipient} is no longer registered", "register it again")
        return Case(
            Addressed(envelope, sender or NOBODY, recipient or NOBODY),
            why=parcel.why,
            attempt=parcel.attempts + 1,
            previous=parcel.decision_id,
            added=parcel.added,
            cause=parcel.cause,
            first=False,
            counted=parcel.counted,
            refusal=refusal,
        )

    def _record_again(
        self,
        parcel: Parcel,
        decided: Decided,
        *,
        replay: bool = False,
        then: Callable[[Written, int, BusError | None], None] | None = None,
    ) -> Written:
        """Puts a later decision; where it changes the message's state, in the same transaction."""
        written = Written()
        before = (parcel.stored, parcel.added, parcel.counted, parcel.hold_reasons, parcel.hold_expires_us)
        entry = Entry(
            "decision", decided.fields, message_id=parcel.envelope.id, facts=decided.changes, texts=decided.texts
        )
        if decided.verdict != "refuse":
            parcel.added = list(decided.added)
            state = "held" if decided.verdict == "hold" else "queued"
            if decided.verdict == "hold":
                parcel.hold_reasons = decided.reasons
                seconds = min(hold.expires_seconds for hold in decided.hold)
                parcel.hold_expires_us = self._clock.now_us() + int(seconds * 1e6)
            else:
                parcel.counted = True
            entry.move = self._move(
                parcel, state, 0, None, None, decided.decision_id, "dead_lettered" if replay else None
            )

        def done(seq: int, error: BusError | None) -> None:
            if error is not None:
                parcel.stored, parcel.added, parcel.counted, parcel.hold_reasons, parcel.hold_expires_us = before
            self._settle_refusal(decided, written, seq, error)
            if then is not None:
                then(written, seq, error)

        entry.done = done
        self._ledger.put(entry)
        return written

    async def _replay(self, stored: StoredMessage) -> Receipt:
        parcel = self._parcel_of(stored)
        envelope = parcel.envelope
        parcel.why = "replay"
        parcel.attempts_before = parcel.attempts
        now_us = self._clock.now_us()
        parcel.expires_us = now_us + (envelope.expires_us - envelope.created_us)
        post = self._post(envelope.recipient)
        case = self._case_again(parcel)
        if not stored.has_content:
            case.refusal = Refusal(
                "malformed", f"the payload of {envelope.id} is no longer kept", "discard it, or send it anew"
            )
        reserved = case.refusal is None and post.mailbox.reserve()
        if case.refusal is None and not reserved:
            case.refusal = Refusal("queue_full", f"{envelope.recipient} has no room", "replay it later")
        self._rising.add(envelope.id)
        written: Written | None = None
        try:
            decided = await self._admission.judge(case)
            written = self._record_again(
                parcel,
                decided,
                replay=True,
                then=lambda written, seq, error: self._replayed(
                    parcel, decided, post if reserved else None, written, seq, error
                ),
            )
            seq = await written.wait()
        finally:
            if written is None:
                self._rising.discard(envelope.id)
                if reserved:
                    post.mailbox.release()
        return self._receipt(envelope, decided, seq, parcel if decided.verdict != "refuse" else None)

    def _replayed(
        self,
        parcel: Parcel,
        decided: Decided,
        post: Post | None,
        written: Written,
        seq: int,
        error: BusError | None,
    ) -> None:
        """The decision on a replay is durable, or could not be written, whatever became of who asked for it.

        `post` has a place for it; without one it was refused.
        """
        self._rising.discard(parcel.envelope.id)
        if post is None or error is not None or decided.verdict == "refuse":
            if post is not None:
                post.mailbox.release()
            return
        parcel.decision_id = decided.decision_id
        self._ends["dead_lettered"] -= 1
        self._live[parcel.envelope.id] = parcel
        if written.abandoned:  # who asked was told that it was not: then it must not be
            self._end(parcel, "dead_lettered", "audit_unavailable")
            return
        self._watch_expiry(parcel)
        if decided.admitted is not None:
            parcel.recorded = Recorded(decided.admitted, seq)
            parcel.why = "activation"
            self._carry(post, parcel)
        else:
            parcel.state = "held"

    def _dead(self, message_id: str) -> StoredMessage:
        stored = self._ledger.find(message_id)
        busy = message_id in self._live or message_id in self._rising
        if stored is None or stored.state != "dead_lettered" or busy:
            state = self._live[message_id].state if message_id in self._live else stored.state if stored else "unknown"
            raise KeyError(f"no dead letter {message_id} ({state})")
        return stored

    def _parcel_of(self, stored: StoredMessage) -> Parcel:
        holds = orjson.loads(stored.holds or b"[]")
        added: list[Added] = [tuple(item) for item in orjson.loads(stored.added or b"[]")]
        parent = self._ledger.find(stored.envelope.cause) if stored.envelope.cause else None
        cause = None
        if parent is not None and parent.envelope.recipient == stored.envelope.sender:
            before = parent.envelope
            cause = {"id": before.id, "type": before.type, "sender": before.sender, "tenant": before.tenant}
        return Parcel(
            stored.envelope,
            stored.envelope.expires_us,
            stored.since_us,
            state=stored.state,
            stored=stored.state,
            why="restart",
            row=stored.seq,
            attempts=stored.attempts,
            decision_id=stored.decision_id,
            added=added,
            counted=stored.state != "held",
            cause=cause,
            hold_reasons=tuple(Reason(hold["rule"], "hold") for hold in holds),
            hold_expires_us=stored.hold_expires_us,
            due_us=stored.due_us,
        )

    # --- the end of a message --------------------------------------------------------------------------------------

    def _end(
        self,
        parcel: Parcel,
        state: str,
        code: str | None,
        *,
        error: str | None = None,
        text: str = "",
        duration_us: int = 0,
        facts: Sequence[FactChange] = (),
    ) -> Written:
        """Records how a message ended; who waits for it is told once that is durable."""
        parcel.stop_timer()
        parcel.recorded = None
        post = self._posts.get(parcel.envelope.recipient)
        if post is not None and parcel.state in ("queued", "parked"):
            post.mailbox.remove(parcel)
        outcome = Outcome(state, parcel.attempts, code, parcel.reply)  # type: ignore[arg-type]
        parcel.ending = True
        return self._outcome_entry(parcel, state, code, state, 0, error, text, duration_us, outcome, facts)

    def _outcome_entry(
        self,
        parcel: Parcel,
        state: str,
        code: str | None,
        next_state: str,
        due_us: int,
        error: str | None,
        text: str,
        duration_us: int,
        outcome: Outcome | None,
        facts: Sequence[FactChange] = (),
    ) -> Written:
        envelope = parcel.envelope
        fields: dict[str, Any] = {
            "message_id": envelope.id,
            "decision_id": parcel.decision_id,
            "state": state,
            "code": code,
            "attempt": parcel.attempts,
            "duration_us": duration_us,
            "error": {"type": error} if error is not None else None,
        }
        texts = None
        if text:
            kept = text[:ERROR_TEXT_CHARS_MAX].encode("utf-8", "backslashreplace").decode()
            salt, body = self._randomness.take(SALT_BYTES), orjson.dumps({"error": kept})
            fields["texts"] = commitment(salt, body)
            texts = (salt, body)
        written = Written()
        ended = outcome is not None
        move = self._move(parcel, next_state, due_us, code, error, parcel.decision_id, None)

        def done(seq: int, failure: BusError | None) -> None:
            if failure is None:
                self._stalled = False
                self._admission.facts.durable(facts)
            if ended and failure is None:
                self._ended(parcel, state, outcome)
            written.settle(seq, failure)

        self._ledger.put(
            Entry(
                "outcome", fields, message_id=envelope.id, move=move, texts=texts, facts=facts, certain=True, done=done
            )
        )
        return written

    def _ended(self, parcel: Parcel, state: str, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        self._rising.discard(parcel.envelope.id)
        if self._live.pop(parcel.envelope.id, None) is None:
            self._ends["dead_lettered"] -= 1  # it was a dead letter
        elif parcel.placed:
            self._post(parcel.envelope.recipient).mailbox.release()
        self._ends[state] += 1
        self._delivered += state == "delivered"
        self._dead_lettered += state == "dead_lettered"
        if parcel.replier is not None and not parcel.replier.done() and parcel.placed:
            code = outcome.code or ("no_reply" if state == "delivered" else state)
            parcel.replier.set_exception(
                NotDelivered(parcel.envelope.id, outcome, code=code, remedy=_NO_REPLY.get(code, ""))
            )
        parcel.settle(outcome)
        self._changed.set()

    def _move(
        self,
        parcel: Parcel,
        state: str,
        due_us: int,
        code: str | None,
        error: str | None,
        decision_id: str,
        was: str | None,
    ) -> Move:
        forget = not self._settings.audit.store_payloads and state in END_STATES and state != "dead_lettered"
        before, parcel.stored = was or parcel.stored, state
        return Move(
            parcel.row,
            before,
            state,
            parcel.attempts,
            due_us,
            self._clock.now_us(),
            code,
            error,
            decision_id,
            orjson.dumps(parcel.added) if parcel.added else b"[]",
            parcel.expires_us,
            parcel.reply_id,
            forget,
        )

    # --- expiry ----------------------------------------------------------------------------------------------------

    def _watch_expiry(self, parcel: Parcel) -> None:
        """One timer for all that wait: set to the earliest end of any."""
        end_us = min(parcel.expires_us, parcel.hold_expires_us or parcel.expires_us)
        if self._expiry_timer is not None and end_us >= self._expiry_us:
            return
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        self._expiry_us = end_us
        seconds = max(0.0, (end_us - self._clock.now_us()) / 1e6)
        self._expiry_timer = asyncio.get_running_loop().call_later(min(seconds, 86_400.0), self._sweep)

    def _sweep(self) -> None:
        self._expiry_timer = None
        if self._closed:
            return
        now_us = self._clock.now_us()
        earliest: Parcel | None = None
        earliest_us = math.inf
        for parcel in list(self._live.values()):
            if parcel.state == "in_flight" or parcel.ending:
                continue
            if now_us >= parcel.expires_us:
                self._end(parcel, "expired", "expired")
            elif parcel.state == "held" and now_us >= parcel.hold_expires_us:
                self._end(parcel, "refused", "approval_expired")
            else:
                end_us = min(parcel.expires_us, parcel.hold_expires_us if parcel.state == "held" else parcel.expires_us)
                if end_us < earliest_us:
                    earliest, earliest_us = parcel, end_us
        if earliest is not None:
            self._watch_expiry(earliest)

    # --- constitution ----------------------------------------------------------------------------------------------

    async def _activate(self, path: Path, *, given: bool) -> Activation:
        before = self._admission.current
        try:
            loaded = await self._constitutions.prepare(path)
        except ConstitutionRejected as error:
            details = [{key: str(value)[:150] for key, value in item.items()} for item in error.details[:10]]
            await self._write(
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
        self._admission.activate(await self._constitutions.load(digest, source))

    async def note_ignored(self, digest: str, revision: int) -> None:
        """At start: an older bundle was given than the active one."""
        fields = {"event": "ignored", "digest": digest, "revision": revision, "reason": "rollback", "details": []}
        await self._write(Entry("policy", fields))

    async def _adopt(self, loaded: Loaded, event: str, noted: dict[str, str]) -> None:
        """Records that a constitution takes over, then lets it decide."""
        before = self._admission.current
        fields = {"event": event, "digest": loaded.digest, "revision": loaded.revision, "reason": None, "details": []}
        if event != "unchanged":
            _fault("policy.before_swap")
        active = orjson.dumps({"digest": loaded.digest, "revision": loaded.revision, "source": loaded.source}).decode()

        def then(error: BusError | None) -> None:
            if error is None and event != "unchanged":
                self._admission.activate(loaded)  # what the log says is active decides, whoever still waits here

        await self._write(Entry("policy", fields, settings={"constitution": active, **noted}), then)
        if event == "unchanged":
            return
        _fault("policy.after_swap")
        if before is not None and before.digest != loaded.digest:
            await self._engine.drop(before.digest)

    # --- opening and closing ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up what was accepted and has not ended, to be decided anew; records that the bus is open."""
        await self._write(Entry("opened", {"security_state": self.security_state(), **_moment(self._clock)}))
        after = -1
        while page := self._ledger.waiting(["queued", "retrying", "parked", "held"], after_seq=after):
            for stored in page:
                self._take_up(stored)
            after = page[-1].seq

    def _take_up(self, stored: StoredMessage) -> None:
        parcel = self._parcel_of(stored)
        self._live[parcel.envelope.id] = parcel
        if (
            parcel.envelope.type in ("response", *REPLY_TYPES.values())
            and parcel.cause is not None
            and parcel.cause["sender"] == parcel.envelope.recipient
            and not stored.attempts
        ):
            parcel.placed = False
            self._end(parcel, "discarded", "reply_unexpected")  # whoever asked has gone with the process
            return
        post = self._post(parcel.envelope.recipient)
        post.mailbox.occupy()
        self._watch_expiry(parcel)
        if stored.state == "held":
            return
        wait_us = stored.due_us - self._clock.now_us() if stored.state == "retrying" else 0
        if wait_us > 0:
            self._later(parcel, wait_us / 1e6)
        else:
            self._carry(post, parcel)

    async def unregister(self, party: Party) -> None:
        """Ends a registration; running handlers finish, what waits becomes dead letters."""
        self._require_open()
        if self._registry.live(party.id) is not party:
            return
        row = self._registry.row(party.id)
        assert row is not None
        gone = row._replace(live=False)
        self._registry.release(party.id, forget=gone)

        def then(error: BusError | None) -> None:
            if error is None:
                self._dismiss(party.id)
            elif self._registry.live(party.id) is None:
                self._registry.restore(row, party)

        await self._write(Entry("agent", {"event": "unregistered", **_agent_fields(gone)}, agent=gone), then)

    def _dismiss(self, agent_id: str) -> None:
        """An agent has gone: who is handling a message for it finishes, and serves no later registration."""
        post = self._post(agent_id)
        post.handler = None
        idle = post.workers - post.busy
        post.workers.clear()
        for task in idle:
            task.cancel()
        for parcel in list(self._live.values()):
            waits = parcel.state in ("queued", "parked", "retrying") and not parcel.ending
            if waits and parcel.envelope.recipient == agent_id:
                self._end(parcel, "dead_lettered", "handler_absent")

    async def _close(self, seconds: float, own: Parcel | None) -> Drained:
        delivered, dead_lettered = self._delivered, self._dead_lettered
        for post in self._posts.values():
            post.mailbox.close()
        try:
            async with asyncio.timeout(seconds):
                while any(
                    parcel.state in ("queued", "in_flight") and parcel is not own for parcel in self._live.values()
                ):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass  # what is left is kept
        for parcel in self._live.values():
            parcel.stop_timer()
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        drained = Drained(self._delivered - delivered, len(self._live), self._dead_lettered - dead_lettered)
        try:
            fields = {"delivered": drained.delivered, "kept": drained.kept, "dead_lettered": drained.dead_lettered}
            await self._write(
                Entry("closed", {**fields, "security_state": self.security_state(), **_moment(self._clock)})
            )
        except AuditUnavailable:
            pass  # the store says so itself when it is closed; nothing that was accepted is lost by it
        for parcel in self._live.values():
            parcel.keep()
        self._drained = True
        self._changed.set()
        return drained

    # --- small things ----------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise BusClosed("the bus is closed", remedy="open it again")
        if self._broken is not None:
            raise BusClosed(
                f"the bus has stopped: {type(self._broken).__name__}: {self._broken}",
                remedy="open it again; nothing was lost",
            )

    async def _write(self, entry: Entry, then: Callable[[BusError | None], None] | None = None) -> int:
        """Puts an entry and waits. `then` hears what became of it, also when nobody waits any more."""
        written = Written(then)
        entry.done = written.settle
        self._ledger.put(entry)
        return await written.wait()

    async def _write_fact(self, event: str, changes: list[FactChange]) -> None:
        change = changes[0]
        value = _fact_value(change.value) if change.value is not None else None
        fields: dict[str, Any] = {"event": event, "scope": change.scope, "owner": change.owner, "key": change.key}
        entry = Entry("fact", fields, facts=changes)
        if isinstance(value, list):  # strings stand apart from records
            salt, body = self._randomness.take(SALT_BYTES), orjson.dumps({"value": value})
            fields["texts"] = commitment(salt, body)
            entry.texts = (salt, body)
        else:
            fields["value"] = value

        def then(error: BusError | None) -> None:
            if error is None:
                self._admission.facts.durable(changes)

        await self._write(entry, then)

    def _accounting(self) -> dict[str, int]:
        counts = dict.fromkeys(WAITING_STATES, 0)
        for parcel in self._live.values():
            counts[parcel.state] += 1
        counts.update(self._ends)
        return {"accepted": sum(counts.values()), **counts}

    def _stored_outcome(self, stored: StoredMessage) -> Outcome:
        reply = self._ledger.find(stored.reply_id) if stored.reply_id else None
        message = Message(reply.envelope) if reply is not None and reply.has_content else None
        return Outcome(stored.state, stored.attempts, stored.code, message)  # type: ignore[arg-type]


_NO_REPLY: Final = {
    "no_reply": "the handler returned None: return a dict to answer requests",
    "reply_refused": "the constitution refused the reply: see `eab audit search code:policy_denied`",
}


def _disk_silent() -> AuditUnavailable:
    return AuditUnavailable(
        f"the disk did not answer within {RECORD_SECONDS_MAX:g} s, so nothing was delivered",
        remedy="check the disk; sending again with the same id is safe",
    )


def _fault(name: str) -> None:
    try:
        faultpoints.hit(name)
    except OSError as error:
        raise AuditUnavailable(f"{error}", remedy="activate it again") from error


def _cannot_reply(parcel: Parcel, sender: Party | None, recipient: Party | None) -> Refusal | None:
    if sender is None:
        return Refusal(
            "sender_unregistered", f"{parcel.envelope.recipient} is no longer registered", "register it again"
        )
    if recipient is None:
        return Refusal("recipient_unknown", f"{parcel.envelope.sender} is no longer registered", "register it again")
    if parcel.replier is not None and parcel.replier.done():
        return Refusal(
            "reply_unexpected", f"nobody waits for a reply to {parcel.envelope.id} any more", "answer sooner"
        )
    return None


def _own_id(sender: str, given: object) -> str | None:
    """The id behind its sender's name, so that nobody can take another's; None when it is not an id."""
    if not isinstance(given, str) or not MESSAGE_ID.fullmatch(given.removeprefix(f"{sender}/")):
        return None
    return given if given.startswith(f"{sender}/") else f"{sender}/{given}"


def _with_id(draft: Draft, message_id: object) -> Draft:
    return Draft(
        draft.payload,
        draft.type,
        draft.priority,
        message_id,
        draft.conversation,
        draft.cause,
        draft.headers,
        draft.expires_in,
    )


def _safe_topic(topic: object) -> str | None:
    return topic if isinstance(topic, str) and MESSAGE_ID.fullmatch(topic) else None


def _reply_of(message_id: str, outcome: Outcome) -> Message:
    if outcome.reply is None:
        code = outcome.code or ("no_reply" if outcome.state == "delivered" else outcome.state)
        raise NotDelivered(message_id, outcome, code=code, remedy=_NO_REPLY.get(code, ""))
    return outcome.reply


def _refused_outcome(code: str | None) -> Callable[[float | None], Coroutine[Any, Any, Outcome]]:
    async def outcome(_seconds: float | None) -> Outcome:
        return Outcome("refused", 0, code)

    return outcome


def _seconds(admitted: Admitted, seconds: float) -> float:
    """The handler's time, capped where the policy says so."""
    for item in admitted.obligations:
        if item["type"] == "handler_timeout":
            seconds = min(seconds, float(item["seconds"]))
    return seconds


def _hold_fields(hold: Any) -> dict[str, Any]:
    return {
        "rule": hold.rule,
        "approvers": hold.approvers,
        "roles": list(hold.roles),
        "expires_in": hold.expires_seconds,
    }


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


def _fact_value(raw: bytes | None) -> str | int | float | list[str]:
    value = orjson.loads(raw or b"{}")
    return sorted(value["s"]) if "s" in value else value.get("n", 0)


def _check_scope(scope: str) -> None:
    if scope not in ("agent", "conversation", "tenant"):
        raise ValueError(f"a fact belongs to an agent, a conversation or a tenant, not to {scope!r}")
