"""The bus on NATS JetStream beside bare nats-py, and what more nodes bring, all on one real server and in turns.

Not here: how one node is opened and driven (`nodes`), and what a receiving one does in a process of its own
(`receiving`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from enhanced_agent_bus.bench.bare_nats import answering, bare_rate, stored, stored_rate
from enhanced_agent_bus.bench.figures import Figure, at_most
from enhanced_agent_bus.bench.house import Scale, drive
from enhanced_agent_bus.bench.jetstream import Server, jetstream
from enhanced_agent_bus.bench.letters import a_letter, opening_us, sealing_us
from enhanced_agent_bus.bench.nodes import Sender, node, pair, routes, sender
from enhanced_agent_bus.bench.receiving import BARE, Receiver, receiving
from enhanced_agent_bus.bench.workload import Load
from enhanced_agent_bus.transports.subjects import KINDS, letters_stream

ROW: Final = "nats"
IN_FLIGHT: Final = 64
SHARE: Final = 30  # of the messages of a run: each crosses the server several times
RECEIVERS: Final = 3
FOR_SCALE: Final = "for scale"
MULTIPLE: Final = "time as a multiple of bare nats-py"


class _Used(NamedTuple):
    """Seconds for some messages, and the processor time that they took."""

    seconds: float
    sender: float
    receivers: float
    server: float


async def joined(binary: str, folder: Path, scale: Scale) -> list[Figure]:
    """All of it on one server."""
    constitution, count = folder / "constitution", max(1, scale.messages // SHARE)
    with TemporaryDirectory(dir=folder) as name:
        async with jetstream(binary, Path(name)) as server:
            return [
                *await _one_process(server, constitution, Path(name), scale.runs, count),
                *await _own_processes(server, constitution, scale.runs, count),
                *await _parts(server, scale.runs, count),
            ]


async def _one_process(server: Server, constitution: Path, place: Path, runs: int, count: int) -> list[Figure]:
    """Two nodes here, with ledgers in memory and then on disk, beside two connections of nats-py."""
    bare, memory, durable, loads = [], [], [], routes(count)
    streams = [letters_stream("memory", kind) for kind in KINDS]
    async with (
        pair(None, constitution, server, "memory", loads) as in_memory,
        pair(place, constitution, server, "durable", loads) as on_disk,
        answering(server.url),
    ):
        for _ in range(runs + 1):  # the first turn only warms them
            bare.append(await bare_rate(server.url, loads, count, IN_FLIGHT))
            before = await stored(server.url, streams)
            memory.append(await in_memory.rate(count, IN_FLIGHT))
            letters = await stored(server.url, streams) - before
            durable.append(await on_disk.rate(count, IN_FLIGHT))
    bare, memory, durable = bare[1:], memory[1:], durable[1:]
    what = "governed request/reply between two nodes on JetStream"
    return [
        _rates("bare nats-py on JetStream: durable request/reply, 64 in flight", bare, FOR_SCALE),
        _rates(f"{what}, memory ledgers, 64 in flight", memory),
        Figure(ROW, f"{what}, memory ledgers: {MULTIPLE}", "x", _times(memory, bare), at_most(1.3)),
        _rates(f"{what}, ledgers on disk, 64 in flight", durable),
        Figure(ROW, f"{what}, ledgers on disk: {MULTIPLE}", "x", _times(durable, bare)),
        Figure(ROW, "letters that the server stores for a request and its reply", "letters", (letters / count,)),
    ]


async def _own_processes(server: Server, constitution: Path, runs: int, count: int) -> list[Figure]:
    """A process for each node: requests, then messages to more and more receivers, which share the agents."""
    loads = routes(count)
    async with AsyncExitStack() as stack:

        async def another() -> Receiver:
            return await stack.enter_async_context(receiving(server, "own", constitution, len(loads)))

        receivers = [await another()]
        sending = await sender(await stack.enter_async_context(node(None, constitution, server, "own")), loads)
        async with receiving(server, BARE, constitution, len(loads)):
            found = await _requests(sending, server, loads, runs, count)
        while True:
            used = [await _used(sending, receivers, server, count) for _ in range(runs + 1)][1:]
            found += _grown(len(receivers), used, count)
            if len(receivers) == RECEIVERS:
                return found
            receivers.append(await another())


async def _requests(asking: Sender, server: Server, loads: Sequence[Load], runs: int, count: int) -> list[Figure]:
    bare, ours = [], []
    for _ in range(runs + 1):  # the first turn only warms them
        bare.append(await bare_rate(server.url, loads, count, IN_FLIGHT))
        ours.append(await _rate(asking, count))
    what = "the same with each node in a process of its own, memory ledgers"
    return [
        _rates("bare nats-py from two processes: durable request/reply, 64 in flight", bare[1:], FOR_SCALE),
        _rates(f"{what}, 64 in flight", ours[1:]),
        Figure(ROW, f"{what}: {MULTIPLE} from two processes", "x", _times(ours[1:], bare[1:])),
    ]


async def _rate(asking: Sender, count: int) -> float:
    started = time.perf_counter()
    await drive(asking.ask, asking.some(count), IN_FLIGHT)
    return count / (time.perf_counter() - started)


async def _used(sending: Sender, receivers: Sequence[Receiver], server: Server, count: int) -> _Used:
    async def now() -> _Used:
        theirs = sum([await one.cpu_seconds() for one in receivers])
        return _Used(time.perf_counter(), time.process_time(), theirs, server.cpu_seconds())

    before = await now()
    await drive(sending.send, sending.some(count), IN_FLIGHT)
    after = await now()
    return _Used(*(late - early for late, early in zip(after, before, strict=True)))


def _grown(nodes: int, used: Sequence[_Used], count: int) -> list[Figure]:
    def us(what: str, parts: Sequence[float]) -> Figure:
        return Figure(ROW, what, "us", tuple(part / count * 1e6 for part in parts))

    where = f"to {nodes} receiving node{'s' if nodes > 1 else ''}"
    rates = [count / one.seconds for one in used]
    found = [
        _rates(f"governed messages {where}, a process each, 64 in flight until their ends are known", rates),
        us(f"processor time a message {where}, all parts", [sum(one[1:]) for one in used]),
    ]
    if nodes == 1:
        found += [
            us("of it the sending node", [one.sender for one in used]),
            us("of it the receiving node", [one.receivers for one in used]),
            us("of it the NATS server", [one.server for one in used]),
        ]
    return found


async def _parts(server: Server, runs: int, count: int) -> list[Figure]:
    """What bounds them: the server's own pace, and the signatures."""
    letter = a_letter()
    rates = [await stored_rate(server.url, letter.body, count, IN_FLIGHT) for _ in range(runs)]
    return [
        _rates("letters that one stream of the server stores, 64 in flight, nothing else", rates, FOR_SCALE),
        Figure(ROW, "sealing a ticket", "us", tuple(sealing_us(letter, count) for _ in range(runs))),
        Figure(ROW, "opening a ticket", "us", tuple(opening_us(letter, count) for _ in range(runs))),
    ]


def _rates(what: str, rates: Sequence[float], note: str = "") -> Figure:
    return Figure(ROW, what, "/s", tuple(rates), note=note)


def _times(ours: Sequence[float], bare: Sequence[float]) -> tuple[float, ...]:
    return tuple(other / one for one, other in zip(ours, bare, strict=True))
