"""The user's own gates, one after the other. None of them can admit, and one that breaks has not said yes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from enhanced_agent_bus.admission.answer import NAME_CHARS_MAX, TEXT_CHARS_MAX
from enhanced_agent_bus.admission.sight import Case
from enhanced_agent_bus.message import Message
from enhanced_agent_bus.ports import Gate
from enhanced_agent_bus.verdict import Pass, Reason, Refusal

GATES_SHOWN_MAX: Final = 16  # names in a record: it has room for so many, however long they are


class Gates:
    """They are asked before the policy; all must pass."""

    def __init__(self, gates: Sequence[Gate], seconds_max: float) -> None:
        """Each has so many seconds."""
        self._gates = tuple(gates)
        self._names = tuple(_capped(gate.name, NAME_CHARS_MAX) for gate in gates)
        self._all_passed = self._asked(len(self._gates), None)
        self._seconds_max = seconds_max

    async def refusal(self, case: Case) -> Refusal | None:
        """The first no; None when all pass. The case says which were asked."""
        for number, gate in enumerate(self._gates):
            answer = await self._ask(gate, Message(case.addressed.envelope, attempt=case.attempt))
            if isinstance(answer, Refusal):
                case.gates = self._asked(number, self._names[number])
                return answer
        case.gates = self._all_passed
        return None

    def _asked(self, passed: int, refused: str | None) -> Mapping[str, object]:
        """What a record says of the user's gates: how many passed, the first of them, and which one refused."""
        return {"passed": passed, "names": self._names[: min(passed, GATES_SHOWN_MAX)], "refused": refused}

    async def _ask(self, gate: Gate, message: Message) -> Pass | Refusal:
        try:
            async with asyncio.timeout(self._seconds_max) as limit:
                answer: object = await gate.check(message)
        except BaseException as error:  # A gate that breaks has not said yes, whatever it raised.
            if _not_its_own(error):
                raise
            what = "took too long" if isinstance(error, TimeoutError) else f"raised {type(error).__name__}"
            return Refusal(
                "gate_broken", f"the gate {gate.name} {what}", "mend the gate; the message was not delivered"
            )
        if limit.expired():  # it swallowed its deadline, and what it says comes late
            return Refusal("gate_broken", f"the gate {gate.name} took too long", "make it answer sooner")
        if isinstance(answer, Pass):
            return answer
        if isinstance(answer, Refusal):
            said = (_capped(answer.code, NAME_CHARS_MAX), _capped(answer.message), _capped(answer.remedy))
            return Refusal("gate_refused", reasons=(Reason(gate.name, *said),))
        return Refusal("gate_silent", f"the gate {gate.name} answered neither way", "return Pass() or Refusal(...)")


def _not_its_own(error: BaseException) -> bool:
    """Whether somebody ends the process or this task, so that a gate's call only passes it on."""
    task = asyncio.current_task()
    cancelled = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
    return cancelled or isinstance(error, KeyboardInterrupt | GeneratorExit)


def _capped(said: object, chars_max: int = TEXT_CHARS_MAX) -> str:
    """A gate's words as a record can hold them: not too long, and no lone surrogates."""
    return str(said)[:chars_max].encode("utf-8", "backslashreplace").decode()
