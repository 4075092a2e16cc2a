"""What a run in virtual time is drawn from: who there is, what constitutions say, how small the rooms are."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from random import Random
from typing import Any, Final

from enhanced_agent_bus.ports import Loaded
from enhanced_agent_bus.settings import Settings
from tests.virtual import Constitution

#: id, tenant, roles, topics, capabilities
AGENTS: Final[Mapping[str, tuple[str, list[str], list[str], list[str]]]] = {
    "ann": ("acme", ["boss"], [], []),
    "bob": ("acme", [], ["news"], ["work"]),
    "cleo": ("acme", [], ["news"], ["work"]),
    "dan": ("bolt", ["boss"], ["news"], ["work"]),
    "eve": ("bolt", [], ["news"], []),
}
KINDS: Final = ("plain", "plain", "plain", "odd", "rare", "big", "costly")


def about(question: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that the answers of `constitution` depend on, but for facts and approvals."""
    payload = question["message"]["payload"]
    kinds = question["sender"]["tenant"], question["recipient"]["tenant"], payload.get("kind"), payload.get("cost")
    return tuple(kinds)


def constitution(number: int, forbidden: set[str], *, cross: bool, budget: int | None, cacheable: bool) -> Constitution:
    """One that forbids some kinds, and, unless `cross`, what leaves a tenant; `big` wants approval."""

    def decide(question: Mapping[str, Any]) -> Mapping[str, Any]:
        sender, recipient, kind, cost = about(question)
        spent = question["facts"]["sender"].get("spent", 0)
        allow = (cross or sender == recipient) and kind not in forbidden
        allow = allow and (budget is None or spent + (cost or 0) <= budget)
        hold = [{"rule": "big", "approvers": 1, "roles": ["boss"], "expires_in": 60}] if kind == "big" else []
        remember = [{"scope": "sender", "key": "spent", "add": cost}] if cost else []
        return {"allow": allow, "hold": hold if allow else [], "remember": remember if allow else []}

    paths = [("sender", "tenant"), ("recipient", "tenant"), ("message", "payload", "kind")]
    paths += [("message", "payload", "cost"), ("approvals",)]
    name = f"constitution-{number}"
    loaded = Loaded(
        digest=sha256(name.encode()).hexdigest(),
        revision=number,
        name=name,
        not_after=None,
        signed=False,
        rules=("all",),
        read_paths=(*paths, *([("facts", "sender", "spent")] if budget is not None else [])),
        cacheable=cacheable,
        facts_read=budget is not None,
        source="folder",
    )
    return Constitution(loaded, decide)


def settings_of(dice: Random) -> Settings:
    """Small rooms and short times, so that they run out."""
    return Settings.model_validate(
        {
            "policy": {"timeout_seconds": dice.choice([0.01, 0.25]), "cache_entries": dice.choice([0, 100])},
            "limits": {
                "mailbox": dice.choice([1, 2, 3, 100]),
                "inflight": dice.choice([1, 2, 100]),
                "hops": 3,
                "expires_seconds": dice.choice([0.05, 5, 600, 600]),
            },
            "delivery": {
                "timeout_seconds": dice.choice([0.01, 1.0]),
                "concurrency": dice.choice([1, 1, 3]),
                "when_full": dice.choice(["wait", "refuse"]),
                "drain_seconds": dice.choice([0, 0.01, 10]),
            },
            "recovery": {"attempts": dice.choice([1, 2, 3]), "base_seconds": dice.choice([0, 0.01, 1])},
        }
    )
