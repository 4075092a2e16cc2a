"""The words by which records are found, `agent:desk verdict:refuse since:24h`: parsing and matching.

A query is terms, and a record is found when every one of them matches:

    field:value     a field is exactly that; of a list, any element; `error.type:ValueError` goes into a field
    field:desk*     begins so; a star may stand anywhere, and alone means that the field is there
    field:>=10      a number compared: <, <=, >, >=
    since:24h       not before; until: before. A duration back from now (s, m, h, d, w), a time or a date
    word            stands anywhere in the record
    -term           the term does not match
    "two words"     in quotes nothing has a meaning of its own: field:"a*b", "desk:1"

Not here: where records come from, and who shows them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from operator import ge, gt, le, lt
from typing import Any, Final

import orjson

#: Names that stand for a field of another name, or for several.
ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "agent": ("sender", "recipient", "agent", "approver"),
    "rule": ("reasons.rule", "rules"),
    "code": ("code", "reasons.code"),
    "constitution": ("constitution", "digest"),  # a record of an activation calls it its digest
    "message": ("message_id",),
    "id": ("message_id",),
    "decision": ("decision_id",),
    "error": ("error.type",),
    "engine": ("engine.name",),
}
#: The fields of all kinds of records.
FIELDS: Final = frozenset(
    (
        *("v", "seq", "kind", "at", "bus", "node", "message_id", "sender_n", "digest", "conversation", "cause"),
        *("sender", "tenant", "recipient", "recipient_tenant", "topic", "type", "priority", "hops", "attempt"),
        *("created_us", "expires_us", "verdict", "code", "reasons", "decision_id", "constitution", "revision"),
        *("engine", "cached_from", "why", "previous", "input", "payload", "headers", "eval_us", "texts"),
        *("state", "duration_us", "error"),
        *("event", "agent", "roles", "capabilities", "topics", "has_handler", "where"),
        *("reason", "details", "path", "percent", "max_refusals", "max_errors", "over", "decisions", "newest"),
        *("refusals", "errors", "seen", "compared", "dropped", "same", "flips"),
        *("act", "approver", "rules", "scope", "owner", "key", "value", "command", "what", "basis", "by"),
        *("size", "root", "note", "mono_us", "boot", "security_state", "delivered", "kept", "dead_lettered"),
        *("counts", "messages", "vkey", "origin", "signed", "aside", "witness"),
        *("ticket", "taken_over_from", "handed_over", "elsewhere", "gates"),
    )
)
DAY: Final = "day"  # of `at`
TIMES: Final = ("since", "until")
#: Fields that have fields.
_OBJECTS: Final = frozenset(
    ("input", "ticket", "gates", "by", "engine", "error", "reasons", "details", "flips", "errors")
)
_NAMES: Final = sorted({*FIELDS, *ALIASES, *TIMES, DAY})

_TOKEN: Final = re.compile(r'\s*(-?)(?:([A-Za-z_][A-Za-z0-9_.]*):)?(?:"((?:[^"\\]|\\.)*)"(?=\s|$)|(\S*))', re.DOTALL)
_DURATION: Final = re.compile(r"(\d{1,9})(s|m|h|d|w)")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_COMPARED: Final = re.compile(r"(<=|>=|<|>)(.*)", re.DOTALL)
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")
#: What may stand in a record without quotes.
_BARE: Final = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?|true|false")

Record = Mapping[str, Any]


class BadQuery(ValueError):
    """What is wrong with a query, and what to write instead."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Term:
    """One condition. Without a field it is a word anywhere in the record."""

    field: str | None
    value: str
    negated: bool
    quoted: bool
    compare: str = ""  # <, <=, >, >=; then `value` is a number

    @property
    def globbed(self) -> bool:
        return self.field is not None and not self.quoted and not self.compare and "*" in self.value

    def __str__(self) -> str:
        value = self.value
        if self.quoted or not value or re.search(r'[\s"]', value):
            value = '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
        name = "" if self.field is None else f"{self.field}:{self.compare}"
        return f"{'-' if self.negated else ''}{name}{value}"

    def needle(self) -> bytes | None:
        """Bytes that stand in every record with the field so; None, if there are none."""
        if self.compare:
            return None
        if self.globbed or self.field == DAY:
            return max(map(_escaped, self.value.split("*")), key=len) or None
        text = _escaped(self.value)
        return text if self.field is None or _BARE.fullmatch(self.value) else b'"%b"' % text

    def test(self) -> Callable[[Record], bool]:
        """Whether a record has the field so; the negation is left to who asks."""
        paths = [path.split(".") for path in ALIASES.get(self.field or "", (self.field or "",))]
        if self.field == DAY:
            paths = [["at"]]
        fits = self._fits()
        return lambda record: any(fits(leaf) for path in paths for leaf in _leaves(record, path))

    def _fits(self) -> Callable[[Any], bool]:
        if self.compare:
            compare, number = _COMPARE[self.compare], float(self.value)
            return lambda leaf: type(leaf) in (int, float) and compare(leaf, number)
        pattern = ".*".join(map(re.escape, [self.value] if self.quoted else self.value.split("*")))
        if self.field == DAY:
            pattern += r"T.*"
        fullmatch = re.compile(pattern, re.DOTALL).fullmatch
        return lambda leaf: fullmatch(leaf if isinstance(leaf, str) else json.dumps(leaf)) is not None


def _escaped(text: str) -> bytes:
    """As it stands inside a string of a record."""
    inside = orjson.dumps(text.encode("utf-8", "backslashreplace").decode())[1:-1].decode()
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], inside).encode("ascii")


def _leaves(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """What stands at a path; a list stands for its elements, and null for nothing."""
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one, path)
    elif path:
        if isinstance(value, Mapping) and path[0] in value:
            yield from _leaves(value[path[0]], path[1:])
    elif value is not None and not isinstance(value, Mapping):
        yield value


class Query:
    """What is looked for; times are as records write them."""

    def __init__(self, terms: Sequence[Term], since: str | None = None, until: str | None = None) -> None:
        """Raises: BadQuery, when no time is since the one and before the other."""
        if since is not None and until is not None and since >= until:
            raise BadQuery(f"no record is both since {since} and before {until}", "give since an earlier time")
        self.terms = tuple(terms)
        self.since = since
        self.until = until
        wanted = [term for term in terms if not term.negated]
        #: Bytes of which each stands in every record that is found, the longest first.
        self.needles = sorted({needle for term in wanted if (needle := term.needle())}, key=len, reverse=True)
        self._words = [(_escaped(term.value), term.negated) for term in terms if term.field is None]
        self._tests = [(term.test(), term.negated) for term in terms if term.field is not None]

    def __str__(self) -> str:
        """The same question, with times that do not depend on when it is asked."""
        times = [f"{name}:{at}" for name, at in zip(TIMES, (self.since, self.until), strict=True) if at is not None]
        return " ".join([*map(str, self.terms), *times])

    def exactly(self, field: str) -> str | None:
        """The one value that a field of every record that is found has, where the query says so."""
        for term in self.terms:
            if term.field == field and not (term.negated or term.compare or term.globbed):
                return term.value
        return None

    def read(self, body: bytes) -> dict[str, Any] | None:
        """The record with these stored bytes; None when it is not looked for."""
        if any((word in body) is negated for word, negated in self._words):
            return None
        record: dict[str, Any] = orjson.loads(body)
        return record if self.finds(record, body) else None

    def finds(self, record: Record, body: bytes) -> bool:
        """Whether a record is looked for, given as it was read from these stored bytes."""
        at = record.get("at", "")
        if (self.since is not None and at < self.since) or (self.until is not None and at >= self.until):
            return False
        if any((word in body) is negated for word, negated in self._words):
            return False
        return not any(test(record) is negated for test, negated in self._tests)


def parse(words: Sequence[str], *, now: datetime | None = None) -> Query:
    """The query that these words make, together or each by itself. Raises: BadQuery."""
    text = " ".join(words)
    now = now if now is not None else datetime.now(UTC)
    terms: list[Term] = []
    since = until = None
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        assert match is not None  # it takes anything
        at = match.end()
        term = _term(*match.groups())
        if term.field == "since":
            since = max(since or "", time_of(term.value, now))
        elif term.field == "until":
            until = min(until or "~", time_of(term.value, now))
        else:
            terms.append(term)
    return Query(terms, since, until)


def _term(minus: str, field: str | None, quoted: str | None, bare: str | None) -> Term:
    value = re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) if quoted is not None else bare or ""
    if quoted is None and value.startswith('"'):
        raise BadQuery("a quote is opened and not closed", 'write field:"two words", and \\" for a quote inside')
    if field is None:
        if not value:
            raise BadQuery("there is nothing to look for", "a minus or a pair of quotes says nothing by itself")
        return Term(None, value, bool(minus), quoted is not None)
    if not _is_known(field):
        near = difflib.get_close_matches(field, _NAMES, n=1, cutoff=0.0)[0]
        whole = json.dumps(f"{field}:{value}", ensure_ascii=False)
        raise BadQuery(
            f"records have no field {field!r}; the nearest is {near!r}",
            f"write {near}:{value}, or {whole} with its quotes for these words anywhere in a record",
        )
    if not value:
        raise BadQuery(f"{field}: has no value", f"write {field}:VALUE, or {field}:* for any")
    if field in TIMES and minus:
        other = TIMES[1 - TIMES.index(field)]
        raise BadQuery(f"{field} cannot be negated", f"write {other}:{value}")
    compared = _COMPARED.fullmatch(value) if quoted is None and field not in TIMES else None
    if compared is None:
        return Term(field, value, bool(minus), quoted is not None)
    try:
        usable = isfinite(float(compared[2]))
    except ValueError:
        usable = False
    if not usable:
        raise BadQuery(f"{compared[2]!r} is no number to compare {field} with", f"write {field}:>=10")
    return Term(field, compared[2], bool(minus), quoted=False, compare=compared[1])


def _is_known(field: str) -> bool:
    first, dot, _ = field.partition(".")
    return first in _OBJECTS if dot else first in _NAMES


def time_of(text: str, now: datetime) -> str:
    """A time or a date, or one so far back from now, as records write it. Raises: BadQuery."""
    back = _DURATION.fullmatch(text)
    try:
        ago = None if back is None else timedelta(**{_UNITS[back[2]]: int(back[1])})
        time = datetime.fromisoformat(text) if ago is None else now - ago
        time = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        remedy = "write it as 2026-11-21T09:00:00Z, as 2026-11-21, or as 24h for that long ago (s, m, h, d, w)"
        raise BadQuery(f"{text!r} is no time", remedy) from None
