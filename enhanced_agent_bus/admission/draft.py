"""The first gate: is it well formed? From what a caller gave to what can be sealed, or a refusal."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from enhanced_agent_bus.admission.canonical import freeze, freeze_headers
from enhanced_agent_bus.message import MESSAGE_ID, TYPES, Priority, shown
from enhanced_agent_bus.verdict import Refusal

_PRIORITIES: Final = frozenset(Priority)
EXPIRES_SECONDS_MAX: Final = 3.2e9  # a hundred years
_NO_HEADERS: Final[tuple[dict[str, str], bytes]] = ({}, b"{}")


class Shaped(NamedTuple):
    """Fields that have passed; the payload as its canonical bytes."""

    body: bytes
    headers: dict[str, str]
    headers_bytes: bytes
    type: str
    priority: int
    conversation: str | None
    cause: str | None
    expires_seconds: float


class Shape:
    """Checks form alone; bounds come from the settings."""

    def __init__(self, *, payload_bytes: int, depth: int, expires_seconds: float) -> None:
        self._payload_bytes = payload_bytes
        self._depth = depth
        self._expires_seconds = expires_seconds

    def body(self, payload: object) -> bytes | Refusal:
        """The canonical bytes of a payload: a dict, a pydantic model, or None for {}."""
        if payload is None:
            return b"{}"
        if isinstance(payload, BaseModel):
            try:
                payload = payload.model_dump(mode="json")
            except Exception as error:  # noqa: BLE001 - a model's own serializers may raise anything: that is no payload
                return Refusal(
                    "malformed",
                    f"the payload's model cannot be written as JSON: {type(error).__name__}",
                    "send JSON values only: dict, list, str, int, float, bool, None",
                )
        return freeze(payload, bytes_max=self._payload_bytes, depth_max=self._depth)

    def check(self, draft: Any) -> Shaped | Refusal:
        """`draft` has payload, type, priority, conversation, cause, headers and expires_in, of any type."""
        kind, priority, expires = draft.type, draft.priority, draft.expires_in
        if not isinstance(kind, str) or kind not in TYPES:
            return Refusal("malformed", f"the type {shown(kind)} is none", f"use one of {', '.join(sorted(TYPES))}")
        if not isinstance(priority, int) or isinstance(priority, bool) or priority not in _PRIORITIES:
            return Refusal("malformed", f"the priority {shown(priority)} is none", "use 0, 1, 2 or 3")
        for name in ("conversation", "cause"):
            value = getattr(draft, name)
            if value is not None and (not isinstance(value, str) or not MESSAGE_ID.fullmatch(value)):
                return Refusal(
                    "malformed", f"the {name} {shown(value)} is not an id", "use [A-Za-z0-9._:/-], at most 128"
                )
        if expires is None:
            expires = self._expires_seconds
        elif isinstance(expires, bool) or not isinstance(expires, int | float) or expires != expires:  # noqa: PLR0124 - NaN; math.isnan cannot take a huge int
            return Refusal("malformed", f"expires_in {shown(expires)} is no number of seconds", "give seconds")
        elif expires <= 0:
            return Refusal("expired", "expires_in is not more than 0 seconds", "give it time to be delivered")
        headers = _NO_HEADERS if not draft.headers and draft.headers in (None, {}) else freeze_headers(draft.headers)
        if isinstance(headers, Refusal):
            return headers
        body = self.body(draft.payload)
        if isinstance(body, Refusal):
            return body
        return Shaped(
            body,
            headers[0],
            headers[1],
            kind,
            int(priority),
            draft.conversation,
            draft.cause,
            float(min(expires, EXPIRES_SECONDS_MAX)),
        )
