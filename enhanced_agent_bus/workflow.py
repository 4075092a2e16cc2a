"""Several requests as one: steps that wait for one another, and what takes each back where a later one fails.

A step is a message with the id `RUN/STEP`, its compensation one with the id `RUN/STEP/undo`. The bus answers an id that
it knows with what it recorded, so those messages are the whole state: the same call with the same id goes on where a
crash, a closed bus or a cancelled task has left the run. Which way it goes on follows from the log too: forward,
until the first compensation is in it, and back from then on.

Not here: deciding, delivering, retrying. Each message is the bus's affair, like any other that the agent sends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, Literal

from enhanced_agent_bus import Agent, AgentBus, NotDelivered, Outcome, Reason, Receipt, RequestTimeout

__all__ = ["Call", "Failure", "Result", "SoFar", "Step", "Workflow"]

STEP_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)
MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
UNDO: Final = "undo"


@dataclass(frozen=True, slots=True)
class SoFar:
    """What a payload may be made of: the input, and the replies of the steps that come before. To read only."""

    input: Mapping[str, Any]
    replies: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One message and its reply. As a step's `undo` it may leave out both recipients: whoever did the step undoes it.

    `timeout` is in seconds, and the time after which the message expires too. Delivered is done, also by a handler that
    returns nothing; with `accept`, only where that says yes to the payload of a reply.
    """

    to: str | None = None
    capability: str | None = None
    payload: Callable[[SoFar], Any] | Mapping[str, Any] | None = None
    type: str = "task_request"
    timeout: float = 30.0
    accept: Callable[[Mapping[str, Any]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Step(Call):
    """A call with a name, sent once all steps in `after` are done; `undo` is called where a later one fails.

    Payloads and `accept` have to say the same each time they are asked with the same. A compensation has to bear that
    its step did nothing, or only half of it.
    """

    name: str
    after: Sequence[str] = field(default=(), kw_only=True)
    undo: Call | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Failure:
    """A step, or the compensation of one, that did not succeed.

    `code` is the receipt's or the outcome's, `request_timeout` (late, or not begun for lack of time), `not_accepted`,
    or `no_reply` where there was nothing to accept. None: an earlier call saw it, and only the log can tell.
    """

    step: str
    code: str | None
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. `failed` has what failed first in front; `not_undone` is empty but where `state` is failed."""

    id: str
    state: Literal["completed", "compensated", "failed"]
    replies: Mapping[str, Mapping[str, Any]]
    failed: tuple[Failure, ...] = ()
    undone: tuple[str, ...] = ()
    not_undone: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Workflow:
    """Steps that make one whole.

    `timeout` is for all steps together, counted from the call: no step begins after it, and none is waited for longer.
    Compensations have their own. A step that is late is waited for `settle` seconds more, so that its handler has ended
    before its compensation starts.

    Raises: ValueError, for a circle, an unknown or doubled name, a recipient too many or none, a time of 0 or less.
    """

    name: str
    steps: Sequence[Step]
    timeout: float | None = None
    settle: float = 60.0

    def __post_init__(self) -> None:
        for step in self.steps:
            if not STEP_NAME.fullmatch(step.name) or step.name == UNDO:
                raise ValueError(f"a step cannot be named {step.name!r}: use [a-z0-9._-], and another word than {UNDO}")
            if (step.to is None) == (step.capability is None):
                raise ValueError(f"step {step.name}: give exactly one of `to` and `capability`")
            if step.undo is not None and None not in (step.undo.to, step.undo.capability):
                raise ValueError(f"step {step.name}: undo goes to one of `to` and `capability`")
        names = [step.name for step in self.steps]
        if unknown := {name for step in self.steps for name in step.after} - set(names):
            raise ValueError(f"no step is named {', '.join(sorted(unknown))}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"workflow {self.name} needs steps with a name of its own each")
        calls = [call for step in self.steps for call in (step, step.undo) if call is not None]
        times = [self.settle, *(call.timeout for call in calls), *([] if self.timeout is None else [self.timeout])]
        if not all(seconds > 0 for seconds in times):
            raise ValueError(f"workflow {self.name}: a time has to be more than 0 seconds")
        try:
            self._in_order()
        except CycleError as error:
            raise ValueError(f"steps wait for each other: {' → '.join(reversed(error.args[1]))}") from None

    def _in_order(self) -> list[Step]:
        """The steps, each behind those it waits for; the same order in every process."""
        by_name = {step.name: step for step in self.steps}
        return [by_name[name] for name in TopologicalSorter({s.name: s.after for s in self.steps}).static_order()]

    async def run(self, bus: AgentBus, agent: Agent, input: Mapping[str, Any] | None = None, *, id: str) -> Result:
        """Sends the steps as `agent`, and their compensations where one fails; with an id that is known, goes on.

        All messages have `id` as their conversation, and headers `workflow` and `step`; compensations `undo` too.
        Raises: Refused (`replayed`), when the id is known with another input; NotDelivered (`no_reply`), when a reply
        that `accept` has to see again is not kept; ValueError, when the id cannot be one; AuditUnavailable, BusClosed,
        and what a payload or `accept` raises: the same call goes on from there.
        """
        longest = max(len(step.name) for step in self.steps)
        if not MESSAGE_ID.fullmatch(f"{id}/{'-' * longest}/{UNDO}"):
            raise ValueError(f"{id[:80]!r} cannot be the id of a run: use [A-Za-z0-9._:/-], and fewer than 128")
        run = _Run(self, self._in_order(), bus, agent, input or {}, id)
        if await run.has_turned_back():
            await run.take_up()
            await run.come_to_rest()
        else:
            await run.take_up(to_go_forward=True)
            await run.go_forward()
            if not run.failed:
                return Result(id, "completed", run.replies)
        return await run.go_back()


class _Run:
    """One call of `Workflow.run`: what it knows of the messages on disk."""

    def __init__(
        self, workflow: Workflow, steps: list[Step], bus: AgentBus, agent: Agent, input: Mapping[str, Any], id: str
    ) -> None:
        self._workflow = workflow
        self._steps = steps
        self._bus = bus
        self._agent = agent
        self._input = input
        self._id = id
        self._ends = None if workflow.timeout is None else asyncio.get_running_loop().time() + workflow.timeout
        self._before: dict[str, set[str]] = {}  # all steps that a step waits for, directly or not
        for step in steps:
            self._before[step.name] = set(step.after).union(*(self._before[name] for name in step.after))
        self._receipts: dict[str, Receipt] = {}  # of the steps that were accepted or held, here or before
        self._done: set[str] = set()
        self._never_ran: set[str] = set()  # accepted here, and ended before any handler
        self.replies: dict[str, Mapping[str, Any]] = {}
        self.failed: dict[str, Failure] = {}

    async def take_up(self, *, to_go_forward: bool = False) -> None:
        """Sends again what an earlier call has sent: other content is refused before anything new is sent."""
        for step in self._steps:
            if await self._is_recorded(step.name):
                receipt = self._receipts[step.name] = await self._send(step.name, step, step, step.timeout)
                outcome = await _ended(receipt, 0)
                self._note(step, outcome)
                failure = self.failed.get(step.name)
                if to_go_forward and outcome and failure and failure.code == "no_reply":  # nothing may follow from that
                    remedy = "was it kept (`audit.store_payloads`)? See what it did, and go on under another id"
                    raise NotDelivered(receipt.message_id, outcome, code="no_reply", remedy=remedy)

    async def has_turned_back(self) -> bool:
        """Whether a compensation is on disk."""
        return any([await self._is_recorded(f"{step.name}/{UNDO}") for step in self._steps if step.undo])

    async def come_to_rest(self) -> None:
        """Waits for what an earlier call has sent, and works out what failed there."""
        for step in self._steps:
            if (receipt := self._receipts.get(step.name)) is not None:
                if not self._note(step, await _ended(receipt, self._workflow.settle)):
                    self.failed[step.name] = Failure(step.name, RequestTimeout.default_code)
            elif self._done.issuperset(step.after):  # refused, or there was no time
                self.failed[step.name] = Failure(step.name, None)

    async def go_forward(self) -> None:
        """Runs each step as soon as those before it are done. After a failure none begins, and the others may end."""
        waiting = list(self._steps)
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                for step in list(waiting):
                    may_begin = step.name in self._receipts or not self.failed
                    if may_begin and self._done.issuperset(step.after):
                        waiting.remove(step)
                        running.add(asyncio.create_task(self._run_step(step)))
                if not running:
                    return
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*finished)
        finally:  # only the waiting is cancelled: the messages go on
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def go_back(self) -> Result:
        """Calls the compensation of every step whose handler may have run, the last one first."""
        undone: list[str] = []
        not_undone: list[Failure] = []
        for step in reversed(self._steps):
            if step.undo is None or step.name not in self._receipts or step.name in self._never_ran:
                continue
            failure = await self._undo(step, step.undo)
            if failure is None:
                undone.append(step.name)
            else:
                not_undone.append(failure)
        state: Literal["compensated", "failed"] = "failed" if not_undone else "compensated"
        failed = tuple(self.failed.values())
        return Result(self._id, state, self.replies, failed, tuple(undone), tuple(not_undone))

    async def _run_step(self, step: Step) -> None:
        left = step.timeout if self._ends is None else self._ends - asyncio.get_running_loop().time()
        seconds = min(step.timeout, left)
        receipt = self._receipts.get(step.name)
        sent_here = receipt is None
        if receipt is None:
            if seconds <= 0:
                self.failed[step.name] = Failure(step.name, RequestTimeout.default_code)
                return
            receipt = await self._send(step.name, step, step, seconds)
            if receipt.state == "refused":
                self.failed[step.name] = Failure(step.name, receipt.code, receipt.reasons)
                return
            self._receipts[step.name] = receipt
        outcome = await _ended(receipt, max(seconds, 0))
        if not self._note(step, outcome):  # too late, whatever comes; but how it ends is of use
            self.failed[step.name] = Failure(step.name, RequestTimeout.default_code)
            outcome = await _ended(receipt, self._workflow.settle)
        if sent_here and outcome is not None and outcome.attempts == 0:  # a crash forgets a run that had begun
            self._never_ran.add(step.name)

    async def _undo(self, step: Step, undo: Call) -> Failure | None:
        name = f"{step.name}/{UNDO}"
        try:
            if await self._is_recorded(name):  # its payload may have been made of less than is known now
                return _failure(step.name, undo, await self._bus.outcome(self._full_id(name), undo.timeout))
            receipt = await self._send(name, step, undo, undo.timeout)
            if receipt.state == "refused":
                return Failure(step.name, receipt.code, receipt.reasons)
            return _failure(step.name, undo, await receipt.outcome(undo.timeout))
        except TimeoutError:
            return Failure(step.name, RequestTimeout.default_code)

    async def _send(self, name: str, step: Step, call: Call, seconds: float) -> Receipt:
        """Not a request: a reply that comes when nobody waits any more is to be recorded all the same."""
        headers = {"workflow": self._workflow.name, "step": step.name}
        to, before = call.to, self._before[step.name]
        if call is not step:
            headers[UNDO] = "true"
            before = before | {step.name}
            if to is None and call.capability is None:
                to = self._receipts[step.name].recipient
        so_far = SoFar(self._input, {name: reply for name, reply in self.replies.items() if name in before})
        payload = call.payload(so_far) if callable(call.payload) else call.payload
        receipt = await self._agent.send(
            to, payload, capability=call.capability, type=call.type, id=f"{self._id}/{name}", conversation=self._id,
            headers=headers, expires_in=seconds,
        )  # fmt: skip
        if receipt.code == "replayed":
            receipt.raise_for_refusal()
        return receipt

    def _note(self, step: Step, outcome: Outcome | None) -> bool:
        """Keeps what is known of a step; False when it has not ended."""
        if outcome is None:
            return False
        failure = _failure(step.name, step, outcome)
        if outcome.reply is not None:
            self.replies[step.name] = outcome.reply.payload
        if failure is None:
            self.replies.setdefault(step.name, {})
            self._done.add(step.name)
        else:
            self.failed[step.name] = failure
        return True

    def _full_id(self, name: str) -> str:
        given, prefix = f"{self._id}/{name}", f"{self._agent.id}/"
        return given if given.startswith(prefix) else prefix + given

    async def _is_recorded(self, name: str) -> bool:
        """Whether a message was accepted or held, in whatever process."""
        try:
            outcome = await self._bus.outcome(self._full_id(name), 0)
        except KeyError:
            return False
        except TimeoutError:
            return True
        # One whose record was in doubt never ran, and is sent anew.
        return (outcome.state, outcome.code) != ("discarded", "audit_unavailable")


async def _ended(receipt: Receipt, seconds: float) -> Outcome | None:
    try:
        return await receipt.outcome(seconds)
    except TimeoutError:
        return None


def _failure(name: str, call: Call, outcome: Outcome) -> Failure | None:
    if outcome.state == "expired":
        return Failure(name, RequestTimeout.default_code)
    if outcome.state != "delivered" or outcome.code is not None:
        return Failure(name, outcome.code or outcome.state)
    if call.accept is None:
        return None
    if outcome.reply is None:
        return Failure(name, "no_reply")
    return None if call.accept(outcome.reply.payload) else Failure(name, "not_accepted")
