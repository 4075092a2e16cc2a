"""A record as one line of a list: a sign and a word for what it says, who and to whom, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

GOOD: Final = "good"
BAD: Final = "bad"
WAITS: Final = "waits"
PLAIN: Final = "plain"

#: By verdict or state: tone, sign, word. The sign and the word say it without the colour.
SIGNS: Final[Mapping[str, tuple[str, str, str]]] = {
    "allow": (GOOD, "✓", "allowed"),
    "refuse": (BAD, "✕", "refused"),
    "hold": (WAITS, "‖", "held"),
    "delivered": (GOOD, "→", "delivered"),
    "failed": (BAD, "!", "failed"),
    "refused": (BAD, "✕", "refused later"),
    "expired": (BAD, "◷", "expired"),
    "dead_lettered": (BAD, "✕", "dead-lettered"),
    "discarded": (PLAIN, "∅", "discarded"),
    "parked": (WAITS, "‖", "parked"),
    "approve": (GOOD, "✓", "approved"),
    "approved": (GOOD, "✓", "approved"),
    "reject": (BAD, "✕", "rejected"),
    "rejected": (BAD, "✕", "rejected"),
}
_OF_OTHERS: Final = ("agent", "digest", "scope", "owner", "key", "command", "what", "reason", "size")


class Row(NamedTuple):
    """What a list shows of a record."""

    seq: int
    at: str
    kind: str
    tone: str
    sign: str
    word: str
    sender: str | None
    recipient: str | None
    type: str | None
    why: str
    message_id: str | None


def sign_of(name: str | None) -> tuple[str, str, str]:
    """Tone, sign and word of a verdict or state."""
    return SIGNS.get(name or "", (PLAIN, "·", (name or "").replace("_", " ")))


def row_of(record: Mapping[str, Any]) -> Row:
    """Any record of the log."""
    kind, message_id = record["kind"], record.get("message_id")
    sender = recipient = type_ = None
    if kind == "decision":
        signs = sign_of(record["verdict"])
        sender, type_ = record["sender"], record["type"]
        recipient = record["recipient"] or (f"#{record['topic']}" if record["topic"] else None)
        why = _why(record)
    elif kind == "outcome":
        signs = sign_of(record["state"])
        error = (record["error"] or {}).get("type")
        run = f"attempt {record['attempt']}" if record["attempt"] else None
        why = " · ".join(str(part) for part in (record["code"], error, run) if part)
    else:
        event = record.get("event") or record.get("act")
        signs = (PLAIN, "·", kind) if event is None else (sign_of(event)[0], sign_of(event)[1], f"{kind} {event}")
        sender = record.get("approver")
        said = [str(record[name]) for name in _OF_OTHERS if record.get(name) is not None]
        why = " · ".join([*said, f"by {record['by']}"] if isinstance(record.get("by"), str) else said)
    return Row(record["seq"], record["at"], kind, *signs, sender, recipient, type_, why, message_id)


def _why(record: Mapping[str, Any]) -> str:
    """Rules that spoke, or the code where it was none; and what asked, where that was no send."""
    rules = dict.fromkeys(f"{reason['rule']}: {reason['code']}" for reason in record["reasons"] if reason["rule"])
    parts = list(rules) or [record["code"] or ""]
    parts.append("" if record["why"] == "send" else f"again: {record['why']}")
    return " · ".join(part for part in parts if part)
