"""What other nodes tell this one: how messages of ours have ended there, and what agents there reply to them.

A reply is decided here before whoever asked is given it. Not here: letters (inbox), and messages for agents of ours
(receiving).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import orjson

from enhanced_agent_bus.delivery.parcel import Arrival, Parcel
from enhanced_agent_bus.letters.notices import Notice
from enhanced_agent_bus.letters.tickets import Ended, Ticket
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, Outcome
from enhanced_agent_bus.ports import Handed, StoredMessage
from enhanced_agent_bus.road.arrivals import LATER_SECONDS, Arrivals
from enhanced_agent_bus.road.desk import NOBODY, Desk, Written
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.outbox import Outbox
from enhanced_agent_bus.road.replies import Replies
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.verdict import Refusal

logger = logging.getLogger(__name__)


class Hearing:
    """Ends messages of ours as other nodes say; each method is true when its letter needs no more."""

    def __init__(
        self, desk: Desk, endings: Endings, rescue: Rescue, replies: Replies, outbox: Outbox, arrivals: Arrivals
    ) -> None:
        self._desk = desk
        self._endings = endings
        self._rescue = rescue
        self._replies = replies
        self._outbox = outbox
        self._arrivals = arrivals

    async def notices(self, notices: Sequence[Notice], handed: Handed) -> bool:
        """Messages of ours have ended on another node; True once that is on disk for all of them."""
        later = False
        ends: list[Written] = []
        for notice in notices:
            live = self._desk.live.get(notice.message_id)
            # It is being replayed, or an end of it is on its way to the disk: this may be the one after that.
            if notice.message_id in self._desk.rising or (live is not None and live.ending):
                later = True
            elif (end := self._notice(notice)) is not None:
                ends.append(end)
        for end in ends:
            await end.wait()
        if later:
            await handed.again(LATER_SECONDS)
        return not later

    def _notice(self, notice: Notice) -> Written | None:
        """One message of ours has ended on another node; None where there is nothing to record of it."""
        parcel = self._desk.live.get(notice.message_id)
        if parcel is None:
            stored = self._desk.ledger.find(notice.message_id)
            if stored is None or stored.state != "dead_lettered" or notice.state == "dead_lettered":
                return None  # known already
            parcel = self._rescue.parcel_of(stored)  # it was replayed there
            if parcel.envelope.digest == notice.digest:
                self._desk.rising.add(notice.message_id)
        if parcel.state not in ("handed_over", "dead_lettered"):
            return None
        if parcel.envelope.digest != notice.digest:
            logger.warning("%s tells of %s with another digest", notice.origin, notice.message_id)
            return None
        parcel.attempts, parcel.error, parcel.reply_id = notice.attempts, notice.error, notice.reply_id
        parcel.ended_by = {"origin": notice.origin, "seq": notice.seq}
        if notice.state == "refused" and not notice.attempts:  # no handler has seen it
            return self._rescue.refuse(parcel, self._rescue.case_of(parcel), notice.code)
        return self._endings.end(parcel, notice.state, notice.code, error=notice.error)

    async def reply(self, envelope: Envelope, ticket: Ticket, handed: Handed) -> bool:
        """What an agent elsewhere has answered: decided here before whoever asked is given it."""
        if self._desk.cut_off() is not None:
            await handed.again(LATER_SECONDS)
            return False
        answered = ticket.answers
        asked = self._desk.live.get(envelope.cause or "")
        recipient = self._desk.registry.live(envelope.recipient) or NOBODY
        if (stored := self._desk.ledger.find(envelope.id)) is not None:
            live = self._desk.live.get(envelope.id)
            if live is not None and live.arrival is not None:
                live.arrival.handed = handed  # it was handed out again: this is the one to settle
                return False
            if stored.state not in END_STATES:
                await handed.again(LATER_SECONDS)
                return False
            if asked is not None and answered is not None and _answers(asked, envelope, answered):
                await self._answered_before(asked, stored, answered, ticket)
            node = ticket.origin.rpartition("/")[2]
            await self._outbox.tell_again(node, self._rescue.parcel_of(stored), stored)
            return True
        sender, refusal = await self._arrivals.vouched(envelope, ticket, recipient)
        late = asked is not None and asked.replier is not None and asked.replier.done()
        if refusal is None and (late or not _answers(asked, envelope, answered)):
            why = f"nobody waits for a reply of {envelope.sender} to {envelope.cause} any more"
            refusal = Refusal("reply_unexpected", why, "answer sooner")
        case = self._arrivals.case(envelope, ticket, sender, recipient, refusal)
        reply = Parcel(envelope, ticket.expires_us, case.now_us, cause=case.cause, placed=False)
        reply.arrival = Arrival(handed, ticket.origin, ticket.decision_id)
        decided = await self._desk.admission.judge(case)
        allowed = decided.verdict == "allow"
        seq = await self._arrivals.recorded(reply, decided, None)
        if asked is not None and answered is not None and _answers(asked, envelope, answered):
            asked.attempts = answered.attempts
            asked.ended_by = {"origin": ticket.origin, "seq": answered.seq}
            self._replies.answered_abroad(asked, reply, answered.duration_us, allowed=allowed)
        elif allowed:
            self._endings.end(reply, "discarded", "reply_unexpected")
        if decided.verdict != "refuse":
            return False  # settled once its end is on disk
        reply.decision_id = decided.decision_id
        outcome = Outcome("refused", 0, decided.code)
        await self._outbox.tell(reply.arrival.node, self._outbox.notice(reply, outcome, seq))
        return True

    async def _answered_before(self, asked: Parcel, reply: StoredMessage, answered: Ended, ticket: Ticket) -> None:
        """This process was killed between the record of a reply and the end of what it answers."""
        allowed = orjson.loads(self._desk.ledger.record(reply.seq))["verdict"] == "allow"
        asked.attempts, asked.reply_id = answered.attempts, reply.envelope.id if allowed else None
        asked.ended_by = {"origin": ticket.origin, "seq": answered.seq}
        code = None if allowed else "reply_refused"
        await self._endings.end(asked, "delivered", code, duration_us=answered.duration_us).wait()


def _answers(asked: Parcel | None, envelope: Envelope, answered: Ended | None) -> bool:
    """Whether a letter is the reply to what is still waiting for it, of whom it was asked."""
    return (
        asked is not None
        and answered is not None
        and not asked.ending
        and asked.state == "handed_over"
        and asked.envelope.recipient == envelope.sender
        and asked.envelope.sender == envelope.recipient
        and asked.envelope.digest == answered.digest
    )
