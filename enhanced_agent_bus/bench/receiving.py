"""A receiving node in a process of its own, started and asked by whoever measures; with `bare`, nats-py alone instead.

    python -m enhanced_agent_bus.bench.receiving URL MONITOR BUS CONSTITUTION ROUTES

It says a line on standard output when it takes messages, and for each line that it is given one with the seconds of
processor time that it has used. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from enhanced_agent_bus.bench.bare_nats import answering
from enhanced_agent_bus.bench.jetstream import Server
from enhanced_agent_bus.bench.nodes import node, receive, routes

BARE: Final = "bare"
END_SECONDS_MAX: Final = 30.0


class Receiver:
    """One that runs, as its parent has it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def cpu_seconds(self) -> float:
        """The processor time that it has used by now."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return await self.heard()

    async def heard(self) -> float:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("a receiving node ended before it was told to")
        return float(line)


@asynccontextmanager
async def receiving(server: Server, bus: str, constitution: Path, many: int) -> AsyncIterator[Receiver]:
    """Starts one with the recipients of so many routes; it takes messages when this begins, and ends when this does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __spec__.name, server.url, server.monitor, bus, str(constitution), str(many)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        receiver = Receiver(process)
        await receiver.heard()
        yield receiver
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(END_SECONDS_MAX):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _run(url: str, monitor: str, bus: str, constitution: str, many: str) -> None:
    if bus == BARE:
        async with answering(url):
            await _report()
        return
    async with node(None, Path(constitution), Server(url, monitor), bus) as opened:
        await receive(opened, routes(int(many)))
        await _report()


async def _report() -> None:
    """Until standard input ends."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while True:
        print(time.process_time(), flush=True)
        if not await lines.readline():
            return


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:]))
