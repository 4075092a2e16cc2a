"""The control socket of a bus that is open in this process.

Only the owner of the home can connect (mode 0600), so an operator here may do what opening the home would allow, and
nothing more. Not here: what can be asked (operations), who takes the lock (ledger).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enhanced_agent_bus.control.operations import perform
from enhanced_agent_bus.control.wire import LINE_BYTES_MAX, error_document
from enhanced_agent_bus.errors import BusError

if TYPE_CHECKING:
    from enhanced_agent_bus.bus import AgentBus

SOCKET_NAME: Final = "control.sock"
PATH_BYTES_MAX: Final = 100  # the kernels' limit on a socket's path is 104 to 108 bytes
CONNECTIONS_MAX: Final = 16  # one more is told that the bus is busy
IDLE_SECONDS_MAX: Final = 30.0  # a connection that asks nothing for so long is closed


def socket_path(home: Path) -> Path:
    """Where the socket of this home goes: in the home, or in a new private folder where that path is too long."""
    path = home.absolute() / SOCKET_NAME
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        return path
    return Path(tempfile.mkdtemp(prefix="eab-", dir=_short_folder())) / SOCKET_NAME


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    room = PATH_BYTES_MAX - len("/eab-12345678/") - len(SOCKET_NAME)
    return folder if len(os.fsencode(folder)) <= room else "/tmp"  # noqa: S108  mkdtemp makes a private folder there


class ControlServer:
    """Serves one bus on one socket, from `start` to `close`. The process must hold the lock of the home."""

    def __init__(self, bus: AgentBus, path: Path) -> None:
        self._bus = bus
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises: OSError, when the socket cannot be made."""
        self._path.unlink(missing_ok=True)  # of a process that died: the lock is ours
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o600)  # before listen: until then nobody can connect
            self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=LINE_BYTES_MAX)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Takes no more requests, ends those under way and removes the socket."""
        if self._server is None:
            return
        self._server.close()
        current = asyncio.current_task()
        others = [task for task in self._connections if task is not current]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        self._path.unlink(missing_ok=True)
        if self._path.parent.name.startswith("eab-"):
            shutil.rmtree(self._path.parent, ignore_errors=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > CONNECTIONS_MAX:
                await _answer(writer, {"error": {"code": "busy", "message": "too many commands ask this bus at once"}})
                return
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.CancelledError):
            pass  # the other side is gone, or this server closes: either way this connection is over
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one line; False when there will be no more."""
        try:
            async with asyncio.timeout(IDLE_SECONDS_MAX):
                line = await reader.readline()
        except TimeoutError:
            return False
        except ValueError:  # longer than the reader's limit
            too_long = f"a request has at most {LINE_BYTES_MAX} bytes"
            await _answer(writer, {"error": {"code": "too_large", "message": too_long, "kind": "BusError"}})
            return False
        if not line.endswith(b"\n"):
            return False
        await _answer(writer, await self._judge(line))
        return True

    async def _judge(self, line: bytes) -> dict[str, Any]:
        try:
            op, args = _read_request(line)
            return {"ok": await perform(self._bus, op, args)}
        except (BusError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
            return {"error": error_document(error)}


def _read_request(line: bytes) -> tuple[str, dict[str, Any]]:
    request = json.loads(line)
    op, args = (request.get("op"), request.get("args", {})) if isinstance(request, dict) else (None, None)
    if isinstance(op, str) and isinstance(args, dict):
        return op, args
    raise ValueError("a request is an object with op and args")


async def _answer(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    writer.write(json.dumps(document).encode() + b"\n")
    await writer.drain()
