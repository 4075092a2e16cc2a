"""Recorded decisions under another constitution: what would have been decided otherwise.

Each decision is first asked again under the constitution that made it, and has to come out as it is recorded: where
it does not, nothing can be concluded from asking it under another one. Questions that agree in all that a
constitution reads are evaluated once, under two with the same rules and data too. What is kept is bounded, however
many decisions there are.

Not here: the tallies (tally), where decisions come from and what is printed (cli).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from enhanced_agent_bus.admission.answer import ruling
from enhanced_agent_bus.admission.supposed import UNDECIDED, Facts, Supposed, left_behind, suppose
from enhanced_agent_bus.authoring.differences import files_of
from enhanced_agent_bus.authoring.questions import Decision, Law, Unasked
from enhanced_agent_bus.authoring.tally import Tally
from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.errors import ConstitutionRejected
from enhanced_agent_bus.verdict import Answer, Refusal, Ruling

IN_FLIGHT: Final = 128  # decisions that are being asked at once
ANSWER_SECONDS: Final = 10.0  # for one evaluation, with all that waits before it
AGAIN_SECONDS: Final = 0.05  # before a question that the workers had no room for is asked again
TRIES: Final = 100
KNOWN_MAX: Final = 100_000  # answers that are remembered; the oldest is forgotten, and asked for anew
TEXTS_MAX: Final = 1_000  # answers in words that are read once
LAWS_MAX: Final = 8  # constitutions that are ready at once


class Laws:
    """The constitutions that made the decisions, made ready when they are first needed."""

    def __init__(self, engine: WorkerEngine, kept: Callable[[str], Path | None]) -> None:
        self._engine = engine
        self._kept = kept
        self._ready: dict[str, Law | str] = {}  # or why it is not, a key of WHY
        self._users: dict[str, int] = {}
        self._lock = asyncio.Lock()

    def add(self, law: Law) -> None:
        """One that is ready already, and stays so."""
        self._ready[law.digest] = law
        self._users[law.digest] = 1

    def use(self, digest: str) -> None:
        """As long as it is asked, until `leave`, it is not dropped."""
        self._users[digest] = self._users.get(digest, 0) + 1

    def leave(self, digest: str) -> None:
        self._users[digest] -= 1

    async def find(self, digest: str) -> Law | str:
        """The constitution, or a key of WHY."""
        if digest not in self._ready:
            async with self._lock:
                if digest not in self._ready:
                    self._ready[digest] = await self._made_ready(digest)
        return self._ready[digest]

    async def _made_ready(self, digest: str) -> Law | str:
        loaded = [known for known, law in self._ready.items() if isinstance(law, Law)]
        idle = next((known for known in loaded if not self._users.get(known)), None)
        if len(loaded) >= LAWS_MAX and idle is not None:
            del self._ready[idle]
            await self._engine.drop(idle)
        path = self._kept(digest)
        if path is None:
            return "constitution_missing"
        try:
            law = await ready(self._engine, path)
        except ConstitutionRejected:
            return "constitution_unusable"
        return law if law.digest == digest else "constitution_unusable"


async def ready(engine: WorkerEngine, path: Path) -> Law:
    """A constitution that can be asked, and what is in it. Raises: ConstitutionRejected."""
    with tempfile.TemporaryDirectory(prefix="eab-") as folder:
        bundle = Path(folder) / "bundle.tar.gz"
        digest = await engine.pack(path, bundle)
        loaded = await engine.load(path)
        return Law(loaded, files_of(bundle) if digest == loaded.digest else None)  # a folder may change in between


class _Asked:
    """A question that was put, for all that put the same."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.answer: Ruling | Refusal | None = None
        self.done: asyncio.Event | None = asyncio.Event()


class Question(NamedTuple):
    """A decision as it is put under a constitution; `key` is equal for questions that have one answer."""

    law: Law
    decision: Decision
    document: dict[str, object]
    key: bytes | None

    @classmethod
    def of(cls, law: Law, decision: Decision) -> Question:
        document = decision.document if law.digest == decision.constitution else decision.under(law)
        return cls(law, decision, document, law.key(decision, document))


class Asking:
    """Puts questions to the engine, each distinct one once."""

    def __init__(self, engine: WorkerEngine) -> None:
        self._engine = engine
        self._known: dict[bytes, _Asked] = {}
        self._read: dict[bytes, Ruling | Refusal] = {}
        self.evaluated = 0

    async def ask(self, question: Question, given: Ruling | Refusal | None = None) -> tuple[Supposed, Facts]:
        """What would be decided, and which facts would be added. With `given` the answer is had already."""
        return (await self._ask(question, given, None))[0]

    async def ask_first(
        self, question: Question, then: Question
    ) -> tuple[tuple[Supposed, Facts], Ruling | Refusal | None]:
        """The same of a question after which another one is asked, and the answer to that, if it came with it."""
        return await self._ask(question, None, then)

    async def _ask(
        self, question: Question, given: Ruling | Refusal | None, then: Question | None
    ) -> tuple[tuple[Supposed, Facts], Ruling | Refusal | None]:
        key = question.key
        known = self._known.get(key) if key is not None else None
        other = None
        if known is None:
            known = _Asked()
            if key is not None:
                if len(self._known) >= KNOWN_MAX:
                    del self._known[next(iter(self._known))]
                self._known[key] = known
            try:
                self.evaluated += 1
                if given is None and then is not None and self._together(question, then):
                    given, other = await self._compare(question, then)
                known.answer = given if given is not None else await self._evaluate(question)
            finally:
                if key is not None and (known.answer is None or _undecided(known.answer)):
                    self._known.pop(key, None)  # whoever asks later asks for itself
                assert known.done is not None
                known.done.set()
                known.done = None
        elif known.answer is None and known.done is not None:
            await known.done.wait()
        assert known.answer is not None
        would = suppose(question.document, known.answer)
        return (would, left_behind(question.document, known.answer, would)), other

    def _together(self, question: Question, then: Question) -> bool:
        """Whether both are to be evaluated, and on one input."""
        known = then.key is not None and (then.key == question.key or then.key in self._known)
        return not known and question.law.same_input(then.law)

    async def _compare(self, question: Question, then: Question) -> tuple[Ruling | Refusal | None, ...]:
        """The answers to both, or none: what is not decided in time is asked for one by one."""
        decision, document = question.decision, question.decision.question(question.document)
        answers = await self._engine.compare(
            question.law.digest, then.law.digest, decision.tenant, document, ANSWER_SECONDS
        )
        if answers is None or any(answer.code in UNDECIDED for answer in answers):
            return None, None
        return tuple(map(self._ruling, answers))

    async def _evaluate(self, question: Question) -> Ruling | Refusal:
        decision, document = question.decision, question.decision.question(question.document)
        for _ in range(TRIES):
            answer = await self._engine.decide(question.law.digest, decision.tenant, document, ANSWER_SECONDS)
            if answer.code != "policy_unavailable":
                break
            await asyncio.sleep(AGAIN_SECONDS)
        return self._ruling(answer)

    def _ruling(self, answer: Answer) -> Ruling | Refusal:
        """Most answers say the same in the same words."""
        if answer.code is not None:
            return ruling(answer)
        found = self._read.get(answer.body)
        if found is None:
            found = ruling(answer)
            if len(self._read) < TEXTS_MAX:
                self._read[answer.body] = found
        return found


def _undecided(answer: Ruling | Refusal) -> bool:
    return isinstance(answer, Refusal) and answer.code in UNDECIDED


async def backtest(
    engine: WorkerEngine,
    decisions: Iterable[Decision | Unasked],
    kept: Callable[[str], Path | None],
    candidate: Path,
    *,
    base: Path | None = None,
    progress: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Asks decisions again, under their own constitutions and under a candidate.

    `kept` finds the constitution of a digest. With `base` each is asked under that instead of its own, and what is
    recorded does not matter. Raises: ConstitutionRejected, for a candidate or base that cannot decide.
    """
    laws = Laws(engine, kept)
    new = await ready(engine, candidate)
    laws.add(new)
    old = None
    if base is not None:
        old = await ready(engine, base)
        laws.add(old)
    asking = Asking(engine)
    tally = Tally(new, str(engine.label.get("opa", "")))
    shared = iter(decisions)

    async def one_after_another() -> None:
        for decision in shared:
            if isinstance(decision, Unasked):
                tally.unasked(decision)
            else:
                await _compare(asking, laws, tally, decision, new, old)
            progress(tally)

    tasks = [asyncio.create_task(one_after_another()) for _ in range(IN_FLIGHT)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    tally.evaluated = asking.evaluated
    return tally


async def _compare(asking: Asking, laws: Laws, tally: Tally, decision: Decision, new: Law, old: Law | None) -> None:
    then = Question.of(new, decision)
    if old is not None:
        (before, facts), answer = await asking.ask_first(Question.of(old, decision), then)
    else:
        laws.use(decision.constitution)
        try:
            law = await laws.find(decision.constitution)
            if isinstance(law, str):
                tally.unasked(Unasked(decision.seq, decision.message_id, law))
                return
            (before, facts), answer = await asking.ask_first(Question.of(law, decision), then)
        finally:
            laws.leave(decision.constitution)
        if not tally.replayed(decision, before):
            return
    after, other_facts = await asking.ask(then, answer)
    tally.compared(decision, before, after, other_facts=facts != other_facts)
