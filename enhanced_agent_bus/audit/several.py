"""Checks a log as `verify` does, and where it is large with other processes that read and hash for it.

Every verdict is `verify`'s own: readers tell a scan what usual records say, and at all others it looks by itself.
Without readers (a small log, a single core, no way to start them) it looks at all. Not here: what readers do.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from itertools import cycle, islice
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Final

from enhanced_agent_bus.audit import homes, reader
from enhanced_agent_bus.audit.verify import Key, Note, Report, Scan, Source

READERS_MAX: Final = 4  # one process judges, and that is a quarter of the work
#: With fewer, starting readers costs more than a busy machine gets back.
RECORDS_MIN: Final = 50_000
BYTES_MIN: Final = 50_000_000


def verify(path: Path, key: Key, outside: Note | None = None) -> Report:
    """As `homes.verify`, which says what it raises."""
    return homes.verify(path, key, outside, partial(_Together, path))


class _Together(Scan):
    """A scan for which others read."""

    def __init__(self, path: Path, source: Source, key: Key, outside: Note | None) -> None:
        super().__init__(source, key, outside)
        self._path = path

    def run(self) -> None:
        with _readers(self._commands()) as pipes:
            done = self._follow(pipes)
        self.look(() if done else self.source.records(self.report.size))

    def _commands(self) -> list[list[str]]:
        """How readers are started, if any are."""
        bus, _, node = self._key.name.partition("/")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        last = self.source.last
        if last is not None:
            large, place, number = last >= RECORDS_MIN, _uri(self._path), str(last)
        else:
            large = self._path.is_file() and self._path.stat().st_size >= BYTES_MIN
            place, number = str(self._path), ""
        if not large or not node or cores == 1 or not sys.executable or hasattr(sys, "frozen"):
            return []
        program, turns = [sys.executable, "-I", "-S", reader.__file__], min(cores, READERS_MAX)
        return [[*program, place, number, str(turn), str(turns), bus, node] for turn in range(turns)]

    def _follow(self, pipes: Sequence[IO[bytes]]) -> bool:
        """Judges page after page by what readers tell; whether that was all, or as far as can be judged."""
        for pipe in cycle(pipes):
            length = pipe.read(reader.LENGTH_BYTES)
            answer = pipe.read(int.from_bytes(length, "big"))
            if len(length) < reader.LENGTH_BYTES or len(answer) < int.from_bytes(length, "big"):
                return False  # this reader is gone
            if not answer:
                return self.source.last in (None, self.report.size - 1)
            told: reader.Answer | None = marshal.loads(answer)  # noqa: S302 - our own program wrote it
            if told is not None and self._fits(told):
                going = self._take(told)
            else:
                going = self.look(islice(self.source.records(self.report.size), reader.PAGE))
            if not going:
                return True
        return False

    def _fits(self, told: reader.Answer) -> bool:
        first, earliest, _, _, records = told
        holds_outside = first <= self.outside_size < first + len(records)
        return first == self.report.size and earliest >= self.before and not holds_outside

    def _take(self, told: reader.Answer) -> bool:
        """As `look`."""
        first, _, latest, leaves, records = told
        decided, ended = self.decided, self.ended
        seq = grown = first
        try:
            for seq, record in enumerate(records, first):
                if isinstance(record, tuple):
                    number, sender, verdict, decision_id, state = record
                    if number:
                        decided(seq, number, sender, verdict, decision_id)
                    else:
                        ended(seq, decision_id, state)
                else:
                    extend(self.frontier, grown, leaves[32 * (grown - first) : 32 * (seq - first)])
                    self.report.size, grown = seq, seq + 1
                    if not self.look([(seq, record)]):
                        return False
            seq += 1
            extend(self.frontier, grown, leaves[32 * (grown - first) :])
        finally:
            self.report.size, self.before = seq, latest
        return True


def _uri(home: Path) -> str:
    """As `open_database` opens it, which is open by now."""
    still = "" if (home / "bus.db-wal").exists() else "&immutable=1"
    return f"{(home / 'bus.db').absolute().as_uri()}?mode=ro{still}"


@contextmanager
def _readers(commands: Sequence[Sequence[str]]) -> Iterator[list[IO[bytes]]]:
    """What each reader writes; none, where not all can be started. None is left when this is left."""
    pipes: list[IO[bytes]] = []
    with ExitStack() as stack:
        try:
            for command in commands:
                process = stack.enter_context(Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL))
                stack.callback(process.kill)
                assert process.stdout is not None
                pipes.append(process.stdout)
        except OSError:
            pipes.clear()
        yield pipes


def extend(frontier: list[bytes], size: int, nodes: bytes) -> None:
    """Appends leaves, side by side, to a tree of `size` leaves: `grow` for many, a level at a time."""
    kept: list[bytes] = []
    while nodes:
        if size & 1:
            nodes = frontier.pop() + nodes
        if len(nodes) & 32:
            kept.append(nodes[-32:])
        pairs = range(0, len(nodes) - 63, 64)
        nodes = b"".join([sha256(b"\1" + nodes[at : at + 64]).digest() for at in pairs])
        size >>= 1
    frontier += reversed(kept)
