"""What reading commands find of messages in a home: what waits, is held or dead, and what became of one. Read-only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from enhanced_agent_bus.cli.faults import unknown_id
from enhanced_agent_bus.cli.reading.home import (
    OF_MESSAGE,
    PAGE_ROWS,
    ROW_OF_MESSAGE,
    SHOW_REMEDY,
    STATE_OF_MESSAGE,
    content_at,
    database,
    one,
    texts_at,
)
from enhanced_agent_bus.cli.session import Json
from enhanced_agent_bus.deliberation import notes
from enhanced_agent_bus.deliberation.approvals import view
from enhanced_agent_bus.ledger import rows, sql
from enhanced_agent_bus.outcome import instant_of
from enhanced_agent_bus.ports import StoredMessage
from enhanced_agent_bus.verdict import Reason


def _messages(connection: sqlite3.Connection, states: Sequence[str]) -> Iterator[StoredMessage]:
    for state in states:
        after = -1
        while page := connection.execute(sql.LIST_MESSAGES[state], (after, None, PAGE_ROWS)).fetchall():
            yield from map(rows.stored_message, page)
            after = page[-1][0]


def _instant(us: int) -> str:
    return instant_of(us).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _in_words(message: StoredMessage) -> dict[str, Json]:
    envelope = message.envelope
    return {
        "message_id": envelope.id,
        "sender": envelope.sender,
        "recipient": envelope.recipient,
        "type": envelope.type,
        "state": message.state,
        "priority": envelope.priority,
        "attempts": message.attempts,
        "since": _instant(message.since_us),
        "due": _instant(message.due_us) if message.state == "retrying" and message.due_us else None,
    }


def waiting(home: Path, states: Sequence[str]) -> list[dict[str, Json]]:
    """Messages in these states, by when they came. Raises: StoreCorrupt."""
    with database(home) as connection:
        found = list(_messages(connection, [state for state in states if state in sql.LIST_MESSAGES]))
    return [_in_words(message) for message in sorted(found, key=lambda message: message.seq)]


def held(home: Path) -> list[dict[str, Json]]:
    """Messages that wait for an approval, with what they wait for. Raises: StoreCorrupt."""
    with database(home) as connection:
        found = [(message, notes.read(message)) for message in _messages(connection, ["held"])]
    return [
        {
            **_in_words(message),
            "hold": [hold.document() for hold in noted.holds],
            "hold_expires": _instant(min(noted.hold_expires_us, message.expires_us)),
            "approvals": [approval.document() for approval in noted.approvals],
        }
        for message, noted in found
    ]


def held_view(home: Path, message_id: str) -> dict[str, Json] | None:
    """What an approver of a held message is shown; None when no such message is held. Raises: StoreCorrupt."""
    with database(home) as connection:
        message = next((one for one in _messages(connection, ["held"]) if one.envelope.id == message_id), None)
        if message is None:
            return None
        noted = notes.read(message)
        return view(
            message.envelope,
            decision_id=message.decision_id,
            reasons=_reasons(connection, message),
            holds=noted.holds,
            until_us=min(noted.hold_expires_us, message.expires_us),  # whichever ends it
            approvals=noted.approvals,
        )


def _reasons(connection: sqlite3.Connection, message: StoredMessage) -> list[Reason]:
    """What the decision that holds a message said, as far as its words are still kept."""
    for (body,) in connection.execute(OF_MESSAGE, (message.envelope.id,)):
        record = json.loads(body)
        if record["kind"] == "decision" and record["decision_id"] == message.decision_id:
            texts = texts_at(connection, record["seq"]) or {}
            words = texts.get("reasons") or [("", "")] * len(record["reasons"])
            pairs = zip(record["reasons"], words, strict=False)
            return [Reason(reason["rule"], reason["code"], *said) for reason, said in pairs]
    return []


def state_of(home: Path, message_id: str) -> str | None:
    """Where a message stands that was accepted; None when the home knows of none. Raises: StoreCorrupt."""
    with database(home) as connection:
        state: str | None = one(connection, STATE_OF_MESSAGE, (message_id,))
    return state


def dead_letters(home: Path) -> list[dict[str, Json]]:
    """What could not be delivered. Raises: StoreCorrupt."""
    with database(home) as connection:
        return [_dead_letter(message) for message in _messages(connection, ["dead_lettered"])]


def dead_letters_from(home: Path, after: int, limit: int) -> list[tuple[int, dict[str, Json]]]:
    """At most `limit` of them, each with its place in the list, from behind a place on. Raises: StoreCorrupt."""
    with database(home) as connection:
        page = connection.execute(sql.LIST_MESSAGES["dead_lettered"], (after, None, limit)).fetchall()
        return [(message.seq, _dead_letter(message)) for message in map(rows.stored_message, page)]


def _dead_letter(message: StoredMessage) -> dict[str, Json]:
    return {
        "message_id": message.envelope.id,
        "sender": message.envelope.sender,
        "recipient": message.envelope.recipient,
        "type": message.envelope.type,
        "code": message.code or "",
        "attempts": message.attempts,
        "error": message.error or "",
        "since": _instant(message.since_us),
    }


def history(home: Path, message_id: str) -> list[dict[str, Json]]:
    """What became of a message, oldest first: each decision, end of a run, approval and word of an operator.

    `why` is what asked for the decision, the type of the error that ended the run, who approved, or `operator`.

    Raises: StoreCorrupt.
    """
    with database(home) as connection:
        return [_step(json.loads(body)) for (body,) in connection.execute(OF_MESSAGE, (message_id,))]


def _step(record: Mapping[str, Json]) -> dict[str, Json]:
    kind = record["kind"]
    if kind == "decision":
        what, why = record["verdict"], record["why"]
    elif kind == "outcome":
        what, why = record["state"], (record["error"] or {}).get("type")
    elif kind == "approval":
        what, why = record["event"], record.get("approver")
    else:
        what, why = record.get("event", kind), "operator"
    return {
        "at": record["at"],
        "what": what,
        "why": why,
        "attempt": record.get("attempt"),
        "code": record.get("code"),
    }


def recoveries(home: Path) -> list[dict[str, Json]]:
    """What failed and waits to be tried again, or for somebody to say what is to be done. Raises: StoreCorrupt."""
    with database(home) as connection:
        return [
            {
                "message_id": message.envelope.id,
                "sender": message.envelope.sender,
                "recipient": message.envelope.recipient,
                "priority": message.envelope.priority,
                "attempts": message.attempts,
                "code": message.code,
                "error": message.error or "",
                "state": "waiting" if message.state == "retrying" else "pending",
                "due": _instant(message.due_us) if message.state == "retrying" else None,
            }
            for message in _messages(connection, ["retrying", "parked"])
            if message.code is not None
        ]


def content(home: Path, message_id: str) -> dict[str, Json]:
    """Payload and headers of a message; None for what is no longer kept. Raises: CliError, when it is unknown."""
    with database(home) as connection:
        seq = one(connection, ROW_OF_MESSAGE, (message_id,))
        if seq is None:
            raise unknown_id(f"there is no message {message_id!r}", SHOW_REMEDY)
        return content_at(connection, seq)
