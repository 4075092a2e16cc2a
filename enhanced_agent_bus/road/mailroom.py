"""Into the mailbox, now or after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.road.desk import Desk, Post
from enhanced_agent_bus.road.endings import Endings

AGAIN_SECONDS: Final = 0.5
AGAIN_TIMES_MAX: Final = 8.0  # 4 s: soon after the disk or the policy engine is back, so are the messages


class Mailroom:
    """Brings messages to their recipients' mailboxes."""

    def __init__(self, desk: Desk, endings: Endings) -> None:
        self._desk = desk
        self._endings = endings
        self.send_abroad: Callable[[Parcel], None] | None = None  # takes what is for agents of other nodes

    def carry(self, post: Post, parcel: Parcel) -> None:
        """Into the mailbox; `recorded` is the ticket, or a worker gets a new one first."""
        if self._desk.registry.party(post.agent_id) is None:
            self._endings.end(parcel, "dead_lettered", "handler_absent")
            return
        if self.send_abroad is not None and self._desk.registry.nodes_of(post.agent_id):
            self.send_abroad(parcel)
            return
        if parcel.replier is not None and post.breaker.state(self._desk.clock.monotonic()) == "open":
            self._endings.end(parcel, "dead_lettered", "breaker_open", error=parcel.error)
            return
        parcel.state = "queued" if post.handler is not None else "parked"
        post.mailbox.put(parcel, parcel.envelope.priority, parcel.envelope.tenant)
        if parcel.state == "parked":
            self._desk.changed.set()

    def undecided(self, parcel: Parcel) -> None:
        """Nobody could say whether it may go on, or that could not be recorded: it is asked again after a while."""
        seconds = AGAIN_SECONDS * min(2.0**parcel.undecided, AGAIN_TIMES_MAX) * (1 - self._desk.chance() / 2)
        parcel.undecided += 1
        parcel.state = "retrying"
        parcel.recorded = None
        parcel.due_us = self._desk.clock.now_us() + int(seconds * 1e6)
        parcel.timer = asyncio.get_running_loop().call_later(seconds, self._due, parcel)
        self._endings.watch(parcel)
        self._desk.changed.set()

    def wake(self) -> None:
        """What waits to be asked about again is asked now."""
        for parcel in list(self._desk.live.values()):
            if parcel.undecided and parcel.timer is not None and parcel.state == "retrying":
                parcel.timer.cancel()
                parcel.undecided = 0
                self._due(parcel)

    def _due(self, parcel: Parcel) -> None:
        parcel.timer = None
        if not parcel.ending and not self._desk.closed:
            self.carry(self._desk.post(parcel.envelope.recipient), parcel)
