"""What the policy worker answers to an author's questions, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Json: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Step:
    """An expression at which something was decided, and what stood in it.

    `values` are by name, as the source names them with imports written out, in its order; `missing` had no value at
    all; `private` are those of both that may quote a payload or headers. `via` are the rules it was reached through.
    `because` says of a `not` what was true; `inside` of a rule or a function that is asked where that one ended.
    """

    file: str
    row: int
    text: str
    values: Mapping[str, Json]
    col: int = 0
    missing: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    via: tuple[str, ...] = ()
    because: Step | None = None
    inside: Step | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Json] | None) -> Step | None:
        """None for none."""
        if answer is None:
            return None
        return cls(
            file=answer["file"],
            row=answer["row"],
            col=answer["col"],
            text=answer["text"],
            values=answer["values"],
            missing=tuple(answer["missing"]),
            private=tuple(answer["private"]),
            via=tuple(answer["via"]),
            because=cls.of(answer.get("because")),
            inside=cls.of(answer.get("inside")),
        )


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One test of a constitution. `failing` is where it ended, and `cases` those that failed of a test with cases."""

    package: str
    name: str
    file: str
    row: int
    passed: bool
    error: str
    duration_us: int
    output: str
    failing: Step | None
    cases: tuple[str, ...]

    @classmethod
    def of(cls, answer: Mapping[str, Json]) -> RuleTest:
        """As the worker says it."""
        plain = dict(answer)
        return cls(failing=Step.of(plain.pop("failed")), cases=tuple(plain.pop("cases")), **plain)


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
    untested: tuple[str, ...] = ()  # listed rules without a test in their folder

    @property
    def ok(self) -> bool:
        """False without any test: nothing was shown then."""
        return bool(self.tests) and all(test.passed for test in self.tests)

    @property
    def percent(self) -> float:
        """Of the lines that decide, how many the tests have run."""
        total = sum(file.total for file in self.coverage)
        return 100 * sum(file.covered for file in self.coverage) / total if total else 0.0

    @classmethod
    def of(cls, answer: Mapping[str, Json]) -> Tested:
        """As the worker says it."""
        coverage = tuple(
            FileCoverage(file["file"], file["covered"], file["total"], tuple(file["uncovered_rows"] or ()))
            for file in answer.get("coverage") or ()
        )
        return cls(tuple(map(RuleTest.of, answer["tests"])), coverage, tuple(answer.get("untested") or ()))


@dataclass(frozen=True, slots=True)
class Broken:
    """An evaluation that gave no answer, and where it ended."""

    code: str
    message: str
    at: Step | None

    @classmethod
    def of(cls, answer: Mapping[str, Json] | None) -> Broken | None:
        """None for none."""
        return None if answer is None else cls(answer["code"], answer["message"], Step.of(answer["at"]))


@dataclass(frozen=True, slots=True)
class RuleAnswer:
    """What one listed rule said, at `file` and `row`.

    `ways` are where each body that could have admitted ended, in the order of the source, and `failing` is the one
    that came nearest; both are empty when it admits, or when no single expression says no.
    """

    name: str
    admit: bool
    code: str
    file: str
    row: int
    broken: Broken | None
    failing: Step | None
    ways: tuple[Step, ...]

    @classmethod
    def of(cls, answer: Mapping[str, Json]) -> RuleAnswer:
        """As the worker says it."""
        ways = tuple(step for step in map(Step.of, answer["ways"]) if step is not None)
        return cls(
            name=answer["name"],
            admit=answer["admit"] is True,
            code=answer["code"],
            file=answer["file"],
            row=answer["row"],
            broken=Broken.of(answer["error"]),
            failing=Step.of(answer["failed"]),
            ways=ways,
        )


@dataclass(frozen=True, slots=True)
class Explained:
    """One question, rule by rule. `decision` is None when it is undefined, or broken.

    `took_us` is how long the decision took, or how long it was waited for.
    """

    decision: Mapping[str, Json] | None
    rules: tuple[RuleAnswer, ...]
    broken: Broken | None = None
    took_us: int = 0

    @property
    def allow(self) -> bool:
        """Only JSON `true` is."""
        return self.decision is not None and self.decision.get("allow") is True

    @classmethod
    def of(cls, answer: Mapping[str, Json]) -> Explained:
        """As the worker says it."""
        rules = tuple(map(RuleAnswer.of, answer["rules"]))
        return cls(answer["decision"], rules, Broken.of(answer["error"]), answer.get("took_us", 0))
