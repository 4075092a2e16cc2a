"""Asking a bus of another process through its control socket. Not here: what is printed of the answer (cli)."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.control.wire import LINE_BYTES_MAX, Json, raise_error
from enhanced_agent_bus.errors import BusError

CONNECT_SECONDS_MAX: Final = 5.0


def call(path: Path, op: str, args: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Json:
    """Asks the bus behind this socket, blocking.

    Raises: BusError, KeyError or ValueError as the other process did; OSError, when it cannot be reached.
    """
    line = json.dumps({"op": op, "args": dict(args or {})}).encode() + b"\n"
    if len(line) > LINE_BYTES_MAX:
        raise BusError(f"the request has {len(line)} bytes, more than {LINE_BYTES_MAX}", code="too_large")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_SECONDS_MAX)
        connection.connect(str(path))
        connection.settimeout(timeout)
        with suppress(BrokenPipeError):  # it closed already: why is told in what it has sent
            connection.sendall(line)
        answer = bytearray()
        while not answer.endswith(b"\n"):
            part = connection.recv(65536)
            if not part:
                raise ConnectionResetError("the running bus closed the connection without an answer")
            answer += part
    document = json.loads(answer)
    if "error" in document:
        raise_error(document["error"])
    return document.get("ok")
