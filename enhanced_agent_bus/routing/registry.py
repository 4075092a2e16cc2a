"""Who is registered: live in this process, on another node, or remembered by the home.

An id stays with its tenant for ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from enhanced_agent_bus.errors import AgentExists
from enhanced_agent_bus.message import AGENT_ID, shown
from enhanced_agent_bus.ports import AgentRow
from enhanced_agent_bus.verdict import Party

NAMES_MAX: Final = 32  # roles, capabilities or topics of one agent: a record has room for them all
DIGEST_CHARS: Final = 64
WILDCARDS: Final = frozenset("*>")
WILD_HINT: Final = defaultdict(str, topic=" (a subscription may have `*` for a token, and `>` for the last ones)")


class Registry:
    """Agents by id, topics and capabilities by tenant."""

    def __init__(self, rows: Iterable[AgentRow] = ()) -> None:
        self._rows = {row.id: row for row in rows}
        self._live: dict[str, Party] = {}
        self._absent: dict[str, Party] = {}  # parties of remembered agents, made when first asked for
        self._abroad: dict[str, tuple[AgentRow, Party, tuple[str, ...]]] = {}  # with the nodes that have them
        self._topics: dict[tuple[str, str], dict[str, None]] = {}
        self._wild: dict[str, dict[str, tuple[str, ...]]] = {}  # by tenant: its subscriptions with wildcards, in tokens
        self._capabilities: dict[tuple[str, str], dict[str, None]] = {}
        for row in self._rows.values():
            if row.live:
                self._index(row)

    def claim(self, row: AgentRow) -> Party:
        """Makes the agent live at once, so that of many that register one id a single one wins.

        Raises: AgentExists, when it is live or belongs to another tenant; ValueError, when a name is not one.
        """
        check_row(row)
        known = self._rows.get(row.id)
        if row.id in self._live:
            raise AgentExists(
                f"agent {row.id} is registered and live", remedy="use the Agent that you have, or unregister it"
            )
        elsewhere = self._abroad.get(row.id)
        known = elsewhere[0] if elsewhere is not None else known
        if known is not None and known.tenant != row.tenant:
            raise AgentExists(
                f"agent {row.id} belongs to another tenant",
                remedy="an id stays with its tenant for ever: choose another id",
            )
        if known is not None:
            self._unindex(known)
        self._abroad.pop(row.id, None)
        party = party_of(row)
        self._live[row.id] = party
        self._absent.pop(row.id, None)
        self._rows[row.id] = row
        self._index(row)
        return party

    def release(self, agent_id: str, *, forget: AgentRow | None) -> None:
        """Takes the agent out of the live ones; `forget` is the row that stays (None: as if never claimed)."""
        self._live.pop(agent_id, None)
        row = self._rows.pop(agent_id, None)
        if row is not None:
            self._unindex(row)
        if forget is not None:
            self._rows[agent_id] = forget
            if forget.live:
                self._index(forget)

    def restore(self, row: AgentRow, party: Party) -> None:
        """Makes an agent live again as it was, when its release could not be recorded."""
        self._live[row.id] = party
        self._rows[row.id] = row
        self._index(row)

    def settle(self, row: AgentRow, nodes: Sequence[str]) -> None:
        """An agent that other nodes have, as the shared registrations say. One that is live here stays so."""
        if row.id in self._live:
            return
        self.depart(row.id)
        if (known := self._rows.get(row.id)) is not None and known.live:
            self._unindex(known)
        self._abroad[row.id] = (row, party_of(row), tuple(nodes))
        self._index(row)

    def depart(self, agent_id: str) -> None:
        """No other node has it any more."""
        gone = self._abroad.pop(agent_id, None)
        if gone is None:
            return
        self._unindex(gone[0])
        if (known := self._rows.get(agent_id)) is not None and known.live:
            self._index(known)

    def nodes_of(self, agent_id: str) -> tuple[str, ...]:
        """The other nodes that have this agent; none for one that is live here, or remembered by this home alone."""
        found = self._abroad.get(agent_id)
        return found[2] if found is not None else ()

    def present(self, agent_id: str) -> bool:
        """Whether some process has it."""
        return agent_id in self._live or agent_id in self._abroad

    def abroad(self) -> list[tuple[AgentRow, tuple[str, ...]]]:
        """Everyone whom other nodes have, and which."""
        return [(row, nodes) for _, (row, _, nodes) in sorted(self._abroad.items())]

    def row(self, agent_id: str) -> AgentRow | None:
        return self._rows.get(agent_id)

    def rows(self) -> list[AgentRow]:
        return [self._rows[agent_id] for agent_id in sorted(self._rows)]

    def live(self, agent_id: str) -> Party | None:
        return self._live.get(agent_id)

    def party(self, agent_id: str) -> Party | None:
        """The agent, live, elsewhere or remembered; None when nobody is registered under this id."""
        party = self._live.get(agent_id)
        if party is None and agent_id in self._abroad:
            return self._abroad[agent_id][1]
        party = party or self._absent.get(agent_id)
        if party is None:
            row = self._rows.get(agent_id)
            if row is None or not row.live:
                return None
            party = self._absent[agent_id] = party_of(row)
        return party

    def subscribers(self, tenant: str, topic: str) -> Collection[str]:
        """Whose subscriptions take this topic, each once."""
        found = dict(self._topics.get((tenant, topic), ()))
        if wild := self._wild.get(tenant):
            tokens = topic.split(".")
            for subscription, pattern in wild.items():
                if takes(pattern, tokens):
                    found.update(self._topics[tenant, subscription])
        return tuple(found)

    def members(self, tenant: str) -> Collection[str]:
        """Everyone of a tenant."""
        here = {row.id: None for row in self._rows.values() if row.live and row.tenant == tenant}
        return (*here, *(name for name, (row, *_) in self._abroad.items() if row.tenant == tenant and name not in here))

    def capable(self, tenant: str, capability: str) -> Collection[str]:
        return tuple(self._capabilities.get((tenant, capability), ()))

    def _index(self, row: AgentRow) -> None:
        for topic in row.topics:
            self._topics.setdefault((row.tenant, topic), {})[row.id] = None
            if WILDCARDS & set(topic):
                self._wild.setdefault(row.tenant, {})[topic] = tuple(topic.split("."))
        for capability in row.capabilities:
            self._capabilities.setdefault((row.tenant, capability), {})[row.id] = None

    def _unindex(self, row: AgentRow) -> None:
        for topic in row.topics:
            subscribed = self._topics.get((row.tenant, topic), {})
            subscribed.pop(row.id, None)
            if not subscribed:
                self._wild.get(row.tenant, {}).pop(topic, None)
        for capability in row.capabilities:
            self._capabilities.get((row.tenant, capability), {}).pop(row.id, None)


def takes(pattern: Sequence[str], tokens: Sequence[str]) -> bool:
    """Whether a subscription takes a topic: `*` is any one token, `>` at the end one or more, as in NATS."""
    if pattern[-1] == ">":
        pattern = pattern[:-1]
        if len(tokens) <= len(pattern):
            return False
    elif len(tokens) != len(pattern):
        return False
    return all(wanted in ("*", token) for wanted, token in zip(pattern, tokens, strict=False))


def is_subscription(name: str) -> bool:
    """A topic, in which `*` may stand for one token and `>` for the rest, each as a token of its own."""
    *first, last = name.split(".")
    plain = [*("x" if part == "*" else part for part in first), "x" if last in ("*", ">") else last]
    return bool(AGENT_ID.fullmatch(".".join(plain)))


def party_of(row: AgentRow) -> Party:
    """What the registry vouches for, of one registration."""
    document = {"id": row.id, "tenant": row.tenant, "roles": list(row.roles), "capabilities": list(row.capabilities)}
    return Party(row.id, row.tenant, row.roles, row.capabilities, row.constitution, document)


def check_row(row: AgentRow) -> None:
    """Raises: ValueError, when a name of it is none."""
    every: tuple[tuple[str, Sequence[object]], ...] = (
        ("agent id", (row.id,)),
        ("tenant", (row.tenant,)),
        ("role", row.roles),
        ("capability", row.capabilities),
        ("topic", row.topics),
    )
    for what, names in every:
        if len(names) > NAMES_MAX:
            raise ValueError(f"an agent can have {NAMES_MAX} of {what}, not {len(names)}")
        for name in names:
            if isinstance(name, str) and (AGENT_ID.fullmatch(name) or (what == "topic" and is_subscription(name))):
                continue
            raise ValueError(f"{what} {shown(name)} does not match [a-z0-9][a-z0-9._-]{{0,127}}{WILD_HINT[what]}")
    pinned: object = row.constitution
    is_digest = isinstance(pinned, str) and len(pinned) == DIGEST_CHARS and set(pinned) <= set("0123456789abcdef")
    if pinned != "latest" and not is_digest:
        raise ValueError(f'constitution {shown(pinned)} is neither "latest" nor 64 hex digits')
