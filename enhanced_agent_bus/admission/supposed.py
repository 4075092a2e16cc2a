"""What admission would make of an answer to a question that nobody acts on: a recorded one, or one asked on the side.

The same verdict, code and reasons as `chain.py` gives for the same input, and nothing else: no record, no fact, no
ticket. `authoring` replays recorded decisions with it, and a shadow compares with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from enhanced_agent_bus.admission.answer import deliver_elsewhere
from enhanced_agent_bus.admission.facts import AGENT, CONVERSATION, RESERVED, TENANT, Added, Number, Values, put_in
from enhanced_agent_bus.verdict import Approval, Hold, Reason, Refusal, Remember, Ruling

Facts: TypeAlias = tuple[Added, ...]
Verdict = Literal["allow", "hold", "refuse"]

#: Codes of a refusal that says nothing about the message: the policy could not be asked, or not in time.
UNDECIDED: Final = frozenset({"policy_timeout", "policy_unavailable", "policy_revision_mismatch"})
#: Codes of an answer that a constitution should never give.
ERRORS: Final = UNDECIDED | {"policy_undefined", "policy_malformed", "policy_error", "obligation_unknown"}


class Supposed(NamedTuple):
    """A verdict that was not given."""

    verdict: Verdict
    code: str | None = None
    reasons: tuple[Reason, ...] = ()


_ALLOWED: Final = Supposed("allow")


def suppose(document: Mapping[str, Any], answer: Ruling | Refusal) -> Supposed:
    """The verdict on the message of this input (contract §4), were this the policy's answer to it."""
    if isinstance(answer, Refusal):
        return _refused(answer)
    if not answer.allow:
        denied = Refusal("policy_denied", "the constitution does not allow this", reasons=answer.reasons)
        return _refused(denied)
    if answer.obligations and (elsewhere := deliver_elsewhere(answer, document["recipient"]["id"])) is not None:
        return _refused(elsewhere)
    if answer.hold and _waits(document, answer.hold):
        reasons = answer.reasons or tuple(Reason(hold.rule, "hold") for hold in answer.hold)
        return Supposed("hold", None, reasons)
    if answer.remember and (full := _forgets(document, answer.remember)) is not None:
        return _refused(full)
    return _ALLOWED


def left_behind(document: Mapping[str, Any], answer: Ruling | Refusal, would: Supposed) -> Facts:
    """The facts that it would add, in one order: only an allow adds any."""
    if would.verdict != "allow" or not isinstance(answer, Ruling) or not answer.remember:
        return ()
    owners = _owners(document)
    return in_order((*owners[note.scope], note.key, note.value, note.add) for note in answer.remember)


def in_order(added: Iterable[Added]) -> Facts:
    """So that two lists of the same facts are equal."""
    return tuple(sorted(added, key=repr))


def _refused(refusal: Refusal) -> Supposed:
    reasons = refusal.reasons or (Reason("", refusal.code, refusal.message, refusal.remedy),)
    return Supposed("refuse", refusal.code, reasons)


def _waits(document: Mapping[str, Any], holds: Sequence[Hold]) -> bool:
    approvals = [Approval.of(one) for one in document["approvals"]]
    return any(hold.missing(approvals) for hold in holds)


def _forgets(document: Mapping[str, Any], remember: Sequence[Remember]) -> Refusal | None:
    """Why these facts cannot be added to those that the message saw, if they cannot."""
    owners = _owners(document)
    known: dict[tuple[str, str], dict[str, Number | Values]] = {}
    for scope, owner in owners.items():
        facts = known.setdefault(owner, {})
        for key, value in document["facts"].get(scope, {}).items():
            if key not in RESERVED:
                facts[key] = dict.fromkeys(value, 1) if isinstance(value, list) else Number(value)
    for note in remember:
        refusal = put_in(known[owners[note.scope]], note, document["message"]["id"])
        if refusal is not None:
            return refusal
    return None


def _owners(document: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Whose facts a scope means, as the ledger names them."""
    return {
        "sender": (AGENT, document["sender"]["id"]),
        "recipient": (AGENT, document["recipient"]["id"]),
        "conversation": (CONVERSATION, document["message"]["conversation"]),
        "tenant": (TENANT, document["sender"]["tenant"]),
    }
