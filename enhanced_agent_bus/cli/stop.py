"""`eab stop` and `eab resume`: the kill switch, for an agent, a tenant or the whole bus."""

from __future__ import annotations

from typing import Annotated

import typer

from enhanced_agent_bus.cli.audit.erase import Reason, require_reason
from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import echo, print_json, safe
from enhanced_agent_bus.cli.session import change, operator, session_of

AgentId = Annotated[str | None, typer.Option("--agent", metavar="ID", help="This agent.")]
Tenant = Annotated[str | None, typer.Option("--tenant", metavar="T", help="All agents of this tenant.")]
Everything = Annotated[bool, typer.Option("--all", help="The whole bus.")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(stop)
    app.command()(resume)


def stop(
    context: typer.Context,
    *,
    reason: Reason,
    agent: AgentId = None,
    tenant: Tenant = None,
    everything: Everything = False,
) -> None:
    """Stop an agent, a tenant or the whole bus, at once and on every node; recorded.

    New messages from or to it are refused, what waits keeps waiting, handlers that run finish. It holds until
    `eab resume`, after a restart too. Exit 3: it is stopped here, and the other nodes are told later.

    Example: eab stop --agent booker --reason "it books twice"
    """
    from enhanced_agent_bus.cli.reading.home import remembered_agents

    of, name = _target("stop", agent, tenant, everything=everything)
    require_reason(reason)
    session = session_of(context)
    known = remembered_agents(session.existing_home())
    try:
        done = change(session, "stop_traffic", {"of": of, "name": name, "reason": reason, "by": operator()})
    except ValueError as error:
        raise CliError(str(error), remedy="`eab agents` shows agents and tenants") from None
    if session.json:
        print_json(done)
        return
    echo(safe(f"stopped: {in_words(of, name)}"))
    if of != "all" and name not in {agent["id" if of == "agent" else "tenant"] for agent in known}:
        echo(safe(f"note: nobody is registered here with the {of} {name}; `eab agents` shows who is"), error=True)
    which = {"agent": f"--agent {name}", "tenant": f"--tenant {name}"}.get(of, "--all")
    echo(f"go on: {session.command(f'resume {which} --reason TEXT')}")


def resume(
    context: typer.Context,
    *,
    reason: Reason,
    agent: AgentId = None,
    tenant: Tenant = None,
    everything: Everything = False,
) -> None:
    """End a stop, on every node; recorded.

    What waited is decided anew, and goes on. Exit 3: the other nodes could not be reached, and it stays stopped.

    Example: eab resume --agent booker --reason "mended"
    """
    of, name = _target("resume", agent, tenant, everything=everything)
    require_reason(reason)
    session = session_of(context)
    try:
        change(session, "resume_traffic", {"of": of, "name": name, "reason": reason, "by": operator()})
    except KeyError:
        raise unknown_id(f"{in_words(of, name)} is not stopped", "`eab status` shows what is") from None
    except ValueError as error:
        raise CliError(str(error), remedy="`eab status` shows what is stopped") from None
    if session.json:
        print_json({"of": of, "name": name, "resumed": True})
    else:
        echo(safe(f"resumed: {in_words(of, name)}"))


def in_words(of: str, name: str) -> str:
    """What is stopped, for a person."""
    return "the whole bus" if of == "all" else f"{of} {name}"


def _target(command: str, agent: str | None, tenant: str | None, *, everything: bool) -> tuple[str, str]:
    """Raises: CliError, when that is not exactly one."""
    given = [(of, name) for of, name in (("agent", agent), ("tenant", tenant)) if name is not None]
    given += [("all", "")] if everything else []
    if len(given) != 1:
        remedy = f"`eab {command} --help` has an example"
        raise CliError("give --agent ID, --tenant T or --all, and one of them only", remedy=remedy)
    return given[0]
