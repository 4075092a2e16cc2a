"""The tree of commands and the one road through it: options, command, exit status.

`--home` and `--json` may stand anywhere on the line; what a command raises becomes a sentence in `faults`.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
import typer.main

from enhanced_agent_bus import __version__
from enhanced_agent_bus.cli import (
    agents,
    bench,
    console,
    demo,
    dlq,
    doctor,
    facts,
    faults,
    held,
    init,
    nats,
    queue,
    recovery,
    send,
    state,
    stop,
)
from enhanced_agent_bus.cli.audit import erase, hold, prove
from enhanced_agent_bus.cli.audit import verify as audit
from enhanced_agent_bus.cli.policy import check as policy
from enhanced_agent_bus.cli.policy import sign
from enhanced_agent_bus.cli.program import program
from enhanced_agent_bus.cli.render import echo
from enhanced_agent_bus.cli.runs import run
from enhanced_agent_bus.cli.session import Session, home_from

HELP = """An agent bus where every message is decided by OPA and recorded before it is delivered.

Start with `eab demo`, or with `eab init` in an empty folder.

Exit status: 0 done, 1 refused or something found, 2 wrong usage or configuration, 3 could not decide or record.
"""

app = typer.Typer(
    name="eab",
    help=HELP,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (demo, init, run, send, state, stop, doctor, console, bench):
    module.add_to(app)
policy.app.command("sign")(sign.sign)
audit.app.command("prove")(prove.prove)
audit.app.command("rotate-key")(prove.rotate_key)
audit.app.command()(erase.erase)
audit.app.command()(erase.retention)
audit.app.add_typer(hold.app, name="hold")
for name, group in (
    ("agents", agents.app),
    ("policy", policy.app),
    ("facts", facts.app),
    ("held", held.app),
    ("queue", queue.app),
    ("dlq", dlq.app),
    ("recovery", recovery.app),
    ("audit", audit.app),
    ("nats", nats.app),
):
    app.add_typer(group, name=name)


def _show_version(value: bool) -> None:
    if value:
        echo(f"eab {__version__}")
        raise typer.Exit


@app.callback()
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
def commands() -> Callable[..., Any]:
    """The tree, as it is called. Typer makes the whole of it from annotations: once in a process is enough."""
    return typer.main.get_command(app)


def _run(arguments: Sequence[str]) -> int:
    words = hoist(arguments)
    try:
        status = commands()(words or ["--help"], prog_name=program(), standalone_mode=False)
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
