"""What the log shows for each control of a framework: a status, the queries, their counts, and samples to look at.

Four statuses, and none of them is "compliant": evidenced (such records are in the log), configured (they could arise,
and none has), not configured (they cannot arise as the home is set up), organisational (no log can show it).

Not here: mappings (mapping), where records come from and how a report looks (cli, pages).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from enhanced_agent_bus.audit.mapping import ALWAYS, Control, Evidence, Framework
from enhanced_agent_bus.audit.query import Query
from enhanced_agent_bus.audit.sample import lot
from enhanced_agent_bus.audit.verify import Report as Verified

Status: TypeAlias = Literal["evidenced", "configured", "not configured", "organisational"]
SAMPLE: Final = 3
MEANS: Final[dict[str, str]] = {
    "evidenced": "records of this kind are in the log",
    "configured": "such records can arise, and there is none in what was looked at",
    "not configured": "as the home is set up, such records cannot arise",
    "organisational": "no log can show this; somebody has to",
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a home is set up to do, as far as conditions ask."""

    weakenings: frozenset[str]  # in force at the newest start
    words: frozenset[str]  # of the active constitution: its rules, and the names that these define
    settings: frozenset[str]  # section.key of what is given

    def lacks(self, conditions: Sequence[str]) -> list[str]:
        """The conditions that do not hold."""
        return [condition for condition in conditions if not self._holds(condition)]

    def _holds(self, condition: str) -> bool:
        kind, _, name = condition.partition(":")
        if condition == ALWAYS:
            return True
        if kind == "without":
            return name not in self.weakenings
        return name in (self.words if kind == "constitution" else self.settings)


@dataclass(slots=True)
class Found:
    """What one query found: how many, and those with the smallest lots."""

    query: Query
    seed: str
    count: int = 0
    _heap: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)  # the largest lot first

    def add(self, record: dict[str, Any]) -> None:
        self.count += 1
        seq = record["seq"]
        ticket = (-int(lot(self.seed, seq), 16), seq, record)
        if len(self._heap) < SAMPLE:
            heapq.heappush(self._heap, ticket)
        elif ticket > self._heap[0]:
            heapq.heapreplace(self._heap, ticket)

    def sample(self) -> list[dict[str, Any]]:
        """Where to look, by seq."""
        records = sorted((record for _, _, record in self._heap), key=lambda record: int(record["seq"]))
        names = ("seq", "kind", "at", "message_id", "decision_id")
        return [{name: record[name] for name in names if record.get(name) is not None} for record in records]


def report(
    framework: Framework,
    records: Iterable[tuple[dict[str, Any], bytes]],
    *,
    setup: Setup,
    verified: Verified,
    seed: str,
) -> dict[str, Any]:
    """One pass over the records, each with its stored bytes; memory for the samples alone."""
    found: dict[str, Found] = {}
    for control in framework.controls:
        for evidence in control.evidence:
            if evidence.query and evidence.query not in found:
                found[evidence.query] = Found(evidence.parsed(), seed)
    looked, first, last = 0, None, None
    starts, weakenings = 0, Counter[str]()
    every = list(found.values())
    for record, body in records:
        looked += 1
        first, last = first or record["at"], record["at"]
        if record["kind"] == "opened":
            starts += 1
            weakenings.update(record["security_state"])
        for one in every:
            if one.query.finds(record, body):
                one.add(record)
    controls = [_control(control, found, setup, verified) for control in framework.controls]
    return {
        "framework": {name: getattr(framework, name) for name in ("id", "name", "source", "note")},
        "records": looked,
        "from": first,
        "to": last,
        "seed": seed,
        "starts": starts,
        "weakenings_of_starts": dict(sorted(weakenings.items())),  # in force at how many of them
        "statuses": {status: sum(one["status"] == status for one in controls) for status in MEANS},
        "controls": controls,
    }


def _control(control: Control, found: dict[str, Found], setup: Setup, verified: Verified) -> dict[str, Any]:
    evidence = [_evidence(one, found, setup, verified) for one in control.evidence]
    statuses = {one["status"] for one in evidence}
    order: tuple[Status, ...] = ("evidenced", "configured", "not configured")
    status: Status = next((one for one in order if one in statuses), "organisational")
    document = {"id": control.id, "title": control.title, "asks": control.asks, "status": status}
    return document | ({"why": control.organisational} if not evidence else {"evidence": evidence})


def _evidence(evidence: Evidence, found: dict[str, Found], setup: Setup, verified: Verified) -> dict[str, Any]:
    lacks = setup.lacks(evidence.configured)
    document: dict[str, Any] = {"says": evidence.says}
    if evidence.check:
        fine = verdict(verified, evidence.check)
        document |= {"check": evidence.check, "verdict": fine}
        shown = fine == "ok"
    else:
        one = found[evidence.query]
        document |= {"query": evidence.query, "count": one.count, "sample": one.sample()}
        shown = one.count > 0
    status: Status = "evidenced" if shown else "not configured" if lacks else "configured"
    return document | {"status": status, "lacks": lacks}


def verdict(verified: Verified, check: str) -> str:
    """`ok`, `bad`, or where no checkpoint from outside was given `unanchored`."""
    if check == "anchored":
        return "ok" if verified.ok and verified.size and not verified.unanchored else "unanchored"
    return str(getattr(verified, check))
