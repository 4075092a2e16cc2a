"""Places and order for one recipient, under cancellation at every await."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from enhanced_agent_bus.delivery.mailbox import AGEING, Mailbox


def filled(items: list[tuple[str, int]]) -> Mailbox[str]:
    """A mailbox in which these wait, each with its priority."""
    mailbox: Mailbox[str] = Mailbox(1000)
    for item, priority in items:
        assert mailbox.reserve()
        mailbox.put(item, priority)
    return mailbox


async def turns(count: int = 5) -> None:
    """Lets the others run for so many turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_higher_priorities_first_and_in_order_within_one() -> None:
    """Of what waits the highest priority starts first; within one, first come, first served."""
    mailbox = filled([("low", 0), ("a", 1), ("high", 2), ("b", 1), ("top", 3), ("c", 1)])
    assert [await mailbox.take() for _ in range(6)] == ["top", "high", "a", "b", "c", "low"]


async def test_nobody_is_starved() -> None:
    """Under an endless stream of critical messages a low one starts after at most AGEING starts."""
    mailbox = filled([("low", 0)])
    for number in range(AGEING):
        mailbox.put(f"critical-{number}", 3)
        if await mailbox.take() == "low":
            return
    pytest.fail("the low one never started")


async def test_places_are_given_in_the_order_of_asking() -> None:
    """Who waits gets the next place; nobody overtakes, not even one that asks in the moment when it is free."""
    mailbox: Mailbox[str] = Mailbox(1)
    assert mailbox.reserve()
    got: list[str] = []

    async def ask(name: str) -> None:
        assert await mailbox.wait_for_place(60)
        got.append(name)

    tasks = [asyncio.create_task(ask(name)) for name in "abc"]
    await turns()
    for expected in ("a", "ab", "abc"):
        mailbox.release()
        assert not mailbox.reserve()
        await turns()
        assert "".join(got) == expected
    await asyncio.gather(*tasks)
    mailbox.release()
    assert mailbox.taken == 0
    assert mailbox.reserve()


async def test_a_place_that_comes_too_late_goes_to_the_next() -> None:
    """Who waits no longer than its time hears False, and stands in nobody's way."""
    mailbox: Mailbox[str] = Mailbox(1)
    assert mailbox.reserve()
    patient = asyncio.create_task(mailbox.wait_for_place(60))
    assert not await mailbox.wait_for_place(0.01)
    mailbox.release()
    assert await patient
    assert mailbox.taken == 1


@pytest.mark.parametrize("released_first", [False, True])
async def test_a_cancelled_wait_gives_its_place_back(released_first: bool) -> None:  # noqa: FBT001 - a parameter
    """Cancelled before its place came, or in the same instant: the next in line gets it, none is lost."""
    mailbox: Mailbox[str] = Mailbox(1)
    assert mailbox.reserve()
    first, second = (asyncio.create_task(mailbox.wait_for_place(60)) for _ in range(2))
    await turns()
    if released_first:
        mailbox.release()
        first.cancel()
    else:
        first.cancel()
        mailbox.release()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second
    assert mailbox.taken == 1


@pytest.mark.parametrize("put_first", [False, True])
async def test_a_cancelled_taker_passes_its_message_on(put_first: bool) -> None:  # noqa: FBT001 - a parameter
    """A worker that is cancelled as it is woken leaves the message to another that sleeps."""
    mailbox: Mailbox[str] = Mailbox(10)
    first, second = (asyncio.create_task(mailbox.take()) for _ in range(2))
    await turns()
    if put_first:
        mailbox.put("x", 1)
        first.cancel()
    else:
        first.cancel()
        mailbox.put("x", 1)
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(5):
        assert await second == "x"
    assert mailbox.ready == 0


async def test_what_is_removed_is_not_taken() -> None:
    """A message that expired in the mailbox is out of it; its place stays until it is released."""
    mailbox: Mailbox[str] = Mailbox(10)
    one, two = "one", "two"
    for item in (one, two):
        assert mailbox.reserve()
        mailbox.put(item, 1)
    assert mailbox.remove(one)
    assert not mailbox.remove(one)
    assert mailbox.items() == [two]
    assert mailbox.taken == 2
    assert await mailbox.take() == two


async def test_close_wakes_who_waits_for_a_place() -> None:
    """After close nobody gets a place by waiting, and nobody hangs."""
    mailbox: Mailbox[str] = Mailbox(1)
    assert mailbox.reserve()
    waiting = asyncio.create_task(mailbox.wait_for_place(3600))
    await turns()
    mailbox.close()
    assert not await waiting
    assert not await mailbox.wait_for_place(3600)
    mailbox.release()
    assert mailbox.taken == 0


class Machine(RuleBasedStateMachine):
    """Senders that wait for places and workers that take, in any order, cancelled at any time."""

    LIMIT = 3

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.mailbox: Mailbox[int] = Mailbox(self.LIMIT)
        self.places = 0  # that somebody holds
        self.waiting: list[asyncio.Task[bool]] = []
        self.takers: list[asyncio.Task[int]] = []
        self.number = 0
        self.inside: set[int] = set()
        self.taken: Counter[int] = Counter()

    def settle(self) -> None:
        self.loop.run_until_complete(turns(6))
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            if not task.cancelled():
                assert task.result()
                self.places += 1
        for taker in [taker for taker in self.takers if taker.done()]:
            self.takers.remove(taker)
            if not taker.cancelled():
                self.taken[taker.result()] += 1
                self.inside.discard(taker.result())

    @rule()
    def ask(self) -> None:
        self.waiting.append(self.loop.create_task(self.mailbox.wait_for_place(3600)))
        self.settle()

    @rule()
    def ask_at_once(self) -> None:
        if self.mailbox.reserve():
            self.places += 1

    @precondition(lambda self: self.places)
    @rule(priority=st.integers(0, 3))
    def put(self, priority: int) -> None:
        self.number += 1
        self.inside.add(self.number)
        self.mailbox.put(self.number, priority)
        self.settle()

    @precondition(lambda self: self.places)
    @rule(cancel=st.integers(0, 3))
    def release(self, cancel: int) -> None:
        self.mailbox.release()
        self.places -= 1
        for task in self.waiting[:cancel]:
            task.cancel()
        self.settle()

    @rule(cancel=st.integers(0, 3), priority=st.integers(0, 3), after=st.booleans())
    def put_as_takers_are_cancelled(self, cancel: int, priority: int, after: bool) -> None:  # noqa: FBT001 - drawn
        self.number += 1
        self.inside.add(self.number)
        if after:
            self.mailbox.put(self.number, priority)
        for taker in self.takers[:cancel]:
            taker.cancel()
        if not after:
            self.mailbox.put(self.number, priority)
        self.settle()

    @rule()
    def take(self) -> None:
        self.takers.append(self.loop.create_task(self.mailbox.take()))
        self.settle()

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        items = self.mailbox.items()
        if items:
            item = data.draw(st.sampled_from(items))
            assert self.mailbox.remove(item)
            self.inside.discard(item)

    @invariant()
    def places_add_up(self) -> None:
        assert self.mailbox.taken == self.places <= self.LIMIT
        assert not self.waiting or self.places == self.LIMIT

    @invariant()
    def nothing_is_lost_or_taken_twice(self) -> None:
        assert max(self.taken.values(), default=0) <= 1
        assert set(self.mailbox.items()) == self.inside
        assert self.mailbox.ready == len(self.inside)
        assert not (self.takers and self.inside)  # nobody sleeps while something is ready

    def teardown(self) -> None:
        for task in (*self.waiting, *self.takers):
            task.cancel()
        self.loop.run_until_complete(turns(6))
        self.loop.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=30, stateful_step_count=30)
