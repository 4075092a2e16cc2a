"""If delivery failed, or a message has waited: decided anew before it moves (retry, replay, restart, activation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import orjson

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.admission.canonical import freeze_headers
from enhanced_agent_bus.admission.chain import Decided
from enhanced_agent_bus.admission.facts import Added
from enhanced_agent_bus.admission.record import leaving
from enhanced_agent_bus.admission.seal import commitment
from enhanced_agent_bus.admission.sight import Case
from enhanced_agent_bus.deliberation import notes
from enhanced_agent_bus.delivery.parcel import Arrival, Parcel
from enhanced_agent_bus.delivery.runner import Failed
from enhanced_agent_bus.errors import AuditUnavailable, BusError, StoreCorrupt
from enhanced_agent_bus.outcome import Receipt
from enhanced_agent_bus.ports import Entry, FactChange, StoredMessage
from enhanced_agent_bus.recovery.retry import GiveUp, Park, RetryAfter, next_step
from enhanced_agent_bus.road.desk import NOBODY, Desk, Post, Written
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.mailroom import Mailroom
from enhanced_agent_bus.road.receipts import receipt_of, words_of
from enhanced_agent_bus.road.recovering import Recovering
from enhanced_agent_bus.verdict import Hold, Reason, Refusal

UNDECIDED: Final = frozenset({"policy_timeout", "policy_unavailable"})  # nobody said no: asked again while it waits


class Rescue:
    """Decides again what was accepted before."""

    def __init__(self, desk: Desk, endings: Endings, mailroom: Mailroom, recovering: Recovering) -> None:
        self._desk = desk
        self._endings = endings
        self._mailroom = mailroom
        self._recovering = recovering
        self.came_from: Callable[[StoredMessage], Arrival | None] = _from_here

    def rescue(self, post: Post, parcel: Parcel, failed: Failed, duration_us: int) -> None:
        """After a failed attempt: wait and be decided anew, wait for somebody, or among the dead letters."""
        retry = post.retry_for(parcel.envelope.type)
        never = failed.code if failed.never_again else "handler_failed" if retry.gives_up_on(failed.raised) else None
        step = next_step(retry, parcel.attempts - parcel.attempts_before, self._desk.chance(), never=never)
        parcel.error = failed.error
        opened = self._tell_breaker(post, parcel, never=never, gave_up=isinstance(step, GiveUp))
        if isinstance(step, RetryAfter) and parcel.replier is not None and post.breaker.shut:
            step = GiveUp("breaker_open")  # who waits for a reply is told at once
        entry = partial(self._endings.outcome_entry, parcel)
        said = (failed.error, failed.text, duration_us, None)
        if isinstance(step, GiveUp):
            self._endings.end(
                parcel, "dead_lettered", step.code, error=failed.error, text=failed.text, duration_us=duration_us
            )
        elif isinstance(step, Park):
            parcel.why = "retry"
            entry("parked", failed.code, "parked", 0, *said)
            self._recovering.park(parcel, failed.code, failed.error)
        else:
            parcel.why = "retry"
            due_us = self._desk.clock.now_us() + int(step.seconds * 1e6)
            entry("failed", failed.code, "retrying", due_us, *said)
            self._recovering.later(parcel, step.seconds, failed.code, failed.error)
        if opened:
            self._fail_requests(post)

    def _tell_breaker(self, post: Post, parcel: Parcel, *, never: str | None, gave_up: bool) -> bool:
        """True when this has opened the recipient's breaker. An error that is never retried says nothing about it."""
        if never is not None:
            post.breaker.left()
            opened = False
        else:
            attempts = parcel.attempts - parcel.attempts_before
            opened = post.breaker.failed(self._desk.clock.monotonic(), attempts, gave_up=gave_up)
        post.breaker_moved.set()
        return opened

    def _fail_requests(self, post: Post) -> None:
        """The breaker has opened: whoever waits for a reply is told at once; other messages wait."""
        for parcel in list(self._desk.live.values()):
            waits = parcel.replier is not None and parcel.state in ("queued", "retrying") and not parcel.ending
            if waits and parcel.envelope.recipient == post.agent_id:
                self._endings.end(parcel, "dead_lettered", "breaker_open", error=parcel.error)

    def interrupted(self, parcel: Parcel) -> Written:
        """Its process ended while its handler ran: a failed attempt, recorded by the next process."""
        parcel.attempts += 1
        parcel.interrupted = True
        parcel.error = "ProcessEnded"
        now_us = self._desk.clock.now_us()
        return self._endings.outcome_entry(
            parcel, "failed", "handler_failed", "retrying", now_us, parcel.error, "", 0, None
        )

    def goes_on(self, post: Post, parcel: Parcel) -> bool:
        """Whether a message whose process ended in its handler is run again, now that its registration is known."""
        parcel.interrupted = False
        step = next_step(
            post.retry_for(parcel.envelope.type), parcel.attempts - parcel.attempts_before, self._desk.chance()
        )
        if isinstance(step, GiveUp):
            self._endings.end(parcel, "dead_lettered", step.code, error=parcel.error)
        elif isinstance(step, Park):
            self._endings.outcome_entry(parcel, "parked", "handler_failed", "parked", 0, parcel.error, "", 0, None)
            self._recovering.park(parcel, "handler_failed", parcel.error or "")
        return isinstance(step, RetryAfter)

    async def readmit(self, parcel: Parcel) -> bool:
        """Decides a waiting message anew; True when it may go on, on a new ticket that is on disk."""
        since_us = self._desk.clock.now_us()
        case = self.case_of(parcel)
        try:
            if parcel.why == "retry":
                faultpoints.hit("retry.before_decide")
            decided = await self._desk.admission.judge(case)
            written = self._record_again(parcel, case, decided, since_us)
            await written.wait()
        except (AuditUnavailable, OSError):  # nothing could be recorded: it waits, and is asked again
            if not self._desk.closed:
                self._mailroom.undecided(parcel)
            return False
        parcel.decision_id = decided.decision_id
        if written.recorded is not None:
            parcel.recorded = written.recorded
            parcel.why = "activation"
            parcel.undecided = 0
            return True
        if decided.verdict == "hold":
            parcel.state = "held"
            self._endings.watch(parcel)
            self._desk.changed.set()
            return False
        if decided.code in UNDECIDED:
            self._mailroom.undecided(parcel)
            return False
        parcel.undecided = 0
        self.refuse(parcel, case, decided.code)
        return False

    def refuse(self, parcel: Parcel, case: Case, code: str | None) -> Written:
        """Ends a message that waited, with a no; what it had added is taken back where no handler has seen it."""
        facts: Sequence[FactChange] = ()
        if not parcel.attempts:
            facts = self._desk.admission.take_back(case)
            parcel.added = ()
        return self._endings.end(parcel, "refused", code, facts=facts)

    def case_of(self, parcel: Parcel) -> Case:
        envelope = parcel.envelope
        sender, recipient = self._desk.registry.party(envelope.sender), self._desk.registry.party(envelope.recipient)
        refusal = self._desk.cut_off()
        if sender is None:
            refusal = Refusal("sender_unregistered", f"{envelope.sender} is no longer registered", "register it again")
        elif recipient is None:
            refusal = Refusal("recipient_unknown", f"{envelope.recipient} is no longer registered", "register it again")
        return Case(
            self._desk.router.address(envelope, sender or NOBODY, recipient or NOBODY),
            why=parcel.why,
            attempt=parcel.attempts + 1,
            previous=parcel.decision_id,
            added=parcel.added,
            approvals=parcel.approvals,
            cause=parcel.cause,
            first=False,
            counted=parcel.counted,
            refusal=refusal,
        )

    def _record_again(
        self,
        parcel: Parcel,
        case: Case,
        decided: Decided,
        since_us: int,
        *,
        then: Callable[[Written, BusError | None], None] | None = None,
    ) -> Written:
        """Puts a later decision; where it changes the message's state, in the same transaction."""
        written = Written()
        if self._desk.listener is not None:
            self._desk.tell(parcel, decided, written, case.why, case.attempt, since_us)
        before = replace(parcel)
        entry = Entry(
            "decision",
            decided.fields,
            message_id=parcel.envelope.id,
            facts=decided.changes,
            texts=decided.texts,
            admitted=decided.admitted,
            tenant=parcel.envelope.tenant,
        )
        if decided.verdict != "refuse":
            parcel.added = list(decided.added)
            nodes = self._desk.registry.nodes_of(parcel.envelope.recipient) if parcel.arrival is None else ()
            state = "handed_over" if nodes else "queued"
            state = "held" if decided.verdict == "hold" else state
            if state == "handed_over":
                entry.fields = leaving(decided.fields, nodes)
            if decided.verdict == "hold":
                parcel.holds, parcel.hold_reasons = decided.hold, decided.reasons
                seconds = min(hold.expires_seconds for hold in decided.hold)
                parcel.hold_expires_us = self._desk.clock.now_us() + int(seconds * 1e6)
            else:
                parcel.counted = True
            entry.move = self._endings.move(parcel, state, 0, None, None, decided.decision_id)

        def done(seq: int, error: BusError | None) -> None:
            if error is not None:
                parcel.stored, parcel.added, parcel.counted = before.stored, before.added, before.counted
                parcel.holds, parcel.hold_reasons = before.holds, before.hold_reasons
                parcel.hold_expires_us = before.hold_expires_us
            written.recorded = entry.recorded
            self._desk.settled(decided, written, seq, error)
            if then is not None:
                then(written, error)

        entry.done = done
        self._desk.ledger.put(entry)
        return written

    async def replay(
        self,
        stored: StoredMessage,
        *,
        why: str = "replay",
        arrival: Arrival | None = None,
        ticket: Mapping[str, Any] | None = None,
        expires_us: int | None = None,
        refusal: Refusal | None = None,
        approved: bool = False,
    ) -> Receipt:
        """Decides anew what is a dead letter, or parked by a manual retry; allowed, it waits for its handler again.

        So does what comes from another node for the second time, with its `arrival`, on its newer `ticket`, good until
        `expires_us`, unless something speaks against it (`refusal`). What was approved counts on for that very letter
        (`approved`).
        """
        parcel = self.parcel_of(stored)
        envelope = parcel.envelope
        parcel.why = why
        parcel.arrival = arrival or parcel.arrival
        parcel.manual = False
        parcel.attempts_before = parcel.attempts
        if not approved:  # they were for the message as it was sent: an approval is used once
            parcel.approvals = ()
        now_us = self._desk.clock.now_us()
        parcel.expires_us = expires_us or now_us + (envelope.expires_us - envelope.created_us)
        post = self._desk.post(envelope.recipient)
        case = self.case_of(parcel)
        case.ticket = ticket
        case.refusal = case.refusal or refusal
        case.refusal = case.refusal or self._desk.stops.refusal(envelope)
        if not stored.has_content:
            case.refusal = Refusal(
                "malformed", f"the payload of {envelope.id} is no longer kept", "discard it, or send it anew"
            )
        parked = stored.state == "parked"  # it has its place still
        reserved = case.refusal is None and not parked and post.mailbox.reserve()
        if case.refusal is None and not reserved and not parked:
            case.refusal = Refusal("queue_full", f"{envelope.recipient} has no room", "replay it later")
        self._desk.rising.add(envelope.id)
        written: Written | None = None
        try:
            decided = await self._desk.admission.judge(case)
            written = self._record_again(
                parcel,
                case,
                decided,
                now_us,
                then=partial(self._replayed, parcel, decided, stored.state, reserved=reserved),
            )
            seq = await written.wait()
        finally:
            if written is None:
                self._desk.rising.discard(envelope.id)
                self._desk.changed.set()
                if reserved:
                    post.mailbox.release()
        ending = partial(self._endings.outcome_of, parcel) if decided.verdict != "refuse" else None
        return receipt_of(self._desk.ledger, envelope, decided, seq, ending)

    def _replayed(
        self,
        parcel: Parcel,
        decided: Decided,
        was: str,
        written: Written,
        error: BusError | None,
        *,
        reserved: bool,
    ) -> None:
        """The decision on a replay is durable, or could not be written, whatever became of who asked for it."""
        message_id = parcel.envelope.id
        post = self._desk.post(parcel.envelope.recipient)
        self._desk.rising.discard(message_id)
        self._desk.changed.set()
        if error is not None or decided.verdict == "refuse":
            if reserved:
                post.mailbox.release()
            return
        before = self._desk.live.get(message_id)  # where it was parked, the same message as it was until now
        if before is not None:
            parcel.waiters, before.waiters = before.waiters, ()
            parcel.replier = before.replier
        parcel.decision_id = decided.decision_id
        parcel.state = "held" if written.recorded is None else "queued"
        self._desk.live[message_id] = parcel
        if written.abandoned:  # who asked was told that it was not: then it must not be
            if was == "parked":
                code = before.error if before is not None else None
                self._endings.outcome_entry(parcel, "parked", "handler_failed", "parked", 0, code, "", 0, None)
                self._recovering.park(parcel, "handler_failed", code or "")
            else:
                self._endings.end(parcel, was, "audit_unavailable")
            return
        self._desk.recoveries.retrying(message_id)
        post.breaker.try_now()
        post.breaker_moved.set()
        self._endings.watch(parcel)
        if written.recorded is not None:
            parcel.recorded = written.recorded
            parcel.why = "activation"
            self._mailroom.carry(post, parcel)
        if self._desk.drained:
            parcel.keep()

    def replayable(self, message_id: str) -> StoredMessage:
        """Raises: KeyError, when there is neither a dead letter nor one parked by a manual retry of this id."""
        parcel = self._desk.live.get(message_id)
        if parcel is None or not parcel.manual or parcel.ending or message_id in self._desk.rising:
            return self.dead(message_id)
        stored = self._desk.ledger.find(message_id)
        if stored is None or stored.state != "parked":  # on its way to the disk
            raise KeyError(f"{message_id} is being parked just now")
        return stored

    def dead(self, message_id: str) -> StoredMessage:
        stored = self._desk.ledger.find(message_id)
        busy = message_id in self._desk.live or message_id in self._desk.rising
        if stored is None or stored.state != "dead_lettered" or busy:
            state = (
                self._desk.live[message_id].state
                if message_id in self._desk.live
                else stored.state
                if stored
                else "unknown"
            )
            raise KeyError(f"no dead letter {message_id} ({state})")
        return stored

    def parcel_of(self, stored: StoredMessage) -> Parcel:
        """A stored message, to go on with. Raises: StoreCorrupt, when its headers are not what was decided on."""
        _require_own_headers(stored)
        added: list[Added] = [tuple(item) for item in orjson.loads(stored.added or b"[]")]
        parent = self._desk.ledger.find(stored.envelope.cause) if stored.envelope.cause else None
        cause = None
        if parent is not None and parent.envelope.recipient == stored.envelope.sender:
            before = parent.envelope
            cause = {"id": before.id, "type": before.type, "sender": before.sender, "tenant": before.tenant}
        noted = notes.read(stored)
        return Parcel(
            stored.envelope,
            stored.expires_us,
            stored.since_us,
            state=stored.state,
            stored=stored.state,
            why="restart",
            row=stored.seq,
            attempts=stored.attempts,
            decision_id=stored.decision_id,
            added=added,
            counted=noted.counted,
            cause=cause,
            holds=noted.holds,
            approvals=noted.approvals,
            hold_reasons=self._hold_reasons(stored, noted.holds),
            hold_expires_us=noted.hold_expires_us,
            due_us=stored.due_us,
            redact=noted.redact,
            attempts_before=noted.attempts_before,
            error=stored.error,
            manual=stored.state == "parked" and stored.code is not None,
            arrival=self.came_from(stored),
        )

    def _hold_reasons(self, stored: StoredMessage, holds: tuple[Hold, ...]) -> tuple[Reason, ...]:
        """Why it is held, in the words of the decision that held it, as far as those are still kept."""
        if stored.state != "held":
            return ()
        try:
            first = orjson.loads(self._desk.ledger.record(stored.seq))
        except KeyError:  # a ledger in memory forgets records sooner than messages
            first = {"verdict": ""}
        if first["verdict"] != "hold":  # held later than at its first decision
            return tuple(Reason(hold.rule, "hold") for hold in holds)
        return words_of(self._desk.ledger, stored.seq, [(item["rule"], item["code"]) for item in first["reasons"]])


def _require_own_headers(stored: StoredMessage) -> None:
    """The ledger has held the payload against its commitment; headers have one of their own."""
    envelope = stored.envelope
    if not stored.has_content or (envelope.headers_commitment is None and not envelope.headers):
        return
    frozen = freeze_headers(envelope.headers)
    if isinstance(frozen, Refusal) or commitment(envelope.salt, frozen[1]) != envelope.headers_commitment:
        raise StoreCorrupt(
            f"the stored headers of {envelope.id} are not what was stored", remedy="restore the home from a backup"
        )


def _from_here(_stored: StoredMessage) -> Arrival | None:
    """On a bus of one node everything was sent here."""
    return None
