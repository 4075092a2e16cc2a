"""The decisions of a home as questions that can be asked again: read a page at a time, beside a running bus too."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import orjson

from enhanced_agent_bus.admission.supposed import UNDECIDED
from enhanced_agent_bus.authoring.questions import WHY, Decision, Unasked
from enhanced_agent_bus.cli.faults import FOUND, CliError
from enhanced_agent_bus.cli.policy.author import named_path
from enhanced_agent_bus.cli.reading.home import OPENING, database, decision_record, headers_fit
from enhanced_agent_bus.cli.session import Json

PAGE_ROWS: Final = 500
DIGEST_CHARS: Final = 64

_PAGE: Final = (
    "SELECT r.seq, r.body, p.salt, p.body, p.headers, t.salt, t.body FROM records r"
    " LEFT JOIN payloads p ON p.seq = r.seq LEFT JOIN texts t ON t.seq = r.seq"
    " WHERE r.seq BETWEEN ? AND ? AND r.kind = 'decision' ORDER BY r.seq LIMIT ?"
)
_ONE: Final = (
    "SELECT r.seq, r.body, p.salt, p.body, p.headers, t.salt, t.body FROM records r"
    " LEFT JOIN payloads p ON p.seq = r.seq LEFT JOIN texts t ON t.seq = r.seq WHERE r.seq = ?"
)
_LAST: Final = "SELECT coalesce(max(seq), -1) FROM records"
_AT: Final = "SELECT body FROM records WHERE seq = ?"
_NEWEST: Final = "SELECT seq FROM records WHERE kind = 'decision' AND seq >= ? ORDER BY seq DESC LIMIT 1 OFFSET ?"


class Log:
    """The decisions of one home, from `first` to the last that there was at the beginning."""

    def __init__(self, home: Path, *, since: str | None = None, limit: int | None = None) -> None:
        self._home = home
        with database(home) as connection:
            (self._last,) = connection.execute(_LAST).fetchone()
            self._first = 0 if since is None else _first_at(connection, self._last, since)
            if limit is not None:
                found = connection.execute(_NEWEST, (self._first, limit - 1)).fetchone()
                self._first = self._first if found is None else found[0]
        self.share = 0.0  # of the log that was read

    def __iter__(self) -> Iterator[Decision | Unasked]:
        # Each page is a connection and a short transaction of its own: a bus may be opened, and go on, meanwhile.
        first = self._first
        while first <= self._last:
            with database(self._home) as connection:
                page = connection.execute(_PAGE, (first, self._last, PAGE_ROWS)).fetchall()
                found = [_decision(connection, row) for row in page]
            if not page:
                return
            yield from found
            first = page[-1][0] + 1
            self.share = (first - self._first) / (self._last + 1 - self._first)


def _first_at(connection: sqlite3.Connection, last: int, since: str) -> int:
    """The first seq that is not older than a time; records are in the order of their times."""
    low, high = 0, last + 1
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(_AT, (middle,)).fetchone()
        if row is not None and orjson.loads(row[0])["at"] < since:
            low = middle + 1
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class Opening:
    """What stands apart from a record and opens its commitments, as far as it is kept."""

    salt: bytes | None = None
    body: bytes | None = None
    headers: bytes | None = None
    texts_salt: bytes | None = None
    texts: bytes | None = None

    def document(self) -> dict[str, Json]:
        """As a file: salts in hex, the rest as the text that it is."""
        return {
            "salt": None if self.salt is None else self.salt.hex(),
            "payload": _text(self.body),
            "headers": _text(self.headers),
            "texts_salt": None if self.texts_salt is None else self.texts_salt.hex(),
            "texts": _text(self.texts),
        }

    @classmethod
    def of(cls, document: Mapping[str, Json]) -> Opening:
        """The opening that `document` wrote."""
        salts = [None if document[name] is None else bytes.fromhex(document[name]) for name in ("salt", "texts_salt")]
        texts = [
            None if document[name] is None else document[name].encode() for name in ("payload", "headers", "texts")
        ]
        return cls(salts[0], texts[0], texts[1], salts[1], texts[2])


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode()


def _decision(connection: sqlite3.Connection, row: Sequence[Any]) -> Decision | Unasked:
    _, text, *_ = row
    return decision_of(text, _opening(connection, row))


def _opening(connection: sqlite3.Connection, row: Sequence[Any]) -> Opening:
    _, text, salt, body, headers, texts_salt, texts = row
    if not body:  # a later decision on a message whose payload stands by the first one
        message_id = orjson.loads(text)["message_id"]
        salt, body, headers = connection.execute(OPENING, (message_id,)).fetchone() or (None, None, None)
    return Opening(salt, body, headers, texts_salt, texts)


def decision_of(text: bytes, opening: Opening) -> Decision | Unasked:
    """A decision's record, with what opens it, as a question that can be asked again."""
    record = orjson.loads(text)
    seq, message_id, document = record["seq"], record["message_id"], record["input"]
    if document is None:
        return Unasked(seq, message_id, "before_policy")
    if record["code"] in UNDECIDED or (record["code"] == "policy_malformed" and record["engine"]["name"] == "server"):
        return Unasked(seq, message_id, "undecided")  # a server may answer in a form that is none, and then rightly
    if not opening.body or opening.salt is None:
        return Unasked(seq, message_id, "payload_gone")
    if sha256(opening.salt + opening.body).hexdigest() != record["payload"] or not headers_fit(
        opening.salt, opening.headers, record
    ):
        return Unasked(seq, message_id, "payload_altered")
    if "texts" in record and (not opening.texts or opening.texts_salt is None):
        return Unasked(seq, message_id, "texts_gone")
    if opening.texts and sha256((opening.texts_salt or b"") + opening.texts).hexdigest() != record.get("texts"):
        return Unasked(seq, message_id, "texts_altered")
    texts = orjson.loads(opening.texts) if opening.texts else {}
    headers = orjson.loads(opening.headers or b"{}") if record.get("headers") is not None else {}
    document["message"]["headers"] = headers
    for scope, facts in texts.get("facts", {}).items():
        document["facts"][scope] |= facts
    words = texts.get("reasons")
    return Decision(
        seq,
        message_id,
        record["decision_id"],
        record["sender"],
        record["tenant"],
        record["constitution"],
        record["verdict"],
        record["code"],
        tuple((reason["rule"], reason["code"]) for reason in record["reasons"]),
        None if words is None else tuple((message, remedy) for message, remedy in words),
        str(record["engine"].get("opa", "")),
        document,
        opening.body,
    )


def opened(home: Path, seq: int) -> tuple[Opening, Decision | Unasked]:
    """What opens the decision at this seq, and the decision. Raises: StoreCorrupt."""
    with database(home) as connection:
        row = connection.execute(_ONE, (seq,)).fetchone()
        opening = _opening(connection, row)
    return opening, decision_of(row[1], opening)


def decision_named(home: Path, name: str) -> Decision:
    """The newest decision on a message, or the one that a decision id or seq names.

    Raises: CliError, when there is none, or when it cannot be asked again.
    """
    with database(home) as connection:
        seq = decision_record(connection, name)["seq"]
        found = _decision(connection, connection.execute(_ONE, (seq,)).fetchone())
    if isinstance(found, Unasked):
        remedy = f"`eab audit show {seq}` shows what was recorded"
        raise CliError(f"{name} cannot be asked again: {WHY[found.why]}", remedy=remedy, code=found.why, status=FOUND)
    return found


def constitution_named(home: Path, name: str) -> Path:
    """A folder or bundle, or the constitution of the home with this digest. Raises: CliError."""
    path = named_path(name)
    if path.exists():
        return path
    kept = kept_constitution(home, name)
    if kept is not None:
        return kept
    what = f"the home {home} keeps no constitution" if _is_digest(name) else "there is no constitution at"
    remedy = "name a folder or a bundle.tar.gz, or a digest that `eab policy history` lists"
    raise CliError(f"{what} {name}", remedy=remedy, code="file")


def kept_constitution(home: Path, digest: str) -> Path | None:
    """Where a home keeps the constitution of a digest, if it does."""
    path = home / "constitutions" / f"{digest}.tar.gz"
    return path if _is_digest(digest) and path.is_file() else None


def _is_digest(text: str) -> bool:
    return len(text) == DIGEST_CHARS and set(text) <= set("0123456789abcdef")
