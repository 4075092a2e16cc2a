"""`eab policy`: check, test, explain, hash, build, activate, history; what changes a live one is in `policy_change`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from enhanced_agent_bus.authoring.syntax import in_words
from enhanced_agent_bus.cli import faults, policy_change, policy_testgen
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.program import named
from enhanced_agent_bus.cli.render import compact, counted, echo, print_json, print_json_lines, print_table, safe
from enhanced_agent_bus.cli.session import change, session_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enhanced_agent_bus.authoring.traps import Trap
    from enhanced_agent_bus.authoring.workbench import Explained, RuleAnswer, Tested, Workbench
    from enhanced_agent_bus.ports import Checked, Problem

T = TypeVar("T")
PROBLEMS_SHOWN_MAX = 20
Constitution = Annotated[Path, typer.Argument(metavar="PATH", help="A folder or a bundle.tar.gz.")]

HELP = "Check, test, explain, build and activate constitutions."
app = typer.Typer(help=HELP, rich_markup_mode=None)


def at_workbench(question: Callable[[Workbench], Awaitable[T]]) -> T:
    """Asks one question of a worker of its own. Raises: EngineMissing, ConstitutionRejected."""
    import asyncio

    from enhanced_agent_bus.authoring.workbench import workbench

    async def ask() -> T:
        async with workbench() as bench:
            return await question(bench)

    return asyncio.run(ask())


def existing(path: Path) -> Path:
    """Raises: CliError, when there is nothing at this path."""
    if path.exists():
        return path
    raise CliError(f"there is no constitution at {path}", remedy="name a folder or a bundle.tar.gz", code="file")


# --- check ---------------------------------------------------------------------------------------------------------


@app.command()
def check(context: typer.Context, path: Constitution = Path("policies")) -> int:
    """Run every check that an activation makes.

    Names each problem with its line, what the policy reads, and traps that no check can refuse.

    Example: eab policy check policies
    """
    from enhanced_agent_bus.authoring.traps import STOCK_TEST_NOTE, find_traps

    checked = at_workbench(lambda bench: bench.check(existing(path)))
    traps = find_traps(path)
    if session_of(context).json:
        document = dataclasses.asdict(checked)
        print_json(document | {"traps": [dataclasses.asdict(trap) for trap in traps]})
    elif checked.ok:
        _show_checked(checked)
        _show_traps(traps)
        echo(f"note: {named(STOCK_TEST_NOTE)}")
    else:
        for problem in checked.problems[:PROBLEMS_SHOWN_MAX]:
            show_problem(problem)
        if len(checked.problems) > PROBLEMS_SHOWN_MAX:
            echo(f"... and {len(checked.problems) - PROBLEMS_SHOWN_MAX} more; --json lists them all")
        _show_traps(traps)
        echo(f"{safe(path)} cannot be activated: {counted(len(checked.problems), 'problem')}")
    return faults.DONE if checked.ok else faults.FOUND


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


def _show_traps(traps: Sequence[Trap]) -> None:
    for trap in traps:
        echo(f"trap: {safe(trap.file)}:{trap.row}: {safe(trap.message)}")
        echo(f"    {safe(trap.text.strip())}")
        echo(f"  {safe(trap.hint)}")
    if traps:
        echo()


def show_problem(problem: Problem) -> None:
    """File, line, the line itself with a caret, and what to write instead."""
    place = ":".join(str(part) for part in (problem.file, problem.row, problem.col) if part)
    message = in_words(problem.message)
    echo(safe(f"{place}: {message}" if place else message))
    if problem.text:
        shown = problem.text.replace("\t", " ")
        echo(f"    {safe(shown)}")
        if problem.col > 0:
            echo("    " + " " * len(safe(shown[: problem.col - 1])) + "^")
    if problem.hint:
        echo(f"  hint: {safe(problem.hint)}")


# --- test ----------------------------------------------------------------------------------------------------------


@app.command("test")
def run_tests(context: typer.Context, path: Constitution = Path("policies")) -> int:
    """Run the tests, strictly, and show what they cover.

    Example: eab policy test policies
    """
    tested = at_workbench(lambda bench: bench.test(existing(path)))
    if session_of(context).json:
        print_json(dataclasses.asdict(tested) | {"ok": tested.ok})
    else:
        _show_tested(tested)
    return faults.DONE if tested.ok else faults.FOUND


def _show_tested(tested: Tested) -> None:
    rows = []
    for result in tested.tests:
        word = "pass" if result.passed else "ERROR" if result.error else "FAIL"
        name = f"{result.package.removeprefix('data.')}.{result.name}"
        rows.append((word, name, f"{result.duration_us / 1000:.1f} ms"))
    print_table(("", "test", "time"), rows)
    for result in tested.tests:
        if not result.passed:
            echo()
            echo(safe(f"{result.file}:{result.row}: {result.name}: {result.error or 'it was not true'}"))
            for line in result.output.splitlines():
                echo(f"  {safe(line)}")
    echo()
    rows = [
        (
            file.file,
            f"{100 * file.covered / file.total:.0f} %" if file.total else "",
            ", ".join(str(row) for row in file.uncovered_rows),
        )
        for file in tested.coverage
        if not file.file.endswith("_test.rego")
    ]
    print_table(("file", "covered", "lines not run"), rows)
    failed = sum(not result.passed for result in tested.tests)
    echo()
    if not tested.tests:
        echo("there are no tests: a file <rule>_test.rego in package bus.rules.<rule>_test holds them")
    else:
        echo(f"{counted(len(tested.tests) - failed, 'test')} passed, {failed} failed")


# --- explain -------------------------------------------------------------------------------------------------------


@app.command()
def explain(
    context: typer.Context,
    message: Annotated[str, typer.Argument(metavar="MESSAGE.json|ID", help="A file, or a recorded decision.")],
    *,
    constitution: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Under this one instead of the home's.")
    ] = None,
    payload: Annotated[bool, typer.Option("--payload", help="Show values of a recorded payload; recorded.")] = False,
) -> int:
    """Say rule by rule why a message may travel or not.

    Shows the first expression that failed in each rule, and the values that it saw.

    MESSAGE.json is an input document, or one line as `eab run` takes it, with the agents of the home.

    Example: eab policy explain message.json --constitution policies
    """
    from enhanced_agent_bus.cli.questions import find_question

    session = session_of(context)
    question = find_question(session, message, constitution, payload=payload)
    explained = at_workbench(lambda bench: bench.explain(question.constitution, question.document))
    if session.json:
        print_json(_explanation(explained, hide=question.hide_content) | {"message": message})
    else:
        _show_explained(explained, hide=question.hide_content)
        for note in question.notes:
            echo(f"note: {safe(note)}")
    return faults.DONE if explained.allow else faults.FOUND


HIDDEN = "(hidden; --payload shows it)"


def _shown(name: str, value: object, *, hide: bool) -> object:
    """Values from a recorded payload or its headers stay hidden until they are asked for."""
    apart = name.startswith(("input.message.payload", "input.message.headers")) or name in ("input", "input.message")
    return HIDDEN if hide and apart else value


def _explanation(explained: Explained, *, hide: bool) -> dict[str, Any]:
    document = dataclasses.asdict(explained)
    for rule in document["rules"]:
        if rule["failing"] is not None:
            values = rule["failing"]["values"]
            rule["failing"]["values"] = {name: _shown(name, value, hide=hide) for name, value in values.items()}
    if hide and document["decision"] is not None:  # texts may have been made of the payload
        document["decision"] = {"allow": explained.allow, "hold": document["decision"].get("hold") or []}
    return document | {"allow": explained.allow}


def _show_explained(explained: Explained, *, hide: bool) -> None:
    print_table(
        ("rule", "says", "at", "first expression that failed"),
        [(rule.name, "admits" if rule.admit else "no", _place(rule), _failing_text(rule)) for rule in explained.rules],
    )
    for rule in explained.rules:
        if rule.failing is None or not rule.failing.values:
            continue
        echo()
        echo(f"{safe(rule.name)}: {safe(rule.failing.text.strip())}")
        for name, value in rule.failing.values.items():
            shown = _shown(name, value, hide=hide)
            echo(f"  {safe(name)} = {safe(shown if shown == HIDDEN else compact(shown))}")
    echo()
    if explained.decision is None:
        echo("undefined: data.bus.decision has no value for this input, so it is refused (policy_undefined)")
        return
    holds = list(explained.decision.get("hold") or ()) if explained.allow else []
    echo("refused (policy_denied)" if not explained.allow else "held" if holds else "allowed")
    for hold in holds:
        echo(safe(f"  by {hold.get('rule')}: {hold.get('approvers')} of {', '.join(hold.get('roles') or ())}"))
    reasons = explained.decision.get("reasons") or ()
    if hide and reasons:
        echo("  what the rules say about it may quote the payload: --payload shows it")
    for reason in () if hide else reasons:
        echo(safe(f"  {reason.get('rule')}: {reason.get('message', '')}"))
        if reason.get("remedy"):
            echo(safe(f"    {reason['remedy']}"))


def _place(rule: RuleAnswer) -> str:
    if rule.failing is not None:
        return f"{rule.failing.file}:{rule.failing.row}"
    return f"{rule.file}:{rule.row}" if rule.row else rule.file


def _failing_text(rule: RuleAnswer) -> str:
    return rule.failing.text.strip() if rule.failing is not None else ""


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

    The same files give the same bytes, whoever builds it.

    Example: eab policy build policies -o bundle.tar.gz
    """
    existing(path)
    if output.is_dir() or not output.absolute().parent.is_dir():
        remedy = "name a file in a folder that exists"
        raise CliError(f"a bundle cannot be written to {output}", remedy=remedy, code="file")
    digest = at_workbench(lambda bench: bench.pack(path, output))
    if session_of(context).json:
        print_json({"bundle": str(output), "digest": digest, "bytes": output.stat().st_size})
    else:
        echo(f"wrote {safe(output)}, constitution {digest}")


@app.command()
def activate(context: typer.Context, path: Constitution) -> None:
    """Decide under this constitution from now on.

    Messages that wait are decided again before they start; a running bus changes at once.

    Example: eab policy activate policies
    """
    session = session_of(context)
    result = change(session, "activate", {"path": str(existing(path).absolute())})
    if session.json:
        print_json(result)
    else:
        echo(f"active: revision {result['revision']}, {result['digest']}")


@app.command()
def history(context: typer.Context) -> None:
    """List what was activated and what was rejected, and when.

    Example: eab policy history
    """
    from enhanced_agent_bus.cli.reading import policy_history

    session = session_of(context)
    records = policy_history(session.existing_home())
    if session.json:
        print_json_lines(records)
        return
    rows = [
        (entry["seq"], entry["at"], entry.get("event"), entry.get("revision"), entry.get("digest"), entry.get("reason"))
        for entry in records
    ]
    print_table(("seq", "at", "event", "revision", "constitution", "reason"), rows, empty="nothing was ever activated")


for more in (policy_change, policy_testgen):
    more.add_to(app)
