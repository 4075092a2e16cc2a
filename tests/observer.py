"""Who watches a bus and believes nothing that it says of itself: P1 to P7 of the promise, checked at every step.

The observer knows what was sent (from who sent it), what the engine said (from the engine), what is durable (from the
disk), and when handlers run (from the handlers). It holds these against each other, and the bus's answers against them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from enhanced_agent_bus import AgentBus, Message, Outcome, Receipt
from enhanced_agent_bus.ports import Entry
from tests.developer import ENDS, WAITING, adds_up

HISTORY_LINES: Final = 80
DECIDES: Final = ("activated", "unchanged")  # what a policy record says when its constitution decides from there on


@dataclass(slots=True)
class Life:
    """What is durable of one message."""

    digest: str
    body: bytes
    state: str
    seq: int  # of its newest record
    allowed: str | None = None  # the constitution of its newest record, where that is an allow that nobody has used
    ends: set[str] = field(default_factory=set)  # that it has reached; a replay can follow


@dataclass(slots=True)
class Sent:
    """What a sender gave, as it was when it was given."""

    sender: str
    body: bytes
    id: str | None
    never: str | None = None  # why no handler may get it


def packed(payload: object) -> bytes:
    """As bytes that can be compared."""
    return orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)


class Observer:
    """One run, through all its crashes and restarts. `found` has what was broken."""

    def __init__(self, now: Callable[[], float], about: Callable[[Mapping[str, Any]], Any]) -> None:
        """`about` is all of a question that a constitution's answer can depend on, but for facts and approvals."""
        self._now = now
        self._about = about
        self.found: list[str] = []
        self._history: list[tuple[Any, ...]] = []
        self.lives: dict[str, Life] = {}
        self.sent: dict[int, Sent] = {}
        self.active = ""
        self._recorded_active = ""
        self._yes: set[tuple[str, Any]] = set()
        self.gated = False  # whether there is a gate of the user's
        self._passed: dict[str, bool] = {}  # of each message, what it said last, for a run to come
        self._asked: dict[str, Any] = {}  # of each message, what it is about
        self._running: dict[str, str] = {}  # message ids to agents
        self._runs: Counter[str] = Counter()
        self.bus: AgentBus | None = None
        self.places: dict[str, int] = {}  # of each agent's mailbox, as many as there may be
        self.concurrency: dict[str, int] = {}
        self.opened = 0  # how many buses, one after the other
        self._serving = False
        self._opened_at = 0
        self.acknowledged: dict[str, str] = {}  # message ids to receipts' digests
        self.runs = 0

    # --- telling -----------------------------------------------------------------------------------------------------

    def note(self, *what: Any) -> None:
        self._history.append((self._now(), *what))

    def blame(self, what: str) -> None:
        self.note("BROKEN", what)
        self.found.append(f"at {self._now():.6f} s: {what}")

    def story(self) -> str:
        """What was found, and what came before."""
        upto = next((i for i, line in enumerate(self._history) if line[1] == "BROKEN"), len(self._history)) + 8
        lines = self._history[max(0, upto - HISTORY_LINES) : upto]
        return "\n".join([*self.found[:5], "", *(f"{line[0]:12.6f} {' '.join(map(str, line[1:]))}" for line in lines)])

    @property
    def history(self) -> tuple[tuple[Any, ...], ...]:
        return tuple(self._history)

    # --- the bus's life ----------------------------------------------------------------------------------------------

    def opening(self, size: int) -> int:
        """Another bus on the same disk; what came before it has let go."""
        self.opened += 1
        self._opened_at = size
        self.bus = None
        self._running.clear()
        self.active = self._recorded_active
        self._serving = True
        for name in self.places:  # what was kept stays, though there was less room for it
            self.places[name] += sum(life.state not in ENDS for life in self.lives.values())
        return self.opened

    def closing(self) -> None:
        """From here on nothing runs."""
        self._serving = False
        self.bus = None

    # --- the engine and the disk -------------------------------------------------------------------------------------

    def engine_said(self, digest: str, question: Mapping[str, Any], allow: bool) -> None:  # noqa: FBT001 - as `heard`
        self.note("engine", question["message"]["id"], digest[:4], allow)
        if allow:
            self._yes.add((digest, self._about(question)))

    def gate_said(self, message_id: str, passed: bool) -> None:  # noqa: FBT001 - as `heard`
        self.note("gate", message_id, passed)
        self._passed[message_id] = passed

    def durable(self, seq: int, entry: Entry) -> None:
        fields: Any = entry.fields
        message_id = entry.message_id
        self.note("disk", seq, entry.kind, message_id or "", fields.get("verdict") or fields.get("state") or "")
        if entry.kind == "policy" and fields["event"] in DECIDES:
            self._recorded_active = fields["digest"]
        if message_id is None:
            return
        if entry.opening is not None:
            envelope = entry.opening.envelope
            if message_id in self.lives:
                self.blame(f"{message_id} was opened twice")
            self.lives[message_id] = Life(envelope.digest, envelope.body, entry.opening.state, seq)
            self._check_sent(message_id, envelope.body, envelope.sender)
        life = self.lives.get(message_id)
        if life is None:
            return
        if entry.kind == "decision" and fields["digest"] == life.digest:
            self._decided(message_id, life, fields)
            life.seq = seq
        if entry.move is not None:
            if entry.move.was != life.state:
                self.blame(f"{message_id} moves from {entry.move.was}, and is {life.state}")
            if life.state in ENDS and life.state != entry.move.state and not _may_rise(life.state, entry.move.state):
                self.blame(f"{message_id} was {life.state} and becomes {entry.move.state}")
            life.state = entry.move.state
            if life.state in ENDS:
                life.ends.add(life.state)
        if entry.kind == "outcome":
            life.allowed, life.seq = None, seq

    def _decided(self, message_id: str, life: Life, fields: Mapping[str, Any]) -> None:
        life.allowed = None
        if fields["verdict"] != "allow":
            return
        life.allowed = fields["constitution"]
        if life.state == "delivered":
            self.blame(f"P6: {message_id} was delivered and is allowed again")
        about = self._about(
            {**fields["input"], "message": {**fields["input"]["message"], "payload": orjson.loads(life.body)}}
        )
        if (fields["constitution"], about) not in self._yes:
            self.blame(f"P3: {message_id} is allowed under {fields['constitution'][:4]}, which never said so")

    def told(self, seq: int, entry: Entry) -> None:
        fields: Any = entry.fields
        if entry.kind == "policy" and fields["event"] in DECIDES:
            self.note("active", fields["digest"][:4], seq)
            self.active = fields["digest"]

    def settled(self, accounting: Mapping[str, int]) -> None:
        """The bus has heard of a commit: its sum is the disk's."""
        if self.bus is None or not self._serving:
            return
        mine = self.bus.status().accounting
        if not adds_up(mine):
            self.blame(f"P5: it does not add up: {mine}")
        if mine["accepted"] != accounting["accepted"]:
            self.blame(f"P5: {mine['accepted']} are accepted, {accounting['accepted']} on disk: {mine} {accounting}")

    # --- senders -----------------------------------------------------------------------------------------------------

    def sending(self, number: int, sender: str, payload: object, message_id: str | None = None) -> None:
        self.note("send", number, sender, message_id or "")
        self.sent[number] = Sent(sender, packed(payload), message_id and f"{sender}/{message_id}")

    def not_sent(self, number: int, why: str) -> None:
        """Its sender was told that it was not accepted; nobody sends it again."""
        self.note("not sent", number, why)
        self.sent[number].never = why
        if any(runs and orjson.loads(life.body).get("n") == number for life, runs in self._lives_run()):
            self.blame(f"P1: {number} was not accepted ({why}), and has run")

    def _lives_run(self) -> list[tuple[Life, int]]:
        return [(life, self._runs[message_id]) for message_id, life in self.lives.items()]

    def receipt(self, number: int, receipt: Receipt, record: Mapping[str, Any] | None) -> None:
        """A receipt is about what is on disk. `record` is what it points at, as far as that is kept."""
        self.note("receipt", number, receipt.message_id, receipt.state, receipt.code or "")
        if receipt.state == "refused":
            if self.sent[number].id is None:
                self.not_sent(number, f"refused: {receipt.code}")
        else:
            life = self.lives.get(receipt.message_id)
            if life is None or life.digest != receipt.digest:
                self.blame(f"P2: {receipt.message_id} was acknowledged and is not on disk")
            elif orjson.loads(life.body) != orjson.loads(self.sent[number].body):
                self.blame(f"P4: {receipt.message_id} is acknowledged with another payload than was sent")
            self.acknowledged[receipt.message_id] = receipt.digest or ""
        if record is not None:
            verdict = {"accepted": "allow", "held": "hold", "refused": "refuse"}[receipt.state]
            if (record["verdict"], record["decision_id"]) != (verdict, receipt.decision_id):
                self.blame(f"P2: the receipt of {receipt.message_id} points at another record")

    def outcome(self, message_id: str, outcome: Outcome) -> None:
        """Nobody is told of an end that is not on disk."""
        self.note("outcome", message_id, outcome.state)
        life = self.lives.get(message_id)
        if life is None or outcome.state not in life.ends:
            self.blame(f"P2: {message_id} was said to be {outcome.state}, which is not on disk ({life and life.state})")

    def _check_sent(self, message_id: str, body: bytes, sender: str) -> None:
        payload = orjson.loads(body)
        sent = self.sent.get(payload.get("n"))
        if sent is None or packed(payload) != sent.body or sender != sent.sender:
            self.blame(f"P4: {message_id} is on disk as nobody has sent it")
        elif sent.id not in (None, message_id) and not message_id.startswith(f"{sent.id}/"):
            self.blame(f"P4: {message_id} carries what was sent as {sent.id}")
        elif sent.never is not None and self._serving and self.bus is not None and not sent.never.startswith("audit"):
            self.blame(f"P1: {message_id} was not accepted ({sent.never}) and is opened")

    # --- handlers ----------------------------------------------------------------------------------------------------

    def started(self, opened: int, agent_id: str, message: Message) -> None:
        """A handler starts. On what is durable at this instant, it may."""
        if opened < self.opened:
            return  # of a process that was killed: nothing it does is seen
        message_id = message.id
        self.note("run", message_id, agent_id, message.attempt)
        self.runs += 1
        self._runs[message_id] += 1
        if not self._serving:
            self.blame(f"{message_id} started after the bus had closed")
        life = self.lives.get(message_id)
        if life is None:
            self.blame(f"P1: {message_id} runs and is not on disk")
            return
        if life.allowed is None:
            self.blame(f"P1: {message_id} runs ({life.state}) without an allow of its own")
        elif life.seq < self._opened_at:
            self.blame(f"P1: {message_id} runs on an allow of an earlier process")
        elif life.allowed != self.active:
            self.blame(f"P1: {message_id} runs on an allow under {life.allowed[:4]}; {self.active[:4]} is active")
        if life.allowed != message.constitution or message.digest != life.digest:
            self.blame(f"P1: {message_id} names another constitution or digest than were decided")
        life.allowed = None
        if self.gated and not self._passed.pop(message_id, False):
            self.blame(f"P1: {message_id} runs, and the gate has not let it pass for this run")
        if life.state in ENDS:
            self.blame(f"P6: {message_id} runs and is {life.state}")
        if message_id in self._running:
            self.blame(f"P6: {message_id} runs twice at once")
        self._running[message_id] = agent_id
        if message.recipient != agent_id:
            self.blame(f"P4: {message_id} for {message.recipient} came to {agent_id}")
        sent = self.sent.get(message.payload.get("n"))
        if (
            sent is None
            or packed(message.payload) != sent.body
            or packed(message.payload) != packed(orjson.loads(life.body))
        ):
            self.blame(f"P4: {message_id} came as nobody has sent it")
        elif sent.never is not None:
            self.blame(f"P1: {message_id} was not accepted ({sent.never}) and runs")
        self._check_bounds()

    def ended(self, opened: int, message: Message) -> None:
        if opened == self.opened:
            self.note("ran", message.id)
            self._running.pop(message.id, None)

    def _check_bounds(self) -> None:
        for agent_id, most in self.concurrency.items():
            running = sum(agent == agent_id for agent in self._running.values())
            if running > most:
                self.blame(f"P7: {agent_id} runs {running} messages at once, {most} may")
        if self.bus is not None:
            for info in self.bus.agents():
                if not 0 <= info.waiting <= self.places.get(info.id, 1 << 30):
                    self.blame(f"P7: {info.id} has {info.waiting} places taken of {self.places.get(info.id)}")

    # --- the end -----------------------------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Nothing is under way: what waits, waits for somebody, and all places are free but theirs."""
        bus = self.bus
        assert bus is not None
        self._check_bounds()
        waiting = {one.message_id: one for one in bus.queue()}
        dead = {one.message_id for one in bus.dead_letters()}
        if dead & waiting.keys():
            self.blame(f"P5: {dead & waiting.keys()} are waiting and dead")
        for message_id, life in self.lives.items():
            if (life.state in WAITING) != (message_id in waiting) or (life.state == "dead_lettered") != (
                message_id in dead
            ):
                self.blame(f"P5: {message_id} is {life.state} on disk and not in the lists, or the other way")
        for one in waiting.values():
            if one.state not in ("parked", "held"):
                self.blame(f"P5: {one.message_id} never ended: {one.state}")
        places = Counter(one.recipient for one in waiting.values())
        for info in bus.agents():
            if info.waiting != places[info.id]:
                self.blame(f"P7: {info.id} has {info.waiting} places taken for {places[info.id]} messages")
        for message_id in self.acknowledged:
            if message_id not in self.lives:
                self.blame(f"P5: {message_id} was acknowledged and is lost")


def _may_rise(state: str, to: str) -> bool:
    """A replay; or what was ended in doubt, sent again, or taken back."""
    return state in ("dead_lettered", "discarded") and to in ("queued", "held", "discarded", "dead_lettered")
