"""The fields of signed texts: what each may be, and texts read by a table of them.

Not here: what fields mean together, which each kind of letter checks for itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from enhanced_agent_bus.admission.canonical import INTEGER_MAX, NotJson, loads_strict
from enhanced_agent_bus.letters.dsse import BadLetter
from enhanced_agent_bus.message import AGENT_ID, TYPES, Priority, shown

VERSION: Final = 1
SALT_CHARS: Final = 64
ERROR_CHARS_MAX: Final = 256
#: A caller's id is at most 128 characters, and stands behind its sender's: 257 in all.
_ANY_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,256}", re.ASCII)
_OWN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)
_DECISION_ID: Final = re.compile(_ANY_ID.pattern + "#[0-9a-f]{1,16}", re.ASCII)
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_ORIGIN: Final = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NONCE: Final = re.compile(r"(?:[0-9a-f]{2}){16,64}", re.ASCII)
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
ENDS: Final = frozenset({"delivered", "refused", "expired", "dead_lettered", "discarded"})


class Field(NamedTuple):
    """What a field may be, and the words for it."""

    good: Callable[[Any], bool]
    words: str


def pattern(compiled: re.Pattern[str], words: str) -> Field:
    """A string of this form."""
    fullmatch = compiled.fullmatch
    return Field(lambda value: type(value) is str and fullmatch(value) is not None, words)


def count(largest: int = INTEGER_MAX) -> Field:
    """A whole number from 0."""
    return Field(lambda value: type(value) is int and 0 <= value <= largest, f"a whole number from 0 to {largest}")


def one_of(values: frozenset[str], words: str) -> Field:
    """A string among these."""
    return Field(lambda value: type(value) is str and value in values, words)


def or_null(field: Field) -> Field:
    """The same, or null."""
    good = field.good
    return Field(lambda value: value is None or good(value), f"{field.words}, or null")


AGENT: Final = pattern(AGENT_ID, "a name ([a-z0-9][a-z0-9._-], at most 128)")
ID: Final = pattern(_ANY_ID, "an id")
DECISION: Final = pattern(_DECISION_ID, "a decision id")
ORIGIN: Final = pattern(_ORIGIN, "an origin (<bus>/<node>)")
HASH: Final = pattern(_HASH, "64 hex digits")
NONCE: Final = pattern(_NONCE, "a nonce (16 to 64 bytes in hex)")
CODE: Final = or_null(pattern(_CODE, "a code"))
TYPE: Final = one_of(TYPES, "a message type")
END: Final = one_of(ENDS, "an end state")
COUNT: Final = count()
PRIORITY: Final = count(max(Priority))
TEXT: Final = Field(lambda value: type(value) is str, "a string")
ERROR: Final = or_null(
    Field(lambda value: type(value) is str and len(value) <= ERROR_CHARS_MAX, f"at most {ERROR_CHARS_MAX} characters")
)
OPTION: Final = Field(lambda value: type(value) is bool, "true or false")
OBJECT: Final = Field(lambda value: type(value) is dict, "an object")
THIS_VERSION: Final = Field(lambda value: type(value) is int and value == VERSION, f"{VERSION}")


NAME: Final = pattern(re.compile(_NAME, re.ASCII), "a name")
INTEGER: Final = Field(lambda value: type(value) is int, "a whole number")
NUMBER: Final = Field(lambda value: type(value) in (int, float) and value - value == 0, "a number")
STRINGS: Final = Field(
    lambda value: type(value) is dict and all(type(one) is str for one in value.values()), "an object of strings"
)


def names(field: Field, most: int) -> Field:
    """A list of at most so many."""
    return Field(
        lambda value: type(value) is list and len(value) <= most and all(map(field.good, value)),
        f"a list of at most {most}, each {field.words}",
    )


def write(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON of what has ASCII keys and no floats."""
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def parse(payload: bytes, what: str) -> Any:
    """Reads canonical JSON: since no other spelling is taken, no key can stand twice. Raises: BadLetter."""
    try:
        document = orjson.loads(payload)
        same = write(document) == payload
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        raise BadLetter("malformed", f"the {what} is not JSON") from None
    if not same:
        raise BadLetter("malformed", f"the {what} is not canonical JSON")
    return document


def parse_any(payload: bytes, what: str, depth: int = 3) -> Any:
    """Reads strict JSON in whatever spelling: what others write. Raises: BadLetter."""
    try:
        return loads_strict(payload, bytes_max=len(payload), depth_max=depth)
    except NotJson as error:
        raise BadLetter(error.code, f"the {what} is not JSON as it has to be: {error}") from None


def check(
    document: Any, fields: Mapping[str, Field], what: str, others: Mapping[str, Field] | None = None
) -> dict[str, Any]:
    """Has exactly these fields, and any of the others, and each is what it may be. Raises: BadLetter."""
    if type(document) is not dict:
        raise BadLetter("malformed", f"the {what} is not an object")
    others = others or {}
    if document.keys() != fields.keys():
        missing = sorted(fields.keys() - document.keys())
        if missing:
            raise BadLetter("malformed", f"the {what} has no field {missing[0]}")
        unknown = sorted(document.keys() - fields.keys() - others.keys())
        if unknown:
            raise BadLetter("malformed", f"the {what} has a field {shown(unknown[0])} that there is not")
    for name, (good, words) in fields.items():
        if not good(document[name]):
            raise BadLetter("malformed", f"the {what}'s {name} is not {words}")
    for name in others.keys() & document.keys():
        if not others[name].good(document[name]):
            raise BadLetter("malformed", f"the {what}'s {name} is not {others[name].words}")
    return document


def is_id_of(message_id: str, sender: str) -> bool:
    """Whether a message of this sender can have this id: one behind its name, or one that a bus makes (UUIDv7)."""
    own = message_id.removeprefix(f"{sender}/")
    return (_OWN_ID if own != message_id else _UUID).fullmatch(own) is not None
