"""A server that is no OPA: it reads questions as HTTP/1.1 and answers whatever a test makes up, byte by byte."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    """One request as it came, and where it stands among those of its connection and of the server, from 0."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    on_connection: int
    number: int

    @property
    def is_decision(self) -> bool:
        return self.path.startswith("/v1/data/bus/decision")


Behave = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Hostile:
    """What a hostile server was asked."""

    behave: Behave
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def decisions(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.is_decision]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        count = 0
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                while not writer.is_closing():
                    asked = await _request(reader, count, len(self.asked))
                    count += 1
                    self.asked.append(asked)
                    await self.behave(asked, writer)
                    await writer.drain()
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


async def _request(reader: asyncio.StreamReader, on_connection: int, number: int) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, body, on_connection, number)


@asynccontextmanager
async def hostile(behave: Behave | bytes, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Hostile]:
    """A server of this behaviour on a port of its own; bytes are sent to every question as they are.

    It has a thread and a loop to itself: what it does does not wait for the bus.
    """
    stub = Hostile(sends(behave) if isinstance(behave, bytes) else behave, scheme="https" if tls else "http")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    over = asyncio.Event()
    up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running = asyncio.run_coroutine_threadsafe(_serve(stub, tls, over, asyncio.get_running_loop(), up), loop)
    try:
        await up
        yield stub
    finally:
        loop.call_soon_threadsafe(over.set)
        await asyncio.wrap_future(running)
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()


async def _serve(
    stub: Hostile,
    tls: ssl.SSLContext | None,
    over: asyncio.Event,
    theirs: asyncio.AbstractEventLoop,
    up: asyncio.Future[None],
) -> None:
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(stub.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    stub.port = server.sockets[0].getsockname()[1]
    theirs.call_soon_threadsafe(up.set_result, None)
    await over.wait()
    server.close()
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def sends(raw: bytes) -> Behave:
    """Answers everything with these bytes."""

    async def behave(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return behave


def then_closes(raw: bytes) -> Behave:
    """The same, and the connection is closed behind them."""

    async def behave(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    return behave


def http(
    body: bytes | str | Any = b"", status: str = "200 OK", content_type: str | None = "application/json", *more: str
) -> bytes:
    """A response; a body that is neither bytes nor text is written as JSON."""
    if not isinstance(body, bytes | str):
        body = json.dumps(body)
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *more]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def decided(allow: Any, *, revision: str = "1", version: str = "1.22.2", **more: Any) -> dict[str, Any]:
    """The document of an OPA server that has decided."""
    return {"provenance": provenance(revision, version), "result": {"allow": allow, **more}}


def provenance(revision: str = "1", version: str = "1.22.2") -> dict[str, Any]:
    """What an OPA server with one bundle says of itself."""
    return {"version": version, "build_commit": "", "bundles": {"eab": {"revision": revision}}}


YES = http(decided(allow=True))
NO = http(decided(allow=False))
