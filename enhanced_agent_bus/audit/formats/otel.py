"""Records as OpenTelemetry log records: a line is OTLP/JSON `LogsData`, as the file exporter's format has it.

https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/. The body is the stored record as text; attributes are
what is searched by. Names of attributes are ours: the semantic conventions have none for decisions of a policy.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from enhanced_agent_bus.audit.formats.row import PRODUCT, Document, Origin, Row, nanoseconds, rules_of

ATTRIBUTES: Final = (
    *("seq", "message_id", "decision_id", "conversation", "sender", "tenant", "recipient", "topic", "type"),
    *("verdict", "code", "state", "attempt", "constitution", "revision", "event", "agent"),
)
INFO: Final = (9, "INFO")
WARN: Final = (13, "WARN")
_NOT_WELL: Final = frozenset({"refuse", "failed", "refused", "expired", "dead_lettered", "discarded", "rejected"})


def line(row: Row, origin: Origin) -> bytes:
    """The log record of one record, under the resource and scope that it comes from."""
    record = row.record
    number, text = WARN if _NOT_WELL & {record.get(name) for name in ("verdict", "state", "event")} else INFO
    attributes = [_pair(f"eab.{name}", record[name]) for name in ATTRIBUTES if record.get(name) is not None]
    if rules := rules_of(record):
        attributes.append(_pair("eab.rules", rules))
    if row.content is not None:
        shown = {**row.content, "erased": row.erased, "masked": row.masked}
        attributes.append(_pair("eab.content", orjson.dumps(shown).decode()))
    time = str(nanoseconds(record["at"]))
    log_record: Document = {
        "timeUnixNano": time,
        "observedTimeUnixNano": time,
        "severityNumber": number,
        "severityText": text,
        "eventName": f"eab.{record['kind']}",
        "body": {"stringValue": row.body.decode()},
        "attributes": attributes,
    }
    scope = {"name": "enhanced_agent_bus.audit", "version": origin.version}
    resource = {
        "attributes": [
            _pair("service.name", PRODUCT),
            _pair("service.namespace", record["bus"]),
            _pair("service.instance.id", record["node"]),
        ]
    }
    scoped = [{"scope": scope, "logRecords": [log_record]}]
    return orjson.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": scoped}]})


def _pair(key: str, value: Any) -> Document:
    return {"key": key, "value": _any_value(value)}


def _any_value(value: Any) -> Document:
    """OTLP's AnyValue of a text, a whole number or a list of texts; 64-bit numbers are texts in its JSON."""
    if isinstance(value, list):
        return {"arrayValue": {"values": [_any_value(one) for one in value]}}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}
