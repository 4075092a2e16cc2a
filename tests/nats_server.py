"""A NATS server for tests, with JetStream and fsync on acknowledge; and a proxy before it that fails on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

BINARY: Final = Path(__file__).resolve().parent.parent / ".tools" / "bin" / "nats-server"
READY_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 10.0
#: Each bus reserves 1.3 GiB; nothing takes it from the disk before there is something in it.
JETSTREAM: Final = "jetstream {{ store_dir: {store!r}, sync_interval: {sync}, max_file_store: 1000G }}"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class NatsServer:
    """One server on a port of its own. It ends with this process at the latest."""

    def __init__(
        self, folder: Path, *, sync: str = "always", jetstream: bool = True, extra: str = "", name: str = ""
    ) -> None:
        self.folder = folder
        self.name = name
        self.port = free_port()
        self.monitor = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        store = JETSTREAM.format(store=str(folder / "store"), sync=sync) if jetstream else ""
        named = f"server_name: {name}\n" if name else ""
        config = (
            f"listen: 127.0.0.1:{self.port}\nhttp: 127.0.0.1:{self.monitor}\nmax_payload: 8M\n{named}{store}\n{extra}\n"
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "server.conf").write_text(config, encoding="utf-8")

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        return f"http://127.0.0.1:{self.monitor}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns once it answers."""
        self.launch()
        self.answers()

    def launch(self) -> None:
        """Returns at once."""
        if not BINARY.is_file():
            pytest.fail(f"{BINARY} is missing: `make test` installs it, once")
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [BINARY, "--config", self.folder / "server.conf"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def answers(self) -> None:
        """Returns once it does."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as answer:
                if answer.recv(5).startswith(b"INFO"):
                    return
            if self._process is None or self._process.poll() is not None:
                break
            time.sleep(0.01)
        pytest.fail(f"the NATS server did not start:\n{(self.folder / 'server.log').read_text(encoding='utf-8')}")

    def stop(self) -> None:
        """Asks it to end, and waits."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As when the machine fails, but for what the kernel has."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running(folder: Path, *, sync: str = "always", jetstream: bool = True, extra: str = "") -> Iterator[NatsServer]:
    """A server of one's own."""
    server = NatsServer(folder, sync=sync, jetstream=jetstream, extra=extra)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class NatsCluster:
    """Three servers that are one cluster."""

    def __init__(self, folder: Path, *, sync: Sequence[str] = ("always", "always", "always")) -> None:
        routes = [free_port() for _ in sync]
        joined = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
        self.servers = [
            NatsServer(
                folder / f"n{number}",
                sync=how,
                name=f"n{number}",
                extra=f"cluster {{ name: c, listen: 127.0.0.1:{port}, routes: [{joined}] }}",
            )
            for number, (how, port) in enumerate(zip(sync, routes, strict=True), 1)
        ]

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers)

    @property
    def monitor_url(self) -> str:
        return ",".join(server.monitor_url for server in self.servers)

    def start(self) -> None:
        """Returns once they have chosen who leads JetStream, and all of them have its store."""
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.answers()
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not all(self.is_ready(server) for server in self.servers):
            if time.monotonic() > deadline:
                pytest.fail("the cluster did not start")
            time.sleep(0.02)

    def leader(self, stream: str) -> NatsServer:
        """The server that leads a stream now."""
        while True:
            for server in self.servers:
                for account in _read(f"{server.monitor_url}/jsz?streams=true").get("account_details", ()):
                    for one in account.get("stream_detail", ()):
                        name = (one.get("cluster") or {}).get("leader", "")
                        if one["name"] == stream and name == server.name:
                            return server
            time.sleep(0.02)

    @staticmethod
    def is_ready(server: NatsServer) -> bool:
        """It has heard of a leader, and says to be up to date with it."""
        meta = _read(f"{server.monitor_url}/jsz").get("meta_cluster") or {}
        return bool(meta.get("leader")) and _read(f"{server.monitor_url}/healthz").get("status") == "ok"


def _read(address: str) -> dict[str, Any]:
    """A document of a monitoring port; empty where it does not answer."""
    try:
        return dict(httpx.get(address, trust_env=False).json())
    except (httpx.HTTPError, ValueError):
        return {}


@contextmanager
def cluster(folder: Path, *, sync: Sequence[str] = ("always", "always", "always")) -> Iterator[NatsCluster]:
    """A cluster of one's own."""
    servers = NatsCluster(folder, sync=sync)
    try:
        servers.start()
        yield servers
    finally:
        for server in servers.servers:
            server.kill()


class Proxy:
    """What stands between a client and its server: it delays, swallows and cuts."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.refusing = False
        self.delay_seconds = 0.0
        self.port = 0

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        for flow in self._flows:
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)

    def cut(self) -> None:
        """Ends all connections, and lets nobody in until `mend`."""
        self.refusing = True
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def mend(self) -> None:
        self.refusing = False
        self._open.set()

    def swallow(self) -> None:
        """Connections stay, and nothing passes any more: what a broken network looks like."""
        self._open.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        try:
            other_reader, other = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, other}
        for flow in (self._pass(reader, other), self._pass(other_reader, writer)):
            task = asyncio.ensure_future(flow)
            self._flows.add(task)
            task.add_done_callback(self._flows.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._open.wait()
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.transport.abort()


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[Proxy]:
    """A proxy that lets everything pass, until it is told otherwise."""
    proxy = Proxy(port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
