"""Reads pages of a log for `several`: `python -I -S reader.py PLACE LAST TURN TURNS BUS NODE`.

Hashes their records, and writes what there is to judge in them to standard output. It runs as a program of its own and
imports little, so that it starts quickly. Not here: any verdict. Of a page that does not stand there as the bus writes
pages it tells nothing; `several` then looks at it by itself.
"""

from __future__ import annotations

import marshal
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import count, islice

PAGE = 1000  # records
LENGTH_BYTES = 4  # how long an answer is stands before it

# The number of the first record, the times of the first and the last, the leaves of the tree side by side; and of each
# record its number among its sender's, its sender, verdict, decision id and state as far as a usual decision or outcome
# has them, or all bytes of one that is neither.
Answer = tuple[int, bytes, bytes, bytes, list[bytes | tuple[bytes, ...]]]

_FRONT = r'\{"v":1,"seq":(0|[1-9]\d{0,17}),"kind":"%s","at":"(.{27})","bus":"%s","node":"%s"'
_DECISION = (  # S is a string, O one or null, N a number
    '"sender_n":(N),"digest":S,"conversation":S,"cause":O,"sender":"([^"]*)","tenant":S,"recipient":O,'
    '"recipient_tenant":O,"topic":O,"type":S,"priority":N,"hops":N,"attempt":N,"created_us":N,"expires_us":N,'
    '"verdict":"([^"]*)","code":O,"reasons":\\[\\],'
).translate({ord("S"): '"[^"]*"', ord("O"): '(?:"[^"]*"|null)', ord("N"): r"\d{1,18}"})
_REST = f',"message_id":"[^"]*",(?(2){_DECISION})"decision_id":"([^"]*)"(?(2)|,"state":"([^"]*)")'
_FAR = 1 << 40  # behind the end of any record


def main(place: str, last: str, turn: str, turns: str, bus: str, node: str) -> None:
    """Of every so many-th page writes an answer, at the end an empty one.

    PLACE is a database's URI, of which rows are read up to LAST, or an export, with LAST empty.
    """
    names = re.escape(bus), re.escape(node)
    usual = re.compile((_FRONT % ("(?:(decision)|outcome)", *names) + _REST).encode(), re.DOTALL)
    other = re.compile((_FRONT % ('([^"]*)', *names)).encode(), re.DOTALL)
    pages = stored(place, int(last), int(turn), int(turns)) if last else exported(place, int(turn), int(turns))
    for first, page in pages:
        answer = marshal.dumps(tell(first, page, usual, other))
        for _ in page:  # what was not looked at, so that no row is held on to while this waits
            pass
        sys.stdout.buffer.write(len(answer).to_bytes(LENGTH_BYTES, "big") + answer)
        sys.stdout.buffer.flush()
    sys.stdout.buffer.write(bytes(LENGTH_BYTES))


def stored(uri: str, last: int, turn: int, turns: int) -> Iterator[tuple[int, Iterator[tuple[int, bytes]]]]:
    """Pages of a database: the number of the first record, then row numbers with records."""
    database = sqlite3.connect(uri, uri=True, isolation_level=None)
    database.execute(f"PRAGMA mmap_size = {1 << 40}")  # a file cut short now kills this process, and no other
    query = "SELECT seq, body FROM records WHERE seq >= ? AND seq <= ? ORDER BY seq LIMIT ?"
    for first in range(turn * PAGE, last + 1, turns * PAGE):
        yield first, database.execute(query, (first, last, PAGE))


def exported(path: str, turn: int, turns: int) -> Iterator[tuple[int, Iterator[tuple[int, bytes]]]]:
    """Pages of an export: the number of the first record, then line numbers with records."""
    with open(path, "rb") as file:  # noqa: PTH123 - importing pathlib takes as long as reading ten pages
        rows = enumerate(line.removesuffix(b"\n") for line in file)
        for number in count():
            page = list(islice(rows, PAGE))
            if not page:
                return
            if number % turns == turn:
                yield number * PAGE, iter(page)


def tell(
    first: int, page: Iterable[tuple[int, bytes]], usual: re.Pattern[bytes], other: re.Pattern[bytes]
) -> Answer | None:
    """What there is to judge, if the records are this log's, numbered on and in the order of their times."""
    leaves: list[bytes] = []
    times: list[bytes] = []
    records: list[bytes | tuple[bytes, ...]] = []
    for seq, (row, body) in enumerate(page, first):
        # Before the first brace inside every key is the record's own; where there is none, -1 becomes far behind.
        match = usual.match(body, 0, body.find(b"{", 1) % _FAR) or other.match(body)
        if match is None:
            return None
        told = match.groups()
        if int(told[0]) != seq or row != seq:
            return None
        times.append(told[2])
        leaves.append(sha256(b"\0" + body).digest())
        records.append(told[3:] or body)
    if not times or times != sorted(times):
        return None
    return first, times[0], times[-1], b"".join(leaves), records


if __name__ == "__main__":
    main(*sys.argv[1:])
