"""Standard output or error of the process: a JSON line for each checkpoint, for whoever collects a container's log."""

from __future__ import annotations

import json
import os

from enhanced_agent_bus.ports import SignedNote


class StreamWitness:
    """Fills `ports.Witness` with `stdout:` or `stderr:`; what was written there cannot be read back."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._descriptor = 1 if url.startswith("stdout:") else 2

    def newest(self, origin: str) -> SignedNote | None:  # noqa: ARG002 - nobody can say
        return None

    def take(self, note: SignedNote) -> None:
        """Past the program's own buffer, so that a pipe that nobody empties holds up this thread and no print."""
        document = {"event": "eab_checkpoint", "origin": note.origin, "size": note.size}
        line = json.dumps(document | {"root": note.root.hex(), "note": note.text}).encode() + b"\n"
        while line:  # in one piece, where a pipe has room: it is shorter than PIPE_BUF
            line = line[os.write(self._descriptor, line) :]

    def notes(self) -> None:
        """Whoever collects the log has them."""
        return

    def stop(self) -> None:
        """A write under way cannot be taken back."""
