"""A real NATS server for a benchmark, with JetStream and fsync before each acknowledgement.

Run where a `nats-server` is found, on PATH or in a checkout's .tools/bin, on a port of this machine.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enhanced_agent_bus.bench.house import free_port

READY_SECONDS_MAX: Final = 30.0
CHECKOUT: Final = Path(__file__).resolve().parents[2] / ".tools" / "bin" / "nats-server"
CONFIGURATION: Final = """listen: 127.0.0.1:{port}
http: 127.0.0.1:{monitor}
max_payload: 8M
jetstream {{ store_dir: {store!r}, sync_interval: always, max_file_store: 1000G }}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """Where it answers."""

    url: str
    monitor: str
    pid: int = 0  # where it was started by this process

    def cpu_seconds(self) -> float:
        """The processor time that it has used by now; nothing where the system does not say."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def nats_binary() -> str | None:
    """Where a stock NATS server is."""
    return shutil.which("nats-server") or (str(CHECKOUT) if CHECKOUT.is_file() else None)


@asynccontextmanager
async def jetstream(binary: str, folder: Path) -> AsyncIterator[Server]:
    """A server with its store in this folder; it has ended when this has."""
    port, monitor = free_port(), free_port()
    written = folder / "server.conf"
    written.write_text(CONFIGURATION.format(port=port, monitor=monitor, store=str(folder / "store")), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(binary, "--config", str(written)), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(READY_SECONDS_MAX):
            while not await _answers(port):
                if process.returncode is not None:
                    raise RuntimeError(f"{binary} ended with status {process.returncode}")
                await asyncio.sleep(0.02)
        yield Server(f"nats://127.0.0.1:{port}", f"http://127.0.0.1:{monitor}", process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        return (await reader.read(4)) == b"INFO"
    finally:
        writer.close()
