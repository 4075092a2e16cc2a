"""Takes away what stands beside records: on request, or when its time is over. Records themselves are never touched.

Nothing is erased that has not ended, nor what a legal hold covers. Not here: how bytes are overwritten (ledger).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from enhanced_agent_bus.admission.seal import instant
from enhanced_agent_bus.errors import AuditUnavailable, BusClosed
from enhanced_agent_bus.outcome import Erasure, LegalHold, Retention
from enhanced_agent_bus.ports import Content, Entry, Erased
from enhanced_agent_bus.retention.holds import HOLDS_MAX, SETTING, check_target
from enhanced_agent_bus.road.desk import Desk

#: How many messages one record of an erasure names; a commit of so many takes some milliseconds.
STEP_MESSAGES: Final = 200
#: Retention is looked after at the opening and this often; between two steps others have their turn.
SWEEP_SECONDS: Final = 3600.0
STEP_SECONDS: Final = 0.05
DAY_US: Final = 86_400_000_000
REASON_CHARS_MAX: Final = 500
NODES_NAMED_MAX: Final = 100  # in a record, which has a largest size
KINDS: Final = ("payloads", "texts")
#: What was asked for and is not finished: the next opening finishes it.
UNFINISHED: Final = "erasing"


class Erasing:
    """Erasures, legal holds and retention of one bus."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._keeper: asyncio.Task[None] | None = None
        self._one_hold = asyncio.Lock()  # is written at a time, since all of them are

    # --- on request ------------------------------------------------------------------------------------------------

    async def erase(self, of: str, name: str, *, reason: str, by: str) -> Erasure:
        """Removes the content of what has ended and no hold covers; returns once no byte of it is left in the home.

        Raises: KeyError, when nothing was ever recorded of it; ValueError; AuditUnavailable.
        """
        check_target(of, name)
        if not reason.strip():
            raise ValueError("an erasure needs a reason")
        found = await self._desk.ledger.contents(**{of: name})
        if not found:
            raise KeyError(f"nothing is recorded of {of} {name}")
        left = {content.message_id: why for content in found if (why := self._why_left(content))}
        due = [content for content in found if content.message_id not in left and _has_any(content)]
        steps = [due[start : start + STEP_MESSAGES] for start in range(0, len(due), STEP_MESSAGES)]
        elsewhere = tuple(sorted({origin for content in found for origin in content.elsewhere}))
        fields: dict[str, Any] = {"what": {of: name}, "basis": "request", "reason": reason[:REASON_CHARS_MAX], "by": by}
        if elsewhere:
            fields["elsewhere"] = elsewhere[:NODES_NAMED_MAX]
        order = orjson.dumps([of, name, reason, by]).decode()
        done = Erasure()
        for number, step in enumerate(steps, 1):
            left |= {content.message_id: why for content in step if (why := self._why_left(content))}
            going = [content for content in step if content.message_id not in left]
            settings = {UNFINISHED: order if number < len(steps) else ""}
            one = name if of == "message" else None
            done += await self._put(going, fields, left, message_id=one, settings=settings)
        await self._desk.ledger.clean()
        return Erasure(done.messages, done.payloads, done.texts, left, elsewhere)

    async def finish(self) -> None:
        """What the process before had begun. An error leaves it to the next one."""
        order = self._desk.ledger.setting(UNFINISHED)
        if order:
            of, name, reason, by = orjson.loads(order)
            with contextlib.suppress(AuditUnavailable, KeyError):
                await self.erase(of, name, reason=reason, by=by)

    def _why_left(self, content: Content) -> str | None:
        """Why the content of a message stays; None when nothing speaks for it."""
        message_id = content.message_id
        parcel = self._desk.live.get(message_id)
        if parcel is not None or message_id in self._desk.rising:  # since it was looked up
            content = content._replace(state="queued" if parcel is None else parcel.state)
        return self._desk.holds.why_left(content)

    async def _put(
        self,
        contents: Sequence[Content],
        fields: Mapping[str, Any],
        left: Mapping[str, str],
        *,
        message_id: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Erasure:
        """One record, and in its transaction what it says."""
        erased = Erased(*(tuple(seq for one in contents for seq in one.erased[kind]) for kind in range(3)))
        ids = sorted({content.message_id for content in contents} - {""})
        done = Erasure(len(ids), len(erased.payloads), len(erased.texts))
        counts = {"messages": done.messages, "payloads": done.payloads, "texts": done.texts, "left": len(left)}
        entry = Entry(
            "erasure",
            {**fields, "counts": counts, "messages": ids},
            message_id=message_id,
            erased=erased,
            settings=settings,
        )
        self._desk.erasing.update(ids)  # nobody takes one of them up again meanwhile
        try:
            await self._desk.write(entry)
        finally:
            self._desk.erasing.difference_update(ids)
        return done

    # --- legal holds -----------------------------------------------------------------------------------------------

    async def hold(self, of: str, name: str, *, reason: str, by: str) -> LegalHold:
        """Raises: KeyError, for a message that there is not; ValueError; AuditUnavailable."""
        check_target(of, name)
        if not reason.strip():
            raise ValueError("a legal hold needs a reason")
        if len(self._desk.holds) >= HOLDS_MAX:
            raise ValueError(f"there are {HOLDS_MAX} legal holds, and no more can be kept: remove one")
        if of == "message" and not await self._desk.ledger.contents(message=name):
            raise KeyError(f"nothing is recorded of message {name}")
        held = [reason[:REASON_CHARS_MAX], by, self._desk.clock.now_us()]
        await self._record_hold("added", of, name, held, reason=reason, by=by)
        return next(hold for hold in self._desk.holds if (hold.of, hold.name) == (of, name))

    async def release(self, of: str, name: str, *, reason: str, by: str) -> None:
        """Raises: KeyError, when there is no such hold; ValueError; AuditUnavailable."""
        if not reason.strip():
            raise ValueError("the end of a legal hold needs a reason")
        if self._desk.holds.get(of, name) is None:
            raise KeyError(f"there is no legal hold on {of} {name}")
        await self._record_hold("removed", of, name, None, reason=reason, by=by)

    async def _record_hold(
        self, event: str, of: str, name: str, held: list[Any] | None, *, reason: str, by: str
    ) -> None:
        holds = self._desk.holds
        fields = {"event": event, "what": {of: name}, "reason": reason[:REASON_CHARS_MAX], "by": by}
        async with self._one_hold:
            before = holds.get(of, name)
            entry = Entry("hold", fields, settings={SETTING: holds.written(of, name, held)})
            if held is not None:
                holds.change(of, name, held)  # it counts from the moment it is asked for
            try:
                await self._desk.write(entry)
            except BaseException:
                holds.change(of, name, before)
                raise
            holds.change(of, name, held)

    # --- retention -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Looks after retention until `stop`, where anything is kept for a time only."""
        if any(self._days(kind) for kind in KINDS):
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="eab-retention")

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(AuditUnavailable, BusClosed):  # the next time
                await self.sweep()
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> Erasure:
        """Erases what is past its time, a step at a time. Raises: AuditUnavailable."""
        done = Erasure()
        for kind in KINDS:
            days = self._days(kind)
            after = -1
            while days:
                page, before_us, after = await self._due(kind, days, after)
                left = {content.message_id: why for content in page if (why := self._why_left(content))}
                due = [content for content in page if content.message_id not in left]
                if due:
                    what = {"class": kind, "before": instant(before_us), "days": days}
                    done += await self._put(due, {"what": what, "basis": "retention", "by": "bus"}, left)
                if after < 0:
                    break
                await asyncio.sleep(STEP_SECONDS)
        if done.payloads or done.texts:
            await self._desk.ledger.clean()
        return done

    async def report(self) -> Retention:
        """What applies, and what is due now."""
        due, left = dict.fromkeys(KINDS, 0), 0
        for kind in KINDS:
            days = self._days(kind)
            after = -1
            while days:
                page, _, after = await self._due(kind, days, after)
                for content in page:
                    if self._why_left(content):
                        left += 1
                    else:
                        due[kind] += len(content.erased.payloads) + len(content.erased.texts)
                if after < 0:
                    break
        audit = self._desk.settings.audit
        return Retention(
            audit.keep_payloads_days, audit.keep_texts_days, audit.keep_floor_days, due["payloads"], due["texts"], left
        )

    async def _due(self, kind: str, days: float, after: int) -> tuple[list[Content], int, int]:
        before_us = self._desk.clock.now_us() - int(days * DAY_US)
        page, after = await self._desk.ledger.contents_before(kind, before_us, after_seq=after, limit=STEP_MESSAGES)
        return page, before_us, after

    def _days(self, kind: str) -> float:
        audit = self._desk.settings.audit
        return audit.keep_payloads_days if kind == "payloads" else audit.keep_texts_days


def _has_any(content: Content) -> bool:
    return bool(content.erased.payloads or content.erased.texts)
