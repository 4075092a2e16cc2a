"""`eab init`: an application, a constitution and some messages to start from, and a home with its keys."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.program import program
from enhanced_agent_bus.cli.render import echo, print_json, quoted, safe
from enhanced_agent_bus.cli.session import DEFAULT_HOME, Session, beside_answers, session_of

RUN = "run app.py:build --input messages.jsonl"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("init")(init)


def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write; made if need be.")] = Path(),
    *,
    reset_revision: Annotated[
        bool,
        typer.Option(
            "--reset-revision",
            help="In a home that lost its high-water mark: take the active revision for it; recorded.",
        ),
    ] = False,
    new_log: Annotated[
        bool,
        typer.Option(
            "--new-log",
            help="In a home whose log is lost or damaged: put it aside and begin a new one; recorded.",
        ),
    ] = False,
) -> None:
    """Write an application to start from, and its home.

    Writes app.py, policies/, messages.jsonl and the home .eab; nothing is written over.

    Example: eab init desk && cd desk && eab run app.py:build --input messages.jsonl
    """
    import asyncio

    session = session_of(context)
    if folder.exists() and not folder.is_dir():
        raise CliError(f"{folder} is a file, not a folder", remedy="name another folder", code="file")
    if reset_revision:
        mark = asyncio.run(_reset_revision(_home_in(session, folder)))
        if session.json:
            print_json(mark)
        else:
            echo(f"the highest revision is now {mark['revision']}, {mark['digest']}")
        return
    if new_log:
        _say_begun(session, asyncio.run(_new_log(_home_in(session, folder))))
        return
    from enhanced_agent_bus.ledger.home import HOME_MODE

    explicit = session.home != Path(DEFAULT_HOME)
    home = session.home if explicit else folder / DEFAULT_HOME
    written = write_starter(folder, home)
    home.mkdir(mode=HOME_MODE, parents=True, exist_ok=True)
    policies = os.path.relpath(folder / "policies", home)
    (home / "eab.toml").write_text(f"[constitution]\npath = {json.dumps(policies)}\n", encoding="utf-8")
    try:
        digest, revision = asyncio.run(_open_once(home, folder / "policies"))
    except BaseException:  # all or nothing: the next try finds the folder as this one did
        for path in (*written, home):
            _remove(path)
        raise
    where = f"--home {quoted(str(home.absolute()))} " if explicit else ""
    command = f"{program(from_folder=folder)} {where}{RUN}"
    if folder.absolute() != Path.cwd():
        command = f"cd {quoted(str(folder))} && {command}"
    if session.json:
        paths = [str(path) for path in written]
        document = {"folder": str(folder), "home": str(home), "written": paths, "next": command}
        print_json(document | {"constitution": digest, "revision": revision})
        return
    for path in written:
        echo(f"wrote {safe(path)}")
    echo(f"made the home {safe(home)}, constitution {digest} (revision {revision})")
    echo()
    echo("Now type:")
    echo(f"  {safe(command)}")


def write_starter(folder: Path, home: Path) -> list[Path]:
    """Copies the starter into the folder. Raises: CliError, when something of it is there already."""
    from enhanced_agent_bus._share import share_folder

    starter = share_folder("examples") / "starter"
    sources = {
        folder / "app.py": starter / "app.py",
        folder / "policies": share_folder("policies"),
        folder / "messages.jsonl": starter / "messages.jsonl",
    }
    there = [str(path) for path in (*sources, home) if path.exists()]
    if there:
        raise CliError(
            f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already; nothing was written",
            remedy="name another folder, or move what is there",
            code="exists",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for target, source in sources.items():
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    return list(sources)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _home_in(session: Session, folder: Path) -> Path:
    if session.home == Path(DEFAULT_HOME) and folder != Path():
        session = Session(folder / DEFAULT_HOME, json=session.json)
    return session.existing_home()


async def _reset_revision(home: Path) -> dict[str, Any]:
    """Writes the mark anew, and in the log that it was. Raises: CliError, when there is nothing to reset."""
    import asyncio

    from enhanced_agent_bus.clock import SystemClock
    from enhanced_agent_bus.ledger.home import open_home
    from enhanced_agent_bus.ledger.sqlite import SqliteLedger
    from enhanced_agent_bus.ports import Entry

    place = open_home(home, make=False)
    try:
        ledger = await SqliteLedger.open(place, clock=SystemClock())
        try:
            active = json.loads(ledger.setting("constitution") or "{}")
            if not active.get("signed") or place.read_mark() is not None:
                remedy = "it is for a home that has lost its mark, and whose constitution is signed"
                raise CliError("there is no revision to reset", remedy=remedy)
            mark = {"revision": active["revision"], "digest": active["digest"]}
            fields = {"event": "revision_reset", **mark, "reason": None, "details": []}
            done = asyncio.get_running_loop().create_future()
            entry = Entry("policy", fields)
            entry.done = lambda seq, error: done.set_result(seq) if error is None else done.set_exception(error)
            ledger.put(entry)
            await done
            place.write_mark(mark)
            return mark
        finally:
            await ledger.close()
    finally:
        place.release()


async def _new_log(home: Path) -> dict[str, Any]:
    """Begins a new log where the old one is lost, and says what was declared. Raises: CliError, when it is not."""
    from enhanced_agent_bus.clock import SystemClock
    from enhanced_agent_bus.ledger.anew import begin_anew
    from enhanced_agent_bus.ledger.lock import HomeLock
    from enhanced_agent_bus.ledger.sqlite import SqliteLedger

    why = await _what_is_lost(home)
    lock = HomeLock.take(home)
    try:
        place = begin_anew(home.absolute(), lock, why)
        loss = dict(place.loss or {})
        ledger = await SqliteLedger.open(place, clock=SystemClock())
        await ledger.close()
        return {"origin": place.origin, "lost": loss, "home": str(home)}
    finally:
        lock.release()


async def _what_is_lost(home: Path) -> str:
    """Why the log of a home cannot be gone on with. Raises: CliError, when it can."""
    from enhanced_agent_bus.cli.audit.verify import verify_home
    from enhanced_agent_bus.clock import SystemClock
    from enhanced_agent_bus.errors import StoreCorrupt
    from enhanced_agent_bus.ledger.home import open_home
    from enhanced_agent_bus.ledger.sqlite import SqliteLedger

    try:
        place = open_home(home, make=False)
        try:
            ledger = await SqliteLedger.open(place, clock=SystemClock())
            await ledger.close()
        finally:
            place.release()
    except StoreCorrupt as error:
        return error.message
    verdict = verify_home(home)
    if verdict["integrity"] == "bad" and verdict["first_bad"] is not None:
        return str(verdict["first_bad"]["why"])
    remedy = "`--new-log` is for a home whose log is lost, or damaged beyond what a backup can mend"
    raise CliError(f"the log of {home} is whole, and goes on", remedy=remedy)


def _say_begun(session: Session, begun: dict[str, Any]) -> None:
    if session.json:
        print_json(begun)
        return
    lost = begun["lost"]
    known = (
        f"its newest checkpoint signs {lost['size']} records" if lost["size"] is not None else "nothing else is known"
    )
    echo(f"declared the log {lost['origin']} as lost ({safe(lost['why'])}); {known}")
    echo(f"what is left of it lies in {safe(Path(begun['home']) / lost['aside'])}")
    echo(f"began the log {begun['origin']}; messages that waited, facts and registrations are gone with the old one")


async def _open_once(home: Path, constitution: Path) -> tuple[str, int]:
    """A bus that is opened makes its home, and checks the constitution on this machine."""
    from enhanced_agent_bus import open_bus

    async with open_bus(home, constitution=constitution, **beside_answers(home)) as bus:
        status = bus.status()
        return status.constitution, status.revision
