"""A message that is sent again under the id that its sender gave it: one at a time, and the first one's receipt.

Not here: sending what was not sent before, and recording a refusal (sending).
"""

from __future__ import annotations

import asyncio
from functools import partial

from enhanced_agent_bus.admission.draft import Shaped
from enhanced_agent_bus.admission.seal import commitment
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, Receipt
from enhanced_agent_bus.ports import StoredMessage
from enhanced_agent_bus.road.desk import RECORD_SECONDS_MAX, Desk, disk_silent
from enhanced_agent_bus.road.endings import TOLD_SECONDS, Endings
from enhanced_agent_bus.road.receipts import first_receipt, recorded_receipt
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.verdict import Refusal


class Repeats:
    """Which given ids are being sent right now, and what was sent under them before."""

    def __init__(self, desk: Desk, endings: Endings, rescue: Rescue) -> None:
        self._desk = desk
        self._endings = endings
        self._rescue = rescue
        self._claims: dict[str, asyncio.Future[None]] = {}  # given ids that are being sent right now
        self._putting: dict[str, asyncio.Future[None] | None] = {}  # of them, those on their way to the disk

    async def claim(self, message_id: str) -> None:
        """Waits until nobody else sends this id, until `leave`. Raises: AuditUnavailable; BusClosed."""
        while (claim := self._claims.get(message_id)) is not None:
            try:
                async with asyncio.timeout(RECORD_SECONDS_MAX if self._putting.get(message_id) is claim else None):
                    await asyncio.shield(claim)
            except TimeoutError:
                raise disk_silent() from None
            self._desk.require_open()
        self._claims[message_id] = asyncio.get_running_loop().create_future()

    def leave(self, message_id: str) -> None:
        """Whoever claimed an id is done with it."""
        claim = self._claims[message_id]
        if message_id in self._putting:  # its sender leaves before it is on disk: a twin waits for that
            self._claims[message_id] = self._putting[message_id] = asyncio.get_running_loop().create_future()
        else:
            del self._claims[message_id]
        claim.set_result(None)

    def putting(self, message_id: str) -> None:
        """A first decision that accepts is on its way to the disk."""
        if message_id in self._claims:
            self._putting[message_id] = None

    def put(self, message_id: str) -> None:
        """It is there, or could not be written."""
        orphan = self._putting.pop(message_id, None)
        if orphan is not None:
            del self._claims[message_id]
            orphan.set_result(None)

    async def known(self, message_id: str) -> StoredMessage | None:
        """What is stored under an id, once that is certain. Raises: AuditUnavailable, when the disk does not say."""
        live = self._desk.live.get(message_id)
        if live is not None and live.ending:
            await live.ended(None)
        deadline = self._desk.clock.monotonic() + RECORD_SECONDS_MAX
        while (stored := self._desk.ledger.find(message_id)) is not None:
            if stored.state in END_STATES or message_id in self._desk.live:
                break
            # On disk, and not under way here: written by a store that broke, which ends it as it is mended.
            if self._desk.clock.monotonic() > deadline:
                raise disk_silent()
            await asyncio.sleep(TOLD_SECONDS)
        return stored

    async def receipt(
        self, stored: StoredMessage, shaped: Shaped, to: str | None, topic: str | None
    ) -> Receipt | Refusal:
        """The first receipt for the same content, and later the recorded state; a refusal for any other."""
        before = stored.envelope
        message_id = before.id
        if before.salt == b"" or message_id in self._desk.erasing:
            same, why = False, f"the content of {message_id} was erased, so that what is sent now cannot be compared"
        else:
            same, why = _same(before, shaped, to, topic), f"{message_id} was sent before with other content"
        if not same:
            return Refusal("replayed", why, "give the new message an id of its own")
        if stored.state == "discarded" and stored.code == "audit_unavailable":
            # Its sender was told that nothing was accepted, and that sending again is safe.
            return await self._rescue.replay(stored)
        ending = partial(self._endings.outcome, message_id)
        age_us = self._desk.clock.now_us() - before.created_us
        lately = age_us <= self._desk.settings.limits.dedup_seconds * 1e6
        return (first_receipt if lately else recorded_receipt)(self._desk.ledger, stored, ending)


def _same(before: Envelope, shaped: Shaped, to: str | None, topic: str | None) -> bool:
    headers = commitment(before.salt, shaped.headers_bytes) if shaped.headers else None
    return (
        (to is None or before.recipient == to)
        and before.topic == topic
        and before.type == shaped.type
        and before.priority == shaped.priority
        and shaped.conversation in (None, before.conversation)
        and before.commitment == commitment(before.salt, shaped.body)
        and before.headers_commitment == headers
    )
