"""Find, judge, record: a new message from its sender to the mailbox of one recipient."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import orjson

from enhanced_agent_bus.admission.chain import Decided
from enhanced_agent_bus.admission.draft import Shaped
from enhanced_agent_bus.admission.record import leaving
from enhanced_agent_bus.admission.seal import SALT_BYTES, seal
from enhanced_agent_bus.admission.sight import Case
from enhanced_agent_bus.agent import Draft
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.runner import misfits
from enhanced_agent_bus.delivery.shares import SharedPlaces
from enhanced_agent_bus.errors import BusClosed, BusError
from enhanced_agent_bus.message import MESSAGE_ID, TYPES, Envelope, Message, shown
from enhanced_agent_bus.outcome import Receipt
from enhanced_agent_bus.ports import Entry, Opening, StoredMessage
from enhanced_agent_bus.road.desk import (
    NOBODY,
    RECORD_SECONDS_MAX,
    Desk,
    Handling,
    Post,
    Written,
    handling_now,
)
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.mailroom import Mailroom
from enhanced_agent_bus.road.receipts import receipt_of
from enhanced_agent_bus.road.repeats import Repeats
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.verdict import Party, Refusal

KEEPS_NOTHING: Final = frozenset({"malformed", "too_large", "too_deep"})


class Sending:
    """One message down the road, at each call of `dispatch`."""

    def __init__(self, desk: Desk, endings: Endings, mailroom: Mailroom, rescue: Rescue) -> None:
        self._desk = desk
        self._endings = endings
        self._mailroom = mailroom
        self._repeats = Repeats(desk, endings, rescue)
        self._room = SharedPlaces(desk.settings.limits.inflight, desk.clock.monotonic)  # for what is being decided

    async def dispatch(
        self,
        sender: Party,
        to: str | None,
        capability: str | None,
        draft: Draft,
        *,
        topic: str | None = None,
        replier: asyncio.Future[Message] | None = None,
    ) -> tuple[Receipt, Parcel | None]:
        """One message down the road. The parcel is None when it was refused, or was sent before."""
        self._desk.require_open()
        if (to is None) == (capability is None):
            raise TypeError("give exactly one of `to` and `capability`")
        given = draft.id
        if given is None:
            return await self._send(
                self._desk.randomness.uuid7(self._desk.clock.now_us()), sender, to, capability, topic, draft, replier
            )
        message_id = own_id(sender.id, given)
        if message_id is None:
            refusal = Refusal("malformed", f"the id {shown(given)} is not one", "use [A-Za-z0-9._:/-], at most 128")
            return await self.turn_away(
                self._desk.randomness.uuid7(self._desk.clock.now_us()), sender, NOBODY, topic, draft, refusal
            )
        await self._repeats.claim(message_id)
        try:
            stored = await self._repeats.known(message_id)
            if stored is not None:
                return await self._again(stored, sender, to, topic, draft)
            return await self._send(message_id, sender, to, capability, topic, draft, replier)
        finally:
            self._repeats.leave(message_id)

    async def _again(
        self, stored: StoredMessage, sender: Party, to: str | None, topic: str | None, draft: Draft
    ) -> tuple[Receipt, Parcel | None]:
        """What was sent before under this id: the receipt for the same content, refused(replayed) for any other."""
        message_id = stored.envelope.id
        shaped = self._desk.shape.check(draft)
        if isinstance(shaped, Refusal):
            return await self.turn_away(message_id, sender, NOBODY, topic, draft, shaped)
        found = await self._repeats.receipt(stored, shaped, to, topic)
        if isinstance(found, Receipt):
            return found, self._desk.live.get(message_id)
        party = self._desk.registry.party(stored.envelope.recipient) or NOBODY
        return await self.turn_away(message_id, sender, party, topic, draft, found, shaped)

    async def _send(
        self,
        message_id: str,
        sender: Party,
        to: str | None,
        capability: str | None,
        topic: str | None,
        draft: Draft,
        replier: asyncio.Future[Message] | None,
    ) -> tuple[Receipt, Parcel | None]:
        if self._desk.taking_over is not None:
            await self._desk.taken_over()
        shaped = self._desk.shape.check(draft)
        if isinstance(shaped, Refusal):
            return await self.turn_away(message_id, sender, NOBODY, topic, draft, shaped)
        found = self._find(sender, to, capability)
        if isinstance(found, Party) and not self._desk.post(found.id).mailbox.reserve():
            found = await self._find_place(sender, to, capability, shaped)
        if not isinstance(found, Party):
            return await self.turn_away(message_id, sender, found[1], topic, draft, found[0], shaped)
        post = self._desk.post(found.id)
        accepted = False
        try:
            if post.model is not None and (misfit := misfits(post.model, shaped.body)):
                if sender.tenant != found.tenant:
                    misfit = "its tenant can say why"  # nobody has decided yet that this sender may know more
                refusal = Refusal("malformed", f"{found.id} does not take this payload: {misfit}", "send what it takes")
                return await self.turn_away(message_id, sender, found, topic, draft, refusal, shaped)
            if not self._room.take(sender.tenant):
                await self._wait_for_room(sender.tenant)
            try:
                case, parcel = self.addressed(message_id, sender, found, topic, shaped, replier)
                admission = self._desk.admission
                decided = admission.judge_at_once(case) or await admission.judge_asking(case)
                accepted = decided.verdict != "refuse"
                written = self.record(parcel, decided, post)
                seq = written.seq if written.seq >= 0 else await written.wait()
            finally:
                self._room.give_back(sender.tenant)
        finally:
            if not accepted:
                post.mailbox.release()
        if not accepted:
            return receipt_of(self._desk.ledger, case.addressed.envelope, decided, seq, None), None
        return receipt_of(
            self._desk.ledger, case.addressed.envelope, decided, seq, partial(self._endings.outcome_of, parcel)
        ), parcel

    async def _wait_for_room(self, tenant: str) -> None:
        """Takes a place once its tenant may have one. Raises: BusClosed."""
        while not await self._room.wait(RECORD_SECONDS_MAX, tenant):
            self._desk.require_open()
        try:
            self._desk.require_open()
        except BusClosed:
            self._room.give_back(tenant)
            raise

    def _find(self, sender: Party, to: str | None, capability: str | None) -> Party | tuple[Refusal, Party]:
        """The recipient; or why there is none, and who it would have been."""
        if self._desk.registry.live(sender.id) is not sender:
            return Refusal("sender_unregistered", f"{sender.id} is not registered", "register it again"), NOBODY
        found = self._desk.router.find(to) if capability is None else self._desk.router.capable(sender, capability)
        return (found, NOBODY) if isinstance(found, Refusal) else found

    async def _find_place(
        self, sender: Party, to: str | None, capability: str | None, shaped: Shaped
    ) -> Party | tuple[Refusal, Party]:
        """The recipient, with a place in its mailbox reserved that was full just now."""
        deadline = self._desk.clock.monotonic() + shaped.expires_seconds
        while True:
            found = self._find(sender, to, capability)
            if not isinstance(found, Party):
                return found
            post = self._desk.post(found.id)
            if post.mailbox.reserve():
                return found
            handling = handling_now.get()
            if post.when_full == "refuse" or post.handler is None or (handling is not None and not handling.over):
                full = f"the mailbox of {found.id} has no place"
                return Refusal("queue_full", full, "send again later, or more slowly"), found
            if not await post.mailbox.wait_for_place(deadline - self._desk.clock.monotonic(), sender.tenant):
                self._desk.require_open()
                return Refusal("expired", f"no place in the mailbox of {found.id} in time", "send again later"), found
            if self._desk.registry.party(found.id) is found and not self._desk.closed:
                return found
            post.mailbox.release()
            self._desk.require_open()

    def addressed(
        self,
        message_id: str,
        sender: Party,
        recipient: Party,
        topic: str | None,
        shaped: Shaped,
        replier: asyncio.Future[Message] | None,
    ) -> tuple[Case, Parcel]:
        now_us = self._desk.clock.now_us()
        expires_us = now_us + int(shaped.expires_seconds * 1e6)
        handling = handling_now.get()
        cause, cause_id, hops, conversation = None, shaped.cause, 0, shaped.conversation
        if handling is not None or cause_id is not None:
            parent = self._parent(handling, cause_id, sender)
            if handling is not None and not handling.over:
                expires_us = min(expires_us, handling.parcel.expires_us)
            if parent is not None:
                cause_id, hops = parent.id, parent.hops + 1
                conversation = conversation or parent.conversation
                cause = {"id": parent.id, "type": parent.type, "sender": parent.sender, "tenant": parent.tenant}
            if handling is not None:  # whatever it names as its cause, it is one hop further
                hops = max(hops, handling.parcel.envelope.hops + 1)
        fresh = conversation is None
        envelope = seal(
            id=message_id,
            type=shaped.type,
            priority=shaped.priority,
            sender=sender,
            recipient=recipient,
            topic=topic,
            conversation=conversation or message_id,
            cause=cause_id,
            created_us=now_us,
            expires_us=expires_us,
            hops=hops,
            headers=shaped.headers,
            headers_bytes=shaped.headers_bytes,
            body=shaped.body,
            salt=self._desk.randomness.take(SALT_BYTES),
        )
        if fresh:
            self._desk.admission.facts.owner("conversation", message_id, fresh="/" not in message_id)
        refusal = self._desk.cut_off() or self._desk.stops.refusal(envelope)
        if hops > self._desk.settings.limits.hops:
            refusal = Refusal(
                "hop_limit", f"{hops} hops, {self._desk.settings.limits.hops} are allowed", "break the loop of agents"
            )
        case = Case(self._desk.router.address(envelope, sender, recipient), cause=cause, refusal=refusal, now_us=now_us)
        return case, Parcel(envelope, expires_us, now_us, cause=cause, replier=replier)

    def _parent(self, handling: Handling | None, cause_id: str | None, sender: Party) -> Envelope | None:
        """The message that this one follows from: the one being handled, or one that its sender got."""
        if handling is not None and cause_id in (None, handling.parcel.envelope.id):
            return handling.parcel.envelope
        if cause_id is None:
            return None
        parcel = self._desk.live.get(cause_id)
        stored = None if parcel is not None else self._desk.ledger.find(cause_id)
        envelope = parcel.envelope if parcel is not None else stored.envelope if stored is not None else None
        return envelope if envelope is not None and envelope.recipient == sender.id else None

    def record(
        self,
        parcel: Parcel,
        decided: Decided,
        post: Post | None,
        then: Callable[[BusError | None], None] | None = None,
        *,
        why: str = "send",
    ) -> Written:
        """Puts a first decision with all that goes with it; what is accepted goes on as soon as that is durable."""
        envelope = parcel.envelope
        written = Written(then)
        if self._desk.listener is not None:
            self._desk.tell(parcel, decided, written, why, 1, parcel.since_us)
        entry = Entry(
            "decision",
            decided.fields,
            message_id=envelope.id,
            facts=decided.changes,
            texts=decided.texts,
            admitted=decided.admitted,
            tenant=envelope.tenant,
        )
        if decided.verdict == "refuse":
            entry.done = partial(self._desk.settled, decided, written)
            stores = self._desk.settings.audit.store_payloads or self._desk.held_by_law(envelope) is not None
            if stores and decided.code not in KEEPS_NOTHING and envelope.digest:
                entry.keep = envelope
        else:
            parcel.decision_id = decided.decision_id
            parcel.added = list(decided.added)
            parcel.state = self._first_state(parcel, decided, post)
            if parcel.state == "handed_over":
                entry.fields = leaving(decided.fields, self._desk.registry.nodes_of(envelope.recipient))
            parcel.stored = "queued" if parcel.state == "in_flight" else parcel.state
            entry.opening = Opening(
                envelope,
                parcel.stored,
                decided.decision_id,
                orjson.dumps(parcel.added) if parcel.added else b"[]",
                orjson.dumps([hold.document() for hold in decided.hold]) if decided.hold else b"[]",
                parcel.hold_expires_us,
            )
            self._repeats.putting(envelope.id)
            entry.done = partial(self._accepted, entry, parcel, decided, post, written)
        self._desk.ledger.put(entry)
        return written

    def _first_state(self, parcel: Parcel, decided: Decided, post: Post | None) -> str:
        if decided.verdict == "hold":
            parcel.holds, parcel.hold_reasons = decided.hold, decided.reasons
            parcel.hold_expires_us = parcel.since_us + int(min(hold.expires_seconds for hold in decided.hold) * 1e6)
            return "held"
        if self._desk.registry.nodes_of(parcel.envelope.recipient) and parcel.arrival is None:
            return "handed_over"
        if post is None:
            return "in_flight"  # a reply: whoever asked takes it
        return "queued" if post.handler is not None else "parked"

    def _accepted(
        self,
        entry: Entry,
        parcel: Parcel,
        decided: Decided,
        post: Post | None,
        written: Written,
        seq: int,
        error: BusError | None,
    ) -> None:
        """The first decision is durable: the message is accepted or held, whatever became of its sender's task."""
        self._repeats.put(parcel.envelope.id)
        if error is not None:
            if post is not None:
                post.mailbox.release()
            if parcel.added and parcel.arrival is None:  # what came from elsewhere comes again
                self._desk.admission.unrecorded(parcel.envelope.id, decided)
            written.settle(seq, error)
            return
        self._desk.stalled = False
        self._desk.admission.facts.durable(decided.changes)
        parcel.row = seq
        self._desk.live[parcel.envelope.id] = parcel
        if written.abandoned:  # its sender was told that it was not: then it must not be
            self._endings.end(parcel, "discarded", "audit_unavailable")
            return
        self._endings.watch(parcel)
        if entry.recorded is not None:
            parcel.counted = True
            parcel.recorded = entry.recorded
            if post is not None:
                self._mailroom.carry(post, parcel)
        if self._desk.drained:
            parcel.keep()
        written.settle(seq, None)

    async def turn_away(
        self,
        message_id: str,
        sender: Party,
        recipient: Party,
        topic: str | None,
        draft: Draft,
        refusal: Refusal,
        shaped: Shaped | None = None,
    ) -> tuple[Receipt, None]:
        """Records a refusal that was found before the gate."""
        if not self._room.take(sender.tenant):
            await self._wait_for_room(sender.tenant)
        try:
            return await self._turned_away(message_id, sender, recipient, topic, draft, refusal, shaped)
        finally:
            self._room.give_back(sender.tenant)

    async def _turned_away(
        self,
        message_id: str,
        sender: Party,
        recipient: Party,
        topic: str | None,
        draft: Draft,
        refusal: Refusal,
        shaped: Shaped | None,
    ) -> tuple[Receipt, None]:
        if shaped is not None:
            case, parcel = self.addressed(message_id, sender, recipient, _safe_topic(topic), shaped, None)
            case.refusal = refusal
        else:
            now_us = self._desk.clock.now_us()
            kind = draft.type if isinstance(draft.type, str) and draft.type in TYPES else ""
            envelope = _nothing_of(message_id, kind, sender, recipient, _safe_topic(topic), now_us)
            parcel = Parcel(envelope, now_us, now_us)
            case = Case(self._desk.router.address(envelope, sender, recipient), refusal=refusal)
        decided = await self._desk.admission.judge(case)
        seq = await self.record(parcel, decided, None).wait()
        return receipt_of(self._desk.ledger, case.addressed.envelope, decided, seq, None), None

    async def turn_away_letter(self, recipient: Party, refusal: Refusal, envelope: Envelope | None) -> tuple[str, int]:
        """Records what came from outside and is no message of this bus, or not this one: the decision's id and seq.

        Raises: AuditUnavailable.
        """
        now_us = self._desk.clock.now_us()
        if envelope is None:
            message_id = self._desk.randomness.uuid7(now_us)
            envelope = _nothing_of(message_id, "", NOBODY, recipient, None, now_us)
        case = Case(self._desk.router.address(envelope, NOBODY, recipient), why="receive", refusal=refusal)
        decided = await self._desk.admission.judge(case)
        seq = await self.record(Parcel(envelope, now_us, now_us), decided, None, why="receive").wait()
        return decided.decision_id, seq


def _nothing_of(
    message_id: str, kind: str, sender: Party, recipient: Party, topic: str | None, now_us: int
) -> Envelope:
    """An envelope for what is refused before anything in it can be believed."""
    return Envelope(
        message_id,
        kind,
        1,
        sender.id,
        sender.tenant,
        recipient.id,
        recipient.tenant,
        topic,
        message_id,
        None,
        now_us,
        now_us,
        0,
        {},
        b"",
        b"",
        "",
        None,
        "",
    )


def own_id(sender: str, given: object) -> str | None:
    """The id behind its sender's name, so that nobody can take another's; None when it is not an id."""
    if not isinstance(given, str) or not MESSAGE_ID.fullmatch(given.removeprefix(f"{sender}/")):
        return None
    return given if given.startswith(f"{sender}/") else f"{sender}/{given}"


def _safe_topic(topic: object) -> str | None:
    return topic if isinstance(topic, str) and MESSAGE_ID.fullmatch(topic) else None
