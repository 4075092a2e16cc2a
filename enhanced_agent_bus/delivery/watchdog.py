"""The watchdog: a thread that sees when a handler blocks the event loop, and says which one it is.

One loop serves every agent of the process, so that a handler which computes or waits without `await` stalls them all.
Nobody can stop it from outside; what helps is to know its name. A plain `def` handler runs in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.outcome import BlockedLoop

BLOCKED_SECONDS: Final = 0.5  # longer than this without a turn is worth a word
LOOK_SECONDS: Final = 0.25  # between looks; each wakes the loop once
log: Final = logging.getLogger("enhanced_agent_bus")


class Watchdog:
    """Watches the running loop, from `start` to `stop`.

    A warning goes to the logger "enhanced_agent_bus" at once, and `seen` is called, in the watchdog's thread, with what
    blocks, and with None when it is over. `told` is called in the loop, when that goes on.
    """

    def __init__(
        self,
        name_of: Callable[[asyncio.Task[Any]], str],
        seen: Callable[[BlockedLoop | None], None],
        told: Callable[[BlockedLoop], None],
    ) -> None:
        self._name_of = name_of
        self._seen = seen
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stop = threading.Event()
        self._turn = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="eab-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """It looks no more; its thread ends by itself."""
        self._stop.set()
        self._turn.set()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self._turn.clear()
            asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._turn.set)
            except RuntimeError:  # the loop is closed
                return
            if self._turn.wait(BLOCKED_SECONDS):
                continue
            blocked = self._look(time.monotonic() - asked)
            if self._turn.is_set():  # it went on while it was looked at
                continue
            log.warning(
                "%s has blocked the event loop for %.1f s at %s, and every agent of this process waits for it: "
                "use `await` there, or a plain `def` handler, which runs in a thread",
                f"the handler of {blocked.agent}" if blocked.agent else "something",
                blocked.seconds,
                blocked.where,
            )
            self._seen(blocked)
            self._turn.wait()
            self._seen(None)
            if not self._stop.is_set():
                with suppress(RuntimeError):  # the loop was closed meanwhile
                    self._loop.call_soon_threadsafe(
                        self._told, replace(blocked, seconds=time.monotonic() - asked, over=True)
                    )

    def _look(self, seconds: float) -> BlockedLoop:
        """Whose task runs, and where."""
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way to see another thread
        where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else ""
        name = self._name_of(task) if task is not None else ""
        return BlockedLoop(name, where, seconds, datetime.now(UTC), over=False)
