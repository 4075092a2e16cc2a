"""Sends the lines of `eab run --input` and counts what became of each.

In order a sender, different senders at once; a sender's next line goes out when the last one has its receipt, so that
mailboxes hold the reader back and what is under way stays bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from enhanced_agent_bus.cli.runs.lines import BadLine, Line, LineReader, parse_line
from enhanced_agent_bus.errors import BusClosed, BusError

if TYPE_CHECKING:
    from enhanced_agent_bus import Agent, AgentBus
    from enhanced_agent_bus.outcome import Outcome, Receipt

AHEAD_MAX: Final = 64  # lines that wait for one sender; reading waits when there are more
BAD_LINES_KEPT_MAX: Final = 100  # shown by number; more are only counted


@dataclass(slots=True)
class Tally:
    """What became of the lines so far."""

    lines: int = 0  # that say something
    blank: int = 0
    sent: int = 0  # messages: a topic makes one a subscriber
    ended: int = 0
    repeated: int = 0  # an id that the bus had already: answered, not run again
    no_subscriber: int = 0
    retried: int = 0  # more than one handler run, however it ended
    states: Counter[str] = field(default_factory=Counter)  # of contract §2, and held, parked, ...
    codes: Counter[str] = field(default_factory=Counter)  # of refused messages
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)  # (code, rule); a message may have several
    bad_count: int = 0
    bad: list[BadLine] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)  # state → the id of one such message
    unsent: int = 0  # read, and then the run was stopped
    elapsed_seconds: float = 0.0

    def refuse(self, receipt: Receipt) -> None:
        """Counts a message once, and each rule that refused it."""
        self._count("refused", receipt.message_id)
        rules = {reason.rule for reason in receipt.reasons if reason.rule} if receipt.code == "policy_denied" else set()
        self.codes[receipt.code or "?"] += 1
        for rule in rules or {""}:
            self.refusals[receipt.code or "?", rule] += 1

    def end(self, message_id: str, outcome: Outcome) -> None:
        self._count(outcome.state, message_id)
        self.retried += outcome.attempts > 1
        if outcome.state == "refused":
            self.codes[outcome.code or "?"] += 1
            self.refusals[outcome.code or "?", ""] += 1

    def wait(self, message_id: str, state: str) -> None:
        """A message that is held or parked: it goes on when someone acts."""
        self._count(state, message_id)

    def bad_line(self, bad: BadLine) -> None:
        self.bad_count += 1
        if len(self.bad) < BAD_LINES_KEPT_MAX:
            self.bad.append(bad)

    def _count(self, state: str, message_id: str) -> None:
        self.ended += 1
        self.states[state] += 1
        self.examples.setdefault(state, message_id)

    @property
    def settled(self) -> int:
        """How many lines need no more waiting."""
        return self.ended + self.repeated + self.no_subscriber + self.bad_count + self.unsent

    @property
    def per_second(self) -> float:
        return self.ended / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    def document(self) -> dict[str, Any]:
        """The summary as JSON."""
        states = ("delivered", "refused", "held", "parked", "dead_lettered", "expired", "discarded", "queued")
        return {
            "lines": self.lines,
            "blank_lines": self.blank,
            "messages": self.sent,
            **{state: self.states[state] for state in states},
            "retried": self.retried,
            "repeated": self.repeated,
            "no_subscriber": self.no_subscriber,
            "unsent": self.unsent,
            "refused_by_code": dict(self.codes.most_common()),
            "refused_by_rule": {rule: count for (_, rule), count in self.refusals.most_common() if rule},
            "bad_lines": self.bad_count,
            "bad": [{"line": bad.number, "message": bad.message} for bad in self.bad],
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "messages_per_second": round(self.per_second, 1),
        }


class Feed:
    """One run of lines through one bus."""

    def __init__(
        self, bus: AgentBus, tally: Tally, *, on_change: Callable[[], None], on_bad: Callable[[BadLine], None]
    ) -> None:
        self._bus = bus
        self._tally = tally
        self._on_change = on_change
        self._on_bad = on_bad
        self._first_seq = bus.status().records
        self._named: set[str] = set()
        self._queues: dict[str, asyncio.Queue[Line | None]] = {}
        self._agents: dict[str, Agent] = {}
        self._waiting: dict[asyncio.Task[None], Receipt] = {}
        self._kept: list[str] = []  # what had not ended when the bus closed
        self._stopped = False
        self.failure: tuple[int, BusError] | None = None  # the line that could not be decided or recorded

    async def send(self, reader: LineReader) -> None:
        """Sends every line; returns when each has its receipt. Raises: OSError, when the lines cannot be read on."""
        started = time.monotonic()
        broken: OSError | None = None
        async with asyncio.TaskGroup() as senders:
            try:
                async for number, raw in reader:
                    await self._take(number, raw, senders)
                    if self.failure is not None:
                        break
            except OSError as error:  # raised after the lines before it were sent
                broken = error
            for queue in self._queues.values():
                await queue.put(None)
        self._tally.elapsed_seconds = time.monotonic() - started
        if broken is not None:
            raise broken

    async def finish(self) -> None:
        """Waits until every message has ended or waits for someone to act, and counts it."""
        started = time.monotonic()
        await self._bus.wait_idle()
        await self.count_rest()
        self._tally.elapsed_seconds += time.monotonic() - started

    async def count_rest(self) -> None:
        """Counts what has ended, and by its state what has not."""
        for _ in range(2):  # an outcome wakes its waiter in a later turn of the loop
            await asyncio.sleep(0)
        left = {receipt.message_id: task for task, receipt in self._waiting.items() if not task.done()}
        for task in left.values():
            task.cancel()
        await asyncio.gather(*left.values(), return_exceptions=True)
        waits = [*self._kept, *left]
        states = {entry.message_id: entry.state for entry in self._bus.queue()} if waits else {}
        for message_id in waits:
            self._tally.wait(message_id, states.get(message_id, "queued"))

    def stop(self) -> None:
        """What has been read and not sent stays unsent."""
        self._stopped = True

    async def _take(self, number: int, raw: bytes | None, senders: asyncio.TaskGroup) -> None:
        line = BadLine(number, "the line is too long") if raw is None else parse_line(number, raw)
        if line is None:
            self._tally.blank += 1
            return
        self._tally.lines += 1
        if isinstance(line, Line) and line.sender not in self._queues:
            line = await self._meet(line, senders)
        if isinstance(line, BadLine):
            self._tally.bad_line(line)
            self._on_bad(line)
            return
        await self._queues[line.sender].put(line)

    async def _meet(self, line: Line, senders: asyncio.TaskGroup) -> Line | BadLine:
        """A sender's first line: finds its agent and starts its queue."""
        try:
            self._agents[line.sender] = await self._bus.agent(line.sender)
        except KeyError:
            return BadLine(line.number, f"from names {line.sender!r}, and no such agent is registered")
        queue = self._queues[line.sender] = asyncio.Queue(AHEAD_MAX)
        senders.create_task(self._work(queue), name=f"lines of {line.sender}")
        return line

    async def _work(self, queue: asyncio.Queue[Line | None]) -> None:
        while (line := await queue.get()) is not None:
            if self._stopped or self.failure is not None:
                self._tally.unsent += 1
                continue
            try:
                receipts = await self._send_one(line)
            except BusError as error:
                self._fail(line, error)
                continue
            if not receipts:
                self._tally.no_subscriber += 1
            for receipt in receipts:
                self._follow(line, receipt)
            self._on_change()

    def _fail(self, line: Line, error: BusError) -> None:
        """The first line that could not be decided or recorded ends the run; one that a stop overtook does not."""
        if self.failure is None and not self._stopped:
            self.failure = (line.number, error)
        self._tally.unsent += 1

    async def _send_one(self, line: Line) -> list[Receipt]:
        agent = self._agents[line.sender]
        common: dict[str, Any] = {
            "type": line.type,
            "priority": line.priority,
            "id": line.id,
            "conversation": line.conversation,
            "headers": line.headers,
            "expires_in": line.expires_in,
        }
        if line.topic is not None:
            return list(await agent.publish(line.topic, line.payload, **common))
        return [await agent.send(line.to, line.payload, capability=line.capability, **common)]

    def _follow(self, line: Line, receipt: Receipt) -> None:
        if line.id is not None and receipt.state != "refused":
            if receipt.message_id in self._named or receipt.audit_seq < self._first_seq:
                self._tally.repeated += 1
                return
            self._named.add(receipt.message_id)
        self._tally.sent += 1
        if receipt.state == "refused":
            self._tally.refuse(receipt)
        elif receipt.state == "held":
            self._tally.wait(receipt.message_id, "held")
        else:
            task = asyncio.create_task(self._await_end(receipt), name=f"outcome of {receipt.message_id}")
            self._waiting[task] = receipt
            task.add_done_callback(self._waiting.pop)

    async def _await_end(self, receipt: Receipt) -> None:
        try:
            self._tally.end(receipt.message_id, await receipt.outcome())
        except BusClosed:
            self._kept.append(receipt.message_id)
        self._on_change()
