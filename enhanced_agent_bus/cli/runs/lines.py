"""The lines that `eab run --input` takes: read as strict JSON, checked, and turned into what is sent.

A line that cannot be read is a `BadLine` with its number; the lines after it go on. Whether what is sent may travel
is the bus's answer, not this module's.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from enhanced_agent_bus.admission.canonical import NotJson, loads_strict
from enhanced_agent_bus.message import Priority

if TYPE_CHECKING:
    import asyncio

LINE_BYTES_MAX: Final = 16 * 1024 * 1024  # a longer line is a bad line; the next one is found after it
DEPTH_MAX: Final = 512  # of a line; the bus refuses payloads deeper than its own limit, and records that
_CHUNK_BYTES: Final = 64 * 1024
_CHUNKS_AHEAD: Final = 4  # how far reading runs ahead of sending
Json: TypeAlias = Any

_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "from": (str,),
    "to": (str,),
    "capability": (str,),
    "topic": (str,),
    "type": (str,),
    "priority": (int, str),
    "id": (str,),
    "conversation": (str,),
    "headers": (dict,),
    "expires_in": (int, float),
    "payload": (object,),
}
_WORDS: Final[Mapping[type, str]] = {str: "a string", int: "a whole number", float: "a number", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Line:
    """One message to send; exactly one of `to`, `capability` and `topic` is set."""

    number: int
    sender: str
    payload: Json
    to: str | None = None
    capability: str | None = None
    topic: str | None = None
    type: str = "command"
    priority: Priority = Priority.NORMAL
    id: str | None = None
    conversation: str | None = None
    headers: Mapping[str, str] | None = None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that nothing could be made of, and why."""

    number: int
    message: str


def parse_line(number: int, raw: bytes) -> Line | BadLine | None:
    """What one line says; None for an empty one."""
    text = raw.strip()
    if not text:
        return None
    value = read_json(text)
    if isinstance(value, NotJson):
        return BadLine(number, str(value).replace("(line 1, column ", "(column "))  # it has one line only
    if not isinstance(value, dict):
        return BadLine(number, 'a line is an object like {"from": "a", "to": "b", "payload": {}}')
    return _line_from(number, value)


def _line_from(number: int, value: dict[str, Json]) -> Line | BadLine:
    value = {key: item for key, item in value.items() if item is not None or key not in _KINDS}  # null says nothing
    problem = _problem(value)
    if problem is not None:
        return BadLine(number, problem)
    priority = read_priority(value.get("priority", Priority.NORMAL))
    if priority is None:
        return BadLine(number, "priority is LOW, NORMAL, HIGH or CRITICAL, or 0 to 3")
    return Line(
        number=number,
        sender=value["from"],
        payload=value.get("payload", {}),
        to=value.get("to"),
        capability=value.get("capability"),
        topic=value.get("topic"),
        type=value.get("type", "event" if "topic" in value else "command"),
        priority=priority,
        id=value.get("id"),
        conversation=value.get("conversation"),
        headers=value.get("headers"),
        expires_in=value.get("expires_in"),
    )


def _problem(value: Mapping[str, Json]) -> str | None:
    for key, item in value.items():
        if key not in _KINDS:
            near = difflib.get_close_matches(key, _KINDS, n=1, cutoff=0.5)
            return f"there is no field {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        if not isinstance(item, _KINDS[key]) or (isinstance(item, bool) and key != "payload"):
            return f"{key} must be {' or '.join(_WORDS[kind] for kind in _KINDS[key])}"
    if "from" not in value:
        return "from is missing: which agent sends it"
    ways = [name for name in ("to", "capability", "topic") if name in value]
    if len(ways) != 1:
        return f"exactly one of to, capability and topic says where it goes, not {' and '.join(ways) or 'none'}"
    return None


def read_priority(value: int | str) -> Priority | None:
    """A priority by number or name; None when it is neither."""
    names = Priority.__members__
    if isinstance(value, str) and value.upper() in names:
        return names[value.upper()]
    try:
        return Priority(int(value))
    except ValueError:
        return None


def read_payload(raw: bytes) -> dict[str, Json] | NotJson:
    """A payload by itself. What cannot be read is handed on as it is, so that admission refuses and records it."""
    value = read_json(raw)
    if isinstance(value, dict | NotJson):
        return value
    return NotJson("malformed", f"the payload is {_name(value)}, not a JSON object")


def _name(value: Json) -> str:
    names = {list: "a JSON array", str: "a JSON string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a JSON number")


def read_json(raw: bytes) -> Json | NotJson:
    """What a text says as strict JSON, or what is wrong with it, in words for who typed it."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return NotJson("malformed", f"not JSON: byte {error.start + 1} is 0x{raw[error.start]:02x}, which is not UTF-8")
    if not raw.strip():
        return NotJson("malformed", "not JSON: there is nothing")
    try:
        return loads_strict(raw, bytes_max=LINE_BYTES_MAX, depth_max=DEPTH_MAX)
    except NotJson as error:
        return error


class LineReader:
    """Reads lines from a file or standard input without holding up the loop, and stops when it is told to.

    A thread of its own reads, since a read from a terminal or pipe cannot be cancelled; it dies with the process.
    """

    def __init__(self, source: str, *, loop: asyncio.AbstractEventLoop) -> None:
        """`source` is a path, or "-" for standard input. Raises: OSError, when it cannot be opened."""
        import asyncio

        self._descriptor = os.dup(0) if source == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        if source != "-" and Path(source).is_dir():
            os.close(self._descriptor)
            raise IsADirectoryError(21, "Is a directory", source)
        self._loop = loop
        self._chunks: asyncio.Queue[bytes | OSError | None] = asyncio.Queue()
        self._room = threading.Semaphore(_CHUNKS_AHEAD)
        self.bytes_read = 0
        self.bytes_total = None if source == "-" else Path(source).stat().st_size
        self.stopped = False

    def stop(self) -> None:
        """No more lines: the next step of the iteration is the last."""
        self.stopped = True
        self._room.release()
        self._chunks.put_nowait(None)

    def _read(self) -> None:
        chunk: bytes | OSError | None = b""
        try:
            while isinstance(chunk, bytes):
                self._room.acquire()
                if self.stopped:
                    return
                try:
                    chunk = os.read(self._descriptor, _CHUNK_BYTES) or None
                except OSError as error:
                    chunk = error
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        except RuntimeError:  # the loop has gone: nobody waits for lines any more
            return
        finally:
            os.close(self._descriptor)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes | None]]:
        """Number and bytes of each line, from 1; None in place of the bytes of a line that is too long.

        Raises: OSError, when the file cannot be read on.
        """
        threading.Thread(target=self._read, name="eab-lines", daemon=True).start()
        number, pending, skipping = 0, bytearray(), False
        while (chunk := await self._chunks.get()) is not None and not self.stopped:
            if isinstance(chunk, OSError):
                raise chunk
            self._room.release()
            self.bytes_read += len(chunk)
            *lines, rest = chunk.split(b"\n")
            for part in lines:
                number += 1
                yield number, None if skipping or len(pending) + len(part) > LINE_BYTES_MAX else bytes(pending + part)
                pending.clear()
                skipping = False
            if skipping or len(pending) + len(rest) > LINE_BYTES_MAX:
                pending.clear()
                skipping = True
            else:
                pending += rest
        if (pending or skipping) and not self.stopped:
            yield number + 1, None if skipping else bytes(pending)
