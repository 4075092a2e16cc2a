"""The service that OPAs post their decision logs to: `POST /logs`, a JSON array of events, gzip'd or not.

https://www.openpolicyagent.org/docs/management-decision-logs#decision-log-service-api. Events become lines of a file,
as they were sent. Bounded: the connections at once, the time and the size of a request, the size of the file; what does
not fit is answered with an error, and OPA keeps it and sends it again. Standard library only. Not here: TLS (a proxy's
business), and what the events mean.
"""

from __future__ import annotations

import fcntl
import hmac
import ipaddress
import json
import os
import zlib
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore, Lock, Timer
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    import socket
    from types import TracebackType

REQUEST_SECONDS_MAX: Final = 30.0
REQUESTS_MAX: Final = 16  # at once; the next connection is closed
BODY_BYTES_MAX: Final = 8 * 1024 * 1024  # as sent; OPA's own limit is 32 KiB unless it is told another
UNPACKED_BYTES_MAX: Final = 64 * 1024 * 1024
TAIL_BYTES: Final = 64 * 1024
PATH: Final = "/logs"


class Events:
    """The file that events are appended to; one process has it at a time.

    A last line that was cut off (the machine stopped while it was written, and no OPA was answered) is taken away when
    the file is opened. Raises: OSError; BlockingIOError, when another process has it; ValueError, for a file of another
    kind.
    """

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        self.count = 0
        self._bytes_max = bytes_max
        self._lock = Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = self._whole()
        except BaseException:  # Ctrl-C too: whatever ends it here, the file and its lock are let go of
            os.close(self._file)
            raise

    def append(self, events: list[Any]) -> bool:
        """Durable when it returns True; False when the file is full. Raises: OSError, and then nothing was added."""
        lines = b"".join(json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in events)
        with self._lock:
            if self._size + len(lines) > self._bytes_max:
                return False
            try:
                written = 0
                while written < len(lines):
                    written += os.pwrite(self._file, lines[written:], self._size + written)
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
            self._size += len(lines)
            self.count += len(events)
        return True

    def _whole(self) -> int:
        """How long the file is once it ends with a whole line."""
        size = start = os.fstat(self._file).st_size
        tail = b""
        while start > 0 and b"\n" not in tail and len(tail) <= UNPACKED_BYTES_MAX:
            first = max(0, start - TAIL_BYTES)
            tail, start = os.pread(self._file, start - first, first) + tail, first
        last = tail.rpartition(b"\n")[2]
        if not last:
            return size
        if not last.startswith(b"{"):
            raise ValueError("it does not end as a file of events does")
        os.ftruncate(self._file, size - len(last))
        return size - len(last)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


class Collector(ThreadingHTTPServer):
    """Listens; each request in a thread of its own, at most `REQUESTS_MAX` at once."""

    daemon_threads = False  # what was begun is answered before the file is closed

    def __init__(self, address: tuple[str, int], events: Events, token: str | None) -> None:
        self.events = events
        self.token = token
        self._room = BoundedSemaphore(REQUESTS_MAX)
        super().__init__(address, _Request)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        timer = Timer(REQUEST_SECONDS_MAX, _hang_up, [request])
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hangs up is no news."""


def _hang_up(request: socket.socket) -> None:
    try:
        request.shutdown(2)
    except OSError:  # it has gone
        return


class _Request(BaseHTTPRequestHandler):
    """One request and its answer; the connection ends with it."""

    server: Collector
    timeout = REQUEST_SECONDS_MAX
    server_version = "eab"
    sys_version = ""

    def do_POST(self) -> None:
        self.send_answer(*self._answer())

    def _answer(self) -> tuple[HTTPStatus, str]:
        if self.server.token is not None and not self._is_known(self.server.token):
            return HTTPStatus.UNAUTHORIZED, "the token is missing or another one"
        if self.path.partition("?")[0].rstrip("/") != PATH and not self.path.startswith(f"{PATH}/"):
            return HTTPStatus.NOT_FOUND, f"decision logs are posted to {PATH}"
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return HTTPStatus.LENGTH_REQUIRED, "a request says how long it is"
        if int(length) > BODY_BYTES_MAX:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {BODY_BYTES_MAX} bytes"
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return HTTPStatus.BAD_REQUEST, "the request ended early"
        events = _events(body, self.headers.get("Content-Encoding", "identity"))
        if events is None:
            return HTTPStatus.BAD_REQUEST, "this is no JSON array of objects, gzip'd or plain, of a size that is taken"
        try:
            room = self.server.events.append(events)
        except OSError as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"the events could not be written: {error.strerror}"
        if not room:
            return HTTPStatus.INSUFFICIENT_STORAGE, "the file is full"
        return HTTPStatus.OK, f"{len(events)} taken"

    def _is_known(self, token: str) -> bool:
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())

    def send_answer(self, status: HTTPStatus, message: str) -> None:
        """A small JSON document."""
        body = json.dumps({"message": message}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing that a sender says goes to the terminal."""


def _events(body: bytes, encoding: str) -> list[Any] | None:
    """The events of a request; None for what is none."""
    try:
        if encoding == "gzip":
            inflating = zlib.decompressobj(16 + zlib.MAX_WBITS)
            body = inflating.decompress(body, UNPACKED_BYTES_MAX)
            if inflating.unconsumed_tail or not inflating.eof or inflating.unused_data:
                return None
        elif encoding != "identity":
            return None
        events = json.loads(body)
    except (ValueError, zlib.error, RecursionError):
        return None
    return events if isinstance(events, list) and all(isinstance(event, dict) for event in events) else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it; a name other than localhost is taken for one that others reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
