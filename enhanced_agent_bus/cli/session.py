"""What every command shares: which home, which output, and how a bus is reached that another process may hold."""

from __future__ import annotations

import getpass
import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from enhanced_agent_bus.cli.faults import UNDECIDED, CliError
from enhanced_agent_bus.cli.program import named, program

if TYPE_CHECKING:
    import typer

DEFAULT_HOME = ".eab"
Json: TypeAlias = Any  # what json.loads makes
Ask: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[Json]]


@dataclass(frozen=True, slots=True)
class Session:
    """The global options of one command."""

    home: Path
    json: bool

    def existing_home(self) -> Path:
        """Raises: CliError, when there is no home there."""
        if (self.home / "home.json").is_file() or (self.home / "bus.db").is_file():
            return self.home
        what = "does not exist"
        if self.home.exists():
            what = "is no home" if self.home.is_dir() else "is a file, not a home"
        raise CliError(
            f"the home {self.home} {what}" if what == "does not exist" else f"{self.home} {what}",
            remedy="name one with --home DIR or EAB_HOME, or make one with `eab init`",
            code="no_home",
        )

    def command(self, rest: str) -> str:
        """What to type for this command in this home."""
        home = "" if self.home == Path(DEFAULT_HOME) else f" --home {shlex.quote(str(self.home))}"
        return f"{program()}{home} {rest}".rstrip()

    def named(self, text: str) -> str:
        """A sentence of ours with its `eab ...` as what to type in this home."""
        return named(text, self.command(""))


def session_of(context: typer.Context) -> Session:
    """The session that the global options made."""
    return cast("Session", context.obj)


def home_from(option: str | None) -> Path:
    """`--home`, else $EAB_HOME, else ./.eab."""
    return Path(option or os.environ.get("EAB_HOME") or DEFAULT_HOME)


def require_outside_homes(output: Path) -> None:
    """What a command writes for somebody never takes the place of a home's own files. Raises: CliError."""
    place = output.resolve()
    homes = (folder for folder in (place, *place.parents) if (folder / "home.json").exists())
    home = next((folder for folder in homes if (folder / "bus.db").exists()), None)
    if home is not None:
        raise CliError(
            f"{output} lies in the home {home}, where a file of the bus could be written over",
            remedy="name one outside of it",
            code="file",
        )


def change(session: Session, op: str, args: Mapping[str, Any]) -> Json:
    """Does one operation on the bus of this home: opens it, or asks the process that has it open.

    Raises: BusError, KeyError or ValueError as the operation does; CliError, when there is no home.
    """
    import asyncio

    return asyncio.run(_change(session.existing_home(), op, args))


def change_each(
    session: Session,
    op: str,
    each: Sequence[Mapping[str, Any]],
    heard: Callable[[Json | KeyError], None],
    *,
    rate: float | None = None,
) -> None:
    """Does one operation for each of these arguments, in order, at most `rate` a second.

    `heard` gets each answer, or that its id is unknown, as it comes. An interruption leaves the rest undone.
    Raises: BusError; CliError, when there is no home.
    """
    import asyncio

    asyncio.run(_change_each(session.existing_home(), op, each, heard, 0.0 if rate is None else 1.0 / rate))


async def _change_each(
    home: Path,
    op: str,
    each: Sequence[Mapping[str, Any]],
    heard: Callable[[Json | KeyError], None],
    seconds_between: float,
) -> None:
    import asyncio

    async with _asking(home) as ask:
        for place, args in enumerate(each):
            await asyncio.sleep(seconds_between if place else 0.0)
            try:
                answer = await ask(op, args)
            except KeyError as error:
                answer = error
            heard(answer)


async def _change(home: Path, op: str, args: Mapping[str, Any]) -> Json:
    async with _asking(home) as ask:
        return await ask(op, args)


@asynccontextmanager
async def _asking(home: Path) -> AsyncIterator[Ask]:
    """Asks the bus of a home: opened here, or that of the process that has it open."""
    from enhanced_agent_bus import open_bus
    from enhanced_agent_bus.control.operations import perform
    from enhanced_agent_bus.errors import StoreLocked
    from enhanced_agent_bus.ledger.lock import control_socket

    async with AsyncExitStack() as stack:
        try:
            ask: Ask = partial(perform, await stack.enter_async_context(open_bus(home, **beside_answers(home))))
        except StoreLocked:
            path = control_socket(home)
            if path is None:  # another command has it for a moment, or it was opened without a socket
                raise
            if (blocked := held_up(home)) is not None:
                who = f"the handler of {blocked['agent']}" if blocked.get("agent") else "something"
                raise CliError(
                    f"the bus of {home} cannot answer: {who} blocks its event loop at {blocked.get('where')}",
                    remedy="nothing was changed; ask again when it goes on (`eab status` says so)",
                    code="busy",
                    status=UNDECIDED,
                ) from None
            ask = partial(_call, path)
        yield ask


async def _call(path: Path, op: str, args: Mapping[str, Any]) -> Json:
    from enhanced_agent_bus.control.client import call

    return call(path, op, args)


def beside_answers(home: Path) -> dict[str, Any]:
    """Settings under which a witness at `stdout:` is at `stderr:`: a command's standard output is its answer."""
    from enhanced_agent_bus.settings import load_settings

    urls = load_settings(home).audit.witnesses
    if "stdout:" not in urls:
        return {}
    return {"audit": {"witnesses": list(dict.fromkeys("stderr:" if url == "stdout:" else url for url in urls))}}


def ask_running(home: Path, op: str, args: Mapping[str, Any] | None = None, *, timeout: float = 5.0) -> Json | None:
    """The answer of the process that has this home open; None when there is none that answers."""
    from enhanced_agent_bus.control.client import call
    from enhanced_agent_bus.ledger.lock import control_socket

    path = control_socket(home)
    if path is None:
        return None
    try:
        return call(path, op, args, timeout=timeout)
    except OSError:
        return None


def held_up(home: Path) -> dict[str, Json] | None:
    """What holds up the process that has this home open, so that it cannot answer; None when nothing does."""
    import json
    import socket

    from enhanced_agent_bus.ledger.lock import BLOCKED, control_socket

    path = control_socket(home)
    try:
        noted = json.loads((home / BLOCKED).read_bytes())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
    except (OSError, ValueError):  # nothing is noted, or whoever noted it has ended
        return None
    return noted if isinstance(noted, dict) else None


def note_access(session: Session, command: str, what: str) -> None:
    """Records who reads payloads, before they are shown; changes nothing else.

    Raises: BusError, CliError, OSError or sqlite3.Error, and then nothing is shown.
    """
    from enhanced_agent_bus.cli.access import note

    note(session.existing_home(), command, [what])


def operator() -> str:
    """Who types this, as the machine knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container nobody may have a name
        return "operator"
