"""Overwrites what SQLite leaves behind in the pages of a database: `python -I -S scrub.py DATABASE`.

With `secure_delete` SQLite overwrites what is deleted. It does not overwrite what is moved: a page that is put together
anew keeps, between its list of cells and its cells, bytes of rows that have gone to another page. Only bytes that the
file format calls unused are written here (https://www.sqlite.org/fileformat2.html#b_tree_pages), so that it may be cut
off at any instant. It is a program of its own because closing a file takes away the locks that SQLite holds on it.

Not here: when it is safe (store): nobody may write to the database or its -wal meanwhile, and the -wal must be empty.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator

CHUNK_BYTES = 1 << 22
_BTREE_INTERIOR = (2, 5)
_BTREE_LEAF = (10, 13)
_HEADER_BYTES = 100  # of the database, before the first page's own
_SIZES = struct.Struct(">H2xBB")  # at 16: page size, reserved bytes at the end of each page
_PAGE = struct.Struct(">BHHH")  # kind, first free block, number of cells, where the cells begin
_FREE = struct.Struct(">HH")  # the next free block, bytes of this one


def main(path: str) -> int:
    """Overwrites, and returns how many bytes it were. Raises: ValueError, for a page that is none; OSError."""
    count = 0
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size, usable = _sizes(os.pread(file, _HEADER_BYTES, 0))
        step = max(CHUNK_BYTES // size, 1) * size
        for start in range(0, os.fstat(file).st_size, step):
            chunk = os.pread(file, step, start)
            for at in range(0, len(chunk) - size + 1, size):
                for first, end in _unused(chunk, at, usable, is_first=not start and not at):
                    if chunk.count(0, first, end) != end - first:
                        os.pwrite(file, bytes(end - first), start + first)
                        count += end - first
        if count:
            os.fsync(file)
    finally:
        os.close(file)
    return count


def _sizes(header: bytes) -> tuple[int, int]:
    if header[:16] != b"SQLite format 3\0":
        raise ValueError("this is no SQLite database")
    size = int.from_bytes(header[16:18], "big")
    size = 1 << 16 if size == 1 else size
    return size, size - header[20]


def _unused(chunk: bytes, at: int, usable: int, *, is_first: bool) -> Iterator[tuple[int, int]]:
    """Of the page at this place, from where to where nothing stands that is in use.

    A page that is none of a tree begins with the number of another page, and so with 0, in files under 128 GB.
    """
    kind = chunk[at + _HEADER_BYTES] if is_first else chunk[at]
    if kind not in _BTREE_INTERIOR and kind not in _BTREE_LEAF:
        return
    header = at + _HEADER_BYTES if is_first else at
    _, free, cells, content = _PAGE.unpack_from(chunk, header)
    content = content or 1 << 16
    listed = header + (12 if kind in _BTREE_INTERIOR else 8) + 2 * cells
    if not listed <= at + content <= at + usable:
        raise ValueError(f"the page at byte {at} of its part is damaged")
    yield listed, at + content
    before = content - 1
    while free:
        if free <= before or free + _FREE.size > usable:
            raise ValueError(f"the page at byte {at} of its part is damaged")
        following, length = _FREE.unpack_from(chunk, at + free)
        if length < _FREE.size or free + length > usable:
            raise ValueError(f"the page at byte {at} of its part is damaged")
        yield at + free + _FREE.size, at + free + length
        before, free = free, following


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{main(sys.argv[1])}\n")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
