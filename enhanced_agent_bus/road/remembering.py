"""What decisions have remembered, as an operator reads and changes it.

Not here: what decisions do with facts (admission).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from enhanced_agent_bus.admission.seal import SALT_BYTES, commitment
from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.outcome import Fact
from enhanced_agent_bus.ports import Entry, FactChange
from enhanced_agent_bus.road.desk import Desk
from enhanced_agent_bus.verdict import Refusal


class Remembering:
    """Lists facts; puts and removes them, on record."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def facts(self, scope: str | None, owner: str | None) -> list[Fact]:
        """As this node's log says it."""
        return _facts(self._desk.ledger.fact_rows(scope, owner))

    async def shared(self, scope: str | None, owner: str | None) -> list[Fact]:
        """As all nodes of the bus have it now. Raises: TransportAway."""
        shared = await self._desk.admission.fact_rows()
        rows = [row for row in self._desk.ledger.fact_rows(scope, owner) if (row.scope, row.owner) not in shared]
        for name, theirs in shared.items():
            if scope in (None, name[0]) and owner in (None, name[1]):
                rows += theirs
        return _facts(sorted(rows))

    async def put(self, scope: str, owner: str, key: str, value: str | float) -> None:
        """Raises: ValueError, when it cannot be; AuditUnavailable; TransportAway."""
        _check_scope(scope)
        changed = await self._desk.admission.put_fact(scope, owner, key, value)
        if isinstance(changed, Refusal):
            raise ValueError(changed.message)  # noqa: TRY004 - the type is right, the value is not
        await self._write("put", changed)

    async def remove(self, scope: str, owner: str, key: str) -> None:
        """Raises: KeyError, when there is no such fact; AuditUnavailable; TransportAway."""
        _check_scope(scope)
        await self._write("removed", await self._desk.admission.remove_fact(scope, owner, key))

    async def _write(self, event: str, changes: list[FactChange]) -> None:
        change = changes[0]
        value = _fact_value(change.value) if change.value is not None else None
        fields: dict[str, Any] = {"event": event, "scope": change.scope, "owner": change.owner, "key": change.key}
        entry = Entry("fact", fields, facts=changes)
        if isinstance(value, list):  # strings stand apart from records
            salt, body = self._desk.randomness.take(SALT_BYTES), orjson.dumps({"value": value})
            fields["texts"] = commitment(salt, body)
            entry.texts = (salt, body)
        else:
            fields["value"] = value

        def then(error: BusError | None) -> None:
            if error is None:
                self._desk.admission.facts.durable(changes)

        await self._desk.write(entry, then)


def _facts(rows: Sequence[FactChange]) -> list[Fact]:
    return [
        Fact(row.scope, row.owner, row.key, _fact_value(row.value)) for row in rows if row.key and row.value is not None
    ]


def _fact_value(raw: bytes | None) -> str | int | float | list[str]:
    value = orjson.loads(raw or b"{}")
    return sorted(value["s"]) if "s" in value else value.get("n", 0)


def _check_scope(scope: str) -> None:
    if scope not in ("agent", "conversation", "tenant"):
        raise ValueError(f"a fact belongs to an agent, a conversation or a tenant, not to {scope!r}")
