"""What a benchmark says: figures of several runs beside what they should reach, and the machine they were taken on."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


class Missing(Exception):
    """A row cannot be measured here: which program or package is not there."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a median should reach."""

    side: Literal["at least", "at most"]
    value: float

    def reached(self, median: float) -> bool:
        return median >= self.value if self.side == "at least" else median <= self.value


def at_least(value: float) -> Target:
    """More is better."""
    return Target("at least", value)


def at_most(value: float) -> Target:
    """Less is better."""
    return Target("at most", value)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured thing, once a run. Without a target it stands there for scale."""

    row: str
    what: str
    unit: str
    values: tuple[float, ...]
    target: Target | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else self.target.reached(self.median)

    def as_json(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "what": self.what,
            "unit": self.unit,
            "min": min(self.values),
            "median": self.median,
            "max": max(self.values),
            "runs": len(self.values),
            "target": None if self.target is None else {"side": self.target.side, "value": self.target.value},
            "reached": self.reached,
            "note": self.note,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def machine(engine: str) -> dict[str, Any]:
    """The machine in neutral words; `engine` names the OPA that decides."""
    return {
        "cores": os.cpu_count() or 1,
        "cpu": _cpu(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "opa": engine,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
