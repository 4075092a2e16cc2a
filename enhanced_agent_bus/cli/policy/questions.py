"""What `eab policy explain` asks: a message file or a recorded decision, and under which constitution."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from enhanced_agent_bus.admission.canonical import NotJson, loads_strict
from enhanced_agent_bus.authoring.documents import NoDocument, document_from_line, is_document
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.reading import home as reading
from enhanced_agent_bus.cli.runs.lines import DEPTH_MAX, LINE_BYTES_MAX
from enhanced_agent_bus.cli.runs.loading import policies_beside
from enhanced_agent_bus.cli.session import Json, Session, note_access


@dataclass(frozen=True, slots=True)
class Question:
    """An input document and who is asked."""

    document: bytes
    constitution: Path
    hide_content: bool = False  # it came from a recorded payload that nobody asked to see
    notes: list[str] = field(default_factory=list)


def find_question(session: Session, name: str, constitution: Path | None, *, payload: bool) -> Question:
    """Raises: CliError, when it is neither a file nor a recorded decision; BusError."""
    if constitution is not None and not constitution.exists():
        remedy = "name a folder or a bundle.tar.gz"
        raise CliError(f"there is no constitution at {constitution}", remedy=remedy, code="file")
    path = Path(name)
    if path.is_file() or name.endswith((".json", ".jsonl")):
        return _from_file(session, path, constitution)
    question = _from_record(session, name, payload=payload)
    return replace(question, constitution=constitution) if constitution is not None else question


def _from_file(session: Session, path: Path, constitution: Path | None) -> Question:
    value = _read(path)
    known = session.home if (session.home / "home.json").is_file() else None
    asked = constitution or (reading.active_constitution(known) if known is not None else policies_beside(None))
    if asked is None:
        raise CliError("there is no constitution to ask", remedy="name one with --constitution PATH")
    if is_document(value):
        return Question(json.dumps(value).encode(), asked)
    if "from" not in value:
        remedy = "an input document has message, sender and recipient; a line has from and to"
        raise CliError(f"{path} is neither an input document nor a line", remedy=remedy, code="file")
    around = reading.surroundings(session.existing_home())
    try:
        document = document_from_line(value, around)
    except NoDocument as error:
        raise CliError(f"{path}: {error}", remedy="`eab agents` lists who is registered") from None
    notes = ["asked as a new message at this moment, with the agents and facts of the home"]
    return Question(json.dumps(document).encode(), asked, notes=notes)


def _read(path: Path) -> dict[str, Json]:
    with path.open("rb") as file:
        raw = file.read(LINE_BYTES_MAX + 1).strip()
    try:
        value = loads_strict(raw, bytes_max=LINE_BYTES_MAX, depth_max=DEPTH_MAX)
    except NotJson as error:
        raise CliError(f"{path}: {error}", remedy="it has to be one JSON object", code="file") from None
    if isinstance(value, dict):
        return value
    raise CliError(f"{path} is not one JSON object", code="file")


def _from_record(session: Session, name: str, *, payload: bool) -> Question:
    home = session.existing_home()
    recorded = reading.recorded_question(home, name)
    if payload:
        note_access(session, "policy explain", recorded.message_id)
    return Question(
        json.dumps(recorded.document).encode(),
        recorded.constitution,
        hide_content=not payload,
        notes=recorded.notes,
    )
