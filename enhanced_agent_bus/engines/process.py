"""One policy worker: a process of pdp/, from its start to its end.

Not here: when one is started (worker), and what it is asked (link).
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from enhanced_agent_bus.engines.frames import PROTOCOL, Op
from enhanced_agent_bus.engines.link import Link, WorkerLostError

HELLO_SECONDS: Final = 10.0
STDERR_BYTES_MAX: Final = 8192


class _Stderr(asyncio.Protocol):
    """The end of what a worker had to say."""

    def __init__(self) -> None:
        self.tail = b""

    def data_received(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-STDERR_BYTES_MAX:]

    def text(self) -> str:
        return self.tail.decode("utf-8", "replace").strip()


class Worker:
    """A process, the link to it, and its end."""

    def __init__(self, process: subprocess.Popen[bytes], link: Link, sock: socket.socket) -> None:
        self.process = process
        self.link = link
        self._sock = sock
        self._stderr = _Stderr()
        self._stderr_transport: asyncio.BaseTransport | None = None

    @classmethod
    async def spawn(cls, binary: Path, memory_mb: int, lost: Callable[[Link], None], workers: int = 1) -> Worker:
        """Starts a process, one of so many, and says hello. Raises OSError, WorkerLostError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = _popen(binary, memory_mb, theirs)
        except BaseException:
            ours.close()
            raise
        worker = cls(process, Link(asyncio.get_running_loop(), lost), ours)
        try:
            await worker._greet(workers)
        except WorkerLostError as error:
            await worker.bury("it did not start")
            raise WorkerLostError(worker.last_words(error)) from error
        except BaseException:
            await worker.bury("it did not start")
            raise
        return worker

    async def _greet(self, workers: int) -> None:
        loop = asyncio.get_running_loop()
        self._stderr_transport, _ = await loop.connect_read_pipe(lambda: self._stderr, self.process.stderr)
        await loop.create_connection(lambda: self.link, sock=self._sock)
        self.link.hello = await self.link.call(Op.HELLO, {"workers": workers}, HELLO_SECONDS)
        if self.link.hello.get("protocol") != PROTOCOL:
            raise WorkerLostError(f"it speaks protocol {self.link.hello.get('protocol')}, not {PROTOCOL}")

    async def bury(self, reason: str) -> None:
        """Ends the process and waits for that."""
        self.link.end(reason)
        self.process.kill()
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self.process.wait))
        if self._stderr_transport is not None:
            self._stderr_transport.close()
        elif self.process.stderr is not None:
            self.process.stderr.close()
        if not self.link.connected:
            self._sock.close()
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def last_words(self, error: BaseException) -> str:
        """The error, and what the process itself had to say."""
        return f"{error}: {said}" if (said := self._stderr.text()) else str(error)

    def forget_in_child(self) -> None:
        """In a forked child: lets go of the parent's worker without touching it."""
        self.link.gone = True
        self._sock.close()


def _popen(binary: Path, memory_mb: int, stdin: socket.socket) -> subprocess.Popen[bytes]:
    """Starts the process; the socket, as its standard input, is all that it inherits."""
    return subprocess.Popen(
        [str(binary)],
        stdin=stdin.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"TZ": "UTC", "GOGC": "400", "GOMEMLIMIT": f"{memory_mb}MiB"},
        cwd="/",
        start_new_session=True,  # a Ctrl-C at the terminal is for the bus, which then drains
    )
