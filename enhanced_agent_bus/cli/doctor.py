"""`eab doctor`: what is wrong with this machine or this home, and what to do about it. Changes nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import typer

from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.render import echo, print_json, print_table, safe
from enhanced_agent_bus.cli.session import ask_running, session_of

if TYPE_CHECKING:
    from enhanced_agent_bus.settings import Policy

PYTHON_MIN: Final = (3, 11)
SQLITE_MIN: Final = (3, 37, 0)
WAL_RESET_MENDED: Final = (3, 51, 3)  # earlier ones can lose a WAL that two connections write at once
FREE_MB_MIN: Final = 100
VERIFIED_RECORDS_MAX: Final = 100_000  # some two seconds
FSYNC_ROUNDS: Final = 20
FSYNC_MS_SLOW: Final = 50.0
SERVER_SECONDS: Final = 3.0
_EVIDENCE: Final = (
    "copy the home as it is before anything else: it is evidence; `eab audit verify` says more, and a backup or an"
    " export from before shows what stood there"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "note", "wrong"]
    detail: str
    remedy: str = ""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor")(doctor)


def doctor(context: typer.Context) -> int:
    """Say what is wrong with this machine or home.

    Looks at Python, SQLite, the policy worker or server, the home, the server between nodes and the disk.
    Exits 1 when something is wrong.

    Example: eab doctor
    """
    from enhanced_agent_bus.cli.doctor_nodes import nodes

    session = session_of(context)
    findings = [python(), sqlite(), worker()]
    for look in (look_at_home, server, nodes, witnesses, disk):
        findings += [finding for finding in _found(look, session.home) if finding not in findings]
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if session.json:
        print_json({"ok": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        print_table(("", "what", "found"), [(finding.state, finding.what, finding.detail) for finding in findings])
        for finding in findings:
            if finding.remedy:
                echo(f"{finding.what}: {safe(session.named(finding.remedy))}")
    return faults.FOUND if wrong else faults.DONE


def _found(look: Callable[[Path], Iterable[Finding]], home: Path) -> Iterator[Finding]:
    """What one look finds; where it may not look, that is what it finds."""
    try:
        yield from look(home)
    except OSError as error:
        _, document = faults.describe(error)
        yield Finding("home", "wrong", document["message"], document["remedy"])


def python() -> Finding:
    """The interpreter and the package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        package = f"opa-agent-bus {version('opa-agent-bus')}"
    except PackageNotFoundError:
        package = "opa-agent-bus from a checkout"
    detail = f"Python {platform.python_version()}, {package}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < PYTHON_MIN:
        return Finding("python", "wrong", detail, "install Python 3.11 or later")
    return Finding("python", "ok", detail)


def sqlite() -> Finding:
    """The library that Python is linked with."""
    detail = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        return Finding("sqlite", "wrong", detail, "use a Python that is linked with SQLite 3.37 or later")
    if sqlite3.sqlite_version_info < WAL_RESET_MENDED:
        return Finding("sqlite", "ok", f"{detail}; one writer only, so its WAL-reset bug is out of reach")
    return Finding("sqlite", "ok", detail)


def worker() -> Finding:
    """The policy worker: it must start and say which OPA it is."""
    import asyncio

    from enhanced_agent_bus.errors import BusError

    try:
        label = asyncio.run(_worker_label())
    except BusError as error:
        return Finding("policy worker", "wrong", error.message, error.remedy)
    return Finding("policy worker", "ok", f"OPA {label['opa']}, capabilities {label['capabilities']}")


async def _worker_label() -> dict[str, str]:
    from enhanced_agent_bus.engines.worker import WorkerEngine

    engine = await WorkerEngine.start(workers=1)
    try:
        return dict(engine.label)
    finally:
        await engine.close()


def look_at_home(home: Path) -> Iterator[Finding]:
    """Settings, files, keys and lock of a home."""
    from enhanced_agent_bus.cli.reading.home import not_taken, status_at_rest
    from enhanced_agent_bus.errors import BusError
    from enhanced_agent_bus.settings import load_settings

    try:
        load_settings(home)
        yield Finding("settings", "ok", str(home / "eab.toml") if (home / "eab.toml").exists() else "all by default")
    except BusError as error:
        yield Finding("settings", "wrong", error.message, error.remedy)
    if not (home / "home.json").exists() and not (home / "bus.db").exists():
        yield Finding("home", "note", f"there is none at {home}", "`eab init` makes one, or name another with --home")
        return
    try:
        status, refused = status_at_rest(home), not_taken(home)
        yield look_at_log(home, f"{home}: {status['records']} records, constitution {status['constitution']}")
    except (BusError, faults.CliError) as error:
        yield Finding("home", "wrong", error.message, error.remedy)
        return
    except sqlite3.Error as error:
        remedy = "`eab audit verify` says what is still whole"
        yield Finding("home", "wrong", f"the database cannot be read: {error}", remedy)
        return
    if refused is not None:
        yield Finding(
            "constitution", "note", refused, "`eab policy history` says why; mend what constitution.path names"
        )
    key = home / "keys" / "log.key"
    if not key.exists():
        yield Finding("keys", "wrong", f"{key} is missing", "restore keys/ from a backup")
    elif key.stat().st_mode & 0o077:
        yield Finding("keys", "wrong", f"{key} can be read by others", f"chmod 600 {key}")
    yield lock(home)


def look_at_log(home: Path, detail: str) -> Finding:
    """Whether the log is whole, as `eab audit verify` finds it; of a long one only that its end is there.

    Raises: BusError; sqlite3.Error.
    """
    from enhanced_agent_bus.cli.audit.verify import is_fine, verify_home
    from enhanced_agent_bus.cli.reading.home import database

    with database(home) as connection:
        size, records = connection.execute("SELECT size, (SELECT max(seq) + 1 FROM records) FROM head").fetchone()
    if size == records and size > VERIFIED_RECORDS_MAX:
        return Finding("home", "ok", f"{detail}; `eab audit verify` checks whether they are whole")
    verdict = verify_home(home)
    if is_fine(verdict):
        return Finding("home", "ok", detail)
    bad = verdict["first_bad"]
    where = f"seq {bad['seq']}" if bad["seq"] == bad["seq_to"] else f"somewhere in seq {bad['seq']} to {bad['seq_to']}"
    return Finding("home", "wrong", f"the log of {home} is damaged, {where}: {bad['damage']}: {bad['why']}", _EVIDENCE)


def server(home: Path) -> Iterator[Finding]:
    """The OPA server, where the settings of a home name one: is it there, which one is it, what does it serve?"""
    import asyncio

    from enhanced_agent_bus.cli.reading.home import status_at_rest
    from enhanced_agent_bus.errors import BusError
    from enhanced_agent_bus.settings import EMBEDDED, load_settings

    try:
        policy = load_settings(home).policy
    except BusError:
        return  # that was found before
    if policy.engine == EMBEDDED:
        return
    active = None
    with contextlib.suppress(BusError, OSError, sqlite3.Error):
        status = status_at_rest(home)
        active = str(status["revision"]) if status["constitution"] else None
    try:
        yield asyncio.run(_look_at_server(policy, active))
    except BusError as error:
        yield Finding("policy server", "wrong", error.message, error.remedy)


async def _look_at_server(policy: Policy, active: str | None) -> Finding:
    from enhanced_agent_bus.engines.server import VERSION_MIN, ServerEngine, version_numbers

    engine = await ServerEngine.start(
        policy.engine,
        bundle=policy.bundle,
        token_file=policy.token_file,
        tls_ca=policy.tls_ca,
        tls_cert=policy.tls_cert,
        tls_key=policy.tls_key,
    )
    try:
        found = await engine.inspect(SERVER_SECONDS)
        here = engine.worker_version
    finally:
        await engine.close()
    told = f"{policy.engine}: OPA {found.version or 'of an unknown version'}, bundle {policy.bundle}"
    if found.problem:
        return Finding("policy server", "wrong", f"{policy.engine}: {found.problem}", "start it, or mend policy.engine")
    if not found.ready:
        return Finding("policy server", "wrong", f"{told}: its bundles are not loaded", "see its log")
    if found.revision is None:
        remedy = f"serve the constitution as {policy.bundle}: `--set bundles.{policy.bundle}.resource=...`"
        return Finding("policy server", "wrong", f"{told}: it does not show one of that name", remedy)
    told = f"{told}, revision {ascii(found.revision)[1:-1]}"
    if active is not None and found.revision != active:
        remedy = "have the server load the active constitution, or activate the one that it has"
        return Finding("policy server", "wrong", f"{told}; revision {active} is active", remedy)
    if found.version and version_numbers(found.version) < VERSION_MIN:
        oldest = ".".join(map(str, VERSION_MIN))
        return Finding("policy server", "wrong", told, f"use OPA {oldest} or later, best the worker's {here}")
    if version_numbers(found.version)[:2] != version_numbers(here)[:2]:
        return Finding("policy server", "note", told, f"verdicts are the same for certain only with OPA {here}")
    return Finding("policy server", "ok", told)


def witnesses(home: Path) -> Iterator[Finding]:
    """How each witness stands, and whether it is a place apart from the home."""
    from enhanced_agent_bus.cli.state import told
    from enhanced_agent_bus.clock import SystemClock
    from enhanced_agent_bus.control.wire import plain
    from enhanced_agent_bus.errors import BusError
    from enhanced_agent_bus.settings import load_settings
    from enhanced_agent_bus.witness.places import require_outside, witness_at
    from enhanced_agent_bus.witness.standing import at_rest

    try:
        urls = load_settings(home).audit.witnesses
    except BusError:
        return  # that was found before
    running = (ask_running(home, "status") or {}).get("witnesses") or []
    known = {one["witness"]: one for one in [*plain(at_rest(home, urls, SystemClock())), *running]}
    for url in urls:
        detail = told(known[url])
        try:
            require_outside(url, home)
            witness_at(url).stop()
        except BusError as error:
            yield Finding("witness", "wrong", error.message, error.remedy)
            continue
        if known[url]["contradicts"]:
            remedy = f"`eab audit verify --witness {url}` says where they part; it gets no more until that is settled"
            yield Finding("witness", "wrong", detail, remedy)
        elif known[url]["error"]:
            yield Finding("witness", "wrong", detail, "have it answer; a running bus asks it again by itself")
        elif _on_the_same_disk(url, home):
            yield Finding("witness", "note", detail, f"{url} is on the disk of the home, and lost together with it")
        else:
            yield Finding("witness", "ok", detail)


def _on_the_same_disk(url: str, home: Path) -> bool:
    from enhanced_agent_bus.witness.places import path_of

    scheme = url.partition(":")[0]
    if scheme not in ("file", "git", "git+file", "bus"):
        return False
    place = next(path for path in (path_of(url), *path_of(url).parents) if path.exists())
    return home.exists() and place.stat().st_dev == home.stat().st_dev


def lock(home: Path) -> Finding:
    """Whether a process has the home open, and whether that one answers."""
    running = ask_running(home, "status")
    if running is not None:
        return Finding("lock", "ok", "a running bus has the home open, and answers")
    try:
        descriptor = os.open(home / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Finding("lock", "ok", "free")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        remedy = "wait for that command to end; `fuser` on the file `lock` names the process"
        return Finding("lock", "note", "a process has the home open, and does not answer commands", remedy)
    finally:
        os.close(descriptor)
    return Finding("lock", "ok", "free")


def disk(home: Path) -> Iterator[Finding]:
    """Room, and how long a write takes to be on disk, where the home is or will be."""
    folder = next(path for path in (home.absolute(), *home.absolute().parents) if path.is_dir())
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    if free_mb < FREE_MB_MIN:
        yield Finding("disk", "wrong", f"{free_mb} MB free at {folder}", "make room: without it nothing is delivered")
    else:
        yield Finding("disk", "ok", f"{free_mb:,} MB free")
    try:
        milliseconds = _fsync_ms(folder)
    except OSError as error:
        yield Finding("fsync", "wrong", f"{folder} cannot be written: {error.strerror}", "check who may write there")
        return
    detail = f"{milliseconds:.2f} ms to be on disk"
    if milliseconds > FSYNC_MS_SLOW:
        remedy = "each decision waits for it, many at a time: a faster disk makes single sends faster"
        yield Finding("fsync", "note", detail, remedy)
    else:
        yield Finding("fsync", "ok", detail)


def _fsync_ms(folder: Path) -> float:
    """The median of a few small writes, in a file without a name."""
    import statistics
    import tempfile

    with tempfile.TemporaryFile(dir=folder) as file:
        rounds = []
        for _ in range(FSYNC_ROUNDS):
            started = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            rounds.append((time.perf_counter() - started) * 1000)
    return statistics.median(rounds)
