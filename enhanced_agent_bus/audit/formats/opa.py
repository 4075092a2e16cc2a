"""Decisions as OPA's decision log events: https://www.openpolicyagent.org/docs/management-decision-logs.

One event a decision record; other records are no decisions and have none. The shape is `EventV1` of OPA 1.22; what only
the bus knows stands under `custom`, which OPA leaves to whoever embeds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from enhanced_agent_bus.audit.formats.row import PRODUCT, Document, Origin, Row

#: The entrypoint, as OPA names paths: without `data`.
PATH: Final = "bus/decision"
PAYLOAD: Final = "/input/message/payload"
HEADERS: Final = "/input/message/headers"
_ONLY_OURS: Final = (
    *("seq", "bus", "node", "message_id", "digest", "verdict", "code", "constitution", "attempt", "why", "previous"),
    "cached_from",
)


def event(row: Row, origin: Origin) -> Document | None:
    """The event of a decision; None for another record."""
    record = row.record
    if record["kind"] != "decision":
        return None
    engine = record["engine"]
    found: Document = {
        "labels": {"app": PRODUCT, "id": f"{record['bus']}/{record['node']}", "version": engine.get("opa", "")},
        "decision_id": record["decision_id"],
        "bundles": {origin.bundle: {"revision": str(record["revision"])}},
        "path": PATH,
    }
    content = row.content or {}
    if record["input"] is not None:
        found["input"] = _input(record, content)
        if erased := _left_out(record, content):
            found["erased"] = erased
    found |= _answer(record, content)
    found |= {"requested_by": record["sender"], "timestamp": record["at"]}
    if record["input"] is not None and record["cached_from"] is None:
        found["metrics"] = {"timer_rego_query_eval_ns": record["eval_us"] * 1000}
    found["custom"] = {name: record[name] for name in _ONLY_OURS if record.get(name) is not None}
    return found


def line(row: Row, origin: Origin) -> bytes | None:
    """The event on one line."""
    found = row.event if row.event is not None else event(row, origin)
    return None if found is None else orjson.dumps(found)


def _input(record: Mapping[str, Any], content: Mapping[str, Any]) -> Document:
    """What the policy was asked, as far as it is here."""
    document = {**record["input"], "message": dict(record["input"]["message"])}
    document["message"] |= {name: content[name] for name in ("payload", "headers") if name in content}
    if "facts" in content:
        document["facts"] = dict(document["facts"])
        for scope, facts in content["facts"].items():
            document["facts"][scope] = {**document["facts"].get(scope, {}), **facts}
    return document


def _left_out(record: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """What the policy was asked and this event does not have."""
    paths = [PAYLOAD] if record["payload"] is not None and "payload" not in content else []
    return [*paths, HEADERS] if record.get("headers") is not None and "headers" not in content else paths


def _answer(record: Mapping[str, Any], content: Mapping[str, Any]) -> Document:
    """What the policy answered; without an answer of the policy's, why the bus refused."""
    verdict, code = record["verdict"], record["code"]
    if verdict == "refuse" and code != "policy_denied":
        return {"error": {"code": code, "message": f"refused by the bus: {code}"}}
    texts = content.get("reasons") or []
    reasons = [dict(reason) for reason in record["reasons"]]
    for reason, (message, remedy) in zip(reasons, texts, strict=False):
        reason |= {"message": message, "remedy": remedy}
    return {"result": {"allow": verdict != "refuse", "reasons": reasons}}
