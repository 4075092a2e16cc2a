"""`eab audit reproduce`: a recorded decision asked again, out of a home or out of a pack."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import echo, print_json, print_pairs
from enhanced_agent_bus.cli.session import Json, session_of


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(reproduce)


def reproduce(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ID", help="A message, a decision or a seq.")],
    *,
    pack: Annotated[
        Path | None, typer.Option(metavar="ZIP", help="A pack to take it from, in place of a home.")
    ] = None,
) -> int:
    """Ask a recorded decision again.

    Of the constitution that made it, with the input that was recorded. Exit 0 when the answer is the same; 1 when it is
    not, or when it cannot be asked, with the reason.

    Example: eab audit reproduce desk/order-7
    """
    import asyncio

    from enhanced_agent_bus.authoring.reproduce import reproduce as asked_again
    from enhanced_agent_bus.cli.audit.pack import Unpacked
    from enhanced_agent_bus.cli.reading.recorded import decision_named, kept_constitution

    session = session_of(context)
    with ExitStack() as stack:
        if pack is not None:
            unpacked = stack.enter_context(Unpacked.open(pack))
            decision, kept = unpacked.decision(name), unpacked.constitution
        else:
            home = session.existing_home()
            decision, kept = decision_named(home, name), lambda digest: kept_constitution(home, digest)
        found = asyncio.run(asked_again(decision, kept))
    if found.found is None:
        remedy = "`eab policy history` lists the constitutions that were active"
        what = f"{decision.decision_id} cannot be asked again: {found.why}"
        raise CliError(what, remedy=remedy, code="not_reproducible", status=faults.FOUND)
    if session.json:
        print_json(found.document())
    else:
        _show(found.document())
    return faults.DONE if found.same else faults.FOUND


def _show(told: dict[str, Json]) -> None:
    recorded, asked = told["opa"]["recorded"], told["opa"]["asked"]
    print_pairs(
        [
            ("decision", told["decision_id"]),
            ("seq", told["seq"]),
            ("constitution", told["constitution"]),
            ("recorded", _verdict(told)),
            ("asked again", "the same" if told["reproduced"] else _verdict(told["asked_again"])),
            ("OPA", asked if recorded == asked else f"{recorded} then, {asked} now"),
        ]
    )
    if told.get("only_words"):
        echo("the rules are the same; their reasons say something else")


def _verdict(told: dict[str, Json]) -> str:
    rules = ", ".join(dict.fromkeys(reason["rule"] for reason in told["reasons"] if reason["rule"]))
    code = f" {told['code']}" if told["code"] else ""
    return f"{told['verdict']}{code}{f' by {rules}' if rules else ''}"
