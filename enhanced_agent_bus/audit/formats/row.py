"""What is exported: a record, and what stands apart from it where that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

Document: TypeAlias = dict[str, Any]

#: What the bus calls itself to other systems.
PRODUCT: Final = "opa-agent-bus"


class Origin(NamedTuple):
    """What every line says about where it comes from, beside the record's own `bus` and `node`."""

    version: str  # of this package
    bundle: str  # the name that OPA knows constitutions by


class Row(NamedTuple):
    """One record of the log.

    `content` has what stands apart from a decision, as far as it is kept: payload, headers, facts (by scope) and
    reasons (message and remedy of each). None where it was not asked for.
    """

    body: bytes  # as stored
    record: Document
    content: Mapping[str, Any] | None = None
    erased: tuple[str, ...] = ()  # what a mask took out of the content: paths as OPA writes them
    masked: tuple[str, ...] = ()  # what a mask put something else for
    event: Document | None = None  # as a mask left it: the decision log event


def nanoseconds(at: str) -> int:
    """Since 1970, of a record's time; whole microseconds, which a float would not keep."""
    time = datetime.fromisoformat(at)
    return int(time.replace(microsecond=0).timestamp()) * 1_000_000_000 + time.microsecond * 1000


def rules_of(record: Mapping[str, Any]) -> list[str]:
    """The rules that a decision names, each once."""
    return list(dict.fromkeys(reason["rule"] for reason in record.get("reasons") or () if reason.get("rule")))
