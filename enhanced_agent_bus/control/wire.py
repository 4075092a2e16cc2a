"""What travels on the control socket, as JSON: what the bus answers, and errors that are raised again at the other end.

One JSON object a line: `{"op": ..., "args": {...}}` is answered by `{"ok": ...}` or `{"error": {code, message, remedy,
kind}}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from enhanced_agent_bus import errors
from enhanced_agent_bus.errors import BusError, ConstitutionRejected
from enhanced_agent_bus.message import Message
from enhanced_agent_bus.outcome import Outcome, Receipt

LINE_BYTES_MAX: Final = 16 * 1024 * 1024  # a longer request is answered by an error and the connection closed

Json: TypeAlias = Any  # what json.loads makes; whoever reads it knows its shape


def plain(value: Json) -> Json:
    """The JSON form of what the bus answers: dataclasses as objects, times as RFC 3339, messages without content."""
    if isinstance(value, Message):
        return message_document(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        document = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name[0] != "_"}
        return document | {"ok": value.ok} if isinstance(value, Receipt) else document
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def message_document(message: Message, *, content: bool = False) -> dict[str, Any]:
    """A message as JSON; payload and headers only when asked for."""
    names = ("id", "type", "sender", "tenant", "recipient", "topic", "conversation", "cause", "hops", "digest")
    document = {name: getattr(message, name) for name in names}
    document["priority"] = int(message.priority)
    if content:
        document["payload"], document["headers"] = message.payload, message.headers
    return document


def outcome_document(outcome: Outcome, *, content: bool = False) -> dict[str, Any]:
    """An outcome as JSON; its reply's payload only when asked for."""
    document: dict[str, Any] = plain(outcome)
    if outcome.reply is not None:
        document["reply"] = message_document(outcome.reply, content=content)
    return document


def error_document(error: Exception) -> dict[str, Any]:
    """An error as it travels: what `raise_error` makes an exception of again."""
    if isinstance(error, BusError):
        document: dict[str, Any] = {
            "code": error.code,
            "message": error.message,
            "remedy": error.remedy,
            "kind": type(error).__name__,
        }
        if isinstance(error, ConstitutionRejected):
            document |= {"reason": error.reason, "details": error.details}
        return document
    if isinstance(error, KeyError):
        return {"code": "unknown_id", "message": str(error.args[0] if error.args else error), "kind": "KeyError"}
    return {"code": "bad_request", "message": str(error) or type(error).__name__, "kind": "ValueError"}


def raise_error(document: Mapping[str, Any]) -> None:
    """Raises what the other process raised: a BusError of the same class, KeyError or ValueError."""
    message, code = str(document.get("message", "")), str(document.get("code", "error"))
    kind, remedy = str(document.get("kind", "")), str(document.get("remedy", ""))
    if kind == "KeyError":
        raise KeyError(message)
    if kind == "ValueError":
        raise ValueError(message)
    if kind == "ConstitutionRejected":
        raise ConstitutionRejected(
            message, reason=str(document.get("reason", "")), details=document.get("details") or (), remedy=remedy
        )
    plain_kinds = {
        kind.__name__: kind
        for kind in (
            errors.AgentExists,
            errors.AuditUnavailable,
            errors.BusClosed,
            errors.ConfigInvalid,
            errors.EngineMissing,
            errors.StoreCorrupt,
            errors.StoreLocked,
        )
    }
    raise plain_kinds.get(kind, BusError)(message, code=code, remedy=remedy)
