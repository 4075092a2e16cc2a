"""Another bus, reached by the control socket of its home: it records the checkpoint in its own log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from enhanced_agent_bus.audit.homes import open_database
from enhanced_agent_bus.audit.notes import notes_in, one_note
from enhanced_agent_bus.control.client import call
from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.ledger.lock import control_socket
from enhanced_agent_bus.ports import SignedNote

ANSWER_SECONDS: Final = 10.0


class BusWitness:
    """Fills `ports.Witness` with the home of another bus of this machine and user; it has to run."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = url
        self._path = path

    def newest(self, origin: str) -> SignedNote | None:
        note = self._call("witnessed", {"origin": origin})
        return None if note is None else one_note(str(note))

    def take(self, note: SignedNote) -> None:
        self._call("witness", {"note": note.text})

    def notes(self) -> list[SignedNote]:
        if not (self._path / "bus.db").is_file():
            raise FileNotFoundError(f"{self._path} is no home")
        with open_database(self._path) as database:
            rows = database.execute("SELECT body FROM records WHERE kind = 'witness' ORDER BY seq")
            records = [json.loads(body) for (body,) in rows]
        return [note for record in records for note in notes_in(str(record.get("note", "")))]

    def stop(self) -> None:
        """An answer that is waited for comes, or its time is over."""

    def _call(self, op: str, args: dict[str, str]) -> object:
        socket = control_socket(self._path)
        if socket is None:
            raise ConnectionError(f"no bus runs with the home {self._path}")
        try:
            return call(socket, op, args, timeout=ANSWER_SECONDS)
        except (BusError, ValueError, KeyError) as error:
            raise ConnectionError(f"the bus of {self._path} did not take it: {error}") from None
