"""How far a run or a search is: on a terminal only, and never in what a program reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from enhanced_agent_bus.cli.render import console, echo

if TYPE_CHECKING:
    from enhanced_agent_bus.cli.runs.feed import Tally
    from enhanced_agent_bus.cli.runs.lines import LineReader

REFRESH_SECONDS: Final = 0.1
#: What takes less is done before anybody asks how far it is.
UNTOLD_SECONDS: Final = 0.5

T = TypeVar("T")


class Progress:
    """A bar over the bytes whose messages have ended, where their number is known; and the counts so far."""

    def __init__(self, reader: LineReader, tally: Tally, *, quiet: bool) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._reader = reader
        self._tally = tally
        self._shown = not quiet and sys.stderr.isatty()
        self._next = 0.0
        self._bar = Progress(
            BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
            console=console(error=True), disable=not self._shown, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=reader.bytes_total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self) -> None:
        """Called at every change; draws a few times a second."""
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + REFRESH_SECONDS
        states = self._tally.states
        text = f"{self._tally.ended} ended: {states['delivered']} delivered, {states['refused']} refused"
        done = self._reader.bytes_read * self._tally.settled / max(1, self._tally.lines)
        self._bar.update(self._task, completed=done, description=text)

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._shown:
            self._bar.console.print(line, style="yellow")
        else:
            echo(line, error=True)


class Scanning:
    """Says which share of a log has been read, and how much was found, until there is something to show."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._next = time.monotonic() + UNTOLD_SECONDS
        self._status: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def update(self, share: float, found: int) -> None:
        """Called now and then; draws a few times a second."""
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + REFRESH_SECONDS
        if self._status is None:
            self._status = console(error=True).status("")
            self._status.start()
        self._status.update(f"{min(share, 1.0):.0%} of the log: {found} found")

    def until_first(self, found: Iterable[T]) -> Iterator[T]:
        """Passes on what is found; from the first on the terminal belongs to that."""
        for one in found:
            self._stop()
            self._shown = False
            yield one

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
