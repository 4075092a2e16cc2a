"""What the policy lets a recipient see: the message without what an obligation takes out of its payload."""

from __future__ import annotations

from enhanced_agent_bus.admission.canonical import canonical
from enhanced_agent_bus.admission.seal import commitment
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.redact import redacted
from enhanced_agent_bus.message import Message
from enhanced_agent_bus.verdict import Admitted


def what_may_be_seen(parcel: Parcel, message: Message, admitted: Admitted) -> Message:
    """The message as its recipient gets it; the parcel keeps the commitment of that for the outcome record."""
    parcel.redact = tuple(item["path"] for item in admitted.obligations if item["type"] == "redact")
    if not parcel.redact:
        return message
    payload = redacted(message.payload, parcel.redact)
    parcel.delivered = commitment(parcel.envelope.salt, canonical(payload))
    return message.carrying(payload)
