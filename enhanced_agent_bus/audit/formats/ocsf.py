"""Records as OCSF 1.8 events of the class API Activity (6003): https://schema.ocsf.io/1.8.0/classes/api_activity.

`raw_data` is the stored record and `raw_data_hash` its SHA-256; the leaf of the Merkle tree stands under `unmapped`.
The profile `record_integrity` of OCSF 1.9, which has an attestation over the event itself, is not filled yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import orjson

from enhanced_agent_bus.audit.formats.row import PRODUCT, Document, Origin, Row, nanoseconds, rules_of

VERSION: Final = "1.8.0"
CATEGORY: Final = 6  # Application Activity
CLASS: Final = 6003  # API Activity
CREATE, READ, UPDATE, DELETE, OTHER = 1, 2, 3, 4, 99
SUCCESS, FAILURE = 1, 2
INFORMATIONAL, LOW, MEDIUM = 1, 2, 3

_ACTIVITY: Final[Mapping[int, str]] = {CREATE: "Create", READ: "Read", UPDATE: "Update", DELETE: "Delete"}
_SEVERITY: Final[Mapping[int, str]] = {INFORMATIONAL: "Informational", LOW: "Low", MEDIUM: "Medium"}
#: What a record is about, as an activity on an API; a kind that is not here is Other, named as it is.
_OF_KIND: Final[Mapping[str, int]] = {
    "decision": CREATE,
    "agent": UPDATE,
    "policy": UPDATE,
    "fact": UPDATE,
    "approval": UPDATE,
    "recovery": UPDATE,
    "access": READ,
    "erasure": DELETE,
}
#: action and disposition (profile security_control) of a verdict.
_OF_VERDICT: Final[Mapping[str, tuple[int, str, int, str]]] = {
    "allow": (1, "Allowed", 1, "Allowed"),
    "refuse": (2, "Denied", 2, "Blocked"),
    "hold": (99, "Held", 14, "Delayed"),
}
_ENDED_WELL: Final = frozenset({None, "delivered"})
_BETWEEN: Final = frozenset({"failed", "parked"})  # the message goes on


def line(row: Row, origin: Origin) -> bytes:
    """The event of one record."""
    record = row.record
    kind, verdict, state = record["kind"], record.get("verdict"), record.get("state")
    activity = _OF_KIND.get(kind, OTHER)
    refused = verdict == "refuse" or (state not in _ENDED_WELL) or record.get("event") == "rejected"
    severity = INFORMATIONAL if not refused else LOW if state in _BETWEEN else MEDIUM
    event: Document = {
        "category_uid": CATEGORY,
        "category_name": "Application Activity",
        "class_uid": CLASS,
        "class_name": "API Activity",
        "activity_id": activity,
        "activity_name": _ACTIVITY.get(activity, kind),
        "type_uid": CLASS * 100 + activity,
        "type_name": f"API Activity: {_ACTIVITY.get(activity, 'Other')}",
        "severity_id": severity,
        "severity": _SEVERITY[severity],
        "time": nanoseconds(record["at"]) // 1_000_000,
        "status_id": FAILURE if refused else SUCCESS,
        "status": "Failure" if refused else "Success",
        "message": _in_words(record),
        "metadata": _metadata(record, origin),
        "actor": _actor(record),
        "src_endpoint": {"uid": _who(record), "name": _who(record)},
        "api": _api(record),
        "raw_data": row.body.decode(),
        "raw_data_size": len(row.body),
        "raw_data_hash": {"algorithm_id": 3, "algorithm": "SHA-256", "value": sha256(row.body).hexdigest()},
    }
    if record.get("code"):
        event["status_code"] = record["code"]
    if verdict is not None:
        event |= _decided(record, origin)
    if record.get("recipient"):
        event["dst_endpoint"] = {"uid": record["recipient"], "name": record["recipient"]}
    if "duration_us" in record:
        event["duration"] = record["duration_us"] // 1000
    event["unmapped"] = {"leaf_hash": sha256(b"\0" + row.body).hexdigest()}
    if row.content is not None:
        event["unmapped"]["content"] = {**row.content, "erased": row.erased, "masked": row.masked}
    return orjson.dumps(event)


def _who(record: Mapping[str, Any]) -> str:
    """Who did it: an agent, or the node itself."""
    named = record.get("sender") or record.get("approver") or record.get("agent")
    return str(named or f"{record['bus']}/{record['node']}")


def _actor(record: Mapping[str, Any]) -> Document:
    user: Document = {"uid": _who(record), "name": _who(record), "type_id": 4, "type": "Service"}
    if record.get("tenant"):
        user["org"] = {"uid": record["tenant"], "name": record["tenant"]}
    return {"user": user, "app_name": PRODUCT, "app_uid": f"{record['bus']}/{record['node']}"}


def _api(record: Mapping[str, Any]) -> Document:
    operation = f"send {record['type']}" if record["kind"] == "decision" and record["type"] else record["kind"]
    api: Document = {"operation": operation, "service": {"name": PRODUCT}, "version": str(record["v"])}
    if record.get("message_id"):
        api["request"] = {"uid": record["message_id"]}
    return api


def _metadata(record: Mapping[str, Any], origin: Origin) -> Document:
    found: Document = {
        "version": VERSION,
        "product": {"name": PRODUCT, "vendor_name": PRODUCT, "version": origin.version},
        "uid": f"{record['bus']}/{record['node']}/{record['seq']}",
        "sequence": record["seq"],
        "event_code": record["kind"],
        "log_name": f"{record['bus']}/{record['node']}",
        "log_version": str(record["v"]),
        "original_time": record["at"],
    }
    if record.get("verdict") is not None:
        found["profiles"] = ["security_control"]
    if record.get("tenant"):
        found["tenant_uid"] = record["tenant"]
    if correlation := record.get("conversation") or record.get("message_id"):
        found["correlation_uid"] = correlation
    return found


def _decided(record: Mapping[str, Any], origin: Origin) -> Document:
    """What the profile security_control and the policy say of a decision."""
    action_id, action, disposition_id, disposition = _OF_VERDICT[record["verdict"]]
    policy = {
        "name": origin.bundle,
        "uid": record["constitution"],
        "version": str(record["revision"]),
        "is_applied": True,
    }
    decided: Document = {
        "action_id": action_id,
        "action": action,
        "disposition_id": disposition_id,
        "disposition": disposition,
        "policy": policy,
        "authorizations": [{"decision": record["verdict"], "policy": policy}],
    }
    if rules := rules_of(record):
        decided["status_detail"] = ", ".join(rules)
    return decided


def _in_words(record: Mapping[str, Any]) -> str:
    what = record.get("verdict") or record.get("state") or record.get("event")
    code = f" ({record['code']})" if record.get("code") else ""
    return f"{record['kind']}: {what}{code}" if what else str(record["kind"])
