"""Whether a message is still open where it was sent: asked of its sender's node, and answered to others.

Not here: when that is asked (receiving).
"""

from __future__ import annotations

import asyncio
from typing import Final

from enhanced_agent_bus.errors import TransportAway
from enhanced_agent_bus.letters.dsse import Signs
from enhanced_agent_bus.letters.notices import Answered, Question, check_answer, seal_answer, seal_question
from enhanced_agent_bus.letters.tickets import Ticket
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES
from enhanced_agent_bus.ports import Letter
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.road.outbox import NONCE_BYTES, Outbox, node_box, notices_box

ANSWER_SECONDS: Final = 5.0  # for another node to say whether a message is open


class Inquiries:
    """Questions of this node, and its answers."""

    def __init__(self, desk: Desk, outbox: Outbox, signer: Signs) -> None:
        self._desk = desk
        self._outbox = outbox
        self._signer = signer
        self._questions: dict[str, asyncio.Future[Answered]] = {}  # by nonce

    async def still_open(self, ticket: Ticket, envelope: Envelope) -> bool:
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

    def hear(self, answer: Answered) -> bool:
        """Another node has answered; what nobody asked, or asks no more, is thrown away."""
        waits = self._questions.get(answer.nonce)
        if waits is not None and not waits.done():
            waits.set_result(answer)
        return True

    async def answer(self, question: Question) -> bool:
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
        await self._outbox.post(Letter(notices_box(node), f"answer={question.nonce}", seal_answer(self._signer, said)))
        return True
