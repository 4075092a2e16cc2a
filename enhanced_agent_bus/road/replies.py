"""A reply is a message of its own, on the same road."""

from __future__ import annotations

from collections.abc import Callable

from enhanced_agent_bus.admission.draft import Shaped
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.runner import Failed, Returned
from enhanced_agent_bus.message import REPLY_TYPES, Message
from enhanced_agent_bus.road.desk import NOBODY, Desk, Handling, Post, handling_now
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.redaction import what_may_be_seen
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.road.sending import Sending
from enhanced_agent_bus.verdict import Party, Refusal


class Replies:
    """Sends what handlers return, and ends what was asked."""

    def __init__(self, desk: Desk, endings: Endings, rescue: Rescue, sending: Sending) -> None:
        self._desk = desk
        self._endings = endings
        self._rescue = rescue
        self._sending = sending
        self.send_abroad: Callable[[Parcel, Parcel, int], None] | None = None  # takes a reply for another node

    async def answer(self, post: Post, parcel: Parcel, result: Returned, duration_us: int) -> None:
        """A reply is a message of its own, on the same road; what was asked has ended once that is decided."""
        body = self._desk.shape.body(result.reply)
        if isinstance(body, Refusal):
            failed = Failed("handler_failed", "TypeError", f"the reply cannot be sent: {body.message}")
            self._rescue.rescue(post, parcel, failed, duration_us)
            return
        asked = parcel.envelope
        sender = self._desk.registry.party(asked.recipient)
        recipient = self._desk.registry.party(asked.sender)
        shaped = Shaped(
            body,
            {},
            b"{}",
            REPLY_TYPES.get(asked.type, "response"),
            asked.priority,
            asked.conversation,
            None,
            self._desk.settings.limits.expires_seconds,
        )
        token = handling_now.set(Handling(parcel))
        try:
            case, reply = self._sending.addressed(
                self._desk.randomness.uuid7(self._desk.clock.now_us()),
                sender or NOBODY,
                recipient or NOBODY,
                None,
                shaped,
                None,
            )
        finally:
            handling_now.reset(token)
        case.refusal = _cannot_reply(parcel, sender, recipient)  # a reply runs no handler: no hop limit
        reply.placed = False
        reply.replier = parcel.replier
        decided = await self._desk.admission.judge(case)
        allowed = decided.verdict == "allow"
        self._sending.record(
            reply,
            decided,
            None,
            lambda error: self._answered(parcel, reply, duration_us, allowed=allowed and error is None),
        )

    def answered_abroad(self, asked: Parcel, reply: Parcel, duration_us: int, *, allowed: bool) -> None:
        """The reply of an agent on another node was decided here too."""
        self._answered(asked, reply, duration_us, allowed=allowed)

    def _answered(self, parcel: Parcel, reply: Parcel, duration_us: int, *, allowed: bool) -> None:
        """The decision on a reply is on disk, or could not be written."""
        if not allowed:
            self._endings.end(parcel, "delivered", "reply_refused", duration_us=duration_us)
            return
        message = Message(reply.envelope, constitution=reply.recorded.admitted.constitution if reply.recorded else "")
        if reply.recorded is not None and reply.recorded.admitted.obligations:
            message = what_may_be_seen(reply, message, reply.recorded.admitted)
        parcel.reply, parcel.reply_id = message, reply.envelope.id
        reply.attempts = 1
        if parcel.replier is not None and not parcel.replier.done():
            parcel.replier.set_result(message)
        if parcel.arrival is not None and self.send_abroad is not None:
            self.send_abroad(reply, parcel, duration_us)
        else:
            self._endings.end(reply, "delivered", None)
        self._endings.end(parcel, "delivered", None, duration_us=duration_us)


def _cannot_reply(parcel: Parcel, sender: Party | None, recipient: Party | None) -> Refusal | None:
    if sender is None:
        return Refusal(
            "sender_unregistered", f"{parcel.envelope.recipient} is no longer registered", "register it again"
        )
    if recipient is None:
        return Refusal("recipient_unknown", f"{parcel.envelope.sender} is no longer registered", "register it again")
    if parcel.replier is not None and parcel.replier.done():
        return Refusal(
            "reply_unexpected", f"nobody waits for a reply to {parcel.envelope.id} any more", "answer sooner"
        )
    return None
