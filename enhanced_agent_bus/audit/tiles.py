"""A log as C2SP tlog-tiles: a folder of files that any static server serves, and outside tools verify.

`tile/<L>/<N>` has 256 hashes, `tile/entries/<N>` the 256 records under a tile of level 0, both with `.p/<W>` while they
are not full; `checkpoint` is written last. https://c2sp.org/tlog-tiles. Not here: serving them.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from enhanced_agent_bus.audit.proofs import HASH_BYTES, Tree, node_hash, root_of_leaves, stored
from enhanced_agent_bus.audit.verify import Note, read_note
from enhanced_agent_bus.errors import StoreCorrupt

WIDTH: Final = 256
_BITS: Final = 8
_ENTRIES: Final = "entries"
_OURS: Final = {"tile", "checkpoint", "checkpoint.part"}
_LENGTH_BYTES: Final = 2  # before each record in a bundle


class Foreign(Exception):
    """The folder holds something else than the beginning of this log; the message says what."""


def tile_path(level: int | str, number: int, width: int = WIDTH) -> str:
    """The name of a tile: three digits a folder, all but the last behind an x."""
    digits = f"{number:03d}"
    digits = digits.rjust(-(-len(digits) // 3) * 3, "0")
    parts = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    name = "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])
    return f"tile/{level}/{name}" + (f".p/{width}" if width != WIDTH else "")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export added: records from `before` to `size`, in so many full tiles of hashes and of records."""

    before: int
    size: int
    tiles: int


@dataclass(slots=True)
class _Edge:
    """The right edge of a tree as tiles have it: per level, the hashes of the tile that is not full."""

    folder: Path
    size: int = 0
    levels: list[list[bytes]] = field(default_factory=list)
    bundle: list[bytes] = field(default_factory=list)  # the records under the last tile of level 0
    tiles: int = 0

    def root(self) -> bytes:
        """The root of the tree that ends here (RFC 6962 §2.1)."""
        root: bytes | None = None
        for level in self.levels:
            nodes = level.copy()
            while nodes:  # full subtrees, the largest first: their roots, from the right
                count = len(nodes) & -len(nodes)
                left = root_of_leaves(nodes[-count:])
                root = left if root is None else node_hash(left, root)
                del nodes[-count:]
        return root or sha256(b"").digest()

    def add(self, record: bytes) -> None:
        self.bundle.append(record)
        self._push(0, sha256(b"\0" + record).digest())
        self.size += 1

    def _push(self, level: int, node: bytes) -> None:
        if level == len(self.levels):
            self.levels.append([])
        hashes = self.levels[level]
        hashes.append(node)
        if len(hashes) < WIDTH:
            return
        number = self.size >> (_BITS * (level + 1))
        if level == 0:
            self._write(tile_path(_ENTRIES, number), _bundle(self.bundle))
            self.bundle.clear()
        self._write(tile_path(level, number), b"".join(hashes))
        self.levels[level] = []
        self._push(level + 1, root_of_leaves(hashes))

    def write_rest(self) -> None:
        """The tiles that are not full."""
        for level, hashes in enumerate(self.levels):
            if hashes:
                number = self.size >> (_BITS * (level + 1))
                self._write(tile_path(level, number, len(hashes)), b"".join(hashes))
        if self.bundle:
            self._write(tile_path(_ENTRIES, self.size >> _BITS, len(self.bundle)), _bundle(self.bundle))

    def _write(self, name: str, data: bytes) -> None:
        """Raises: Foreign, when something else has that name; what is written is never written again."""
        path = self.folder / name
        self.tiles += ".p/" not in name
        if path.exists():
            if path.read_bytes() != data:
                raise Foreign(f"{path} is not the tile that belongs there")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)

    def read(self, size: int) -> None:
        """Takes up the edge of an earlier export. Raises: Foreign, when its tiles are not whole."""
        level = 0
        while size >> (_BITS * level):
            count = (size >> (_BITS * level)) % WIDTH
            nodes: list[bytes] = []
            if count:
                path = self.folder / tile_path(level, size >> (_BITS * (level + 1)), count)
                data = path.read_bytes() if path.is_file() else b""
                if len(data) != count * HASH_BYTES:
                    raise Foreign(f"{path} is missing, or not whole")
                nodes = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
            self.levels.append(nodes)
            level += 1
        self.size = size


def _bundle(records: list[bytes]) -> bytes:
    return b"".join(len(record).to_bytes(_LENGTH_BYTES, "big") + record for record in records)


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def export(database: sqlite3.Connection, note: Note, folder: Path) -> Exported:
    """Writes the tiles of the log that a checkpoint vouches for; goes on from an earlier export in the folder.

    Raises: Foreign; StoreCorrupt, when the log is not the one that the checkpoint vouches for; OSError.
    """
    edge = _Edge(folder)
    kept = folder / "checkpoint"
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} - _OURS:
        raise Foreign(f"{folder} holds other files")
    if kept.exists():
        _take_up(edge, kept, database, note)
    folder.mkdir(parents=True, exist_ok=True)
    before = edge.size
    edge.bundle = [record for _, record in stored(database, before - before % WIDTH, before)]
    for seq, record in stored(database, before, note.size):
        if seq != edge.size:
            break
        edge.add(record)
    if edge.size != note.size or edge.root() != note.root:
        what = f"the log does not have the root that its checkpoint of {note.size} signs"
        raise StoreCorrupt(what, remedy="`eab audit verify` says where")
    edge.write_rest()
    os.sync()  # the checkpoint promises what lies beside it
    _replace(kept, note.text.encode())
    return Exported(before, note.size, edge.tiles)


def _take_up(edge: _Edge, kept: Path, database: sqlite3.Connection, note: Note) -> None:
    """Raises: Foreign, when that is not the beginning of this log."""
    try:
        old = read_note(kept.read_text(encoding="utf-8"))
    except ValueError:
        raise Foreign(f"{kept} is no checkpoint") from None
    if old.text.partition("\n")[0] != note.text.partition("\n")[0]:
        raise Foreign(f"{kept} is of another log, {old.text.partition(chr(10))[0]}")
    if old.size > note.size or Tree(database).root(0, old.size) != old.root:
        raise Foreign(f"{kept} is not a checkpoint of this log")
    edge.read(old.size)
    if edge.root() != old.root:
        raise Foreign(f"the tiles in {edge.folder} are not those of its checkpoint")
