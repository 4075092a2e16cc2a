"""What a run has done, as a table for people or a document for programs."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.carry import Result
from enhanced_agent_bus.cli.feed import Tally
from enhanced_agent_bus.cli.render import echo, print_json, print_table
from enhanced_agent_bus.cli.session import DEFAULT_HOME, Session


def exit_status(result: Result, fail_on: Sequence[str]) -> int:
    """Contract §8: 0 when every readable line has ended, whatever the verdicts."""
    tally = result.tally
    if tally is None:
        return faults.DONE
    if result.signal:
        return faults.TERMINATED if result.signal == signal.SIGTERM else faults.INTERRUPTED
    if "refused" in fail_on and (tally.states["refused"] or tally.no_subscriber):
        return faults.FOUND
    return faults.FOUND if "bad-line" in fail_on and tally.bad_count else faults.DONE


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
        if state == "refused":
            rows += [(f"  by {rule or code}", n, code) for (code, rule), n in tally.refusals.most_common()]
    rows.append(("retried, however it ended", tally.retried, ""))
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
