"""What becomes of a held message: each yes or no recorded; with the last yes, a new decision.

An approval is in the ledger before it counts, and opens nothing by itself: once none is missing the message passes the
gate again, with the approvals in its input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import orjson

from enhanced_agent_bus.admission.seal import SALT_BYTES, commitment, instant
from enhanced_agent_bus.deliberation.approvals import CODE, entitled, view
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.message import MESSAGE_ID, shown
from enhanced_agent_bus.outcome import Deliberated
from enhanced_agent_bus.ports import Entry
from enhanced_agent_bus.road.desk import Desk, Written
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.mailroom import Mailroom
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.verdict import Approval, Hold, Party, Refusal

WORDS_CHARS_MAX: Final = 2000
RELEASE: Final = "release"


class Deliberating:
    """Approvals and rejections of one bus."""

    def __init__(self, desk: Desk, endings: Endings, mailroom: Mailroom, rescue: Rescue) -> None:
        self._desk = desk
        self._endings = endings
        self._mailroom = mailroom
        self._rescue = rescue
        self._counting = asyncio.Lock()  # an approval is on disk, or is none, before the next one is looked at
        self._releases: set[asyncio.Task[Deliberated]] = set()
        self._stopped = False

    async def approve(self, approver: Party, message_id: str, comment: str | None) -> Deliberated:
        """One agent's yes to every rule that it may decide about. Raises: KeyError, BusError, AuditUnavailable."""
        async with self._counting:
            parcel, release = await self._count(approver, message_id, comment)
        return _still_held(parcel) if release is None else await asyncio.shield(release)

    async def _count(
        self, approver: Party, message_id: str, comment: str | None
    ) -> tuple[Parcel, asyncio.Task[Deliberated] | None]:
        """Records an approval; the last one that is missing releases the message."""
        parcel, holds = await self._entitled(approver, message_id, "approve", comment, count=True)
        at = instant(self._desk.clock.now_us())
        given = tuple(Approval(approver.id, approver.roles, hold.rule, at) for hold in holds)
        shown_then = _view(parcel)
        parcel.approvals += given
        entry = self._entry("approved", approver, parcel, holds, comment, shown_then)
        entry.move = self._endings.move(parcel, parcel.stored, 0, None, None, parcel.decision_id)
        release: asyncio.Task[Deliberated] | None = None

        def then(error: BusError | None) -> None:
            nonlocal release
            if error is not None:
                parcel.approvals = tuple(one for one in parcel.approvals if one not in given)
            elif self.is_released(parcel) and not self._stopped:
                release = self.release(parcel)

        await self._desk.write(entry, then)
        return parcel, release

    async def reject(self, approver: Party, message_id: str, reason: str) -> Deliberated:
        """One agent's no, which ends the message. Raises: KeyError, BusError, AuditUnavailable."""
        parcel, holds = await self._entitled(approver, message_id, "reject", reason, count=False)
        written = Written()
        entry = self._entry("rejected", approver, parcel, holds, reason, _view(parcel))
        entry.certain, entry.done = True, written.settle
        self._desk.ledger.put(entry)
        self._rescue.refuse(parcel, self._rescue.case_of(parcel), "approval_rejected")
        await written.wait()
        return Deliberated(message_id, "refused", "approval_rejected", ())

    def is_released(self, parcel: Parcel) -> bool:
        """Whether a held message has all approvals that it waited for."""
        return (
            parcel.state == "held"
            and not parcel.ending
            and bool(parcel.holds)
            and not any(hold.missing(parcel.approvals) for hold in parcel.holds)
        )

    def release(self, parcel: Parcel) -> asyncio.Task[Deliberated]:
        """Decides a held message anew, whoever still waits for that."""
        parcel.why = RELEASE
        parcel.state = "in_flight"  # in this task's hands: nobody else ends it
        task = asyncio.create_task(self._release(parcel), name=f"release of {parcel.envelope.id}")
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        return task

    async def _release(self, parcel: Parcel) -> Deliberated:
        message_id = parcel.envelope.id
        try:
            if await self._rescue.readmit(parcel):
                self._mailroom.carry(self._desk.post(parcel.envelope.recipient), parcel)
                return Deliberated(message_id, "accepted", None, ())
        except asyncio.CancelledError:  # the bus closes: it is held still, and released when the home is opened again
            parcel.state = "held"
            raise
        if parcel.ending:
            return Deliberated(message_id, "refused", (await parcel.ended(None)).code, ())
        if parcel.state == "held":
            return _still_held(parcel)
        return Deliberated(message_id, "held", None, ())  # nobody has said no: it is asked again

    async def stop(self) -> None:
        """Ends what is under way."""
        self._stopped = True
        tasks = list(self._releases)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _entitled(
        self, approver: Party, message_id: object, act: str, words: object, *, count: bool
    ) -> tuple[Parcel, tuple[Hold, ...]]:
        """The held message and the holds that this agent may decide about; an attempt without is recorded, then raised.

        `count` leaves out what it has approved before.
        """
        if words is not None and not isinstance(words, str):
            raise TypeError(f"a comment or reason is text, not {type(words).__name__}")
        parcel = self._desk.live.get(message_id) if isinstance(message_id, str) else None
        missing = parcel is None or parcel.state != "held" or parcel.ending
        if self._desk.registry.live(approver.id) is not approver:
            refusal = Refusal(CODE, f"{approver.id} is not registered", "register it again")
        elif parcel is None or missing:
            refusal = Refusal(CODE, f"no message {shown(message_id)} is held", "see `eab held list`")
        else:
            found = entitled(parcel.envelope, parcel.holds, parcel.approvals if count else (), approver)
            if not isinstance(found, Refusal):
                return parcel, found
            refusal = found
        fields: dict[str, Any] = {
            "event": "refused",
            "act": act,
            "message_id": message_id if isinstance(message_id, str) and MESSAGE_ID.fullmatch(message_id) else None,
            "digest": parcel.envelope.digest if parcel is not None else None,
            "approver": approver.id,
            "tenant": approver.tenant,
            "roles": list(approver.roles),
            "why": refusal.message,
        }
        await self._desk.write(Entry("approval", fields, message_id=fields["message_id"]))
        if missing:
            raise KeyError(refusal.message)
        raise BusError(
            f"{approver.id} cannot {act} {message_id}: {refusal.message}", code=refusal.code, remedy=refusal.remedy
        )

    def _entry(
        self,
        event: str,
        approver: Party,
        parcel: Parcel,
        holds: Sequence[Hold],
        words: str | None,
        shown_then: dict[str, Any],
    ) -> Entry:
        said = None if words is None else words[:WORDS_CHARS_MAX].encode("utf-8", "backslashreplace").decode()
        texts = orjson.dumps({"words": said, "shown": shown_then}, option=orjson.OPT_SORT_KEYS)
        salt = self._desk.randomness.take(SALT_BYTES)
        fields = {
            "event": event,
            "message_id": parcel.envelope.id,
            "digest": parcel.envelope.digest,
            "rules": [hold.rule for hold in holds],
            "approver": approver.id,
            "tenant": approver.tenant,
            "roles": list(approver.roles),
            "decision_id": parcel.decision_id,
            "constitution": self._desk.admission.digest_for(parcel.envelope.conversation),
            "texts": commitment(salt, texts),
        }
        return Entry("approval", fields, message_id=parcel.envelope.id, texts=(salt, texts))


def _still_held(parcel: Parcel) -> Deliberated:
    missing = tuple((hold.rule, left) for hold in parcel.holds if (left := hold.missing(parcel.approvals)))
    return Deliberated(parcel.envelope.id, "held", None, missing)


def _view(parcel: Parcel) -> dict[str, Any]:
    return view(
        parcel.envelope,
        decision_id=parcel.decision_id,
        reasons=parcel.hold_reasons,
        holds=parcel.holds,
        until_us=min(parcel.hold_expires_us, parcel.expires_us),  # whichever ends it
        approvals=parcel.approvals,
    )
