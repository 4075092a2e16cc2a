"""What the tables of a home say of its messages and agents, held against its records.

A running bus goes on while this looks: what it has changed since is left out, and so is what no record tells for
certain. Not here: what stands beside single records (apart); facts and settings, which this does not look at.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from enhanced_agent_bus.audit.verify import ENDS, Bad, Report

_PAGE: Final = 1000
#: The newest first, each beside the message that it has opened, if any.
_RECORDS: Final = (
    "SELECT r.seq, r.body, r.kind, r.message_id, m.id, m.state FROM records r LEFT JOIN messages m ON m.seq = r.seq"
    " WHERE r.seq < ? ORDER BY r.seq DESC LIMIT ?"
)
#: What changes a message is in one transaction with a record of it, so this knows whether anything has changed since.
_STATE: Final = (
    "SELECT state, (SELECT max(seq) FROM records WHERE message_id = ?2) >= ?3 FROM messages WHERE seq = ?1 AND id = ?2"
)
_AGENT: Final = (
    "SELECT tenant, agent, EXISTS (SELECT 1 FROM records WHERE seq >= ?2"
    " AND kind = 'agent' AND kind NOT IN ('decision', 'outcome') AND instr(body, ?3)) FROM agents WHERE id = ?1"
)
_AGENTS: Final = "SELECT id FROM agents WHERE id > ? ORDER BY id LIMIT ?"
_BODY: Final = "SELECT body FROM records WHERE seq = ?"
_HEAD: Final = "SELECT size, accounting, EXISTS (SELECT 1 FROM messages WHERE seq < 0 OR seq >= size) FROM head"
_COLUMNS: Final = ("agent", "tenant", "roles", "capabilities", "topics", "constitution")  # of a row, as records say it
#: The kind, the id and, of an outcome, state and code, where the bus writes them.
_USUAL: Final = re.compile(
    rb'\{"v":1,"seq":\d+,"kind":"(decision|outcome)","at":"[^"]*","bus":"[^"]*","node":"[^"]*",'
    rb'"message_id":"([^"\\]*)",(?:"decision_id":"[^"]*","state":"(\w+)","code":(?:null|"(\w*)"))?'
)
_VERDICT: Final = b'"verdict":"'
_CHARS_SHOWN_MAX: Final = 100
_OPEN: Final = "that it has not ended"
_DOUBT: Final = "audit_unavailable"


def hold_tables_against(report: Report, database: sqlite3.Connection) -> None:
    """Looks at the tables of messages and agents, and at the counts, and blames what the records contradict.

    Raises: sqlite3.DatabaseError.
    """
    tables = _Tables(database, report.size)
    first, count = None, 0
    for bad in tables.wrong():
        count += 1
        if first is None or (bad.seq_to, bad.seq) < (first.seq_to, first.seq):
            first = bad
    if first is not None:
        first.why += f"; {count - 1} more do not fit" if count > 1 else ""
        report.blame("integrity", first)


class _Told(NamedTuple):
    """What a record tells of its message: a decision its verdict, an outcome its state and code."""

    message_id: str
    verdict: str | None
    state: str | None
    code: str | None


class _Tables:
    """One look at the tables of a log of this size."""

    def __init__(self, database: sqlite3.Connection, size: int) -> None:
        self._database = database
        self._size = size
        self._newest: dict[str, tuple[str | None, int]] = {}  # what the newest record of a message says, and its seq
        self._counts: Counter[Any] = Counter()  # messages by state
        self._agents = set[str]()

    def wrong(self) -> Iterator[Bad]:
        """From the newest record to the oldest, so that a message is remembered only until its opening is met."""
        seq = self._size
        while page := self._database.execute(_RECORDS, (seq, _PAGE)).fetchall():
            for seq, body, kind, about, row_id, state in page:
                told = _told(body)
                yield from _misfiled(body, told, kind, about)
                if isinstance(told, dict):
                    accepted = None
                    yield from self._agent(told)
                else:
                    accepted = self._hear(seq, told)
                if row_id is not None:
                    self._counts[state] += 1
                    yield from self._opened(seq, body, accepted, row_id, state)
                elif accepted is not None and orjson.loads(body).get("previous", "") is None:  # the first decision
                    yield _bad(body, f"the table of messages does not have {_shown(accepted)}")
        yield from self._unregistered()
        yield from self._miscounted()

    def _hear(self, seq: int, told: _Told) -> str | None:
        """Remembers what is told of a message; its id, when that is a decision that accepts it."""
        message_id, verdict, state, code = told
        if verdict == "refuse":
            return None  # where it ends a message an outcome says so
        # What was taken back after a failure of the disk is again what it was before, which is not said.
        says = state if state in ENDS else None if code == _DOUBT else _OPEN
        self._newest.setdefault(message_id, (says, seq))
        return message_id if verdict is not None else None

    def _opened(self, seq: int, body: bytes, accepted: str | None, row_id: object, state: object) -> Iterator[Bad]:
        """A message, met at the record that it began with."""
        if accepted is None or row_id != accepted:
            why = f"the table of messages says that {_shown(row_id)} began with this record, which does not accept it"
            yield _bad(body, why)
            return
        says, newest = self._newest.pop(accepted)
        if _fits(says, state):
            return
        now, changed = self._database.execute(_STATE, (seq, accepted, self._size)).fetchone() or (state, False)
        if not changed and not _fits(says, now):
            (body,) = self._database.execute(_BODY, (newest,)).fetchone()
            yield _bad(
                body, f"the table of messages says {_shown(now)} of {_shown(accepted)}, and this record says {says}"
            )

    def _agent(self, record: dict[str, Any]) -> Iterator[Bad]:
        """The newest record of an agent; older ones are passed over, and so are all others."""
        if record["kind"] != "agent" or record.get("event") not in ("registered", "unregistered"):
            return
        name = record["agent"]
        if name in self._agents:
            return
        self._agents.add(name)
        row = self._row(name)
        if row is None:
            yield _bad(record, f"the table of agents does not have {_shown(name)}, which this record names")
            return
        tenant, text, changed = row
        if changed:
            return
        try:
            *values, live = orjson.loads(text)
            has = dict(zip(_COLUMNS, values, strict=True))
        except (ValueError, TypeError):
            yield _bad(record, f"the table of agents has no registration of {_shown(name)} that can be read")
            return
        says = {key: record[key] for key in _COLUMNS if key in record}
        differs = [key for key, value in says.items() if has[key] != value]
        if differs:
            has_it, says_it = _shown(has[differs[0]]), _shown(says[differs[0]])
            why = f"the table of agents says {differs[0]} {has_it} of {_shown(name)}, and this record says {says_it}"
            yield _bad(record, why)
        elif tenant != has["tenant"]:
            why = f"the table of agents has {_shown(name)} under the tenant {_shown(tenant)}"
            yield _bad(record, f"{why}, and this record says {_shown(has['tenant'])}")
        elif live is not (record["event"] == "registered"):
            was = "registered" if live else "unregistered"
            yield _bad(record, f"the table of agents says that {_shown(name)} is {was}, and this record says otherwise")

    def _row(self, name: str) -> Any:
        """Tenant, registration, and whether newer records name it; None without a row."""
        named = b'"agent":%b' % orjson.dumps(name)
        return self._database.execute(_AGENT, (name, self._size, named)).fetchone()

    def _unregistered(self) -> Iterator[Bad]:
        """Agents that no record has registered."""
        name = ""
        while page := self._database.execute(_AGENTS, (name, _PAGE)).fetchall():
            for (name,) in page:
                if name not in self._agents and (row := self._row(name)) is not None and not row[2]:
                    yield self._somewhere(f"the table of agents has {_shown(name)}, which no record registers")

    def _miscounted(self) -> Iterator[Bad]:
        """The counts of the head, unless something was written meanwhile: then they are not of the same moment."""
        size, text, strays = self._database.execute(_HEAD).fetchone()
        if strays:
            yield self._somewhere("the table of messages has one that no record opens")
        if size != self._size:
            return
        counts = orjson.loads(text)
        found = {"accepted": self._counts.total(), **self._counts}
        for state in {**counts, **found}:
            if counts.get(state, 0) != found.get(state, 0):
                there, counted = found.get(state, 0), _shown(counts.get(state, 0))
                why = f"{there} messages are {_shown(state)} where the head of the log counts {counted}"
                yield self._somewhere(why)
                return

    def _somewhere(self, why: str) -> Bad:
        return Bad(0, self._size - 1, None, "altered", why)


def _misfiled(body: bytes, told: _Told | dict[str, Any], kind: object, about: object) -> Iterator[Bad]:
    """A record under another kind or message than its own: reading commands would not find it there."""
    if isinstance(told, dict):
        own = told["kind"], told.get("message_id", about)  # an erasure has its message among others
    else:
        own = "decision" if told.state is None else "outcome", told.message_id
    if own != (kind, about):
        why = (
            f"the table of records has this record as {_shown(kind)} of {_shown(about)}, and it is {own[0]} of {own[1]}"
        )
        yield _bad(body, why)


def _told(body: bytes) -> _Told | dict[str, Any]:
    """What a decision or an outcome tells of its message; any other record whole."""
    if (usual := _USUAL.match(body)) is not None:
        kind, message_id, state, code = usual.groups()
        if kind == b"outcome" and state is not None:
            return _Told(message_id.decode(), None, state.decode(), None if code is None else code.decode())
        # Before the first brace inside every key is the record's own.
        at = body.find(_VERDICT, usual.end(), body.find(b"{", usual.end()))
        if kind == b"decision" and at > 0:
            at += len(_VERDICT)
            return _Told(message_id.decode(), body[at : body.find(b'"', at)].decode(), None, None)
    record: dict[str, Any] = orjson.loads(body)
    if record["kind"] == "decision":
        return _Told(record["message_id"], record["verdict"], None, None)
    if record["kind"] == "outcome":
        return _Told(record["message_id"], None, record["state"], record.get("code"))
    return record


def _fits(says: str | None, state: object) -> bool:
    return says is None or (state not in ENDS if says == _OPEN else state == says)


def _bad(record: bytes | dict[str, Any], why: str) -> Bad:
    known = orjson.loads(record) if isinstance(record, bytes) else record
    return Bad(known["seq"], known["seq"], known["kind"], "altered", why)


def _shown(value: object) -> str:
    """Whatever somebody has put there, on one line of ASCII."""
    text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    return ascii(text)[1:-1][:_CHARS_SHOWN_MAX]
