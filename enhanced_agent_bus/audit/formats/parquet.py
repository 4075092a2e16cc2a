"""Records as a Parquet file: a row a record, a column a field, and the stored bytes beside them.

Columns are the fields of decisions and outcomes and those that other kinds share; nested ones are JSON texts. `record`
is the stored record, so that nothing is lost and each leaf can be hashed. pyarrow writes it: the extra `parquet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from enhanced_agent_bus.audit.formats.row import Row

if TYPE_CHECKING:
    import pyarrow as pa

#: What is held in memory before it is written.
GROUP_ROWS: Final = 10_000
GROUP_BYTES: Final = 8 * 1024 * 1024

_TEXT: Final = (
    *("kind", "bus", "node", "message_id", "digest", "conversation", "cause", "sender", "tenant", "recipient"),
    *("recipient_tenant", "topic", "type", "verdict", "code", "decision_id", "constitution", "cached_from", "why"),
    *("previous", "payload", "headers", "texts", "state", "event", "agent", "command", "what", "root", "note"),
)
_NUMBER: Final = (
    *("v", "seq", "sender_n", "priority", "hops", "attempt", "created_us", "expires_us", "revision", "eval_us"),
    *("duration_us", "size"),
)
_JSON: Final = ("reasons", "engine", "input", "error")
_CONTENT: Final = ("content", "erased", "masked")


def schema(*, content: bool) -> pa.Schema:
    """The columns, the same for every log. Raises: ImportError, without the extra."""
    import pyarrow as pa  # noqa: PLC0415 - the extra `parquet`

    fields = [("at", pa.timestamp("us", tz="UTC"))]
    fields += [(name, pa.int64()) for name in _NUMBER]
    fields += [(name, pa.string()) for name in (*_TEXT, *_JSON)]
    fields += [(name, pa.string()) for name in _CONTENT if content]
    return pa.schema([*fields, ("record", pa.string())])


def write(rows: Iterable[Row], path: Path, *, content: bool) -> int:
    """Writes a file and returns how many rows it has. Raises: ImportError, without the extra; OSError."""
    import pyarrow as pa  # noqa: PLC0415 - the extra `parquet`
    from pyarrow.parquet import ParquetWriter  # noqa: PLC0415

    columns = schema(content=content)
    count = held = 0
    group: list[dict[str, Any]] = []
    with path.open("wb") as file, ParquetWriter(file, columns, compression="zstd") as writer:
        for row in rows:
            group.append(_columns(row))
            held += len(row.body)
            count += 1
            if len(group) >= GROUP_ROWS or held >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, schema=columns))
                group, held = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=columns))
    return count


def _columns(row: Row) -> dict[str, Any]:
    record = row.record
    found: dict[str, Any] = {"at": datetime.fromisoformat(record["at"]), "record": row.body.decode()}
    # Kinds share names and not always shapes: what is not of the column's type is found in `record`.
    found |= {name: value for name in _NUMBER if isinstance(value := record.get(name), int)}
    found |= {name: value for name in _TEXT if isinstance(value := record.get(name), str)}
    found |= {name: _json(value) for name in _JSON if (value := record.get(name)) is not None}
    if row.content is not None:
        found["content"] = _json(row.content)
        found |= {name: _json(paths) for name, paths in (("erased", row.erased), ("masked", row.masked)) if paths}
    return found


def _json(value: Mapping[str, Any] | list[Any] | tuple[str, ...]) -> str:
    return orjson.dumps(value).decode()
