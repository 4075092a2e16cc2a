"""What there is to sample from, and a random sample that anybody can draw again. Pure: records in, counts and seqs out.

Every record has a lot: the sha256, in hex, of the text `SEED:SEQ`. The N records with the smallest lots are the sample.
So one seed and one log give one sample, a larger N only adds to it, and who knows the seqs can check it with sha256sum.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

METHOD: Final = "the N records with the smallest sha256 of the text SEED:SEQ"
#: By what a population is counted.
COUNTED: Final = ("kind", "verdict", "code", "rule", "sender", "pair", "tenant", "type", "day")
#: Who sends to whom: so many pairs are kept apart, and the rest are counted together.
PAIRS_MAX: Final = 10_000
OTHERS: Final = "others"


def lot(seed: str, seq: int) -> str:
    """The lot of one record, 64 hex digits."""
    return sha256(f"{seed}:{seq}".encode()).hexdigest()


def draw(seqs: Iterable[int], *, seed: str, number: int) -> list[tuple[str, int]]:
    """Lot and seq of those that are drawn, in the order in which they are; memory for `number` of them."""
    return heapq.nsmallest(number, ((lot(seed, seq), seq) for seq in seqs))


def _value(name: str, record: Mapping[str, Any]) -> str | None:
    if name == "day":
        return str(record["at"][:10])
    if name == "pair":
        to = record.get("recipient") or record.get("topic")
        return f"{record['sender']} to {to}" if record.get("sender") and to else None
    value = record.get(name)
    return None if value is None else str(value)


class Population:
    """Counts records by what an auditor chooses them by; memory for the names that there are."""

    def __init__(self) -> None:
        self.size = 0
        self.constitutions: set[str] = set()  # under which these records were decided
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}

    def add(self, record: Mapping[str, Any]) -> None:
        self.size += 1
        if record["kind"] == "decision":
            self.constitutions.add(record["constitution"])
        for name, count in self._counts.items():
            if name == "rule":
                count.update({reason["rule"] for reason in record.get("reasons") or () if reason["rule"]})
                continue
            if (value := _value(name, record)) is not None:
                full = name == "pair" and value not in count and len(count) >= PAIRS_MAX
                count[OTHERS if full else value] += 1

    def document(self) -> dict[str, dict[str, int]]:
        """By each of `COUNTED`, how many records have which value; days in order, the rest by number."""
        return {
            name: dict(sorted(count.items())) if name == "day" else dict(count.most_common())
            for name, count in self._counts.items()
        }
