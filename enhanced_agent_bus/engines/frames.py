"""Frames between the bus and a policy worker, as bytes: no sockets, no processes (pdp/frames.go is the other end).

A frame is, little-endian: u32 length of what follows, u64 id, u8 op, body; at most 16 MiB. An answer has its question's
id and a status in the op's place.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

PROTOCOL: Final = 1
FRAME_BYTES_MAX: Final = 16 << 20
TENANT_BYTES_MAX: Final = 0xFFFF
STATUS_OK: Final = 0
STATUS_ERROR: Final = 1

_HEADER: Final = struct.Struct("<IQB")
_FIXED_BYTES: Final = 9  # id and op, counted in the length
_DECIDE: Final = struct.Struct("<IQB64sIH")
_DECIDE_FIXED_BYTES: Final = _DECIDE.size - 4


class Op(IntEnum):
    """What a question asks for."""

    HELLO = 1
    LOAD = 2
    DECIDE = 3
    CHECK = 4
    TEST = 5
    EXPLAIN = 6
    FORMAT = 7
    STATS = 8
    DROP = 9
    PACK = 10
    HASH = 11
    CLAIMS = 12
    SIGN = 13
    VERIFY = 14
    MASK = 15
    COMPARE = 16


class GarbageError(ValueError):
    """The stream is not one of frames; nothing after this point means anything."""


class AnswerFrame(NamedTuple):
    """An answer as it came."""

    id: int
    status: int
    body: bytes


def encode(frame_id: int, op: int, body: bytes) -> bytes:
    """One frame. Raises ValueError when it is larger than a frame can be."""
    length = _FIXED_BYTES + len(body)
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {length} bytes is larger than {FRAME_BYTES_MAX}")
    return _HEADER.pack(length, frame_id, op) + body


def decide_head(
    frame_id: int, digest: bytes, tenant: bytes, document_bytes: int, timeout_us: int, op: int = Op.DECIDE
) -> bytes:
    """What stands before the document in a decide frame. Raises ValueError when the frame would be too large.

    In a compare frame the document is the candidate's digest, and the input behind it.
    """
    length = _DECIDE_FIXED_BYTES + len(tenant) + document_bytes
    if len(tenant) > TENANT_BYTES_MAX:
        raise ValueError(f"a tenant of {len(tenant)} bytes is longer than {TENANT_BYTES_MAX}")
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {length} bytes is larger than {FRAME_BYTES_MAX}")
    return _DECIDE.pack(length, frame_id, op, digest, timeout_us, len(tenant)) + tenant


class FrameReader:
    """Cuts a stream into answers, whatever pieces it comes in."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[AnswerFrame]:
        """The answers that are whole by now. Raises GarbageError."""
        if self._rest:
            data = self._rest + data
        answers: list[AnswerFrame] = []
        at, size = 0, len(data)
        while size - at >= _HEADER.size:
            length, frame_id, status = _HEADER.unpack_from(data, at)
            if not _FIXED_BYTES <= length <= FRAME_BYTES_MAX or status > STATUS_ERROR:
                raise GarbageError(f"a frame of length {length} and status {status}")
            end = at + 4 + length
            if end > size:
                break
            answers.append(AnswerFrame(frame_id, status, data[at + _HEADER.size : end]))
            at = end
        self._rest = data[at:]
        return answers
