"""What a decision leaves in the log: the fields of contract §10, and apart from them the texts that can be erased."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from enhanced_agent_bus.admission.seal import SALT_BYTES, Randomness, commitment
from enhanced_agent_bus.verdict import Reason

if TYPE_CHECKING:
    from enhanced_agent_bus.admission.chain import Active
    from enhanced_agent_bus.admission.sight import Case, Sight
    from enhanced_agent_bus.ports import Clock

Fields = dict[str, Any] | Callable[[], dict[str, Any]]
KEY_CHARS_SHOWN_MAX: Final = 64
NODES_SHOWN_MAX: Final = 16
FACTS_SHOWN_MAX: Final = 16  # a scope with more stands apart whole, so that every record has room


class Told(NamedTuple):
    """All that a decision record says, not yet written out."""

    engine: Mapping[str, str]
    case: Case
    active: Active
    sender_n: int
    verdict: str
    code: str | None
    reasons: tuple[Reason, ...]
    decision_id: str
    sight: Sight | None
    cached_from: str | None
    eval_us: int

    def plain(self) -> dict[str, Any]:
        """Of a decision of which nothing stands apart."""
        return self.fields(self.sight.document() if self.sight is not None else None, None)

    def fields(self, shown: Mapping[str, Any] | None, texts: str | None) -> dict[str, Any]:
        """`shown` is the input without what stands apart, `texts` the commitment to that."""
        case = self.case
        envelope = case.addressed.envelope
        fields: dict[str, Any] = {
            "message_id": envelope.id,
            "sender_n": self.sender_n,
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
            "verdict": self.verdict,
            "code": self.code,
            "reasons": [{"rule": reason.rule, "code": reason.code} for reason in self.reasons],
            "decision_id": self.decision_id,
            "constitution": self.active.digest,
            "revision": self.active.revision,
            "engine": self.engine,
            "cached_from": self.cached_from,
            "why": case.why,
            "previous": case.previous,
            "input": shown,
            "payload": envelope.commitment or None,
            "headers": envelope.headers_commitment,
            "eval_us": self.eval_us,
        }
        if case.ticket is not None:
            fields["ticket"] = case.ticket
        if case.gates is not None:
            fields["gates"] = case.gates
        if texts is not None:
            fields["texts"] = texts
        return fields


class Record:
    """Makes the fields of decision records, each decision with an id of its own."""

    def __init__(self, *, clock: Clock, randomness: Randomness, engine: Mapping[str, str]) -> None:
        self._clock = clock
        self._randomness = randomness
        self.engine = engine  # replaced, never edited: a record written later says what decided then
        self._last_us = 0

    def next_id(self, case: Case) -> str:
        """`<message id>#<hex>`: it leads to its message without an index, and never repeats in a process."""
        self._last_us = max(case.now_us or self._clock.now_us(), self._last_us + 1)
        return f"{case.addressed.envelope.id}#{self._last_us:x}"

    def decision(
        self,
        case: Case,
        active: Active,
        sender_n: int,
        verdict: str,
        code: str | None,
        reasons: tuple[Reason, ...],
        decision_id: str,
        sight: Sight | None,
        cached_from: str | None,
        eval_us: int,
    ) -> tuple[Fields, tuple[bytes, bytes] | None]:
        """The fields, and (salt, bytes) of what stands apart: reasons in words, and remembered strings.

        Fields of a plain decision are made when they are asked for.
        """
        told = Told(
            self.engine, case, active, sender_n, verdict, code, reasons, decision_id, sight, cached_from, eval_us
        )
        if not reasons and sight is not None and sight.plain and not case.addressed.envelope.headers:
            return told.plain, None
        apart: dict[str, Any] = {}
        shown = self._shown(sight.document(), apart) if sight is not None else None
        if any(reason.message or reason.remedy for reason in reasons):
            apart["reasons"] = [[reason.message, reason.remedy] for reason in reasons]
        if not apart:
            return told.fields(shown, None), None
        texts = orjson.dumps(apart, option=orjson.OPT_SORT_KEYS)
        salt = self._randomness.take(SALT_BYTES)
        return told.fields(shown, commitment(salt, texts)), (salt, texts)

    def _shown(self, document: Mapping[str, Any], apart: dict[str, Any]) -> dict[str, Any]:
        """The input without headers and remembered strings, which go into `apart`."""
        shown = dict(document)
        message = document["message"]
        if message["headers"]:
            shown["message"] = {key: value for key, value in message.items() if key != "headers"}
        for scope, facts in document["facts"].items():
            many = len(facts) > FACTS_SHOWN_MAX
            strings = {key: value for key, value in facts.items() if many or type(value) is list or _long(key)}
            if strings:
                if "facts" not in apart:
                    apart["facts"] = {}
                    shown["facts"] = dict(document["facts"])
                apart["facts"][scope] = strings
                shown["facts"][scope] = {key: value for key, value in facts.items() if key not in strings}
        return shown


def leaving(fields: Fields, nodes: Sequence[str]) -> Fields:
    """The same of a message that leaves for other nodes on this decision: with their names, as many as are shown."""
    named = {"handed_over": sorted(nodes)[:NODES_SHOWN_MAX]}
    return {**fields, **named} if isinstance(fields, dict) else lambda: {**fields(), **named}


def _long(key: str) -> bool:
    """A policy makes its keys of anything: those that take much room in a record stand apart like strings."""
    return len(key) > KEY_CHARS_SHOWN_MAX or not key.isascii()
