"""How the bus stands now: asked of the process that has the home open, or read from the home, once a second at most."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from enhanced_agent_bus.cli.reading.home import remembered_agents, status_at_rest
from enhanced_agent_bus.cli.session import ask_running, held_up
from enhanced_agent_bus.errors import BusError

FRESH_SECONDS: Final = 1.0
ANSWER_SECONDS_MAX: Final = 2.0

T = TypeVar("T")


class Live:
    """Answers for one home; several pages that ask at once cost one question."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._guard = threading.Lock()
        self._kept: dict[str, tuple[float, Any]] = {}

    def status(self) -> dict[str, Any]:
        """As `eab status --json`. Raises: StoreCorrupt, sqlite3.Error."""
        return self._once("status", self._status)

    def agents(self) -> list[dict[str, Any]]:
        """As `eab agents --json`. Raises: StoreCorrupt, sqlite3.Error."""
        return self._once("agents", self._agents)

    def _once(self, name: str, find: Callable[[], T]) -> T:
        with self._guard:
            at, value = self._kept.get(name, (float("-inf"), None))
            if value is None or time.monotonic() - at >= FRESH_SECONDS:
                value = find()
                self._kept[name] = (time.monotonic(), value)
            found: T = value
            return found

    def _status(self) -> dict[str, Any]:
        blocked = held_up(self._home)
        document = None if blocked is not None else self._ask("status")
        if document is None:
            document = status_at_rest(self._home)
            if blocked is not None:
                document |= {"running": True, "blocked": [blocked], "answers": False}
        return dict(document)

    def _agents(self) -> list[dict[str, Any]]:
        found = None if held_up(self._home) is not None else self._ask("agents")
        return remembered_agents(self._home) if found is None else list(found)

    def _ask(self, op: str) -> Any:
        try:
            return ask_running(self._home, op, timeout=ANSWER_SECONDS_MAX)
        except BusError:  # it is closing
            return None
