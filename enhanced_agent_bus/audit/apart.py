"""What stands beside the records of a home, held against the salted commitments in them: payloads, headers, texts.

What is gone is no damage: it was erased, or not kept. Not here: showing any of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

import orjson

from enhanced_agent_bus.audit.verify import Bad, Report

_PAGE: Final = 1000
#: A row beside its record; whatever type somebody gave what stands there, bytes are read.
_ROWS: Final = (
    "SELECT k.seq, r.body, CAST(k.salt AS BLOB), CAST(k.body AS BLOB), {headers} FROM {table} k"
    " JOIN records r ON r.seq = k.seq WHERE k.seq > ? AND k.seq <= ? ORDER BY k.seq LIMIT ?"
)
_PAYLOADS: Final = _ROWS.format(headers="CAST(k.headers AS BLOB)", table="payloads")
_TEXTS: Final = _ROWS.format(headers="NULL", table="texts")
_NO_HEADERS: Final = (b"{}", b"", None)


def hold_against(report: Report, database: sqlite3.Connection) -> None:
    """Looks at all that stands beside the records of a report, which are whole, and blames what does not belong there.

    Raises: sqlite3.DatabaseError.
    """
    found = sorted([*_altered(report, database, _PAYLOADS, "payload"), *_altered(report, database, _TEXTS, "texts")])
    if not found:
        return
    seq, body, what = found[0]
    record = orjson.loads(body)
    of = f" of {record['message_id']}" if record.get("message_id") else ""
    more = f"; so is what stands beside {len(found) - 1} more" if len(found) > 1 else ""
    why = f"the {what}{of} that stand beside this record are not what it commits to{more}"
    report.blame("integrity", Bad(seq, seq, record["kind"], "altered", why))


def _altered(report: Report, database: sqlite3.Connection, query: str, name: str) -> Iterator[tuple[int, bytes, str]]:
    """The records beside which something else stands: seq, bytes, and what it is."""
    mark, seq = f',"{name}":"'.encode(), -1
    looked = 0
    while page := database.execute(query, (seq, report.size - 1, _PAGE)).fetchall():
        for seq, record, salt, body, headers in page:
            if not body:  # erased, or not kept after the end
                continue
            looked += 1
            digest = sha256(salt + body).hexdigest()
            at = record.rfind(mark) + len(mark)  # where the bus writes it; anywhere else it is looked for by parsing
            if record[at : at + 64] != digest.encode() and orjson.loads(record).get(name) != digest:
                yield seq, record, "texts" if name == "texts" else "payload and headers"
            elif name == "payload" and not _fit(salt, headers, record):
                yield seq, record, "payload and headers"
    report.content = looked + (report.content or 0)


def _fit(salt: bytes, headers: bytes | None, record: bytes) -> bool:
    """Whether stored headers are those that a decision commits to."""
    if headers in _NO_HEADERS and b',"headers":null,' in record:
        return True
    committed: Any = orjson.loads(record).get("headers")
    try:
        stored: Mapping[str, str] = orjson.loads(headers or b"{}")
        return bool(committed == (sha256(salt + _canonical(stored)).hexdigest() if stored else None))
    except (ValueError, TypeError, AttributeError):  # no bus has written these
        return False


def _canonical(headers: Mapping[str, str]) -> bytes:
    """RFC 8785, of an object of strings: keys in the order of their UTF-16 code units."""
    return orjson.dumps(dict(sorted(headers.items(), key=lambda item: item[0].encode("utf-16-be"))))
