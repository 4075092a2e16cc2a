"""Rows of the log for an export, a page at a time, with a connection and a short transaction each. Read-only.

A bus may be opened, write on and be closed meanwhile. Not here: what a format makes of a row (`audit/formats`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import orjson

from enhanced_agent_bus.audit.formats.row import Row
from enhanced_agent_bus.audit.query import Query
from enhanced_agent_bus.cli.reading.home import OPENING, database, headers_fit, one
from enhanced_agent_bus.cli.reading.log import query_of
from enhanced_agent_bus.cli.session import Json

PAGE_ROWS: Final = 500

_LAST: Final = "SELECT coalesce(max(seq), -1) FROM records"
_PAGE: Final = "SELECT seq, body FROM records WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?"
_APART: Final = "SELECT salt, body, headers FROM payloads WHERE seq = ?"
_TEXTS: Final = "SELECT salt, body FROM texts WHERE seq = ?"


def exported_rows(
    home: Path, *, query: str = "", since: str | None = None, until: str | None = None, content: bool = False
) -> Iterator[Row]:
    """The records that a query finds, in order, up to the last that there was at the beginning.

    With `content` a decision comes with what stands apart from it, as far as that is kept and is what was decided on.
    Raises: StoreCorrupt; CliError, for a query or a time that is none.
    """
    wanted = query_of([query] if query else (), since=since, until=until)
    with database(home) as connection:
        end = one(connection, _LAST)
    return _rows(home, end, wanted, content=content)


def stored_bodies(home: Path) -> Iterator[bytes]:
    """Every record byte for byte, also what is none any more. Raises: StoreCorrupt."""
    with database(home) as connection:
        end = one(connection, _LAST)
    seq, page = 0, [(-1, b"")]
    while page and seq <= end:
        with database(home) as connection:
            page = connection.execute(_PAGE, (seq, end, PAGE_ROWS)).fetchall()
        yield from (bytes(body) for _, body in page)
        seq = page[-1][0] + 1 if page else seq


def _rows(home: Path, end: int, wanted: Query, *, content: bool) -> Iterator[Row]:
    seq = 0
    while seq <= end:
        with database(home) as connection:
            page = connection.execute(_PAGE, (seq, end, PAGE_ROWS)).fetchall()
            bodies = [(number, bytes(body)) for number, body in page]
            found = [(number, body, wanted.read(body)) for number, body in bodies]
            rows = [
                _row(connection, number, body, record, content=content)
                for number, body, record in found
                if record is not None
            ]
        if not page:
            return
        yield from rows
        seq = page[-1][0] + 1


def _row(connection: sqlite3.Connection, seq: int, body: bytes, record: dict[str, Json], *, content: bool) -> Row:
    if content and record["kind"] == "decision":
        return Row(body, record, _content(connection, seq, record))
    return Row(body, record)


def _content(connection: sqlite3.Connection, seq: int, record: dict[str, Json]) -> dict[str, Json]:
    """What stands apart from a decision; what is gone or altered is not there."""
    kept: Sequence[Any] = connection.execute(_APART, (seq,)).fetchone() or ()
    if not _is_committed(kept, record["payload"]):  # of a later decision the payload stands by the first one
        kept = connection.execute(OPENING, (record["message_id"],)).fetchone() or ()
    content: dict[str, Json] = {}
    if _is_committed(kept, record["payload"]):
        content["payload"] = orjson.loads(kept[1])
        if record.get("headers") is not None and headers_fit(kept[0], kept[2], record):
            content["headers"] = orjson.loads(kept[2])
    texts: Sequence[Any] = connection.execute(_TEXTS, (seq,)).fetchone() or ()
    if _is_committed(texts, record.get("texts")):
        content |= {name: value for name, value in orjson.loads(texts[1]).items() if name in ("facts", "reasons")}
    return content


def _is_committed(kept: Sequence[Any], commitment: str | None) -> bool:
    """Whether these are salt and bytes of this commitment."""
    return bool(kept and kept[1]) and sha256(kept[0] + kept[1]).hexdigest() == commitment
