"""`eab policy shadow`: a candidate that looks on at a running bus, and never acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.policy.author import Constitution
from enhanced_agent_bus.cli.render import counted, echo, print_json, print_table, safe
from enhanced_agent_bus.cli.session import Session, ask_running, session_of

DIVERGENCES_SHOWN_MAX: Final = 20

app = typer.Typer(help="Let a candidate look on at a running bus.", rich_markup_mode=None)


def add_to(policy: typer.Typer) -> None:
    """Adds the commands."""
    policy.add_typer(app, name="shadow")


@app.command()
def start(
    context: typer.Context,
    path: Constitution,
    *,
    percent: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Of so many of 100 conversations.")] = 100,
) -> None:
    """Ask a candidate what was just decided.

    It has a process of its own, decides nothing, and ends with the bus or with `stop`. One that looks on already ends.

    Example: eab policy shadow start policies --percent 10
    """
    session = session_of(context)
    if not path.exists():
        raise CliError(f"there is no constitution at {path}", remedy="name a folder or a bundle.tar.gz", code="file")
    report = _ask(session, "shadow_start", {"path": str(path.resolve()), "percent": percent})
    if session.json:
        print_json(report)
    else:
        echo(f"looking on: revision {report['revision']}, {report['digest']}")
        echo(f"what it finds: {session.command('policy shadow status')}")


@app.command()
def status(context: typer.Context) -> None:
    """Show what it has found so far.

    Example: eab policy shadow status
    """
    session = session_of(context)
    report = ask_running(session.existing_home(), "shadow_status")
    if session.json:
        print_json(report)
    elif report is None:
        echo("no shadow is looking on")
    else:
        show(report)


@app.command()
def stop(context: typer.Context) -> None:
    """End it, and show what it found.

    Example: eab policy shadow stop
    """
    session = session_of(context)
    try:
        report = _ask(session, "shadow_stop", {})
    except KeyError:
        raise unknown_id("no shadow is looking on") from None
    if session.json:
        print_json(report)
    else:
        show(report)


def _ask(session: Session, op: str, args: Mapping[str, Any]) -> Any:
    """Raises: CliError, when no bus is running; what the bus raises."""
    from enhanced_agent_bus.control.client import call
    from enhanced_agent_bus.ledger.lock import control_socket

    socket = control_socket(session.existing_home())
    if socket is not None:
        try:
            return call(socket, op, args)
        except ConnectionRefusedError:  # what a process has left that was killed
            pass
    remedy = "start it, for instance with `eab run APP`; what was decided before, `eab policy backtest` asks"
    raise CliError(f"no bus is running in {session.home}, and a shadow lives in one", remedy=remedy, code="not_running")


def show(report: Mapping[str, Any]) -> None:
    """Counts first, then the newest divergences."""
    echo(f"revision {report['revision']}, {report['digest']}")
    share = "" if report["percent"] == 100 else f" ({report['percent']} percent of the conversations)"  # noqa: PLR2004
    echo(f"since {safe(report['since'])}: {counted(report['compared'], 'decision')} compared{share}")
    if report["dropped"]:
        echo(f"{report['dropped']} of {report['seen']} dropped: they came faster than a shadow may look at them")
    if report["other_reasons"]:
        echo(f"{counted(report['other_reasons'], 'verdict')} would be the same for other reasons")
    if report["other_facts"]:
        echo(
            f"in {report['other_facts']} of them it would remember other facts; "
            "what that changes later is not seen here"
        )
    rows = [(flip.replace("->", " -> "), count) for flip, count in sorted(report["flips"].items())]
    rows += [(f"no usable answer: {code}", count) for code, count in sorted(report["errors"].items())]
    echo()
    if not rows:
        echo("no verdict would be another one")
        return
    print_table(("divergences", "count"), rows)
    echo()
    by_count = sorted(report["rules"].items(), key=lambda item: (-item[1], item[0]))
    print_table(("rule", "count"), by_count[:DIVERGENCES_SHOWN_MAX])
    echo()
    print_table(
        ("message", "from", "was", "would be", "by"),
        [
            (one["message_id"], one["sender"], one["was"], one["would_be"], ", ".join(one["rules"]))
            for one in report["divergences"][-DIVERGENCES_SHOWN_MAX:]
        ],
    )
