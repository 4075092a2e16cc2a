"""Input documents for `explain`: from a file that is one, from a line as `eab run` takes it, or from a record.

A document made here has the shape of contract §4; where a line leaves something open it takes what a new message of
an agent without a past would have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from enhanced_agent_bus.message import Priority

Json: TypeAlias = Any
EXPLAIN_ID: Final = "explain"


class NoDocument(ValueError):
    """No input document can be made of this; the message says why."""


@dataclass(frozen=True, slots=True)
class Known:
    """An agent as a home remembers it."""

    id: str
    tenant: str
    roles: tuple[str, ...]
    capabilities: tuple[str, ...]
    topics: tuple[str, ...]
    constitution: str

    def document(self) -> dict[str, Json]:
        """Its part of the input."""
        return {
            "id": self.id,
            "tenant": self.tenant,
            "roles": sorted(self.roles),
            "capabilities": sorted(self.capabilities),
        }


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a home knows beside the message."""

    agents: Mapping[str, Known]
    facts: Mapping[tuple[str, str], Mapping[str, Json]]  # (agent, conversation or tenant; its name) → facts
    digest: str
    revision: int
    now: datetime


def is_document(value: Mapping[str, Json]) -> bool:
    """True for an input document; a line has `from` instead of `message` and `sender`."""
    return isinstance(value.get("message"), dict) and "from" not in value


def document_from_line(line: Mapping[str, Json], around: Surroundings) -> dict[str, Json]:
    """The question that this line would be, were it sent now. Raises: NoDocument."""
    sender = _agent(str(line.get("from", "")), "from", around)
    recipient = _recipient(line, sender, around)
    payload, priority = line.get("payload", {}), _priority(line.get("priority", "NORMAL"))
    identity = str(line.get("id", EXPLAIN_ID))
    message_id = identity if identity.startswith(f"{sender.id}/") else f"{sender.id}/{identity}"
    conversation = str(line.get("conversation", message_id))
    message: dict[str, Json] = {
        "id": message_id,
        "type": line.get("type", "event" if "topic" in line else "command"),
        "priority": priority,
        "payload": payload,
        "headers": line.get("headers", {}),
        "conversation": conversation,
        "hops": 0,
        "attempt": 1,
        "size": len(json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")),
        "age_seconds": 0,
    }
    if "topic" in line:
        message["topic"] = line["topic"]
    agreed = around.digest if sender.constitution == "latest" else sender.constitution
    return {
        "message": message,
        "sender": sender.document(),
        "recipient": recipient.document(),
        "constitution": {"digest": around.digest, "agreed": agreed, "revision": around.revision},
        "clock": clock_document(around.now),
        "facts": {
            "sender": _facts(around, "agent", sender.id, counted=True),
            "recipient": _facts(around, "agent", recipient.id, counted=False),
            "conversation": _facts(around, "conversation", conversation, counted=True),
            "tenant": _facts(around, "tenant", sender.tenant, counted=False),
        },
        "approvals": [],
    }


def clock_document(now: datetime) -> dict[str, Json]:
    """The input's clock: UTC, ISO 8601 weekday."""
    return {"date": now.date().isoformat(), "weekday": now.isoweekday(), "hour": now.hour, "minute": now.minute}


def _facts(around: Surroundings, scope: str, owner: str, *, counted: bool) -> dict[str, Json]:
    known = dict(around.facts.get((scope, owner), {}))
    counters = {key: known.pop(key, 0) for key in ("sent", "refused")}
    return {**counters, **known} if counted else known


def _agent(agent_id: str, field: str, around: Surroundings) -> Known:
    if agent_id in around.agents:
        return around.agents[agent_id]
    raise NoDocument(f"{field} names {agent_id!r}, and no such agent is registered in this home")


def _recipient(line: Mapping[str, Json], sender: Known, around: Surroundings) -> Known:
    named = [field for field in ("to", "capability", "topic") if field in line]
    if len(named) != 1:
        has = " and ".join(named) or "none of them"
        raise NoDocument(f"exactly one of to, capability and topic says where it goes, and it has {has}")
    field = named[0]
    if field == "to":
        return _agent(str(line["to"]), "to", around)
    wanted = line.get(field)
    for agent in around.agents.values():
        offered = agent.capabilities if field == "capability" else agent.topics
        if agent.tenant == sender.tenant and agent.id != sender.id and wanted in offered:
            return agent
    raise NoDocument(f"nobody in tenant {sender.tenant} has the {field} {wanted!r}")


def _priority(value: Json) -> int:
    names = Priority.__members__
    if isinstance(value, str) and value.upper() in names:
        return int(names[value.upper()])
    if isinstance(value, int) and not isinstance(value, bool) and value in set(Priority):
        return value
    raise NoDocument(f"priority {value!r} is none of LOW, NORMAL, HIGH, CRITICAL and 0 to 3")
