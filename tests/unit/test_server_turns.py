"""Whose turn it is to ask a server, and when nobody asks: no sockets, no waiting."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from enhanced_agent_bus.engines import turns as turns_module
from enhanced_agent_bus.engines.breaker import FAILURES_MAX, PAUSE_SECONDS, PAUSE_SECONDS_MAX, Breaker
from enhanced_agent_bus.engines.turns import Turns


async def settled() -> None:
    """Lets every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tenant_takes_no_more_than_it_leaves() -> None:
    """One alone has half, the next half of the rest; there is always a place for one more tenant."""
    turns = Turns(64)
    held = Counter[str]()
    tasks = []
    for tenant in ("a", "b", "c", "d", "e", "f"):
        for _ in range(64):

            async def ask(tenant: str = tenant) -> None:
                assert await turns.take(tenant)
                held[tenant] += 1

            tasks.append(asyncio.ensure_future(ask()))
        await settled()
    assert held == {"a": 32, "b": 16, "c": 8, "d": 4, "e": 2, "f": 1}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_tenants_come_in_turn() -> None:
    """One with many questions waiting does not go before one with a few."""
    turns = Turns(2)
    order: list[str] = []

    async def ask(tenant: str) -> None:
        assert await turns.take(tenant)
        order.append(tenant)

    assert await turns.take("a")
    tasks = [asyncio.ensure_future(ask("a")) for _ in range(4)]
    await settled()
    assert order == []  # one is left for somebody else
    tasks += [asyncio.ensure_future(ask(tenant)) for tenant in ("b", "c", "b")]
    await settled()
    assert order == ["b"]
    for tenant in ("a", "b", "a", "c", "b", "a", "a", "a"):
        if tenant in ("a", *order):
            turns.give_back(tenant)
            await settled()
    assert sorted(order) == ["a", "a", "a", "a", "b", "b", "c"]
    assert order.index("c") < 4
    await asyncio.gather(*tasks)


async def test_places_are_never_lost_and_never_doubled(seed: int) -> None:
    """Whatever is taken, given back and given up, at most 8 hold a place, and at the end all are free again."""
    chance = random.Random(seed)
    turns = Turns(8)
    holding = 0

    async def ask(tenant: str) -> None:
        nonlocal holding
        assert await turns.take(tenant)
        holding += 1
        assert holding <= 8
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            holding -= 1
            turns.give_back(tenant)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(2000):
        tasks.append(asyncio.ensure_future(ask(chance.choice("abcdef"))))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.2:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() or task.exception() is None for task in tasks)
    assert holding == 0
    assert [await turns.take(tenant) for tenant in "abcdefgh"] == [True] * 8


async def test_who_finds_no_room_to_wait_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number waits, a bounded number of one tenant; the next one is no."""
    monkeypatch.setattr(turns_module, "WAITING_MAX", 5)
    monkeypatch.setattr(turns_module, "WAITING_PER_TENANT_MAX", 3)
    turns = Turns(1)
    assert await turns.take("a")
    tasks = [asyncio.ensure_future(turns.take(tenant)) for tenant in "aaabb"]
    await settled()
    assert not await turns.take("a")
    assert not await turns.take("c")
    for tenant in ("a", "a", "b", "a", "b"):
        turns.give_back(tenant)
        await settled()
    assert all(await asyncio.gather(*tasks))


def test_failures_in_a_row_open_the_breaker_and_an_answer_closes_it() -> None:
    """Others in between do not count, and after the pause one question is the probe."""
    breaker = Breaker()
    for _ in range(FAILURES_MAX - 1):
        breaker.failed(0.0)
    breaker.answered()
    for _ in range(FAILURES_MAX - 1):
        assert breaker.may_ask(0.0)
        breaker.failed(0.0)
    assert breaker.may_ask(0.0)
    breaker.failed(0.0)
    assert not breaker.may_ask(PAUSE_SECONDS / 2)
    assert breaker.may_ask(PAUSE_SECONDS)
    assert not breaker.may_ask(PAUSE_SECONDS)  # one is on its way
    breaker.answered()
    assert breaker.may_ask(PAUSE_SECONDS)


def test_a_probe_that_fails_waits_longer_and_never_too_long() -> None:
    """Twice as long each time, and no longer than promised; late failures of others change nothing."""
    breaker, now, pauses = Breaker(), 0.0, []
    for _ in range(FAILURES_MAX):
        breaker.failed(now)
    for _ in range(8):
        began = now
        while not breaker.may_ask(now):
            now += 0.01
        pauses.append(round(now - began, 1))
        breaker.failed(now)
        breaker.failed(now + 5)  # it went out before the breaker opened
    assert pauses[0] <= pauses[1] < pauses[2] <= PAUSE_SECONDS_MAX
    assert max(pauses) <= PAUSE_SECONDS_MAX + 0.1 <= 10


def test_a_probe_that_says_nothing_leaves_room_for_the_next() -> None:
    """Cancelled, or past its deadline with a server that lives: the next question is the probe."""
    breaker = Breaker()
    for _ in range(FAILURES_MAX):
        breaker.failed(0.0)
    assert breaker.may_ask(1.0)
    breaker.left()
    assert breaker.may_ask(1.0)
    breaker.answered()
    assert not breaker.open
