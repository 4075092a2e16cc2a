"""What a sender gets back at once, from a decision or from what is stored of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, Literal

import orjson

from enhanced_agent_bus.admission.chain import Decided
from enhanced_agent_bus.deliberation.notes import read
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import END_STATES, Outcome, Receipt, ReceiptState
from enhanced_agent_bus.ports import Ledger, StoredMessage
from enhanced_agent_bus.verdict import Reason

Ending = Callable[[float | None], Awaitable[Outcome]]
STATES: Final[dict[str, Literal["accepted", "held", "refused"]]] = {
    "allow": "accepted",
    "hold": "held",
    "refuse": "refused",
}


def receipt_of(ledger: Ledger, envelope: Envelope, decided: Decided, seq: int, ending: Ending | None) -> Receipt:
    """The receipt of a decision; `ending` waits for the end of what was not refused."""
    return Receipt(
        envelope.id,
        envelope.recipient,
        envelope.digest or None,
        STATES[decided.verdict],
        decided.code,
        decided.reasons,
        decided.decision_id,
        decided.constitution,
        decided.revision,
        seq,
        _origin(ledger),
        ending or _refused(decided.code),
    )


def first_receipt(ledger: Ledger, stored: StoredMessage, ending: Ending) -> Receipt:
    """The receipt that a message got when it was sent first, read back."""
    envelope = stored.envelope
    try:
        first = orjson.loads(ledger.record(stored.seq))
    except KeyError:  # a ledger in memory keeps the first records of given ids only
        first = {
            "reasons": [],
            "verdict": "allow",
            "decision_id": stored.decision_id,
            "constitution": "",
            "revision": 0,
        }
    return Receipt(
        envelope.id,
        envelope.recipient,
        envelope.digest,
        STATES[first["verdict"]],
        None,
        words_of(ledger, stored.seq, [(item["rule"], item["code"]) for item in first["reasons"]]),
        first["decision_id"],
        first["constitution"],
        first["revision"],
        stored.seq,
        _origin(ledger),
        ending,
    )


def recorded_receipt(ledger: Ledger, stored: StoredMessage, ending: Ending) -> Receipt:
    """The receipt of a message that was sent first long ago: where it began, and how it stands by now.

    The code says how it ended, where it was not delivered; what was held and ended before any allow counts as refused.
    """
    first = first_receipt(ledger, stored, ending)
    state: ReceiptState = "accepted"
    if stored.state in ("held", "refused"):
        state = "held" if stored.state == "held" else "refused"
    elif first.state == "held" and stored.state in END_STATES and not read(stored).counted:
        state = "refused"
    code = stored.code if stored.state in END_STATES and stored.state != "delivered" else None
    return replace(first, state=state, code=code, reasons=first.reasons if state == first.state else ())


def _origin(ledger: Ledger) -> str:
    """The log's name, as its checkpoints have it."""
    return f"{ledger.bus}/{ledger.node}"


def words_of(ledger: Ledger, seq: int, reasons: list[tuple[str, str]]) -> tuple[Reason, ...]:
    """Reasons with the words that stand apart from their record, as far as those are still kept."""
    texts = ledger.texts(seq)
    words = orjson.loads(texts).get("reasons", []) if texts is not None else []
    if len(words) != len(reasons):
        words = [("", "")] * len(reasons)
    return tuple(Reason(rule, code, *said) for (rule, code), said in zip(reasons, words, strict=True))


def _refused(code: str | None) -> Ending:
    async def outcome(_seconds: float | None) -> Outcome:
        return Outcome("refused", 0, code)

    return outcome
