"""The queue of recoveries at work: its timer, and what operators do to it (pause, resume, cancel)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.outcome import Recovery, instant_of
from enhanced_agent_bus.ports import Entry
from enhanced_agent_bus.recovery.orchestrator import Failure
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.mailroom import Mailroom

PAUSED: Final = "recovery.paused"  # the home's setting, "1" or "0"


class Recovering:
    """Brings failed messages back to the gate, when it is time."""

    def __init__(self, desk: Desk, endings: Endings, mailroom: Mailroom) -> None:
        self._desk = desk
        self._endings = endings
        self._mailroom = mailroom
        self._queue = desk.recoveries
        self._queue.paused = desk.ledger.setting(PAUSED) == "1"
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def later(self, parcel: Parcel, seconds: float, code: str, error: str) -> None:
        """To be decided anew after this long, or later where the budget or a pause says so."""
        parcel.state = "retrying"
        parcel.recorded = None
        parcel.due_us = self._desk.clock.now_us() + int(seconds * 1e6)
        due = self._desk.clock.monotonic() + seconds
        self._queue.failed(_failure(parcel, code, error), due)
        self._endings.watch(parcel)
        self._desk.changed.set()
        self._set_timer()

    def park(self, parcel: Parcel, code: str, error: str) -> None:
        """Until somebody says what is to be done with it; it does not expire."""
        parcel.stop_timer()  # where it waited to be asked about again
        parcel.state = "parked"
        parcel.recorded = None
        parcel.manual = True
        self._queue.parked(_failure(parcel, code, error))
        self._desk.changed.set()

    def _set_timer(self) -> None:
        seconds = self._queue.seconds_left(self._desk.clock.monotonic())
        if seconds is None or self._desk.closed:
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._desk.closed:
            return
        for message_id in self._queue.ready(self._desk.clock.monotonic()):
            parcel = self._desk.live.get(message_id)
            if parcel is not None and not parcel.ending and parcel.state == "retrying":
                self._mailroom.carry(self._desk.post(parcel.envelope.recipient), parcel)
        self._set_timer()

    # --- what operators do -----------------------------------------------------------------------------------------

    async def pause(self, message_id: str | None) -> None:
        """Holds back all that is to be tried again, or one message. Raises: KeyError; AuditUnavailable."""
        if message_id is None:
            await self._note("paused", None, {PAUSED: "1"})
            self._queue.paused = True
            return
        parcel, failure = self._waiting(message_id)
        if not parcel.manual:
            error = failure.error or None
            written = self._endings.outcome_entry(parcel, "parked", failure.code, "parked", 0, error, "", 0, None)
            self.park(parcel, failure.code, failure.error)
            await written.wait()
        await self._note("paused", message_id)

    async def resume(self, message_id: str | None) -> None:
        """Goes on with all, or with one message at once. Raises: KeyError; AuditUnavailable."""
        if message_id is None:
            await self._note("resumed", None, {PAUSED: "0"})
            self._queue.paused = False
            self._set_timer()
            return
        parcel, _ = self._waiting(message_id)
        parcel.manual = False
        self._queue.retrying(message_id)
        self._mailroom.carry(self._desk.post(parcel.envelope.recipient), parcel)
        await self._note("resumed", message_id)

    async def cancel(self, message_id: str) -> None:
        """Tries it no more: it goes among the dead letters. Raises: KeyError; AuditUnavailable."""
        parcel, failure = self._waiting(message_id)
        self._queue.ended(message_id, "cancelled")
        await self._endings.end(parcel, "dead_lettered", failure.code, error=failure.error or None).wait()
        await self._note("cancelled", message_id)

    def _waiting(self, message_id: str) -> tuple[Parcel, Failure]:
        case, parcel = self._queue.find(message_id), self._desk.live.get(message_id)
        if case is None or parcel is None or parcel.ending or message_id in self._desk.rising:
            raise KeyError(f"no recovery of {message_id} is under way")
        if parcel.state != "retrying" and not parcel.manual:
            raise KeyError(f"{message_id} is being tried again just now")
        return parcel, case.failure

    async def _note(self, event: str, message_id: str | None, settings: dict[str, str] | None = None) -> None:
        """Records what an operator has done."""
        fields = {"event": event, "message_id": message_id}
        await self._desk.write(Entry("recovery", fields, message_id=message_id, settings=settings))

    def view(self, state: str | None) -> list[Recovery]:
        """The queue as it stands."""
        now, now_us = self._desk.clock.monotonic(), self._desk.clock.now_us()
        found = []
        for case in self._queue.all():
            if state is None or case.state == state:
                due = instant_of(now_us) + timedelta(seconds=case.due - now) if case.state == "waiting" else None
                found.append(Recovery(*case.failure, case.state, due))
        return found


def _failure(parcel: Parcel, code: str, error: str) -> Failure:
    envelope = parcel.envelope
    return Failure(envelope.id, envelope.sender, envelope.recipient, envelope.priority, parcel.attempts, code, error)
