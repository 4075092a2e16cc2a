"""What the log's lists show: a page of records that a query finds, looking back so far and no farther. Read-only."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from enhanced_agent_bus.audit.query import Query, Term
from enhanced_agent_bus.cli.reading.log import Search

ROWS: Final = 100
#: Further back somebody has to ask for: about half a second's worth.
LOOKED_RECORDS_MAX: Final = 200_000
#: Fields that have an index: what is asked of one message is found however old it is.
_OF_ONE_MESSAGE: Final = ("message_id", "message", "id", "decision_id", "decision")


class Found(NamedTuple):
    """A page of records, the newest first."""

    records: list[dict[str, Any]]
    size: int  # of the log
    looked_from: int  # the first seq that was looked at
    looked_to: int
    older: int | None  # before which seq the next page begins; None when there is none


def newest(home: Path, query: Query, *, before: int | None = None, rows: int = ROWS) -> Found:
    """The newest records that it finds, among those before a seq. Raises: StoreCorrupt, sqlite3.Error."""
    whole = Search(home, query)
    top = whole.size if before is None else max(0, min(before, whole.size))
    indexed = any(query.exactly(field) is not None for field in _OF_ONE_MESSAGE)
    low = 0 if indexed else max(0, top - LOOKED_RECORDS_MAX)
    bounded = Query([*query.terms, _seq(">=", low), _seq("<", top)], query.since, query.until)
    records = list(islice(Search(home, bounded, size=whole.size).newest(), rows))
    if len(records) == rows:
        low = int(records[-1]["seq"])
    return Found(records, whole.size, low, top - 1, low if low > 0 else None)


def since(home: Path, query: Query, after: int) -> Found:
    """What came after a seq, the newest page of it."""
    whole = Search(home, query)
    low = max(after + 1, whole.size - LOOKED_RECORDS_MAX)
    bounded = Query([*query.terms, _seq(">=", low)], query.since, query.until)
    records = list(islice(Search(home, bounded, size=whole.size).newest(), ROWS + 1))
    return Found(records[:ROWS], whole.size, low, whole.size - 1, low if len(records) > ROWS else None)


def _seq(compare: str, seq: int) -> Term:
    return Term("seq", str(seq), negated=False, quoted=False, compare=compare)
