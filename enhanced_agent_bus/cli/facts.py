"""`eab facts`: what decisions remembered, and what operators put there. Changes are recorded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from enhanced_agent_bus.cli.faults import CliError, unknown_id
from enhanced_agent_bus.cli.render import compact, echo, print_json, print_json_lines, print_table, safe
from enhanced_agent_bus.cli.session import ask_running, change, session_of

SCOPES = ("agent", "conversation", "tenant")
Scope = Annotated[str, typer.Argument(metavar="SCOPE", help="agent, conversation or tenant.")]
Owner = Annotated[str, typer.Argument(metavar="OWNER", help="Which agent, conversation or tenant.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The fact's key.")]

app = typer.Typer(help="List and change what policies see as facts.", rich_markup_mode=None)


def _scope(word: str) -> str:
    """Policies say sender and recipient for what is kept of an agent. Raises: CliError."""
    scope = "agent" if word in ("sender", "recipient") else word
    if scope in SCOPES:
        return scope
    raise CliError(f"there is no scope {word!r}", remedy=f"it is one of {', '.join(SCOPES)}")


@app.command("list")
def list_(
    context: typer.Context,
    *,
    scope: Annotated[
        str | None,
        typer.Option(metavar="SCOPE", help="Only agent (sender and recipient mean it too), conversation or tenant."),
    ] = None,
    owner: Annotated[str | None, typer.Option(metavar="OWNER", help="Only of this one.")] = None,
) -> None:
    """List facts; reads only. Of several nodes, the facts that they share while this one runs.

    Example: eab facts list --scope agent --owner desk
    """
    from enhanced_agent_bus.cli.reading.home import facts

    session = session_of(context)
    home, kind = session.existing_home(), None if scope is None else _scope(scope)
    asked = {name: value for name, value in (("scope", kind), ("owner", owner)) if value is not None}
    rows = ask_running(home, "facts", asked)
    if rows is None:
        rows = facts(home, kind, owner)
    if session.json:
        print_json_lines(rows)
        return
    print_table(
        ("scope", "owner", "key", "value"),
        [(r["scope"], r["owner"], r["key"], compact(r["value"])) for r in rows],
        empty="there are no such facts" if scope or owner else "there are no facts",
    )


@app.command(context_settings={"ignore_unknown_options": True})  # -5 is a number here, and no option
def put(
    context: typer.Context,
    scope: Scope,
    owner: Owner,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="A number replaces; a string is added to the set.")],
) -> None:
    """Write one fact; recorded.

    Example: eab facts put agent desk cleared yes
    """
    from enhanced_agent_bus.cli.reading.home import remembered_agents

    session = session_of(context)
    kind, said = _scope(scope), _value(value)
    _require_name(kind, owner)
    known = remembered_agents(session.existing_home())
    if kind == "agent" and owner not in (row["id"] for row in known):
        remedy = "`eab agents` lists who is; an application registers agents when it runs"
        raise unknown_id(f"nobody is registered as {owner!r}", remedy)
    try:
        change(session, "put_fact", {"scope": kind, "owner": owner, "key": key, "value": said})
    except ValueError as error:
        remedy = "`eab facts list` shows what is there; `eab facts remove` makes room for another kind of value"
        raise CliError(f"the fact {key!r} cannot be written: {error}", remedy=remedy) from None
    if session.json:
        print_json({"scope": kind, "owner": owner, "key": key, "value": said})
        return
    echo(safe(f"{kind} {owner}: {key} has {compact(said)}"))
    if kind == "tenant" and owner not in (row["tenant"] for row in known):
        echo(safe(f"note: nobody is registered here with the tenant {owner}; `eab agents` shows who is"), error=True)


def _require_name(scope: str, owner: str) -> None:
    """A fact of a name that nobody can have would never be seen. Raises: CliError."""
    from enhanced_agent_bus.message import AGENT_ID, MESSAGE_ID

    if scope != "agent" and not (MESSAGE_ID if scope == "conversation" else AGENT_ID).fullmatch(owner):
        raise CliError(
            f"{owner!r} is no name of a {scope}", remedy="`eab audit search` finds tenants and conversations"
        )


def _value(text: str) -> str | int | float:
    """A JSON number or string, else the text as it is. Raises: CliError, for other JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        if text.startswith("-"):  # an option that there is not, rather than a value
            raise CliError(
                f"there is no option {text}", remedy=f"""a text that begins with - is written as JSON: '"{text}"'"""
            ) from None
        return text
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, bool) or value is None:
        return text
    raise CliError(f"a fact is a number or a string, not {text}", remedy="put several strings one at a time")


@app.command()
def remove(context: typer.Context, scope: Scope, owner: Owner, key: Key) -> None:
    """Remove one fact with all its values; recorded.

    Example: eab facts remove agent desk cleared
    """
    session = session_of(context)
    try:
        change(session, "remove_fact", {"scope": _scope(scope), "owner": owner, "key": key})
    except KeyError:
        remedy = "`eab facts list` shows what there is"
        raise unknown_id(f"there is no fact {key!r} of {scope} {owner!r}", remedy) from None
    if session.json:
        print_json({"scope": _scope(scope), "owner": owner, "key": key, "value": None})
    else:
        echo(safe(f"removed {key} of {_scope(scope)} {owner}"))
