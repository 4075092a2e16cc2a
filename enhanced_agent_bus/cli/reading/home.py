"""What reading commands find in a home: read-only, without a constitution, a bus or a new file.

The answers have the shapes that a running bus gives (`control.plain`), so that a command shows either. Not here:
messages (reading_messages) and the log (reading_log).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enhanced_agent_bus.admission.canonical import canonical
from enhanced_agent_bus.audit.homes import open_database
from enhanced_agent_bus.audit.query import BadQuery, time_of
from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.reading.readable import require_readable
from enhanced_agent_bus.cli.session import Json
from enhanced_agent_bus.errors import ConfigInvalid, StoreCorrupt
from enhanced_agent_bus.ledger import sql

if TYPE_CHECKING:
    from enhanced_agent_bus.authoring.documents import Surroundings
    from enhanced_agent_bus.outcome import WitnessInfo
    from enhanced_agent_bus.ports import AgentRow

PAGE_ROWS: Final = 1000
SHOW_REMEDY: Final = "`eab audit search` finds ids; a message, a decision or a seq can be named"

_LAST_DECISION: Final = "SELECT body FROM records WHERE kind = 'decision' ORDER BY seq DESC LIMIT 1"
_NEWEST_OF_RARE: Final = f"SELECT max(seq) FROM records WHERE {sql.RARE} AND kind = ?"  # noqa: S608 - constants
_ALL_OF_RARE: Final = f"SELECT body FROM records WHERE {sql.RARE} AND kind = ? ORDER BY seq"  # noqa: S608 - constants
OF_MESSAGE: Final = "SELECT body FROM records WHERE message_id = ? ORDER BY seq"
BY_SEQ: Final = "SELECT body FROM records WHERE seq = ?"
_WAITING_OF_EACH: Final = (
    "SELECT recipient, count(*) FROM messages WHERE state IN ('queued', 'retrying', 'parked', 'held')"
    " GROUP BY recipient"
)
_PAYLOAD: Final = "SELECT salt, body, headers FROM payloads WHERE seq = ?"
#: Where a payload stands beside the first decision on a message.
OPENING: Final = "SELECT p.salt, p.body, p.headers FROM messages m JOIN payloads p ON p.seq = m.seq WHERE m.id = ?"
_TEXTS: Final = "SELECT salt, body FROM texts WHERE seq = ?"
STATE_OF_MESSAGE: Final = "SELECT state FROM messages WHERE id = ?"
ROW_OF_MESSAGE: Final = "SELECT seq FROM messages WHERE id = ?"


@contextmanager
def database(home: Path) -> Iterator[sqlite3.Connection]:
    """Raises: StoreCorrupt, when the home has lost its database or its names."""
    for name in ("bus.db", "home.json"):
        if not (home / name).is_file():
            remedy = "restore it from a backup; without one, `eab init --new-log` begins anew"
            raise StoreCorrupt(f"the home {home} has lost its {name}", remedy=remedy)
    require_readable(home)
    with open_database(home) as connection:
        yield connection


def one(connection: sqlite3.Connection, query: str, values: Sequence[object] = ()) -> Json:
    """The first value of the first row; None without a row."""
    row = connection.execute(query, values).fetchone()
    return None if row is None else row[0]


# --- the bus as a whole --------------------------------------------------------------------------------------------


def status_at_rest(home: Path) -> dict[str, Json]:
    """`Status` as the home has it; what was being handled when the process ended counts as queued."""
    from enhanced_agent_bus.admission.stops import SETTING as STOPS
    from enhanced_agent_bus.admission.stops import Stops
    from enhanced_agent_bus.control.wire import plain

    with database(home) as connection:
        names = _names(home)
        size, _, _, accounting = connection.execute(sql.GET_HEAD).fetchone()
        moments = [one(connection, _NEWEST_OF_RARE, (kind,)) for kind in ("opened", "closed")]
        last = one(connection, BY_SEQ, (max((seq for seq in moments if seq is not None), default=-1),))
        decision = one(connection, _LAST_DECISION)
        active = json.loads(one(connection, sql.SETTING, ("constitution",)) or "{}")
        candidate = json.loads(one(connection, sql.SETTING, ("rollout",)) or "null")
        paused = one(connection, sql.SETTING, ("recovery.paused",)) == "1"
        agents = sum(row.live for row in _agents(connection))
        stops = Stops(one(connection, sql.SETTING, (STOPS,)))
    return {
        "accounting": json.loads(accounting),
        "security_state": json.loads(last)["security_state"] if last is not None else [],
        "constitution": active.get("digest", ""),
        "revision": active.get("revision", 0),
        "bus": names.get("bus", ""),
        "node": names.get("node", ""),
        "records": size,
        "agents": agents,
        "engine": json.loads(decision)["engine"] if decision is not None else {},
        "home": str(home),
        "running": False,
        "shadow": None,
        "candidate": _candidate(candidate),
        "breakers": {},
        "blocked": [],
        "recovery_paused": paused,
        "witnesses": plain(standing(home)),
        "nodes": [],  # who is there, only a running one hears
        "stopped": plain(list(stops)),
    }


def standing(home: Path) -> list[WitnessInfo]:
    """How the witnesses that the settings name stood when a process last had the home open."""
    from enhanced_agent_bus.clock import SystemClock
    from enhanced_agent_bus.settings import load_settings
    from enhanced_agent_bus.witness.standing import at_rest, remembered

    try:
        urls = load_settings(home).audit.witnesses
    except ConfigInvalid:  # `eab doctor` says what is wrong with them
        urls = tuple(remembered(home))
    return at_rest(home, urls, SystemClock())


def _candidate(kept: Json) -> dict[str, Json] | None:
    """As a bus that runs says it; the counts are a process's own."""
    if kept is None:
        return None
    counts = dict.fromkeys(("decisions", "newest", "refusals", "errors"), 0)
    return {"digest": kept["digest"], "revision": kept["revision"], "percent": kept["percent"], **counts}


def _names(home: Path) -> dict[str, Json]:
    try:
        names = json.loads((home / "home.json").read_bytes())
    except ValueError:
        remedy = "restore it from a backup"
        raise StoreCorrupt(f"{home / 'home.json'} is not what was written there", remedy=remedy) from None
    return names if isinstance(names, dict) else {}


def _agents(connection: sqlite3.Connection) -> list[AgentRow]:
    from enhanced_agent_bus.ledger import rows

    return [rows.stored_agent(text) for (text,) in connection.execute(sql.AGENTS)]


def remembered_agents(home: Path) -> list[dict[str, Json]]:
    """Who is registered or may join; nobody is live in a home that no process has open."""
    with database(home) as connection:
        waiting = dict(connection.execute(_WAITING_OF_EACH).fetchall())
        trusted = {row[0]: row for row in json.loads(one(connection, sql.SETTING, ("trusted_agents",)) or "[]")}
        found: list[dict[str, Json]] = [
            {
                "id": row.id,
                "tenant": row.tenant,
                "roles": list(row.roles),
                "capabilities": list(row.capabilities),
                "topics": list(row.topics),
                "constitution": row.constitution,
                "live": False,
                "has_handler": False,
                "waiting": waiting.get(row.id, 0),
                "breaker": "closed",  # a process's own
                "nodes": [],  # what a running one hears
                "trusted": trusted.pop(row.id, None) is not None,
            }
            for row in _agents(connection)
            if row.live
        ]
    found.extend(
        {
            "id": agent,
            "tenant": tenant,
            "roles": roles,
            "capabilities": capabilities,
            "topics": topics,
            "constitution": "latest",
            "live": False,
            "has_handler": False,
            "waiting": 0,
            "breaker": "closed",
            "nodes": [],
            "trusted": True,
        }
        for agent, tenant, _, roles, capabilities, topics in trusted.values()
    )
    return sorted(found, key=lambda row: str(row["id"]))


def policy_history(home: Path) -> list[dict[str, Json]]:
    """Every activation and rejection, oldest first."""
    with database(home) as connection:
        return [json.loads(body) for (body,) in connection.execute(_ALL_OF_RARE, ("policy",))]


def not_taken(home: Path) -> str | None:
    """What the settings name and the newest start could not take, in one line; None when there is no such thing."""
    with database(home) as connection:
        noted = json.loads(one(connection, sql.SETTING, ("given_refused",)) or "null")
        active = json.loads(one(connection, sql.SETTING, ("constitution",)) or "{}")
    if noted is None or noted["under"] != active.get("digest"):
        return None
    return f"{noted['path']} was {noted['event']} ({noted['reason']}), and the active constitution goes on deciding"


def has_constitution(home: Path) -> bool:
    """Whether one was ever activated: a home whose first one was rejected has none. Raises: StoreCorrupt."""
    with database(home) as connection:
        return "digest" in json.loads(one(connection, sql.SETTING, ("constitution",)) or "{}")


def active_constitution(home: Path) -> Path:
    """The bundle of the active constitution. Raises: StoreCorrupt; CliError, when there is none yet."""
    with database(home) as connection:
        active = json.loads(one(connection, sql.SETTING, ("constitution",)) or "{}")
    if "digest" not in active:
        raise CliError(f"the home {home} has no constitution yet", remedy="name one with --constitution PATH")
    return _kept_constitution(home, str(active["digest"]))


def _kept_constitution(home: Path, digest: str) -> Path:
    path = home / "constitutions" / f"{digest}.tar.gz"
    if path.is_file():
        return path
    raise StoreCorrupt(f"the constitution {digest} is missing from {path.parent}", remedy="restore it from a backup")


# --- facts ---------------------------------------------------------------------------------------------------------


def facts(home: Path, scope: str | None = None, owner: str | None = None) -> list[dict[str, Json]]:
    """What decisions remembered and operators wrote."""
    with database(home) as connection:
        found = connection.execute(sql.FACT_ROWS, (scope, owner)).fetchall()
    return [
        {"scope": scope, "owner": owner, "key": key, "value": _fact_value(value)}
        for scope, owner, key, value in found
        if key
    ]


def _fact_value(raw: bytes) -> Json:
    value = json.loads(raw)
    return sorted(value["s"]) if "s" in value else value.get("n", 0)


def surroundings(home: Path) -> Surroundings:
    """What a question needs beside its message. Raises: StoreCorrupt."""
    from enhanced_agent_bus.authoring.documents import Known, Surroundings

    with database(home) as connection:
        active = json.loads(one(connection, sql.SETTING, ("constitution",)) or "{}")
        agents = {row.id: Known(*row[:6]) for row in _agents(connection) if row.live}
        known: dict[tuple[str, str], dict[str, Json]] = {}
        for scope, owner, key, raw in connection.execute(sql.FACT_ROWS, (None, None)):
            value = json.loads(raw)
            counters = {"sent": value.get("sent", 0), "refused": value.get("refused", 0)}
            known.setdefault((scope, owner), {}).update({key: _fact_value(raw)} if key else counters)
    return Surroundings(
        agents=agents,
        facts=known,
        digest=active.get("digest", ""),
        revision=active.get("revision", 0),
        now=datetime.now(UTC),
    )


# --- recorded decisions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recorded:
    """The question of a recorded decision, put together again."""

    message_id: str
    document: dict[str, Json]
    constitution: Path
    notes: list[str] = field(default_factory=list)


def recorded_question(home: Path, name: str) -> Recorded:
    """The newest decision on a message, or the one that a decision id or seq names.

    Raises: CliError, when there is none, or when it asked nothing of the policy; StoreCorrupt.
    """
    with database(home) as connection:
        record = decision_record(connection, name)
        if record["input"] is None:
            raise CliError(
                f"{name} was refused as {record['code']} before the policy was asked",
                remedy=f"no rule has seen it; `eab audit show {record['seq']}` shows what was recorded",
                code=str(record["code"]),
                status=1,
            )
        notes = []
        document: dict[str, Json] = dict(record["input"])
        _add_texts(document, connection, record["seq"])
        kept = content_at(connection, record["seq"])
        if kept["payload"] is None:
            row = one(connection, ROW_OF_MESSAGE, (record["message_id"],))
            kept = content_at(connection, row) if row is not None else kept
        if kept["payload"] is None:
            notes.append("the payload is no longer kept: rules that read it answer as if it were missing")
        else:
            document["message"] = {**document["message"], **kept}
    verdict = record["code"] or record["verdict"]
    notes.append(f"recorded as seq {record['seq']} at {record['at']}: {verdict}")
    return Recorded(str(record["message_id"]), document, _kept_constitution(home, str(record["constitution"])), notes)


def _add_texts(document: dict[str, Json], connection: sqlite3.Connection, seq: int) -> None:
    """Puts remembered strings, which stand apart from the record, back among the facts."""
    remembered: Mapping[str, Json] = (texts_at(connection, seq) or {}).get("facts", {})
    if remembered:
        known = document["facts"]
        document["facts"] = {scope: {**facts, **remembered.get(scope, {})} for scope, facts in known.items()}


def decision_record(connection: sqlite3.Connection, name: str) -> dict[str, Json]:
    """The newest decision on a message, or the one that a decision id or seq names. Raises: CliError."""
    if name.isdecimal():
        found = [json.loads(body) for (body,) in connection.execute(BY_SEQ, (int(name),))]
    else:
        message_id, _, decision = name.partition("#")
        records = (json.loads(body) for (body,) in connection.execute(OF_MESSAGE, (message_id,)))
        found = [
            record
            for record in records
            if record["kind"] == "decision" and (not decision or record["decision_id"] == name)
        ]
    if found and found[-1]["kind"] == "decision":
        return dict(found[-1])
    raise unknown_id(f"there is no decision {name!r}", SHOW_REMEDY)


def content_at(connection: sqlite3.Connection, seq: int) -> dict[str, Json]:
    """Payload and headers that stand apart from a record; None for what is not there.

    Raises: StoreCorrupt, for what does not fit the commitments in the record: somebody has put it there.
    """
    row = connection.execute(_PAYLOAD, (seq,)).fetchone()
    if row is None or not row[1]:  # erased, or not kept after the end (audit.store_payloads)
        return {"payload": None, "headers": None}
    salt, body, headers = row
    record = _record_at(connection, seq)
    if sha256(salt + body).hexdigest() != record.get("payload") or not headers_fit(salt, headers, record):
        raise _put_there("the payload, or a header,", seq)
    return {"payload": json.loads(body), "headers": json.loads(headers or b"{}")}


def headers_fit(salt: bytes, headers: bytes | None, record: Mapping[str, Json]) -> bool:
    """Whether headers as they are stored are those that a decision's record commits to."""
    stored = json.loads(headers or b"{}")
    return (sha256(salt + canonical(stored)).hexdigest() if stored else None) == record.get("headers")


def texts_at(connection: sqlite3.Connection, seq: int) -> dict[str, Json] | None:
    """Texts that stand apart from a record; None where there are none. Raises: StoreCorrupt, as `content_at`."""
    row = connection.execute(_TEXTS, (seq,)).fetchone()
    if row is None or not row[1]:
        return None
    if sha256(row[0] + row[1]).hexdigest() != _record_at(connection, seq).get("texts"):
        raise _put_there("a text", seq)
    return dict(json.loads(row[1]))


def _record_at(connection: sqlite3.Connection, seq: int) -> dict[str, Json]:
    return dict(json.loads(one(connection, BY_SEQ, (seq,)) or b"{}"))


def _put_there(what: str, seq: int) -> StoreCorrupt:
    remedy = f"somebody has changed the database; `eab audit show {seq}` shows the record, a backup may have the rest"
    return StoreCorrupt(f"{what} that stands beside record {seq} is not what was decided on", remedy=remedy)


def record_time(text: str) -> str:
    """A time, or how long ago (`24h`), as records write it, so that texts can be compared. Raises: CliError."""
    try:
        return time_of(text, datetime.now(UTC))
    except BadQuery as error:
        raise CliError(error.message, remedy=error.remedy) from None
