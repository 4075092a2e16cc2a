"""`eab run`: opens the bus with the agents of an application; sends lines to the end, or serves until it is stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import echo, print_json, print_table, safe
from enhanced_agent_bus.cli.session import DEFAULT_HOME, Session, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus import AgentBus
    from enhanced_agent_bus.cli.feed import Tally
    from enhanced_agent_bus.cli.lines import BadLine, LineReader
    from enhanced_agent_bus.cli.loading import App
    from enhanced_agent_bus.outcome import Drained

FailOn = Literal["refused", "bad-line"]
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


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("run")(run)


def run(
    context: typer.Context,
    app: Annotated[str, typer.Argument(metavar="APP", help="module:function or file.py:function.")],
    *,
    input: Annotated[
        str | None, typer.Option("--input", metavar="FILE", help="JSON lines to send, - for standard input.")
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="Fix the clock that policies see (RFC 3339).")] = None,
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="refused|bad-line", help="Exit 1 when there was one.")
    ] = None,
    constitution: Annotated[Path | None, typer.Option(metavar="PATH", help="The constitution to start under.")] = None,
) -> int:
    """Run an application: send it lines, or serve.

    With --input it ends when every line has; without, it serves until SIGTERM or Ctrl-C and then drains.

    Example: eab run app.py:build --input messages.jsonl
    """
    from enhanced_agent_bus.cli.loading import App

    session = session_of(context)
    wanted = [_fail_on(word) for word in fail_on or ()]
    fixed = None if at is None else read_time(at)
    plan = Plan(session.home, App(app), source=input, at=fixed, constitution=constitution)
    result = asyncio.run(carry_out(plan, quiet=session.json))
    show(session, result)
    if result.failure is not None:
        raise result.failure[1]
    return exit_status(result, wanted)


def _fail_on(word: str) -> FailOn:
    if word == "refused":
        return "refused"
    if word == "bad-line":
        return "bad-line"
    raise CliError(f"--fail-on knows refused and bad-line, not {word!r}", remedy="say it twice for both")


def read_time(text: str) -> datetime:
    """RFC 3339; UTC where it names no offset. Raises: CliError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise CliError(f"--at {text!r} is no time", remedy="write it as 2026-11-21T09:00:00Z") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def exit_status(result: Result, fail_on: Sequence[FailOn]) -> int:
    """Contract §8: 0 when every readable line has ended, whatever the verdicts."""
    tally = result.tally
    if tally is None:
        return faults.DONE
    if result.signal:
        return faults.TERMINATED if result.signal == signal.SIGTERM else faults.INTERRUPTED
    if "refused" in fail_on and (tally.states["refused"] or tally.no_subscriber):
        return faults.FOUND
    return faults.FOUND if "bad-line" in fail_on and tally.bad_count else faults.DONE


# --- doing it ------------------------------------------------------------------------------------------------------


async def carry_out(plan: Plan, *, quiet: bool) -> Result:
    """Opens the bus, does what the plan says, and closes it. Raises: BusError, CliError, OSError."""
    from enhanced_agent_bus import open_bus
    from enhanced_agent_bus.cli.lines import LineReader
    from enhanced_agent_bus.cli.loading import choose_constitution
    from enhanced_agent_bus.clock import FixedClock

    # Before the bus: a missing file changes nothing.
    reader = LineReader(plan.source, loop=asyncio.get_running_loop()) if plan.source is not None else None
    constitution = choose_constitution(plan.home, plan.constitution, plan.app)
    clock = FixedClock(plan.at) if plan.at is not None else None
    stop = asyncio.Event()
    result = Result()
    with _signals(stop, result):
        async with open_bus(plan.home, constitution=constitution, clock=clock) as bus:
            await plan.app.build(bus)
            result.weakenings = list(bus.status().security_state)
            if reader is None:
                if not quiet:
                    echo(f"serving {len(bus.agents())} agents; stop with Ctrl-C or SIGTERM", error=True)
                await stop.wait()
            else:
                await _send_lines(bus, reader, stop, result, quiet=quiet)
            result.drained = await bus.close()
    return result


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
    from enhanced_agent_bus.cli.feed import Feed, Tally
    from enhanced_agent_bus.cli.progress import Progress

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
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error
    result.failure = feed.failure


# --- showing it ----------------------------------------------------------------------------------------------------


def show(session: Session, result: Result) -> None:
    """The summary: a table for people, one document for programs."""
    if session.json:
        print_json(document(session.home, result))
        return
    if result.weakenings:
        echo(f"weakenings in force: {', '.join(result.weakenings)}", error=True)
    if result.tally is not None:
        _show_tally(result.tally)
        for hint in hints(session.home, result.tally):
            echo(hint)
    elif result.drained is not None:
        drained = result.drained
        echo(f"closed: {drained.delivered} delivered, {drained.kept} kept, {drained.dead_lettered} dead-lettered")
    if result.failure is not None:
        echo(f"stopped at line {result.failure[0]}: it and the lines after it were not all sent", error=True)


def document(home: Path, result: Result) -> dict[str, object]:
    """The summary as JSON."""
    drained = result.drained
    return {
        "home": str(home),
        **(result.tally.document() if result.tally is not None else {}),
        "drained": None
        if drained is None
        else {"delivered": drained.delivered, "kept": drained.kept, "dead_lettered": drained.dead_lettered},
        "stopped_by": signal.Signals(result.signal).name if result.signal else None,
        "security_state": result.weakenings,
    }


_LABELS: Final = {
    "delivered": "delivered",
    "refused": "refused",
    "held": "held for approval",
    "parked": "parked (no handler)",
    "dead_lettered": "dead-lettered",
    "expired": "expired",
    "discarded": "discarded",
    "queued": "still waiting",
}


def _show_tally(tally: Tally) -> None:
    rows: list[tuple[str, int, str]] = []
    for state, label in _LABELS.items():
        count = tally.states[state]
        if count or state in ("delivered", "refused", "held", "dead_lettered"):
            rows.append((label, count, ""))
        if state == "delivered":
            rows.append(("  of these after a retry", tally.retried, ""))
        if state == "refused":
            rows += [(f"  by {rule or code}", n, code) for (code, rule), n in tally.refusals.most_common()]
    extra = (
        ("nobody subscribed", tally.no_subscriber),
        ("repeated ids", tally.repeated),
        ("bad lines", tally.bad_count),
        ("read, not sent", tally.unsent),
    )
    rows += [(label, count, "") for label, count in extra if count or label == "bad lines"]
    print_table(("what", "messages", "code"), rows)
    echo()
    seconds = f"{tally.elapsed_seconds:.2f} s: {tally.per_second:,.0f} a second"
    echo(f"{tally.sent} messages of {tally.lines} lines in {seconds}")


def hints(home: Path, tally: Tally) -> list[str]:
    """One line on how to look closer at each thing worth it."""
    command = "eab" if str(home) == DEFAULT_HOME else f"eab --home {home}"
    lines = []
    if (refused := tally.examples.get("refused")) is not None:
        lines.append(f"why one was refused: {command} audit show {refused}")
    elif (delivered := tally.examples.get("delivered")) is not None:
        lines.append(f"one message's records: {command} audit show {delivered}")
    if tally.states["dead_lettered"]:
        lines.append(f"dead letters:        {command} dlq list")
    if tally.states["held"]:
        lines.append(f"held messages:       {command} held list")
    if tally.states["parked"]:
        lines.append(f"what still waits:    {command} queue list")
    return lines
