"""Who is told of a commit, and when: tenants in turn, a share each, so that nobody waits for all that another has.

To be told is to go on: a sender sends its next message, a handler starts. Told all at once, hundreds of one tenant
would run, and fill the next commit, before the one entry of another. Not here: what a commit is (sqlite, store).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Final

from enhanced_agent_bus.ports import Entry

#: Told in one turn of the loop where one tenant is alone: whoever else comes is heard in between.
SLICE_ENTRIES: Final = 32
#: Told of each tenant in one turn where several are under way, however little one of them has,
SHARE_ENTRIES: Final = 8
#: or so many times that: where all have much, nobody waits for small commits.
TIMES_THE_LEAST: Final = 4


class News:
    """What is durable and not told, in one line a tenant, and how much each tenant waits for the disk to write."""

    def __init__(self, tell: Callable[[int, Entry], None]) -> None:
        self._tell = tell
        self._lines: dict[str, deque[tuple[int, Entry]]] = {}
        self._asked: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Entry]:
        return (entry for line in self._lines.values() for _, entry in line)

    @property
    def shared(self) -> bool:
        """Whether more than one tenant has something under way."""
        return len(self._lines.keys() | self._asked.keys()) > 1

    @property
    def asking(self) -> bool:
        """Whether anything is on its way to the disk."""
        return bool(self._asked)

    def ask(self, tenant: str) -> None:
        """An entry of this tenant is on its way to the disk."""
        self._asked[tenant] = self._asked.get(tenant, 0) + 1

    def answered(self, tenant: str) -> None:
        """The disk has said what became of it."""
        left = self._asked[tenant] - 1
        if left:
            self._asked[tenant] = left
        else:
            del self._asked[tenant]

    def add(self, first: int, entries: Iterable[Entry]) -> None:
        """These are durable, from this seq on."""
        for seq, entry in enumerate(entries, first):
            tenant = entry.tenant
            self.answered(tenant)
            if not tenant:  # of the whole bus: after all before it, and before all after it
                self.tell_all()
                self._tell(seq, entry)
                continue
            line = self._lines.get(tenant)
            if line is None:
                line = self._lines[tenant] = deque()
            line.append((seq, entry))

    def tell_some(self) -> None:
        """A share of each tenant, the least first; a slice where there is only one."""
        share = max(SHARE_ENTRIES, TIMES_THE_LEAST * self._least()) if self.shared else SLICE_ENTRIES
        for tenant in sorted(self._lines, key=lambda tenant: len(self._lines[tenant])):
            line = self._lines[tenant]
            for _ in range(min(share, len(line))):
                seq, entry = line.popleft()
                self._tell(seq, entry)
            if not line:
                del self._lines[tenant]

    def tell_all(self) -> None:
        """Everything, in the order of the log."""
        lines, self._lines = self._lines, {}
        for seq, entry in sorted((told for line in lines.values() for told in line), key=itemgetter(0)):
            self._tell(seq, entry)

    def _least(self) -> int:
        """How much the tenant has under way that has the least."""
        tenants = self._lines.keys() | self._asked.keys()
        return min(len(self._lines.get(tenant, ())) + self._asked.get(tenant, 0) for tenant in tenants)
