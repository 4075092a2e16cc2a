"""This bus as one node of several: what `AgentBus` does more where a transport joins it with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from enhanced_agent_bus.admission.constitution import Constitutions
from enhanced_agent_bus.delivery.parcel import Arrival, Parcel
from enhanced_agent_bus.letters.dsse import Signs
from enhanced_agent_bus.letters.keys import PublicKey, write_vkey
from enhanced_agent_bus.ports import AgentRow, Entry, StoredMessage, Transport
from enhanced_agent_bus.road.charter import Charter
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.inbox import Inbox
from enhanced_agent_bus.road.mailroom import Mailroom
from enhanced_agent_bus.road.outbox import REPLIES, RETURNED, Outbox
from enhanced_agent_bus.road.replies import Replies
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.road.roster import Roster
from enhanced_agent_bus.road.sending import Sending
from enhanced_agent_bus.road.spread import Spread
from enhanced_agent_bus.road.stopping import Stopping
from enhanced_agent_bus.road.vouching import PACE_SECONDS, VouchingNodes
from enhanced_agent_bus.road.witnessing import Witnessing
from enhanced_agent_bus.verdict import Refusal


def _nothing() -> None:
    """Where nothing is signed."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a bus needs to be one of several."""

    transport: Transport
    signer: Signs  # this node's key, named as its log is
    believed: Mapping[str, PublicKey] | None = None  # the nodes that are trusted; None: all that are listed
    lease_seconds: float = 10.0
    newest: Callable[[], str | None] = _nothing  # our newest signed checkpoint
    pace_seconds: float = PACE_SECONDS


class Nodes:
    """Joins the stations of one bus with those of others."""

    def __init__(
        self,
        joined: Joined,
        desk: Desk,
        endings: Endings,
        mailroom: Mailroom,
        rescue: Rescue,
        sending: Sending,
        replies: Replies,
        witnessing: Witnessing,
        charter: Charter,
        stopping: Stopping,
        constitutions: Constitutions,
        *,
        let_go: Callable[[str], None],
    ) -> None:
        """`let_go` ends the workers of an agent."""
        self._desk = desk
        self._endings = endings
        self._mailroom = mailroom
        self._transport = joined.transport
        signer = joined.signer
        self.roster = Roster(
            desk,
            joined.transport,
            vkey=write_vkey(signer.name, signer.key.public_key()),
            believed=joined.believed,
            lease_seconds=joined.lease_seconds,
        )
        self._vouching = VouchingNodes(
            desk, joined.transport, signer, self.roster, witnessing, joined.newest, joined.pace_seconds
        )
        self.spread = Spread(desk, charter, constitutions, joined.transport)
        self._stopping = stopping
        self.spread.look_first = stopping.look
        charter.known = self.spread.known
        self.roster.look = self.spread.look
        self._let_go = let_go
        self.roster.on_arrived = self._arrived
        self.roster.on_lost = self._lost
        self._outbox = Outbox(desk, endings, mailroom, rescue, joined.transport, signer)
        self._inbox = Inbox(
            desk, endings, rescue, sending, replies, self._outbox, self.roster, joined.transport, signer
        )
        rescue.came_from = self._came_from
        mailroom.send_abroad = self._outbox.hand_over
        replies.send_abroad = self._outbox.reply

    @property
    def weakenings(self) -> list[str]:
        return [*self._transport.weakenings, *self.roster.weakenings]

    @property
    def witnessed(self) -> bool:
        """Whether another node has the newest checkpoint of this log on record."""
        return self._vouching.witnessed

    async def join(self) -> None:
        """Before anything is taken up: knows who is where when it returns. Raises: TransportAway; ConfigInvalid."""
        await self._stopping.join(self._transport)
        await self.spread.start()
        await self.roster.start()
        self._desk.cut_off = self.cut_off

    def cut_off(self) -> Refusal | None:
        """Why this node decides nothing now."""
        return self.roster.cut_off() or self.spread.cut_off() or self._stopping.cut_off()

    async def start(self) -> None:
        """Takes letters in from now on. Raises: TransportAway."""
        await self._inbox.start()
        await self._vouching.start()

    async def stop(self) -> None:
        """Brings out what is on its way, takes no more letters in, and leaves."""
        await self._outbox.drain()
        await self._inbox.stop()
        await self._outbox.stop()
        await self._vouching.stop()
        await self.spread.stop()
        await self._stopping.leave()
        await self.roster.stop()

    async def register(self, row: AgentRow, *, shared: bool) -> str | None:
        """Raises: AgentExists; TransportAway."""
        return await self.roster.claim(row, shared=shared)

    async def serve(self, agent_id: str) -> None:
        """An agent of ours has a handler. Raises: TransportAway."""
        await self._inbox.serve(agent_id)

    async def unregister(self, row: AgentRow) -> None:
        """Raises: TransportAway."""
        await self._inbox.leave(row.id)
        await self.roster.release(row)

    def takes_up(self, stored: StoredMessage, parcel: Parcel) -> bool:
        """After a restart: True for what is between nodes, and not to be taken up like what was sent here."""
        if stored.state == "handed_over":
            parcel.placed = parcel.envelope.type not in REPLIES
            if parcel.placed:
                self._desk.post(parcel.envelope.recipient).mailbox.occupy()
            self._outbox.take_up(parcel)
            return True
        if parcel.arrival is None:
            return False
        parcel.arrival = None  # nobody is told: it has not ended
        parcel.placed = False
        self._endings.end(parcel, "discarded", RETURNED)
        return True

    def _came_from(self, stored: StoredMessage) -> Arrival | None:
        """Of which node a stored message came, if it did."""
        try:
            came: dict[str, Any] | None = orjson.loads(self._desk.ledger.record(stored.seq)).get("ticket")
        except KeyError:  # a ledger in memory forgets records
            came = None
        return None if came is None else Arrival(None, came["origin"], came["decision_id"])

    def _lost(self, agent_id: str) -> None:
        """An agent of ours was taken over: it runs there now, and what the transport gave us for it goes there too."""
        row = self._desk.registry.row(agent_id)
        self._desk.registry.release(agent_id, forget=row)
        self._let_go(agent_id)
        self._desk.ledger.put(Entry("agent", {"event": "lost", "agent": agent_id}))
        self._outbox.own(self._inbox.leave(agent_id), f"leaving the box of {agent_id}")
        for parcel in list(self._desk.live.values()):
            here = parcel.envelope.recipient == agent_id and parcel.arrival is not None and parcel.placed
            if here and parcel.state != "in_flight" and not parcel.ending:
                self._outbox.give_back(parcel)

    def _arrived(self, agent_id: str) -> None:
        """An agent that was absent here is on another node now: what waits for it goes there."""
        post = self._desk.posts.get(agent_id)
        if post is None or self._desk.closed:
            return
        for parcel in post.mailbox.items():
            post.mailbox.remove(parcel)
            self._outbox.hand_over(parcel)
