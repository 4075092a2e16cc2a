"""The gate of a node that shares facts with others: what it decides by them holds on all nodes, or is decided again.

A decision looks at the newest change, asks the policy, and makes its own change by compare-and-set on what it looked
at. So the result is as if such decisions had been made one after another on all nodes. Where neither the constitution
reads facts nor the answer remembers anything, it is the gate of one node, and nothing is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from enhanced_agent_bus.admission.answer import deliver_elsewhere
from enhanced_agent_bus.admission.chain import Active, Admission, Asked, Decided
from enhanced_agent_bus.admission.facts import Planned
from enhanced_agent_bus.admission.locks import Held, Lock
from enhanced_agent_bus.admission.shared import MESSAGE, FactsTooLarge, Name, SharedFacts, added_by
from enhanced_agent_bus.admission.sight import Case, Sight
from enhanced_agent_bus.errors import TransportAway
from enhanced_agent_bus.outcome import END_STATES
from enhanced_agent_bus.ports import FactChange, StoredMessage
from enhanced_agent_bus.verdict import Refusal, Remember

WAIT_SECONDS: Final = 5.0  # for a turn, and for the shared state to answer
TRIES_MAX: Final = 100  # while others change the same facts
LAST_SECONDS: Final = 2.0  # for what is still to be taken back when the bus closes
PAUSE_SECONDS: Final = 0.25  # before something is tried again that has to be done


class SharedAdmission(Admission):
    """The chain, where facts are shared."""

    def __init__(self, *, shared: SharedFacts, **parts: Any) -> None:
        super().__init__(facts=shared.book, **parts)
        self._shared = shared
        self._turns: dict[Name, Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- opening and closing ---------------------------------------------------------------------------------------

    async def settle(self, find: Callable[[str], StoredMessage | None]) -> None:
        """Takes back what messages of this node changed before it ended, and it does not know. Raises: TransportAway.

        `find` reads the ledger. Called before anything is decided.
        """
        async with self._shared.turn:
            documents = await self._shared.all()
        for document in documents:
            if document["scope"] != MESSAGE or document.get("home") != self._shared.node:
                continue
            stored = find(document["owner"])
            if stored is None or (stored.state == "refused" and not stored.attempts):
                await self._take_back(document["owner"], None)
            elif stored.state in END_STATES and stored.state != "dead_lettered":
                async with self._shared.turn:
                    await self._shared.complete([(MESSAGE, document["owner"])])
                    self._shared.ended(document["owner"])

    async def close(self) -> None:
        """What cannot be taken back by now is when the home is opened again."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- deciding --------------------------------------------------------------------------------------------------

    def _known(self, sight: Sight, key: bytes | None) -> Decided | None:
        found = None if key is None else self._cache.get(sight.active.digest, key)
        if found is None or sight.active.reading.fact_scopes:
            return None
        asked = Asked(found[0], sight, found[1])
        if self._remembers(sight.case, asked) is not None:
            return None
        return self._conclude(sight.case, sight.active, asked)

    async def _policy_gate(self, case: Case) -> Decided:
        case_look, case.look = case.look, None
        if self._decides(case).reading.fact_scopes or case.added:
            return await self._agreed(case, None)
        case.look = case_look
        active, asked = await self._answer(case)
        if self._remembers(case, asked) is None:
            return self._concluded(case, active, asked)
        return await self._agreed(case, (active, asked))

    def _remembers(self, case: Case, asked: Asked) -> Sequence[Remember] | None:
        """What an answer lets be remembered, where it changes facts at all."""
        answer = asked.ruling
        if isinstance(answer, Refusal) or not answer.allow or not (answer.remember or case.added):
            return None
        if answer.obligations and deliver_elsewhere(answer, case.addressed.recipient.id) is not None:
            return None
        return () if any(hold.missing(case.approvals) for hold in answer.hold) else answer.remember

    async def _agreed(self, case: Case, given: tuple[Active, Asked] | None) -> Decided:
        """The decision on the facts as all nodes have them, in turn with those that share facts with it."""
        names = self._owners(case)
        envelope = case.addressed.envelope
        marks: set[str] = set()  # decisions whose changes hold, or may
        decided: Decided | None = None
        try:
            async with AsyncExitStack() as stack:
                read = self._decides(case).reading.fact_scopes
                async with asyncio.timeout(WAIT_SECONDS):
                    for owner in sorted({names[scope] for scope in read}):
                        await stack.enter_async_context(Held(self._turns, owner))
                if case.why == "send" and case.first and "/" not in envelope.id:
                    self._shared.is_new((MESSAGE, envelope.id))
                    if envelope.conversation == envelope.id:
                        self._shared.is_new(names["conversation"])
                decided = await self._tried(case, given, sorted({*names.values(), (MESSAGE, envelope.id)}), marks)
        except (TimeoutError, TransportAway, FactsTooLarge) as error:
            decided = self._not_agreed(case, error)
        finally:
            if marks and case.first and case.why == "send" and (decided is None or decided.verdict == "refuse"):
                for decision_id in marks:
                    self._later(self._take_back(envelope.id, decision_id), envelope.id)
        return decided

    async def _tried(
        self, case: Case, given: tuple[Active, Asked] | None, names: list[Name], marks: set[str]
    ) -> Decided:
        """Raises: TransportAway, TimeoutError, FactsTooLarge."""
        shared, message_id = self._shared, case.addressed.envelope.id
        for _ in range(TRIES_MAX):
            async with asyncio.timeout(WAIT_SECONDS), shared.turn:
                await shared.look(names)
                case.added = shared.added(message_id)
            active, asked = given or await self._answer(case)
            async with asyncio.timeout(WAIT_SECONDS), shared.turn:
                if given is not None:  # it was given without a look at the facts, which it does not depend on
                    asked.sight = self._look(case, active)
                given = None
                while True:
                    await shared.complete(names)
                    if active is not self._decides(case) or not self._holds(case, asked, names):
                        break
                    planned = self._planned(case, asked)
                    if planned is None or isinstance(planned, Refusal):
                        return self._concluded(case, active, asked)
                    if self._is_so(case, planned):
                        shared.book.pin(planned.changes)
                        return self._concluded(case, active, asked, (planned.added, planned.changes))
                    asked.decision_id = asked.decision_id or self._record.next_id(case)
                    marks.add(asked.decision_id)
                    home = shared.home(message_id) or self._home(case)
                    if not await shared.change(planned, added_by(message_id, home, asked.decision_id, planned.added)):
                        marks.discard(asked.decision_id)
                        await shared.refresh()
                        continue
                    if active is not self._decides(case):
                        break
                    shared.book.pin(planned.changes)
                    return self._concluded(case, active, asked, (planned.added, planned.changes))
        raise TransportAway("other nodes change the same facts all the time")

    def _holds(self, case: Case, asked: Asked, names: list[Name]) -> bool:
        """Whether an answer is still the one to the newest facts that this node knows."""
        same = self._shared.added(case.addressed.envelope.id) == list(case.added)
        return same and self._shared.knows(names) and self._still_true(asked)

    def _planned(self, case: Case, asked: Asked) -> Planned | Refusal | None:
        remember = self._remembers(case, asked)
        if remember is None:
            return None
        return self.facts.plan(case.addressed.envelope.id, case.added, remember, self._owners(case))

    def _is_so(self, case: Case, planned: Planned) -> bool:
        """Whether nothing would be changed by it: the same message, decided again, adds the same."""
        same = list(case.added) == planned.added
        return same and all(self._shared.facts(name) == facts for name, facts in planned.touched.items())

    def _home(self, case: Case) -> str:
        """The node that answers for a message."""
        return self._shared.node if case.ticket is None else str(case.ticket["origin"]).rpartition("/")[2]

    def _not_agreed(self, case: Case, error: Exception) -> Decided:
        active = self._decides(case)
        refusal = Refusal(
            "policy_unavailable",
            f"the facts that the nodes share could not be read or changed: {str(error) or 'no answer in time'}",
            "see `eab doctor`; send again once the transport answers",
        )
        if isinstance(error, FactsTooLarge):
            refusal = Refusal("facts_full", str(error), "remember less about one sender, conversation or tenant")
        return self._refuse(case, active, refusal, Asked(refusal))

    # --- taking back -----------------------------------------------------------------------------------------------

    def take_back(self, case: Case) -> list[FactChange]:
        """The node's own rows without what a message had added; the shared ones follow as soon as they can."""
        if not case.added:
            return []
        message_id = case.addressed.envelope.id
        self._later(self._take_back(message_id, None), message_id)
        planned = self.facts.plan(message_id, case.added, (), self._owners(case))
        if isinstance(planned, Refusal):
            return []
        self.facts.pin(planned.changes)
        return planned.changes

    def unrecorded(self, message_id: str, decided: Decided) -> None:
        if decided.added:
            self._later(self._take_back(message_id, decided.decision_id), message_id)

    def ended(self, message_id: str) -> None:
        self._shared.ended(message_id)

    async def _take_back(self, message_id: str, decision_id: str | None) -> None:
        """Takes out what a message has added; of this decision, if one is named. Tries until that is done."""
        while True:
            try:
                async with self._shared.turn:
                    if await self._taken_back(message_id, decision_id):
                        return
            except TransportAway:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _taken_back(self, message_id: str, decision_id: str | None) -> bool:
        """Something is changed in any case: what is still on its way to the shared state comes too late then."""
        shared, message = self._shared, (MESSAGE, message_id)
        await shared.look([message])
        stands = shared.added(message_id)
        if decision_id not in (None, shared.decided_by(message_id)):
            stands = []
        names = sorted({message, *((item[0], item[1]) for item in stands)})
        await shared.complete(names)
        if not shared.knows(names):
            return False
        planned = self.facts.plan(message_id, stands, (), {})
        if isinstance(planned, Refusal):
            return True
        return await shared.change(planned, added_by(message_id, "", None, ()) if stands else None)

    def _later(self, work: Coroutine[Any, Any, None], message_id: str) -> None:
        task = asyncio.create_task(work, name=f"taking back what {message_id} added")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- operators -------------------------------------------------------------------------------------------------

    async def put_fact(self, scope: str, name: str, key: str, value: str | float) -> list[FactChange] | Refusal:
        return await self._written((scope, name), lambda: self.facts.plan_put(scope, name, key, value))

    async def remove_fact(self, scope: str, name: str, key: str) -> list[FactChange]:
        changed = await self._written((scope, name), lambda: self.facts.plan_removal(scope, name, key))
        assert not isinstance(changed, Refusal)
        return changed

    async def _written(self, owner: Name, plan: Callable[[], Planned | Refusal]) -> list[FactChange] | Refusal:
        async with self._shared.turn:
            for _ in range(TRIES_MAX):
                await self._shared.look([owner])
                planned = plan()
                if isinstance(planned, Refusal):
                    return planned
                if await self._shared.change(planned):
                    self.facts.pin(planned.changes)
                    return planned.changes
        raise TransportAway("other nodes change the same facts all the time")

    async def fact_rows(self) -> dict[Name, list[FactChange]]:
        async with self._shared.turn:
            return await self._shared.rows()
