"""A new log in the place of one that is lost: what is left is put aside, and the first record declares the loss.

It can be cut off at any point and begun again: what is to be declared is written into `home.json` before anything is
moved. Not here: whether the old log is lost (`eab init --new-log` asks), and the first records (store).
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.ledger.checkpoint import Signer, Verifier, parse
from enhanced_agent_bus.ledger.home import (
    PENDING,
    Home,
    make_node_key,
    read_names,
    sync_folder,
    write_key,
    write_names,
)
from enhanced_agent_bus.ledger.lock import HomeLock

_MOVED: Final = ("bus.db", "bus.db-journal", "bus.db-wal", "bus.db-shm", "checkpoint", "doubt", "running")
_KEYS: Final = ("log.key", "log.key.next", "log.vkey", "node.key", "node.vkey")


def begin_anew(folder: Path, lock: HomeLock, why: str) -> Home:
    """A home of the same bus with another node and key, whose log is to be made. Constitutions and mark stay.

    Raises: StoreCorrupt, when home.json cannot be read; OSError.
    """
    names = read_names(folder / "home.json")
    loss = names.get(PENDING)
    if not isinstance(loss, dict):
        loss = _declaration(folder, names, why)
        write_names(folder / "home.json", {**names, PENDING: loss})
    aside = folder / str(loss["aside"])
    _put_aside(folder, aside)
    bus, node = str(names["bus"]), f"node-{secrets.token_hex(4)}"
    signer = Signer.fresh(f"{bus}/{node}")
    write_key(folder, signer)
    make_node_key(folder / "keys", signer.name)
    write_names(folder / "home.json", {**names, "node": node, PENDING: loss})
    home = Home(folder, bus, node, signer, lock, fresh=False, loss=loss)
    home.write_doubt(None)
    return home


def _declaration(folder: Path, names: dict[str, Any], why: str) -> dict[str, Any]:
    """What the gap record will say: the old log, and how far its newest checkpoint went where that can be read."""
    note, size, root, signed = None, None, None, False
    try:
        note = (folder / "checkpoint").read_text(encoding="utf-8")
        newest = parse(note.partition("\n\n")[0] + "\n")
        size, root = newest.size, newest.root.hex()
        Verifier.from_vkey((folder / "keys" / "log.vkey").read_text()).open(note)
        signed = True
    except (OSError, ValueError):
        pass  # then it is declared without
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return {
        "event": "log_lost",
        "origin": f"{names.get('bus')}/{names.get('node')}",
        "size": size,
        "root": root,
        "note": note,
        "signed": signed,
        "why": why[:500],
        "aside": f"lost/{now}-{secrets.token_hex(2)}",
    }


def _put_aside(folder: Path, aside: Path) -> None:
    (aside / "keys").mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (aside / "home.json").exists():
        write_names(aside / "home.json", {**read_names(folder / "home.json")})
    for name in (*_MOVED, *(f"keys/{key}" for key in _KEYS)):
        if (aside / name).exists():  # of a new log whose making was cut off
            (folder / name).unlink(missing_ok=True)
        elif (folder / name).exists():
            (folder / name).replace(aside / name)
    for place in (aside / "keys", aside, aside.parent, folder / "keys", folder):
        sync_folder(place)
