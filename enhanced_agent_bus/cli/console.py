"""`eab console`: the web page on a home, for this machine alone. What it shows is in the room `console`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from enhanced_agent_bus.cli.audit.witness import kept_checkpoint, vouched
from enhanced_agent_bus.cli.faults import CliError, describe
from enhanced_agent_bus.cli.render import echo, print_json, safe
from enhanced_agent_bus.cli.session import Session, session_of
from enhanced_agent_bus.errors import BusError

PORT_MAX = 65_535
NEEDS = ("starlette", "uvicorn")


def add_to(app: typer.Typer) -> None:
    """Makes the command known."""
    app.command("console")(console)


def console(
    context: typer.Context,
    *,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=PORT_MAX, help="On 127.0.0.1; 0 takes a free one.")] = 0,
    allow_replay: Annotated[
        bool, typer.Option("--allow-replay", help="Print a second address, from which dead letters can be replayed.")
    ] = False,
    payload: Annotated[
        bool, typer.Option("--payload", help="Offer payloads, headers and texts; each showing is recorded.")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One that was kept elsewhere, to verify the log against.")
    ] = None,
) -> None:
    """Serve a web page on this home, for this machine alone, until Ctrl-C.

    The address that it prints has a token, which lets in whoever has it. Every view is recorded as an access before it
    is shown.

    Example: eab console --port 8383
    """
    session = session_of(context)
    # Pages name commands to type, and whoever reads them may stand in another folder.
    session = replace(session, home=session.existing_home().absolute())
    if checkpoint is not None:
        kept_checkpoint(checkpoint)  # what is none is told now, and not on a page
    try:
        from enhanced_agent_bus.console.guard import Tokens
        from enhanced_agent_bus.console.server import listening, make_app, serve
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in NEEDS:
            raise
        remedy = "pip install 'opa-agent-bus[console]'"
        what = f"the console needs {missing}, which is not installed"
        raise CliError(what, remedy=remedy, code="extra") from None
    tokens = Tokens.make(replay=allow_replay)
    with listening(port) as bound:
        taken = bound.getsockname()[1]
        app = make_app(session, tokens=tokens, port=taken, payload=payload, checkpoint=checkpoint)
        address = f"http://127.0.0.1:{taken}/?token="
        offered = " with replay" * allow_replay + " with payloads" * payload
        warning = _not_recorded(session, checkpoint, f"start{offered}")
        replay = None if tokens.replay is None else f"{address}{tokens.replay}"
        if session.json:
            print_json({"home": str(session.home), "url": f"{address}{tokens.read}", "replay_url": replay})
        else:
            echo(f"the console on {safe(session.home)}; every view of it is recorded in the log")
            echo(f"  to read:   {address}{tokens.read}")
            if replay is not None:
                echo(f"  to replay: {replay}")
            echo("Ctrl-C ends it")
        if warning:
            echo(safe(session.named(warning)), error=True)
        sys.stdout.flush()
        serve(app, bound)


def _not_recorded(session: Session, checkpoint: Path | None, what: str) -> str:
    """Records that the console was started, as each view is; where that cannot be, why pages will show the verdicts."""
    import sqlite3

    from enhanced_agent_bus.console.access import Recorder

    try:
        Recorder(session.home, vouched(session.home, checkpoint)).note(what)
    except (BusError, CliError, OSError, sqlite3.Error) as error:
        document = describe(error)[1]
        so = "who looks cannot be recorded now, so the verdicts alone are shown"
        return f"eab: {so}: {document['message']}; {document['remedy']}"
    return ""
