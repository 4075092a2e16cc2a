"""Which handlers are running, where a process that is killed leaves it: in a small file that is mapped into memory.

Nothing is synced: what a handler does to its process, the machine survives, and with it the page. After a power loss
the file may say less, or what was so a while ago; whoever reads it looks at the ledger first.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Final

SLOTS: Final = 4096  # one more run at the same time is not noted
_ROW: Final = struct.Struct("<q")


class Runs:
    """The file `running` of a home: the ledger row of each message that is in a handler, 0 in free slots."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = SLOTS * _ROW.size
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, 0)
                os.posix_fallocate(descriptor, 0, size)  # a full disk is an error here, and no signal later
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._interrupted = frozenset(row for (row,) in _ROW.iter_unpack(self._map) if row > 0)
        self._free = list(range(SLOTS))

    def interrupted(self) -> frozenset[int]:
        """The rows that were in handlers when the last process ended."""
        return self._interrupted

    def forget(self) -> None:
        """They are dealt with."""
        self._interrupted = frozenset()
        self._map[:] = bytes(len(self._map))

    def begin(self, row: int) -> int:
        """Notes a run; the slot is for `end`, -1 where all are taken."""
        if not self._free:
            return -1
        slot = self._free.pop()
        _ROW.pack_into(self._map, slot * _ROW.size, row)
        return slot

    def end(self, slot: int) -> None:
        if slot >= 0:
            _ROW.pack_into(self._map, slot * _ROW.size, 0)
            self._free.append(slot)

    def close(self) -> None:
        self._map.close()


class NoRuns:
    """A bus that keeps nothing keeps this neither."""

    def interrupted(self) -> frozenset[int]:
        return frozenset()

    def forget(self) -> None:
        pass

    def begin(self, _row: int) -> int:
        return -1

    def end(self, _slot: int) -> None:
        pass
