"""What a decision leaves in the log: the fields of contract §10, and apart from them the texts that can be erased."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from enhanced_agent_bus.admission.seal import SALT_BYTES, Randomness, commitment
from enhanced_agent_bus.verdict import Reason

if TYPE_CHECKING:
    from enhanced_agent_bus.admission.chain import Active, Case
    from enhanced_agent_bus.ports import Clock

FACTS_SHOWN_MAX: Final = 16  # a scope with more stands apart whole, so that every record has room


class Record:
    """Makes the fields of decision records, each decision with an id of its own."""

    def __init__(self, *, clock: Clock, randomness: Randomness, engine: Mapping[str, str]) -> None:
        self._clock = clock
        self._randomness = randomness
        self._engine = dict(engine)
        self._last_us = 0

    def next_id(self, message_id: str) -> str:
        """`<message id>#<hex>`: it leads to its message without an index, and never repeats in a process."""
        self._last_us = max(self._clock.now_us(), self._last_us + 1)
        return f"{message_id}#{self._last_us:x}"

    def decision(
        self,
        case: Case,
        active: Active,
        sender_n: int,
        verdict: str,
        code: str | None,
        reasons: tuple[Reason, ...],
        *,
        decision_id: str,
        document: Mapping[str, Any] | None,
        cached_from: str | None,
        eval_us: int,
    ) -> tuple[dict[str, Any], tuple[bytes, bytes] | None]:
        """The fields, and (salt, bytes) of what stands apart: reasons in words, and remembered strings."""
        envelope = case.addressed.envelope
        apart: dict[str, Any] = {}
        shown = document
        if document is not None:
            shown = self._shown(document, apart)
        if reasons and any(reason.message or reason.remedy for reason in reasons):
            apart["reasons"] = [[reason.message, reason.remedy] for reason in reasons]
        fields: dict[str, Any] = {
            "message_id": envelope.id,
            "sender_n": sender_n,
            "digest": envelope.digest or None,
            "conversation": envelope.conversation or None,
            "cause": envelope.cause,
            "sender": envelope.sender,
            "tenant": envelope.tenant,
            "recipient": envelope.recipient or None,
            "recipient_tenant": envelope.recipient_tenant or None,
            "topic": envelope.topic,
            "type": envelope.type or None,
            "priority": envelope.priority,
            "hops": envelope.hops,
            "attempt": case.attempt,
            "created_us": envelope.created_us,
            "expires_us": envelope.expires_us,
            "verdict": verdict,
            "code": code,
            "reasons": [{"rule": reason.rule, "code": reason.code} for reason in reasons],
            "decision_id": decision_id,
            "constitution": active.digest,
            "revision": active.revision,
            "engine": self._engine,
            "cached_from": cached_from,
            "why": case.why,
            "previous": case.previous,
            "input": shown,
            "payload": envelope.commitment or None,
            "headers": envelope.headers_commitment,
            "eval_us": eval_us,
        }
        if not apart:
            return fields, None
        texts = orjson.dumps(apart, option=orjson.OPT_SORT_KEYS)
        salt = self._randomness.take(SALT_BYTES)
        fields["texts"] = commitment(salt, texts)
        return fields, (salt, texts)

    def _shown(self, document: Mapping[str, Any], apart: dict[str, Any]) -> dict[str, Any]:
        """The input without headers and remembered strings, which go into `apart`."""
        shown = dict(document)
        message = document["message"]
        if message["headers"]:
            shown["message"] = {key: value for key, value in message.items() if key != "headers"}
        for scope, facts in document["facts"].items():
            many = len(facts) > FACTS_SHOWN_MAX
            strings = {key: value for key, value in facts.items() if many or type(value) is list}
            if strings:
                if "facts" not in apart:
                    apart["facts"] = {}
                    shown["facts"] = dict(document["facts"])
                apart["facts"][scope] = strings
                shown["facts"][scope] = {key: value for key, value in facts.items() if key not in strings}
        return shown
