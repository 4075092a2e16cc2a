"""From an engine's answer to a ruling: only JSON `true` in the declared shape allows (contract §4)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from enhanced_agent_bus.errors import in_words
from enhanced_agent_bus.verdict import Answer, Hold, Reason, Refusal, Remember, Ruling

REASONS_MAX: Final = 32
TEXT_CHARS_MAX: Final = 1000
NAME_CHARS_MAX: Final = 64
HOLD_SECONDS_MAX: Final = 3.2e9  # a hundred years
WHERE_CHARS_MAX: Final = 200
PLACES_MAX: Final = 5
INTEGER_MAX: Final = 2**53 - 1  # as for numbers in payloads (RFC 7493)
Text = Annotated[str, Field(max_length=10_000)]
Float = Annotated[float, Field(ge=-INTEGER_MAX, le=INTEGER_MAX, allow_inf_nan=False)]
Integer = Annotated[int, Field(ge=-INTEGER_MAX, le=INTEGER_MAX)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Reason(_Shape):
    rule: Text
    code: Text = ""
    message: Text = ""
    remedy: Text = ""


class _Hold(_Shape):
    rule: Text
    approvers: Annotated[int, Field(ge=1, le=100)] = 1
    roles: tuple[Text, ...] = Field(min_length=1, strict=False)
    expires_in: Annotated[float, Field(gt=0, le=HOLD_SECONDS_MAX, allow_inf_nan=False)] = 3600.0


class _Remember(_Shape):
    scope: Literal["sender", "recipient", "conversation", "tenant"]
    key: Text
    value: str | Integer | Float | None = None
    add: Integer | None = None

    @model_validator(mode="after")
    def _one_of(self) -> _Remember:
        if (self.value is None) == (self.add is None) or isinstance(self.value, bool):
            raise ValueError("exactly one of value (a string or a number) and add (an integer)")
        return self


class _Obligation(_Shape):
    model_config = ConfigDict(extra="allow")

    type: Text


class _HandlerTimeout(_Shape):
    type: str
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _DeliverOnlyTo(_Shape):
    type: str
    agent: Text


class _Redact(_Shape):
    type: str
    path: Annotated[str, Field(max_length=10_000, pattern=r"^(/([^~]|~[01])*)?$")]  # RFC 6901, of the payload


#: What this bus can keep, and the form of each.
OBLIGATIONS: Final[dict[str, type[_Shape]]] = {
    "handler_timeout": _HandlerTimeout,
    "deliver_only_to": _DeliverOnlyTo,
    "redact": _Redact,
}


class _Document(_Shape):
    allow: bool
    reasons: tuple[_Reason, ...] = Field(default=(), strict=False, max_length=10_000)
    hold: tuple[_Hold, ...] = Field(default=(), strict=False, max_length=100)
    remember: tuple[_Remember, ...] = Field(default=(), strict=False, max_length=1000)
    obligations: tuple[_Obligation, ...] = Field(default=(), strict=False, max_length=100)


def ruling(answer: Answer) -> Ruling | Refusal:
    """The ruling in an answer, or the refusal that stands for having none."""
    document = _read(answer.body) if answer.body else None
    if isinstance(document, Refusal):
        return document  # no decision at all, whatever else is wrong with it
    if answer.code is not None:
        remedy = _CONFLICT_REMEDY if _CONFLICT.match(answer.detail) else _REMEDY_OF_ENGINE.get(answer.code, "")
        return Refusal(answer.code, _told(answer), remedy)
    if document is None:
        return Refusal("policy_undefined", _WHY["policy_undefined"], _REMEDY_OF_ENGINE["policy_undefined"])
    obligations = tuple(item.model_dump() for item in document.obligations)
    refusal = _obligations_refused(obligations) if document.allow else None
    if refusal is not None:
        return refusal
    return Ruling(
        allow=document.allow,
        reasons=tuple(
            Reason(
                item.rule[:NAME_CHARS_MAX],
                (item.code or item.rule)[:NAME_CHARS_MAX],
                item.message[:TEXT_CHARS_MAX],
                item.remedy[:TEXT_CHARS_MAX],
            )
            for item in document.reasons[:REASONS_MAX]
        ),
        hold=tuple(Hold(item.rule, item.approvers, item.roles, item.expires_in) for item in document.hold),
        remember=tuple(Remember(item.scope, item.key, item.value, item.add) for item in document.remember),
        obligations=obligations,
    )


def _read(body: bytes) -> _Document | Refusal:
    try:
        json.loads(body, object_pairs_hook=_once)  # pydantic takes the last of keys that stand twice
        return _Document.model_validate_json(body)
    except ValidationError as error:
        return _malformed("data.bus.decision", error)
    except (ValueError, RecursionError, _Twice) as error:  # ValueError: no JSON, no UTF-8, or too many digits
        what = str(error) if isinstance(error, _Twice) else "is not JSON"
        return Refusal("policy_malformed", f"data.bus.decision {what}", MALFORMED_REMEDY)


class _Twice(Exception):
    """A key stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise _Twice("has a key twice in one object")


def _obligations_refused(obligations: Sequence[Mapping[str, Any]]) -> Refusal | None:
    """A condition that the bus does not know, or cannot read, is no allow."""
    for item in obligations:
        form = OBLIGATIONS.get(item["type"])
        if form is None:
            return Refusal(
                "obligation_unknown",
                f"the policy asks for {item['type'][:60]!r}, which this bus cannot do",
                f"use one of {', '.join(sorted(OBLIGATIONS))}",
            )
        try:
            form.model_validate(item)
        except ValidationError as error:
            return _malformed(f"data.bus.decision obligations.{item['type']}", error)
    return None


def deliver_elsewhere(answer: Ruling, recipient: str) -> Refusal | None:
    """Why an allow does not hold for this recipient, where it obliges the bus to deliver to another one."""
    for item in answer.obligations:
        if item["type"] == "deliver_only_to" and item.get("agent") != recipient:
            return Refusal(
                "policy_denied",
                f"the constitution lets this go to {item.get('agent')} only",
                "send it to that agent",
            )
    return None


def _malformed(what: str, error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_input=False)[0]
    place, words = first["loc"], in_words(first)
    if "value" in place[:-1]:  # behind it pydantic says which of its types was tried
        place, words = place[: place.index("value") + 1], "it has to be a string, or a number up to ±(2^53-1)"
    where = ".".join(str(part) for part in place)[:WHERE_CHARS_MAX]
    return Refusal("policy_malformed", f"{' '.join(filter(None, (what, where)))}: {words}", MALFORMED_REMEDY)


def _told(answer: Answer) -> str:
    """What a sender may know. OPA's own words on a failed built-in quote the value, which can be another's secret."""
    why = _WHY.get(answer.code or "", "")
    if answer.code == "policy_error":
        places = [found.group() for found in _PLACE.finditer(answer.detail)][:PLACES_MAX]
        if _CONFLICT.match(answer.detail):  # OPA quotes no value there
            return f"a rule got two values at once, at {' and '.join(dict.fromkeys(places))}"
        return f"{why}, at {places[0]}" if places else why
    return answer.detail or why


_CONFLICT: Final = re.compile(r"[A-Za-z0-9._/-]+\.rego:\d+: eval_conflict_error: ")
_PLACE: Final = re.compile(r"[A-Za-z0-9._/-]+\.rego:\d+")
_WHY: Final = {
    "policy_undefined": "the policy gave no answer",
    "policy_timeout": "the policy did not answer in time",
    "policy_unavailable": "no policy worker could be asked",
    "policy_error": "a built-in failed while the policy was evaluated",
}
_CONFLICT_REMEDY: Final = (
    "give that rule one value, or conditions that exclude each other; `eab policy check` warns of it"
)
MALFORMED_REMEDY: Final = "answer with allow and, where wanted, reasons, hold, remember and obligations; nothing else"
_REMEDY_OF_ENGINE: Final = {
    "policy_undefined": "make data.bus.decision always defined: `default allow := false`",
    "policy_malformed": "see `eab doctor`: something else than an OPA server may answer at policy.engine",
    "policy_revision_mismatch": "have the OPA server serve the active constitution, or activate the one that it serves",
    "policy_error": "run `eab policy explain` on this message and guard the built-in that failed",
    "policy_timeout": "simplify the rule, or raise policy.timeout_seconds",
    "policy_unavailable": "see `eab doctor`; send again with the same id",
}
