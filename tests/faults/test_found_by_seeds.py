"""What seeds have found, as short stories of their own: a bus in virtual time, and the worst moment chosen by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, AuditUnavailable, BusClosed, Message
from enhanced_agent_bus.settings import Settings
from tests.observer import Observer
from tests.virtual import VirtualHome
from tests.virtual_loop import VirtualLoop
from tests.world_rules import about, constitution


class Virtual:
    """A bus with `desk` (a boss) and `booker`, under constitution-1, which lets everything pass."""

    def __init__(self) -> None:
        self.loop = VirtualLoop(Random(1))
        self.watch = Observer(self.loop.time, about)
        known = [constitution(number, set[str](), cross=True, budget=None, cacheable=True) for number in (1, 2)]
        self.digests = [one.loaded.digest for one in known]
        self.home = VirtualHome(self.loop, Random(2), Settings(), known, self.watch)

    async def open(self) -> AgentBus:
        self.watch.opening(self.home.store.size())
        return await self.home.open()

    def run(self, work: Any) -> None:
        try:
            self.loop.run_until_complete(work)
        finally:
            self.loop.close()
        assert not self.loop.errors, self.loop.errors


async def nothing(_: Message) -> None:
    """A handler that is content."""


def test_what_is_accepted_as_the_bus_closes_answers_its_sender() -> None:
    """A message whose allow becomes durable after `close` has returned is kept: who waits for it hears BusClosed."""
    virtual = Virtual()

    async def story() -> None:
        bus = await virtual.open()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", nothing, tenant="acme")
        for turns in range(30):
            task = asyncio.create_task(desk.send("booker", {"turns": turns}))
            await asyncio.sleep(0)
            closing = asyncio.create_task(bus.close(0))
            await asyncio.wait([closing])
            receipts = await asyncio.gather(task, return_exceptions=True)
            for receipt in receipts:
                if not isinstance(receipt, BaseException):
                    with pytest.raises(BusClosed):
                        await receipt.outcome(timeout=60)
            await virtual.home.ledger.close()
            bus = await virtual.open()
            desk = await bus.register("desk", tenant="acme")
        await bus.close()

    virtual.run(story())


def test_a_released_message_that_still_waits_costs_no_time() -> None:
    """Once released, a message is not looked at again for the time until which it was held: the loop stays idle."""
    virtual = Virtual()

    async def story() -> None:
        bus = await virtual.open()
        desk = await bus.register("desk", tenant="acme")
        boss = await bus.register("boss", tenant="acme", roles=["boss"])
        await bus.register("booker", tenant="acme")  # without a handler: it is parked
        receipt = await desk.send("booker", {"kind": "big"})
        assert (await boss.approve(receipt.message_id)).state == "accepted"
        await asyncio.sleep(61)  # it was held for 60 s at most
        before = virtual.loop.turns
        await asyncio.sleep(60)
        assert virtual.loop.turns - before < 100
        await bus.close(0)
        await virtual.home.ledger.close()

    virtual.run(story())


def test_a_cancelled_activation_is_over_before_the_next_one_looks() -> None:
    """What `activate` has returned decides, now and after a restart, though the one before was cancelled on its way."""
    virtual = Virtual()

    async def story() -> None:
        for turns in range(30):
            bus = await virtual.open()
            first = asyncio.create_task(bus.activate(Path("constitution-2")))
            await asyncio.sleep(turns * 1e-4)
            first.cancel()
            active = await bus.activate(Path("constitution-1"))
            await asyncio.gather(first, return_exceptions=True)
            assert bus.status().constitution == active.digest == virtual.digests[0]
            await bus.close()
            await virtual.home.ledger.close()

    virtual.run(story())


def test_status_is_told_while_a_replay_is_taken_back() -> None:
    """A replay that became durable after its asker had given up is ended again; `status` answers all the while."""
    virtual = Virtual()

    async def story() -> None:
        bus = await virtual.open()
        desk = await bus.register("desk", tenant="acme")
        booker = await bus.register("booker", tenant="acme")
        receipt = await desk.send("booker")
        await booker.unregister()
        await bus.register("booker", tenant="acme")
        assert [letter.message_id for letter in bus.dead_letters()] == [receipt.message_id]
        virtual.home.ledger.stall(11.0)  # longer than anybody waits for a disk
        virtual.watch.bus = bus  # which asks for the status whenever the bus has heard of the disk
        with pytest.raises(AuditUnavailable):
            await bus.replay(receipt.message_id)
        await asyncio.sleep(2)
        assert bus.status().accounting["dead_lettered"] == 1
        await bus.close(0)
        await virtual.home.ledger.close()

    virtual.run(story())


def test_no_release_begins_after_close() -> None:
    """An approval that becomes durable as the bus closes releases nothing there, and leaves no task over."""
    virtual = Virtual()

    async def story() -> None:
        for _ in range(5):
            bus = await virtual.open()
            desk = await bus.register("desk", tenant="acme")
            boss = await bus.register("boss", tenant="acme", roles=["boss"])
            await bus.register("booker", nothing, tenant="acme")
            receipt = await desk.send("booker", {"kind": "big"})
            virtual.home.ledger.stall(0.01)
            approving = asyncio.create_task(boss.approve(receipt.message_id))
            await asyncio.sleep(0)
            await bus.close(0)
            assert asyncio.all_tasks() <= {asyncio.current_task(), approving}
            await asyncio.gather(approving, return_exceptions=True)
            await virtual.home.ledger.close()

    virtual.run(story())


def test_what_was_given_up_on_before_a_close_never_runs() -> None:
    """A send that gave up on a silent disk is discarded, though its record becomes durable while the log closes."""
    virtual = Virtual()
    got: list[str] = []

    async def booker(message: Message) -> None:
        got.append(message.id)

    async def story() -> None:
        bus = await virtual.open()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", booker, tenant="acme")
        virtual.home.ledger.stall(12.0)
        sending = asyncio.create_task(desk.send("booker"))
        await asyncio.sleep(1)
        await bus.close(0)  # gives up on its own last record too, a second before that is durable
        await virtual.home.ledger.close()
        with pytest.raises(AuditUnavailable):
            await sending
        bus = await virtual.open()
        await bus.register("booker", booker, tenant="acme")
        await bus.wait_idle(10)
        await bus.close(0)
        await virtual.home.ledger.close()

    virtual.run(story())
    assert not got
