"""Holds the logs of several nodes of one bus against each other: `python -I joined.py LOG LOG...`, of exports.

Nothing delivered on one node that another did not admit, nothing that one handed over ended nowhere or otherwise than
it says, and every checkpoint that one log has of another fits that one. It needs nothing but Python's standard
library, and little memory: what it notes of each record stands in a temporary database. Not here: whether each log is
whole (verify), which is asked first; nobody's word counts here for more than its log does.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

LISTED = 100  # of each thing that is no error; the rest is counted
RETURNED = "returned"  # the code of a discarded message that went back to the transport: no end
AFTER_SECONDS = 60  # past a message's time, for a handler that was started in time and for word of its end
_KNOWN = "('delivered', 'refused', 'expired', 'dead_lettered', 'discarded', 'parked')"  # all are ends but parked
_WAITS = ("open", "parked", "undecided")
_UNDECIDED = ("policy_timeout", "policy_unavailable")  # nobody has said no to the letter: it comes again
#: How far a message that has not ended where it was sent has come on another node.
_ENDED_THERE, _NOWHERE = 0, 5
_NOT_ENDED_THERE = {
    1: "it is parked there until somebody replays or discards it",
    2: "it arrived there, and has no outcome",
    3: "it arrived, went back to the transport, and has not come again",
    4: "that node could not decide it, and it has not come again",
}
_PARKED_THERE = 1

_TABLES = """
CREATE TABLE log (name TEXT PRIMARY KEY, size INTEGER, newest INTEGER);
CREATE TABLE decision (log TEXT, seq INTEGER, late INTEGER, message TEXT, id TEXT, digest TEXT, verdict TEXT, code TEXT,
  constitution TEXT, revision INTEGER, PRIMARY KEY (log, seq)) WITHOUT ROWID;
CREATE TABLE receive (log TEXT, seq INTEGER, late INTEGER, message TEXT, digest TEXT, verdict TEXT,
  origin TEXT, at INTEGER, id TEXT, constitution TEXT, revision INTEGER);
CREATE TABLE outcome (log TEXT, seq INTEGER, late INTEGER, message TEXT, state TEXT, code TEXT,
  origin TEXT, at INTEGER, PRIMARY KEY (log, seq)) WITHOUT ROWID;
CREATE TABLE message (id TEXT, log TEXT, state TEXT, code TEXT, seq INTEGER, origin TEXT, at INTEGER, of TEXT, of_at
  INTEGER, decision TEXT, nodes TEXT, until INTEGER, late INTEGER, PRIMARY KEY (id, log)) WITHOUT ROWID;
CREATE TABLE signed (log TEXT, size INTEGER, root TEXT, PRIMARY KEY (log, size)) WITHOUT ROWID;
CREATE TABLE witnessed (log TEXT, seq INTEGER, late INTEGER, origin TEXT, size INTEGER, root TEXT, note TEXT);
"""

_DECIDED = """INSERT INTO message
VALUES (:message, :log, 'open', NULL, :seq, NULL, NULL, :origin, :at, :decision, :nodes, :until, :late)
ON CONFLICT DO UPDATE SET state = 'open', code = NULL, seq = :seq, origin = NULL, at = NULL,
  of = coalesce(:origin, of), of_at = coalesce(:at, of_at),
  decision = :decision, nodes = :nodes, until = max(until, :until)"""
#: A refused letter opens nothing; it is an end where nothing else is known of its message.
_TURNED_AWAY = """INSERT INTO message
VALUES (:message, :log, :state, :code, :seq, NULL, NULL, :origin, :at, :decision, NULL, :until, :late)
ON CONFLICT DO UPDATE SET state = :state, code = :code, seq = :seq, of_at = :at
  WHERE state = 'undecided' OR code = 'returned' OR (state = 'dead_lettered' AND of_at < :at)"""
_ENDED = f"""UPDATE message SET state = ?, code = ?, seq = ?, origin = ?, at = ? WHERE id = ? AND log = ?
  AND ? IN {_KNOWN}"""  # noqa: S608 - a constant of ours

_RECEIVED = """SELECT r.log, r.seq, r.message, r.digest, r.origin, r.at, r.id, r.constitution, r.revision,
  log.size, d.message, d.digest, d.verdict, d.id, d.constitution, d.revision, r.verdict
FROM receive r LEFT JOIN log ON log.name = r.origin LEFT JOIN decision d ON d.log = r.origin AND d.seq = r.at
WHERE NOT r.late ORDER BY r.log, r.seq"""

_SAID_ENDS = """SELECT o.log, o.seq, o.message, o.state, o.code, o.origin, o.at, log.size,
  e.message, e.state, e.code, d.message, d.verdict, d.code, m.state, m.code, m.seq, m.of
FROM outcome o LEFT JOIN log ON log.name = o.origin LEFT JOIN outcome e ON e.log = o.origin AND e.seq = o.at
LEFT JOIN decision d ON d.log = o.origin AND d.seq = o.at LEFT JOIN message m ON m.id = o.message AND m.log = o.origin
WHERE o.origin IS NOT NULL AND NOT o.late ORDER BY o.log, o.seq"""

#: What has not ended where it was sent (s), and as another node has it (r), the farthest first. A dead letter that was
#: sent again since has no end by that.
_OPEN = f"""SELECT s.id, s.log, s.seq, s.decision, s.nodes, s.until, r.log, r.seq, r.state, r.code,
  CASE WHEN r.id IS NULL THEN {_NOWHERE} WHEN r.state = 'parked' THEN {_PARKED_THERE} WHEN r.state = 'open' THEN 2
  WHEN r.code = '{RETURNED}' THEN 3 WHEN r.state = 'undecided' THEN 4 ELSE {_ENDED_THERE} END AS far
FROM message s LEFT JOIN message r ON r.id = s.id AND r.of = s.log
  AND NOT (r.state = 'dead_lettered' AND r.of_at < s.seq)
WHERE s.state = 'open' AND s.of IS NULL AND NOT s.late AND (s.nodes IS NOT NULL OR r.id IS NOT NULL)
ORDER BY s.log, s.seq, far"""  # noqa: S608 - constants of ours

#: A message that has ended where it was sent (s), and as another node has it (r).
_PAIRS = """SELECT r.id, s.log, s.state, s.code, s.seq, s.origin, s.at, r.log, r.state, r.code, r.seq
FROM message r JOIN message s ON s.id = r.id AND s.log = r.of WHERE r.of IS NOT NULL AND s.state <> 'open'
ORDER BY s.log, s.seq"""

_TWICE = """SELECT a.id, a.log, a.seq, b.log, b.seq FROM message a JOIN message b ON b.id = a.id AND b.log > a.log
WHERE a.of IS NOT NULL AND b.of IS NOT NULL AND a.state = 'delivered' AND b.state = 'delivered' ORDER BY a.id"""

_WITNESSED = """SELECT w.log, w.seq, w.origin, w.size, w.root, w.note, log.size, s.root
FROM witnessed w JOIN log ON log.name = w.origin LEFT JOIN signed s ON s.log = w.origin AND s.size = w.size
WHERE NOT w.late ORDER BY w.log, w.seq"""


@dataclass
class Log:
    """A log of one node: how its records are read from one on, and whether a note was signed by its key."""

    name: str  # <bus>/<node>
    records: Callable[[int], Iterable[bytes]]
    opens: Callable[[str], bool] | None = None  # None: nobody has said which key it has


@dataclass
class Finding:
    """One thing of two logs that do not fit together, or that is to be known; `seq` is of `origin`'s log."""

    what: str
    message: str | None
    origin: str
    seq: int | None
    other: str | None
    other_seq: int | None
    why: str
    decision: str | None = None  # of a message that has not ended, the newest one at `seq`

    def line(self) -> str:
        """In words, with both places."""
        places = [f"decision {self.decision}"] if self.decision else []
        places += [f"{name} seq {seq}" if seq is not None else name for name, seq in self._places() if name]
        return f"{self.what}: {self.message or 'checkpoint'} ({', '.join(places)}): {self.why}"

    def _places(self) -> tuple[tuple[str | None, int | None], ...]:
        return ((self.origin, self.seq), (self.other, self.other_seq))


@dataclass
class Joined:
    """What came of it. `found` is what is wrong; the lists besides it have LISTED each, their counts all."""

    found: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # logs that others name and nobody brought
    received: int = 0  # messages that came to a node on another's allow
    on_its_way: int = 0  # handed over, not arrived, and in its time
    open: int = 0  # on both nodes, and in its time or parked
    notice_under_way: int = 0  # ended where it arrived, open where it was sent
    twice: int = 0  # delivered on two nodes
    crossed: int = 0  # ended on both nodes, each by itself
    listed: list[Finding] = field(default_factory=list)
    witnessed: dict[str, int] = field(default_factory=dict)  # log to how many of its records another log vouches for

    @property
    def ok(self) -> bool:
        return not self.found

    def list(self, finding: Finding) -> None:
        count = getattr(self, finding.what) + 1
        setattr(self, finding.what, count)
        if count <= LISTED:
            self.listed.append(finding)


def join(logs: Sequence[Log]) -> Joined:
    """Holds logs against each other; each has been verified, and no two have one name.

    Of a log that is still written to, what came after the first look counts for what others say of it, and is not
    judged itself. Raises: OSError; ValueError, KeyError, TypeError, for what is no record.
    """
    with closing(sqlite3.connect("", isolation_level=None)) as database:  # on disk where it is large, and no file
        database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _TABLES)
        database.execute("BEGIN")
        index = _Index(database)
        sizes = {log.name: index.take(log, 0) for log in logs}
        for log in logs:
            size = index.take(log, sizes[log.name], late=True)
            database.execute("INSERT INTO log VALUES (?, ?, ?)", (log.name, size, index.newest[log.name]))
        return _Judge(database, {log.name: log for log in logs}).judged()


class _Index:
    """Notes what records say of messages that go between nodes."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._execute = database.execute
        self.newest: dict[str, int] = {}  # when a log's last record was written, in microseconds since 1970

    def take(self, log: Log, start: int, *, late: bool = False) -> int:
        """Reads a log from a record on; returns its size."""
        size, body = start, b""
        takes = {"decision": self._decision, "outcome": self._outcome}
        takes |= {"checkpoint": self._checkpoint, "witness": self._witness}
        for size, body in enumerate(log.records(start), start + 1):
            kind = body[: body.find(b'","at":"')].rpartition(b'"')[2].decode()
            if kind in takes:
                record = json.loads(body)
                if record["seq"] != size - 1:
                    raise ValueError(f"record {record['seq']} of {log.name} stands where {size - 1} belongs")
                takes[kind](log.name, record, late)
        if body:
            self.newest[log.name] = _microseconds(json.loads(body)["at"])
        return size

    def _decision(self, log: str, record: dict[str, Any], late: bool) -> None:  # noqa: FBT001 - one of two looks
        message, seq, verdict = record["message_id"], record["seq"], record["verdict"]
        allowed = (record["decision_id"], record["digest"], verdict, record["code"])
        by = (record["constitution"], record["revision"])
        self._execute("INSERT INTO decision VALUES (?,?,?,?,?,?,?,?,?,?)", (log, seq, late, message, *allowed, *by))
        ticket = record.get("ticket") if record["why"] == "receive" else None
        if record["why"] == "receive" and (ticket is not None or verdict != "refuse"):
            named = [(ticket or {}).get(name) for name in ("origin", "seq", "decision_id", "constitution", "revision")]
            row = (log, seq, late, message, record["digest"], verdict, *named)
            self._execute("INSERT INTO receive VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)
        came = {"origin": ticket["origin"] if ticket else None, "at": ticket["seq"] if ticket else None}
        said = {"decision": record["decision_id"], "until": _until(record), "late": late}
        row_of = {"message": message, "log": log, "seq": seq, **came, **said}
        if verdict != "refuse":
            nodes = record.get("handed_over") if verdict == "allow" else None
            self._execute(_DECIDED, {**row_of, "nodes": None if nodes is None else json.dumps(nodes)})
        elif ticket is not None:
            code = record["code"]
            self._execute(_TURNED_AWAY, {**row_of, "code": code, "state": _refused(code)})

    def _outcome(self, log: str, record: dict[str, Any], late: bool) -> None:  # noqa: FBT001
        message, seq, state, code = (record[name] for name in ("message_id", "seq", "state", "code"))
        by = record.get("by") or {"origin": None, "seq": None}
        end = (by["origin"], by["seq"])
        self._execute("INSERT INTO outcome VALUES (?,?,?,?,?,?,?,?)", (log, seq, late, message, state, code, *end))
        self._execute(_ENDED, (state, code, seq, *end, message, log, state))

    def _checkpoint(self, log: str, record: dict[str, Any], late: bool) -> None:  # noqa: ARG002, FBT001
        self._execute("INSERT OR REPLACE INTO signed VALUES (?,?,?)", (log, record["size"], record["root"]))

    def _witness(self, log: str, record: dict[str, Any], late: bool) -> None:  # noqa: FBT001
        if record["event"] == "witnessed":
            said = (record["origin"], record["size"], record["root"], record["note"])
            self._execute("INSERT INTO witnessed VALUES (?,?,?,?,?,?,?)", (log, record["seq"], late, *said))


class _Judge:
    """Reads what was noted."""

    def __init__(self, database: sqlite3.Connection, logs: dict[str, Log]) -> None:
        self._database = database
        self._logs = logs
        self._joined = Joined()
        self._lacking: dict[str, list[Finding]] = {}
        self._lack_count: dict[str, int] = {}

    def judged(self) -> Joined:
        self._received()
        self._ends()
        self._unended()
        self._pairs()
        for message, one, seq, two, other_seq in self._database.execute(_TWICE):
            why = "it was delivered on both: a second run, which at least once allows"
            self._joined.list(Finding("twice", message, one, seq, two, other_seq, why))
        self._checkpoints()
        for name in sorted(self._lacking):
            (first,), count = self._lacking[name][:1], self._lack_count[name]
            first.why = f"{first.why}; {count} records name that log, and it was not given: bring an export of {name}"
            self._joined.missing.append(name)
            self._joined.found.append(first)
        return self._joined

    def _find(self, what: str, place: tuple[str, str, int], other: str | None, at: int | None, why: str) -> None:
        message, origin, seq = place
        self._joined.found.append(Finding(what, message, origin, seq, other, at, why))

    def _lacks(self, place: tuple[str, str, int], other: str, at: int | None, why: str) -> None:
        self._lack_count[other] = self._lack_count.get(other, 0) + 1
        message, origin, seq = place
        self._lacking.setdefault(other, [Finding("log_missing", message, origin, seq, other, at, why)])

    def _received(self) -> None:
        """Each message that came from another node was allowed there, as its ticket says."""
        for row in self._database.execute(_RECEIVED):
            log, seq, message, digest, origin, at, decision_id, constitution, revision, size, *there, verdict = row
            place = (message, log, seq)
            self._joined.received += verdict != "refuse"
            if origin is None:
                self._find("not_admitted", place, None, None, "it was taken in, and names no allow of another node")
            elif size is None:
                self._lacks(place, origin, at, "its allow is in the log of its sender's node")
            elif there[0] is None:
                why = f"no decision stands there ({size} records)"
                why += (
                    ": a newer export may have it, or it was never admitted" if at >= size else ": it was not admitted"
                )
                self._find("not_admitted", place, origin, at, why)
            else:
                named = (message, digest, "allow", decision_id, constitution, revision)
                for what, ours, theirs in zip(_NOT_THE_SAME, named, there, strict=True):
                    if ours != theirs:
                        self._find(what, place, origin, at, f"here {ours}, there {theirs}")
                        break

    def _ends(self) -> None:
        """Each end that a log has from another node is on that node's log."""
        for row in self._database.execute(_SAID_ENDS):
            log, seq, message, state, code, origin, at, size, *there = row
            place = (message, log, seq)
            if size is None:
                self._lacks(place, origin, at, f"it is {state} because of a record of that log")
                continue
            named = _named_end(message, log, at, there)
            if named is None:
                why = f"it is {state} here, and that log has no end of it"
                why += " there: a newer export may have it" if at is not None and at >= size else ""
                self._find("no_end", place, origin, at, why)
                continue
            their_state, their_code, exact, their_seq = named
            if (their_state, their_code) == ("discarded", RETURNED) and not exact:
                why = f"{state} by its reply; there its process ended before it had said so, and it went back"
                self._joined.list(Finding("crossed", message, log, seq, origin, their_seq, why))
            elif their_state != state or (exact and their_code != code):
                why = f"here {_end(state, code)}, there {_end(their_state, their_code)}"
                self._find("other_end", place, origin, their_seq, why)

    def _unended(self) -> None:
        """Each message that left its sender's node and has no end there: how far it came, and if its time is over."""
        (now,) = self._database.execute("SELECT max(newest) FROM log").fetchone()
        for _, copies in groupby(self._database.execute(_OPEN).fetchall(), key=itemgetter(0, 1)):
            message, log, seq, decision, nodes, until, other, other_seq, state, code, far = next(copies)
            lost = now > until + AFTER_SECONDS * 1_000_000
            good = f"its time was over at {_instant(until)}" if lost else f"it has until {_instant(until)}"
            if far == _NOWHERE:
                lacking = [name for name in _origins(log, nodes) if name not in self._logs]
                if lacking:
                    self._lacks((message, log, seq), lacking[0], None, f"it was handed over to that node; {good}")
                    continue
                what = "never_arrived" if lost else "on_its_way"
                why = f"no log that was given has a decision `receive` on it; {good}"
            elif far == _ENDED_THERE:
                what, why = "notice_under_way", f"{_end(state, code)} there, and not known here yet"
            else:
                what = "never_ended" if lost and nodes is not None and far != _PARKED_THERE else "open"
                why = f"{_NOT_ENDED_THERE[far]}; {good}"
            self._tell(Finding(what, message, log, seq, other, other_seq, why, decision))

    def _tell(self, finding: Finding) -> None:
        if finding.what in _LOSSES:
            self._joined.found.append(finding)
        else:
            self._joined.list(finding)

    def _pairs(self) -> None:
        """What ended where it was sent, and not because of what another node has of it."""
        for message, log, state, code, seq, origin, at, other, theirs, their_code, their_seq in self._database.execute(
            _PAIRS
        ):
            is_open = theirs in _WAITS or (theirs, their_code) == ("discarded", RETURNED)
            told = origin == other and (at is None or at >= their_seq or theirs == state)
            newer = origin == other and state == "dead_lettered"
            if is_open or told:
                continue
            if newer:
                why = f"{_end(theirs, their_code)} there, and not known here yet"
                self._list("notice_under_way", message, log, seq, other, their_seq, why)
            elif origin is None and state == "refused" and theirs == "delivered":
                place = (message, log, seq)
                why = "refused here by a later decision, and delivered there"
                self._find("refused_and_delivered", place, other, their_seq, why)
            elif origin is None or (origin == other and state != theirs):
                why = f"{_end(state, code)} here by this node itself, {_end(theirs, their_code)} there"
                self._list("crossed", message, log, seq, other, their_seq, why)

    def _list(self, *given: Any) -> None:
        self._joined.list(Finding(*given))

    def _checkpoints(self) -> None:
        """Each checkpoint of another log that a log has is one that the other has signed."""
        rows = self._database.execute(_WITNESSED).fetchall()
        unknown: dict[str, set[int]] = {}
        for _, _, origin, size, _, _, now, signed in rows:
            if signed is None and size < now:
                unknown.setdefault(origin, set()).add(size)
        roots = {
            (name, size): root for name, sizes in unknown.items() for size, root in _roots(self._logs[name], sizes)
        }
        for log, seq, origin, size, root, note, now, signed in rows:
            theirs = signed or roots.get((origin, size))
            if theirs == root:
                self._joined.witnessed[origin] = max(size, self._joined.witnessed.get(origin, 0))
                continue
            opens = self._logs[origin].opens
            if opens is not None and not opens(note):
                why = f"a checkpoint of {size} records that no key of that log has signed"
            elif size >= now:
                why = f"a checkpoint of {size} records, {now} are left: the end was cut off, or this is an older export"
            else:
                why = f"the first {size} records there are not those that this checkpoint vouches for: written anew"
            self._joined.found.append(Finding("checkpoint", None, log, seq, origin, size, why))


_LOSSES = ("never_arrived", "never_ended")
_NOT_THE_SAME = (
    "other_message",
    "other_digest",
    "not_allowed",
    "other_decision",
    "other_constitution",
    "other_revision",
)


def _named_end(
    message: str, log: str, at: int | None, there: Sequence[Any]
) -> tuple[str, str | None, bool, int] | None:
    """State, code, whether it is that very record, and its seq: the end that an outcome names on another log."""
    their_message, state, code, decided, verdict, decision_code, now, now_code, now_seq, came_from = there
    if at is not None and their_message == message and state is not None:
        return state, code, True, at
    if at is not None and decided == message and verdict == "refuse":
        return "refused", decision_code, True, at
    # With a reply, or of a letter that came again: the message is named, and not the record of its end.
    if (at is None or decided == message) and came_from == log and now is not None and now not in _WAITS:
        return now, now_code, False, now_seq
    return None


def _end(state: str, code: str | None) -> str:
    return f"{state} ({code})" if code else state


def _refused(code: str | None) -> str:
    return "undecided" if code in _UNDECIDED else "refused"


def _origins(log: str, nodes: str | None) -> list[str]:
    """The logs of the nodes that a message was handed over to."""
    return [f"{log.partition('/')[0]}/{node}" for node in json.loads(nodes or "[]")]


def _until(record: dict[str, Any]) -> int:
    """When a message expires, as this decision has it: a replay gives it its whole time anew."""
    if record["why"] == "replay":
        return int(_microseconds(record["at"]) + record["expires_us"] - record["created_us"])
    return int(record["expires_us"])


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(at: str) -> int:
    return (datetime.fromisoformat(at) - _EPOCH) // timedelta(microseconds=1)


def _instant(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="seconds").replace("+00:00", "Z")


def _roots(log: Log, sizes: set[int]) -> Iterator[tuple[int, str]]:
    """The roots (RFC 6962) of a log at sizes at which it has no checkpoint of its own."""
    subtrees: list[bytes] = []
    for size, body in enumerate(log.records(0)):
        if size in sizes:
            root = b""
            for subtree in reversed(subtrees):
                root = sha256(b"\1" + subtree + root).digest() if root else subtree
            yield size, (root or sha256(b"").digest()).hex()
        leaf, rest = sha256(b"\0" + body).digest(), size
        while rest & 1:
            leaf, rest = sha256(b"\1" + subtrees.pop() + leaf).digest(), rest >> 1
        subtrees.append(leaf)


def export(path: Path) -> Log:
    """An exported log, one record a line. Raises: OSError; ValueError, KeyError, TypeError, for what is none."""

    def records(start: int) -> Iterator[bytes]:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if number >= start:
                    yield line.removesuffix(b"\n")

    first = json.loads(next(iter(records(0)), b"null"))
    return Log(f"{first['bus']}/{first['node']}", records)


def main(arguments: list[str]) -> int:
    """Exit status: 0 nothing wrong found, 1 something found, 2 it cannot be read."""
    parser = argparse.ArgumentParser(description="Holds the exported logs of several nodes against each other.")
    parser.add_argument("logs", type=Path, nargs="+", help="exports, which verify.py has checked")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    try:
        logs = [export(path) for path in given.logs]
        if len({log.name for log in logs}) < len(logs) or len(logs) == 1:
            parser.error("name the logs of at least two nodes, each once")
        joined = join(logs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"this cannot be read: {error!r}")
    lines = [finding.line() for finding in (*joined.found, *joined.listed)]
    sys.stdout.write("".join(f"{line}\n" for line in ([json.dumps(asdict(joined))] if given.json else lines)))
    return 0 if joined.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
