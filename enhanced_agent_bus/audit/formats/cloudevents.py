"""Records as CloudEvents 1.0 in JSON, one a line: https://github.com/cloudevents/spec.

`data` is the stored record byte for byte, so that the leaf hash can be computed from an event, and is the last member
of the line; with contents it is the record with a further member `content`. `sequence` is CloudEvents' own extension.
"""

from __future__ import annotations

from typing import Final

import orjson

from enhanced_agent_bus.audit.formats.row import Document, Origin, Row

TYPE: Final = "opa-agent-bus"
SEQUENCE_DIGITS: Final = 16  # so that the order of texts is that of numbers


def line(row: Row, _origin: Origin) -> bytes:
    """The event of one record."""
    record = row.record
    event: Document = {
        "specversion": "1.0",
        "id": str(record["seq"]),
        "source": f"/{record['bus']}/{record['node']}",
        "type": f"{TYPE}.{record['kind']}.v{record['v']}",
        "time": record["at"],
    }
    if record.get("message_id"):
        event["subject"] = record["message_id"]
    event |= {"sequence": f"{record['seq']:0{SEQUENCE_DIGITS}d}", "datacontenttype": "application/json"}
    data = row.body
    if row.content is not None:
        shown = {**row.content, "erased": row.erased, "masked": row.masked}
        data = row.body[:-1] + b',"content":' + orjson.dumps(shown) + b"}"
    return orjson.dumps(event)[:-1] + b',"data":' + data + b"}"
