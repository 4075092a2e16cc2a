"""The lock that makes a home one process's, and where that process can be asked.

Little is imported: every command looks here. Not here: what else a home is (home).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from enhanced_agent_bus.errors import StoreLocked

BLOCKED: Final = "blocked"  # the file that says what the running bus is held up by


class HomeLock:
    """Held by the one process that has the home open; the file names its control socket, when that is elsewhere."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, home: Path) -> HomeLock:
        """Raises: StoreLocked, when another process (or another bus of this one) has the home."""
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StoreLocked(
                f"the home {home} is open in another process, or as another bus of this one",
                remedy="close that one, or talk to it: one home belongs to one bus at a time",
            ) from None
        os.ftruncate(descriptor, 0)
        return cls(descriptor)

    def announce(self, socket: Path) -> None:
        """Writes where the control socket is, for those who find the home locked."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{socket}\n".encode(), 0)

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def control_socket(home: Path) -> Path | None:
    """Where a bus that has this home open listens, as its lock file says, or else HOME/control.sock; None without."""
    try:
        named = (home / "lock").read_text().strip()
    except OSError:
        named = ""
    socket = Path(named) if named else home / "control.sock"
    return socket if socket.is_socket() else None
