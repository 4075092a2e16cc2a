"""What reading commands find in the log of a home. Read-only.

A long log is read a page at a time, each page with a connection and a short transaction of its own: memory stays as it
is, and a bus may be opened, write on and be closed meanwhile. Not here: what a query means (`audit/query.py`).
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final

import orjson

from enhanced_agent_bus.audit.query import BadQuery, Query, Term, parse, time_of
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.reading.home import BY_SEQ, OF_MESSAGE, PAGE_ROWS, content_at, database, one, texts_at
from enhanced_agent_bus.cli.session import Json
from enhanced_agent_bus.errors import StoreCorrupt
from enhanced_agent_bus.ledger import sql

SCAN_ROWS: Final = 4000
SEQ_DIGITS_MAX: Final = 18  # SQLite takes no more
SEQ_MAX: Final = float(1 << 53)
_LAST: Final = "SELECT coalesce(max(seq), -1) FROM records"
_ERASURES: Final = f"SELECT body FROM records WHERE {sql.RARE} AND kind = 'erasure' AND instr(body, ?) ORDER BY seq"  # noqa: S608
_PAGE: Final = "SELECT seq, body FROM records WHERE seq BETWEEN ? AND ?"
_OF_MESSAGE_BETWEEN: Final = "SELECT seq, body FROM records WHERE message_id = ? AND seq BETWEEN ? AND ? ORDER BY seq"

Told = Callable[[float, int], None]


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


# --- looking for records -------------------------------------------------------------------------------------------


def query_of(words: Sequence[str], *, since: str | None = None, until: str | None = None) -> Query:
    """What was typed. Raises: CliError."""
    try:
        now = datetime.now(UTC)
        query = parse(words, now=now)
        times = [None if text is None else time_of(text, now) for text in (since, until)]
        first = max(filter(None, (query.since, times[0])), default=None)
        return Query(query.terms, first, min(filter(None, (query.until, times[1])), default=None))
    except BadQuery as error:
        raise CliError(error.message, remedy=error.remedy) from None


class Search:
    """The records of a home that a query finds, up to the last that there was at the beginning."""

    def __init__(self, home: Path, query: Query, *, size: int | None = None, told: Told | None = None) -> None:
        """Looks at the first `size` records, or at all; `told` hears now and then which share, and how many it found.

        Raises: StoreCorrupt; CliError, when the log is shorter than `size`.
        """
        self._home = home
        self._query = query
        self._told = told
        with database(home) as connection:
            #: Of the log that is looked at.
            self.size: int = one(connection, _LAST) + 1
            if size is not None and size > self.size:
                remedy = "name a size that the log has had, as its checkpoints do"
                raise CliError(f"the log has {self.size} records, not {size}", remedy=remedy)
            self.size = self.size if size is None else size
            first, last = _bounds(query.terms, self.size - 1)
            if query.since is not None:
                first = max(first, _first_at(connection, self.size, query.since))
            if query.until is not None:
                last = min(last, _first_at(connection, self.size, query.until) - 1)
        self._first, self._last = first, last

    def oldest(self) -> Iterator[dict[str, Json]]:
        """What is found, the oldest first."""
        return self._found(range(self._first, self._last + 1, SCAN_ROWS), "ASC")

    def newest(self) -> Iterator[dict[str, Json]]:
        """What is found, the newest first."""
        return self._found(reversed(range(self._first, self._last + 1, SCAN_ROWS)), "DESC")

    def newest_in_order(self, number: int) -> Iterator[dict[str, Json]]:
        """The newest `number` of what is found, the oldest of them first; in memory are only their seqs."""
        seqs = array("q", (record["seq"] for record in islice(self.newest(), number)))
        while seqs:
            page, seqs = seqs[: -PAGE_ROWS - 1 : -1], seqs[:-PAGE_ROWS]
            with database(self._home) as connection:
                bodies = [one(connection, BY_SEQ, (seq,)) for seq in page]
            yield from (json.loads(body) for body in bodies)

    def _found(self, firsts: Iterator[int] | range, order: str) -> Iterator[dict[str, Json]]:
        condition, values = _condition(self._query)
        text = f"{_PAGE}{condition} ORDER BY seq {order}"
        name = _message_id(self._query)
        if name is not None:  # there is an index: all in one page
            firsts, text, values = iter([self._first]), _OF_MESSAGE_BETWEEN, []
            if order == "DESC":
                text += " DESC"
        count = found = 0
        for first in firsts:
            last = min(first + SCAN_ROWS - 1, self._last) if name is None else self._last
            between = (first, last) if name is None else (name, first, last)
            with database(self._home) as connection:
                page = connection.execute(text, (*between, *values)).fetchall()
            for _, body in page:
                record = self._query.read(body)
                if record is not None:
                    found += 1
                    yield record
            count += SCAN_ROWS
            if self._told is not None:
                self._told(count / max(1, self._last - self._first + 1), found)


def _condition(query: Query) -> tuple[str, list[object]]:
    """What SQLite can throw out without parsing, in SQL of our own making and values."""
    kind = query.exactly("kind")
    parts: list[tuple[str, str | bytes]] = [] if kind is None else [("kind = ?", kind)]
    if kind is not None and kind not in ("decision", "outcome"):
        parts = [(f"{sql.RARE} AND kind = ?", kind)]
    parts += [("instr(body, ?)", needle) for needle in query.needles if kind is None or needle != f'"{kind}"'.encode()]
    return "".join(f" AND {part}" for part, _ in parts), [value for _, value in parts]


def _message_id(query: Query) -> str | None:
    """The one message that the records which are looked for can be about, if the query says so."""
    for field in ("message_id", "message", "id"):
        if (name := query.exactly(field)) is not None:
            return name
    decision = query.exactly("decision_id") or query.exactly("decision")
    return decision.partition("#")[0] if decision is not None else None


def _bounds(terms: Sequence[Term], last: int) -> tuple[int, int]:
    """The first and the last seq that conditions on it leave."""
    first = 0
    for term in terms:
        if term.field != "seq" or term.negated or not (term.compare or term.value.isdecimal()):
            continue
        number = min(max(float(term.value), -1.0), SEQ_MAX)
        if term.compare in (">=", ">", ""):
            first = max(first, int(number))
        if term.compare in ("<=", "<", ""):
            last = min(last, int(number))
    return first, last


def _first_at(connection: sqlite3.Connection, size: int, since: str) -> int:
    """The first seq that is not older than a time; records are in the order of their times."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        body = one(connection, BY_SEQ, (middle,))
        if body is not None and json.loads(body)["at"] < since:
            low = middle + 1
        else:
            high = middle
    return low


# --- one of them ---------------------------------------------------------------------------------------------------


def records_named(home: Path, name: str, *, content: bool) -> list[dict[str, Json]]:
    """A record by seq, or those of a message or decision; with `content` also what stands apart from each."""
    with database(home) as connection:
        if name.isdecimal():
            seq = int(name) if len(name) <= SEQ_DIGITS_MAX else -1
            found = [json.loads(body) for (body,) in connection.execute(BY_SEQ, (seq,))]
        else:
            message_id, _, decision = name.partition("#")
            records = [json.loads(body) for (body,) in connection.execute(OF_MESSAGE, (message_id,))]
            found = [record for record in records if not decision or record.get("decision_id") == name]
        return [_with_content(connection, record) for record in found] if content else found


#: In place of what a record commits to.
NOT_KEPT: Final = "not kept"
ALTERED: Final = "altered: not what was decided on"


def _with_content(connection: sqlite3.Connection, record: dict[str, Json]) -> dict[str, Json]:
    apart: dict[str, Json] = {}
    try:
        kept = content_at(connection, record["seq"])
        apart = {name: value for name, value in kept.items() if value is not None}
    except StoreCorrupt:
        apart = dict.fromkeys(("payload", "headers"), ALTERED)
    try:
        texts = texts_at(connection, record["seq"])
        apart |= {} if texts is None else {"texts": texts}
    except StoreCorrupt:
        apart["texts"] = ALTERED
    # A later decision on a message has its payload beside the first one.
    committed = ["texts"] if record.get("previous") is not None else ["payload", "headers", "texts"]
    missing = [name for name in committed if name not in apart and record.get(name) is not None]
    if missing:
        apart |= dict.fromkeys(missing, _why_gone(connection, str(record["message_id"])))
    return record | {"content": apart} if apart else record


def _why_gone(connection: sqlite3.Connection, message_id: str) -> str:
    """An erasure names the messages that it took; without one the content was not kept after the end."""
    for (body,) in connection.execute(_ERASURES, (orjson.dumps(message_id),)):
        erasure = json.loads(body)
        if message_id in erasure["messages"]:
            return f"erased by {erasure['basis']}, seq {erasure['seq']}"
    return NOT_KEPT
