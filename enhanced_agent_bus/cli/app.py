"""The tree of commands and the one road through it: options, command, exit status.

`--home` and `--json` may stand anywhere on the line; what a command raises becomes a sentence in `faults`.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer
import typer.main

from enhanced_agent_bus import __version__
from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.program import program
from enhanced_agent_bus.cli.render import echo
from enhanced_agent_bus.cli.session import Session, home_from

HELP = """An agent bus where every message is decided by OPA and recorded before it is delivered.

Start with `eab demo`, or with `eab init` in an empty folder.

Exit status: 0 done, 1 refused or something found, 2 wrong usage or configuration, 3 could not decide or record.
"""

#: The module of each command and of each group. Only that one is imported whose name is typed.
COMMANDS: Final = {
    "demo": "demo",
    "init": "init",
    "run": "runs.run",
    "send": "send",
    "status": "state",
    "stop": "stop",
    "resume": "stop",
    "doctor": "doctor",
    "console": "console",
    "bench": "bench",
}
GROUPS: Final = {
    "agents": "agents",
    "policy": "policy.check",
    "facts": "facts",
    "held": "held",
    "queue": "queue",
    "dlq": "dlq",
    "recovery": "recovery",
    "audit": "audit.verify",
    "nats": "nats",
}
ALL: Final = (*COMMANDS, *GROUPS)


def _show_version(value: bool) -> None:
    if value:
        echo(f"eab {__version__}")
        raise typer.Exit


def options(
    context: typer.Context,
    home: Annotated[str | None, typer.Option(metavar="DIR", help="The home; by default $EAB_HOME or ./.eab.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one a line for lists.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The options of every command; the help text is HELP."""
    context.obj = Session(home=home_from(home), json=json)


def hoist(arguments: Sequence[str]) -> list[str]:
    """The global options first, wherever they stood before a `--`."""
    front: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            return [*front, *rest, word, *waiting]
        if word == "--json" or word.startswith("--home="):
            front.append(word)
        elif word == "--home":
            front += [word, *waiting[:1]]
            waiting = waiting[1:]
        else:
            rest.append(word)
    return [*front, *rest]


def _home_typed(words: Sequence[str]) -> str | None:
    """What the last `--home` of hoisted words said, if there was one."""
    said = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--":
            break
        if word == "--home":
            said = following
        elif word.startswith("--home="):
            said = word.removeprefix("--home=")
    return said


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status; prints its errors."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
        _flush_notes()
    except BrokenPipeError:
        return _reader_is_gone()
    except SystemExit as stop:  # what typer makes of a broken pipe
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        return _reader_is_gone()
    return status


def _flush_notes() -> None:
    """Notes that nobody reads are dropped here: at the exit of Python they would cost the status."""
    try:
        sys.stderr.flush()
    except BrokenPipeError:
        _send_nowhere(sys.__stderr__)


def _reader_is_gone() -> int:
    """Whoever read our output has seen enough; what is still in a buffer goes nowhere, quietly."""
    _send_nowhere(sys.__stdout__, sys.__stderr__)
    return faults.BROKEN_PIPE


def _send_nowhere(*streams: TextIO | None) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@functools.cache
def commands(names: tuple[str, ...] = ALL) -> Callable[..., Any]:
    """The tree with these branches, as it is called. Typer makes each command from annotations, which takes a while."""
    tree = typer.Typer(
        name="eab", help=HELP, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False
    )
    tree.callback()(options)
    for place in dict.fromkeys(COMMANDS[name] for name in names if name in COMMANDS):
        _module(place).add_to(tree)
    for name in names:
        if name in GROUPS:
            tree.add_typer(_module(GROUPS[name]).app, name=name)
    return typer.main.get_command(tree)


def _module(place: str) -> Any:
    return importlib.import_module(f"enhanced_agent_bus.cli.{place}")


def branches(words: Sequence[str]) -> tuple[str, ...]:
    """What of the tree hoisted words need: one branch where they name one, all where there is something to look up."""
    waiting = iter(words)
    for word in waiting:
        if word == "--home":
            next(waiting, None)
        elif word in ALL:
            return (word,)
        elif word == "--version":
            return ()
        elif word != "--json" and not word.startswith("--home="):
            break
    return ALL


def _run(arguments: Sequence[str]) -> int:
    words = hoist(arguments)
    try:
        status = commands(branches(words))(words or ["--help"], prog_name=program(), standalone_mode=False)
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, typer.Abort):
        echo("eab: interrupted", error=True)
        return faults.INTERRUPTED
    except Exception as error:  # noqa: BLE001  the edge of the program: what was raised becomes a sentence and a status
        command = Session(home_from(_home_typed(words)), json=False).command("")
        return faults.report(error, as_json="--json" in words, command=command)
    if not words:  # nobody asked for the help: it is shown, and still this was no command
        return faults.USAGE
    return status if isinstance(status, int) else faults.DONE


def main() -> None:
    """The entry point of `eab`."""
    if sys.stdout is None:  # it was closed: nobody wants to see anything
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 is no reason to stop
    sys.exit(run_command(sys.argv[1:]))
