"""All SQL of the ledger in one place.

Rows are written many at a time: each statement gives up Python's lock once, and getting it back from a busy event loop
is what a small statement costs. So one statement takes up to 256 rows; what is left of its places is filled with
`NO_ROW`, which it passes over (a number, because `sqlite3` takes ten times as long to bind None). Not here: when which
one is run (store).
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x45414231  # "EAB1"
#: How many rows one statement takes.
CHUNKS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ROWS_MAX: Final = CHUNKS[-1]
#: By number of rows, the smallest statement that takes them.
FITTING: Final = tuple(next(size for size in CHUNKS if size >= rows) for rows in range(ROWS_MAX + 1))
#: What a place without a row is filled with; nothing that is stored begins with it.
NO_ROW: Final = -1
#: Messages that are listed: those that wait, and dead letters, which may be replayed.
LISTED_STATES: Final = ("queued", "retrying", "parked", "held", "handed_over", "dead_lettered")
#: Records that are few beside decisions and outcomes; a query that says so, and the kind, finds them at once.
RARE: Final = "kind NOT IN ('decision', 'outcome')"

SCHEMA: Final = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE records (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, message_id TEXT, body BLOB NOT NULL);
CREATE INDEX records_by_message ON records (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX records_rare ON records (kind, seq) WHERE {RARE};
CREATE TABLE messages (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, recipient TEXT NOT NULL,
  opening TEXT NOT NULL, life TEXT);
CREATE INDEX messages_listed ON messages (state, seq) WHERE state IN {LISTED_STATES};
CREATE TABLE payloads (seq INTEGER PRIMARY KEY, salt BLOB NOT NULL, body BLOB NOT NULL, headers BLOB NOT NULL);
CREATE TABLE texts (seq INTEGER PRIMARY KEY, salt BLOB NOT NULL, body BLOB NOT NULL);
CREATE TABLE facts (
  scope TEXT NOT NULL, owner TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY (scope, owner, key)) WITHOUT ROWID;
CREATE TABLE agents (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, agent TEXT NOT NULL);
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, seq INTEGER NOT NULL, note TEXT NOT NULL, frontier BLOB NOT NULL);
CREATE TABLE head (
  id INTEGER PRIMARY KEY CHECK (id = 0), size INTEGER NOT NULL, at_us INTEGER NOT NULL, frontier BLOB NOT NULL,
  accounting TEXT NOT NULL);
INSERT INTO head VALUES (0, 0, 0, x'', '{{}}');
"""  # noqa: S608 - made of constants


def _values(width: int) -> dict[int, str]:
    row = f"({', '.join('?' * width)})"
    return {rows: f"(VALUES {', '.join([row] * rows)})" for rows in CHUNKS}


def insert(table: str, width: int, after: str = "") -> dict[int, str]:
    """By number of rows, the statement that inserts so many at once."""
    return {
        rows: f"INSERT INTO {table} SELECT * FROM {values} WHERE column1 <> {NO_ROW}{after}"  # noqa: S608 - constants
        for rows, values in _values(width).items()
    }


RECORD_WIDTH: Final = 4
MESSAGE_WIDTH: Final = 5
PAYLOAD_WIDTH: Final = 4
TEXT_WIDTH: Final = 3
MOVE_WIDTH: Final = 3
FACT_WIDTH: Final = 4

INSERT_RECORDS: Final = insert("records", RECORD_WIDTH)
INSERT_MESSAGES: Final = insert("messages (seq, id, state, recipient, opening)", MESSAGE_WIDTH)
INSERT_PAYLOADS: Final = insert("payloads", PAYLOAD_WIDTH)
INSERT_TEXTS: Final = insert("texts", TEXT_WIDTH)
MOVE_MESSAGES: Final = {
    rows: f"UPDATE messages SET state = column2, life = column3 FROM {values} WHERE seq = column1"  # noqa: S608 - constants
    for rows, values in _values(MOVE_WIDTH).items()
}
PUT_FACTS: Final = insert("facts", FACT_WIDTH, " ON CONFLICT (scope, owner, key) DO UPDATE SET value = excluded.value")
REMOVE_FACT: Final = "DELETE FROM facts WHERE scope = ? AND owner = ? AND key = ?"
FORGET_PAYLOADS: Final = {
    rows: f"UPDATE payloads SET body = x'', headers = x'' WHERE seq IN ({', '.join('?' * rows)})"  # noqa: S608 - only ?
    for rows in CHUNKS
}
PUT_AGENT: Final = "INSERT OR REPLACE INTO agents VALUES (?, ?, ?)"
PUT_SETTING: Final = "INSERT INTO settings VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
PUT_CHECKPOINT: Final = "INSERT INTO checkpoints VALUES (?, ?, ?, ?)"
PUT_HEAD: Final = "UPDATE head SET size = ?, at_us = ?, frontier = ?, accounting = ? WHERE id = 0"

GET_HEAD: Final = "SELECT size, at_us, frontier, accounting FROM head WHERE id = 0"
COUNT_RECORDS: Final = "SELECT coalesce(max(seq) + 1, 0) FROM records"
NEWEST_CHECKPOINT: Final = "SELECT size, seq, note, frontier FROM checkpoints ORDER BY size DESC LIMIT 1"
CHECKPOINT_BEFORE: Final = (
    "SELECT size, seq, note, frontier FROM checkpoints WHERE size <= ? ORDER BY size DESC LIMIT 1"
)
CHECKPOINT_AT: Final = "SELECT size, seq, note, frontier FROM checkpoints WHERE size = ?"
RECORDS_FROM: Final = "SELECT seq, body FROM records WHERE seq >= ? ORDER BY seq LIMIT ?"
COUNT_LISTED: Final = f"SELECT state, count(*) FROM messages WHERE state IN {LISTED_STATES} GROUP BY 1"  # noqa: S608
STATE_OF: Final = "SELECT state FROM messages WHERE seq = ?"

_MESSAGE: Final = (
    "SELECT m.seq, m.id, m.state, m.opening, m.life, r.body, p.salt, p.body, p.headers"
    " FROM messages m JOIN records r ON r.seq = m.seq LEFT JOIN payloads p ON p.seq = m.seq"
)
OPENED_SINCE: Final = f"{_MESSAGE} WHERE m.seq >= ? AND m.state NOT IN (?, ?, ?, ?, ?)"
FIND_MESSAGE: Final = f"{_MESSAGE} WHERE m.id = ?"
#: The state is written into the text: only so can SQLite use the partial index.
LIST_MESSAGES: Final = {
    state: f"{_MESSAGE} WHERE m.state = '{state}' AND m.seq > ?1 AND (?2 IS NULL OR m.recipient = ?2)"
    " ORDER BY m.seq LIMIT ?3"
    for state in LISTED_STATES
}
FACTS_OF: Final = "SELECT key, value FROM facts WHERE scope = ? AND owner = ? ORDER BY key"
FACT_ROWS: Final = (
    "SELECT scope, owner, key, value FROM facts WHERE (?1 IS NULL OR scope = ?1) AND (?2 IS NULL OR owner = ?2)"
    " ORDER BY scope, owner, key"
)
AGENTS: Final = "SELECT agent FROM agents ORDER BY id"
TEXTS: Final = "SELECT body FROM texts WHERE seq = ?"
RECORD: Final = "SELECT body FROM records WHERE seq = ?"
DECISION: Final = (
    "SELECT body FROM records WHERE message_id = ? AND kind = 'decision' AND instr(body, ?) ORDER BY seq DESC LIMIT 1"
)
NEWEST_OUTCOME: Final = "SELECT max(seq) FROM records WHERE message_id = ? AND kind = 'outcome'"
SETTING: Final = "SELECT value FROM settings WHERE key = ?"

#: The row that says that something was erased whose bytes may still be somewhere in the files.
UNCLEAN: Final = "unclean"
SET_UNCLEAN: Final = f"INSERT OR REPLACE INTO settings VALUES ('{UNCLEAN}', '1')"  # noqa: S608 - as above
SET_CLEAN: Final = f"DELETE FROM settings WHERE key = '{UNCLEAN}'"  # noqa: S608 - made of constants
ERASE_PAYLOAD: Final = "DELETE FROM payloads WHERE seq = ?"
ERASE_TEXTS: Final = "DELETE FROM texts WHERE seq = ?"
LIFE_OF: Final = "SELECT opening, life FROM messages WHERE seq = ?"
BLANK_LIFE: Final = "UPDATE messages SET opening = ?, life = ? WHERE seq = ?"
ROW_OF: Final = "SELECT seq, state FROM messages WHERE id = ?"
DECISIONS_WITH: Final = "SELECT message_id, body FROM records WHERE kind = 'decision' AND instr(body, ?) ORDER BY seq"
RECORDS_OF: Final = (
    "SELECT r.seq, r.kind, r.body, EXISTS (SELECT 1 FROM payloads WHERE seq = r.seq),"
    " EXISTS (SELECT 1 FROM texts WHERE seq = r.seq) FROM records r WHERE r.message_id = ? ORDER BY r.seq"
)
#: What is forgotten (store_payloads = false) keeps its salt until it is erased.
KEPT_BEFORE: Final = {
    table: f"SELECT k.seq, r.message_id FROM {table} k JOIN records r ON r.seq = k.seq"  # noqa: S608 - constants
    " WHERE k.seq > ? AND k.seq < ? ORDER BY k.seq LIMIT ?"
    for table in ("payloads", "texts")
}


def chunks(count: int) -> list[int]:
    """Into which statement sizes `count` rows go; the last may have room for more."""
    sizes = [ROWS_MAX] * (count // ROWS_MAX)
    rest = count % ROWS_MAX
    return [*sizes, FITTING[rest]] if rest else sizes
