"""`admit`: the one gate. Who sends? Under which constitution? What do the user's gates say? What does the policy say?

The first no ends it, and whatever raises, hangs or says nothing has not said yes. Between the last look at the facts
and the constitution and the return of an allow there is no await, and the caller must put the record without one:
so a decision holds for the facts that it is written beside.

Not here: the shape of a payload (`canonical.py`), which is checked before there is an envelope to judge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, Protocol

import orjson

from enhanced_agent_bus.admission.answer import deliver_elsewhere, ruling
from enhanced_agent_bus.admission.facts import COUNTERS, Added, FactBook, scopes
from enhanced_agent_bus.admission.gates import Gates
from enhanced_agent_bus.admission.locks import Held, Lock
from enhanced_agent_bus.admission.reading import Reading
from enhanced_agent_bus.admission.record import Fields, Record
from enhanced_agent_bus.admission.seal import Randomness
from enhanced_agent_bus.admission.shadow import Shadow
from enhanced_agent_bus.admission.sight import Case, Sight
from enhanced_agent_bus.admission.trial import Rollout, Trial
from enhanced_agent_bus.ports import Clock, FactChange, Gate, Loaded, PolicyEngine
from enhanced_agent_bus.verdict import Admitted, Answer, Hold, Party, Reason, Refusal, Ruling

LATEST: Final = "latest"
KEY_BYTES_MAX: Final = 1024  # of what a question was about, as it is; beyond, its hash: memory is bounded by entries
ROUNDS_MAX: Final = 1000  # how often the facts may change under one question before it is given up


class RulingCache(Protocol):
    """Rulings by constitution and key; see `engines/cache.py`."""

    def get(self, digest: str, key: bytes) -> tuple[Ruling, str] | None: ...

    def put(self, digest: str, key: bytes, ruling: Ruling, decision_id: str) -> None: ...


class Active:
    """The constitution that decides, and what it reads."""

    __slots__ = ("digest", "loaded", "reading", "revision")

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.digest = loaded.digest
        self.revision = loaded.revision
        self.reading = Reading(loaded)


@dataclass(slots=True)
class Decided:
    """What the gate said, with the record of it and the facts that go with it. `admitted` is set for an allow."""

    verdict: Literal["allow", "hold", "refuse"]
    code: str | None
    reasons: tuple[Reason, ...]
    decision_id: str
    constitution: str
    revision: int
    fields: Fields
    texts: tuple[bytes, bytes] | None
    changes: list[FactChange]
    added: Sequence[Added]
    admitted: Admitted | None = None
    hold: tuple[Hold, ...] = ()


@dataclass(slots=True)
class Asked:
    """The policy's part of one decision."""

    ruling: Ruling | Refusal
    sight: Sight | None = None
    cached_from: str | None = None
    eval_us: int = 0
    key: bytes | None = None  # set where the ruling may be cached, once its decision is put
    decision_id: str | None = None


class Admission:
    """The chain, for one bus."""

    def __init__(
        self,
        *,
        engine: PolicyEngine,
        cache: RulingCache,
        facts: FactBook,
        clock: Clock,
        randomness: Randomness,
        gates: Sequence[Gate] = (),
        policy_seconds: float = 0.25,
        gate_seconds: float = 1.0,
        grace_seconds: float = 0.0,
    ) -> None:
        self.facts = facts
        self._engine = engine
        self._cache = cache
        self._clock = clock
        self._gates = Gates(gates, gate_seconds) if gates else None
        self._policy_seconds = policy_seconds
        self._grace_seconds = grace_seconds
        self._active: Active  # from the first activation on; before, nothing can be judged
        self.trial: Trial | None = None  # what is tried beside it, if anything is
        self._past: dict[str, float] = {}  # digest -> until when it is still agreed to (monotonic seconds)
        self._flights: dict[tuple[str, bytes], asyncio.Future[tuple[Ruling | Refusal, str, int] | None]] = {}
        self._locks: dict[tuple[str, str], Lock] = {}
        self._record = Record(clock=clock, randomness=randomness, engine=engine.label)

    @property
    def active(self) -> Active:
        return self._active

    @property
    def current(self) -> Active | None:
        """The active constitution, or None before the first."""
        return getattr(self, "_active", None)

    def activate(self, loaded: Loaded) -> None:
        """From here on nothing is decided under the one before."""
        before = self.current
        if before is not None and before.digest != loaded.digest:
            self._past[before.digest] = self._clock.monotonic() + self._grace_seconds
        self._past.pop(loaded.digest, None)
        self._active = Active(loaded)
        self._try(None, self.shadow)

    @property
    def rollout(self) -> Rollout | None:
        """The candidate that decides a share of the conversations."""
        return None if self.trial is None else self.trial.rollout

    def roll_out(self, rollout: Rollout | None) -> None:
        """From here on a candidate decides its share; None: the active one decides everything."""
        self._try(rollout, self.shadow)

    @property
    def shadow(self) -> Shadow | None:
        """The candidate that looks on."""
        return None if self.trial is None else self.trial.shadow

    def watch(self, shadow: Shadow | None) -> None:
        """From here on a candidate looks on; None: nobody does."""
        self._try(self.rollout, shadow)

    def _try(self, rollout: Rollout | None, shadow: Shadow | None) -> None:
        self.trial = None if rollout is None and shadow is None else Trial(self.active, rollout, shadow)

    def digest_for(self, conversation: str) -> str:
        """The constitution that decides in this conversation."""
        trial = self.trial
        return (self._active if trial is None else trial.decides(conversation)).digest

    # --- the road --------------------------------------------------------------------------------------------------

    async def judge(self, case: Case) -> Decided:
        """Decides one message. The caller puts the record of it without an await in between."""
        return self.judge_at_once(case) or await self.judge_asking(case)

    def judge_at_once(self, case: Case) -> Decided | None:
        """The decision, where nothing must be awaited for it: no gates of the user's, and the same was asked before."""
        trial = self.trial
        active = self._active if trial is None else trial.decides(case.addressed.envelope.conversation)
        refusal = case.refusal
        if refusal is None and case.addressed.sender.constitution != LATEST:
            refusal = self._constitution_gate(case.addressed.sender, active)
        if refusal is not None:
            refused = self._refuse(case, active, refusal, Asked(refusal))
            return refused if case.refusal is not None else self._saw(refused, None)
        if self._gates is not None:
            return None
        sight = self._look(case, active)
        key = self._key(sight) if active.reading.cacheable else None
        decided = self._known(sight, key)
        if decided is None:
            case.look = (sight, key)
        elif trial is not None:
            trial.saw(decided, sight)
        return decided

    async def judge_asking(self, case: Case) -> Decided:
        """The decision that could not be given at once: gates first, then the policy."""
        refusal = await self._gates.refusal(case) if self._gates is not None else None
        if refusal is not None:
            return self._refuse(case, self._decides(case), refusal, Asked(refusal))
        return await self._policy_gate(case)

    def _known(self, sight: Sight, key: bytes | None) -> Decided | None:
        """The decision, where the same was asked before."""
        if key is None:
            return None
        found = self._cache.get(sight.active.digest, key)
        return self._conclude(sight.case, sight.active, Asked(found[0], sight, found[1])) if found else None

    def _constitution_gate(self, sender: Party, active: Active) -> Refusal | None:
        agreed = sender.constitution
        if agreed in (LATEST, active.digest) or self._past.get(agreed, 0.0) > self._clock.monotonic():
            return None
        return Refusal(
            "constitution_mismatch",
            f"{sender.id} agreed to {agreed}, but {active.digest} is active",
            'register the agent with constitution="latest", or with the active digest once it agrees to it',
        )

    async def _policy_gate(self, case: Case) -> Decided:
        active, asked = await self._answer(case)
        return self._concluded(case, active, asked)

    def _concluded(
        self, case: Case, active: Active, asked: Asked, changed: tuple[list[Added], list[FactChange]] | None = None
    ) -> Decided:
        """The decision that follows from an answer, which others may be given from now on."""
        self._keep(active, asked)
        return self._saw(self._conclude(case, active, asked, changed), asked.sight)

    async def _answer(self, case: Case) -> tuple[Active, Asked]:
        """What is said to a case; it holds until the caller awaits something."""
        deadline = self._clock.monotonic() + self._policy_seconds
        for _ in range(ROUNDS_MAX):
            active = self._decides(case)
            refusal = self._constitution_gate(case.addressed.sender, active)
            if refusal is not None:
                return active, Asked(refusal)
            look, case.look = case.look, None
            if look is None or look[0].active is not active:
                sight = self._look(case, active)
                key = self._key(sight) if active.reading.cacheable else None
                found = None if key is None else self._cache.get(active.digest, key)
                if found is not None:
                    return active, Asked(found[0], sight, found[1])
            else:  # the cache was asked a moment ago
                sight, key = look
            asked = await self._evaluated(sight, key, deadline)
            if active is self._decides(case) and self._still_true(asked):
                return active, asked
        refusal = Refusal("policy_timeout", "the facts changed faster than the policy could answer", "send again")
        return self._decides(case), Asked(refusal)

    def _decides(self, case: Case) -> Active:
        """The constitution that decides on a message."""
        return self.active if self.trial is None else self.trial.decides(case.addressed.envelope.conversation)

    def _saw(self, decided: Decided, sight: Sight | None) -> Decided:
        """Lets what is on trial know of a decision."""
        if self.trial is not None:
            self.trial.saw(decided, sight)
        return decided

    def _keep(self, active: Active, asked: Asked) -> None:
        """Caches a ruling whose decision is put next, so that whoever cites it cites a record."""
        if asked.key is not None and asked.decision_id is not None and isinstance(asked.ruling, Ruling):
            self._cache.put(active.digest, asked.key, asked.ruling, asked.decision_id)

    # --- asking ----------------------------------------------------------------------------------------------------

    def _look(self, case: Case, active: Active) -> Sight:
        return Sight(case, active, self.facts, self._clock.policy_time(), case.now_us or self._clock.now_us())

    def _key(self, sight: Sight) -> bytes:
        reading = sight.active.reading
        payload = orjson.loads(sight.case.addressed.envelope.body) if reading.payload else None
        key = reading.key(sight, payload)
        return key if len(key) <= KEY_BYTES_MAX else sha256(key).digest()

    def _still_true(self, asked: Asked) -> bool:
        """Whether the facts that this answer can depend on are as they were when it was asked."""
        sight = asked.sight
        if sight is None or not sight.active.reading.fact_scopes:
            return True
        reading = sight.active.reading
        return reading.facts_key(self._look(sight.case, sight.active)) == reading.facts_key(sight)

    async def _evaluated(self, sight: Sight, key: bytes | None, deadline: float) -> Asked:
        """Asks the engine; one at a time where messages share facts that the policy reads.

        An answer that was overtaken by other facts has to be asked for again: in turn, none is overtaken twice.
        """
        read = sight.active.reading.fact_scopes
        if not read:
            return await self._asked(sight, key, deadline)
        names = self._owners(sight.case)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(deadline - self._clock.monotonic()):
                    for owner in sorted({names[scope] for scope in read}):
                        await stack.enter_async_context(Held(self._locks, owner))
            except TimeoutError:
                return Asked(_timed_out("the policy was busy with messages that share facts with this one"), sight)
            sight = self._look(sight.case, sight.active)
            return await self._asked(sight, self._key(sight) if key is not None else None, deadline)

    async def _asked(self, sight: Sight, key: bytes | None, deadline: float) -> Asked:
        """One evaluation for all that ask the same at the same time. Errors are shared with them, and not kept."""
        if key is None:
            answer, us = await self._ask(sight, deadline)
            return Asked(answer, sight, None, us)
        digest = sight.active.digest
        while True:
            found = self._cache.get(digest, key)
            if found is not None:
                return Asked(found[0], sight, found[1])
            flight = self._flights.get((digest, key))
            if flight is None:
                return await self._fly(sight, key, deadline)
            try:
                async with asyncio.timeout(deadline - self._clock.monotonic()):
                    landed = await asyncio.shield(flight)
            except TimeoutError:
                return Asked(_timed_out("another message that asks the same was slow to decide"), sight)
            if landed is not None:
                return Asked(landed[0], sight, landed[1])

    async def _fly(self, sight: Sight, key: bytes, deadline: float) -> Asked:
        name = (sight.active.digest, key)
        flight: asyncio.Future[tuple[Ruling | Refusal, str, int] | None] = asyncio.get_running_loop().create_future()
        self._flights[name] = flight
        decision_id = self._record.next_id(sight.case)
        try:
            answer, us = await self._ask(sight, deadline)
            flight.set_result((answer, decision_id, us))
        finally:
            del self._flights[name]
            if not flight.done():  # cancelled: those who waited ask for themselves
                flight.set_result(None)
        return Asked(answer, sight, None, us, key, decision_id)

    async def _ask(self, sight: Sight, deadline: float) -> tuple[Ruling | Refusal, int]:
        envelope = sight.case.addressed.envelope
        question = sight.question()
        left = max(deadline - self._clock.monotonic(), 0.001)
        answer = await self._engine.decide(sight.active.digest, envelope.tenant, question, left)
        self._record.engine = self._engine.label  # a server can have become another one
        return ruling(answer), answer.eval_us

    def _owners(self, case: Case) -> dict[str, tuple[str, str]]:
        addressed = case.addressed
        return scopes(addressed.sender, addressed.recipient, addressed.envelope.conversation)

    # --- the answer ------------------------------------------------------------------------------------------------

    def _conclude(
        self, case: Case, active: Active, asked: Asked, changed: tuple[list[Added], list[FactChange]] | None = None
    ) -> Decided:
        """`changed` is what it changes in facts, where that was done already."""
        answer = asked.ruling
        if isinstance(answer, Refusal):
            return self._refuse(case, active, answer, asked)
        if not answer.allow:
            denied = Refusal("policy_denied", "the constitution does not allow this", reasons=answer.reasons)
            return self._refuse(case, active, denied, asked)
        if answer.obligations and (refusal := deliver_elsewhere(answer, case.addressed.recipient.id)) is not None:
            return self._refuse(case, active, refusal, asked)
        hold = answer.hold if any(hold.missing(case.approvals) for hold in answer.hold) else ()
        if changed is None:
            envelope = case.addressed.envelope
            tried = (
                self.facts.change(envelope.id, case.added, () if hold else answer.remember, self._owners(case))
                if answer.remember or case.added
                else ([], [])
            )
            if isinstance(tried, Refusal):
                return self._refuse(case, active, tried, asked)
            changed = tried
        added, changes = changed
        sender_n = self._count(case, changes, sent=not hold and not case.counted)
        return self._allow(case, active, asked, answer, hold, sender_n, added, changes)

    def _allow(
        self,
        case: Case,
        active: Active,
        asked: Asked,
        answer: Ruling,
        waits: tuple[Hold, ...],
        sender_n: int,
        added: list[Added],
        changes: list[FactChange],
    ) -> Decided:
        reasons: tuple[Reason, ...] = ()
        if waits:
            reasons = answer.reasons or tuple(Reason(hold.rule, "hold") for hold in waits)
        verdict: Literal["allow", "hold"] = "hold" if waits else "allow"
        decision_id = asked.decision_id or self._record.next_id(case)
        fields, texts = self._record.decision(
            case,
            active,
            sender_n,
            verdict,
            None,
            reasons,
            decision_id,
            asked.sight,
            asked.cached_from,
            asked.eval_us,
        )
        admitted = None
        if not waits:
            admitted = Admitted(
                case.addressed.envelope,
                case.addressed.recipient,
                decision_id,
                active.digest,
                active.revision,
                answer.obligations,
            )
        return Decided(
            verdict,
            None,
            reasons,
            decision_id,
            active.digest,
            active.revision,
            fields,
            texts,
            changes,
            added,
            admitted,
            waits,
        )

    def _refuse(self, case: Case, active: Active, refusal: Refusal, asked: Asked) -> Decided:
        changes: list[FactChange] = []
        sender_n = self._count(case, changes, refused=case.first)
        reasons = refusal.reasons or (Reason("", refusal.code, refusal.message, refusal.remedy),)
        decision_id = asked.decision_id or self._record.next_id(case)
        fields, texts = self._record.decision(
            case,
            active,
            sender_n,
            "refuse",
            refusal.code,
            reasons,
            decision_id,
            asked.sight,
            asked.cached_from,
            asked.eval_us,
        )
        return Decided(
            "refuse",
            refusal.code,
            reasons,
            decision_id,
            active.digest,
            active.revision,
            fields,
            texts,
            changes,
            case.added,
        )

    def take_back(self, case: Case) -> list[FactChange]:
        """Removes what a message had added that ends without any handler having seen it."""
        if not case.added:
            return []
        changed = self.facts.change(case.addressed.envelope.id, case.added, (), self._owners(case))
        return [] if isinstance(changed, Refusal) else changed[1]

    async def fact_rows(self) -> dict[tuple[str, str], list[FactChange]]:
        """The facts that are kept elsewhere than in the ledger, by owner. Raises: TransportAway."""
        return {}

    def unrecorded(self, message_id: str, decided: Decided) -> None:
        """A first decision could not be recorded: for whom it concerns that facts were changed with it elsewhere."""

    def ended(self, message_id: str) -> None:
        """A message that has changed facts has ended, and is not decided again."""

    async def put_fact(self, scope: str, name: str, key: str, value: str | float) -> list[FactChange] | Refusal:
        """An operator's fact. Raises: ValueError; TransportAway."""
        return self.facts.put(scope, name, key, value)

    async def remove_fact(self, scope: str, name: str, key: str) -> list[FactChange]:
        """Raises: KeyError; TransportAway."""
        return self.facts.remove(scope, name, key)

    def _count(self, case: Case, changes: list[FactChange], *, sent: bool = False, refused: bool = False) -> int:
        """The bus's own counters: every decision of a sender, first accepts and first refusals.

        Returns the number of this decision among its sender's, from 0.
        """
        envelope = case.addressed.envelope
        sender = self.facts.owner("agent", envelope.sender)
        number = sender.n
        sender.n = number + 1
        sender.sent += sent
        sender.refused += refused
        sender.pending += 1
        changes.append(FactChange("agent", envelope.sender, COUNTERS, sender.counters()))
        if (sent or refused) and envelope.conversation:
            conversation = self.facts.owner("conversation", envelope.conversation)
            conversation.sent += sent
            conversation.refused += refused
            conversation.pending += 1
            changes.append(FactChange("conversation", envelope.conversation, COUNTERS, conversation.counters()))
        return number


def _timed_out(detail: str) -> Ruling | Refusal:
    return ruling(Answer("policy_timeout", detail=detail))
