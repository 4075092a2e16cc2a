"""Which pages are open: one that was recorded when it was opened may ask for what is new, and is not recorded again."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Final, NamedTuple

from enhanced_agent_bus.audit.query import Query

VIEWS_MAX: Final = 500  # the one that has not asked for longest is forgotten, and has to be opened again


class View(NamedTuple):
    """One page that was shown: what its list looks for, if it has one that goes on."""

    query: Query | None


class Views:
    """The open pages by a name that nobody can guess."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._open: OrderedDict[str, View] = OrderedDict()

    def add(self, view: View) -> str:
        """Its name."""
        name = secrets.token_urlsafe(16)
        with self._guard:
            self._open[name] = view
            while len(self._open) > VIEWS_MAX:
                self._open.popitem(last=False)
        return name

    def find(self, name: str) -> View | None:
        """None when there is no such page, or no longer."""
        with self._guard:
            if name in self._open:
                self._open.move_to_end(name)
            return self._open.get(name)
