"""HTTP/1.1 for one question at a time on each connection, as an httpx transport; h11 reads and writes the bytes.

httpx's own pool takes bytes that nobody asked for as the next answer. Here a connection has to end each answer
exactly where the protocol says, and to stay silent until it is used again: any byte more closes it. After an answer it
rests, so that bytes sent behind that answer arrive while nothing else is asked on it.

Not here: deadlines, how many questions at once, what an answer means, proxies, redirects, cookies.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import h11
import httpx

CONNECTIONS_MAX: Final = 256  # open at once, those that rest included; beyond, the one that rests longest is closed
REST_SECONDS: Final = 0.25  # how long a connection is silent before it is used again, however many are wanted
LOOK_SECONDS: Final = 0.025  # a rest is counted in looks at the connections: a loop that stands still sees no bytes
RESTED_LOOKS: Final = int(REST_SECONDS / LOOK_SECONDS) + 1
IDLE_SECONDS_MAX: Final = 30.0  # a connection that was not used for longer is not used again
HEAD_BYTES_MAX: Final = 16 << 10
UNREAD_BYTES_MAX: Final = 256 << 10  # beyond, the other side has to wait until the body is read
SWITCHING: Final = 101


class _Connection(asyncio.Protocol):
    """One connection. It is silent, or there is one question on it; while it is open it is in `among`."""

    def __init__(self, heard: Callable[[], None], among: set[_Connection]) -> None:
        self._heard = heard
        self._among = among
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: httpx.TransportError | None = None
        self._asked = False
        self._unread = 0
        self._paused = False
        self.head: h11.Response | None = None
        self.chunks: deque[bytes] = deque()
        self.touched = False  # a byte has come since the question was sent
        self.ended = False  # the answer is here to its end
        self.clean = False  # and nothing came behind it
        self.closed = False
        self.silent_since = 0.0
        self.rested_at = 0  # by the count of looks

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._among.add(self)

    def data_received(self, data: bytes) -> None:
        self._heard()
        if not self._asked or self.ended:
            self.clean = False
            self.abort("the server sent what nobody asked for")
            return
        self.touched = True
        self._take(data)

    def eof_received(self) -> None:
        if self._asked and self.touched and not self.ended:
            self._take(b"")  # the end of a body that has no other mark

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(f"the connection broke: {exc}" if exc else "the server closed the connection")

    # --- ours

    def ask(self, request: httpx.Request, body: bytes) -> None:
        """Sends a question. Raises: httpx.LocalProtocolError."""
        self.head, self.touched, self.ended, self.clean = None, False, False, False
        try:
            head = self._h11.send(
                h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
            )
            rest = self._h11.send(h11.Data(body)) if body else b""
            end = self._h11.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        self._asked = True
        if self._transport is not None:
            self._transport.write(b"".join((head or b"", rest or b"", end or b"")))

    async def more(self) -> None:
        """Waits until something has come. Raises: httpx.TransportError, where nothing will."""
        if self._error is not None:
            raise self._error
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def chunk(self) -> bytes:
        """The next piece of the body that has come."""
        piece = self.chunks.popleft()
        self._unread -= len(piece)
        return piece

    def is_silent(self) -> bool:
        """Whether nothing has come that the loop, which may be late, has not read yet."""
        if self.closed or self._transport is None:
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return not poll.poll(0)

    def rest(self, now: float, looks: int) -> None:
        """The answer was read; what comes from here on was not asked for."""
        self._h11.start_next_cycle()
        self._asked = False
        self.silent_since = now
        self.rested_at = looks + RESTED_LOOKS

    def abort(self, why: str) -> None:
        """Closes at once."""
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        if not self.ended:
            self._fail(httpx.ReadError(why))
        self._among.discard(self)

    def _take(self, data: bytes) -> None:
        try:
            self._h11.receive_data(data)
            while self._took(self._h11.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            self._fail(httpx.RemoteProtocolError(str(error)))
            self.abort(str(error))
        else:
            self._wake()

    def _took(self, event: object) -> bool:
        """Keeps one event; whether there may be more."""
        if isinstance(event, h11.Response):
            self.head = event
        elif isinstance(event, h11.Data):
            piece = bytes(event.data)
            self.chunks.append(piece)
            self._unread += len(piece)
            if self._unread > UNREAD_BYTES_MAX and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()
        elif isinstance(event, h11.EndOfMessage):
            self.ended = True
            self.clean = self._h11.trailing_data == (b"", False) and self._h11.our_state is h11.DONE
            return False
        elif isinstance(event, h11.InformationalResponse):
            if event.status_code == SWITCHING:
                raise h11.RemoteProtocolError("it wants another protocol, which nobody asked for")
        else:
            return False  # NEED_DATA, or the end
        return True

    def _fail(self, error: httpx.TransportError) -> None:
        if self._error is None:
            self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Body(httpx.AsyncByteStream):
    """The body of an answer, as it comes; closed early, it costs the connection."""

    def __init__(self, connection: _Connection, done: Callable[[_Connection], None]) -> None:
        self._connection = connection
        self._done = done

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        while True:
            while connection.chunks:
                yield connection.chunk()
            if connection.ended:
                return
            await connection.more()

    async def aclose(self) -> None:
        self._done(self._connection)


class OneAnswerTransport(httpx.AsyncBaseTransport):
    """Connections to one server, used in turn. `heard` is called for each piece that the server sends.

    Exactly one of `address` (host and port) and `path` (of a Unix socket) is given.
    """

    def __init__(
        self,
        *,
        address: tuple[str, int] | None = None,
        path: str | None = None,
        tls: ssl.SSLContext | None = None,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._path = path
        self._tls = tls
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection] = set()
        self._silent: deque[_Connection] = deque()  # the one that rests longest first
        self._looks = 0
        self._looking: asyncio.TimerHandle | None = None
        self._opening = 0
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Asks; once more on a new connection, where one that was used before breaks without a byte.

        A request with the extension `alone` gets a connection of its own, which is closed after it.
        Raises: httpx.TransportError.
        """
        body = await request.aread()
        alone = bool(request.extensions.get("alone"))
        connection = None if alone else self._rested()
        if connection is not None:
            with contextlib.suppress(httpx.NetworkError):
                return await self._ask(connection, request, body, self._done)
            if connection.touched:
                raise httpx.ReadError("the connection broke within the answer")
        return await self._ask(await self._connect(), request, body, self._close if alone else self._done)

    async def aclose(self) -> None:
        self._closed = True
        for connection in list(self._open):
            connection.abort("the bus closed it")
        self._silent.clear()
        if self._looking is not None:
            self._looking.cancel()

    async def _ask(
        self, connection: _Connection, request: httpx.Request, body: bytes, done: Callable[[_Connection], None]
    ) -> httpx.Response:
        try:
            connection.ask(request, body)
            while connection.head is None:
                await connection.more()
        except BaseException:
            connection.abort("nobody waits for the answer any more")
            raise
        head = connection.head
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=_Body(connection, done))

    def _rested(self) -> _Connection | None:
        """A connection that was used before, if there is one to use again."""
        now = self._loop.time()
        silent = self._silent
        while silent:
            connection = silent[0]
            if connection.closed or now - connection.silent_since > IDLE_SECONDS_MAX:
                silent.popleft()
                connection.abort("it was not used for long")
                continue
            full = len(self._open) + self._opening >= CONNECTIONS_MAX
            if self._looks >= connection.rested_at:
                silent.popleft()
                if connection.is_silent():
                    return connection
                connection.abort("the server sent what nobody asked for, or closed it")
                continue
            if full:
                silent.popleft().abort("others need the room")
            return None
        return None

    async def _connect(self) -> _Connection:
        if self._closed:
            raise httpx.ConnectError("the bus has closed its connections")
        self._opening += 1
        try:
            if self._path is not None:
                _, connection = await self._loop.create_unix_connection(self._made, self._path)
            else:
                host, port = self._address or ("", 0)
                _, connection = await self._loop.create_connection(self._made, host, port, ssl=self._tls)
        except (OSError, ValueError) as error:  # ValueError: a name that is none
            raise httpx.ConnectError(f"{type(error).__name__}: {error}") from error
        finally:
            self._opening -= 1
        return connection

    def _made(self) -> _Connection:
        return _Connection(self._heard, self._open)

    def _done(self, connection: _Connection) -> None:
        """The answer was read, or nobody wants the rest of it."""
        if connection.clean and not connection.closed and not self._closed:
            connection.rest(self._loop.time(), self._looks)
            self._silent.append(connection)
            if self._looking is None:
                self._looking = self._loop.call_later(LOOK_SECONDS, self._look)
        else:
            connection.abort("it was not read to its end, or more came behind it")

    def _look(self) -> None:
        """Whatever had come by now has been read: the loop looks at its connections before it calls this."""
        self._looks += 1
        resting = self._silent and self._silent[-1].rested_at > self._looks
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look) if resting else None

    def _close(self, connection: _Connection) -> None:
        connection.abort("it served one question")
