"""Counts the whole log a piece at a time: who sent to whom and what was decided, and which rules refused or held.

It goes on where it stopped, so that a log of millions is read once. Memory is bounded by the names that are kept; what
comes beyond is counted as `others`. Not here: who shows it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from enhanced_agent_bus.cli.reading.home import database, one

PAGE_ROWS: Final = 1000
PAIRS_MAX: Final = 5000
RULES_MAX: Final = 2000
CONSTITUTIONS_MAX: Final = 200
POLICIES_MAX: Final = 50

_LAST: Final = "SELECT coalesce(max(seq), -1) FROM records"
_PAGE: Final = (
    "SELECT seq, kind, body FROM records WHERE seq BETWEEN ? AND ? AND kind IN ('decision', 'policy') ORDER BY seq"
)


@dataclass(slots=True)
class Count:
    """Decisions by verdict, and the newest of them."""

    verdicts: Counter[str] = field(default_factory=Counter)
    newest: int = -1

    def add(self, verdict: str, seq: int) -> None:
        self.verdicts[verdict] += 1
        self.newest = seq

    @property
    def all(self) -> int:
        return self.verdicts.total()


@dataclass(slots=True)
class Counts:
    """What was counted in the records before `size`."""

    size: int = 0
    others: int = 0  # decisions between agents that are beyond what is kept
    pairs: dict[tuple[str, str], Count] = field(default_factory=dict)
    rules: dict[tuple[str, str], Count] = field(default_factory=dict)  # by constitution and rule
    constitutions: dict[str, Count] = field(default_factory=dict)
    codes: Counter[str] = field(default_factory=Counter)
    policies: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=POLICIES_MAX))

    def add(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "policy":
            names = ("seq", "at", "event", "digest", "revision", "reason")
            self.policies.append({name: record.get(name) for name in names})
            return
        verdict, seq = record["verdict"], record["seq"]
        to = record["recipient"] or (f"#{record['topic']}" if record["topic"] else "")
        pair = _kept(self.pairs, (record["sender"] or "", to), PAIRS_MAX)
        if pair is None:
            self.others += 1
        else:
            pair.add(verdict, seq)
        if (under := _kept(self.constitutions, record["constitution"], CONSTITUTIONS_MAX)) is not None:
            under.add(verdict, seq)
        if record["code"]:
            self.codes[record["code"]] += 1
        for rule in {reason["rule"] for reason in record["reasons"] if reason["rule"]}:
            if (fired := _kept(self.rules, (record["constitution"], rule), RULES_MAX)) is not None:
                fired.add(verdict, seq)


def _kept(counts: dict[Any, Count], key: Any, most: int) -> Count | None:
    found = counts.get(key)
    if found is None and len(counts) < most:
        found = counts[key] = Count()
    return found


class Tally:
    """Counts the log of one home; `advance` belongs to one thread at a time, `read` to any."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._turn = threading.Lock()
        self._counts = Counts()
        self.size = 0  # of the log, when it was looked at last

    def advance(self, seconds: float) -> bool:
        """Counts on for about so long; True when it has counted all.

        Raises: StoreCorrupt, sqlite3.Error.
        """
        until = time.monotonic() + seconds
        while True:
            with database(self._home) as connection:
                last = one(connection, _LAST)
                first = self._counts.size if self._counts.size <= last + 1 else 0
                page = connection.execute(_PAGE, (first, min(first + PAGE_ROWS - 1, last))).fetchall()
            with self._turn:
                if first < self._counts.size:  # another log is there now
                    self._counts = Counts()
                for _, _, body in page:
                    self._counts.add(orjson.loads(body))
                self._counts.size = min(first + PAGE_ROWS, last + 1)
                self.size = last + 1
            if self._counts.size >= self.size:
                return True
            if time.monotonic() >= until:
                return False

    def read(self) -> Counts:
        """A copy of what is counted so far."""
        with self._turn:
            now = self._counts
            copy = Counts(now.size, now.others, codes=now.codes.copy(), policies=now.policies.copy())
            for kept, copied in (
                (now.pairs, copy.pairs),
                (now.rules, copy.rules),
                (now.constitutions, copy.constitutions),
            ):
                for key, count in kept.items():
                    copied[key] = Count(count.verdicts.copy(), count.newest)  # type: ignore[index]
            return copy
