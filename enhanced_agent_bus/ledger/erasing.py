"""What stands beside records and may be erased: found on a connection that reads, blanked on the one that writes.

Not here: what may be erased now (road), and how its bytes go (store, scrub).
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from enhanced_agent_bus.ledger import rows, scrub, sql
from enhanced_agent_bus.ports import Content, Erased

SCRUB_SECONDS_MAX: Final = 60.0
#: Which parts of a stored message may hold what its content said: what it added to facts, and what it was held for.
_BLANK_IN_OPENING: Final = {6: "[]", 7: "[]"}
_BLANK_IN_LIFE: Final = {6: "[]", 9: "{}"}


def contents(
    database: sqlite3.Connection, *, message: str | None, conversation: str | None, agent: str | None
) -> list[Content]:
    """Of one message, of a whole conversation, or of all that an agent sent or was sent; also where nothing is left."""
    if message is not None:
        return _content_of(database, [message])
    word = conversation if conversation is not None else agent
    found: dict[str, None] = {}
    for message_id, body in database.execute(sql.DECISIONS_WITH, (b'"%s"' % str(word).encode(),)):
        record = orjson.loads(body)
        names = (record["conversation"],) if conversation is not None else (record["sender"], record["recipient"])
        if word in names:
            found[message_id] = None
    return _content_of(database, list(found))


def contents_before(
    database: sqlite3.Connection, kind: str, before_us: int, after_seq: int, limit: int
) -> tuple[list[Content], int]:
    """A page of what is older than this instant, each with that kind alone, and where it ends; -1 for the last page."""
    end = first_at(database, rows.rfc3339(before_us))
    found = database.execute(sql.KEPT_BEFORE[kind], (after_seq, end, limit)).fetchall()
    page: dict[str, list[int]] = {}
    for seq, message_id in found:
        page.setdefault(message_id or "", []).append(seq)
    known = {content.message_id: content for content in _content_of(database, [name for name in page if name])}
    known.setdefault("", Content("", "", "", "", None, Erased()))
    due = []
    for message_id, seqs in page.items():
        content = known[message_id]
        rows_ = content.erased.rows if kind == "payloads" else ()
        part = Erased(tuple(seqs), (), rows_) if kind == "payloads" else Erased((), tuple(seqs), ())
        due.append(content._replace(erased=part))
    return due, found[-1][0] if len(found) == limit else -1


def first_at(database: sqlite3.Connection, at: str) -> int:
    """The first seq that is not older than a time; records are in the order of their times."""
    low, high = 0, database.execute(sql.COUNT_RECORDS).fetchone()[0]
    while low < high:
        middle = (low + high) // 2
        (body,) = database.execute(sql.RECORD, (middle,)).fetchone()
        if orjson.loads(body)["at"] < at:
            low = middle + 1
        else:
            high = middle
    return low


def _content_of(database: sqlite3.Connection, message_ids: Sequence[str]) -> list[Content]:
    return [content for message_id in message_ids for content in _content(database, message_id)]


def _content(database: sqlite3.Connection, message_id: str) -> Iterator[Content]:
    """None at all, where no decision was ever made on such a message."""
    known: dict[str, Any] | None = None
    payloads, texts = [], []
    elsewhere: set[str] = set()
    for seq, kind, body, has_payload, has_texts in database.execute(sql.RECORDS_OF, (message_id,)):
        if kind in ("decision", "outcome"):
            record = orjson.loads(body)
            elsewhere |= other_nodes(record)
            if kind == "decision" and known is None:
                known = record
        payloads += [seq] * has_payload
        texts += [seq] * has_texts
    if known is None:
        return
    row, state = database.execute(sql.ROW_OF, (message_id,)).fetchone() or (None, None)
    yield Content(
        message_id,
        known["conversation"] or "",
        known["sender"],
        known["recipient"] or "",
        state,
        Erased(tuple(payloads), tuple(texts), () if row is None else (row,)),
        tuple(sorted(elsewhere)),
    )


def other_nodes(record: dict[str, Any]) -> set[str]:
    """Whom a decision or an outcome names: where the message came from, was handed over to, or has ended."""
    named = {f"{record['bus']}/{node}" for node in record.get("handed_over") or ()}
    return named | {said["origin"] for said in (record.get("ticket"), record.get("by")) if said and said.get("origin")}


def erase(database: sqlite3.Connection, erased: Erased) -> None:
    """Removes the rows. Part of a transaction of the writer's."""
    for statement, seqs in ((sql.ERASE_PAYLOAD, erased.payloads), (sql.ERASE_TEXTS, erased.texts)):
        database.executemany(statement, [(seq,) for seq in seqs])
    for row in erased.rows:
        found = database.execute(sql.LIFE_OF, (row,)).fetchone()
        if found is not None:
            opening, life = found
            blank = (_blanked(opening, _BLANK_IN_OPENING), _blanked(life, _BLANK_IN_LIFE), row)
            database.execute(sql.BLANK_LIFE, blank)


def _blanked(text: str | None, places: dict[int, str]) -> str | None:
    if text is None:
        return None
    values = orjson.loads(text)
    for place, value in places.items():
        values[place] = value
    return orjson.dumps(values).decode()


def overwrite_moved(path: Path, database: sqlite3.Connection) -> None:
    """Overwrites what was moved between pages and is deleted by now. The -wal must be empty.

    Where no other program can be started, the database is written anew, which takes longer.
    """
    if sys.executable and not hasattr(sys, "frozen"):
        program = [sys.executable, "-I", "-S", scrub.__file__, str(path)]
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(program, capture_output=True, timeout=SCRUB_SECONDS_MAX, check=True)
            return
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
