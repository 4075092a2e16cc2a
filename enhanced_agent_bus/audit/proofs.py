"""Proofs out of a stored log: that it holds a record, and that it has only grown (RFC 6962 §2.1.1 and §2.1.2).

With each checkpoint a home keeps the full subtrees that the tree then had, so that a proof takes some look-ups for each
level of the tree, and hashes anew no more than what lies between two checkpoints, once a level. What is stored there is
not trusted: each proof is followed up to the signed root before it is handed out. Formats: C2SP tlog-proof, and for
growth the body of C2SP tlog-witness's add-checkpoint. Not here: who signs a checkpoint (ledger).
"""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from enhanced_agent_bus.audit.verify import Note, read_note
from enhanced_agent_bus.errors import StoreCorrupt

PROOF_HEAD: Final = "c2sp.org/tlog-proof@v1"
#: A subtree of so many records is hashed from them, rather than put together from what is stored.
LEAVES_MAX: Final = 1024
HASH_BYTES: Final = 32
PAGE_ROWS: Final = 1000
REMEDY: Final = "`eab audit verify` says where"

_NEWEST_NOTE: Final = "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"
_RECORDS: Final = "SELECT seq, body FROM records WHERE seq >= ? AND seq < ? ORDER BY seq"
_KEPT: Final = "SELECT size, frontier FROM checkpoints WHERE size >= ? AND size < ? ORDER BY size LIMIT 1"


@dataclass(frozen=True, slots=True)
class Inclusion:
    """That a record stands at `seq` in the log that a checkpoint vouches for."""

    seq: int
    record: bytes
    path: tuple[bytes, ...]
    note: Note

    @property
    def text(self) -> str:
        """C2SP tlog-proof; `extra` is the record, which the proof itself shows to be the right one."""
        head = f"{PROOF_HEAD}\nextra {base64.b64encode(self.record).decode()}\nindex {self.seq}\n"
        return f"{head}{_lines(self.path)}\n{self.note.text}"


@dataclass(frozen=True, slots=True)
class Consistency:
    """That the log of one checkpoint begins with that of an older one."""

    old: Note
    path: tuple[bytes, ...]
    note: Note

    @property
    def text(self) -> str:
        """As a witness is asked: C2SP tlog-witness, add-checkpoint."""
        return f"old {self.old.size}\n{_lines(self.path)}\n{self.note.text}"


def _lines(path: Sequence[bytes]) -> str:
    return "".join(f"{base64.b64encode(node).decode()}\n" for node in path)


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 §2.1: the hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


def half_of(count: int) -> int:
    """The largest power of two that is smaller than a count: where RFC 6962 §2.1 parts a tree."""
    return 1 << ((count - 1).bit_length() - 1)


class Tree:
    """The hashes of a stored log, taken from its checkpoints where they have them."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    def root(self, start: int, end: int) -> bytes:
        """The hash of the records from `start` to `end`, which must be a node of some tree of this log.

        Raises: StoreCorrupt, when one of them is missing.
        """
        count = end - start
        if count & (count - 1) == 0:
            kept = self._kept(start, count)
            if kept is not None:
                return kept
        if count <= LEAVES_MAX:
            return self._hashed(start, end)
        half = half_of(count)
        return node_hash(self.root(start, start + half), self.root(start + half, end))

    def _kept(self, start: int, count: int) -> bytes | None:
        """A full subtree, when it is a left one: every tree that ends in its neighbour consists of it and others."""
        if start & count:
            return None
        row = self._db.execute(_KEPT, (start + count, start + 2 * count)).fetchone()
        if row is None:
            return None
        size, frontier = row
        place = (size // (2 * count)).bit_count() * HASH_BYTES
        return bytes(frontier[place : place + HASH_BYTES])

    def _hashed(self, start: int, end: int) -> bytes:
        level: list[bytes] = []
        for expected, (seq, body) in enumerate(stored(self._db, start, end), start):
            if seq != expected:
                raise StoreCorrupt(f"record {expected} is missing", remedy=REMEDY)
            level.append(sha256(b"\0" + body).digest())
        if len(level) != end - start:
            raise StoreCorrupt(f"record {start + len(level)} is missing", remedy=REMEDY)
        return root_of_leaves(level)

    def path(self, seq: int, size: int) -> tuple[bytes, ...]:
        """RFC 6962 §2.1.1: from the leaf's sibling up to the root's child."""
        start, end, upwards = 0, size, list[bytes]()
        while end - start > 1:
            middle = start + half_of(end - start)
            if seq < middle:
                upwards.append(self.root(middle, end))
                end = middle
            else:
                upwards.append(self.root(start, middle))
                start = middle
        return tuple(reversed(upwards))

    def growth(self, old: int, size: int) -> tuple[bytes, ...]:
        """RFC 6962 §2.1.2: PROOF(old, D[size]); nothing where the old tree is empty or the same."""
        if old in (0, size):
            return ()
        start, end, whole, upwards = 0, size, True, list[bytes]()
        while old != end:
            middle = start + half_of(end - start)
            if old <= middle:
                upwards.append(self.root(middle, end))
                end = middle
            else:
                upwards.append(self.root(start, middle))
                start, whole = middle, False
        if not whole:
            upwards.append(self.root(start, end))
        return tuple(reversed(upwards))


def root_of_leaves(level: Sequence[bytes]) -> bytes:
    """The root over leaf hashes, a level at a time; of none, the hash of nothing."""
    if not level:
        return sha256(b"").digest()
    while len(level) > 1:
        paired = [node_hash(*pair) for pair in zip(level[::2], level[1::2], strict=False)]
        level = [*paired, *level[len(level) & ~1 :]]
    return level[0]


def root_of_path(leaf: bytes, seq: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """RFC 9162 §2.1.3.2: the root that an inclusion proof leads to; None when it is too long or too short."""
    if seq >= size:
        return None
    at, last, node = seq, size - 1, leaf
    for sibling in path:
        if not last:
            return None
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    return None if last else node


def grew(old: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """RFC 9162 §2.1.4.2: whether a consistency proof leads to both roots."""
    if old in (0, size) or old > size:
        return not path and (old_root == sha256(b"").digest() if not old else (old, old_root) == (size, root))
    nodes = iter([old_root, *path] if old & (old - 1) == 0 else path)
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = next(nodes, b"")
    for node in nodes:
        if not last:
            return False
        if at & 1 or at == last:
            first, second = node_hash(node, first), node_hash(node, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node_hash(second, node)
        at, last = at >> 1, last >> 1
    return not last and (first, second) == (old_root, root)


def newest_note(database: sqlite3.Connection) -> Note:
    """The newest signed checkpoint in the log. Raises: StoreCorrupt, when there is none that can be read."""
    row = database.execute(_NEWEST_NOTE).fetchone()
    try:
        return read_note(row[0])
    except (TypeError, ValueError):
        raise StoreCorrupt("the log has lost its checkpoints", remedy=REMEDY) from None


def inclusion(database: sqlite3.Connection, seq: int, note: Note) -> Inclusion:
    """Proves the record `seq` against a checkpoint that covers it.

    Raises: StoreCorrupt, when the log is not the one that the checkpoint vouches for.
    """
    found = list(stored(database, seq, seq + 1))
    if not found or seq >= note.size:
        raise StoreCorrupt(f"record {seq} is missing", remedy=REMEDY)
    proof = Inclusion(seq, found[0][1], Tree(database).path(seq, note.size), note)
    if root_of_path(sha256(b"\0" + proof.record).digest(), seq, note.size, proof.path) != note.root:
        raise StoreCorrupt(f"the log does not have the root that its checkpoint of {note.size} signs", remedy=REMEDY)
    return proof


def consistency(database: sqlite3.Connection, old: Note, note: Note) -> Consistency | None:
    """Proves that the log of `note` begins with that of `old`; None when it does not.

    Raises: StoreCorrupt, when the log is not the one that its own checkpoint vouches for.
    """
    if old.size > note.size:
        return None
    tree = Tree(database)
    proof = Consistency(old, tree.growth(old.size, note.size), note)
    if grew(old.size, old.root, note.size, note.root, proof.path):
        return proof
    if tree.root(0, note.size) != note.root:
        raise StoreCorrupt(f"the log does not have the root that its checkpoint of {note.size} signs", remedy=REMEDY)
    return None


def stored(database: sqlite3.Connection, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Records with their seq, in order; a page at a time, so that a running bus is not held up.

    Raises: StoreCorrupt, when one is not stored as records are.
    """
    for first in range(start, end, PAGE_ROWS):
        for seq, body in database.execute(_RECORDS, (first, min(first + PAGE_ROWS, end))).fetchall():
            if not isinstance(body, bytes):
                raise StoreCorrupt(f"record {seq} is damaged", remedy=REMEDY)
            yield seq, body
