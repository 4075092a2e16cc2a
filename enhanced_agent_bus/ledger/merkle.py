"""The Merkle tree of RFC 6962 §2.1 over stored bytes, grown at its right edge.

A frontier is the list of the roots of the full subtrees that a tree of some size consists of, the largest first: one
hash for each 1 bit of the size. It is all that is needed to grow the tree and to know its root. Not here: proofs.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

HASH_BYTES = 32


def leaf_hash(data: bytes) -> bytes:
    """RFC 6962 §2.1: the hash of a leaf."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 §2.1: the hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


def grow(frontier: list[bytes], size: int, leaf: bytes) -> None:
    """Appends one leaf hash to a tree of `size` leaves, in place."""
    while size & 1:
        leaf = sha256(b"\1" + frontier.pop() + leaf).digest()
        size >>= 1
    frontier.append(leaf)


def extend(frontier: list[bytes], size: int, leaves: list[bytes]) -> None:
    """Appends leaf hashes to a tree of `size` leaves, in place: `grow` for many, a level at a time."""
    kept: list[bytes] = []
    level = leaves
    while level:
        if size & 1:
            level = [frontier.pop(), *level]
        if len(level) & 1:
            kept.append(level[-1])
        level = [sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        size >>= 1
    frontier.extend(reversed(kept))


def root_hash(frontier: Iterable[bytes]) -> bytes:
    """The root of the tree that a frontier stands for; of no leaves, the hash of nothing (RFC 6962 §2.1)."""
    hashes = list(frontier)
    if not hashes:
        return sha256(b"").digest()
    root = hashes.pop()
    while hashes:
        root = node_hash(hashes.pop(), root)
    return root


def pack(frontier: Iterable[bytes]) -> bytes:
    """A frontier as it is stored."""
    return b"".join(frontier)


def unpack(packed: bytes, size: int) -> list[bytes]:
    """The frontier of a tree of `size` leaves. Raises: ValueError, when the bytes cannot be that."""
    if len(packed) != HASH_BYTES * size.bit_count():
        raise ValueError(f"a tree of {size} leaves has {size.bit_count()} full subtrees, not {len(packed)} bytes")
    return [packed[start : start + HASH_BYTES] for start in range(0, len(packed), HASH_BYTES)]
