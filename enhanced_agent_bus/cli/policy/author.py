"""What the commands for policy authors share: the workbench, and how a problem and an expression are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from enhanced_agent_bus.authoring.syntax import in_words
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import compact, echo, safe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enhanced_agent_bus.authoring.answers import Step
    from enhanced_agent_bus.authoring.workbench import Workbench
    from enhanced_agent_bus.ports import Problem

T = TypeVar("T")


def named_path(name: str | Path) -> Path:
    """Raises: CliError for an empty name, which would mean the current folder to Python, and a mistake to a shell."""
    if str(name):
        return Path(name)
    raise CliError("the path of the constitution is empty", remedy="name a folder or a bundle.tar.gz", code="file")


Constitution = Annotated[Path, typer.Argument(metavar="PATH", parser=named_path, help="A folder or a bundle.tar.gz.")]

HIDDEN: Final = "(hidden; --payload shows it)"
VALUE_CHARS_MAX: Final = 400
_RULE_FOLDER: Final = re.compile(r"^bus/rules/([^/]+)/")


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


def show_problem(problem: Problem, *, kind: str = "") -> None:
    """File, line, the line itself with a caret, and what to write instead."""
    place = ":".join(str(part) for part in (problem.file, problem.row, problem.col) if part)
    message = in_words(problem.message)
    echo(kind + safe(f"{place}: {message}" if place else message))
    if problem.text:
        shown = problem.text.replace("\t", " ")
        echo(f"    {safe(shown)}")
        if problem.col > 0:
            echo("    " + " " * len(safe(shown[: problem.col - 1])) + "^")
    if problem.hint:
        echo(f"  hint: {safe(problem.hint)}")


def place(step: Step) -> str:
    """file:line."""
    return f"{step.file}:{step.row}"


def show_step(step: Step, *, indent: str = "", hide: bool = False) -> None:
    """The expression, and below it every name in it with its value."""
    echo(f"{indent}{safe(step.text)}")
    for name, value in named_values(step, hide=hide):
        echo(f"{indent}  {safe(name)} {safe(value)}")
    for word, other in (("true", step.because), ("where it ended", step.inside)):
        if other is not None:
            via = f", in {', '.join(short(name, other) for name in other.via)}" if other.via else ""
            echo(f"{indent}  {word} at {safe(place(other) + via)}:")
            show_step(other, indent=f"{indent}    ", hide=hide)


def named_values(step: Step, *, hide: bool) -> Iterator[tuple[str, str]]:
    """What stood in an expression: `= value`, or that there was none."""
    for name, value in step.values.items():
        if hide and name in step.private:
            yield short(name, step), f"= {HIDDEN}"
            continue
        text = compact(value)
        yield short(name, step), f"= {text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + '…'}"
    for name in step.missing:
        yield short(name, step), f"= {HIDDEN}" if hide and name in step.private else "has no value"


def short(name: str, step: Step) -> str:
    """A name as the rule of this step itself would write it, or its tests."""
    if step.file.endswith("_test.rego"):
        return name.removeprefix("data.bus.rules.")
    found = _RULE_FOLDER.match(step.file)
    return name.removeprefix(f"data.bus.rules.{found[1]}.") if found is not None else name
