"""What the stations of the road share: the ports, who is live, what is under way, and how it all adds up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pydantic import BaseModel

from enhanced_agent_bus.admission.chain import Admission, Decided
from enhanced_agent_bus.admission.draft import Shape
from enhanced_agent_bus.admission.seal import Randomness
from enhanced_agent_bus.admission.stops import SETTING as STOPS
from enhanced_agent_bus.admission.stops import Stops
from enhanced_agent_bus.delivery.mailbox import Mailbox
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.runner import Handler
from enhanced_agent_bus.errors import AuditUnavailable, BusClosed, BusError
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, WAITING_STATES
from enhanced_agent_bus.ports import Clock, Entry, Ledger, Listener, Load, Runs, Said
from enhanced_agent_bus.recovery.breaker import Breaker
from enhanced_agent_bus.recovery.budget import Budget
from enhanced_agent_bus.recovery.orchestrator import Recoveries
from enhanced_agent_bus.recovery.retry import Retry
from enhanced_agent_bus.retention.holds import SETTING, Holds
from enhanced_agent_bus.routing.registry import Registry
from enhanced_agent_bus.routing.router import Router
from enhanced_agent_bus.settings import Settings
from enhanced_agent_bus.verdict import Party, Recorded, Refusal

RECORD_SECONDS_MAX: Final = 10.0  # how long a send waits for the disk
TAKE_OVER_SECONDS_MAX: Final = 5.0  # and for a new constitution that other nodes have, before it is refused
NOBODY: Final = Party("", "", (), (), "latest", {"id": "", "tenant": "", "roles": [], "capabilities": []})


@dataclass(slots=True)
class Handling:
    """The message that the current task is handling, or was: a task that a handler leaves behind is its consequence."""

    parcel: Parcel
    over: bool = False  # the handler has ended: what is sent from here on has a time of its own


handling_now: ContextVar[Handling | None] = ContextVar("eab_handling", default=None)


@dataclass(slots=True, eq=False)
class Post:
    """One recipient's mailbox, and the workers that serve it while it is live and has a handler."""

    agent_id: str
    mailbox: Mailbox[Parcel]
    breaker: Breaker
    handler: Handler | None = None
    on_loop: bool = True
    model: type[BaseModel] | None = None
    seconds: float = 30.0
    retry: Retry = field(default_factory=Retry.exponential)
    retries: Mapping[str, Retry] = field(default_factory=dict)  # by message type, where another one is wanted
    when_full: str = "wait"
    workers: set[asyncio.Task[None]] = field(default_factory=set)  # of this registration: who is not in it stops
    busy: set[asyncio.Task[None]] = field(default_factory=set)
    breaker_moved: asyncio.Event = field(default_factory=asyncio.Event)

    def retry_for(self, type_: str) -> Retry:
        return self.retries.get(type_, self.retry)


class Written:
    """The fate of one entry, for a task that waits for it."""

    __slots__ = ("_future", "_then", "abandoned", "error", "heard", "recorded", "seq")

    def __init__(self, then: Callable[[BusError | None], None] | None = None) -> None:
        self.seq = -1
        self.error: BusError | None = None
        self.recorded: Recorded | None = None  # the ledger's ticket, where the entry records an allow
        self.abandoned = False
        self.heard: Callable[[int, BusError | None], None] | None = None  # telemetry, where anybody listens
        self._then = then
        self._future: asyncio.Future[None] | None = None

    def settle(self, seq: int, error: BusError | None) -> None:
        if not self.abandoned:
            self.seq, self.error = seq, error
        if self.heard is not None:
            self.heard(seq, error)
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
        self.error = disk_silent()
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Desk:
    """The state of one bus that more than one station needs. Its owner is the bus."""

    def __init__(
        self,
        *,
        settings: Settings,
        ledger: Ledger,
        admission: Admission,
        registry: Registry,
        clock: Clock,
        randomness: Randomness,
        threads: Executor,
        chance: Callable[[], float],
        runs: Runs,
        listener: Listener | None,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.admission = admission
        self.registry = registry
        self.clock = clock
        self.randomness = randomness
        self.threads = threads
        self.chance = chance
        self.runs = runs
        self.listener = listener
        recovery = settings.recovery
        self.recoveries = Recoveries(Budget(recovery.budget_ratio, recovery.budget_per_second, clock.monotonic()))
        self.shape = Shape(
            payload_bytes=settings.limits.payload_bytes,
            depth=settings.limits.depth,
            expires_seconds=settings.limits.expires_seconds,
        )
        self.router = Router(registry, lambda agent_id: self.post(agent_id).mailbox.taken)
        self.posts: dict[str, Post] = {}
        self.live: dict[str, Parcel] = {}  # accepted or held, and not ended
        self.holds = Holds(ledger.setting(SETTING))
        self.stops = Stops(ledger.setting(STOPS))
        self.erasing: set[str] = set()  # whose content is going right now
        self.rising: set[str] = set()  # dead letters that are being replayed or discarded right now
        self.closed = False  # takes no more
        self.drained = False  # and does no more
        self.broken: BaseException | None = None
        self.stalled = False  # the last thing heard of the disk was a failure
        self.changed = asyncio.Event()
        self.taking_over: asyncio.Future[None] | None = None  # other nodes are under another constitution already
        self.cut_off: Callable[[], Refusal | None] = _never_cut_off  # why nothing may be decided: other nodes are away
        ledger.on_failure = self.ledger_failed

    async def taken_over(self) -> None:
        """Once this node is under the constitution of the others, or will not be for now."""
        if self.taking_over is not None:
            await asyncio.wait([self.taking_over], timeout=TAKE_OVER_SECONDS_MAX)

    def post(self, agent_id: str) -> Post:
        post = self.posts.get(agent_id)
        if post is None:
            recovery = self.settings.recovery
            breaker = Breaker(recovery.breaker_failures, recovery.breaker_seconds)
            post = self.posts[agent_id] = Post(agent_id, Mailbox(self.settings.limits.mailbox), breaker)
        return post

    def require_open(self) -> None:
        if self.closed:
            raise BusClosed("the bus is closed", remedy="open it again")
        if self.broken is not None:
            raise BusClosed(
                f"the bus has stopped: {type(self.broken).__name__}: {self.broken}",
                remedy="open it again; nothing was lost",
            )

    async def write(self, entry: Entry, then: Callable[[BusError | None], None] | None = None) -> int:
        """Puts an entry and waits. `then` hears what became of it, also when nobody waits any more."""
        written = Written(then)
        entry.done = written.settle
        self.ledger.put(entry)
        return await written.wait()

    def ledger_failed(self) -> None:
        """Nothing derived in memory can be trusted, and no handler starts before a record is on disk again."""
        self.stalled = True
        self.admission.facts.forget_all()

    def settled(self, decided: Decided, written: Written, seq: int, error: BusError | None) -> None:
        if error is None:
            self.stalled = False
            self.admission.facts.durable(decided.changes)
        written.settle(seq, error)

    def tell(self, parcel: Parcel, decided: Decided, written: Written, why: str, attempt: int, since_us: int) -> None:
        """Lets telemetry hear of a decision that is put next."""
        listener = self.listener
        if listener is not None:
            said = Said(
                decided.verdict,
                decided.code,
                why,
                attempt,
                decided.decision_id,
                decided.constitution,
                decided.revision,
                since_us,
            )
            trace = listener.decided(parcel.envelope, said, parcel.trace)
            parcel.trace = parcel.trace or trace
            written.heard = partial(listener.recorded, trace)

    def load(self) -> Load:
        """What is under way; asked by telemetry, from threads of its own."""
        queued = [parcel.since_us for parcel in list(self.live.values()) if parcel.state == "queued"]
        seconds = (self.clock.now_us() - min(queued)) / 1e6 if queued else 0.0
        return Load(self.accounting(), max(0.0, seconds))

    def held_by_law(self, envelope: Envelope) -> str | None:
        """The legal hold that covers a message, in words; None without."""
        return self.holds.find(envelope.id, envelope.conversation, envelope.sender, envelope.recipient)

    def accounting(self) -> dict[str, int]:
        counts = dict.fromkeys(WAITING_STATES, 0)
        for parcel in list(self.live.values()):  # as it is now, whichever thread asks
            counts[parcel.state] += 1
        ended = self.ledger.accounting()
        counts.update((state, ended[state]) for state in END_STATES)
        return {"accepted": sum(counts.values()), **counts}


def _never_cut_off() -> Refusal | None:
    """A bus of one node needs nobody."""
    return None


def disk_silent() -> AuditUnavailable:
    """For whoever has waited long enough."""
    return AuditUnavailable(
        f"the disk did not answer within {RECORD_SECONDS_MAX:g} s, so nothing was delivered",
        remedy="check the disk; sending again with the same id is safe",
    )
