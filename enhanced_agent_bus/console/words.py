"""Codes and weakenings in a few words each, for who has never seen the product. `docs/refusals` has the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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
WEAKENINGS: Final[Mapping[str, str]] = {
    "constitution_folder": "the constitution was taken from a folder, which nobody has signed",
    "unsigned_constitution": "the constitution is a bundle that nobody has signed",
    "no_witness": "no witness elsewhere signs this log's checkpoints: keep one, to prove that nothing was cut off",
    "witness_behind": "no witness elsewhere has the newest checkpoints yet",
    "witness_contradicts": "a witness has a checkpoint that is not of this log",
    "short_retention": "what stands beside records is kept for a short time only",
    "memory_ledger": "the log is kept in memory and is gone at the end",
    "fixed_clock": "policies saw a clock that was set by hand",
    "policy_server_trusted": "decisions come from a policy server whose word is taken",
    "policy_server_version": "the policy server is another version of OPA",
    "policy_server_data": "the policy server's data is not that of the active constitution",
    "policy_server_modules": "the policy server's rules are not those of the active constitution",
    "policy_server_schemas": "the policy server does not check the constitution's schemas",
    "nats_sync": "messages that NATS took may be lost with its disk",
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
