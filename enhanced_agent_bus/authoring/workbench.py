"""A worker for questions about constitutions, without a bus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from enhanced_agent_bus.authoring.answers import Explained, Tested
from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.ports import Checked, Verified


class BadPattern(ValueError):
    """What should choose tests is no regular expression; the message says why."""


class Workbench:
    """Asks about constitutions that are folders or bundles on disk."""

    def __init__(self, engine: WorkerEngine) -> None:
        self._engine = engine

    async def check(self, path: Path, *, warnings: bool = True) -> Checked:
        """Every activation check, and warnings. Raises: ConstitutionRejected, when it cannot even be read."""
        return await self._engine.check(path, warnings=warnings)

    async def verify(self, path: Path, keys: Sequence[str]) -> Verified:
        """Whether one of these public keys (PEM) has signed a bundle. Raises: ConstitutionRejected."""
        return await self._engine.verify(path, keys)

    async def hash(self, path: Path) -> str:
        """The constitutional hash. Raises: ConstitutionRejected."""
        return await self._engine.hash(path)

    async def pack(self, path: Path, out: Path) -> str:
        """Writes the bundle; returns its hash. Raises: ConstitutionRejected."""
        return await self._engine.pack(path, out)

    async def claims(self, path: Path) -> tuple[str, str]:
        """The hash, and the text that a signature signs. Raises: ConstitutionRejected."""
        return await self._engine.claims(path)

    async def sign(self, path: Path, out: Path, token: str) -> str:
        """Writes the bundle with this token as its signature; returns its hash. Raises: ConstitutionRejected."""
        return await self._engine.sign(path, out, token)

    async def test(self, path: Path, *, run: str = "", draft: bool = False) -> Tested:
        """Runs the tests, or those whose full name this regular expression (RE2) finds.

        A draft is a folder that somebody is writing: what an editor keeps there meanwhile is left out.
        Raises: ConstitutionRejected, when it does not compile; BadPattern.
        """
        answer = await self._engine.test(path, coverage=True, run=run, draft=draft)
        if answer.get("bad_run"):
            raise BadPattern(answer["bad_run"])
        return Tested.of(answer)

    async def explain(self, path: Path, document: bytes, timeout_seconds: float = 0.0) -> Explained:
        """How each rule answers this input; the decision may take as long as a live one, or 2 s.

        Raises: ConstitutionRejected; BusError, when it cannot be evaluated.
        """
        return Explained.of(await self._engine.explain(path, document, timeout_seconds))


@asynccontextmanager
async def workbench() -> AsyncIterator[Workbench]:
    """Raises: EngineMissing."""
    engine = await WorkerEngine.start(workers=0)  # each question gets a process of its own; nobody decides here
    try:
        yield Workbench(engine)
    finally:
        await engine.close()
