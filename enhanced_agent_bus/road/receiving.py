"""Messages from other nodes for agents of this one: decided here before anything else happens, and carried.

The same letter again is answered with what is known of its message, and runs nothing. Not here: letters (inbox), and
what other nodes say to this one (hearing).
"""

from __future__ import annotations

import logging
from typing import Final

import orjson

from enhanced_agent_bus.delivery.parcel import Arrival, Parcel
from enhanced_agent_bus.delivery.runner import misfits
from enhanced_agent_bus.letters.dsse import BadLetter
from enhanced_agent_bus.letters.tickets import Ticket
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, Outcome
from enhanced_agent_bus.ports import Handed, StoredMessage
from enhanced_agent_bus.road.arrivals import LATER_SECONDS, Arrivals, named
from enhanced_agent_bus.road.desk import NOBODY, Desk
from enhanced_agent_bus.road.inquiries import Inquiries
from enhanced_agent_bus.road.outbox import RETURNED, Outbox
from enhanced_agent_bus.road.rescue import UNDECIDED, Rescue
from enhanced_agent_bus.road.sending import Sending
from enhanced_agent_bus.verdict import Party, Refusal

NO_ROOM_SECONDS: Final = 0.2
DECISIONS_MAX: Final = 1000  # that are looked at of one message

logger = logging.getLogger(__name__)


class Receiving:
    """What becomes of messages from other nodes."""

    def __init__(
        self,
        desk: Desk,
        rescue: Rescue,
        sending: Sending,
        outbox: Outbox,
        arrivals: Arrivals,
        inquiries: Inquiries,
    ) -> None:
        self._desk = desk
        self._rescue = rescue
        self._sending = sending
        self._outbox = outbox
        self._arrivals = arrivals
        self._inquiries = inquiries

    async def take(self, recipient: Party, envelope: Envelope, ticket: Ticket, handed: Handed) -> bool:
        """True when the letter needs no more; a message that was taken in is settled when it has ended."""
        if self._desk.stops.find(envelope) is not None:
            await handed.again(LATER_SECONDS)  # it waits, as what was accepted here does
            return False
        live = self._desk.live.get(envelope.id)
        stored = self._desk.ledger.find(envelope.id)
        if live is not None or stored is not None:
            return await self._known(recipient, envelope, ticket, handed, live, stored)
        try:
            if handed.times > 1 and not await self._inquiries.still_open(ticket, envelope):
                return True  # it has ended elsewhere
        except BadLetter as bad:
            logger.warning("an answer on %s cannot be believed: %s", envelope.id, bad)
            await handed.again(LATER_SECONDS)
            return False
        return await self._receive(recipient, envelope, ticket, handed)

    async def _receive(self, recipient: Party, envelope: Envelope, ticket: Ticket, handed: Handed) -> bool:
        """A message that is new here: decided, recorded, and carried to its mailbox if the answer is yes."""
        post = self._desk.post(recipient.id)
        if not post.mailbox.reserve():
            await handed.again(NO_ROOM_SECONDS)
            return False
        accepted = False
        try:
            sender, refusal = await self._arrivals.vouched(envelope, ticket, recipient)
            if refusal is None and post.model is not None and (misfit := misfits(post.model, envelope.body)):
                why = f"{recipient.id} does not take this payload: {misfit}"
                refusal = Refusal("malformed", why, "send what it takes")
            case = self._arrivals.case(envelope, ticket, sender, recipient, refusal)
            arrival = Arrival(handed, ticket.origin, ticket.decision_id)
            parcel = Parcel(envelope, ticket.expires_us, case.now_us, cause=case.cause, arrival=arrival)
            decided = await self._desk.admission.judge(case)
            accepted = decided.verdict != "refuse"
            seq = await self._arrivals.recorded(parcel, decided, post)
        finally:
            if not accepted:
                post.mailbox.release()
        if accepted:
            return False
        if decided.code in UNDECIDED:
            return await self._arrivals.later(handed)
        parcel.decision_id = decided.decision_id
        await self._outbox.tell(arrival.node, self._outbox.notice(parcel, Outcome("refused", 0, decided.code), seq))
        return True

    async def _known(
        self,
        recipient: Party,
        envelope: Envelope,
        ticket: Ticket,
        handed: Handed,
        live: Parcel | None,
        stored: StoredMessage | None,
    ) -> bool:
        """The same id again: what is known of it is said, and nothing runs twice for the same letter."""
        before = live.envelope if live is not None else stored.envelope if stored is not None else envelope
        if before.digest != envelope.digest:
            bad = BadLetter("replayed", f"{envelope.id} came before with other content")
            decision_id, seq = await self.turn_away(recipient, bad, envelope=envelope)
            refused = Parcel(envelope, ticket.expires_us, 0, decision_id=decision_id)
            node = ticket.origin.rpartition("/")[2]
            await self._outbox.tell(node, self._outbox.notice(refused, Outcome("refused", 0, bad.code), seq))
            return True
        if live is not None and live.arrival is None:
            return await self._come_home(live, handed)
        if live is not None:
            live.arrival.handed = handed  # type: ignore[union-attr]  # it was handed out again: this one is settled
            return False
        assert stored is not None
        returned = stored.state == "discarded" and stored.code == RETURNED
        risen = stored.state == "dead_lettered" and not self._came_on(stored, ticket)
        if returned or risen:
            stored = stored._replace(envelope=envelope, has_content=True)  # it may not have been kept here
            return await self._take_up_again(stored, ticket, handed)
        if stored.state not in END_STATES or stored.reply_id in self._desk.live:
            await handed.again(LATER_SECONDS)  # not heard of yet; or the letter of its reply says how it ended
            return False
        parcel = self._rescue.parcel_of(stored)
        parcel.reply_id = stored.reply_id
        await self._outbox.tell_again(ticket.origin.rpartition("/")[2], parcel, stored)
        return True

    async def _come_home(self, ours: Parcel, handed: Handed) -> bool:
        """A message that left here for an agent that is on this node by now: it goes on as one that never left."""
        if ours.state == "handed_over" and not ours.ending:
            await self._outbox.take_back(ours)
        stored = self._desk.ledger.find(ours.envelope.id)
        if ours.ending or (stored is not None and stored.state != "handed_over"):
            return True  # on disk: nobody needs the letter any more
        await handed.again(LATER_SECONDS)
        return False

    def _came_on(self, stored: StoredMessage, ticket: Ticket) -> bool:
        """Whether what ended here came with this very ticket; a replay on its sender's node has a newer one.

        The newest of its decisions that have a ticket says so; retries and releases came after that one.
        """
        decision_id: str | None = stored.decision_id
        for _ in range(DECISIONS_MAX):
            body = self._desk.ledger.decision(stored.envelope.id, decision_id) if decision_id else None
            if body is None:
                break
            decision = orjson.loads(body)
            if (came := decision.get("ticket")) is not None:
                return bool(came["decision_id"] == ticket.decision_id)
            decision_id = decision.get("previous")  # a message that was sent here has none
        return False

    async def _take_up_again(self, stored: StoredMessage, ticket: Ticket, handed: Handed) -> bool:
        arrival = Arrival(handed, ticket.origin, ticket.decision_id)
        recipient = self._desk.registry.live(stored.envelope.recipient) or NOBODY
        _, refusal = await self._arrivals.vouched(stored.envelope, ticket, recipient)
        receipt = await self._rescue.replay(
            stored,
            why="receive",
            arrival=arrival,
            ticket=named(ticket),
            expires_us=ticket.expires_us,
            refusal=refusal,
            approved=self._came_on(stored, ticket),
        )
        if receipt.state != "refused":
            return False
        if receipt.code == "queue_full" or receipt.code in UNDECIDED:
            return await self._arrivals.later(handed)
        parcel = self._rescue.parcel_of(stored)
        parcel.decision_id = receipt.decision_id
        outcome = Outcome("refused", stored.attempts, receipt.code)
        await self._outbox.tell(arrival.node, self._outbox.notice(parcel, outcome, receipt.audit_seq))
        return True

    async def turn_away(self, recipient: Party, bad: BadLetter, *, envelope: Envelope | None = None) -> tuple[str, int]:
        """Records what was put into an agent's box and is no message of this bus: the decision's id and seq."""
        refusal = Refusal(bad.code, str(bad), "only nodes of this bus may post here: see `eab nats permissions`")
        logger.warning("refused what was put into the box of %s: %s", recipient.id, bad)
        return await self._sending.turn_away_letter(recipient, refusal, envelope)
