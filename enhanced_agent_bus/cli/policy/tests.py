"""`eab policy test`: a constitution's tests, what they cover, and where each that fails has ended."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.policy.author import Constitution, at_workbench, existing, place, show_problem, show_step
from enhanced_agent_bus.cli.render import counted, echo, print_json, print_table, safe
from enhanced_agent_bus.cli.session import Session, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.authoring.answers import RuleTest, Tested
    from enhanced_agent_bus.authoring.workbench import Workbench
    from enhanced_agent_bus.errors import ConstitutionRejected

POLL_SECONDS: Final = 0.3
SETTLE_SECONDS: Final = 0.1  # an editor replaces a file in steps: it is read when nothing changed for so long
#: What editors keep beside the file that is being written; the worker knows the same names (pdp/editors.go).
EDITORS: Final = re.compile(r"\..*\.sw[a-z]|\.#.*|#.*#|.*~|4913|\..*\.kate-swp|.*___jb_(tmp|old)___")
NO_TESTS: Final = "there are no tests: a file <rule>_test.rego in package bus.rules.<rule>_test holds them"


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: which tests, and how many percent of the lines they have to run."""

    path: Path
    run: str
    threshold: float | None

    def done(self, tested: Tested) -> bool:
        """Whether all went well."""
        return tested.ok and not self.below(tested)

    def below(self, tested: Tested) -> bool:
        """Whether too few lines were run."""
        return self.threshold is not None and tested.percent < self.threshold


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("test")(run_tests)


def run_tests(
    context: typer.Context,
    path: Constitution = Path("policies"),
    *,
    run: Annotated[
        str,
        typer.Option("--run", metavar="REGEX", help="Only tests whose full name (bus.rules.x_test.test_y) it finds."),
    ] = "",
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", metavar="PERCENT", min=0, max=100, help="Exit 1 when fewer of the lines are run."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Run them again whenever a file changes, until Ctrl-C.")
    ] = False,
) -> int:
    """Run the tests, strictly, and show what they cover.

    For a test that fails: the expression at which it ended, the values in it, and the expression of the rule behind it.

    Example: eab policy test policies --run quiet_hours --watch
    """
    session = session_of(context)
    wanted = Wanted(existing(path), run, threshold)
    if watch:
        at_workbench(lambda bench: _watch(bench, wanted, session))
    tested = at_workbench(lambda bench: _tested(bench, wanted))
    if session.json:
        print_json(_document(tested, wanted))
    else:
        _show(tested, wanted)
    return faults.DONE if wanted.done(tested) else faults.FOUND


async def _tested(bench: Workbench, wanted: Wanted, *, draft: bool = False) -> Tested:
    from enhanced_agent_bus.authoring.workbench import BadPattern

    try:
        return await bench.test(wanted.path, run=wanted.run, draft=draft)
    except BadPattern as error:
        remedy = "write one as RE2 takes it: `quiet_hours`, `test_no_.*`"
        raise CliError(f"--run {wanted.run!r} is no regular expression: {error}", remedy=remedy) from None


def _document(tested: Tested, wanted: Wanted) -> dict[str, Any]:
    return dataclasses.asdict(tested) | {"percent": _percent(tested), "ok": wanted.done(tested)}


def _percent(tested: Tested) -> float:
    """Cut and not rounded: 100 means all."""
    return math.floor(tested.percent * 10) / 10


def _show(tested: Tested, wanted: Wanted) -> None:
    rows = [(_word(test), _name(test), f"{test.duration_us / 1000:.1f} ms") for test in tested.tests]
    print_table(("", "test", "time"), rows)
    _show_failures(tested)
    if not wanted.run or wanted.threshold is not None:
        _show_coverage(tested)
    echo()
    for line in _summary(tested, wanted):
        echo(line)
    if tested.untested and not wanted.run:
        names = ", ".join(tested.untested)
        hint = "`eab policy testgen ID --rule RULE` makes one of a recorded decision"
        echo(f"note: no test in the folder of {safe(names)}; {hint}")


def _show_coverage(tested: Tested) -> None:
    echo()
    rows = [
        (
            file.file,
            f"{100 * file.covered // file.total} %" if file.total else "",
            ", ".join(str(row) for row in file.uncovered_rows),
        )
        for file in tested.coverage
        if not file.file.endswith("_test.rego")
    ]
    print_table(("file", "covered", "lines not run"), rows)


def _word(test: RuleTest) -> str:
    return "pass" if test.passed else "ERROR" if test.error and test.error != "it was not true" else "FAIL"


def _name(test: RuleTest) -> str:
    return f"{test.package.removeprefix('data.')}.{test.name}"


def _show_failures(tested: Tested) -> None:
    for test in tested.tests:
        if test.passed:
            continue
        echo()
        cases = f" for {', '.join(test.cases)}" if test.cases else ""
        echo(safe(f"{test.file}:{test.row}: {test.name}: {test.error or 'it was not true'}{cases}"))
        if test.failing is not None:
            echo(f"  at {safe(place(test.failing))}:")
            show_step(test.failing, indent="    ")
        for line in test.output.splitlines():
            echo(f"  printed: {safe(line)}")


def _summary(tested: Tested, wanted: Wanted) -> list[str]:
    """How it went, in one line, and whether that is too little in another."""
    if not tested.tests:
        return [f"no test's name is found by {safe(wanted.run)}" if wanted.run else NO_TESTS]
    failed = sum(not test.passed for test in tested.tests)
    line = f"{counted(len(tested.tests) - failed, 'test')} passed, {failed} failed"
    if not wanted.run or wanted.threshold is not None:
        line += f"; {_percent(tested):g} % of the lines were run"
    if not wanted.below(tested):
        return [line]
    return [line, f"that is below the threshold of {wanted.threshold:g} %"]


# --- watch ---------------------------------------------------------------------------------------------------------


async def _watch(bench: Workbench, wanted: Wanted, session: Session) -> None:
    """Runs the tests now and after each change, for ever."""
    import asyncio

    seen: object = None
    while True:
        now = fingerprint(wanted.path)
        if now != seen:
            await asyncio.sleep(SETTLE_SECONDS)
            if fingerprint(wanted.path) != now:
                continue
            seen = now
            await _run_once(bench, wanted, session)
            sys.stdout.flush()  # whoever reads it through a pipe wants to see it now
        await asyncio.sleep(POLL_SECONDS)


async def _run_once(bench: Workbench, wanted: Wanted, session: Session) -> None:
    """One run: what failed, and one line that sums it up."""
    from enhanced_agent_bus.errors import ConstitutionRejected

    try:
        tested = await _tested(bench, wanted, draft=True)
    except ConstitutionRejected as error:
        _show_rejected(error, session)
        return
    if session.json:
        print_json(_document(tested, wanted))
        return
    _show_failures(tested)
    echo(f"{time.strftime('%H:%M:%S')}  {'; '.join(_summary(tested, wanted))}")


def _show_rejected(error: ConstitutionRejected, session: Session) -> None:
    if session.json:
        print_json({"ok": False, "error": faults.describe(error)[1]})
        return
    from enhanced_agent_bus.ports import Problem

    for detail in error.details:
        show_problem(Problem(**detail))
    count = f": {counted(len(error.details), 'problem')}" if error.details else f": {safe(error.message)}"
    echo(f"{time.strftime('%H:%M:%S')}  not valid{count}")


def fingerprint(path: Path) -> object:
    """Equal as long as no file has changed, come or gone; an editor's own do not count."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = []
    for file in files:
        if EDITORS.fullmatch(file.name):
            continue
        try:
            state = file.stat()
        except OSError:
            continue  # it went just now: the next look sees that
        if not file.is_dir():
            found.append((str(file), state.st_mtime_ns, state.st_size, state.st_ino))
    return found
