"""What the bus reads back, by a connection of its own that cannot write. Short queries, on the loop's thread."""

from __future__ import annotations

import heapq
import itertools
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from enhanced_agent_bus.errors import AuditUnavailable
from enhanced_agent_bus.ledger import rows, sql
from enhanced_agent_bus.ledger.opening import damage
from enhanced_agent_bus.ports import AgentRow, FactChange, StoredMessage

T = TypeVar("T")
READ_REMEDY = "look at the disk that the home is on; nothing is delivered until it answers"


class Reads:
    """Opened at the first read, and again after `close`."""

    def __init__(self, database: Path) -> None:
        self._path = database
        self._db: sqlite3.Connection | None = None

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self.with_connection(lambda database: database.execute(query, values).fetchall())

    def with_connection(self, find: Callable[[sqlite3.Connection], T]) -> T:
        """Raises: StoreCorrupt; AuditUnavailable, when the disk does not answer."""
        try:
            if self._db is None:
                self._db = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, isolation_level=None)
            return find(self._db)
        except sqlite3.Error as error:
            raise damage(error) or AuditUnavailable(f"the log cannot be read: {error}", remedy=READ_REMEDY) from error

    def find(self, message_id: str) -> StoredMessage | None:
        found = self._all(sql.FIND_MESSAGE, (message_id,))
        return rows.stored_message(found[0]) if found else None

    def waiting(self, states: Sequence[str], recipient: str | None, after_seq: int, limit: int) -> list[StoredMessage]:
        pages = [
            self._all(sql.LIST_MESSAGES[state], (after_seq, recipient, limit))
            for state in states
            if state in sql.LIST_MESSAGES
        ]
        found = heapq.merge(*pages, key=lambda row: row[0])
        return [rows.stored_message(row) for row in itertools.islice(found, limit)]

    def facts(self, scope: str, owner: str) -> dict[str, bytes]:
        return dict(self._all(sql.FACTS_OF, (scope, owner)))

    def fact_rows(self, scope: str | None, owner: str | None) -> list[FactChange]:
        return [FactChange(*row) for row in self._all(sql.FACT_ROWS, (scope, owner))]

    def record(self, seq: int) -> bytes:
        found = self._all(sql.RECORD, (seq,))
        if not found:
            raise KeyError(seq)
        return bytes(found[0][0])

    def decision(self, message_id: str, decision_id: str) -> bytes | None:
        found = self._all(sql.DECISION, (message_id, b'"decision_id":"%b"' % decision_id.encode()))
        return bytes(found[0][0]) if found else None

    def newest_outcome(self, message_id: str) -> int | None:
        ((seq,),) = self._all(sql.NEWEST_OUTCOME, (message_id,))
        return None if seq is None else int(seq)

    def texts(self, seq: int) -> bytes | None:
        found = self._all(sql.TEXTS, (seq,))
        return bytes(found[0][0]) if found else None

    def agents(self) -> list[AgentRow]:
        return [rows.stored_agent(text) for (text,) in self._all(sql.AGENTS)]

    def setting(self, key: str) -> str | None:
        found = self._all(sql.SETTING, (key,))
        return found[0][0] if found else None

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
