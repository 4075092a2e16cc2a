"""The life of one message as steps, from its records: sent, decided, approved, tried, ended. Pure.

Given the records of a message in order, it says what each of them says, and nothing that stands in none. Not here:
reading them, and how a step is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from enhanced_agent_bus.audit.gates import gates

Record: TypeAlias = Mapping[str, Any]
Document: TypeAlias = dict[str, Any]
Place: TypeAlias = tuple[str, str, str]

#: What a first decision says of the message itself.
_OF_MESSAGE: Final = (
    *("message_id", "sender", "tenant", "recipient", "recipient_tenant", "topic", "type", "priority"),
    *("conversation", "cause", "hops", "digest"),
)
_ENDS: Final = ("delivered", "refused", "expired", "dead_lettered", "discarded")
_OF_DECISION: Final = (
    *("verdict", "code", "why", "attempt", "decision_id", "previous", "constitution", "revision", "cached_from"),
    "eval_us",
)
_OF_OUTCOME: Final = ("state", "code", "attempt", "decision_id", "duration_us", "error")
_IN_EVERY_RECORD: Final = frozenset(("v", "seq", "kind", "at", "bus", "node", "message_id", "texts"))
_ANSWERS: Final = ("response", "task_response", "governance_response")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def timeline(
    records: Sequence[Record],
    *,
    state: str | None,
    causes: Iterable[Record] = (),
    effects: Iterable[Record] = (),
    places: Mapping[Place, Mapping[str, Any]] | None = None,
    rules: Mapping[str, Sequence[str]] | None = None,
) -> Document:
    """What became of the message that these records, at least one, are about.

    Args:
        records: all that name it, in order.
        state: where it stands now; None when it was never accepted.
        causes: the first decisions on the messages that led to it, the nearest first.
        effects: decisions on messages that name it as their cause, in order.
        places: by constitution, rule and what it did (admit or hold), where its text says so.
        rules: of each constitution whose files are kept, the rules that all have to admit a message.
    """
    first = next((record for record in records if record["kind"] == "decision"), None)
    steps = [_step(record, places or {}, rules or {}) for record in records]
    told = {name: first[name] for name in _OF_MESSAGE} if first is not None else {}
    created = first.get("created_us") if first is not None else None
    start = _time(_at(created) if created else records[0]["at"])
    for step in steps:
        step["after_us"] = (_time(step["at"]) - start) // timedelta(microseconds=1)
    return {
        "message_id": records[0]["message_id"],
        **told,
        "sent_at": _at(created) if created else None,
        "state": state if state is not None else _last_state(records),
        "attempts": max((step.get("attempt") or 0 for step in steps if step["what"] == "outcome"), default=0),
        "steps": steps,
        "caused_by": [_other(record) for record in causes],
        "caused": _newest_of_each(effects),
    }


def _at(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _time(at: str) -> datetime:
    return datetime.fromisoformat(at)


def _last_state(records: Sequence[Record]) -> str | None:
    """Where a message that no row knows has ended, if its records say so."""
    for record in reversed(records):
        if record["kind"] == "outcome" and record["state"] in _ENDS:
            return str(record["state"])
        if record["kind"] == "decision":
            return "refused" if record["verdict"] == "refuse" else None
    return None


def _step(record: Record, places: Mapping[Place, Mapping[str, Any]], rules: Mapping[str, Sequence[str]]) -> Document:
    kind = record["kind"]
    step: Document = {"seq": record["seq"], "at": record["at"], "what": kind}
    if kind == "decision":
        step |= {name: record[name] for name in _OF_DECISION}
        step["engine"] = record["engine"].get("name")
        digest, did = record["constitution"], "hold" if record["verdict"] == "hold" else "admit"
        step["reasons"] = [{**reason, **places.get((digest, reason["rule"], did), {})} for reason in record["reasons"]]
        step["gates"] = gates(record)
        if record["verdict"] != "refuse" and digest in rules:  # each of them had to admit it
            step["admitted_by"] = [{"rule": rule, **places.get((digest, rule, "admit"), {})} for rule in rules[digest]]
    elif kind == "outcome":
        step |= {name: record[name] for name in _OF_OUTCOME}
        step["redacted"] = "payload" in record
    else:
        # What was erased, say: the record calls it by the name that a step has for its kind.
        rest = {name: value for name, value in record.items() if name not in _IN_EVERY_RECORD}
        step |= {"of" if name == "what" else name: value for name, value in rest.items()}
    return step


def _other(record: Record) -> Document:
    return {
        "message_id": record["message_id"],
        "sender": record["sender"],
        "recipient": record["recipient"] or record["topic"],
        "type": record["type"],
        "verdict": record["verdict"],
        "code": record["code"],
        "seq": record["seq"],
        "at": record["at"],
        "answer": record["type"] in _ANSWERS,
    }


def _newest_of_each(decisions: Iterable[Record]) -> list[Document]:
    """A message once, with its first seq and its newest verdict."""
    found: dict[str, Document] = {}
    for record in decisions:
        other = _other(record)
        known = found.setdefault(other["message_id"], other)
        known |= {"verdict": other["verdict"], "code": other["code"]}
    return list(found.values())


_HEADS: Final = {name: re.compile(rf"{name}\b") for name in ("admit", "hold")}


def rule_place(files: Mapping[str, bytes], rule: str, does: str) -> Document | None:
    """Where a rule says what it admits, or what it holds, in the files of its constitution: `file`, `line`, `lines`.

    A rule refuses when none of its ways to admit is true, so `lines` has where each of them begins, and `line` the
    first; for one that held a message they are where it says what it holds. None, when there is no such file.
    """
    folder = f"bus/rules/{rule}/"
    names = sorted(
        (
            name
            for name in files
            if name.startswith(folder) and name.endswith(".rego") and not name.endswith("_test.rego")
        ),
        key=lambda name: name != f"{folder}{rule}.rego",
    )
    head = _HEADS[does]
    for name in names:
        text = files[name].decode("utf-8", "replace").splitlines()
        lines = [number for number, line in enumerate(text, 1) if head.match(line)]
        if lines:
            return {"file": name, "line": lines[0], "lines": lines}
    return {"file": names[0], "line": 1, "lines": [1]} if names else None
