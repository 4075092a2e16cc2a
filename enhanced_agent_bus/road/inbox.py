"""What arrives from other nodes: messages, decided here before anything else happens, and notices of how ours ended.

A letter is settled with the transport once its end is on disk here and its sender's node was told. Not here: what
leaves (outbox), and who is where (roster).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

import orjson

from enhanced_agent_bus.admission.chain import Decided
from enhanced_agent_bus.admission.sight import Case
from enhanced_agent_bus.delivery.parcel import Arrival, Parcel
from enhanced_agent_bus.delivery.runner import misfits
from enhanced_agent_bus.errors import BusError, TransportAway
from enhanced_agent_bus.letters.dsse import BadLetter, Signs
from enhanced_agent_bus.letters.notices import Answered, Notice, Question, check_answer, seal_answer, seal_question
from enhanced_agent_bus.letters.post import TicketLetter, open_letter
from enhanced_agent_bus.letters.tickets import Ended, Ticket, check_time
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, Outcome
from enhanced_agent_bus.ports import Handed, Letter, StoredMessage, Transport
from enhanced_agent_bus.road.desk import NOBODY, Desk, Post
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.outbox import NONCE_BYTES, RETURNED, Outbox, agent_box, node_box
from enhanced_agent_bus.road.replies import Replies
from enhanced_agent_bus.road.rescue import UNDECIDED, Rescue
from enhanced_agent_bus.road.roster import Roster
from enhanced_agent_bus.road.sending import Sending
from enhanced_agent_bus.verdict import Party, Refusal

AT_ONCE: Final = 256  # letters to this node itself that are under way
NO_ROOM_SECONDS: Final = 0.2
LATER_SECONDS: Final = 1.0
LATER_TIMES_MAX: Final = 30.0
WORKING_SECONDS: Final = 2.0  # between two words to the transport that a letter is still worked on
DECISIONS_MAX: Final = 1000  # that are looked at of one message
ANSWER_SECONDS: Final = 5.0  # for another node to say whether a message is open

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
        self._endings = endings
        self._rescue = rescue
        self._sending = sending
        self._replies = replies
        self._outbox = outbox
        self._roster = roster
        self._transport = transport
        self._signer = signer
        self._stops: dict[str, Callable[[], Awaitable[None]]] = {}
        self._questions: dict[str, asyncio.Future[Answered]] = {}  # by nonce
        self._deciding: dict[str, bool] = {}  # ids of letters that are looked at; True: on their way to the disk

    async def start(self) -> None:
        """Hears of letters to this node. Raises: TransportAway."""
        box = node_box(self._roster.node)
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

    async def _alone(self, message_id: str, handed: Handed, work: Coroutine[Any, Any, bool]) -> bool:
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

    async def _later(self, handed: Handed) -> bool:
        """Nobody has said no: it is decided when it comes again, each time after a longer pause."""
        await handed.again(min(LATER_SECONDS * 2.0 ** min(handed.times - 1, 10), LATER_TIMES_MAX))
        return False

    async def _say_working(self) -> None:
        """What is decided and has not ended is not to be handed out again."""
        while True:
            await asyncio.sleep(WORKING_SECONDS)
            for parcel in self._desk.live.values():
                if parcel.arrival is not None and parcel.arrival.handed is not None:
                    parcel.arrival.handed.working()

    def _open(self, handed: Handed) -> TicketLetter | Notice | Question | Answered:
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

    # --- messages for agents of ours -------------------------------------------------------------------------------

    async def _message(self, agent_id: str, handed: Handed) -> bool:
        """True when the letter needs no more; a message that was taken in is settled when it has ended."""
        recipient = self._desk.registry.live(agent_id)
        if recipient is None or self._desk.closed or self._desk.cut_off() is not None:
            await handed.again(LATER_SECONDS)
            return False
        try:
            envelope, ticket = self._open_message(agent_id, handed)
        except BadLetter as bad:
            await self._turn_away(recipient, bad)
            return True
        return await self._alone(envelope.id, handed, self._opened(recipient, envelope, ticket, handed))

    async def _opened(self, recipient: Party, envelope: Envelope, ticket: Ticket, handed: Handed) -> bool:
        if self._desk.stops.find(envelope) is not None:
            await handed.again(LATER_SECONDS)  # it waits, as what was accepted here does
            return False
        live = self._desk.live.get(envelope.id)
        stored = self._desk.ledger.find(envelope.id)
        if live is not None or stored is not None:
            return await self._known(recipient, envelope, ticket, handed, live, stored)
        try:
            if handed.times > 1 and not await self._still_open(ticket, envelope):
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
            sender, refusal = await self._vouched(envelope, ticket, recipient)
            if refusal is None and post.model is not None and (misfit := misfits(post.model, envelope.body)):
                why = f"{recipient.id} does not take this payload: {misfit}"
                refusal = Refusal("malformed", why, "send what it takes")
            case = self._case(envelope, ticket, sender, recipient, refusal)
            arrival = Arrival(handed, ticket.origin, ticket.decision_id)
            parcel = Parcel(envelope, ticket.expires_us, case.now_us, cause=case.cause, arrival=arrival)
            decided = await self._desk.admission.judge(case)
            accepted = decided.verdict != "refuse"
            seq = await self._recorded(parcel, decided, post)
        finally:
            if not accepted:
                post.mailbox.release()
        if accepted:
            return False
        if decided.code in UNDECIDED:
            return await self._later(handed)
        parcel.decision_id = decided.decision_id
        await self._outbox.tell(arrival.node, self._outbox.notice(parcel, Outcome("refused", 0, decided.code), seq))
        return True

    async def _recorded(self, parcel: Parcel, decided: Decided, post: Post | None) -> int:
        message_id = parcel.envelope.id
        self._deciding[message_id] = True
        return await self._sending.record(
            parcel, decided, post, partial(self._decided, message_id), why="receive"
        ).wait()

    def _case(
        self, envelope: Envelope, ticket: Ticket, sender: Party, recipient: Party, refusal: Refusal | None
    ) -> Case:
        return Case(
            self._desk.router.address(envelope, sender, recipient),
            why="receive",
            cause=self._cause(envelope),
            refusal=refusal,
            ticket=_named(ticket),
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

    async def _vouched(self, envelope: Envelope, ticket: Ticket, recipient: Party) -> tuple[Party, Refusal | None]:
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
            decision_id, seq = await self._turn_away(recipient, bad, envelope=envelope)
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
            decision_id = decision["previous"]
        return False

    async def _take_up_again(self, stored: StoredMessage, ticket: Ticket, handed: Handed) -> bool:
        arrival = Arrival(handed, ticket.origin, ticket.decision_id)
        recipient = self._desk.registry.live(stored.envelope.recipient) or NOBODY
        _, refusal = await self._vouched(stored.envelope, ticket, recipient)
        receipt = await self._rescue.replay(
            stored,
            why="receive",
            arrival=arrival,
            ticket=_named(ticket),
            expires_us=ticket.expires_us,
            refusal=refusal,
            approved=self._came_on(stored, ticket),
        )
        if receipt.state != "refused":
            return False
        if receipt.code == "queue_full" or receipt.code in UNDECIDED:
            return await self._later(handed)
        parcel = self._rescue.parcel_of(stored)
        parcel.decision_id = receipt.decision_id
        outcome = Outcome("refused", stored.attempts, receipt.code)
        await self._outbox.tell(arrival.node, self._outbox.notice(parcel, outcome, receipt.audit_seq))
        return True

    async def _turn_away(
        self, recipient: Party, bad: BadLetter, *, envelope: Envelope | None = None
    ) -> tuple[str, int]:
        """Records what was put into an agent's box and is no message of this bus: the decision's id and seq."""
        refusal = Refusal(bad.code, str(bad), "only nodes of this bus may post here: see `eab nats permissions`")
        logger.warning("refused what was put into the box of %s: %s", recipient.id, bad)
        return await self._sending.turn_away_letter(recipient, refusal, envelope)

    async def _still_open(self, ticket: Ticket, envelope: Envelope) -> bool:
        """Whether the sender's node still waits for the end of what this node does not know.

        Raises: TransportAway, when it does not answer: then the letter comes again.
        """
        nonce = self._desk.randomness.take(NONCE_BYTES).hex()
        question = Question(
            origin=self._signer.name,
            to=ticket.origin,
            message_id=envelope.id,
            decision_id=ticket.decision_id,
            at_us=self._desk.clock.now_us(),
            nonce=nonce,
        )
        answered: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._questions[nonce] = answered
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                node = ticket.origin.rpartition("/")[2]
                await self._outbox.post(Letter(node_box(node), nonce, seal_question(self._signer, question)))
                answer = await answered
        except TimeoutError:
            raise TransportAway(f"{ticket.origin} does not say whether {envelope.id} is open") from None
        finally:
            del self._questions[nonce]
        check_answer(answer, question)
        return answer.open

    def _answer(self, answer: Answered) -> bool:
        waits = self._questions.get(answer.nonce)
        if waits is not None and not waits.done():
            waits.set_result(answer)
        return True

    # --- letters to this node --------------------------------------------------------------------------------------

    async def _mail(self, handed: Handed) -> bool:
        try:
            opened = self._open(handed)
        except BadLetter as bad:
            logger.warning("a letter to this node was thrown away: %s", bad)
            return True
        if isinstance(opened, Notice):
            return await self._notice(opened, handed)
        if isinstance(opened, TicketLetter):
            reply = self._reply(opened.envelope, opened.ticket, handed)
            return await self._alone(opened.envelope.id, handed, reply)
        if isinstance(opened, Question):
            return await self._question(opened)
        return self._answer(opened)

    async def _notice(self, notice: Notice, handed: Handed) -> bool:
        """A message of ours has ended on another node."""
        if notice.message_id in self._desk.rising:  # it is being replayed, or its end there is on its way to the disk
            await handed.again(LATER_SECONDS)
            return False
        parcel = self._desk.live.get(notice.message_id)
        if parcel is None:
            stored = self._desk.ledger.find(notice.message_id)
            if stored is None or stored.state != "dead_lettered" or notice.state == "dead_lettered":
                return True  # known already
            parcel = self._rescue.parcel_of(stored)  # it was replayed there
            if parcel.envelope.digest == notice.digest:
                self._desk.rising.add(notice.message_id)
        if parcel.ending or parcel.state not in ("handed_over", "dead_lettered"):
            return True
        if parcel.envelope.digest != notice.digest:
            logger.warning("%s tells of %s with another digest", notice.origin, notice.message_id)
            return True
        parcel.attempts, parcel.error, parcel.reply_id = notice.attempts, notice.error, notice.reply_id
        parcel.ended_by = {"origin": notice.origin, "seq": notice.seq}
        if notice.state == "refused" and not notice.attempts:  # no handler has seen it
            await self._rescue.refuse(parcel, self._rescue.case_of(parcel), notice.code).wait()
        else:
            await self._endings.end(parcel, notice.state, notice.code, error=notice.error).wait()
        return True

    async def _reply(self, envelope: Envelope, ticket: Ticket, handed: Handed) -> bool:
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
        sender, refusal = await self._vouched(envelope, ticket, recipient)
        late = asked is not None and asked.replier is not None and asked.replier.done()
        if refusal is None and (late or not _answers(asked, envelope, answered)):
            why = f"nobody waits for a reply of {envelope.sender} to {envelope.cause} any more"
            refusal = Refusal("reply_unexpected", why, "answer sooner")
        case = self._case(envelope, ticket, sender, recipient, refusal)
        reply = Parcel(envelope, ticket.expires_us, case.now_us, cause=case.cause, placed=False)
        reply.arrival = Arrival(handed, ticket.origin, ticket.decision_id)
        decided = await self._desk.admission.judge(case)
        allowed = decided.verdict == "allow"
        seq = await self._recorded(reply, decided, None)
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

    async def _question(self, question: Question) -> bool:
        """Another node asks whether a message of ours is open."""
        parcel = self._desk.live.get(question.message_id)
        stored = self._desk.ledger.find(question.message_id) if parcel is None else None
        is_open = parcel is not None and parcel.state == "handed_over" and parcel.decision_id == question.decision_id
        state = stored.state if stored is not None and stored.state in END_STATES else "discarded"
        said = Answered(
            self._signer.name,
            question.message_id,
            question.decision_id,
            is_open,
            None if is_open else state,
            self._desk.clock.now_us(),
            question.nonce,
        )
        node = question.origin.rpartition("/")[2]
        await self._outbox.post(Letter(node_box(node), f"answer={question.nonce}", seal_answer(self._signer, said)))
        return True

    # --- ends ------------------------------------------------------------------------------------------------------

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


def _named(ticket: Ticket) -> dict[str, Any]:
    """The record that a message left its node on, as the decision here names it."""
    known = {"origin": ticket.origin, "seq": ticket.seq, "decision_id": ticket.decision_id}
    return {**known, "constitution": ticket.constitution, "revision": ticket.revision}


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
