"""`eab demo --nats`: three nodes and a NATS server on this machine, one node killed in the middle; then their logs.

This process is one of the nodes. Not here: what the nodes' agents do (`examples/three_nodes`).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeAlias

from enhanced_agent_bus import AgentBus, Receipt, open_bus
from enhanced_agent_bus._share import share_folder
from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.faults import UNDECIDED, CliError
from enhanced_agent_bus.cli.queue import STATES
from enhanced_agent_bus.cli.render import echo, print_json, print_table, safe
from enhanced_agent_bus.cli.session import Json, Session, ask_running

SERVER: Final = "nats-server"
HERE: Final = "front"
THERE: Final = ("booking", "records")
KILLED: Final = "booking"
TRIPS: Final = 40
START_SECONDS: Final = 60.0
END_SECONDS: Final = 120.0
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.05
#: Three nodes that start at once on one machine are slower than a node is: they may take their time to decide.
SETTINGS: Final = """\
[transport]
url = "{url}"
name = "demo"

[policy]
timeout_seconds = 10
"""

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Line:
    """What became of the messages from one agent's node to another's."""

    sender: str
    recipient: str
    type: str
    messages: int
    allowed_there: int  # on the sender's node
    allowed_here: int  # on the receiver's
    refused: int
    delivered: int
    discarded: int  # the answer of a run that was cut off, whose message ran again and was answered again
    apart: int  # ended on each node by itself: such an answer that had arrived already
    came_again: int

    @property
    def ended(self) -> bool:
        """Whether each message has its end; whether two logs fit together is not judged here."""
        return self.delivered + self.refused + self.discarded + self.apart == self.messages


def demo_of_nodes(session: Session) -> int:
    """Runs it, shows it, and returns the exit status. Raises: CliError, BusError."""
    from enhanced_agent_bus.cli.audit import joined as several
    from enhanced_agent_bus.cli.audit import verify as audit

    binary = server_binary()
    require_client("`eab demo --nats`")
    folder = Path(tempfile.mkdtemp(prefix="eab-demo-"))
    say = _quiet if session.json else _say
    try:
        with server(binary, folder / "server") as url:
            say(f"a NATS server at {url}, with sync_interval: always")
            asyncio.run(_traffic(folder, url, say))
    finally:
        shutil.rmtree(folder / "server", ignore_errors=True)
    homes = {name: folder / name for name in (HERE, *THERE)}
    lines = compared(homes)
    verdicts = {name: audit.verify_home(home) for name, home in homes.items()}
    paths = list(homes.values())
    joined = several.join(paths, several.keys_of(paths, []))
    fine = (
        joined.ok and all(line.ended for line in lines) and all(audit.is_fine(verdict) for verdict in verdicts.values())
    )
    if session.json:
        shown = [{name: getattr(line, name) for name in Line.__slots__} for line in lines]
        print_json(
            {
                "ok": fine,
                "homes": {n: str(h) for n, h in homes.items()},
                "messages": shown,
                **several.document(verdicts, joined),
            }
        )
    else:
        _show(lines)
        _show_verdicts(verdicts)
        echo()
        several.show(joined)
        echo()
        echo(f"the server is gone; look around in a home: {Session(homes[HERE], json=False).command('status')}")
        echo(f"the others are {', '.join(str(homes[name]) for name in THERE)}")
    return faults.DONE if fine else faults.FOUND


def server_binary() -> Path:
    """Of the shell's path, or of a checkout. Raises: CliError, where there is none."""
    found = shutil.which(SERVER)
    if found is not None:
        return Path(found)
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[2]):
        if (folder / ".tools" / "bin" / SERVER).is_file():
            return folder / ".tools" / "bin" / SERVER
    raise CliError(
        f"there is no {SERVER} on this machine's PATH",
        remedy="install one (https://docs.nats.io/running-a-nats-service/introduction/installation, or "
        "`go install github.com/nats-io/nats-server/v2@latest`) and try again; `eab demo` needs none",
    )


def require_client(what: str) -> None:
    """Raises: ConfigInvalid, where the extra is not installed."""
    from enhanced_agent_bus.transports.access import missing

    if find_spec("nats") is None:
        raise missing(what)


@contextmanager
def server(binary: Path, folder: Path) -> Iterator[str]:
    """A server with JetStream that acknowledges what is on disk; its address. Raises: CliError."""
    folder.mkdir()
    config = folder / "server.conf"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    config.write_text(
        f"listen: 127.0.0.1:{port}\nmax_payload: 8M\n"
        f"jetstream {{ store_dir: {json.dumps(str(folder / 'store'))}, sync_interval: always, max_file_store: 2G }}\n"
    )
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen([binary, "-c", config], stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        asyncio.run(_answers(process, port, log))
        yield f"nats://127.0.0.1:{port}"
    finally:
        _stop(process)


async def _answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Returns once it does. Raises: CliError."""
    with suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while process.poll() is None:
                with suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    greeting = await reader.read(4)
                    writer.close()
                    if greeting == b"INFO":
                        return
                await asyncio.sleep(POLL_SECONDS)
    said = log.read_text(errors="replace").strip().splitlines()
    raise CliError(
        f"the NATS server did not start: {said[-1] if said else 'it says nothing'}",
        remedy="see that its version is 2.15 or later",
        code="server",
        status=UNDECIDED,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Others:
    """The nodes that are processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        app = share_folder("examples") / "three_nodes" / f"app.py:{name}"
        command = [sys.executable, "-m", "enhanced_agent_bus", "--home", str(self._folder / name), "run", str(app)]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*command, "--constitution", str(share_folder("policies"))],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def kill(self, name: str) -> None:
        """As when its machine fails."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def require_running(self) -> None:
        """Raises: CliError, when one has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                said = (self._folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
                raise CliError(
                    f"the node {name} ended ({process.returncode}): {said[-1] if said else 'it says nothing'}",
                    remedy=f"see {self._folder / f'{name}.log'}",
                    code="node",
                    status=UNDECIDED,
                )

    def stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            _stop(process)
        self._running.clear()


async def _traffic(folder: Path, url: str, say: Say) -> None:
    for name in (HERE, *THERE):
        (folder / name).mkdir()
        (folder / name / "eab.toml").write_text(SETTINGS.format(url=url))
    async with _front(folder) as (bus, others):
        for name in THERE:
            others.start(name)
        await _until_there(bus, others)
        say("three nodes, each a process with a home and a log of its own: " + ", ".join((HERE, *THERE)))
        receipts = [await _trip(bus, trip) for trip in range(TRIPS // 2)]
        receipts.append(await (await bus.agent("globex-desk")).send("booker", {"trip": 0}, type="command"))
        await _ended(receipts[: TRIPS // 4], others)
        receipts += [await _trip(bus, trip) for trip in range(TRIPS // 2, TRIPS)]
        others.kill(KILLED)
        say(f"{KILLED} was killed (SIGKILL); what is sent to it is handed over, and waits")
        others.start(KILLED)
        say("it was started again; what it had in its hands is handed out once more when the server misses it (30 s)")
        await _ended(receipts, others)
        await _idle(bus, folder)


@asynccontextmanager
async def _front(folder: Path) -> AsyncIterator[tuple[AgentBus, Others]]:
    """This process's own node, whose bus closes last; all other nodes end before."""
    from enhanced_agent_bus.cli.runs.loading import App

    app = App(f"{share_folder('examples') / 'three_nodes' / 'app.py'}:{HERE}")
    async with open_bus(folder / HERE, constitution=share_folder("policies")) as bus:
        await app.build(bus)
        others = Others(folder)
        try:
            yield bus, others
        finally:
            await asyncio.to_thread(others.stop)


async def _until_there(bus: AgentBus, others: Others) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not {"booker", "notes"} <= {agent.id for agent in bus.agents()}:
            others.require_running()
            await asyncio.sleep(POLL_SECONDS)


async def _trip(bus: AgentBus, trip: int) -> Receipt:
    return await (await bus.agent("desk")).send("booker", {"trip": trip}, type="command")


async def _ended(receipts: Sequence[Receipt], others: Others) -> None:
    for receipt in receipts:
        if receipt.ok:
            others.require_running()
            await receipt.outcome(timeout=END_SECONDS)


async def _idle(bus: AgentBus, folder: Path) -> None:
    """Once no node has anything left that has not ended. Raises: TimeoutError."""
    await bus.wait_idle(timeout=END_SECONDS)
    async with asyncio.timeout(END_SECONDS):
        for name in THERE:
            while not _ended_all(await asyncio.to_thread(ask_running, folder / name, "status")):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)


def _ended_all(status: Json | None) -> bool:
    return status is not None and not any(status["accounting"][state] for state in STATES)


# --- what the logs say ---------------------------------------------------------------------------------------------


def compared(homes: dict[str, Path]) -> list[Line]:
    """What the log of each node says of the messages between them."""
    decided: dict[str, list[tuple[str, Json]]] = {}
    for name, home in homes.items():
        for record in _records(home):
            if record["kind"] in ("decision", "outcome"):
                decided.setdefault(record["message_id"], []).append((name, record))
    places = {
        record["recipient"]: name
        for records in decided.values()
        for name, record in records
        if record.get("why") == "receive"
    }
    lines: dict[tuple[str, str, str], Counter[str]] = {}
    for records in decided.values():
        first = next(record for _, record in records if record["kind"] == "decision")
        sent = [(name, record) for name, record in records if record.get("why") == "send"]
        taken = [(name, record) for name, record in records if record.get("why") == "receive"]
        at = sent[0][0] if sent else "?"
        to = taken[0][0] if taken else ""
        node = to or places.get(first["recipient"], "no node")
        there = f"{first['recipient']} on {node}"
        key = (f"{first['sender']} on {at}", there, first["type"])
        count = lines.setdefault(key, Counter())
        ends = {name: record["state"] for name, record in records if record["kind"] == "outcome"}
        allowed = [record["verdict"] == "allow" for _, record in sent]
        count["messages"] += 1
        count["allowed_there"] += any(allowed)
        count["refused"] += not any(allowed) or ends.get(at) == "refused" == ends.get(to, "refused")
        count["allowed_here"] += any(record["verdict"] == "allow" for _, record in taken)
        count["delivered"] += ends.get(at) == "delivered" == ends.get(to)
        count["discarded"] += ends.get(at) == "discarded" and not taken
        count["apart"] += at in ends and to in ends and ends[at] != ends[to]
        count["came_again"] += len(taken) > 1
    return [Line(*key, *(count[name] for name in Line.__slots__[3:])) for key, count in sorted(lines.items())]


def _records(home: Path) -> Iterator[Json]:
    from enhanced_agent_bus.cli.reading.log import records_from

    page = records_from(home, 0)
    while page:
        yield from page
        page = records_from(home, page[-1]["seq"] + 1)


def _show(lines: Sequence[Line]) -> None:
    echo()
    print_table(
        (
            "from",
            "to",
            "type",
            "sent",
            "allowed there",
            "allowed on arrival",
            "refused",
            "delivered",
            "discarded",
            "apart",
            "came twice",
        ),
        [tuple(getattr(line, name) for name in Line.__slots__) for line in lines],
    )


def _show_verdicts(verdicts: Mapping[str, Json]) -> None:
    echo()
    columns = ("integrity", "completeness", "time", "open", "first_bad")
    rows = [(name, one["size"], *(one[column] for column in columns)) for name, one in verdicts.items()]
    print_table(("log of", "records", "integrity", "completeness", "time", "not ended", "first bad"), rows)


def _say(text: str) -> None:
    echo(safe(text), error=True)


def _quiet(_text: str) -> None:
    """Where a program reads."""
