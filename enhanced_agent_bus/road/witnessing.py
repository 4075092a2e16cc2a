"""What this bus does for other logs: it records their signed checkpoints, so that they cannot be rewritten unseen.

And how the witnesses of its own log stand. Not here: bringing them checkpoints (the room `witness`), and signatures,
which whoever verifies a log checks.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from enhanced_agent_bus.audit.notes import one_note
from enhanced_agent_bus.outcome import WitnessInfo
from enhanced_agent_bus.ports import Entry, SignedNote
from enhanced_agent_bus.road.desk import Desk

#: More logs than this one bus does not witness; it says so to the next one.
LOGS_MAX: Final = 100
NOTE_BYTES_MAX: Final = 4096
_SETTING: Final = "witnessed"


class Witnessing:
    """The newest checkpoint of each other log stands in a setting, all of them in records."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._turn = asyncio.Lock()

    def witnessed(self, origin: str) -> str | None:
        """The newest note of that log."""
        note = self._known().get(origin)
        return None if note is None else str(note)

    async def witness(self, text: str) -> None:
        """Raises: ValueError; AuditUnavailable."""
        if len(text.encode()) > NOTE_BYTES_MAX:
            raise ValueError(f"a signed checkpoint has at most {NOTE_BYTES_MAX} bytes")
        note = one_note(text)
        if note.origin == f"{self._desk.ledger.bus}/{self._desk.ledger.node}":
            raise ValueError(f"{note.origin} is this log itself, which cannot witness itself")
        async with self._turn:
            known = self._known()
            if note.origin in known:
                if not _goes_on(one_note(known[note.origin]), note):
                    return
            elif len(known) >= LOGS_MAX:
                raise ValueError(f"this bus witnesses {LOGS_MAX} logs already")
            fields = {"event": "witnessed", "origin": note.origin, "size": note.size, "root": note.root.hex()}
            settings = {_SETTING: json.dumps(known | {note.origin: note.text})}
            await self._desk.write(Entry("witness", fields | {"note": note.text}, settings=settings))

    def changed(self, event: str, info: WitnessInfo) -> None:
        """Records that a witness of this log is too far behind, contradicts it, or has caught up."""
        if not self._desk.closed:
            self._desk.ledger.put(Entry("witness", {"event": event, "witness": info.witness, "size": info.size}))

    def _known(self) -> dict[str, Any]:
        return dict(json.loads(self._desk.ledger.setting(_SETTING) or "{}"))


def _goes_on(known: SignedNote, new: SignedNote) -> bool:
    """Whether this is news. Raises: ValueError, when it contradicts what is known."""
    if new.size < known.size or (new.size == known.size and new.root != known.root):
        raise ValueError(
            f"{new.origin} has signed {new.size} records, and another {known.size} before: it was cut off or rewritten"
        )
    return new.size > known.size
