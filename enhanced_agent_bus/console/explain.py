"""One message explained: what became of it, who decided so under which rule, and how the record of that is proved.

Gathered from what `audit show` says, the constitution that the home keeps, and the newest verification.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.cli.audit.timeline import timeline_of
from enhanced_agent_bus.cli.reading.home import BY_SEQ, database, one
from enhanced_agent_bus.cli.reading.log import records_named
from enhanced_agent_bus.cli.reading.messages import held_view
from enhanced_agent_bus.console.constitutions import Kept, Line, Rule, kept, source
from enhanced_agent_bus.console.verifying import Verification

STEPS_MAX: Final = 200
OTHERS_MAX: Final = 100
CONTENT_CHARS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Spoke:
    """A rule or gate that refused or held: its words, and the lines of its source that count."""

    name: str
    code: str
    rule: Rule | None
    file: str | None
    lines: list[Line]


@dataclass(frozen=True, slots=True)
class Explained:
    """All that a page says of a message.

    `decision` is the newest one on it, if there is one; `reused` are refusals of other messages that came with its id.
    """

    message: Mapping[str, Any]
    steps: list[dict[str, Any]]
    steps_left_out: int
    decision: Mapping[str, Any] | None
    reused: list[Mapping[str, Any]]
    constitution: Kept | None
    spoke: list[Spoke]
    approvals: list[Mapping[str, Any]]
    waits_for: Mapping[str, Any] | None  # what a held message waits for
    seq: int
    leaf: str


def explained(home: Path, message_id: str, *, content: bool) -> Explained | None:
    """None when the log knows no such message. Raises: StoreCorrupt, sqlite3.Error."""
    if not records_named(home, message_id, content=False):
        return None
    document = timeline_of(home, message_id, content=content)
    steps = document["steps"]
    decisions = [step for step in reversed(steps) if step["what"] == "decision"]
    reused = [step for step in decisions if step["code"] == "replayed"]
    decision = next((step for step in decisions if step["code"] != "replayed"), None)
    if decision is None and reused:  # the first use of the id is not in this log any more
        decision = reused.pop(0)
    constitution = None if decision is None else kept(home, decision["constitution"])
    for step in steps:
        step["content"] = _shown(step.get("content") or {})
    seq = int((decision or steps[-1])["seq"])
    return Explained(
        message={**document, "caused": document["caused"][:OTHERS_MAX], "caused_all": len(document["caused"])},
        steps=steps[-STEPS_MAX:],
        steps_left_out=max(0, len(steps) - STEPS_MAX),
        decision=decision,
        reused=reused,
        constitution=constitution,
        spoke=[] if decision is None else list(_spoke(decision, constitution)),
        approvals=[step for step in steps if step["what"] == "approval"],
        waits_for=held_view(home, message_id) if document["state"] == "held" else None,
        seq=seq,
        leaf=leaf_of(home, seq),
    )


def _spoke(decision: Mapping[str, Any], constitution: Kept | None) -> Iterator[Spoke]:
    for reason in decision["reasons"]:
        name, file = reason["rule"], reason.get("file")
        if not name:
            continue
        rule = next((rule for rule in constitution.rules if rule.name == name), None) if constitution else None
        lines = source(constitution.files, file, reason["lines"]) if constitution and file else []
        yield Spoke(name, reason["code"] or "", rule, file, lines)


def _shown(content: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What stands apart from a record, as lines of JSON; a very long one is cut."""
    shown = []
    for name, value in content.items():
        if value not in ({}, None):
            text = json.dumps(value, indent=2, ensure_ascii=False)
            cut = [] if len(text) <= CONTENT_CHARS_MAX else ["… cut here: `eab audit show --payload` has all of it"]
            shown.append((name, [*text[:CONTENT_CHARS_MAX].split("\n"), *cut]))
    return shown


def leaf_of(home: Path, seq: int) -> str:
    """The leaf of the Merkle tree that a record is: the sha256 of a 0x00 byte and its bytes."""
    with database(home) as connection:
        body = one(connection, BY_SEQ, (seq,))
    return "" if body is None else sha256(b"\0" + body).hexdigest()


def covered(seq: int, verification: Verification | None) -> tuple[bool, str]:
    """Whether the newest verification speaks for a record, and in words how."""
    found = None if verification is None else verification.verdict
    if found is None:
        return False, "not verified yet"
    if "bad" in (found["integrity"], found["completeness"]):
        return False, "the log did not verify: see the proof page"
    if seq >= found["size"]:
        return False, "newer than the last verification: verify again"
    signed = found["checkpoint_size"]
    if signed is not None and seq < signed:
        return True, f"verified, and under the checkpoint that is signed for the first {signed} records"
    return True, "verified; the next checkpoint will sign it"
