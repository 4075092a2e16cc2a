"""What reading commands find in the log of a home. Read-only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from enhanced_agent_bus.cli.reading import (
    BY_SEQ,
    OF_MESSAGE,
    PAGE_ROWS,
    TEXTS,
    content_at,
    database,
    one,
    record_time,
)
from enhanced_agent_bus.cli.session import Json
from enhanced_agent_bus.ledger import sql


def stored_records(home: Path) -> Iterator[bytes]:
    """Every record as it is stored, in order. Raises: StoreCorrupt."""
    with database(home) as connection:
        for (body,) in connection.execute("SELECT body FROM records ORDER BY seq"):
            yield bytes(body)


def newest_records(home: Path, number: int) -> list[dict[str, Json]]:
    """The last `number` records, oldest first."""
    with database(home) as connection:
        found = connection.execute("SELECT body FROM records ORDER BY seq DESC LIMIT ?", (number,)).fetchall()
    return [json.loads(body) for (body,) in reversed(found)]


def records_from(home: Path, seq: int) -> list[dict[str, Json]]:
    """At most a page of records from this seq on."""
    with database(home) as connection:
        found = connection.execute(sql.RECORDS_FROM, (seq, PAGE_ROWS)).fetchall()
    return [json.loads(body) for _, body in found]


def search_records(
    home: Path, words: Sequence[str], *, since: str | None = None, until: str | None = None, number: int = 100
) -> list[dict[str, Json]]:
    """The newest `number` records that every word matches, oldest first. Raises: CliError, for a time that is none."""
    first, last = (None if text is None else record_time(text) for text in (since, until))
    # Every value stands in the record's bytes, so SQLite throws out most of them before they are parsed.
    parts = [word.partition(":")[2] or word for word in words]
    needles = [json.dumps(part)[1:-1].encode() for part in parts]
    condition = " AND ".join(["instr(body, ?)"] * len(needles)) or "1"
    query = f"SELECT body FROM records WHERE {condition} ORDER BY seq DESC"  # noqa: S608  only question marks
    found: list[dict[str, Json]] = []
    with database(home) as connection:
        for (body,) in connection.execute(query, needles):
            record: dict[str, Json] = json.loads(body)
            if (first is not None and record["at"] < first) or (last is not None and record["at"] >= last):
                continue
            if all(_matches(record, word) for word in words):
                found.append(record)
                if len(found) >= number:
                    break
    return found[::-1]


def _matches(record: Mapping[str, Json], word: str) -> bool:
    name, separator, value = word.partition(":")
    if separator and name == "rule":
        return any(reason.get("rule") == value for reason in record.get("reasons") or ())
    if separator and name in record:
        return str(record[name]) == value
    return word in json.dumps(record, ensure_ascii=False)


def records_named(home: Path, name: str, *, content: bool) -> list[dict[str, Json]]:
    """A record by seq, or those of a message or decision; with `content` also what stands apart from each."""
    with database(home) as connection:
        if name.isdecimal():
            found = [json.loads(body) for (body,) in connection.execute(BY_SEQ, (int(name),))]
        else:
            message_id, _, decision = name.partition("#")
            records = [json.loads(body) for (body,) in connection.execute(OF_MESSAGE, (message_id,))]
            found = [record for record in records if not decision or record.get("decision_id") == name]
        return [_with_content(connection, record) for record in found] if content else found


def _with_content(connection: sqlite3.Connection, record: dict[str, Json]) -> dict[str, Json]:
    kept = content_at(connection, record["seq"])
    texts = one(connection, TEXTS, (record["seq"],))
    apart = {name: value for name, value in kept.items() if value is not None}
    if texts is not None:
        apart["texts"] = json.loads(texts)
    return record | {"content": apart} if apart else record
