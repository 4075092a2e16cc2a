"""A message under way: the one mutable thing about it, owned by the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enhanced_agent_bus.errors import BusClosed
from enhanced_agent_bus.message import Envelope, Message
from enhanced_agent_bus.outcome import Outcome
from enhanced_agent_bus.ports import Handed
from enhanced_agent_bus.verdict import Approval, Hold, Reason, Recorded


@dataclass(slots=True, eq=False)
class Arrival:
    """How a message came from another node: the letter in hand, and what its sender's node said of it.

    There is no letter in hand of what is replayed here: its first one was settled when it ended before.
    """

    handed: Handed | None
    origin: str  # the log that has its allow: <bus>/<node>
    decision_id: str
    answer: asyncio.Future[None] | None = None  # its reply's letter, which brings its end as well, once that is taken

    @property
    def node(self) -> str:
        return self.origin.rpartition("/")[2]


@dataclass(slots=True, eq=False)
class Parcel:
    """Where an accepted or held message is.

    `recorded` is the ticket to its next handler run; without one it is decided anew first.
    """

    envelope: Envelope
    expires_us: int
    since_us: int
    state: str = "queued"
    stored: str = "queued"  # its state as the ledger was told last: parked and queued differ by who is live here
    recorded: Recorded | None = None
    why: str = "activation"  # why it would be decided anew
    row: int = -1  # seq of the record that opened it
    attempts: int = 0  # handler runs so far
    attempts_before: int = 0  # of them, those before the last replay
    decision_id: str = ""
    added: Sequence[tuple[str, str, str, str | int | float | None, int | None]] = ()
    counted: bool = False  # it is in its sender's `sent`
    cause: Mapping[str, Any] | None = None
    holds: tuple[Hold, ...] = ()  # what it waits for, or waited for last
    approvals: tuple[Approval, ...] = ()  # for this message until it has ended; a replay wants new ones
    hold_reasons: tuple[Reason, ...] = ()
    hold_expires_us: int = 0
    due_us: int = 0
    timer: asyncio.TimerHandle | None = None
    redact: tuple[str, ...] = ()  # what its handler does not get of the payload, as JSON pointers
    delivered: str | None = None  # the commitment of what its handler got, where that is not the whole payload
    reply: Message | None = None
    reply_id: str | None = None
    replier: asyncio.Future[Message] | None = None  # who waits for the reply of a request
    ending: bool = False  # its end is being recorded
    outcome: Outcome | None = None  # set once that is durable
    waiters: tuple[asyncio.Future[Outcome], ...] = ()
    kept: bool = False  # the bus has closed before its end
    placed: bool = True  # it has a place in its recipient's mailbox
    manual: bool = False  # parked until it is replayed, resumed or discarded; it does not expire
    interrupted: bool = False  # its process ended while its handler ran
    undecided: int = 0  # how often in a row nobody could say whether it may go on
    error: str | None = None  # the type of its handler's last error
    arrival: Arrival | None = None  # it came from another node
    ended_by: Mapping[str, Any] | None = None  # the record on another node's log that its end follows from
    trace: object = None  # what telemetry knows it by, where anybody listens

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def settle(self, outcome: Outcome) -> None:
        """Tells everyone who waits for the end."""
        self.outcome = outcome
        if self.waiters:
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.set_result(outcome)
            self.waiters = ()

    def keep(self) -> None:
        """Tells everyone who waits that the end comes in another process, if it comes."""
        self.kept = True
        if self.state == "in_flight":
            self.state = "queued"  # its handler was stopped, and it starts anew
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(self._closed())
        if self.replier is not None and not self.replier.done():
            self.replier.set_exception(self._closed())
        self.waiters = ()

    def _closed(self) -> BusClosed:
        return BusClosed(
            f"the bus closed before {self.envelope.id} ended",
            remedy="it is kept: open the home again and ask for its outcome",
        )

    async def ended(self, seconds: float | None) -> Outcome:
        """Waits for the end. Raises: TimeoutError; BusClosed."""
        if self.outcome is not None:
            return self.outcome
        if self.kept:
            raise self._closed()
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.waiters = (*self.waiters, waiter)
        if seconds is None:
            return await waiter
        async with asyncio.timeout(seconds):
            return await waiter
