"""The access records of views: those that come at once are written together, and none into a log that was cut.

Where a view cannot be recorded it is not shown. Not here: writing the records (cli/access), which views there are
(pages).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from enhanced_agent_bus.cli.access import note
from enhanced_agent_bus.cli.faults import UNDECIDED, CliError
from enhanced_agent_bus.cli.reading.home import database, one
from enhanced_agent_bus.errors import StoreCorrupt
from enhanced_agent_bus.ledger import sql

COMMAND: Final = "console"
WAITING_MAX: Final = 64  # views at once; one more is refused


class Recorder:
    """Writes access records; views that come while one is being written are written together after it.

    Nothing is written into a log that has fewer than `vouched` records: that many has a checkpoint which was kept, or
    which a witness has, and what is appended would take the place of what was cut off.
    """

    def __init__(self, home: Path, vouched: int = 0) -> None:
        self._home = home
        self._vouched = vouched
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: list[tuple[str, Future[None]]] = []

    def note(self, what: str) -> None:
        """Returns once it is on the disk that this was shown; blocks.

        Raises: BusError, CliError, OSError or sqlite3.Error, when it cannot be recorded.
        """
        written: Future[None] = Future()
        with self._guard:
            if len(self._waiting) >= WAITING_MAX:
                raise CliError("too many views at once", remedy="wait a moment", code="busy", status=UNDECIDED)
            self._waiting.append((what, written))
        with self._turn:
            with self._guard:
                batch, self._waiting = self._waiting, []
            if batch:
                self._write(batch)
        written.result()

    def _write(self, batch: list[tuple[str, Future[None]]]) -> None:
        try:
            self._record([what for what, _ in batch])
        except Exception as error:  # noqa: BLE001 - handed to everyone who waits for this batch
            for _, written in batch:
                written.set_exception(error)
        else:
            for _, written in batch:
                written.set_result(None)

    def _record(self, whats: list[str]) -> None:
        self._require_whole()
        note(self._home, COMMAND, whats)

    def _require_whole(self) -> None:
        if not self._vouched:
            return
        with database(self._home) as connection:
            size = one(connection, sql.COUNT_RECORDS)
        if size < self._vouched:
            raise StoreCorrupt(
                f"the log has {size} records, and a checkpoint kept outside vouches for {self._vouched}: "
                "its end was cut off, or the checkpoint is of another log",
                remedy="copy the home as it is, it is evidence, and nothing is written into it here; "
                "`eab audit verify`, with `--checkpoint FILE` or its witnesses, says more",
            )
