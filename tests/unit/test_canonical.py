"""Strict JSON in, canonical bytes out: against RFC 8785 as another package writes it, and against hostile objects."""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import orjson
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.admission.canonical import (
    HEADER_BYTES_MAX,
    INTEGER_MAX,
    NotJson,
    canonical,
    freeze,
    freeze_headers,
    loads_strict,
)
from enhanced_agent_bus.verdict import Refusal

BYTES_MAX = 262_144
SECONDS_MAX = 0.5  # of this thread's own time: the machine may be busy with others
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]).filter(
        lambda c: ord(c) & 0xFFFE != 0xFFFE and not 0xFDD0 <= ord(c) <= 0xFDEF
    ),
    max_size=8,
)
KEYS = st.text(alphabet="abcXYZ_09", max_size=4) | TEXT
WHOLE = st.integers(-INTEGER_MAX, INTEGER_MAX)
FRACTIONS = st.floats(allow_nan=False, allow_infinity=False, min_value=-INTEGER_MAX, max_value=INTEGER_MAX)
TINY = st.floats(min_value=-1e-3, max_value=1e-3, allow_nan=False)


def documents(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Payloads made of these."""
    values = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
    )
    return st.dictionaries(KEYS, values, max_size=5)


SCALARS = st.none() | st.booleans() | WHOLE | TEXT | FRACTIONS | TINY
NOT_INTEGRAL = st.none() | st.booleans() | WHOLE | TEXT | (FRACTIONS | TINY).filter(lambda x: not x.is_integer())


def frozen(payload: object, bytes_max: int = BYTES_MAX, depth_max: int = 64) -> bytes:
    """The bytes of a payload that passes."""
    body = freeze(payload, bytes_max=bytes_max, depth_max=depth_max)
    assert isinstance(body, bytes), body
    return body


def code(payload: object, bytes_max: int = BYTES_MAX, depth_max: int = 64) -> str:
    """The refusal of a payload, within its time."""
    start = time.thread_time()
    refusal = freeze(payload, bytes_max=bytes_max, depth_max=depth_max)
    taken = time.thread_time() - start
    assert isinstance(refusal, Refusal), refusal
    assert refusal.message
    assert refusal.remedy
    assert taken < SECONDS_MAX, f"{taken:.3f} s"
    return refusal.code


@given(documents(NOT_INTEGRAL))
def test_the_form_is_that_of_rfc_8785(document: dict[str, Any]) -> None:
    """Without integral floats the bytes are those of RFC 8785, by either road."""
    assert frozen(document) == rfc8785.dumps(document)
    assert canonical(document) == rfc8785.dumps(document)


@given(documents(SCALARS))
def test_both_roads_give_the_same_bytes_and_the_same_values(document: dict[str, Any]) -> None:
    """The fast road and the slow one agree, and what is read back has the same values of the same types."""
    body = frozen(document)
    assert body == canonical(document)
    back = orjson.loads(body)
    assert back == document
    assert json.dumps(back, sort_keys=True).replace("-0.0", "0.0") == json.dumps(document, sort_keys=True).replace(
        "-0.0", "0.0"
    )
    assert frozen(back) == body


@given(documents(SCALARS))
def test_the_order_of_keys_is_no_difference(document: dict[str, Any]) -> None:
    """Two dicts with the same content freeze to the same bytes."""
    assert frozen(dict(reversed(document.items()))) == frozen(document)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "5.0"),
        (-0.0, "0.0"),
        (0.0, "0.0"),
        (1e15, "1000000000000000.0"),
        (float(INTEGER_MAX), "9007199254740991.0"),
        (5, "5"),
        (0.1, "0.1"),
        (1.5e-6, "0.0000015"),
        (1e-7, "1e-7"),
        (5e-324, "5e-324"),
        (True, "true"),
        (None, "null"),
    ],
)
def test_numbers_as_they_were_sent(value: object, text: str) -> None:
    """A float with an integral value keeps its .0; others are as ECMAScript writes them."""
    assert frozen({"n": value}) == b'{"n":%s}' % text.encode()


@pytest.mark.parametrize("text", ["\t", "\x00", "é", "日本", "😀", "\u2028", "\x7f", '"\\'])
def test_ordinary_text_is_fine(text: str) -> None:
    """Tabs, U+0000 and any Unicode text pass, as keys too, and come back as they were."""
    assert orjson.loads(frozen({text: text})) == {text: text}


class Number(IntEnum):
    """An int that is not exactly one."""

    ONE = 1


@pytest.mark.parametrize(
    "value",
    [
        INTEGER_MAX + 1,
        -INTEGER_MAX - 1,
        10**4999,
        math.nan,
        math.inf,
        -math.inf,
        2.0**53,
        1e300,
        "\ud800",
        "a\udfff",
        "\ufffe",
        "\uffff",
        "\ufdd0",
        "\U0001ffff",
        b"bytes",
        (1,),
        {1},
        object(),
        Number.ONE,
        1j,
        OrderedDict(a=1),
        {1: 1},
        {None: 1},
        {b"a": 1},
        {"\ud800": 1},
        {"\uffff": 1},
        type("Text", (str,), {})("x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_does_not_have_is_malformed(value: object) -> None:
    """At the top of a payload, in a list and in a dict alike."""
    for payload in ({"a": value}, {"a": [1, [value]]}, {"a": {"b": value}}):
        assert code(payload) == "malformed"


@pytest.mark.parametrize("payload", [[], "text", 1, b"{}", OrderedDict(), {1: 2}, type("D", (dict,), {})()], ids=ascii)
def test_only_a_dict_is_a_payload(payload: object) -> None:
    """Exactly a dict, with strings for keys."""
    assert code(payload) == "malformed"


def nested(depth: int) -> dict[str, Any]:
    """Dicts in dicts, so many in all."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def test_depth_counts_from_one() -> None:
    """`{}` is 1; 64 pass and 65 are too deep, in dicts and lists."""
    frozen(nested(64))
    assert code(nested(65)) == "too_deep"
    frozen({"a": [[]]}, depth_max=3)
    assert code({"a": [[]]}, depth_max=2) == "too_deep"


def test_size_counts_in_bytes() -> None:
    """Exactly `bytes_max` canonical bytes pass; one more is too large, in whatever it is."""
    for unit in ("a", "é", "😀", '"'):
        size = len(frozen({"a": unit * 10}))
        frozen({"a": unit * 10}, bytes_max=size)
        assert code({"a": unit * 10}, bytes_max=size - 1) == "too_large"


def cyclic() -> dict[str, Any]:
    """A dict that holds itself four times."""
    value: dict[str, Any] = {}
    value["a"] = value["b"] = [value, value]
    return value


def shared(levels: int) -> dict[str, Any]:
    """Few lists that are 2^levels when they are written out."""
    value: Any = ["x"]
    for _ in range(levels):
        value = [value] * 2
    return {"a": value}


HOSTILE: list[tuple[str, Callable[[], Any], set[str]]] = [
    ("100,000 deep", lambda: nested(100_000), {"too_deep"}),
    ("a cycle", cyclic, {"too_deep", "too_large"}),
    ("2^50 shared lists", lambda: shared(50), {"too_large"}),
    ("100 MB of text", lambda: {"a": "x" * 100_000_000}, {"too_large"}),
    ("100 MB of é", lambda: {"a": "é" * 50_000_000}, {"too_large"}),
    ("a long key", lambda: {"x" * 100_000_000: 1}, {"too_large"}),
    ("a million numbers", lambda: {"a": [1] * 1_000_000}, {"too_large"}),
    ("one text a million times", lambda: {"a": ["é" * 200_000] * 1_000_000}, {"too_large"}),
    ("many empty lists", lambda: {"a": [[]] * 1_000_000}, {"too_large"}),
    ("many keys", lambda: {str(number): None for number in range(300_000)}, {"too_large"}),
]


@pytest.mark.parametrize(
    ("make", "codes"), [(make, codes) for _, make, codes in HOSTILE], ids=[name for name, *_ in HOSTILE]
)
def test_hostile_objects_are_refused_at_once(make: Callable[[], Any], codes: set[str]) -> None:
    """Deep, cyclic, shared or huge: refused in under 50 ms, with nothing copied."""
    payload = make()
    assert code(payload) in codes


# --- headers ---------------------------------------------------------------------------------------------------------


def test_headers_are_copied_strings() -> None:
    """Headers come back as a copy of their own, with canonical bytes."""
    given_headers = {"b": "2", "a": "é"}
    result = freeze_headers(given_headers)
    assert not isinstance(result, Refusal)
    copy, body = result
    given_headers["c"] = "3"
    assert copy == {"b": "2", "a": "é"}
    assert body == rfc8785.dumps(copy)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"a": 1}, "malformed"),
        ({1: "a"}, "malformed"),
        ([("a", "b")], "malformed"),
        ("a", "malformed"),
        (7, "malformed"),
        ({"a": "\ud800"}, "malformed"),
        ({"a": "\uffff"}, "malformed"),
        ({"a": None}, "malformed"),
        ({"a": "x" * HEADER_BYTES_MAX}, "too_large"),
        ({"a": "é" * (HEADER_BYTES_MAX // 2)}, "too_large"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_other_headers_are_refused(headers: object, expected: str) -> None:
    """Str to str, 8 KB in all, counted in bytes."""
    result = freeze_headers(headers)
    assert isinstance(result, Refusal)
    assert result.code == expected


def test_headers_of_exactly_eight_kilobytes_pass() -> None:
    """The bound itself is inside."""
    assert not isinstance(freeze_headers({"a": "x" * (HEADER_BYTES_MAX - 1)}), Refusal)


# --- strict parsing --------------------------------------------------------------------------------------------------


def rejected(text: bytes | str, bytes_max: int = 1 << 20) -> str:
    """The code of a text that is not taken, within its time."""
    start = time.thread_time()
    with pytest.raises(NotJson) as caught:
        loads_strict(text, bytes_max=bytes_max)
    assert time.thread_time() - start < SECONDS_MAX
    return caught.value.code


@given(documents(SCALARS))
def test_what_was_frozen_is_read_strictly(document: dict[str, Any]) -> None:
    """Canonical bytes pass strict parsing with the same values."""
    assert loads_strict(frozen(document), bytes_max=1 << 20) == document


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b"nul",
        b'{"a":1,"a":1}',
        b'{"b":{"a":1,"\\u0061":2}}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":"\x00"}',
        b"\xef\xbb\xbf{}",
        b'{"a":9007199254740992}',
        b'{"a":-9007199254740992}',
        b'{"a":' + b"9" * 5000 + b"}",
        b"{} {}",
        b'{"a":01}',
        "\ufeff{}",
        '{"a":"\ud800"}',
        b'{"a":1}\x00',
        b"// no\n{}",
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_what_is_no_i_json_is_malformed(text: bytes | str) -> None:
    """RFC 7493: duplicate keys however they are spelt, NaN, overflow, surrogates, marks, garbage."""
    assert rejected(text) == "malformed"


def test_deep_documents_are_found_before_they_are_parsed() -> None:
    """64 levels pass, 65 do not; brackets in strings are text."""
    assert rejected(b"[" * 65 + b"]" * 65) == "too_deep"
    assert rejected(b"[" * 100_000) == "too_deep"
    assert rejected(b'{"a":' * 100_000) == "too_deep"
    loads_strict(b"[" * 64 + b"]" * 64, bytes_max=1000)
    assert loads_strict(b'"' + b"[" * 1000 + b'\\"]"', bytes_max=10_000) == "[" * 1000 + '"]'
    loads_strict(b"[" + b"[]," * 999 + b"[]]", bytes_max=10_000)


def test_no_document_takes_long() -> None:
    """A quarter megabyte of the worst text is done within 50 ms: strings without an end, escapes, quotes."""
    many = b"[],[]," * 70
    for filler in (b'\\"', b'"', b"\\\\", b"\\", b"a", b'"a', b"[", b"\\u0061"):
        rejected(b'{"a":[' + many + b'"' + filler * (240_000 // len(filler)), bytes_max=BYTES_MAX)
    assert rejected(b" " * (BYTES_MAX + 1), bytes_max=BYTES_MAX) == "too_large"
