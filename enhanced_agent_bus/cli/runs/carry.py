"""One run of an application: the bus opened, its agents built, lines sent to the end or served until a signal, closed.

Not here: what the command line says (run), what is printed (summary), how lines are read and counted (lines, feed).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from enhanced_agent_bus import AgentBus, BusClosed, ConstitutionRejected, Drained, open_bus
from enhanced_agent_bus.authoring.workbench import workbench
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.progress import Progress
from enhanced_agent_bus.cli.reading.home import not_taken, status_at_rest
from enhanced_agent_bus.cli.render import counted, echo, quoted, safe
from enhanced_agent_bus.cli.runs.feed import Feed, Tally
from enhanced_agent_bus.cli.runs.lines import BadLine, LineReader
from enhanced_agent_bus.cli.runs.loading import App, choose_constitution, policies_beside
from enhanced_agent_bus.cli.session import Session, beside_answers
from enhanced_agent_bus.clock import FixedClock
from enhanced_agent_bus.settings import load_settings

BAD_LINES_PRINTED_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does."""

    home: Path
    app: App
    source: str | None = None  # a path, "-" for standard input, None to serve
    at: datetime | None = None
    constitution: Path | None = None


@dataclass(slots=True)
class Result:
    """How it went."""

    tally: Tally | None = None  # None when it served
    drained: Drained | None = None
    signal: int = 0  # what stopped it
    failure: tuple[int, Exception] | None = None
    weakenings: list[str] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)  # by how much the accounting grew while it served


def read_time(text: str) -> datetime:
    """RFC 3339; UTC where it names no offset. Raises: CliError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise CliError(f"--at {text!r} is no time", remedy="write it as 2026-11-21T09:00:00Z") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def time_text(time: datetime) -> str:
    """As `--at` takes it."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


async def carry_out(plan: Plan, *, quiet: bool) -> Result:
    """Opens the bus, does what the plan says, and closes it. Raises: BusError, CliError, OSError."""
    # Before the bus: a missing file changes nothing.
    reader = LineReader(plan.source, loop=asyncio.get_running_loop()) if plan.source is not None else None
    constitution = choose_constitution(plan.home, plan.constitution, plan.app)
    clock = FixedClock(plan.at) if plan.at is not None else None
    stop = asyncio.Event()
    result = Result()
    with _signals(stop, result):
        beside = {} if reader is None else beside_answers(plan.home)  # who serves has a log, not an answer
        async with open_bus(plan.home, constitution=constitution, clock=clock, **beside) as bus:
            await plan.app.build(bus)
            status = bus.status()
            result.weakenings = list(status.security_state)
            if constitution is None and not quiet:
                await _note_other_constitution(plan, status.constitution)
            if reader is None:
                if not quiet:
                    echo(f"serving {counted(len(bus.agents()), 'agent')}; stop with Ctrl-C or SIGTERM", error=True)
                await stop.wait()
            else:
                await _send_lines(bus, reader, stop, result, quiet=quiet)
            result.drained = await bus.close()
    if reader is None:
        after = status_at_rest(plan.home)["accounting"]
        result.served = {state: count - status.accounting.get(state, 0) for state, count in after.items()}
    return result


async def _note_other_constitution(plan: Plan, active: str) -> None:
    """Says so when the folder that the settings name, or a new home would have taken, is not what decides here."""
    folder = load_settings(plan.home).constitution.path or policies_beside(plan.app)
    if folder is None or not folder.is_dir() or not_taken(plan.home) is not None:
        return  # what could not be taken was said at the start
    async with workbench() as bench:
        try:
            if await bench.hash(folder) == active:
                return
        except ConstitutionRejected:
            pass  # it is being worked on
    command = Session(plan.home, json=False).command(f"policy activate {quoted(str(folder))}")
    echo(f"note: {safe(folder)} is not the active constitution; to make it so: {command}", error=True)


@contextmanager
def _signals(stop: asyncio.Event, result: Result) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the run to stop and drain; the next one ends the process."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def release() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def stopped(number: int) -> None:
        release()
        result.signal = number
        stop.set()

    for number in numbers:
        loop.add_signal_handler(number, stopped, number)
    try:
        yield
    finally:
        release()


async def _send_lines(bus: AgentBus, reader: LineReader, stop: asyncio.Event, result: Result, *, quiet: bool) -> None:

    tally = result.tally = Tally()
    with Progress(reader, tally, quiet=quiet) as progress:

        def bad(line: BadLine) -> None:
            if tally.bad_count <= BAD_LINES_PRINTED_MAX and not quiet:
                progress.say(f"line {line.number}: {safe(line.message)}")

        feed = Feed(bus, tally, on_change=progress.update, on_bad=bad)

        async def whole_run() -> None:
            await feed.send(reader)
            await feed.finish()

        work = asyncio.create_task(whole_run(), name="lines")
        waiting = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not work.done():
            feed.stop()
            reader.stop()
            await bus.close()
            await feed.count_rest()
            work.cancel()
        await asyncio.gather(work, waiting, return_exceptions=True)
        error = None if work.cancelled() else work.exception()
        if error is not None and not (stop.is_set() and isinstance(error, BusClosed)):  # closed because it was stopped
            raise error
    result.failure = feed.failure
