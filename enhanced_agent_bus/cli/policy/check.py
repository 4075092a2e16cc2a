"""`eab policy`: check, hash, build, activate, history.

What writes and tests a constitution is in `new`, `tests` and `explain`; what changes a live one in
`activate`, `change`, `testgen` and `shadow`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.policy import activate, change, explain, new, shadow, sign, testgen, tests
from enhanced_agent_bus.cli.policy.author import Constitution, at_workbench, existing, show_problem
from enhanced_agent_bus.cli.program import named
from enhanced_agent_bus.cli.render import counted, echo, print_json, print_json_lines, print_table, safe
from enhanced_agent_bus.cli.session import require_outside_homes, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.authoring.workbench import Workbench
    from enhanced_agent_bus.ports import Checked, Problem, Verified

SHOWN_MAX = 20
#: Said once for a constitution: it holds whatever its tests say.
STOCK_TEST_NOTE: Final = (
    "stock `opa test` has no strict built-ins: a built-in that fails drops its rule there, and refuses here; "
    "`eab policy test` is strict"
)

HELP = "Write, check, test, explain, build and activate constitutions."
app = typer.Typer(help=HELP, rich_markup_mode=None)
new.add_to(app)


# --- check ---------------------------------------------------------------------------------------------------------


@app.command()
def check(
    context: typer.Context,
    path: Constitution = Path("policies"),
    *,
    strict_warnings: Annotated[
        bool, typer.Option("--strict-warnings", help="Exit 1 when there is a warning too.")
    ] = False,
) -> int:
    """Run every check that an activation makes.

    Names each problem with its line and what to write instead, what the policy reads, and warnings: what can be
    activated, and most likely does not mean what it says.

    Example: eab policy check policies
    """
    session = session_of(context)
    checked, signature = at_workbench(lambda bench: _looked_at(bench, existing(path), session.home))
    if session.json:
        print_json(_checked_document(checked) | {"signature": signature})
    else:
        _show_problems(checked.problems)
        if checked.ok:
            _show_checked(checked)
            if signature is not None:
                echo(safe(signature["message"]))
                echo()
        _show_problems(checked.warnings, kind="warning: ")
        if checked.ok:
            echo(f"note: {named(STOCK_TEST_NOTE)}")
        _show_verdict(path, checked)
    found = not checked.ok or (strict_warnings and checked.warnings)
    return faults.FOUND if found else faults.DONE


async def _looked_at(bench: Workbench, path: Path, home: Path) -> tuple[Checked, dict[str, Any] | None]:
    """Every check of an activation now and in this home; of a bundle, what its signature is worth there."""
    from enhanced_agent_bus.ports import Problem

    checked = _aged(await bench.check(path))
    if path.is_dir():
        return checked, None
    from enhanced_agent_bus.admission.signature import remedy_for
    from enhanced_agent_bus.authoring import signing
    from enhanced_agent_bus.settings import load_settings

    keys = [signing.public_pem(key) for key in load_settings(home).constitution.trust]
    if not keys:
        said = "it is signed, and constitution.trust names no key that would verify it"
        return checked, _signature(checked, None, said if checked.signed else "it is not signed")
    verified = await bench.verify(path, keys)
    if verified.ok:
        return checked, _signature(checked, verified, "it is signed by a key that constitution.trust names")
    problem = Problem(verified.reason, verified.message, hint=remedy_for(verified, path))
    checked = dataclasses.replace(checked, ok=False, problems=(*checked.problems, problem))
    return checked, _signature(checked, verified, verified.message)


def _signature(checked: Checked, verified: Verified | None, message: str) -> dict[str, Any]:
    return {"signed": checked.signed, "trusted": None if verified is None else verified.ok, "message": message}


def _aged(checked: Checked) -> Checked:
    """With what the machine's time says about it."""
    from datetime import UTC, datetime

    from enhanced_agent_bus.admission.constitution import end_of
    from enhanced_agent_bus.ports import Problem

    end = None if checked.not_after is None else end_of(checked.not_after)
    if end is None or datetime.now(UTC) < end:
        return checked
    hint = "write a later not_after, under a higher revision"
    problem = Problem("expired", f"it expired at {checked.not_after}", file=".manifest", hint=hint)
    return dataclasses.replace(checked, ok=False, problems=(*checked.problems, problem))


def _checked_document(checked: Checked) -> dict[str, Any]:
    document = dataclasses.asdict(checked)
    for warning in document["warnings"]:
        warning["kind"] = warning.pop("reason")
    return document


def _show_problems(problems: tuple[Problem, ...], *, kind: str = "") -> None:
    for problem in problems[:SHOWN_MAX]:
        show_problem(problem, kind=kind)
    if len(problems) > SHOWN_MAX:
        echo(f"... and {len(problems) - SHOWN_MAX} more; --json lists them all")
    if problems:
        echo()


def _show_verdict(path: Path, checked: Checked) -> None:
    warnings = f", {counted(len(checked.warnings), 'warning')}" if checked.warnings else ""
    if not checked.ok:
        echo(f"{safe(path)} cannot be activated: {counted(len(checked.problems), 'problem')}{warnings}")
    elif warnings:
        echo(f"{safe(path)} can be activated{warnings}")


def _show_checked(checked: Checked) -> None:
    passed = checked.tests.get("passed", 0)
    echo(f"ok: {safe(checked.name or 'constitution')}, revision {checked.revision}, {checked.digest}")
    rules = f"{counted(len(checked.rules), 'rule')}: {safe(', '.join(checked.rules))}"
    echo(f"{rules}; {counted(passed, 'test')} passed")
    if checked.not_after:
        echo(f"it expires at {safe(checked.not_after)}")
    echo()
    echo("It reads (a decision is cached by these values):")
    wide = {tuple(item["path"]): item for item in checked.widened}
    for read in checked.read_paths:
        line = "  " + ".".join(("input", *read))
        because = wide.get(read)
        if because is not None:
            line += f"    widened by {because['file']}:{because['row']}: {str(because['text']).strip()}"
        echo(safe(line))
    if not checked.cacheable:
        echo("  and it says `with`, so no decision is cached")
    echo()


for author in (tests, explain):
    author.add_to(app)


# --- hash, build, activate, history --------------------------------------------------------------------------------


@app.command("hash")
def hash_(context: typer.Context, path: Constitution = Path("policies")) -> None:
    """Print the constitutional hash.

    64 digits that anyone can recompute with sha256sum.

    Example: eab policy hash policies
    """
    digest = at_workbench(lambda bench: bench.hash(existing(path)))
    if session_of(context).json:
        print_json({"digest": digest})
    else:
        echo(digest)


@app.command()
def build(
    context: typer.Context,
    path: Constitution = Path("policies"),
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Where to write it.")] = Path(
        "bundle.tar.gz"
    ),
) -> None:
    """Write a folder as a bundle.

    The same files give the same bytes, whoever builds it. What could not be activated is not built.

    Example: eab policy build policies -o bundle.tar.gz
    """
    existing(path)
    if output.is_dir() or not output.absolute().parent.is_dir():
        remedy = "name a file in a folder that exists"
        raise CliError(f"a bundle cannot be written to {output}", remedy=remedy, code="file")
    require_outside_homes(output)
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        remedy = "name one outside of it: a bundle does not belong into the next one"
        raise CliError(f"{output} lies in the folder that is built", remedy=remedy, code="file")
    digest = at_workbench(lambda bench: _build(bench, path, output))
    if session_of(context).json:
        print_json({"bundle": str(output), "digest": digest, "bytes": output.stat().st_size})
    else:
        echo(f"wrote {safe(output)}, constitution {digest}")


async def _build(bench: Workbench, path: Path, output: Path) -> str:
    from enhanced_agent_bus.admission.constitution import require_passed

    checked = await bench.check(path, warnings=False)
    require_passed(checked, path)
    if _aged(checked) is not checked:
        echo(f"note: it expired at {safe(checked.not_after)}, so it cannot be activated any more", error=True)
    return await bench.pack(path, output)


@app.command()
def history(context: typer.Context) -> None:
    """List what was activated and what was rejected, and when.

    Example: eab policy history
    """
    from enhanced_agent_bus.cli.reading.home import policy_history

    session = session_of(context)
    records = policy_history(session.existing_home())
    if session.json:
        print_json_lines(records)
        return
    rows = [
        (entry["seq"], entry["at"], _event(entry), entry.get("revision"), entry.get("digest"), entry.get("reason"))
        for entry in records
    ]
    print_table(("seq", "at", "event", "revision", "constitution", "reason"), rows, empty="nothing was ever activated")
    refused = [entry for entry in records if entry.get("path")]
    if refused:
        echo()
        print_table(("seq", "path", "why"), [(entry["seq"], entry["path"], _why(entry)) for entry in refused])


def _why(entry: Mapping[str, Any]) -> str:
    """The first problem's words."""
    first: Mapping[str, Any] = next(iter(entry.get("details") or ()), {})
    place = ":".join(str(first[key]) for key in ("file", "line") if first.get(key))
    return ": ".join(part for part in (place, str(first.get("message", ""))) if part)


def _event(entry: Mapping[str, Any]) -> str:
    percent = f" {entry['percent']} %" if "percent" in entry else ""
    return f"{entry.get('event')}{percent}"


for more in (activate, change, testgen, shadow):
    more.add_to(app)
app.command("sign")(sign.sign)
