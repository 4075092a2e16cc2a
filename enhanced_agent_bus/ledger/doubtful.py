"""What was reported as not written and may be on disk all the same: how that ends once the store is open again.

Not here: which records are in doubt (writer, home), and writing what ends them (store).
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from enhanced_agent_bus.ledger import rows, sql
from enhanced_agent_bus.outcome import END_STATES
from enhanced_agent_bus.ports import Entry, Move, StoredMessage

_DOUBT: Final = "audit_unavailable"


def ends(database: sqlite3.Connection, first: int, batch: Sequence[Entry], now_us: int) -> list[Entry]:
    """What ends the records from `first` on: opened messages are discarded, moves of `batch` taken back."""
    opened = database.execute(sql.OPENED_SINCE, (first, *END_STATES)).fetchall()
    found = [(message.envelope.id, _discarded(message, now_us)) for message in map(rows.stored_message, opened)]
    for entry in reversed(batch):
        move = entry.move
        if move is None or move.was == move.state or entry.message_id is None or entry.certain:
            continue  # what changed no state (an approval) may stay
        if _is_in(database, move):
            undone = move._replace(was=move.state, state=move.was, since_us=now_us, code=_DOUBT, forget=False)
            found.append((entry.message_id, undone))
    return list(itertools.starmap(_end, found))


def put_right(database: sqlite3.Connection, carried: Iterable[Entry]) -> None:
    """What has waited while the store was mended begins where its message is now, whatever was expected then."""
    states: dict[int, str] = {}
    for entry in carried:
        if (move := entry.move) is not None:
            if move.row not in states:
                (states[move.row],) = database.execute(sql.STATE_OF, (move.row,)).fetchone() or (move.was,)
            entry.move = move._replace(was=states[move.row])
            states[move.row] = move.state


def _is_in(database: sqlite3.Connection, move: Move) -> bool:
    """Whether a message is where this move took it: not, when that was taken back before."""
    return bool(database.execute(sql.STATE_OF, (move.row,)).fetchone() == (move.state,))


def _discarded(message: StoredMessage, now_us: int) -> Move:
    return Move(
        row=message.seq,
        was=message.state,
        state="discarded",
        attempts=message.attempts,
        due_us=0,
        since_us=now_us,
        code=_DOUBT,
        error=None,
        decision_id=message.decision_id,
        added=message.added,
        expires_us=message.envelope.expires_us,
        reply_id=None,
        forget=False,
        notes=message.notes,
    )


def _end(message_id: str, move: Move) -> Entry:
    """The outcome record of a decision that was reported as not recorded."""
    fields = {
        "message_id": message_id,
        "decision_id": move.decision_id,
        "state": move.state if move.state in ("discarded", "dead_lettered", "parked") else "failed",
        "code": _DOUBT,
        "attempt": move.attempts,
        "duration_us": 0,
        "error": None,
    }
    return Entry("outcome", fields, message_id, move=move)
