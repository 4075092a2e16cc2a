"""`eab policy activate`: a constitution takes over, at once or in a share of the conversations; and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.policy.author import named_path
from enhanced_agent_bus.cli.render import echo, print_json
from enhanced_agent_bus.cli.session import Session, change, session_of

WHOLE: Final = 100


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(activate)


def activate(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", parser=named_path, help="A folder or a bundle.tar.gz.")
    ] = None,
    *,
    percent: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="In so many of 100 conversations.")] = WHOLE,
    max_refusals: Annotated[
        float | None, typer.Option(metavar="SHARE", min=0, max=1, help="Back when more of its decisions refuse.")
    ] = None,
    max_errors: Annotated[
        float | None, typer.Option(metavar="SHARE", min=0, max=1, help="Back when more have no usable answer (0.01).")
    ] = None,
    over: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=100_000, help="Shares are of its newest N decisions (100).")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Take the candidate back.")] = False,
) -> None:
    """Decide under this constitution from now on.

    Messages that wait are decided again before they start; a running bus changes at once. With --percent it decides
    in that share of the conversations, until it is activated with 100, or goes back.

    Example: eab policy activate policies --percent 10 --max-refusals 0.2
    """
    session = session_of(context)
    limits = {"max_refusals": max_refusals, "max_errors": max_errors, "over": over}
    if rollback:
        if path is not None or percent != WHOLE or any(value is not None for value in limits.values()):
            raise CliError("--rollback stands alone", remedy="`eab policy activate --rollback`")
        _show(session, _roll_back(session))
        return
    if path is None:
        raise CliError("a PATH is missing", remedy="`eab policy activate PATH`, or `eab policy activate --rollback`")
    if percent == WHOLE and any(value is not None for value in limits.values()):
        remedy = "give --percent too: what has taken over everywhere does not go back by itself"
        raise CliError("a limit is for a roll-out by percentage", remedy=remedy)
    if not path.exists():
        raise CliError(f"there is no constitution at {path}", remedy="name a folder or a bundle.tar.gz", code="file")
    _show(session, change(session, "activate", {"path": str(path.resolve()), "percent": percent, **limits}))


def _roll_back(session: Session) -> Any:
    try:
        return change(session, "roll_back", {})
    except KeyError:
        remedy = "`eab status` names the candidate while there is one"
        raise unknown_id("nothing is being rolled out", remedy) from None


def _show(session: Session, result: dict[str, Any]) -> None:
    if session.json:
        print_json(result)
    elif result["percent"] == WHOLE:
        echo(f"active: revision {result['revision']}, {result['digest']}")
    else:
        share = f"in {result['percent']} percent of the conversations"
        echo(f"active {share}: revision {result['revision']}, {result['digest']}")
        echo(f"how it does: {session.command('status')}; back: {session.command('policy activate --rollback')}")
