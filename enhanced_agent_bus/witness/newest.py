"""Remembers the newest signed checkpoint, for whoever shows it to other nodes."""

from __future__ import annotations

from enhanced_agent_bus.ports import Checkpoints


class Newest:
    """Fills `ports.Checkpoints`; `then` hears of each note as well."""

    def __init__(self, note: str | None, then: Checkpoints | None) -> None:
        """`note` is what the home has from before."""
        self.note = note
        self._then = then

    def signed(self, note: str) -> None:
        self.note = note
        if self._then is not None:
            self._then.signed(note)

    async def close(self) -> None:
        if self._then is not None:
            await self._then.close()
