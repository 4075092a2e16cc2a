"""Codes and states in a few words each, for who has never seen the product. `docs/refusals` has the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from enhanced_agent_bus.weakenings import WEAKENINGS

__all__ = ["CANNOT_EXCLUDE", "CODES", "STATES", "WEAKENINGS"]

CODES: Final[Mapping[str, str]] = {
    "policy_denied": "the policy was asked and said no",
    "policy_undefined": "the policy had no answer for this message, which is a no",
    "policy_malformed": "the policy's answer was no decision, which is a no",
    "policy_error": "a function failed while the policy was evaluated, which is a no",
    "policy_timeout": "the policy did not answer in time, which is a no",
    "policy_unavailable": "nobody could be asked for a decision, which is a no",
    "policy_revision_mismatch": "the policy server answered under another revision than the active one",
    "obligation_unknown": "the policy asked for something that this bus does not know how to keep",
    "facts_full": "there was no room for what the policy wanted to remember",
    "constitution_mismatch": "the sender agreed to another constitution than the active one",
    "malformed": "the message had a form that no message may have",
    "too_large": "the message was larger than the limit",
    "too_deep": "the payload was nested deeper than the limit",
    "expired": "the message had no time left",
    "hop_limit": "too many messages had caused each other",
    "sender_unregistered": "the sender was not registered",
    "recipient_unknown": "nobody was there to receive it",
    "identity_unproven": "the sender could not prove who it is",
    "replayed": "the id had been used before, with other content",
    "reply_unexpected": "it answered nothing that waited for an answer",
    "gate_refused": "a check that the program plugged in said no",
    "gate_broken": "a check that the program plugged in failed, which is a no",
    "gate_silent": "a check that the program plugged in gave no answer, which is a no",
    "approval_rejected": "somebody who may approve it said no",
    "approval_expired": "nobody approved it in time",
    "queue_full": "the recipient's mailbox was full",
    "attempts_exhausted": "the recipient's handler failed as often as it may",
    "handler_failed": "the recipient's handler failed",
    "handler_timeout": "the recipient's handler took too long",
    "handler_absent": "the recipient was no longer registered",
    "breaker_open": "the recipient had failed too often, and was given a rest",
    "no_reply": "the handler gave no reply",
    "reply_refused": "the reply was refused",
}
#: What a verification without an outside checkpoint cannot rule out.
CANNOT_EXCLUDE: Final[Mapping[str, str]] = {
    "truncated": "that records at the very end were cut off",
    "replaced": "that the whole log was replaced by another, signed with the same key",
}
#: Words of a bus for people: what `accounting` counts.
STATES: Final[Mapping[str, str]] = {
    "accepted": "accepted",
    "delivered": "delivered",
    "queued": "queued",
    "in_flight": "in flight",
    "retrying": "retrying",
    "parked": "parked",
    "held": "held",
    "handed_over": "handed over",
    "refused": "refused later",
    "expired": "expired",
    "dead_lettered": "dead-lettered",
    "discarded": "discarded",
}
