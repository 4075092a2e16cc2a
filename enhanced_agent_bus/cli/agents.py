"""`eab agents`: who is registered; who of another process may join; and joining, with letters carried as files.

Not here: what such an agent sends (envelopes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from enhanced_agent_bus.cli.envelopes import ask, read_letter
from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.program import named
from enhanced_agent_bus.cli.render import echo, print_json, print_json_lines, print_table, safe
from enhanced_agent_bus.cli.session import Session, ask_running, change, session_of

KEY_BYTES_MAX = 1024
AgentId = Annotated[str, typer.Argument(metavar="AGENT", help="Its name.")]
Names = Annotated[list[str] | None, typer.Option(metavar="NAME", help="May be given several times.")]

app = typer.Typer(
    help="List who is registered; let agents of other processes join.",
    rich_markup_mode=None,
    invoke_without_command=True,
)


@app.callback()
def agents(context: typer.Context) -> None:
    """List who is registered; let agents of other processes join.

    Example: eab agents
    """
    if context.invoked_subcommand is None:
        _list(session_of(context))


@app.command("list")
def list_(context: typer.Context) -> None:
    """List who is registered, as `eab agents` alone does.

    Example: eab agents list
    """
    _list(session_of(context))


def _list(session: Session) -> None:
    from enhanced_agent_bus.cli.reading.home import remembered_agents

    home = session.existing_home()
    rows = ask_running(home, "agents")
    if rows is None:
        rows = remembered_agents(home)
    if session.json:
        print_json_lines(rows)
        return
    several, outside = (any(row.get(name) for row in rows) for name in ("nodes", "trusted"))
    names = ("agent", "tenant", "roles", "capabilities", "topics", "constitution", "live", "waiting", "breaker")
    print_table(
        (*names, *(("node",) if several else ()), *(("trusted",) if outside else ())),
        [
            (
                row["id"],
                row["tenant"],
                ", ".join(row["roles"]),
                ", ".join(row["capabilities"]),
                ", ".join(row["topics"]),
                row["constitution"],
                "yes" if row["live"] else "there" if row.get("nodes") else "no",
                row["waiting"],
                row["breaker"].replace("_", " "),
                *((", ".join(row.get("nodes") or ()) or "here",) if several else ()),
                *(("yes" if row.get("trusted") else "no",) if outside else ()),
            )
            for row in rows
        ],
        empty=named("nobody is registered: an application registers agents when it runs, `eab run APP`"),
    )


@app.command()
def trust(
    context: typer.Context,
    agent: AgentId,
    *,
    tenant: Annotated[str, typer.Option(metavar="T", help="Its tenant.")],
    key: Annotated[Path, typer.Option(metavar="FILE.vkey", help="Its public key, named TENANT/AGENT.")],
    role: Names = None,
    capability: Names = None,
    topic: Names = None,
) -> None:
    """Let an agent of another process join; recorded.

    It gets these roles, capabilities and topics at most. What was said of it before is replaced.

    Example: eab agents trust desk --tenant acme --key desk.vkey --role planner
    """
    session = session_of(context)
    with key.open("rb") as file:
        text = file.read(KEY_BYTES_MAX).decode("ascii", "replace")
    given: dict[str, Any] = {"roles": role or [], "capabilities": capability or [], "topics": topic or []}
    try:
        change(session, "trust_agent", {"agent": agent, "tenant": tenant, "key": text, **given})
    except ValueError as error:
        remedy = f"the key is one line, {tenant}/{agent}+<8 hex digits>+<base64>; names are [a-z0-9._-]"
        raise CliError(f"{agent} cannot be trusted with {key}: {error}", remedy=remedy) from None
    if session.json:
        print_json({"agent": agent, "tenant": tenant, "trusted": True, **given})
    else:
        echo(safe(f"{agent} of {tenant} may join from another process"))


@app.command()
def distrust(context: typer.Context, agent: AgentId) -> None:
    """Let an agent of another process join no more; recorded.

    One that has joined is unregistered.

    Example: eab agents distrust desk
    """
    session = session_of(context)
    try:
        change(session, "distrust_agent", {"agent": agent})
    except KeyError:
        raise unknown_id(f"{agent!r} is not trusted to join", "`eab agents` shows who is") from None
    if session.json:
        print_json({"agent": agent, "trusted": False})
    else:
        echo(safe(f"{agent} may not join from another process any more"))


@app.command()
def challenge(context: typer.Context) -> None:
    """Print what an agent has to answer within 30 s to join the bus that runs.

    Example: eab agents challenge > challenge.json
    """
    echo(ask(session_of(context), "challenge", {}))


@app.command()
def join(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="The agent's answer to a challenge.")],
) -> None:
    """Begin the session of an agent that has answered a challenge.

    It is registered until the bus's process ends.

    Example: eab agents join answer.json
    """
    session = session_of(context)
    joined = ask(session, "join", {"answer": read_letter(file)})
    if session.json:
        print_json(joined)
        return
    roles = ", ".join(joined["roles"]) or "none"
    echo(safe(f"{joined['id']} of {joined['tenant']} has joined; roles: {roles}"))
