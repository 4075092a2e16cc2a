"""What must hold of several nodes, seen from their disks, their handlers and those who sent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from enhanced_agent_bus import AgentBus, Message
from enhanced_agent_bus.ports import Entry
from tests.developer import ENDS, adds_up

LINES: Final = 120


@dataclass(slots=True)
class Known:
    """What one node's disk says of one message."""

    digest: str
    state: str
    unused: bool = False  # its newest record is an allow that no handler has run on
    allowed: bool = False  # there was an allow at all
    ends: list[str] = field(default_factory=list)


class SeaWatch:
    """All nodes of one run."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.found: list[str] = []
        self.history: list[tuple[Any, ...]] = []
        self.known: dict[str, dict[str, Known]] = defaultdict(dict)
        self.sent: dict[str, str] = {}  # what was acknowledged, and by which node
        self.rough = False  # something has died or was cut off: messages may run twice
        self.ran: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()

    def note(self, *what: Any) -> None:
        self.history.append((self._now(), *what))

    def blame(self, what: str) -> None:
        self.note("BROKEN", what)
        self.found.append(f"at {self._now():.6f} s: {what}")

    def story(self, about: str = "") -> str:
        """What was found, and what came before; or all that there is about one word."""
        lines = [line for line in self.history if about in " ".join(map(str, line))][-LINES:]
        return "\n".join([*self.found[:5], "", *(f"{line[0]:12.6f} {' '.join(map(str, line[1:]))}" for line in lines)])

    def accepted(self, node: str, message_id: str) -> None:
        self.sent[message_id] = node
        if message_id not in self.known[node]:
            self.blame(f"{message_id} was acknowledged by {node}, and is not on its disk")

    def at_rest(self, buses: Mapping[str, AgentBus]) -> None:
        """Everything has ended: each message once where it was sent, and all adds up."""
        for message_id, node in self.sent.items():
            if self.known[node][message_id].state not in ENDS:
                self.blame(f"{message_id} has no end on {node}: {self.known[node][message_id].state}")
            elif self.known[node][message_id].state == "delivered" and not self.ran[message_id]:
                self.blame(f"{message_id} was delivered, and no handler ran")
        for node, bus in buses.items():
            accounting = bus.status().accounting
            if not adds_up(accounting) or accounting["accepted"] != len(self.known[node]):
                self.blame(f"P5: {node} has {len(self.known[node])} messages and says {accounting}")
        for message_id, times in self.finished.items():
            if times > 1 and not self.rough:
                self.blame(f"{message_id} was handled {times} times, and nothing had gone wrong")


class NodeWatch:
    """One node: what its disk is told, and what its handlers get."""

    def __init__(self, sea: SeaWatch, name: str) -> None:
        self._sea = sea
        self._name = name
        self.bus: AgentBus | None = None
        self.dies_on_reply: Callable[[], object] | None = None  # once, as soon as one from elsewhere is on its disk

    def open(self, size: int) -> None:
        self._sea.note(self._name, "opens with", size)

    def durable(self, seq: int, entry: Entry) -> None:
        sea = self._sea
        fields: Any = entry.fields
        said = [fields.get(name) for name in ("why", "verdict", "state", "event", "code") if fields.get(name)]
        sea.note(self._name, seq, entry.kind, entry.message_id or "", *said)
        if entry.message_id is None:
            return
        known = sea.known[self._name]
        if entry.opening is not None:
            if entry.message_id in known:
                sea.blame(f"{entry.message_id} was opened twice on {self._name}")
            dies = self.dies_on_reply
            if dies is not None and fields.get("why") == "receive" and entry.opening.envelope.type == "response":
                self.dies_on_reply = None
                dies()
            known[entry.message_id] = Known(entry.opening.envelope.digest, entry.opening.state)
        life = known.get(entry.message_id)
        if life is None:
            return
        if entry.kind == "decision":
            life.unused = fields["verdict"] == "allow"
            life.allowed |= life.unused
        if entry.move is not None:
            if entry.move.state in ENDS and life.state in ENDS and life.state != "dead_lettered":
                sea.blame(f"{entry.message_id} ended again on {self._name}: {life.state}, {entry.move.state}")
            life.state = entry.move.state
            if life.state == "delivered":
                sea.finished[entry.message_id] += fields.get("by") is None

    def told(self, seq: int, entry: Entry) -> None:
        """The bus has heard of it."""

    def settled(self, accounting: Mapping[str, int]) -> None:  # noqa: ARG002 - as the ledger says it
        if self.bus is not None and not adds_up(self.bus.status().accounting):
            self._sea.blame(f"P5: {self._name}: {self.bus.status().accounting}")

    def runs(self, message: Message) -> None:
        """A handler begins: on an allow of this node, and one of where it was sent."""
        sea = self._sea
        sea.note(self._name, "runs", message.id, message.attempt)
        sea.ran[message.id] += 1
        life = sea.known[self._name].get(message.id)
        if life is None or not life.unused or life.digest != message.digest:
            sea.blame(f"P1: {message.id} runs on {self._name}, whose newest record of it is no allow")
            return
        life.unused = False
        if not any(
            message.id in known and known[message.id].allowed and known[message.id].digest == message.digest
            for node, known in sea.known.items()
            if node != self._name or sea.sent.get(message.id, node) == node
        ):
            sea.blame(f"P1: {message.id} runs on {self._name}, and no other node has allowed it")
