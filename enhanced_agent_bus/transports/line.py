"""One connection to a NATS server through nats-py, made again for ever when it is lost.

nats-py's own reconnecting is not used: it keeps what is published meanwhile in a buffer, and ends for good at errors
that pass (a server that is told to reload its users, for one). Here everything that waits for an answer ends with
TransportAway the moment the connection is lost, and nothing is kept. Not here: JetStream.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import SplitResult

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from enhanced_agent_bus.errors import ConfigInvalid, TransportAway
from enhanced_agent_bus.transports.access import Access, plain, secrets_of

CONNECT_SECONDS_MAX: Final = 5
TRIES: Final = 8  # to hear why a server lets nobody in
TRY_SECONDS: Final = 0.02  # before the next one, and longer each time
ELECTION_SECONDS_MAX: Final = 15.0  # until the servers of a cluster have chosen who leads a stream
BROKEN: Final = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)  # by the other side
LET_GO_SECONDS_MAX: Final = 2.0
RETRY_SECONDS: Final = (0.02, 2.0)  # first and longest pause between two attempts
PENDING_BYTES: Final = 8 * 1024 * 1024  # on their way into the socket; beyond, whoever sends waits
ASKS_MAX: Final = 20_000
SAYINGS_MAX: Final = 20_000
MISSED_MAX: Final = 2
NOBODY: Final = "503"

_NO_RECONNECT: Final[dict[str, Any]] = {
    "allow_reconnect": False,
    "connect_timeout": CONNECT_SECONDS_MAX,
    "max_reconnect_attempts": 1,
    "reconnect_time_wait": 0,
    "ping_interval": 86_400,  # ours are bounded, see `_watch`
}


class NobodyAnswers(TransportAway):
    """The server is there, and nobody behind it for what was asked."""


class Line:
    """Asks and is answered within a time, or raises TransportAway."""

    def __init__(
        self, access: Access, *, name: str, answer_seconds: float, ping_seconds: float, inbox: str = "_INBOX."
    ) -> None:
        """`inbox` stands before the subjects where answers come."""
        self.url = access.shown
        self.info: dict[str, Any] = {}  # what the server said of itself at the start of this connection
        self.up: Callable[[], None] = lambda: None
        self.down: Callable[[], None] = lambda: None
        self._access = access
        self._inbox_front = inbox
        access.options()  # what is wrong with a file is said before anybody is asked
        self._name = name
        self._answer_seconds = answer_seconds
        self._ping_seconds = ping_seconds
        self._servers = deque(access.servers)
        self._loop = asyncio.get_running_loop()
        self._client: Client | None = None
        self._inbox = ""
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._sayings: deque[tuple[str, bytes, str]] = deque(maxlen=SAYINGS_MAX)
        self._said = asyncio.Event()
        self._why = "not connected yet"
        self._denied = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_connection: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def elects(self) -> bool:
        """Whether the server is one of a cluster, which takes some seconds to choose who leads a stream."""
        return self.connected and bool(self.info.get("cluster"))

    async def open(self) -> None:
        """Connects to the first server that answers. Raises: TransportAway; ConfigInvalid, when it lets nobody in."""
        await self._join()

    async def close(self) -> None:
        self._closed, self._why = True, "closed"
        client, self._client = self._client, None
        self._fail_all("closed")
        for task in (*self._of_connection, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._of_connection, *self._tasks, return_exceptions=True)
        if client is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(LET_GO_SECONDS_MAX):
                    await client.flush()  # what was said last
            await _let_go(client)

    async def ask(self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Msg:
        """Publishes, and returns the first answer. Raises: TransportAway."""
        client = self._connected()
        if len(self._waiting) >= ASKS_MAX:
            raise TransportAway(f"{self.url} has {ASKS_MAX} questions to answer already")
        token = f"{next(self._numbers):x}"
        answer = self._waiting[token] = self._loop.create_future()
        timer = self._loop.call_later(self._answer_seconds, self._late, answer)
        try:
            await self._publish(client, subject, body, f"{self._inbox}.{token}", headers)
            message: Msg = await answer
        finally:
            timer.cancel()
            self._waiting.pop(token, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, even when publishing failed first
        if not message.data and message.headers and message.headers.get("Status") == NOBODY:
            raise NobodyAnswers(f"{self.url} has nobody who answers: JetStream is off, starting, or without its stream")
        return message

    def say(self, subject: str, body: bytes, reply: str = "") -> None:
        """Publishes soon and waits for nothing; while away nothing is said. Returns at once."""
        if self._client is not None:
            self._sayings.append((subject, body, reply))
            self._said.set()

    async def subscribe(self, subject: str, heard: Callable[[Msg], None]) -> Subscription:
        """Hears what comes for a subject on this connection. Raises: TransportAway."""
        client = self._connected()

        async def hear(message: Msg) -> None:
            heard(message)

        try:
            async with asyncio.timeout(self._answer_seconds):
                return await client.subscribe(subject, cb=hear, pending_msgs_limit=0, pending_bytes_limit=0)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._away(error) from None

    def run(self, work: Awaitable[None]) -> asyncio.Task[None]:
        """A task that ends with this line at the latest."""
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def inbox(self) -> str:
        """A subject that nobody else uses."""
        return f"{self._inbox_front}{secrets.token_hex(11)}"

    def _connected(self) -> Client:
        client = self._client
        if client is not None and not client.is_connected:
            self._lost(client, "the connection broke")
            client = None
        if client is None:
            raise self._away()
        return client

    def _away(self, error: Exception | None = None) -> TransportAway:
        why = self._why if error is None else _words(error)
        return TransportAway(f"{self.url} is away: {why}", remedy="it is tried again by itself; see that it runs")

    async def _publish(
        self, client: Client, subject: str, body: bytes, reply: str, headers: dict[str, str] | None
    ) -> None:
        try:
            if client.pending_data_size + len(body) < PENDING_BYTES:
                await client.publish(subject, body, reply, headers)
            else:  # then nats-py waits until the socket has taken it
                async with asyncio.timeout(self._answer_seconds):
                    await client.publish(subject, body, reply, headers)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._away(error) from None

    def _late(self, answer: asyncio.Future[Msg]) -> None:
        if not answer.done():
            denied = f" (it says: {self._denied})" if self._denied else ""
            answer.set_exception(
                TransportAway(f"{self.url} did not answer within {self._answer_seconds:g} seconds{denied}")
            )

    def _answered(self, message: Msg) -> None:
        answer = self._waiting.get(message.subject.rpartition(".")[2])
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _join(self) -> None:
        """One round over all servers."""
        for _ in range(len(self._servers)):
            server = self._servers[0]
            self._servers.rotate(-1)
            try:
                client = await self._connect(server)
                break
            except TransportAway as error:
                last: TransportAway | ConfigInvalid = error
            except ConfigInvalid as error:
                last = error
        else:
            self._why = last.message
            raise last
        if self._closed:
            await _let_go(client)
            raise self._away()
        self._inbox, self._denied = self.inbox(), ""
        self.info = dict(client._server_info)  # noqa: SLF001 - nats-py has no other way to what the server said
        self._client = client
        try:
            await self.subscribe(f"{self._inbox}.*", self._answered)
        except TransportAway:
            self._lost(client, "the connection broke")
            raise
        self._of_connection = [self._loop.create_task(self._watch(client)), self._loop.create_task(self._talk(client))]

    async def _connect(self, server: SplitResult) -> Client:
        """Raises: TransportAway, ConfigInvalid.

        A server that lets nobody in says why and closes at once, which may take its words away: it is asked again.
        """
        for count in range(TRIES):
            await asyncio.sleep(count * TRY_SECONDS)
            try:
                return await self._connect_once(server)
            except (*BROKEN, nats.errors.UnexpectedEOF) as error:
                last = error
        raise self._refused(server, last)

    async def _connect_once(self, server: SplitResult) -> Client:
        """Raises: TransportAway, ConfigInvalid; one of BROKEN and UnexpectedEOF, when nothing was said."""
        client, seen, options = Client(), list[Exception](), self._access.options()
        user, password = secrets_of(server)

        def guard() -> None:
            if self._access.wants_tls and not client._server_info.get("tls_required"):  # noqa: SLF001
                raise nats.errors.Error("it offers no TLS")

        def guarded(value: str) -> Callable[[], str]:
            """Given away when the server is known to be one with TLS, where that is wanted."""

            def give() -> str:
                guard()
                return value

            return give

        async def on_error(error: Exception) -> None:
            seen.append(error)
            self._heard(client, error)

        async def on_closed() -> None:
            self._lost(client, _words(seen[-1]) if seen else "the connection was closed")

        given: dict[str, Any] = {}
        if user is not None:
            given = (
                {"token": guarded(user)} if password is None else {"user": guarded(user), "password": guarded(password)}
            )
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await client.connect(
                    [plain(server)],
                    error_cb=on_error,
                    closed_cb=on_closed,
                    pending_size=PENDING_BYTES,
                    **_NO_RECONNECT,
                    name=self._name,
                    **options,
                    **given,
                )
            guard()
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            await _let_go(client)
            first = seen[-1] if seen else error
            if isinstance(first, (*BROKEN, nats.errors.UnexpectedEOF)):
                raise first from None
            raise self._refused(server, first) from None
        except asyncio.CancelledError:
            await _let_go(client)
            raise
        return client

    def _refused(self, server: SplitResult, error: Exception) -> TransportAway | ConfigInvalid:
        words = _words(error)
        if "authorization" in words.lower() or "authentication" in words.lower():
            return ConfigInvalid(
                f"{plain(server)} does not let this node in: {words}",
                remedy="check the user in the address, transport.creds_file and transport.nkey_file",
            )
        if "TLS" in words or "certificate" in words:
            return ConfigInvalid(
                f"{plain(server)} cannot be reached by TLS: {words}", remedy="check transport.tls_ca and the address"
            )
        return TransportAway(f"{plain(server)} cannot be reached: {words}", remedy="start it, or check transport.url")

    def _heard(self, client: Client, error: Exception) -> None:
        """nats-py reports what goes wrong beside any question."""
        if isinstance(error, nats.errors.UnexpectedEOF | OSError):
            self._lost(client, _words(error))
        elif isinstance(error, nats.errors.Error):
            self._denied = _words(error)
        else:  # somebody's callback: that is a fault of ours
            self._loop.call_exception_handler({"message": "in what hears NATS", "exception": error})

    def _lost(self, client: Client, why: str) -> None:
        if self._client is not client:
            return
        self._client, self._why = None, why
        self._fail_all(why)
        for task in self._of_connection:
            if task is not asyncio.current_task():
                task.cancel()
        self._sayings.clear()
        self.run(_let_go(client))
        if not self._closed:
            self.down()
            self.run(self._again())

    def _fail_all(self, why: str) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(TransportAway(f"{self.url} is away: {why}"))

    async def _again(self) -> None:
        pause, longest = RETRY_SECONDS
        while not self._closed:  # asked each time: nats-py and `wait_for` swallow a cancellation now and then
            try:
                await self._join()
            except (TransportAway, ConfigInvalid):
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
            else:
                self.up()
                return

    async def _watch(self, client: Client) -> None:
        """Two questions in a row without an answer are a lost connection, whatever the socket says."""
        missed = 0
        while missed < MISSED_MAX and self._client is client:
            await asyncio.sleep(self._ping_seconds)
            pong = self._loop.create_future()
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(self._ping_seconds):
                    # Not `flush`: it cancels what it waited for, nats-py stops reading at the PONG that comes after
                    # that, and says of a connection that nobody reads that all is well.
                    await client._send_ping(pong)  # noqa: SLF001
                    await asyncio.wait([pong])
            missed = 0 if pong.done() else missed + 1
        self._lost(client, "it does not answer")

    async def _talk(self, client: Client) -> None:
        while self._client is client:
            await self._said.wait()
            self._said.clear()
            while self._sayings:
                subject, body, reply = self._sayings.popleft()
                with contextlib.suppress(TransportAway):
                    await self._publish(client, subject, body, reply, None)


async def _let_go(client: Client) -> None:
    """Closes without waiting for a peer that may not read: nats-py would, for as long as its buffer is not empty."""
    client._pending.clear()  # noqa: SLF001
    client._pending_data_size = 0  # noqa: SLF001
    writer = getattr(client._transport, "_io_writer", None)  # noqa: SLF001
    if writer is not None:
        writer.transport.abort()
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        async with asyncio.timeout(LET_GO_SECONDS_MAX):
            await client.close()


def _words(error: Exception) -> str:
    """What an error says, without its class; never what was sent."""
    if isinstance(error, TimeoutError | nats.errors.TimeoutError):
        return "it does not answer in time"
    text = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    return text.removeprefix("nats: ").strip("'") or type(error).__name__
