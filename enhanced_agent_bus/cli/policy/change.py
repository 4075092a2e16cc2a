"""`eab policy backtest` and `diff`: what a change of constitution is, and what it would have changed."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.render import compact, console, counted, echo, print_json, print_table, safe
from enhanced_agent_bus.cli.session import DEFAULT_HOME, Session, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.authoring.tally import Tally
    from enhanced_agent_bus.cli.reading.recorded import Log
    from enhanced_agent_bus.engines.worker import WorkerEngine
    from enhanced_agent_bus.ports import Loaded

ROWS_SHOWN_MAX: Final = 20
VALUE_CHARS_MAX: Final = 60
REFRESH_SECONDS: Final = 0.2


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(backtest)
    app.command()(diff)


class FailOn(StrEnum):
    """What makes the exit status 1."""

    ALLOW = "allow"
    REFUSE = "refuse"
    ANY = "any"


def backtest(
    context: typer.Context,
    *,
    candidate: Annotated[str, typer.Option(metavar="PATH", help="A folder or bundle, or a digest of the home.")],
    since: Annotated[str | None, typer.Option(metavar="T", help="Only decisions from this time on.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the newest N decisions.")] = None,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(help="Exit 1 when something would be allowed, or refused, that was not; or any verdict changes."),
    ] = None,
) -> int:
    """Ask recorded decisions again, under a candidate.

    Each is first asked under the constitution that made it and has to come out as recorded: exit 1 where it does not.

    Example: eab policy backtest --candidate policies --fail-on allow
    """
    from enhanced_agent_bus.cli.reading.home import record_time
    from enhanced_agent_bus.cli.reading.recorded import Log, constitution_named

    session = session_of(context)
    home = session.existing_home()
    path = constitution_named(home, candidate)
    log = Log(home, since=None if since is None else record_time(since), limit=limit)
    started = time.monotonic()
    tally = replay(session, log, path)
    seconds = time.monotonic() - started
    if session.json:
        about = {"candidate": {"digest": tally.new.digest, "revision": tally.new.revision, "path": candidate}}
        print_json({**about, "home": str(home), **tally.document(), "seconds": round(seconds, 3)})
    else:
        show_replayed(session, tally)
        if tally.conclusive:
            echo()
            echo(safe(f"under {candidate}, revision {tally.new.revision}, {tally.new.digest}:"))
            show_flips(tally)
    return _status(tally, fail_on)


def _status(tally: Tally, fail_on: FailOn | None) -> int:
    if tally.different:
        return faults.FOUND
    if fail_on is None:
        return faults.DONE
    if not tally.again:  # nothing was shown, and somebody relies on it
        return faults.FOUND
    found = tally.flipped if fail_on is FailOn.ANY else tally.became(fail_on.value)
    return faults.FOUND if found else faults.DONE


def replay(session: Session, log: Log, candidate: Path) -> Tally:
    """Raises: ConstitutionRejected, EngineMissing, StoreCorrupt."""
    import asyncio

    async def ask() -> Tally:
        async with _engine() as engine:
            return await _replay(session, engine, log, candidate)

    return asyncio.run(ask())


@asynccontextmanager
async def _engine() -> AsyncIterator[WorkerEngine]:
    from enhanced_agent_bus.engines.worker import WorkerEngine

    engine = await WorkerEngine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def _replay(session: Session, engine: WorkerEngine, log: Log, candidate: Path, base: Path | None = None) -> Tally:
    from enhanced_agent_bus.authoring import backtest as asking
    from enhanced_agent_bus.cli.reading.recorded import kept_constitution

    with Bar(log, quiet=session.json) as bar:
        return await asking.backtest(
            engine,
            log,
            lambda digest: kept_constitution(session.home, digest),
            candidate,
            base=base,
            progress=bar.update,
        )


# --- diff ----------------------------------------------------------------------------------------------------------


def diff(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="A", help="A folder or bundle, or a digest of the home.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    *,
    since: Annotated[str | None, typer.Option(metavar="T", help="Only decisions from this time on.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the newest N decisions.")] = None,
    decisions: Annotated[bool, typer.Option(help="Ask the decisions of the home, where there is one.")] = True,
) -> int:
    """Show what differs between two constitutions.

    Rules, files, data, what is read; and which recorded decisions of the home would come out otherwise.
    Exit 0 when they are the same, 1 when they are not.

    Example: eab policy diff policies new-policies
    """
    import asyncio

    from enhanced_agent_bus.cli.reading.home import record_time
    from enhanced_agent_bus.cli.reading.recorded import Log, constitution_named

    session = session_of(context)
    home = None if session.home == Path(DEFAULT_HOME) and not session.home.exists() else session.existing_home()
    paths = [constitution_named(session.home, name) for name in (old, new)]
    log = None
    if home is not None and decisions:
        log = Log(home, since=None if since is None else record_time(since), limit=limit)
    document = asyncio.run(_diff(session, log, *paths))
    tally = document.pop("tally")
    if session.json:
        print_json({**document, "decisions": None if tally is None else tally.document()})
    else:
        show_differences(old, new, document)
        if tally is not None:
            show_compared(tally)
    return faults.DONE if document["same"] else faults.FOUND


async def _diff(session: Session, log: Log | None, old: Path, new: Path) -> dict[str, Any]:
    """Raises: ConstitutionRejected, for one that cannot be loaded; EngineMissing, StoreCorrupt."""
    import tempfile

    from enhanced_agent_bus.authoring.differences import Constitution, differences, files_of

    with tempfile.TemporaryDirectory(prefix="eab-") as folder:
        async with _engine() as engine:
            sides = []
            for number, path in enumerate((old, new)):
                bundle = Path(folder) / f"{number}.tar.gz"
                await engine.pack(path, bundle)
                sides.append((bundle, Constitution(await _loaded(engine, bundle, path), files_of(bundle))))
            (old_bundle, old_side), (new_bundle, new_side) = sides
            found = differences(old_side, new_side)
            tally = None
            if log is not None and not found["same"]:
                tally = await _replay(session, engine, log, new_bundle, old_bundle)
    about = {
        side: {"digest": one.loaded.digest, "revision": one.loaded.revision, "path": str(path)}
        for side, path, one in (("a", old, old_side), ("b", new, new_side))
    }
    return {**about, **found, "tally": tally}


async def _loaded(engine: WorkerEngine, bundle: Path, path: Path) -> Loaded:
    """Raises: ConstitutionRejected, which names the path that was given, not our copy."""
    from enhanced_agent_bus.errors import ConstitutionRejected

    try:
        return await engine.load(bundle)
    except ConstitutionRejected as error:
        message = error.message.replace(str(bundle), str(path))
        raise ConstitutionRejected(message, reason=error.reason, details=error.details, remedy=error.remedy) from None


class Bar:
    """How far it is, on a terminal only."""

    def __init__(self, log: Log, *, quiet: bool) -> None:
        self._log = log
        self._shown = not quiet and sys.stderr.isatty()
        self._next = 0.0
        self._status: Any = None

    def __enter__(self) -> Self:
        if self._shown:
            self._status = console(error=True).status("")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, tally: Tally) -> None:
        """Called at every decision; draws a few times a second."""
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH_SECONDS
            done = f"{self._log.share:.0%} of the log: {tally.decisions} decisions"
            self._status.update(f"{done}, {tally.flipped} would change")


# --- for people ----------------------------------------------------------------------------------------------------


def show_replayed(session: Session, tally: Tally) -> None:
    """How many decisions came out as they are recorded, and what became of the rest."""
    document = tally.document()
    echo(f"{counted(tally.decisions, 'recorded decision')}: {tally.again} came out again as recorded")
    if document["not_replayed"]:
        echo()
        print_table(
            ("could not be asked again", "count", "such as"),
            [(one["means"], one["count"], _such_as(one)) for one in document["not_replayed"]],
        )
    if tally.different:
        echo()
        echo(f"{counted(tally.different, 'decision')} came out otherwise under the constitution that made them:")
        print_table(
            ("decision", "recorded", "asked again"),
            [
                (one["decision_id"], _verdict(one["recorded"]), _verdict(one["replayed"], one["only_words"]))
                for one in tally.differences[:ROWS_SHOWN_MAX]
            ],
        )
        others = sorted({one["opa"] for one in tally.differences} - {tally.opa})
        if others:
            echo(safe(f"they were decided by OPA {', '.join(others)}, and this is OPA {tally.opa}"))
        echo()
        echo("so nothing can be concluded about the candidate: a constitution gives one answer to one input.")
        echo(f"look at one with `{session.command('policy explain DECISION')}`, and at the log with")
        echo(f"`{session.command('audit verify')}`")
    elif not tally.again:
        echo("nothing could be compared, so nothing is known about the candidate")


def show_differences(old: str, new: str, document: dict[str, Any]) -> None:
    """What differs, the rules first."""
    for side, name in (("a", old), ("b", new)):
        echo(safe(f"{side}: {name}, revision {document[side]['revision']}, {document[side]['digest']}"))
    if document["same"]:
        echo("they are the same")
        return
    rules = document["rules"]
    changed = [(one["rule"], "changed", ", ".join(_file(file) for file in one["files"])) for one in rules["changed"]]
    rows = [(rule, how, "") for how in ("added", "removed") for rule in rules[how]] + changed
    _show_rows(("rule", "", "files"), rows)
    elsewhere = [one for one in document["files"] if not one["file"].startswith("bus/rules/")]
    _show_rows(("file", ""), [(one["file"], one["change"]) for one in elsewhere])
    _show_rows(("data", "from", "to"), [(one["path"], *_values(one)) for one in document["data"]])
    reads = [(path, how) for how in ("added", "removed") for path in document["reads"][how]]
    _show_rows(("reads", ""), reads)
    if rules["reordered"]:
        echo()
        echo("the rules are listed in another order, and so are their reasons")
    for key in ("revision", "name", "not_after", "cacheable"):
        if document[key] is not None:
            echo()
            echo(safe(f"{key}: {compact(document[key]['from'])} -> {compact(document[key]['to'])}"))


def _show_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        echo()
        print_table(columns, rows)


def _file(one: dict[str, str]) -> str:
    name = one["file"].split("/", 3)[-1]
    return name if one["change"] == "changed" else f"{name} ({one['change']})"


def _values(one: dict[str, Any]) -> tuple[str, str]:
    """Both sides; of lists what came and went, and of long values the part where they begin to differ."""
    if one.get("added") or one.get("removed"):
        lost, come = (", ".join(compact(item) for item in one[how]) for how in ("removed", "added"))
        return _cut(f"without {lost}" if lost else ""), _cut(f"with {come}" if come else "")
    old, new = (compact(one[side]) if side in one else "" for side in ("from", "to"))
    same = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    start = max(0, same - VALUE_CHARS_MAX // 2) if max(len(old), len(new)) > VALUE_CHARS_MAX and old and new else 0
    return _cut(old, start), _cut(new, start)


def _cut(text: str, start: int = 0) -> str:
    shown = f"... {text[start:]}" if start else text
    return shown if len(shown) <= VALUE_CHARS_MAX else f"{shown[: VALUE_CHARS_MAX - 4]} ..."


def show_compared(tally: Tally) -> None:
    """What the decisions of the home would have been under the one and under the other."""
    document = tally.document()
    _show_rows(
        ("could not be asked", "count", "such as"),
        [(one["means"], one["count"], _such_as(one)) for one in document["not_replayed"]],
    )
    if not tally.again:
        echo("the home has no decisions that could be asked")
        return
    echo()
    echo(f"{counted(tally.again, 'recorded decision')}, asked under a and under b:")
    show_flips(tally)


def show_flips(tally: Tally) -> None:
    """What would be decided otherwise, by verdict, rule, sender and tenant."""
    document = tally.document()
    if document["errors"]:
        print_table(
            ("it has no usable answer", "count", "such as"),
            [(one["code"], one["count"], _such_as(one)) for one in document["errors"]],
        )
        echo()
    if document["other_reasons"]["count"]:
        many = counted(document["other_reasons"]["count"], "verdict")
        echo(f"{many} would be the same for other reasons, such as {_such_as(document['other_reasons'])}")
    if document["other_facts"]["count"]:
        many = f"in {document['other_facts']['count']} of {counted(tally.again, 'decision')}"
        echo(
            f"{many} it would remember other facts, such as {_such_as(document['other_facts'])}; "
            "what that changes later is not seen here"
        )
    if not tally.flipped:
        echo(f"no verdict would change ({counted(tally.again, 'decision')})")
        return
    echo(f"{tally.flipped} of {counted(tally.again, 'verdict')} would change:")
    print_table(("", "count", "such as"), [(_flip(one), one["count"], _such_as(one)) for one in document["flips"]])
    for column in ("rule", "agent", "tenant"):
        rows = document[f"by_{column}"]
        echo()
        print_table(
            (column, "", "count", "such as"),
            [(one[column], _flip(one), one["count"], _such_as(one, 1)) for one in rows[:ROWS_SHOWN_MAX]],
        )
        if len(rows) > ROWS_SHOWN_MAX:
            echo(f"... and {len(rows) - ROWS_SHOWN_MAX} more; --json lists them all")


def _flip(one: dict[str, Any]) -> str:
    return f"{one['from']} -> {one['to']}"


def _such_as(one: dict[str, Any], shown: int = 3) -> str:
    return ", ".join(one["sample"][:shown])


def _verdict(one: dict[str, Any], only_words: bool = False) -> str:
    reasons = ", ".join(reason["rule"] or reason["code"] for reason in one["reasons"])
    said = one["code"] or one["verdict"]
    return f"{said} by {reasons}{' in other words' if only_words else ''}" if reasons else str(said)
