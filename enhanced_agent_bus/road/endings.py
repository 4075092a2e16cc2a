"""How a message ends, and that its end is recorded before anyone is told; and the expiry of what waits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import orjson

from enhanced_agent_bus.admission.seal import SALT_BYTES, commitment
from enhanced_agent_bus.deliberation.notes import Notes
from enhanced_agent_bus.deliberation.notes import read as read_notes
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.redact import redacted
from enhanced_agent_bus.delivery.runner import ERROR_TEXT_CHARS_MAX
from enhanced_agent_bus.errors import BusError, NotDelivered
from enhanced_agent_bus.message import Message
from enhanced_agent_bus.outcome import END_STATES, Outcome
from enhanced_agent_bus.ports import Entry, FactChange, Move, StoredMessage
from enhanced_agent_bus.recovery.orchestrator import State as RecoveryState
from enhanced_agent_bus.road.desk import Desk, Written

TOLD_SECONDS: Final = 0.005  # from a commit on disk until the loop has heard of it
RECOVERED: Final[dict[str, RecoveryState]] = {"delivered": "succeeded", "discarded": "cancelled"}
NO_REPLY: Final = {
    "breaker_open": "its handler has failed too often in a row: see `eab status`, and ask again after a pause",
    "no_reply": "the handler returned None: return a dict to answer requests",
    "reply_refused": "the constitution refused the reply: see `eab audit search code:policy_denied`",
}


class Endings:
    """Ends messages, once each."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us = 0
        self.delivered = 0  # by this process
        self.dead_lettered = 0
        self.tell_node: Callable[[Parcel, Outcome, int], None] | None = None  # hears of what came from other nodes

    def end(
        self,
        parcel: Parcel,
        state: str,
        code: str | None,
        *,
        error: str | None = None,
        text: str = "",
        duration_us: int = 0,
        facts: Sequence[FactChange] = (),
    ) -> Written:
        """Records how a message ended; who waits for it is told once that is durable."""
        if parcel.timer is not None:
            parcel.stop_timer()
        parcel.recorded = None
        if parcel.state in ("queued", "parked") and (post := self._desk.posts.get(parcel.envelope.recipient)):
            post.mailbox.remove(parcel)
        outcome = Outcome(state, parcel.attempts, code, parcel.reply, error)  # type: ignore[arg-type]
        parcel.ending = True
        if parcel.error is not None:
            self._desk.recoveries.ended(parcel.envelope.id, RECOVERED.get(state, "failed"))
        return self.outcome_entry(parcel, state, code, state, 0, error, text, duration_us, outcome, facts)

    def outcome_entry(
        self,
        parcel: Parcel,
        state: str,
        code: str | None,
        next_state: str,
        due_us: int,
        error: str | None,
        text: str,
        duration_us: int,
        outcome: Outcome | None,
        facts: Sequence[FactChange] = (),
    ) -> Written:
        envelope = parcel.envelope
        fields: dict[str, Any] = {
            "message_id": envelope.id,
            "decision_id": parcel.decision_id,
            "state": state,
            "code": code,
            "attempt": parcel.attempts,
            "duration_us": duration_us,
            "error": {"type": error} if error is not None else None,
        }
        if parcel.ended_by is not None:
            fields["by"] = parcel.ended_by
        if parcel.delivered is not None:  # the policy's redaction came between
            fields["payload"] = parcel.delivered
            parcel.delivered = None  # of this attempt; what comes after it was not delivered
        texts = None
        if text:
            kept = text[:ERROR_TEXT_CHARS_MAX].encode("utf-8", "backslashreplace").decode()
            salt, body = self._desk.randomness.take(SALT_BYTES), orjson.dumps({"error": kept})
            fields["texts"] = commitment(salt, body)
            texts = (salt, body)
        written = Written()
        if (listener := self._desk.listener) is not None:
            written.heard = partial(listener.ended, envelope, state, code, duration_us)
        move = self.move(parcel, next_state, due_us, code, error, parcel.decision_id)
        done = partial(self._told, parcel, outcome, facts, written)
        self._desk.ledger.put(
            Entry(
                "outcome",
                fields,
                message_id=envelope.id,
                move=move,
                texts=texts,
                facts=facts,
                certain=True,
                done=done,
                tenant=envelope.tenant,
            )
        )
        return written

    def _told(
        self,
        parcel: Parcel,
        outcome: Outcome | None,
        facts: Sequence[FactChange],
        written: Written,
        seq: int,
        failure: BusError | None,
    ) -> None:
        """What became of an outcome record."""
        if failure is None:
            self._desk.stalled = False
            self._desk.admission.facts.durable(facts)
            if outcome is not None:
                self._ended(parcel, outcome)
                if parcel.added and outcome.state != "dead_lettered":
                    self._desk.admission.ended(parcel.envelope.id)
                if parcel.arrival is not None and self.tell_node is not None:
                    self.tell_node(parcel, outcome, seq)
        written.settle(seq, failure)

    def _ended(self, parcel: Parcel, outcome: Outcome) -> None:
        state = outcome.state
        self._desk.rising.discard(parcel.envelope.id)
        if self._desk.live.pop(parcel.envelope.id, None) is not None and parcel.placed:
            self._desk.post(parcel.envelope.recipient).mailbox.release()
        if state == "delivered":
            self.delivered += 1
        elif state == "dead_lettered":
            self.dead_lettered += 1
        if parcel.replier is not None and not parcel.replier.done() and parcel.placed:
            code = outcome.code or ("no_reply" if state == "delivered" else state)
            parcel.replier.set_exception(
                NotDelivered(parcel.envelope.id, outcome, code=code, remedy=NO_REPLY.get(code, ""))
            )
        parcel.settle(outcome)
        self._desk.changed.set()

    def move(
        self,
        parcel: Parcel,
        state: str,
        due_us: int,
        code: str | None,
        error: str | None,
        decision_id: str,
    ) -> Move:
        forget = not self._desk.settings.audit.store_payloads and state in END_STATES and state != "dead_lettered"
        forget = forget and self._desk.held_by_law(parcel.envelope) is None
        before, parcel.stored = parcel.stored, state
        return Move(
            parcel.row,
            before,
            state,
            parcel.attempts,
            due_us,
            self._desk.clock.now_us(),
            code,
            error,
            decision_id,
            orjson.dumps(parcel.added) if parcel.added else b"[]",
            parcel.expires_us,
            parcel.reply_id,
            forget,
            _notes(parcel) if parcel.holds or parcel.redact or parcel.attempts_before else b"{}",
        )

    async def outcome(self, message_id: str, seconds: float | None) -> Outcome:
        """How a message ended, or ends within this time. Raises: KeyError; TimeoutError; BusClosed."""
        async with asyncio.timeout(seconds):
            while (parcel := self._desk.live.get(message_id)) is None:
                stored = self._desk.ledger.find(message_id)
                if stored is None:
                    raise KeyError(f"no message {message_id}")
                if stored.state in END_STATES:
                    return self._stored_outcome(stored)
                self._desk.require_open()
                await asyncio.sleep(TOLD_SECONDS)
            return await parcel.ended(None)

    async def outcome_of(self, parcel: Parcel, seconds: float | None) -> Outcome:
        """The same for whoever sent it: a dead letter may have been replayed since."""
        outcome = await parcel.ended(seconds)
        if outcome.state != "dead_lettered":
            return outcome
        return await self.outcome(parcel.envelope.id, seconds)

    def _stored_outcome(self, stored: StoredMessage) -> Outcome:
        reply = self._desk.ledger.find(stored.reply_id) if stored.reply_id else None
        message = None
        if reply is not None and reply.has_content:
            message = Message(reply.envelope)
            paths = read_notes(reply).redact
            if paths:
                message = message.carrying(redacted(message.payload, paths))
        return Outcome(stored.state, stored.attempts, stored.code, message, stored.error)  # type: ignore[arg-type]

    # --- expiry ----------------------------------------------------------------------------------------------------

    def watch(self, parcel: Parcel) -> None:
        """One timer for all that wait: set to the earliest end of any."""
        end_us = parcel.expires_us
        if parcel.state == "held":
            end_us = min(end_us, parcel.hold_expires_us)
        if self._timer is not None and end_us >= self._timer_us:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_us = end_us
        seconds = max(0.0, (end_us - self._desk.clock.now_us()) / 1e6)
        self._timer = asyncio.get_running_loop().call_later(min(seconds, 86_400.0), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        if self._desk.closed:
            return
        now_us = self._desk.clock.now_us()
        earliest: Parcel | None = None
        earliest_us = math.inf
        for parcel in list(self._desk.live.values()):
            if parcel.state in ("in_flight", "handed_over") or parcel.ending:
                continue
            if parcel.manual:  # it waits for somebody, for as long as that takes
                continue
            if now_us >= parcel.expires_us:
                self.end(parcel, "expired", "expired")
            elif parcel.state == "held" and now_us >= parcel.hold_expires_us:
                self.end(parcel, "refused", "approval_expired")
            else:
                end_us = min(parcel.expires_us, parcel.hold_expires_us if parcel.state == "held" else parcel.expires_us)
                if end_us < earliest_us:
                    earliest, earliest_us = parcel, end_us
        if earliest is not None:
            self.watch(earliest)

    def stop(self) -> None:
        """Nothing expires any more: the bus closes."""
        if self._timer is not None:
            self._timer.cancel()


def _notes(parcel: Parcel) -> bytes:
    return Notes(
        parcel.holds, parcel.hold_expires_us, parcel.approvals, parcel.counted, parcel.redact, parcel.attempts_before
    ).written()
