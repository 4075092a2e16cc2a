"""What leaves for other nodes: messages on their tickets, and notices of how messages from there have ended here.

A message that is handed over stays a row of its sender's ledger until its end is known: that row is the outbox, and
after a restart it is posted again under the same id. Not here: what arrives (inbox), and who is where (roster).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

import orjson

from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.errors import BusError, TransportAway
from enhanced_agent_bus.letters.dsse import Signs
from enhanced_agent_bus.letters.notices import NOTICES_MAX, Notice, seal_notice, seal_notices
from enhanced_agent_bus.letters.tickets import Ended, Ticket, seal_ticket
from enhanced_agent_bus.message import REPLY_TYPES
from enhanced_agent_bus.outcome import END_STATES, Outcome
from enhanced_agent_bus.ports import Handed, Letter, StoredMessage, Transport
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.mailroom import Mailroom
from enhanced_agent_bus.road.rescue import Rescue

REPLIES: Final = frozenset({"response", *REPLY_TYPES.values()})
FIRST_PAUSE_SECONDS: Final = 0.05
PAUSE_SECONDS_MAX: Final = 2.0
DRAIN_SECONDS: Final = 2.0  # for letters that are on their way out when the bus closes
NONCE_BYTES: Final = 16
RETURNED: Final = "returned"  # back to the transport, which hands it out again


def agent_box(agent_id: str) -> str:
    """Where the messages for an agent go."""
    return f"agent.{agent_id}"


def node_box(node: str) -> str:
    """Where replies and questions for a node go: what it has to answer with a notice."""
    return f"node.{node}"


def notices_box(node: str) -> str:
    """Where notices and answers for a node go, which it settles without a letter of its own."""
    return f"notices.{node}"


class Outbox:
    """Posts letters until they are taken."""

    def __init__(
        self,
        desk: Desk,
        endings: Endings,
        mailroom: Mailroom,
        rescue: Rescue,
        transport: Transport,
        signer: Signs,
    ) -> None:
        self._desk = desk
        self._endings = endings
        self._mailroom = mailroom
        self._rescue = rescue
        self._transport = transport
        self._signer = signer
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last: set[asyncio.Task[Any]] = set()  # of them, those that are waited for at the end
        self._telling: dict[str, list[tuple[Notice, asyncio.Future[None]]]] = {}  # by node, while letters go there
        self._stopped = False

    def own(self, work: Coroutine[Any, Any, None], name: str, *, to_the_end: bool = False) -> asyncio.Task[None]:
        """A task that ends with the bus; `to_the_end`, it is given some time then."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        if to_the_end:
            self._last.add(task)
        task.add_done_callback(self._ended)
        if self._stopped:
            task.cancel()
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._last.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._desk.broken = self._desk.broken or error
            context = {"message": f"the bus stops taking messages: {task.get_name()} ended", "exception": error}
            task.get_loop().call_exception_handler(context)

    async def drain(self) -> None:
        """Waits for what is on its way out, for as long as the transport takes it."""
        if self._last and self._transport.connected:
            await asyncio.wait(self._last, timeout=DRAIN_SECONDS)

    async def stop(self) -> None:
        """What has not been taken by now is posted again when the home is opened again."""
        self._stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def post(self, letter: Letter) -> None:
        """Returns once the transport has it."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._transport.post(letter)
                return
            except TransportAway:
                await asyncio.sleep(pause * (1 - self._desk.chance() / 2))
                pause = min(pause * 2, PAUSE_SECONDS_MAX)

    # --- messages --------------------------------------------------------------------------------------------------

    def hand_over(self, parcel: Parcel) -> None:
        """Takes a message whose recipient is on another node. What came here from one goes back instead."""
        if parcel.arrival is not None:
            self.give_back(parcel)
            return
        self.own(self._hand_over(parcel), f"handing over {parcel.envelope.id}", to_the_end=True)

    async def _hand_over(self, parcel: Parcel) -> None:
        if parcel.stored != "handed_over":  # it waited here until its recipient was somewhere
            if self._desk.stops.find(parcel.envelope) is not None:
                self._mailroom.undecided(parcel)
                return
            parcel.state = "in_flight"  # in this task's hands: nobody else ends it
            if not await self._rescue.readmit(parcel):
                return
            if parcel.stored != "handed_over":  # it has come here meanwhile
                self._mailroom.carry(self._desk.post(parcel.envelope.recipient), parcel)
                return
        parcel.state = "handed_over"
        self._desk.changed.set()
        ticket = self._ticket(parcel)
        if ticket is None:  # kept no more, or never an allow: it is decided anew, and leaves on that
            parcel.stored = "queued"
            await self._hand_over(parcel)
            return
        await self.post(Letter(agent_box(parcel.envelope.recipient), ticket.decision_id, self._sealed(parcel, ticket)))

    def give_back(self, parcel: Parcel) -> None:
        """A message from another node whose recipient is here no more: the transport hands its letter out again."""
        arrival, parcel.arrival = parcel.arrival, None  # nobody is told: it has not ended
        assert arrival is not None
        if arrival.handed is None:  # replayed here: its sender's node has it among its dead letters
            self._endings.end(parcel, "dead_lettered", "handler_absent")
            return
        self._endings.end(parcel, "discarded", RETURNED)
        self.own(_again(arrival.handed), f"giving back {parcel.envelope.id}")

    async def take_back(self, parcel: Parcel) -> None:
        """A message that left, and whose recipient is here by now: decided anew, and carried here."""
        parcel.state = "in_flight"  # in this task's hands: nobody else ends it
        if await self._rescue.readmit(parcel):
            self._mailroom.carry(self._desk.post(parcel.envelope.recipient), parcel)

    def take_up(self, parcel: Parcel) -> None:
        """What had left and has no end yet, after a restart: it leaves again on the allow that it left on."""
        asked = self._desk.ledger.find(parcel.envelope.cause) if parcel.envelope.cause else None
        if parcel.envelope.type not in REPLIES or asked is None or asked.envelope.recipient != parcel.envelope.sender:
            self.hand_over(parcel)
            return
        came = orjson.loads(self._desk.ledger.record(asked.seq)).get("ticket")
        if came is None or asked.state != "delivered":  # what it answers runs again, and is answered again
            self._endings.end(parcel, "discarded", "reply_unexpected")
            return
        ended = Ended(asked.envelope.id, asked.envelope.digest, asked.state, asked.code, asked.attempts, 0, None)
        node = came["origin"].rpartition("/")[2]
        self.own(self.answer(parcel, ended, node), f"the reply {parcel.envelope.id}")

    def reply(self, reply: Parcel, asked: Parcel, duration_us: int) -> None:
        """The reply to a message from another node, which ends there with it."""
        assert asked.arrival is not None
        said = asked.envelope
        ended = Ended(said.id, said.digest, "delivered", None, asked.attempts, duration_us, None)
        work = self.answer(reply, ended, asked.arrival.node)
        asked.arrival.answer = self.own(work, f"the reply {reply.envelope.id}", to_the_end=True)

    async def answer(self, reply: Parcel, outcome: Ended, node: str) -> None:
        """Posts a reply to the node that waits for it, with the end of what it answers."""
        reply.state = "handed_over"
        ticket = self._ticket(reply)
        assert ticket is not None, f"the reply {reply.envelope.id} has no allow"
        body = self._sealed(reply, ticket._replace(answers=outcome))
        await self.post(Letter(node_box(node), ticket.decision_id, body))

    def _sealed(self, parcel: Parcel, ticket: Ticket) -> bytes:
        return seal_ticket(self._signer, parcel.envelope, ticket)

    def _ticket(self, parcel: Parcel) -> Ticket | None:
        """The newest allow on a message, as its record says it."""
        recorded = parcel.recorded
        if recorded is not None:
            decision = {**recorded.admitted._asdict(), "seq": recorded.seq}
        else:
            body = self._desk.ledger.decision(parcel.envelope.id, parcel.decision_id)
            decision = orjson.loads(body) if body is not None else {"verdict": ""}
            if decision["verdict"] != "allow":
                return None
        return Ticket(
            origin=self._signer.name,
            seq=decision["seq"],
            decision_id=decision["decision_id"],
            digest=parcel.envelope.digest,
            constitution=decision["constitution"],
            revision=decision["revision"],
            issued_us=self._desk.clock.now_us(),
            expires_us=parcel.expires_us,
            nonce=self._desk.randomness.take(NONCE_BYTES).hex(),
        )

    # --- notices ---------------------------------------------------------------------------------------------------

    def notice(self, parcel: Parcel, outcome: Outcome, seq: int) -> Notice:
        """Of the end of a message, as record `seq` of our log has it."""
        assert outcome.state in END_STATES, outcome.state
        return Notice(
            origin=self._signer.name,
            seq=seq,
            message_id=parcel.envelope.id,
            digest=parcel.envelope.digest,
            state=outcome.state,
            code=outcome.code,
            attempts=outcome.attempts,
            error=outcome.error,
            reply_id=parcel.reply_id,
            decision_id=parcel.decision_id,
            at_us=self._desk.clock.now_us(),
            nonce=self._desk.randomness.take(NONCE_BYTES).hex(),
        )

    async def tell(self, node: str, notice: Notice) -> None:
        """Brings a notice to the node that answers for the message.

        What is to be told while a letter of notices is on its way there goes with the next one.
        """
        told = asyncio.get_running_loop().create_future()
        if node in self._telling:
            self._telling[node].append((notice, told))
        else:
            self._telling[node] = [(notice, told)]
            self.own(self._tell(node), f"notices to {node}")
        await told

    async def _tell(self, node: str) -> None:
        """Until none is left; one letter at a time."""
        waiting = self._telling[node]
        try:
            while waiting:
                some, waiting[:NOTICES_MAX] = waiting[:NOTICES_MAX], []
                try:
                    await self.post(self._noticing(node, [notice for notice, _ in some]))
                except BusError as error:
                    _end(some, error)
                else:
                    _end(some, None)
        finally:
            del self._telling[node]

    def _noticing(self, node: str, notices: list[Notice]) -> Letter:
        """The id of one alone is the same when it is told again; that of several is used once, as nonces are."""
        first = notices[0]
        letter_id = f"{first.decision_id}={first.seq}" if len(notices) == 1 else f"notices={first.nonce}"
        return Letter(notices_box(node), letter_id, seal_notices(self._signer, notices))

    async def tell_again(self, node: str, parcel: Parcel, stored: StoredMessage) -> None:
        """The same of a message that ended before, in a letter of its own: the first one may have come too early."""
        outcome = Outcome(stored.state, stored.attempts, stored.code, None, stored.error)  # type: ignore[arg-type]
        seq = self._desk.ledger.newest_outcome(stored.envelope.id)
        notice = self.notice(parcel, outcome, stored.seq if seq is None else seq)
        letter_id = f"{notice.decision_id}={notice.seq}={notice.nonce}"
        await self.post(Letter(notices_box(node), letter_id, seal_notice(self._signer, notice)))


def _end(told: list[tuple[Notice, asyncio.Future[None]]], error: BusError | None) -> None:
    """Those who wait go on; whoever was cancelled meanwhile does not."""
    for _, waits in told:
        if not waits.done():
            if error is None:
                waits.set_result(None)
            else:
                waits.set_exception(error)


async def _again(handed: Handed) -> None:
    with suppress(TransportAway):
        await handed.again()
