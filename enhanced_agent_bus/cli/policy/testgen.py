"""`eab policy testgen`: a recorded decision becomes a test of its constitution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from enhanced_agent_bus.cli.faults import FOUND, CliError
from enhanced_agent_bus.cli.render import echo, print_json, safe
from enhanced_agent_bus.cli.session import note_access, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.authoring.questions import Decision
    from enhanced_agent_bus.authoring.testgen import Generated

TEST_FILE: Final = "_test.rego"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("testgen")(generate_test)


def generate_test(
    context: typer.Context,
    message: Annotated[str, typer.Argument(metavar="ID", help="A message, a decision, or a seq.")],
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="A new file for it.")] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="NAME", help="What this rule said, not the whole decision.")
    ] = None,
) -> None:
    """Turn a recorded decision into a Rego test.

    It asks the recorded input, payload and all, and passes in the constitution that decided it.

    Example: eab policy testgen desk/order-7 -o policies/bus/order_7_test.rego
    """
    import asyncio

    from enhanced_agent_bus.cli.reading.home import active_constitution
    from enhanced_agent_bus.cli.reading.recorded import decision_named, kept_constitution

    session = session_of(context)
    home = session.existing_home()
    decision = decision_named(home, message)
    path = kept_constitution(home, decision.constitution)
    if path is None:
        remedy = "restore it from a backup"
        raise CliError(f"the home does not keep the constitution {decision.constitution}", remedy=remedy, status=FOUND)
    if output is not None:
        _require_new(output)
    active_constitution(home)  # the access cannot be recorded without one
    note_access(session, "policy testgen", decision.decision_id)
    test = asyncio.run(_generate(path, decision, rule))
    shown = f"it holds the payload of {decision.message_id} ({len(decision.body)} bytes)"
    if decision.document["message"]["headers"]:
        shown += " and its headers"
    if output is not None:
        output.write_text(test.text, encoding="ascii")
    if session.json:
        print_json(
            {
                "message_id": decision.message_id,
                "decision_id": decision.decision_id,
                "constitution": decision.constitution,
                "package": test.package,
                "name": test.name,
                "place": test.place,
                "file": None if output is None else str(output),
                "test": test.text,
                "payload_bytes": len(decision.body),
            }
        )
        return
    if output is None:
        for line in test.text.splitlines():
            echo(line)
    else:
        echo(f"wrote {safe(output)}: {test.name} in package {test.package}")
    echo(f"note: {safe(shown)}, and that it was read is recorded", error=True)
    if output is None:
        echo(f"note: in a constitution it belongs at {safe(test.place)}", error=True)
    refusing = [name for name, _ in decision.reasons if name]
    if rule is None and refusing:
        echo(f"note: {safe(', '.join(refusing))}: `--rule {safe(refusing[0])}` tests that rule alone", error=True)


def _require_new(output: Path) -> None:
    if output.exists():
        raise CliError(f"{output} is there already", remedy="name a new file: any name that ends in _test.rego will do")
    if not output.name.endswith(TEST_FILE):
        stem = output.name.removesuffix(".rego").removesuffix("_test") or "recorded"
        right = output.with_name(f"{stem}{TEST_FILE}")
        raise CliError(f"{output} is no name of a test file", remedy=f"name it {right}: any other file would decide")
    if not output.absolute().parent.is_dir():
        raise CliError(f"there is no folder {output.parent}", remedy="name a file in a folder that exists", code="file")


async def _generate(path: Path, decision: Decision, rule: str | None) -> Generated:
    from enhanced_agent_bus.authoring.testgen import NoTest, generate
    from enhanced_agent_bus.engines.worker import WorkerEngine

    engine = await WorkerEngine.start(workers=0)  # each question gets a process of its own
    try:
        return await generate(engine, path, decision, rule)
    except NoTest as error:
        raise CliError(str(error), remedy=error.remedy, code="no_test", status=FOUND) from None
    finally:
        await engine.close()
