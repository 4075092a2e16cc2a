"""What a run has done, as a table for people or a document for programs."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.render import counted, echo, print_json, print_table, quoted
from enhanced_agent_bus.cli.runs.carry import Result
from enhanced_agent_bus.cli.runs.feed import Tally
from enhanced_agent_bus.cli.session import Session


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
        for hint in hints(session, result.tally):
            echo(hint)
    elif result.drained is not None:
        drained = result.drained
        rest = f"{drained.kept} kept for the next start, {drained.dead_lettered} dead-lettered"
        echo(f"while closing: {drained.delivered} delivered, {rest}")
        echo(f"in the whole run: {_served(result.served)}")
        echo(f"look closer: {session.command('audit tail')}")
    if result.failure is not None:
        echo(f"stopped at line {result.failure[0]}: it and the lines after it were not all sent", error=True)


def document(home: Path, result: Result) -> dict[str, object]:
    """The summary as JSON."""
    drained = result.drained
    return {
        "home": str(home),
        **(result.tally.document() if result.tally is not None else {}),
        **({"served": result.served} if result.tally is None else {}),
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
#: What the accounting of a served run may have gained, beside what was accepted.
_SERVED: Final = _LABELS | {"refused": "refused later", "retrying": "still to be retried"}


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
    blank = f" ({tally.blank} more {'was' if tally.blank == 1 else 'were'} empty)" if tally.blank else ""
    echo(f"{counted(tally.sent, 'message')} of {counted(tally.lines, 'line')}{blank} in {seconds}")


def _served(counts: Mapping[str, int]) -> str:
    """What a serving bus did; replies are messages too."""
    parts = [counted(counts.get("accepted", 0), "message") + " accepted"]
    parts += [f"{counts[state]} {label}" for state, label in _SERVED.items() if counts.get(state)]
    return ", ".join(parts)


def hints(session: Session, tally: Tally) -> list[str]:
    """One line on how to look closer at each thing worth it."""
    lines = []
    if (refused := tally.examples.get("refused")) is not None:
        lines.append(f"why one was refused: {session.command(f'audit show {quoted(refused)}')}")
    elif (delivered := tally.examples.get("delivered")) is not None:
        lines.append(f"one message's records: {session.command(f'audit show {quoted(delivered)}')}")
    if tally.states["dead_lettered"]:
        lines.append(f"dead letters:        {session.command('dlq list')}")
    if tally.states["held"]:
        lines.append(f"held messages:       {session.command('held list')}")
    if tally.states["parked"]:
        lines.append(f"what still waits:    {session.command('queue list')}")
    return lines
