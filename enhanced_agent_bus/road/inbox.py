"""Letters from other nodes: taken from their boxes, opened, given to who deals with them, and settled.

A letter is settled with the transport once its end is on disk here and its sender's node was told. Not here: what is
done with a message (receiving), or with what other nodes tell this one (hearing, inquiries); what leaves (outbox); who
is where (roster).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

from enhanced_agent_bus.errors import BusError, TransportAway
from enhanced_agent_bus.letters.dsse import BadLetter, Signs
from enhanced_agent_bus.letters.notices import Answered, Notice, Notices, Question
from enhanced_agent_bus.letters.post import TicketLetter, open_letter
from enhanced_agent_bus.ports import Handed, Transport
from enhanced_agent_bus.road.arrivals import LATER_SECONDS, Arrivals
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.hearing import Hearing
from enhanced_agent_bus.road.inquiries import Inquiries
from enhanced_agent_bus.road.outbox import Outbox, agent_box, node_box, notices_box
from enhanced_agent_bus.road.receiving import Receiving
from enhanced_agent_bus.road.replies import Replies
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.road.roster import Roster
from enhanced_agent_bus.road.sending import Sending

AT_ONCE: Final = 256  # letters of each kind to this node itself that are under way
WORKING_SECONDS: Final = 2.0  # between two words to the transport that a letter is still worked on

logger = logging.getLogger(__name__)


class Inbox:
    """Takes letters in, each in a task of its own."""

    def __init__(
        self,
        desk: Desk,
        endings: Endings,
        rescue: Rescue,
        sending: Sending,
        replies: Replies,
        outbox: Outbox,
        roster: Roster,
        transport: Transport,
        signer: Signs,
    ) -> None:
        self._desk = desk
        self._outbox = outbox
        self._roster = roster
        self._transport = transport
        self._arrivals = Arrivals(desk, sending, outbox, roster)
        self._inquiries = Inquiries(desk, outbox, signer)
        self._receiving = Receiving(desk, rescue, sending, outbox, self._arrivals, self._inquiries)
        self._hearing = Hearing(desk, endings, rescue, replies, outbox, self._arrivals)
        self._stops: dict[str, Callable[[], Awaitable[None]]] = {}
        endings.tell_node = self._arrivals.ended

    async def start(self) -> None:
        """Hears of letters to this node. Raises: TransportAway."""
        for box in (notices_box(self._roster.node), node_box(self._roster.node)):
            self._stops[box] = await self._transport.serve(box, self._take_mail, at_once=AT_ONCE)
        self._outbox.own(self._say_working(), "eab-working")

    async def serve(self, agent_id: str) -> None:
        """Takes messages for an agent of ours from now on. Raises: TransportAway."""
        box = agent_box(agent_id)
        if box not in self._stops:
            take = partial(self._take_message, agent_id)
            self._stops[box] = await self._transport.serve(box, take, at_once=self._desk.settings.limits.mailbox)

    async def leave(self, agent_id: str) -> None:
        """Takes no more messages for an agent."""
        stop = self._stops.pop(agent_box(agent_id), None)
        if stop is not None:
            with suppress(TransportAway):
                await stop()

    async def stop(self) -> None:
        for stop in list(self._stops.values()):
            with suppress(TransportAway):
                await stop()
        self._stops.clear()

    def _take_message(self, agent_id: str, handed: Handed) -> None:
        self._outbox.own(self._settled(handed, partial(self._message, agent_id)), f"letter {handed.letter.id}")

    def _take_mail(self, handed: Handed) -> None:
        self._outbox.own(self._settled(handed, self._mail), f"letter {handed.letter.id}")

    async def _settled(self, handed: Handed, work: Callable[[Handed], Awaitable[bool]]) -> None:
        """Says that a letter is dealt with where that is so; what the disk or the transport held up comes again."""
        try:
            if await work(handed):
                await handed.done()
        except BusError as error:
            logger.info("the letter %s is to come again: %s", handed.letter.id, error)
            with suppress(TransportAway):
                await handed.again(LATER_SECONDS)

    async def _say_working(self) -> None:
        """What is decided and has not ended is not to be handed out again."""
        while True:
            await asyncio.sleep(WORKING_SECONDS)
            for parcel in self._desk.live.values():
                if parcel.arrival is not None and parcel.arrival.handed is not None:
                    parcel.arrival.handed.working()

    def _open(self, handed: Handed) -> TicketLetter | Notice | Notices | Question | Answered:
        """Raises: BadLetter."""
        limits = self._desk.settings.limits
        return open_letter(
            handed.letter.body, self._roster.keys, payload_bytes=limits.payload_bytes, depth=limits.depth
        )

    def _open_message(self, agent_id: str, handed: Handed) -> TicketLetter:
        """Raises: BadLetter, for what is no message to this agent too."""
        opened = self._open(handed)
        if not isinstance(opened, TicketLetter):
            raise BadLetter("malformed", "what stands in an agent's box is no message")
        if opened.envelope.recipient != agent_id or handed.letter.id != opened.ticket.decision_id:
            raise BadLetter("identity_unproven", f"{opened.envelope.id} was posted as another letter than it is")
        return opened

    async def _message(self, agent_id: str, handed: Handed) -> bool:
        """True when the letter needs no more; a message that was taken in is settled when it has ended."""
        recipient = self._desk.registry.live(agent_id)
        if recipient is None or self._desk.closed or self._desk.cut_off() is not None:
            await handed.again(LATER_SECONDS)
            return False
        try:
            envelope, ticket = self._open_message(agent_id, handed)
        except BadLetter as bad:
            await self._receiving.turn_away(recipient, bad)
            return True
        work = self._receiving.take(recipient, envelope, ticket, handed)
        return await self._arrivals.alone(envelope.id, handed, work)

    async def _mail(self, handed: Handed) -> bool:
        try:
            opened = self._open(handed)
        except BadLetter as bad:
            logger.warning("a letter to this node was thrown away: %s", bad)
            return True
        if isinstance(opened, Notice):
            return await self._hearing.notices((opened,), handed)
        if isinstance(opened, Notices):
            return await self._hearing.notices(opened.notices, handed)
        if isinstance(opened, TicketLetter):
            reply = self._hearing.reply(opened.envelope, opened.ticket, handed)
            return await self._arrivals.alone(opened.envelope.id, handed, reply)
        if isinstance(opened, Question):
            return await self._inquiries.answer(opened)
        return self._inquiries.hear(opened)
