"""Which agents a message is for: one by id, the least loaded with a capability, a topic's subscribers, a tenant."""

from __future__ import annotations

from collections.abc import Callable, Collection

from enhanced_agent_bus.message import AGENT_ID, Envelope, shown
from enhanced_agent_bus.routing.registry import Registry
from enhanced_agent_bus.verdict import Addressed, Party, Refusal


class Router:
    """Finds recipients. `load` tells how much waits for an agent."""

    def __init__(self, registry: Registry, load: Callable[[str], int]) -> None:
        self._registry = registry
        self._load = load

    def address(self, envelope: Envelope, sender: Party, recipient: Party) -> Addressed:
        """The ticket to the gate."""
        return Addressed(envelope, sender, recipient)

    def find(self, to: object) -> Party | Refusal:
        """The agent of this id; an id comes from data, so that a wrong one is a refusal."""
        party = self._registry.party(to) if isinstance(to, str) else None
        if party is not None:
            return party
        if not isinstance(to, str) or not AGENT_ID.fullmatch(to):
            return Refusal("malformed", f"the recipient {shown(to)} is not an agent id", "see `eab agents`")
        return Refusal("recipient_unknown", f"nobody is registered as {to}", "register the agent, or see `eab agents`")

    def capable(self, sender: Party, capability: object) -> Party | Refusal:
        """The least loaded agent of the sender's tenant with this capability; live ones before absent ones."""
        if not isinstance(capability, str) or not AGENT_ID.fullmatch(capability):
            return Refusal("malformed", f"the capability {shown(capability)} is not a name", "see `eab agents`")
        names = [name for name in self._registry.capable(sender.tenant, capability) if name != sender.id]
        if not names:
            return Refusal(
                "recipient_unknown",
                f"no agent of tenant {sender.tenant} has the capability {capability}",
                "register one that has it",
            )
        best = min(names, key=lambda name: (not self._registry.present(name), self._load(name), name))
        party = self._registry.party(best)
        return party if party is not None else Refusal("recipient_unknown", f"{best} has gone", "send again")

    def subscribers(self, sender: Party, topic: object) -> list[Party] | Refusal:
        """All agents of the sender's tenant that take this topic, but the sender."""
        if not isinstance(topic, str) or not AGENT_ID.fullmatch(topic):
            return Refusal("malformed", f"the topic {shown(topic)} is not a name", "use [a-z0-9._-]")
        found = self._others(sender, self._registry.subscribers(sender.tenant, topic))
        if not found:
            return Refusal(
                "recipient_unknown",
                f"nobody in tenant {sender.tenant} takes the topic {topic}",
                "register a subscriber",
            )
        return found

    def members(self, sender: Party) -> list[Party] | Refusal:
        """Everyone of the sender's tenant but the sender."""
        found = self._others(sender, self._registry.members(sender.tenant))
        if not found:
            alone = f"nobody else is registered in tenant {sender.tenant}"
            return Refusal("recipient_unknown", alone, "register another agent")
        return found

    def _others(self, sender: Party, names: Collection[str]) -> list[Party]:
        return [
            party for name in sorted(names) if name != sender.id and (party := self._registry.party(name)) is not None
        ]
