"""A worker for questions about constitutions, without a bus, and its answers as values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.ports import Checked


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One test of a constitution."""

    package: str
    name: str
    file: str
    row: int
    passed: bool
    error: str
    duration_us: int
    output: str


@dataclass(frozen=True, slots=True)
class FileCoverage:
    """How much of one file the tests have run."""

    file: str
    covered: int
    total: int
    uncovered_rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tested:
    """A constitution's own tests, run as strictly as it will decide."""

    tests: tuple[RuleTest, ...]
    coverage: tuple[FileCoverage, ...]

    @property
    def ok(self) -> bool:
        """False without any test: nothing was shown then."""
        return bool(self.tests) and all(test.passed for test in self.tests)


@dataclass(frozen=True, slots=True)
class Failing:
    """The first expression that did not hold, and the values that it saw."""

    file: str
    row: int
    text: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RuleAnswer:
    """What one listed rule said. `failing` is None when it admits, or when no single expression says no."""

    name: str
    admit: bool
    code: str
    file: str
    row: int
    failing: Failing | None


@dataclass(frozen=True, slots=True)
class Explained:
    """One question, rule by rule. `decision` is None when it is undefined."""

    decision: Mapping[str, Any] | None
    rules: tuple[RuleAnswer, ...]

    @property
    def allow(self) -> bool:
        """Only JSON `true` is."""
        return self.decision is not None and self.decision.get("allow") is True


class Workbench:
    """Asks about constitutions that are folders or bundles on disk."""

    def __init__(self, engine: WorkerEngine) -> None:
        self._engine = engine

    async def check(self, path: Path) -> Checked:
        """Every activation check. Raises: ConstitutionRejected, when it cannot even be read."""
        return await self._engine.check(path)

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

    async def test(self, path: Path) -> Tested:
        """Runs the tests. Raises: ConstitutionRejected, when it does not compile."""
        answer = await self._engine.test(path, coverage=True)
        return Tested(
            tuple(RuleTest(**test) for test in answer["tests"]),
            tuple(_coverage(file) for file in answer.get("coverage") or ()),
        )

    async def explain(self, path: Path, document: bytes) -> Explained:
        """How each rule answers this input. Raises: ConstitutionRejected; BusError, when it cannot be evaluated."""
        answer = await self._engine.explain(path, document)
        return Explained(answer.get("decision"), tuple(_rule(rule) for rule in answer["rules"]))


@asynccontextmanager
async def workbench() -> AsyncIterator[Workbench]:
    """Raises: EngineMissing."""
    engine = await WorkerEngine.start(workers=0)  # each question gets a process of its own; nobody decides here
    try:
        yield Workbench(engine)
    finally:
        await engine.close()


def _coverage(file: Mapping[str, Any]) -> FileCoverage:
    rows: Sequence[int] = file.get("uncovered_rows") or ()
    return FileCoverage(file["file"], file["covered"], file["total"], tuple(rows))


def _rule(rule: Mapping[str, Any]) -> RuleAnswer:
    failed = rule.get("failed")
    failing = (
        None
        if failed is None
        else Failing(failed["file"], failed["row"], failed["text"], dict(failed.get("values") or {}))
    )
    code, file, row = rule.get("code") or "", rule.get("file") or "", rule.get("row") or 0
    return RuleAnswer(rule["name"], rule["admit"] is True, code, file, row, failing)
