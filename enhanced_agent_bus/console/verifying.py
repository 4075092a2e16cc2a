"""The verdicts of `eab audit verify`, kept for a page: computed by that command in a process of its own.

Verifying reads the whole log, so it is done at the start, when somebody asks, and every so often where the log has
grown; a page shows the newest verdicts and when they were found. Not here: what they mean.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.cli.faults import DONE, FOUND
from enhanced_agent_bus.cli.reading.home import database, one
from enhanced_agent_bus.ledger import sql

EVERY_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found, or why nothing could be; `at` is when it was begun."""

    at: datetime
    seconds: float
    verdict: dict[str, Any] | None
    problem: str = ""


class Verifier:
    """Verifies one home, one time after the other; `run` belongs to the loop, as `ask` does."""

    def __init__(self, home: Path, checkpoint: Path | None) -> None:
        outside = [] if checkpoint is None else ["--checkpoint", str(checkpoint.absolute())]
        command = ["--home", str(home.absolute()), "--json", "audit", "verify", *outside]
        self._command = [sys.executable, "-P", "-m", "enhanced_agent_bus", *command]
        self._home = home
        self._asked = asyncio.Event()
        self._found = asyncio.Condition()
        self.newest: Verification | None = None
        self.running = False

    async def ask(self, seconds: float) -> None:
        """Verifies again, at once or after the time that is under way; waits for it for so long at most."""
        self._asked.set()
        known = self.newest
        async with self._found:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._found.wait_for(lambda: not self._asked.is_set() and self.newest is not known)

    async def run(self) -> None:
        """Verifies, and waits until it is due again; until it is cancelled."""
        while True:
            self._asked.clear()
            self.running = True
            try:
                newest = await self._verify()
            finally:
                self.running = False
            async with self._found:
                self.newest = newest
                self._found.notify_all()
            while not await self._is_asked() and not await asyncio.to_thread(self._has_grown):
                pass

    async def _is_asked(self) -> bool:
        try:
            async with asyncio.timeout(EVERY_SECONDS):
                return await self._asked.wait()
        except TimeoutError:
            return False

    def _has_grown(self) -> bool:
        found = None if self.newest is None else self.newest.verdict
        with database(self._home) as connection:
            return found is None or one(connection, sql.COUNT_RECORDS) != found["size"]

    async def _verify(self) -> Verification:
        at, began = datetime.now(UTC), time.monotonic()
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env={**os.environ, "PYTHONPATH": paths}
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        seconds = time.monotonic() - began
        if process.returncode in (DONE, FOUND):
            return Verification(at, seconds, json.loads(out))
        return Verification(at, seconds, None, _problem(err))


def _problem(err: bytes) -> str:
    """What the command said was wrong."""
    lines = err.decode("utf-8", "replace").splitlines()
    try:
        return str(json.loads(lines[-1])["error"]["message"])
    except (IndexError, ValueError, KeyError, TypeError):
        return "the verification ended without an answer"
