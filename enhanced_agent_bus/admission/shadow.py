"""A candidate that is asked what was just decided, and never acts: what it would have said otherwise is counted.

It has an engine of its own, a bounded queue and a bounded part of the loop's time: what comes faster is dropped, and
counted too. Nobody waits for it. Not here: who starts and stops it (road/shadowing.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from enhanced_agent_bus.admission.answer import ruling
from enhanced_agent_bus.admission.supposed import ERRORS, Supposed, in_order, left_behind, suppose
from enhanced_agent_bus.admission.trial import WHOLE, is_among
from enhanced_agent_bus.outcome import Divergence
from enhanced_agent_bus.verdict import Answer, Reason, Refusal, Ruling

if TYPE_CHECKING:
    from enhanced_agent_bus.admission.chain import Active, Decided
    from enhanced_agent_bus.admission.facts import Added
    from enhanced_agent_bus.admission.sight import Sight
    from enhanced_agent_bus.ports import PolicyEngine

WAITING_MAX: Final = 1024  # decisions that wait to be looked at; one more is dropped
WAITING_BYTES_MAX: Final = 4 << 20  # of their payloads
BATCH: Final = 32  # questions that are asked at once
LOOP_SHARE: Final = 0.05  # of the loop's time for what is measured here; handing it over costs as much again
DIVERGENCES_MAX: Final = 200  # that are kept, the newest
RULINGS_MAX: Final = 10_000  # that are remembered, by what the candidate reads
NAMES_MAX: Final = 1_000  # rules that are counted one by one; further ones together
OTHERS: Final = "(others)"


class _Seen(NamedTuple):
    """A live decision that waits to be looked at."""

    decision_id: str
    verdict: str
    code: str | None
    reasons: tuple[Reason, ...]
    added: Sequence[Added]
    sight: Sight


class Shadow:
    """One candidate, from its start to its stop."""

    def __init__(
        self, candidate: Active, engine: PolicyEngine, *, percent: int, salt: str, policy_seconds: float
    ) -> None:
        self.candidate = candidate
        self.percent = percent
        self.seen = 0
        self.dropped = 0
        self.compared = 0
        self.same = 0
        self.other_reasons = 0
        self.other_facts = 0
        self.flips: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()
        self.divergences: deque[Divergence] = deque(maxlen=DIVERGENCES_MAX)
        self._engine = engine
        self._salt = salt
        self._policy_seconds = policy_seconds
        self._waiting: deque[_Seen] = deque()
        self._bytes = 0
        self._some = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._rulings: dict[bytes, Ruling | Refusal] = {}

    def see(self, decided: Decided, sight: Sight) -> None:
        """A live decision. It has been made: nothing here can change it, or keeps it waiting."""
        envelope = sight.case.addressed.envelope
        if self.percent < WHOLE and not is_among(envelope.conversation, self.percent, self._salt):
            return
        self.seen += 1
        if len(self._waiting) >= WAITING_MAX or self._bytes + len(envelope.body) > WAITING_BYTES_MAX:
            self.dropped += 1
            return
        self._bytes += len(envelope.body)
        self._waiting.append(
            _Seen(
                decided.decision_id,
                decided.verdict,
                decided.code,
                decided.reasons,
                decided.added,
                sight.under(self.candidate),
            )
        )
        self._some.set()
        self._idle.clear()

    async def run(self) -> None:
        """Looks at what waits, until it is cancelled."""
        while True:
            await self._some.wait()
            started = time.perf_counter()
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._bytes -= sum(len(seen.sight.case.addressed.envelope.body) for seen in batch)
            asked = [(seen, key) for seen in batch if (key := self._unknown(seen)) is not None]
            busy = time.perf_counter() - started
            # Time that a question waits for the others is not held against the candidate.
            seconds = self._policy_seconds * (1 + len(asked))
            answers = await asyncio.gather(*(self._ask(seen, seconds) for seen, _ in asked))
            started = time.perf_counter()
            for (seen, key), answer in zip(asked, answers, strict=True):
                self._learn(seen, key, answer)
            if not self._waiting:
                self._some.clear()
                self._idle.set()
            busy += time.perf_counter() - started
            await asyncio.sleep(busy * (1 / LOOP_SHARE - 1))

    async def wait_idle(self) -> None:
        """Until all that was seen has been looked at."""
        await self._idle.wait()

    def _unknown(self, seen: _Seen) -> bytes | None:
        """What the candidate reads of a question that it was not asked before (empty where that is not known)."""
        reading = self.candidate.reading
        if not reading.cacheable:
            return b""
        payload = orjson.loads(seen.sight.case.addressed.envelope.body) if reading.payload else None
        key = sha256(reading.key(seen.sight, payload)).digest()
        known = self._rulings.get(key)
        if known is None:
            return key
        self._compare(seen, known)
        return None

    async def _ask(self, seen: _Seen, seconds: float) -> Answer:
        tenant = seen.sight.case.addressed.envelope.tenant
        return await self._engine.decide(self.candidate.digest, tenant, seen.sight.question(), seconds)

    def _learn(self, seen: _Seen, key: bytes, answer: Answer) -> None:
        if answer.code is None and answer.eval_us > self._policy_seconds * 1e6:
            answer = Answer("policy_timeout", detail="it took longer than policy.timeout_seconds")
        found = ruling(answer)
        if key and isinstance(found, Ruling):
            if len(self._rulings) >= RULINGS_MAX:
                del self._rulings[next(iter(self._rulings))]
            self._rulings[key] = found
        self._compare(seen, found)

    def _compare(self, seen: _Seen, found: Ruling | Refusal) -> None:
        document = seen.sight.document()
        would = suppose(document, found)
        self.compared += 1
        self.other_facts += in_order(seen.added) != left_behind(document, found, would)
        if would.code in ERRORS:
            self.errors[str(would.code)] += 1
            self._diverged(seen, would)
        elif would.verdict != seen.verdict:
            self.flips[f"{seen.verdict}->{would.verdict}"] += 1
            self._diverged(seen, would)
        else:
            self.same += 1
            self.other_reasons += _names(seen.reasons) != _names(would.reasons)

    def _diverged(self, seen: _Seen, would: Supposed) -> None:
        rules = _names(would.reasons if would.verdict != "allow" else seen.reasons)
        for rule in rules:
            self.rules[rule if rule in self.rules or len(self.rules) < NAMES_MAX else OTHERS] += 1
        envelope = seen.sight.case.addressed.envelope
        self.divergences.append(
            Divergence(
                envelope.id,
                seen.decision_id,
                envelope.sender,
                envelope.tenant,
                seen.code or seen.verdict,
                would.code or would.verdict,
                tuple(rules),
            )
        )


def _names(reasons: Sequence[Reason]) -> list[str]:
    return sorted({reason.rule or reason.code for reason in reasons})
