"""Records who was shown what, before it is shown: in the running bus, or else in the home's log by itself.

Where that cannot be recorded nothing is shown. Not here: which views there are (pages).
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from enhanced_agent_bus.cli.faults import UNDECIDED, CliError
from enhanced_agent_bus.cli.reading.home import database, one
from enhanced_agent_bus.cli.session import held_up, operator
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.control.client import call
from enhanced_agent_bus.errors import BusClosed, StoreCorrupt, StoreLocked
from enhanced_agent_bus.ledger import sql
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.lock import control_socket
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.ports import Entry

COMMAND: Final = "console"
WHAT_CHARS_MAX: Final = 500  # as the bus keeps
#: Another command has the home for a moment, or a bus is just being opened or closed.
PATIENCE_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 0.05
ANSWER_SECONDS_MAX: Final = 10.0
WAITING_MAX: Final = 64  # views at once; one more is refused


class Recorder:
    """Writes access records; views that come while one is being written are written together after it.

    Nothing is written into a log that has fewer than `vouched` records: that many has a checkpoint which was kept, or
    which a witness has, and what is appended would take the place of what was cut off.
    """

    def __init__(self, home: Path, vouched: int = 0) -> None:
        self._home = home
        self._by = operator()
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
            self._waiting.append((what[:WHAT_CHARS_MAX], written))
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
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if not self._told_the_bus(whats):
                    asyncio.run(_append(self._home, whats, self._by))
                return
            except (StoreLocked, BusClosed):
                if time.monotonic() >= until:
                    raise
            time.sleep(AGAIN_SECONDS)

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

    def _told_the_bus(self, whats: list[str]) -> bool:
        """False when no process with this home answers at its socket."""
        path = control_socket(self._home)
        if path is None:
            return False
        if (blocked := held_up(self._home)) is not None:
            raise CliError(
                f"the running bus cannot record this view: something blocks its event loop at {blocked.get('where')}",
                remedy="ask again when it goes on",
                code="busy",
                status=UNDECIDED,
            )
        try:
            while whats:
                said = {"command": COMMAND, "what": whats[0], "by": self._by}
                call(path, "note_access", said, timeout=ANSWER_SECONDS_MAX)
                del whats[0]  # should the bus end just now, the rest is written without it
        except (ConnectionError, FileNotFoundError):  # it is gone, or going
            return False
        return True


async def _append(home: Path, whats: list[str], by: str) -> None:
    """Takes the lock and appends to the log; no bus is opened, so nothing else changes."""
    place = open_home(home, make=False)
    try:
        ledger = await SqliteLedger.open(place, clock=SystemClock())
        try:
            loop = asyncio.get_running_loop()
            entries = [Entry("access", {"command": COMMAND, "what": what, "by": by}) for what in whats]
            written = [_put(ledger, entry, loop.create_future()) for entry in entries]
            await asyncio.gather(*written)
        finally:
            await ledger.close()
    finally:
        place.release()


def _put(ledger: SqliteLedger, entry: Entry, done: asyncio.Future[int]) -> asyncio.Future[int]:
    entry.done = lambda seq, error: done.set_result(seq) if error is None else done.set_exception(error)
    ledger.put(entry)
    return done
