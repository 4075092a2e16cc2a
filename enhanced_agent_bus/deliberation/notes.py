"""What the ledger keeps of a message beside its state: what it is held for, who approved, what is redacted, replays."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from enhanced_agent_bus.ports import StoredMessage
from enhanced_agent_bus.verdict import Approval, Hold


class Notes(NamedTuple):
    """Of one message; a message that was never held and has nothing redacted has none."""

    holds: tuple[Hold, ...] = ()
    hold_expires_us: int = 0
    approvals: tuple[Approval, ...] = ()
    counted: bool = True  # it is in its sender's `sent`
    redact: tuple[str, ...] = ()
    attempts_before: int = 0  # the last replay

    def written(self) -> bytes:
        """As JSON."""
        return orjson.dumps(
            {
                "holds": [hold.document() for hold in self.holds],
                "hold_expires_us": self.hold_expires_us,
                "approvals": [approval.document() for approval in self.approvals],
                "counted": self.counted,
                "redact": self.redact,
                "attempts_before": self.attempts_before,
            }
        )


def read(stored: StoredMessage) -> Notes:
    """The notes on a message that is in the ledger; before the first ones, what it was held for when it came."""
    noted: dict[str, Any] = orjson.loads(stored.notes)
    if not noted:
        holds = tuple(map(Hold.of, orjson.loads(stored.holds or b"[]")))
        return Notes(holds, stored.hold_expires_us, counted=stored.state != "held")
    return Notes(
        tuple(map(Hold.of, noted["holds"])),
        noted["hold_expires_us"],
        tuple(map(Approval.of, noted["approvals"])),
        noted["counted"],
        tuple(noted["redact"]),
        noted.get("attempts_before", 0),
    )
