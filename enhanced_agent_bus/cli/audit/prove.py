"""`eab audit prove`: that the log holds a record, or that it has only grown since a checkpoint that was kept."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enhanced_agent_bus.cli.audit.witness import kept_checkpoint
from enhanced_agent_bus.cli.faults import FOUND, CliError, unknown_id
from enhanced_agent_bus.cli.render import counted, echo, print_json, safe
from enhanced_agent_bus.cli.session import Json, Session, require_outside_homes, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.audit.proofs import Consistency, Inclusion
    from enhanced_agent_bus.audit.verify import Note

_SIZE = "SELECT coalesce(max(seq) + 1, 0) FROM records"
_OF_MESSAGE = "SELECT seq, body FROM records WHERE message_id = ? ORDER BY seq DESC"


def prove(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[SEQ|ID]", help="A seq, a message or a decision.")] = None,
    *,
    consistency: Annotated[
        Path | None,
        typer.Option("--consistency", metavar="FILE", help="A checkpoint that was kept: prove growth since then."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Else standard output.")] = None,
) -> None:
    """Prove that the log holds a record.

    Writes a C2SP tlog-proof with the record in it, which anyone checks with the log's public key. A message stands for
    the newest decision on it. Signs a new checkpoint where the newest one does not cover the record yet. With
    --consistency it is the proof that the log of a checkpoint that was kept is the beginning of today's.

    Example: eab audit prove desk/order-7 -o order-7.tlog-proof
    """
    session = session_of(context)
    if (name is None) == (consistency is None):
        raise CliError("name a record to prove, or a checkpoint with --consistency FILE, and not both")
    if output is not None:
        require_outside_homes(output)
    if name is not None:
        proof = _inclusion(session, name)
        text, document = proof.text, _document(proof)
    else:
        assert consistency is not None
        growth = _consistency(session, consistency)
        text, document = growth.text, _document_of_growth(growth)
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if session.json:
        print_json(document | {"proof": text, "file": None if output is None else str(output)})
    elif output is None:
        sys.stdout.write(text)
    else:
        echo(f"wrote the proof to {safe(output)}: {_in_words(document)}")


def _in_words(document: dict[str, Json]) -> str:
    size = document["checkpoint_size"]
    if "old_size" in document:
        return f"the first {document['old_size']} of {size} records are what they were"
    return f"{document['kind']} record {document['seq']} is one of the {size} that the checkpoint signs"


def _document(proof: Inclusion) -> dict[str, Json]:
    record = json.loads(proof.record)
    named = {name: record.get(name) for name in ("kind", "message_id", "decision_id")}
    path = [node.hex() for node in proof.path]
    return {"seq": proof.seq, **named, **_signed(proof.note), "path": path}


def _document_of_growth(proof: Consistency) -> dict[str, Json]:
    path = [node.hex() for node in proof.path]
    return {"old_size": proof.old.size, "old_root": proof.old.root.hex(), **_signed(proof.note), "path": path}


def _signed(note: Note) -> dict[str, Json]:
    origin = note.text.partition("\n")[0]
    return {"origin": origin, "checkpoint_size": note.size, "root": note.root.hex()}


# --- what is proved ------------------------------------------------------------------------------------------------


def _inclusion(session: Session, name: str) -> Inclusion:
    from enhanced_agent_bus.audit import proofs
    from enhanced_agent_bus.cli.reading.home import SHOW_REMEDY, database

    home = session.existing_home()
    with database(home) as connection:
        seq = _seq_of(connection, name)
        if seq is None:
            raise unknown_id(f"there is no record {name!r}", SHOW_REMEDY)
        if proofs.newest_note(connection).size > seq:
            return proofs.inclusion(connection, seq, _own(home, proofs.newest_note(connection)))
    at_log(home, "checkpoint")
    with database(home) as connection:
        return proofs.inclusion(connection, seq, _own(home, proofs.newest_note(connection)))


def _seq_of(connection: sqlite3.Connection, name: str) -> int | None:
    """A seq as it is, a decision's, or that of the newest decision on a message: the one it was handled under."""
    if name.isdecimal():
        (size,) = connection.execute(_SIZE).fetchone()
        return int(name) if int(name) < size else None
    message_id, _, decision = name.partition("#")
    newest: int | None = None
    for seq, body in connection.execute(_OF_MESSAGE, (message_id,)):
        record = json.loads(body)
        if record["kind"] == "decision" and (not decision or record["decision_id"] == name):
            return int(seq)
        newest = newest if newest is not None or decision else int(seq)
    return newest  # of what stands under an id and was never decided (an operator's word) the newest


def _consistency(session: Session, file: Path) -> Consistency:
    from enhanced_agent_bus.audit import proofs
    from enhanced_agent_bus.cli.reading.home import database

    home = session.existing_home()
    old = kept_checkpoint(file)
    if not _signed_here(home, old):
        raise _not_so(f"{file} was not signed by this log", "name a checkpoint of this home's log")
    with database(home) as connection:
        note = _own(home, proofs.newest_note(connection))
        proof = proofs.consistency(connection, old, note)
    if proof is None:
        what = f"the log did not grow from {file}: it has {note.size} records signed, and does not begin with its"
        remedy = "the log was cut or replaced; `eab audit verify --checkpoint FILE` says where"
        raise _not_so(f"{what} {old.size}", remedy)
    return proof


def _not_so(message: str, remedy: str) -> CliError:
    return CliError(message, remedy=remedy, code="not_consistent", status=FOUND)


def _own(home: Path, note: Note) -> Note:
    """Raises: StoreCorrupt, when the key of this home did not sign it."""
    from enhanced_agent_bus.errors import StoreCorrupt

    if not _signed_here(home, note):
        remedy = "`eab audit verify` says what the log itself still proves"
        raise StoreCorrupt(f"the newest checkpoint of {home} was not signed by its key", remedy=remedy)
    return note


def _signed_here(home: Path, note: Note) -> bool:
    from enhanced_agent_bus.audit.verify import read_key

    keys = [read_key(path.read_text(encoding="utf-8")) for path in sorted((home / "keys").glob("*.vkey"))]
    return any(key.opens(note.text) for key in keys)


# --- tiles ---------------------------------------------------------------------------------------------------------


def export_tiles(session: Session, home: Path, folder: Path) -> None:
    """Writes what the newest checkpoint covers. Raises: CliError, when the folder holds something else."""
    from enhanced_agent_bus.audit import proofs, tiles
    from enhanced_agent_bus.cli.reading.home import database

    if folder.exists() and not folder.is_dir():
        raise CliError(f"{folder} is a file", remedy="name a folder, or one that is not there yet", code="file")
    with database(home) as connection:
        note = _own(home, proofs.newest_note(connection))
        try:
            done = tiles.export(connection, note, folder)
        except tiles.Foreign as error:
            remedy = "name a new folder; what is in this one was left as it is"
            raise CliError(
                f"{error}; the export was not written", remedy=remedy, code="foreign", status=FOUND
            ) from None
    if session.json:
        document = {"folder": str(folder), "before": done.before, "records": done.size - done.before}
        print_json(document | _signed(note))
    else:
        added = counted(done.size - done.before, "record")
        echo(f"wrote {added} to {safe(folder)}: it has the {done.size} that the newest checkpoint signs")


# --- signing -------------------------------------------------------------------------------------------------------


def rotate_key(context: typer.Context) -> None:
    """Sign the log with a new key from now on.

    The change is a record under a checkpoint that both keys sign, so that whoever knows the old public key can follow
    to the new one. The old public key stays in HOME/keys.

    Example: eab audit rotate-key
    """
    session = session_of(context)
    vkey = at_log(session.existing_home(), "rotate_key")
    if session.json:
        print_json({"vkey": vkey})
    else:
        echo(f"the log is signed by a new key from now on: {vkey}")
        echo("hand its public key, HOME/keys/log.vkey, to whoever checks this log; the old one leads to it as well")


def at_log(home: Path, op: str) -> str:
    """`checkpoint` (answers the note) or `rotate_key` (the vkey), by the process that has the home open, or by this.

    Raises: StoreLocked, when that process cannot be asked; StoreCorrupt; AuditUnavailable.
    """
    import asyncio

    return asyncio.run(_at_log(home, op))


async def _at_log(home: Path, op: str) -> str:
    from enhanced_agent_bus.clock import SystemClock
    from enhanced_agent_bus.control.client import call
    from enhanced_agent_bus.errors import StoreLocked
    from enhanced_agent_bus.ledger.home import open_home
    from enhanced_agent_bus.ledger.lock import control_socket
    from enhanced_agent_bus.ledger.sqlite import SqliteLedger

    try:
        place = open_home(home, make=False)
    except StoreLocked:
        path = control_socket(home)
        if path is None:
            raise
        return str(call(path, op, {}))
    try:
        ledger = await SqliteLedger.open(place, clock=SystemClock())
        try:
            return await (ledger.rotate_key() if op == "rotate_key" else ledger.checkpoint())
        finally:
            await ledger.close()
    finally:
        place.release()
