"""Who may decide about a held message, about which of its rules, and what they are shown. Pure: no ledger, no clock.

An approver is a registered agent of the sender's or the recipient's tenant with one of the roles that the rule names,
never the sender, and counts once for each rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.outcome import instant_of
from enhanced_agent_bus.verdict import Approval, Hold, Party, Reason, Refusal

CODE: Final = "approval_refused"


def entitled(
    envelope: Envelope, holds: Sequence[Hold], approvals: Sequence[Approval], approver: Party
) -> tuple[Hold, ...] | Refusal:
    """The holds that this agent may still approve or reject, or why there is none."""
    if approver.id == envelope.sender:
        return Refusal(CODE, "the sender does not decide about its own message", "ask another agent with the role")
    if approver.tenant not in (envelope.tenant, envelope.recipient_tenant):
        return Refusal(
            CODE,
            f"{approver.id} belongs to neither the sender's nor the recipient's tenant",
            "ask an agent of one of these tenants",
        )
    wanted = sorted({role for hold in holds for role in hold.roles})
    mine = tuple(hold for hold in holds if not set(hold.roles).isdisjoint(approver.roles))
    if not mine:
        return Refusal(CODE, f"{approver.id} has none of the roles {', '.join(wanted)}", "ask an agent that has one")
    given = {approval.rule for approval in approvals if approval.approver == approver.id}
    left = tuple(hold for hold in mine if hold.rule not in given)
    if not left:
        return Refusal(CODE, f"{approver.id} has approved this already, and counts once", "ask another agent")
    return left


def view(
    envelope: Envelope,
    *,
    decision_id: str,
    reasons: Sequence[Reason],
    holds: Sequence[Hold],
    until_us: int,
    approvals: Sequence[Approval],
) -> dict[str, Any]:
    """What an approver is shown, but the payload and headers, which stand under their commitments."""
    return {
        "message_id": envelope.id,
        "digest": envelope.digest,
        "type": envelope.type,
        "priority": envelope.priority,
        "sender": envelope.sender,
        "tenant": envelope.tenant,
        "recipient": envelope.recipient,
        "recipient_tenant": envelope.recipient_tenant,
        "topic": envelope.topic,
        "conversation": envelope.conversation,
        "cause": envelope.cause,
        "payload": envelope.commitment,
        "headers": envelope.headers_commitment,
        "decision_id": decision_id,
        "reasons": [
            {"rule": one.rule, "code": one.code, "message": one.message, "remedy": one.remedy} for one in reasons
        ],
        "hold": [hold.document() for hold in holds],
        "hold_expires": instant_of(until_us).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "approvals": [approval.document() for approval in approvals],
    }
