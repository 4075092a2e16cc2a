"""Strict JSON in and canonical bytes out: what is admitted once and then decided, recorded and delivered.

I-JSON (RFC 7493) is what may come in; RFC 8785 is the form it is frozen in, except that a float with an integral
value keeps its `.0`, so that a policy sees the number as it was sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Never

import orjson

from enhanced_agent_bus.verdict import Refusal

INTEGER_MAX: Final = 2**53 - 1
HEADER_BYTES_MAX: Final = 8192
_SMALLEST_PLAIN_FLOAT: Final = 1e-4  # below, orjson writes an exponent where RFC 8785 does not
_SMALLEST_DECIMAL: Final = 1e-6  # below, RFC 8785 writes an exponent too
_INTEGER_CHARS_MAX: Final = 17  # of ±(2^53-1), with the sign
_FREEZE: Final = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
)
#: Lone surrogates, and the 66 code points that are no characters (RFC 7493 §2.1).
_NOT_TEXT: Final = re.compile(
    "[\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane * 0x10000 + low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)


class NotJson(ValueError):
    """A text is not strict JSON; `code` is malformed, too_deep or too_large."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def freeze(payload: object, *, bytes_max: int, depth_max: int) -> bytes | Refusal:
    """The canonical bytes of a dict of exactly dict, list, str, int, float, bool and None; or why there are none.

    Time is bounded by `bytes_max`, whatever the object: a node or a character over it ends the walk.
    """
    if type(payload) is not dict:
        if isinstance(payload, NotJson):  # a text that could not be parsed: what is wrong with it is known already
            return Refusal(payload.code, str(payload), _REMEDY[payload.code])
        return Refusal("malformed", f"the payload is {_name(payload)}, not a dict", "send a dict or a pydantic model")
    try:
        plain = _walk(payload, bytes_max, depth_max)
        body = orjson.dumps(payload, option=_FREEZE) if plain else canonical(payload)
    except NotJson as error:
        return Refusal(error.code, str(error), _REMEDY[error.code])
    except TypeError as error:
        return Refusal("malformed", f"the payload is not JSON: {error}", _REMEDY["malformed"])
    if len(body) > bytes_max:
        return Refusal("too_large", f"the payload has {len(body)} bytes, {bytes_max} are allowed", _REMEDY["too_large"])
    return body


_REMEDY: Final = {
    "malformed": "send JSON values only: dict, list, str, int, float, bool, None",
    "too_large": "send less, or a reference to where it is kept",
    "too_deep": "flatten the payload",
}


def freeze_headers(headers: object) -> tuple[dict[str, str], bytes] | Refusal:
    """A copy of the headers and their canonical bytes; at most 8 KB in all."""
    if not isinstance(headers, Mapping) or not all(type(k) is str and type(v) is str for k, v in headers.items()):
        return Refusal("malformed", "headers must be a mapping of str to str", "make every header a string")
    copy = dict(headers)
    if sum(len(key) + len(value) for key, value in copy.items()) > HEADER_BYTES_MAX:
        return Refusal("too_large", f"the headers have over {HEADER_BYTES_MAX} bytes", "send less in headers")
    frozen = freeze(copy, bytes_max=4 * HEADER_BYTES_MAX, depth_max=1)
    if isinstance(frozen, Refusal):
        return frozen
    if sum(len(key.encode()) + len(value.encode()) for key, value in copy.items()) > HEADER_BYTES_MAX:
        return Refusal("too_large", f"the headers have over {HEADER_BYTES_MAX} bytes", "send less in headers")
    return copy, frozen


def _walk(root: dict[Any, Any], bytes_max: int, depth_max: int) -> bool:
    """Checks every node; True when orjson's sorted dump is the canonical form. Raises: NotJson."""
    plain, budget = True, bytes_max
    stack: list[tuple[Any, int]] = [(root, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > depth_max:
            raise NotJson("too_deep", f"the payload is nested more than {depth_max} deep")
        budget -= len(node) + 1  # brackets and commas
        if type(node) is dict:
            budget -= 3 * len(node)  # colons and quotes
            for key in node:
                if type(key) is not str:
                    raise NotJson("malformed", f"a key is {_name(key)}, not a string")
                budget -= len(key)
                if not key.isascii():
                    plain = False
                    _check_text(key, budget)
            node = node.values()
        if budget < 0:
            raise NotJson("too_large", f"the payload has more than {bytes_max} bytes")
        for value in node:
            kind = type(value)
            if kind is str:
                budget -= len(value) + 1
                if not value.isascii():
                    _check_text(value, budget)
            elif kind is int:
                if not -INTEGER_MAX <= value <= INTEGER_MAX:
                    raise NotJson("malformed", "an integer is beyond ±(2^53-1)")
            elif kind is dict or kind is list:
                stack.append((value, depth + 1))
            elif kind is float:
                plain = _check_float(value) and plain
            elif kind is not bool and value is not None:
                raise NotJson("malformed", f"a value is {_name(value)}, which JSON does not have")
        if budget < 0:
            raise NotJson("too_large", f"the payload has more than {bytes_max} bytes")
    return plain


def _check_text(text: str, budget: int) -> None:
    if budget >= 0 and _NOT_TEXT.search(text):
        raise NotJson("malformed", "a string has a lone surrogate or a code point that is no character")


def _check_float(value: float) -> bool:
    if value - value != 0.0:
        raise NotJson("malformed", "a number is not finite")
    size = abs(value)
    if size > INTEGER_MAX:
        raise NotJson("malformed", "a number with an integral value is beyond ±(2^53-1)")
    return size >= _SMALLEST_PLAIN_FLOAT or (value == 0.0 and str(value) == "0.0")


def canonical(value: Any) -> bytes:
    """RFC 8785 with `.0` kept, for values that `freeze` has walked. Slower than orjson, and right beyond ASCII keys."""
    return _text(value).encode()


def _text(value: Any) -> str:
    if isinstance(value, dict):
        # RFC 8785 §3.2.3: sorted by UTF-16 code units
        pairs = sorted(value.items(), key=lambda pair: pair[0].encode("utf-16-be"))
        return "{" + ",".join(f"{_string(key)}:{_text(item)}" for key, item in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return _float(value)
    return orjson.dumps(value).decode()


def _string(value: str) -> str:
    return orjson.dumps(value).decode()


def _float(value: float) -> str:
    """ECMAScript's Number::toString for the sizes that `freeze` lets in, with `.0` where the value is integral."""
    if value.is_integer():
        return f"{int(value)}.0"
    if abs(value) >= _SMALLEST_DECIMAL:
        return format(Decimal(repr(value)), "f")
    digits, _, exponent = repr(value).partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def loads_strict(text: bytes | str, *, bytes_max: int, depth_max: int = 64) -> Any:
    """Parses one JSON document as RFC 7493 wants it. Raises: NotJson, which says what is wrong.

    Not `json.loads`, which takes NaN and duplicate keys; not orjson alone, which takes the last of duplicates.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > bytes_max:
        raise NotJson("too_large", f"the document has {len(raw)} bytes, {bytes_max} are allowed")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise NotJson("malformed", "the document begins with a byte order mark")
    try:
        orjson.loads(raw)  # UTF-8, grammar, lone surrogates, NaN; over 1024 deep it stops
        _check_depth(raw, depth_max)
        value = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)
    except orjson.JSONDecodeError as error:
        if "depth" in error.msg.lower() or "recursion" in error.msg.lower():
            raise NotJson("too_deep", f"nested more than {depth_max} deep") from None
        raise NotJson("malformed", f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise NotJson("too_deep", f"nested more than {depth_max} deep") from None
    return value


#: A string, or a bracket. It never looks back, and takes a string that has no end too: so its time is linear.
_MARKS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _check_depth(raw: bytes, depth_max: int) -> None:
    """Depth from the brackets outside strings, before any parser recurses."""
    if raw.count(b"[") + raw.count(b"{") <= depth_max:
        return
    depth = 0
    for token in _MARKS.finditer(raw):
        mark = token.group()
        if mark in (b"[", b"{"):
            depth += 1
            if depth > depth_max:
                raise NotJson("too_deep", f"nested more than {depth_max} deep")
        elif mark in (b"]", b"}"):
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotJson("malformed", f"the key {json.dumps(twice)} stands twice in one object")
    return value


def _no_constant(name: str) -> Never:
    raise NotJson("malformed", f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > _INTEGER_CHARS_MAX or not -INTEGER_MAX <= int(digits) <= INTEGER_MAX:
        raise NotJson("malformed", "an integer is beyond ±(2^53-1)")
    return int(digits)


def _name(value: object) -> str:
    return f"of type {type(value).__name__}"
