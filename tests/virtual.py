"""A bus whose time, disk and policy engine are made up (`virtual_loop.py`, `virtual_ledger.py`), and fail on command.

The ports keep their promises, in time that the seed chooses: `VirtualEngine` always answers, within its timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

import orjson

from enhanced_agent_bus import AgentBus, ConstitutionRejected, EngineMissing, Message, Pass, Refusal
from enhanced_agent_bus.admission.chain import Admission
from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.admission.facts import FactBook
from enhanced_agent_bus.admission.seal import Randomness
from enhanced_agent_bus.engines.cache import DecisionCache
from enhanced_agent_bus.ledger.checkpoint import Signer
from enhanced_agent_bus.ledger.memory import MemoryLedger
from enhanced_agent_bus.ledger.runs import NoRuns
from enhanced_agent_bus.ports import Checked, Loaded, PolicyEngine, Verified
from enhanced_agent_bus.road.nodes import Joined
from enhanced_agent_bus.routing.registry import Registry
from enhanced_agent_bus.settings import Settings
from enhanced_agent_bus.verdict import Answer
from enhanced_agent_bus.wiring import NoWitness
from tests.virtual_ledger import Listener, VirtualLedger
from tests.virtual_loop import START_US, VirtualLoop, Weather, while_seconds


class VirtualClock:
    """The loop's time."""

    weakenings: tuple[str, ...] = ()

    def __init__(self, loop: VirtualLoop, ahead_seconds: float = 0.0) -> None:
        self.monotonic = loop.time
        self._start_us = START_US + int(ahead_seconds * 1e6)

    def now_us(self) -> int:
        return self._start_us + int(self.monotonic() * 1e6)

    def policy_time(self) -> datetime:
        return datetime.fromtimestamp(self.now_us() // 1_000_000, UTC)

    def boot(self) -> str:
        return "virtual"


class VirtualRandomness(Randomness):
    """Drawn from the seed; not told of forks, since thousands are made."""

    def __init__(self, dice: Random) -> None:
        self._source = dice.randbytes
        self._empty()


class Inline(Executor):
    """No threads: a plain function runs at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **named))
        except BaseException as error:  # noqa: BLE001 - as a thread's
            future.set_exception(error)
        return future


# --- the engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Constitution:
    """One that an engine can load: `decide` is the pure function that it is."""

    loaded: Loaded
    decide: Callable[[Mapping[str, Any]], Mapping[str, Any]]


#: Answers that are none; some come with what looks like an allow.
_ALLOW: Final = b'{"allow":true}'
NO_ANSWERS: Final = (
    Answer("policy_unavailable", detail="the worker crashed"),
    Answer("policy_unavailable", _ALLOW),
    Answer("policy_error", _ALLOW),
    Answer("policy_timeout", _ALLOW),
    Answer("policy_revision_mismatch", _ALLOW),
    Answer("policy_undefined"),
    Answer(None, b"null"),
    Answer(None, b"{}"),
    Answer(None, b""),
    Answer(None, b'{"allow":1}'),
    Answer(None, b'{"allow":"true"}'),
    Answer(None, b'{"allow":true,"more":1}'),
    Answer(None, b'{"allow":false,"allow":true}'),
)


class VirtualEngine:
    """Fills `ports.PolicyEngine`: a pure function's answers after a while, or none. `heard` gets each usable one."""

    label: Mapping[str, str] = {"name": "embedded", "opa": "virtual"}
    weakenings: Sequence[str] = ()

    def __init__(self, dice: Random, weather: Weather, known: Mapping[str, Constitution]) -> None:
        """`known` is by name, as paths give it, and by digest."""
        self._dice = dice
        self._weather = weather
        self._known = known
        self._ready: set[str] = set()
        self.asked = 0  # right now
        self.heard: Callable[[str, Mapping[str, Any], bool], None] = lambda *_: None

    async def load(self, path: Path) -> Loaded:
        await asyncio.sleep(while_seconds(self._dice, self._weather.slow, 2))
        found = self._known.get(path.name)
        if found is None:
            raise ConstitutionRejected(f"{path} is no constitution", reason="invalid")
        self._ready.add(found.loaded.digest)
        return found.loaded

    async def decide(self, digest: str, tenant: str, document: bytes, timeout_seconds: float) -> Answer:  # noqa: ARG002 - the port's
        self.asked += 1
        try:
            seconds = while_seconds(self._dice, self._weather.slow, 0.5)
            if seconds:
                await asyncio.sleep(min(seconds, timeout_seconds))
            if seconds >= timeout_seconds:
                return Answer("policy_timeout")
        finally:
            self.asked -= 1
        if digest not in self._ready:
            return Answer("policy_unavailable", detail="it is not loaded")
        if self._dice.random() < self._weather.engine:
            return self._dice.choice(NO_ANSWERS)
        question = orjson.loads(document)
        answer = self._known[digest].decide(question)
        self.heard(digest, question, answer["allow"] is True)
        return Answer(None, orjson.dumps(answer), eval_us=1)

    async def drop(self, digest: str) -> None:
        self._ready.discard(digest)

    async def close(self) -> None:
        self._ready.clear()

    async def check(self, path: Path) -> Checked:
        raise NotImplementedError

    async def hash(self, path: Path) -> str:
        raise NotImplementedError

    async def pack(self, path: Path, out: Path) -> str:
        raise NotImplementedError

    async def verify(self, path: Path, keys: Sequence[str]) -> Verified:
        raise NotImplementedError


class VirtualGate:
    """A gate of the user's: it passes, or says no, breaks, hangs or says nothing. `heard` gets what it means."""

    name = "doorkeeper"

    def __init__(self, dice: Random, weather: Weather) -> None:
        self._dice = dice
        self._weather = weather
        self.heard: Callable[[str, bool], None] = lambda *_: None

    async def check(self, message: Message) -> Any:
        self.heard(message.id, False)  # noqa: FBT003 - as the observer's method
        await asyncio.sleep(while_seconds(self._dice, self._weather.slow, 2))
        if self._dice.random() >= self._weather.gate:
            self.heard(message.id, True)  # noqa: FBT003 - the same
            return Pass()
        kind = self._dice.randrange(4)
        if kind == 0:
            raise ValueError("the gate is broken")
        if kind == 1:
            await asyncio.sleep(1e6)
        return Refusal("not_today", "the doorkeeper says no") if kind == 2 else self._dice.choice([None, True, "allow"])


class _Kept(Constitutions):
    """Loaded by name, and by digest later: no folder, no checks."""

    async def bundle(self, digest: str) -> bytes:
        return digest.encode()

    async def prepare(self, path: Path) -> Loaded:
        return await self._engine.load(path)

    async def load(self, digest: str, source: str) -> Loaded:  # noqa: ARG002 - as the one in use
        return await self._engine.load(Path(digest))

    def raise_mark(self, loaded: Loaded) -> None:
        """Nothing here is signed."""


# --- a bus of them ---------------------------------------------------------------------------------------------------


class VirtualHome:
    """What stays when a bus has closed or crashed: a disk and the constitutions; buses are opened on it in turn."""

    def __init__(
        self,
        loop: VirtualLoop,
        dice: Random,
        settings: Settings,
        constitutions: Sequence[Constitution],
        listener: Listener,
        *,
        names: tuple[str, str] | None = None,
        ahead_seconds: float = 0.0,
    ) -> None:
        """`names` are those of a bus and one of its nodes, whose clock is so far ahead."""
        self.loop = loop
        self.weather = Weather()
        self.clock = VirtualClock(loop, ahead_seconds)
        self._names = names
        named = {} if names is None else {"bus": names[0], "node": names[1]}
        self.store = MemoryLedger(clock=self.clock, **named)
        self.settings = settings
        self._dice = dice
        self._listener = listener
        self._first = Path(constitutions[0].loaded.name)
        known = {one.loaded.name: one for one in constitutions} | {one.loaded.digest: one for one in constitutions}
        self.engine = VirtualEngine(dice, self.weather, known)
        self.gates: list[VirtualGate] = []
        self.ledger: VirtualLedger

    async def open(self, joined: Joined | None = None) -> AgentBus:
        """As `wiring.py` does it. Raises: AuditUnavailable."""
        settings, dice, clock, engine = self.settings, self._dice, self.clock, self.engine
        ledger = self.ledger = VirtualLedger(self.store, self.loop, dice, self.weather, self._listener)
        if self._names is not None:
            ledger.bus, ledger.node = self._names
        randomness = VirtualRandomness(dice)
        policy = settings.policy
        bus = AgentBus(
            settings=settings,
            ledger=ledger,
            engine=engine,
            admission=Admission(
                engine=engine,
                cache=DecisionCache(entries=policy.cache_entries, seconds=policy.cache_seconds, clock=clock),
                facts=FactBook(ledger.facts),
                clock=clock,
                randomness=randomness,
                policy_seconds=policy.timeout_seconds,
                gates=self.gates,
                gate_seconds=settings.limits.gate_seconds,
                grace_seconds=settings.constitution.grace_seconds,
            ),
            constitutions=_Kept(engine=engine, folder=Path(), clock=clock, marks=_NoMarks()),
            registry=Registry(ledger.agents()),
            clock=clock,
            randomness=randomness,
            threads=Inline(),
            chance=dice.random,
            weakenings=(),
            witnesses=NoWitness(),
            home="virtual",
            spare=_no_spare,
            runs=NoRuns(),
            note_blocked=lambda _blocked: None,
            joined=joined,
            identity=lambda: Signer.fresh(f"{ledger.bus}/{ledger.node}"),
        )
        active = ledger.setting("constitution")
        if active is None:
            await bus.charter.take(self._first, given=True)
        if not await bus.under_one() and active is not None:
            kept = orjson.loads(active)
            await bus.charter.resume(kept["digest"], kept["source"])
        await bus.start()
        return bus


class _NoMarks:
    def read_mark(self) -> Mapping[str, Any] | None:
        return None

    def write_mark(self, mark: Mapping[str, Any]) -> None:
        raise NotImplementedError


async def _no_spare() -> PolicyEngine:
    raise EngineMissing("there is one engine here")
