"""`eab audit hold`: legal holds. What is under one is kept, whatever erasure or retention would remove."""

from __future__ import annotations

from typing import Annotated

import typer

from enhanced_agent_bus.cli.audit.erase import SEARCH_REMEDY, AgentId, Conversation, Reason, require_reason, target
from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import echo, print_json, print_json_lines, print_table, safe
from enhanced_agent_bus.cli.session import change, operator, session_of

MessageId = Annotated[str | None, typer.Argument(metavar="[MESSAGE_ID]", show_default=False, help="One message.")]

app = typer.Typer(help="Legal holds: add, remove, list.", rich_markup_mode=None)


@app.command()
def add(
    context: typer.Context,
    message_id: MessageId = None,
    *,
    reason: Reason,
    conversation: Conversation = None,
    agent: AgentId = None,
) -> None:
    """Keep content from erasure and retention; recorded.

    A conversation or an agent is held with what it has yet to send.

    Example: eab audit hold add desk/order-7 --reason "case 12 of 2026"
    """
    of, name = target(message_id, conversation, agent)
    require_reason(reason)
    session = session_of(context)
    try:
        held = change(session, "add_legal_hold", {"of": of, "name": name, "reason": reason, "by": operator()})
    except KeyError:
        raise unknown_id(f"nothing is recorded of {of} {name!r}", SEARCH_REMEDY) from None
    except ValueError as error:
        raise CliError(str(error), remedy=SEARCH_REMEDY) from None
    if session.json:
        print_json(held)
    else:
        echo(safe(f"{of} {name} is under a legal hold"))


@app.command()
def remove(
    context: typer.Context,
    message_id: MessageId = None,
    *,
    reason: Reason,
    conversation: Conversation = None,
    agent: AgentId = None,
) -> None:
    """End a legal hold; recorded.

    Example: eab audit hold remove desk/order-7 --reason "case closed"
    """
    of, name = target(message_id, conversation, agent)
    require_reason(reason)
    session = session_of(context)
    try:
        change(session, "remove_legal_hold", {"of": of, "name": name, "reason": reason, "by": operator()})
    except KeyError:
        remedy = "`eab audit hold list` shows the legal holds"
        raise unknown_id(f"there is no legal hold on {of} {name!r}", remedy) from None
    if session.json:
        print_json({"of": of, "name": name, "removed": True})
    else:
        echo(safe(f"{of} {name} is under no legal hold of its own any more"))


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the legal holds; reads only.

    Example: eab audit hold list
    """
    from enhanced_agent_bus.cli.reading.retained import holds_of
    from enhanced_agent_bus.control.wire import plain

    session = session_of(context)
    rows = [plain(hold) for hold in holds_of(session.existing_home())]
    if session.json:
        print_json_lines(rows)
        return
    names = ("of", "name", "reason", "by", "since")
    print_table(names, [[row[name] for name in names] for row in rows], empty="there are no legal holds")
