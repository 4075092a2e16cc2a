"""What messages and replies of other nodes have in common: who vouches for them, their case, their record, their end.

Not here: letters (inbox), and what is done with a message (receiving) or a reply (hearing).
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

from enhanced_agent_bus.admission.chain import Decided
from enhanced_agent_bus.admission.sight import Case
from enhanced_agent_bus.delivery.parcel import Arrival, Parcel
from enhanced_agent_bus.errors import BusError, TransportAway
from enhanced_agent_bus.letters.dsse import BadLetter
from enhanced_agent_bus.letters.tickets import Ticket, check_time
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import Outcome
from enhanced_agent_bus.ports import Handed
from enhanced_agent_bus.road.desk import NOBODY, Desk, Post
from enhanced_agent_bus.road.outbox import Outbox
from enhanced_agent_bus.road.roster import Roster
from enhanced_agent_bus.road.sending import Sending
from enhanced_agent_bus.verdict import Party, Refusal

LATER_SECONDS: Final = 1.0
LATER_TIMES_MAX: Final = 30.0


class Arrivals:
    """Has what arrives decided here, and tells its sender's node how it ended."""

    def __init__(self, desk: Desk, sending: Sending, outbox: Outbox, roster: Roster) -> None:
        self._desk = desk
        self._sending = sending
        self._outbox = outbox
        self._roster = roster
        self._deciding: dict[str, bool] = {}  # ids of letters that are looked at; True: on their way to the disk

    async def alone(self, message_id: str, handed: Handed, work: Coroutine[Any, Any, bool]) -> bool:
        """Of letters of one id a single one is looked at, until what was decided of it is on disk or cannot be."""
        if message_id in self._deciding or message_id in self._desk.rising:
            work.close()
            await handed.again(LATER_SECONDS)
            return False
        self._deciding[message_id] = False
        try:
            return await work
        finally:
            if not self._deciding.get(message_id):
                self._decided(message_id)

    def _decided(self, message_id: str, _error: BusError | None = None) -> None:
        self._deciding.pop(message_id, None)

    async def later(self, handed: Handed) -> bool:
        """Nobody has said no: it is decided when it comes again, each time after a longer pause."""
        await handed.again(min(LATER_SECONDS * 2.0 ** min(handed.times - 1, 10), LATER_TIMES_MAX))
        return False

    async def recorded(self, parcel: Parcel, decided: Decided, post: Post | None) -> int:
        message_id = parcel.envelope.id
        self._deciding[message_id] = True
        return await self._sending.record(
            parcel, decided, post, partial(self._decided, message_id), why="receive"
        ).wait()

    def case(
        self, envelope: Envelope, ticket: Ticket, sender: Party, recipient: Party, refusal: Refusal | None
    ) -> Case:
        return Case(
            self._desk.router.address(envelope, sender, recipient),
            why="receive",
            cause=self._cause(envelope),
            refusal=refusal,
            ticket=named(ticket),
            now_us=self._desk.clock.now_us(),
        )

    def _cause(self, envelope: Envelope) -> dict[str, str] | None:
        """What a message follows from, where this node knows that its sender was given it."""
        if envelope.cause is None:
            return None
        live = self._desk.live.get(envelope.cause)
        stored = self._desk.ledger.find(envelope.cause) if live is None else None
        before = live.envelope if live is not None else stored.envelope if stored is not None else None
        if before is None or before.recipient != envelope.sender:
            return None
        return {"id": before.id, "type": before.type, "sender": before.sender, "tenant": before.tenant}

    async def vouched(self, envelope: Envelope, ticket: Ticket, recipient: Party) -> tuple[Party, Refusal | None]:
        """The sender as the shared registrations have it, and what speaks against the message before any policy."""
        node = ticket.origin.rpartition("/")[2]
        if node not in self._roster.nodes_of(envelope.sender):
            await self._roster.look_up(envelope.sender)  # it may have registered just now
        sender = self._desk.registry.party(envelope.sender)
        if sender is None or node not in self._roster.nodes_of(envelope.sender) or sender.tenant != envelope.tenant:
            why = f"{envelope.sender} of {envelope.tenant} is not an agent of the node {node}"
            return NOBODY, Refusal("identity_unproven", why, "register it on the node that it sends from")
        if recipient.tenant != envelope.recipient_tenant:
            why = f"{recipient.id} is of another tenant than it was sent to"
            return sender, Refusal("recipient_unknown", why, "send it again")
        try:
            check_time(ticket, self._desk.clock.now_us())
        except BadLetter as bad:
            return sender, Refusal(bad.code, str(bad), "send it again, or with more time")
        hops_max = self._desk.settings.limits.hops
        if envelope.hops > hops_max and ticket.answers is None:  # a reply runs no handler: no hop limit
            why = f"{envelope.hops} hops, {hops_max} are allowed"
            return sender, Refusal("hop_limit", why, "break the loop of agents")
        return sender, self._desk.cut_off() or self._desk.stops.refusal(envelope)

    def ended(self, parcel: Parcel, outcome: Outcome, seq: int) -> None:
        """A message from another node has ended here, on disk: its sender's node hears of it, then the transport."""
        arrival = parcel.arrival
        assert arrival is not None
        work = self._settle(parcel, arrival, outcome, seq)
        self._outbox.own(work, f"the end of {parcel.envelope.id}", to_the_end=True)

    async def _settle(self, parcel: Parcel, arrival: Arrival, outcome: Outcome, seq: int) -> None:
        if arrival.answer is not None:
            await arrival.answer  # the letter of its reply says how it ended
        else:
            await self._outbox.tell(arrival.node, self._outbox.notice(parcel, outcome, seq))
        if arrival.handed is not None:
            with suppress(TransportAway):
                await arrival.handed.done()


def named(ticket: Ticket) -> dict[str, Any]:
    """The record that a message left its node on, as the decision here names it."""
    known = {"origin": ticket.origin, "seq": ticket.seq, "decision_id": ticket.decision_id}
    return {**known, "constitution": ticket.constitution, "revision": ticket.revision}
