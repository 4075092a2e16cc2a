"""The governed workload: one rule of real size over a directory of agents, and messages of about 1 KB.

Seeded, so that every machine measures the same bytes. Agents, tenants, roles and messages are made up.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

AGENTS: Final = 1000
TENANTS: Final = 20
CONVERSATIONS: Final = 500
INSIDE_SHARE: Final = 0.9  # of the messages stay in their tenant
PERSONAL_SHARE: Final = 0.1  # carry personal data
SUSPENDED_EACH: Final = 50  # every so many agents one is suspended

AUTHZ: Final = """package bus.rules.authz

import rego.v1

default admit := false

code := "authz"

admit if count(problems) == 0

profile := data.bus.rules.authz.agents[input.sender.id]

other := data.bus.rules.authz.agents[input.recipient.id]

known if {
	profile.status == "active"
	other.status
}

problems contains "unknown" if not known

problems contains "tenant" if {
	input.sender.tenant != input.recipient.tenant
	not granted
}

problems contains "type" if not type_permitted

problems contains "personal_data" if {
	count(personal_fields) > 0
	not "pii:send" in permissions
}

problems contains "priority" if input.message.priority > max_priority

problems contains sprintf("tool:%s", [tool]) if {
	some tool in input.message.payload.tools
	not tool_allowed(tool)
}

granted if {
	some grant in data.bus.rules.authz.grants
	grant.from == input.sender.tenant
	grant.to == input.recipient.tenant
	input.message.type in grant.types
}

permissions contains permission if {
	some role in profile.roles
	some permission in data.bus.rules.authz.roles[role].permissions
}

type_permitted if sprintf("send:%s", [input.message.type]) in permissions

type_permitted if "send:*" in permissions

max_priority := max([data.bus.rules.authz.roles[role].max_priority | some role in profile.roles])

tool_allowed(tool) if {
	some role in profile.roles
	some pattern in data.bus.rules.authz.roles[role].tools
	glob.match(pattern, ["."], tool)
}

personal_fields contains name if {
	some name, value in input.message.payload.fields
	is_string(value)
	some pattern in data.bus.rules.authz.personal
	regex.match(pattern, value)
}
"""

MANIFEST: Final[dict[str, Any]] = {
    "revision": "1",
    "roots": ["bus"],
    "rego_version": 1,
    "metadata": {"eab": {"name": "bench", "not_after": None}},
}
MAIN: Final = """package bus

import rego.v1

default allow := false

allow if {
	count(data.bus.manifest.rules) > 0
	every name in data.bus.manifest.rules {
		data.bus.rules[name].admit == true
	}
}

reasons contains {"rule": name, "code": object.get(data.bus.rules[name], "code", name)} if {
	not allow
	some name in data.bus.manifest.rules
	not data.bus.rules[name].admit == true
}

decision := {"allow": allow, "reasons": reasons}
"""

#: One of many rules, for the row that counts them: it reads what every message has.
SMALL_RULE: Final = """package bus.rules.{name}

import rego.v1

default admit := false

admit if input.message.priority <= data.bus.rules.{name}.ceiling
"""

ROLES: Final[dict[str, dict[str, Any]]] = {
    "worker": {
        "permissions": ["send:command", "send:event", "send:query", "send:response"],
        "max_priority": 2,
        "tools": ["search.*", "calc.*"],
    },
    "planner": {"permissions": ["send:*", "pii:send"], "max_priority": 3, "tools": ["**"]},
    "auditor": {"permissions": ["send:query", "send:response", "pii:send"], "max_priority": 1, "tools": ["audit.*"]},
    "gateway": {"permissions": ["send:event", "send:response"], "max_priority": 3, "tools": ["http.get"]},
}
GRANTS: Final = (
    {"from": "tenant-01", "to": "tenant-02", "types": ["event"]},
    {"from": "tenant-03", "to": "tenant-04", "types": ["query", "event"]},
)
PERSONAL: Final = (
    r"^[A-Za-z0-9_.+-]+@[A-Za-z0-9-]+\.[A-Za-z0-9.]+$",
    r"^[0-9]{3}-[0-9]{2}-[0-9]{4}$",
    r"^[+]?[0-9]{10,14}$",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """An agent of the directory."""

    id: str
    tenant: str
    roles: tuple[str, ...]
    active: bool


@dataclass(frozen=True, slots=True)
class Load:
    """One message to send."""

    sender: str
    recipient: str
    type: str
    priority: int
    conversation: str
    payload: dict[str, Any]


def tenants(count: int) -> int:
    """How many tenants so many agents have: every agent has colleagues."""
    return max(1, min(TENANTS, count // 5))


def directory(count: int = AGENTS) -> dict[str, Profile]:
    """The agents, by id."""
    rng = random.Random(7)
    found: dict[str, Profile] = {}
    for number in range(count):
        roles = rng.sample(sorted(ROLES), k=1 + number % 3)
        agent_id = f"agent-{number:05d}"
        tenant = f"tenant-{number % tenants(count):02d}"
        found[agent_id] = Profile(agent_id, tenant, tuple(roles), bool(number % SUSPENDED_EACH))
    return found


def load(number: int, count: int = AGENTS) -> Load:
    """The message of this number between agents of a directory of `count`; nine of ten stay in their tenant."""
    rng = random.Random(number)
    sender = rng.randrange(count)
    inside = rng.random() < INSIDE_SHARE
    recipient = (sender + tenants(count) * rng.randrange(1, 4)) % count if inside else rng.randrange(count)
    fields = {
        "customer": "ACME GmbH",
        "email": "buyer@example.com" if rng.random() < PERSONAL_SHARE else "n/a",
        "quantity": 12,
        "sku": "SKU-12345",
        "comment": "please deliver before noon at the rear entrance of building C",
        "price": 129.5,
    }
    return Load(
        f"agent-{sender:05d}",
        f"agent-{recipient:05d}",
        rng.choice(["command", "query", "event"]),
        rng.randrange(3),
        f"c-{number % CONVERSATIONS}",
        {
            "action": "create_order",
            "tools": ["search.web", "calc.add"],
            "fields": fields,
            "context": {"goal": "restock", "plan_step": number, "notes": "x" * 400},
        },
    )


def admitted(profiles: dict[str, Profile], *, asks: bool = False) -> Iterator[Load]:
    """The messages that the rule admits, without end; `asks` for queries whose replies are admitted too.

    Refused ones end early and would flatter the figures. The rule is repeated here in Python only to choose them:
    what decides is OPA, and a run in which it says otherwise fails.
    """
    for number in itertools.count():
        message = load(number, len(profiles))
        if asks:
            message = replace(message, type="query")
        if _admits(profiles, message) and not (asks and not _answers(profiles, message)):
            yield message


def _admits(profiles: dict[str, Profile], message: Load) -> bool:
    sender, recipient = profiles[message.sender], profiles[message.recipient]
    roles = [ROLES[role] for role in sender.roles]
    permissions = {permission for role in roles for permission in role["permissions"]}
    tools = {tool for role in roles for tool in role["tools"]}
    return (
        sender.active
        and sender.id != recipient.id
        and sender.tenant == recipient.tenant
        and bool(permissions & {"send:*", f"send:{message.type}"})
        and ("@" not in message.payload["fields"]["email"] or "pii:send" in permissions)
        and message.priority <= max(role["max_priority"] for role in roles)
        and ("**" in tools or {"search.*", "calc.*"} <= tools)
    )


def _answers(profiles: dict[str, Profile], message: Load) -> bool:
    replier = profiles[message.recipient]
    return replier.active and message.priority <= max(ROLES[role]["max_priority"] for role in replier.roles)


def write_constitution(folder: Path, *, agents: int = AGENTS, rules: int = 1, revision: int = 1) -> Path:
    """Writes the constitution and returns its folder; beyond the one big rule, `rules` counts small ones too."""
    names = ["authz", *(f"small_{number:03d}" for number in range(1, rules))]
    profiles = directory(agents).values()
    listed = {one.id: {"status": "active" if one.active else "suspended", "roles": one.roles} for one in profiles}
    data: dict[str, Any] = {"agents": listed, "roles": ROLES, "grants": GRANTS, "personal": PERSONAL}
    write(folder / ".manifest", json.dumps({**MANIFEST, "revision": str(revision)}))
    write(folder / "bus" / "main.rego", MAIN)
    write(folder / "bus" / "manifest" / "data.json", json.dumps({"rules": names}))
    write(folder / "bus" / "rules" / "authz" / "authz.rego", AUTHZ)
    write(folder / "bus" / "rules" / "authz" / "data.json", json.dumps(data))
    for name in names[1:]:
        rule = folder / "bus" / "rules" / name
        write(rule / f"{name}.rego", SMALL_RULE.format(name=name))
        write(rule / "data.json", json.dumps({"ceiling": 3}))
    return folder


def write(path: Path, text: str) -> None:
    """Writes one file of a constitution, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
