"""What `eab run --input` makes of a line, and how it reads lines from files of any shape."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from enhanced_agent_bus.admission.canonical import NotJson
from enhanced_agent_bus.cli.runs import lines
from enhanced_agent_bus.cli.runs.lines import BadLine, Line, LineReader, parse_line, read_payload
from enhanced_agent_bus.message import Priority


def line(**fields: object) -> bytes:
    """A line from a to b."""
    return json.dumps({"from": "a", "to": "b", **fields}).encode()


def test_a_line_says_who_sends_what_to_whom() -> None:
    """Every field of contract §8 arrives; what is left out has its default."""
    full = parse_line(
        3,
        line(
            type="query", priority=2, id="x", conversation="c", headers={"h": "1"}, expires_in=1.5, payload={"n": 5.0}
        ),
    )
    assert full == Line(
        number=3,
        sender="a",
        to="b",
        type="query",
        priority=Priority.HIGH,
        id="x",
        conversation="c",
        headers={"h": "1"},
        expires_in=1.5,
        payload={"n": 5.0},
    )
    least = parse_line(1, b'{"from": "a", "topic": "t"}')
    assert least == Line(number=1, sender="a", topic="t", type="event", payload={})


def test_empty_lines_say_nothing_and_nulls_are_absent() -> None:
    """A blank line is none, and a null field counts as left out."""
    assert parse_line(1, b"  \r\n") is None
    read = parse_line(1, line(capability=None, id=None))
    assert isinstance(read, Line)
    assert read.id is None


def test_a_bad_line_has_one_number() -> None:
    """The line's own, which the reader knows; a parser's "line 1" would be taken for it."""
    bad = parse_line(17, b'{"from": "a",')
    assert isinstance(bad, BadLine)
    assert "(column 14)" in bad.message
    assert "line" not in bad.message


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "not JSON"),
        (b"[1]", "object"),
        (b'{"from": "a", "to": "b", "payload": {"x": NaN}}', "JSON"),
        (b'{"from": "a", "to": "b", "payload": {"x": 1, "x": 2}}', "twice"),
        (b'\xef\xbb\xbf{"from": "a", "to": "b"}', "byte order mark"),
        (b'{"from": "a", "to": "b", "payload": {"x": "\xff"}}', "byte 44 is 0xff, which is not UTF-8"),
        (b'{"from": "a", "to": "b", "payload": {"x": %s}}' % (b"9" * 5000), "JSON"),
        (b'{"from": "a", "to": "b", "payload": %s}' % (b"[" * 100_000), "deep"),
        (b'{"to": "b"}', "from"),
        (b'{"from": "a"}', "exactly one"),
        (b'{"from": "a", "to": "b", "topic": "t"}', "exactly one"),
        (b'{"from": 1, "to": "b"}', "from must be a string"),
        (b'{"from": "a", "to": "b", "paylaod": {}}', "'payload'"),
        (b'{"from": "a", "to": "b", "priority": 99}', "priority"),
        (b'{"from": "a", "to": "b", "priority": true}', "priority"),
        (b'{"from": "a", "to": "b", "expires_in": "soon"}', "expires_in"),
    ],
)
def test_a_bad_line_says_what_is_wrong(raw: bytes, says: str) -> None:
    """One sentence with the field or the mistake in it, and the line's own number."""
    bad = parse_line(17, raw)
    assert isinstance(bad, BadLine)
    assert bad.number == 17
    assert says in bad.message


def test_a_payload_that_is_no_object_is_for_the_bus_to_refuse() -> None:
    """A readable payload of a wrong shape is handed on: the refusal is recorded."""
    read = parse_line(1, line(payload=[1]))
    assert isinstance(read, Line)
    assert read.payload == [1]


def test_an_unreadable_payload_keeps_its_reason() -> None:
    """What `eab send` cannot parse goes to admission as the reason why."""
    unreadable = read_payload(b'{"x": 1, "x": 2}')
    assert isinstance(unreadable, NotJson)
    assert unreadable.code == "malformed"


@pytest.mark.parametrize(("word", "means"), [("high", Priority.HIGH), ("0", Priority.LOW), (3, Priority.CRITICAL)])
def test_priorities_have_names_and_numbers(word: str | int, means: Priority) -> None:
    """LOW to CRITICAL in any case, or 0 to 3."""
    assert lines.read_priority(word) is means


async def read_all(path: Path) -> list[tuple[int, bytes | None]]:
    """Every line of a file."""
    return [item async for item in LineReader(str(path), loop=asyncio.get_running_loop())]


async def test_lines_are_found_whatever_the_chunks(tmp_path: Path) -> None:
    """Lines longer than a chunk, an empty one, and a last one without its newline all arrive whole."""
    wanted = [b"x" * 200_000, b"", b"y\r", b"z" * 65_536, b"last"]
    path = tmp_path / "lines"
    path.write_bytes(b"\n".join(wanted))
    assert await read_all(path) == list(enumerate(wanted, start=1))


async def test_a_line_that_is_too_long_is_reported_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are not kept; its number is."""
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 100_000)
    path = tmp_path / "lines"
    path.write_bytes(b"a\n" + b"x" * 500_000 + b"\nb\n" + b"y" * 100_001)
    assert await read_all(path) == [(1, b"a"), (2, None), (3, b"b"), (4, None)]


async def test_a_reader_that_waits_for_a_pipe_can_be_stopped(tmp_path: Path) -> None:
    """Stopping ends the iteration although the pipe stays open."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keeper = os.open(fifo, os.O_RDWR)
    try:
        reader = LineReader(str(fifo), loop=asyncio.get_running_loop())
        os.write(keeper, b"one\n")
        seen = []
        started = time.monotonic()
        async for number, raw in reader:
            seen.append((number, raw))
            reader.stop()
        assert seen == [(1, b"one")]
        assert time.monotonic() - started < 10
    finally:
        os.close(keeper)


async def test_a_file_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    """Before anything is sent; a folder likewise."""
    with pytest.raises(FileNotFoundError):
        LineReader(str(tmp_path / "none"), loop=asyncio.get_running_loop())
    with pytest.raises(IsADirectoryError):
        LineReader(str(tmp_path), loop=asyncio.get_running_loop())
