"""`eab nats`: what the operator of a NATS server needs to know of this bus. Connects to nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import echo, print_json
from enhanced_agent_bus.cli.session import session_of

app = typer.Typer(help="A bus of several nodes over NATS.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """A bus of several nodes over NATS."""


@app.command()
def permissions(
    context: typer.Context,
    *,
    bus: Annotated[str | None, typer.Option(metavar="NAME", help="The bus; by default transport.name.")] = None,
    nsc: Annotated[str | None, typer.Option(metavar="USER", help="As a command for nsc, for this user.")] = None,
) -> None:
    """Print what one node may publish and hear on the server.

    For the server's configuration; all nodes of a bus need the same.

    Example: eab nats permissions --bus eab > eab-node.conf
    """
    from enhanced_agent_bus.settings import load_settings
    from enhanced_agent_bus.transports import permissions as needed

    session = session_of(context)
    if nsc == "":
        raise CliError("--nsc names no user", remedy="name the user of the node as nsc has it")
    name = load_settings(session.home).transport.name if bus is None else bus
    try:
        allowed = needed.permissions(name)
    except ValueError as error:
        raise CliError(str(error), remedy="name it as transport.name does") from None
    if session.json:
        print_json({"bus": name, **{what: list(subjects) for what, subjects in allowed._asdict().items()}})
    elif nsc is not None:
        echo(needed.as_nsc(allowed, nsc))
    else:
        echo(needed.as_config(name, allowed))
