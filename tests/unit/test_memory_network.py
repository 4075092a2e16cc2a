"""The network within a process: what goes wrong in it on purpose, made-up time, and loops of several threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import pytest

from enhanced_agent_bus.errors import TransportAway
from enhanced_agent_bus.ports import Handed, Item, Letter
from enhanced_agent_bus.transports.memory import MemoryNetwork, open_memory
from tests.virtual_loop import VirtualLoop

BOX = "agent.b"


class Storm:
    """Doubles, delays and loses as a seed says."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self.share = 0.3

    def arrivals(self, letter: Letter) -> Sequence[float]:  # noqa: ARG002 - each as any other
        return [self._dice.random() if self._dice.random() < self.share else 0.0] * (
            1 + (self._dice.random() < self.share)
        )

    def answer_lost(self, what: str) -> bool:  # noqa: ARG002 - the same
        return self._dice.random() < self.share


def virtually(work: Callable[[], Awaitable[Any]], seed: int = 1) -> Any:
    """Runs it on a loop whose time is made up."""
    loop = VirtualLoop(Random(seed))
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(work())
        assert loop.errors == []
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.parametrize("seed", range(10))
def test_a_storm_loses_nothing_and_repeats_itself(seed: int) -> None:
    """With doubled, late and reordered letters and lost answers, all arrive; the same seed gives the same story."""

    async def story() -> list[tuple[str, int]]:
        storm = Storm(Random(seed))
        network = MemoryNetwork(ack_seconds=5.0, now_us=lambda: 0, disturbance=storm)
        sender, receivers = network.join(), [network.join(), network.join()]
        handed: list[tuple[str, int]] = []
        tasks: set[asyncio.Task[None]] = set()

        async def settle(one: Handed) -> None:
            try:
                await one.done()
            except TransportAway:
                return

        def take(one: Handed) -> None:
            handed.append((one.letter.id, one.times))
            task = asyncio.ensure_future(settle(one))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        for receiver in receivers:
            await receiver.serve(BOX, take, at_once=3)
        for number in range(50):
            while True:
                try:
                    await sender.post(Letter(BOX, str(number), b""))
                    break
                except TransportAway:
                    await asyncio.sleep(0.01)
        network.cut(receivers[0])
        while len({ident for ident, _ in handed}) < 50:  # noqa: ASYNC110 - of made-up time
            await asyncio.sleep(1.0)
        return handed

    first = virtually(story, seed)
    assert len(first) > 50
    assert [ident for ident, _ in first] != sorted((ident for ident, _ in first), key=int)
    assert virtually(story, seed) == first


def test_time_is_that_of_the_loop() -> None:
    """Redelivery after a day, and a window of duplicates of a year, take no time where it is made up."""

    async def story() -> None:
        network = MemoryNetwork(ack_seconds=86_400.0, dedup_seconds=31_536_000.0, now_us=lambda: 7)
        node, held = network.join(), list[Handed]()
        end = await node.serve(BOX, held.append, at_once=4)
        await node.post(Letter(BOX, "1", b""))
        while len(held) < 2:  # noqa: ASYNC110 - of made-up time
            await asyncio.sleep(3600.0)
        assert asyncio.get_running_loop().time() >= 86_400.0
        assert [(one.times, one.taken_us) for one in held] == [(1, 7), (2, 7)]
        await held[0].done()
        await node.post(Letter(BOX, "1", b""))
        await asyncio.sleep(31_536_000.0)
        assert len(held) == 2
        await node.post(Letter(BOX, "1", b""))
        await asyncio.sleep(1.0)
        assert [one.times for one in held] == [1, 2, 1]
        await end()

    virtually(story)


def test_who_is_killed_gives_back_at_once_and_who_is_cut_off_after_the_time() -> None:
    """A dead transport's letters wait for nothing; one that is away has its own until they are due."""

    async def story() -> None:
        network = MemoryNetwork(ack_seconds=100.0, now_us=lambda: 0)
        dead, away, other = network.join(), network.join(), network.join()
        lost, kept, held = list[Handed](), list[Handed](), list[Handed]()
        await dead.serve("agent.dead", lost.append, at_once=1)
        await away.serve("agent.away", kept.append, at_once=1)
        for box in ("agent.dead", "agent.away"):
            await other.post(Letter(box, "1", b""))
            await asyncio.sleep(1.0)
            await other.serve(box, held.append, at_once=4)
        assert len(lost) == len(kept) == 1
        network.kill(dead)
        network.cut(away)
        await asyncio.sleep(1.0)
        assert [one.letter.box for one in held] == ["agent.dead"]
        await held[0].done()
        await asyncio.sleep(100.0)
        assert [one.letter.box for one in held] == ["agent.dead", "agent.away"]
        network.mend(away)
        await kept[0].done()  # late, and as good as the other's
        await asyncio.sleep(200.0)
        assert [one.letter.box for one in held] == ["agent.dead", "agent.away"]

    virtually(story)


def test_buses_of_several_threads_can_be_joined() -> None:
    """Each is told on its own loop, and the last one that leaves takes the network with it."""
    ready, seen, stop = threading.Event(), list[str](), threading.Event()

    async def receive() -> None:
        node = open_memory("memory://threads")
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.get_ident()

        def changed(item: Item) -> None:
            assert threading.get_ident() == thread
            seen.append(item.key)

        def take(handed: Handed) -> None:
            assert threading.get_ident() == thread
            seen.append(handed.letter.id)
            loop.create_task(handed.done()).add_done_callback(lambda _: done.set())

        await (await node.bucket("facts")).watch(changed)
        await node.serve(BOX, take, at_once=1)
        ready.set()
        await done.wait()
        await node.close()
        stop.set()

    async def send() -> None:
        node = open_memory("memory://threads")
        await (await node.bucket("facts")).put("key", b"")
        await node.post(Letter(BOX, "letter", b""))
        await asyncio.to_thread(stop.wait, 20)
        await node.close()
        fresh = open_memory("memory://threads")
        assert await (await fresh.bucket("facts")).get("key") is None
        await fresh.close()

    other = threading.Thread(target=lambda: asyncio.run(receive()))
    other.start()
    assert ready.wait(20)
    asyncio.run(send())
    other.join(20)
    assert sorted(seen) == ["key", "letter"]
