"""Who was shown what, recorded before it is shown: by the running bus, or else in the home's log by itself.

No bus is opened for it: whoever looks changes nothing else, and what waits in the home stays as it is. Not here: what
is shown, and to whom.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from enhanced_agent_bus.cli.faults import UNDECIDED, CliError
from enhanced_agent_bus.cli.session import held_up, operator
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.control.client import call
from enhanced_agent_bus.errors import BusClosed, StoreLocked
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.lock import control_socket
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.ports import Entry

WHAT_CHARS_MAX: Final = 500  # as the bus keeps
#: Another command has the home for a moment, or a bus is just being opened or closed.
PATIENCE_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 0.05
ANSWER_SECONDS_MAX: Final = 10.0


def note(home: Path, command: str, whats: list[str]) -> None:
    """Returns once it is on the disk that all this was shown; blocks.

    Raises: BusError, CliError, OSError or sqlite3.Error, when it cannot be recorded.
    """
    left = [{"command": command, "what": what[:WHAT_CHARS_MAX], "by": operator()} for what in whats]
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if not _told_the_bus(home, left):
                asyncio.run(_append(home, left))
            return
        except (StoreLocked, BusClosed):
            if time.monotonic() >= until:
                raise
        time.sleep(AGAIN_SECONDS)


def _told_the_bus(home: Path, left: list[dict[str, str]]) -> bool:
    """False when no process with this home answers at its socket."""
    path = control_socket(home)
    if path is None:
        return False
    if (blocked := held_up(home)) is not None:
        raise CliError(
            f"the running bus cannot record who looks: something blocks its event loop at {blocked.get('where')}",
            remedy="ask again when it goes on",
            code="busy",
            status=UNDECIDED,
        )
    try:
        while left:
            call(path, "note_access", left[0], timeout=ANSWER_SECONDS_MAX)
            del left[0]  # should the bus end just now, the rest is written without it
    except (ConnectionError, FileNotFoundError):  # it is gone, or going
        return False
    return True


async def _append(home: Path, left: list[dict[str, str]]) -> None:
    """Takes the lock and appends to the log."""
    place = open_home(home, make=False)
    try:
        ledger = await SqliteLedger.open(place, clock=SystemClock())
        try:
            loop = asyncio.get_running_loop()
            written = [_put(ledger, Entry("access", dict(fields)), loop.create_future()) for fields in left]
            await asyncio.gather(*written)
        finally:
            await ledger.close()
    finally:
        place.release()


def _put(ledger: SqliteLedger, entry: Entry, done: asyncio.Future[int]) -> asyncio.Future[int]:
    entry.done = lambda seq, error: done.set_result(seq) if error is None else done.set_exception(error)
    ledger.put(entry)
    return done
