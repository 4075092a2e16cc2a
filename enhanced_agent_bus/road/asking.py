"""Requests and topics: one message and its reply; one message for each subscriber."""

from __future__ import annotations

import asyncio
from typing import Final

from enhanced_agent_bus.agent import Draft
from enhanced_agent_bus.errors import NotDelivered, RequestTimeout
from enhanced_agent_bus.message import Message
from enhanced_agent_bus.outcome import Outcome, Receipt
from enhanced_agent_bus.road.desk import NOBODY, Desk
from enhanced_agent_bus.road.endings import NO_REPLY
from enhanced_agent_bus.road.sending import Sending, own_id
from enhanced_agent_bus.verdict import Party, Refusal

FAN_OUT_AT_ONCE: Final = 256  # subscribers of one publish that are decided at the same time


class Asking:
    """What an agent does with more than one message."""

    def __init__(self, desk: Desk, sending: Sending) -> None:
        self._desk = desk
        self._sending = sending

    async def ask(self, sender: Party, to: str | None, capability: str | None, draft: Draft, timeout: float) -> Message:
        """A request: the message, then its reply. Raises: Refused, NotDelivered, RequestTimeout."""
        loop = asyncio.get_running_loop()
        replier: asyncio.Future[Message] = loop.create_future()
        deadline = loop.time() + timeout
        if draft.expires_in is None:
            draft = draft._replace(expires_in=timeout)
        try:
            async with asyncio.timeout_at(deadline):
                receipt, parcel = await self._sending.dispatch(sender, to, capability, draft, replier=replier)
                receipt.raise_for_refusal()
                if parcel is not None and parcel.replier is not replier:  # sent before: its end has the reply
                    return _reply_of(receipt.message_id, await parcel.ended(None))
                if parcel is None:
                    return _reply_of(receipt.message_id, await receipt.outcome())
                return await replier
        except TimeoutError:
            message_id = getattr(draft, "id", None) or "this request"
            raise RequestTimeout(
                f"no reply to {message_id} within {timeout:g} s",
                remedy="the message goes on and its reply would be refused; see `eab queue list`",
            ) from None
        finally:
            if not replier.done():
                replier.cancel()
            elif not replier.cancelled():
                replier.exception()  # it may have come in the same instant as the deadline: it is seen

    async def fan_out(self, sender: Party, topic: str | None, draft: Draft) -> list[Receipt]:
        """A message, a decision and a receipt for each subscriber, or for everyone of the tenant (no topic).

        Without one, a refused decision and no receipt.
        """
        self._desk.require_open()
        router = self._desk.router
        found = router.members(sender) if topic is None else router.subscribers(sender, topic)
        if isinstance(found, Refusal):
            shaped = self._desk.shape.check(draft)
            message_id = self._desk.randomness.uuid7(self._desk.clock.now_us())
            if isinstance(shaped, Refusal):
                await self._sending.turn_away(message_id, sender, NOBODY, topic, draft, shaped)
            else:
                await self._sending.turn_away(message_id, sender, NOBODY, topic, draft, found, shaped)
            return []
        if isinstance(draft.id, str):
            own = own_id(sender.id, draft.id)
            drafts = [draft._replace(id=f"{own}/{party.id}" if own else draft.id) for party in found]
        else:
            drafts = [draft] * len(found)
        receipts: list[Receipt] = []
        pairs = list(zip(found, drafts, strict=True))
        for start in range(0, len(pairs), FAN_OUT_AT_ONCE):
            part = pairs[start : start + FAN_OUT_AT_ONCE]
            work = (self._sending.dispatch(sender, to.id, None, each, topic=topic) for to, each in part)
            for sent in await asyncio.gather(*work, return_exceptions=True):  # none is left running behind an error
                if isinstance(sent, BaseException):
                    raise sent
                receipts.append(sent[0])
        return receipts


def _reply_of(message_id: str, outcome: Outcome) -> Message:
    if outcome.reply is None:
        code = outcome.code or ("no_reply" if outcome.state == "delivered" else outcome.state)
        raise NotDelivered(message_id, outcome, code=code, remedy=NO_REPLY.get(code, ""))
    return outcome.reply
