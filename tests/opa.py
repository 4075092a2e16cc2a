"""A stock OPA server for tests, and the engine that asks it: a bundle of ours, served as any user would."""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from enhanced_agent_bus.engines.server import ServerEngine
from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.ports import Loaded

READY_SECONDS_MAX = 60.0


def free_port() -> int:
    """A port of this machine that nobody listens on: OPA does not say which one it got for port 0."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Opa:
    """One `opa run --server`, on a Unix socket and on a port, with one bundle under one name."""

    def __init__(self, binary: Path, folder: Path, *options: str, bundle_name: str = "eab") -> None:
        self._binary = binary
        self._options = options
        self._name = bundle_name
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.socket = folder / "opa.sock"
        self.port = free_port()
        self.bundle = folder / "bundle.tar.gz"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self) -> None:
        """Starts, and returns once the bundle is loaded."""
        await self.stop()
        self.socket.unlink(missing_ok=True)
        with (self._folder / "opa.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(self._binary, "run", "--server", "--log-level", "error", "--disable-telemetry"),
                *("--addr", self.url, "--addr", f"127.0.0.1:{self.port}"),
                *("--set", f"bundles.{self._name}.resource=file://{self.bundle}"),
                *self._options,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(READY_SECONDS_MAX):
            while not await self._ready():
                assert self._process.returncode is None, (self._folder / "opa.log").read_text()
                await asyncio.sleep(0.02)

    async def _ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await self.get("/health?bundles")).status_code == httpx.codes.OK
        return False

    async def get(self, path: str) -> httpx.Response:
        """Asks it anything, with plain httpx."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    async def stop(self) -> None:
        """Ends it, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


@asynccontextmanager
async def opa_server(binary: Path, constitution: Path, *options: str, **settings: Any) -> AsyncIterator[Opa]:
    """A server with the bundle of a constitution (folder or bundle)."""
    with tempfile.TemporaryDirectory(prefix="opa-") as folder:  # a socket's path has to be short
        opa = Opa(binary, Path(folder), *options, **settings)
        await pack(constitution, opa.bundle)
        try:
            await opa.serve()
            yield opa
        finally:
            await opa.stop()


async def pack(constitution: Path, out: Path) -> None:
    """Writes the bundle, as `eab policy build` does; one that is a bundle already is copied."""
    if constitution.is_file():
        shutil.copyfile(constitution, out)
        return
    worker = await WorkerEngine.start(workers=1)
    try:
        await worker.pack(constitution, out)
    finally:
        await worker.close()


class ServedEngine(ServerEngine):
    """A server engine whose server serves what was loaded last, so that it can stand in the suite of every engine."""

    opa: Opa

    async def load(self, path: Path) -> Loaded:
        await self.pack(path, self.opa.bundle)
        await self.opa.serve()
        return await super().load(path)


@asynccontextmanager
async def served_engine(binary: Path) -> AsyncIterator[ServedEngine]:
    """An engine with a server of its own."""
    with tempfile.TemporaryDirectory(prefix="opa-") as folder:
        opa = Opa(binary, Path(folder))
        engine = await ServedEngine.start(opa.url)
        assert isinstance(engine, ServedEngine)
        engine.opa = opa
        try:
            yield engine
        finally:
            await engine.close()
            await opa.stop()
