"""`eab policy new`: a rule to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.program import program
from enhanced_agent_bus.cli.render import echo, print_json, quoted, safe
from enhanced_agent_bus.cli.session import session_of


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("new")(new)


def new(
    context: typer.Context,
    rule: Annotated[str, typer.Argument(metavar="RULE", help="Its name, such as quiet_hours.")],
    *,
    folder: Annotated[Path, typer.Option("--in", metavar="DIR", help="The constitution's folder.")] = Path("policies"),
) -> None:
    """Write a new rule, with its tests.

    It is listed, and named in CONSTITUTION.md. What is written passes check and test as it is: change it from there.

    Example: eab policy new quiet_hours --in policies
    """
    from enhanced_agent_bus.authoring.scaffold import NoRule, new_rule

    session = session_of(context)
    try:
        written = new_rule(rule, folder)
    except NoRule as error:
        raise CliError(error.message, remedy=error.remedy, code="rule") from None
    follow = [f"{program()} policy {word} {quoted(str(folder))}" for word in ("check", "test")]
    if session.json:
        print_json(
            {
                "rule": rule,
                "written": [str(path) for path in written.new],
                "changed": [str(path) for path in written.changed],
                "next": follow,
            }
        )
        return
    for path in written.new:
        echo(f"wrote {safe(path)}")
    for path in written.changed:
        echo(f"added {safe(rule)} to {safe(path)}")
    echo()
    echo("Change the rule and its tests, then type:")
    for line in follow:
        echo(f"  {safe(line)}")
