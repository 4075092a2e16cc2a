"""A file that is only added to: one signed checkpoint after another. Several logs may share it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from enhanced_agent_bus.audit.notes import notes_in
from enhanced_agent_bus.ledger.home import sync_folder
from enhanced_agent_bus.ports import SignedNote

#: How much of the end is looked through for the newest checkpoint of a log.
TAIL_BYTES: Final = 1024 * 1024


class FileWitness:
    """Fills `ports.Witness` with a file, which is made where its folder is there."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = url
        self._path = path

    def newest(self, origin: str) -> SignedNote | None:
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return None
        return max((note for note in notes_in(text) if note.origin == origin), key=_size, default=None)

    def take(self, note: SignedNote) -> None:
        made = not self._path.exists()
        # Never the folder: a disk that is not mounted must not be mistaken for an empty one.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # another bus may share the file
            end = os.lseek(descriptor, 0, os.SEEK_END)
            clean = not end or os.pread(descriptor, 2, max(0, end - 2)) == b"\n\n"
            data = ("" if clean else "\n\n").encode() + note.text.encode() + b"\n"  # behind what a crash left half done
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if made:
            sync_folder(self._path.parent)

    def notes(self) -> list[SignedNote]:
        return list(notes_in(self._path.read_text(encoding="utf-8", errors="replace")))

    def stop(self) -> None:
        """A write under way cannot be taken back."""


def _size(note: SignedNote) -> int:
    return note.size
