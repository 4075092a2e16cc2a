"""How many places a tenant may have, by who else is about: no bus, and a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest

from enhanced_agent_bus.delivery.shares import LATELY_SECONDS, SHARE, SHARE_MORE, SharedPlaces


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(places: SharedPlaces, tenant: str, wanted: int) -> int:
    """How many of so many places a tenant gets at once."""
    return sum(places.take(tenant) for _ in range(wanted))


def test_a_tenant_that_is_alone_has_all_places() -> None:
    """Nobody is held back for nobody."""
    assert taken(SharedPlaces(100, Clock()), "flood", 200) == 100


def test_beside_another_it_has_a_share() -> None:
    """As soon as another tenant has sent one message, and as long as it was here lately."""
    clock = Clock()
    places = SharedPlaces(100, clock)
    assert places.take("quiet")
    places.give_back("quiet")
    assert taken(places, "flood", 50) == SHARE
    for _ in range(2):  # periods
        clock.now += LATELY_SECONDS
        places.take("flood")
    taken(places, "flood", 200)
    assert places.taken == 100


def test_what_is_under_way_already_stays() -> None:
    """A flood that was there before gets no new place until it is down to its share; the other tenant gets its own."""
    places = SharedPlaces(100, Clock())
    assert taken(places, "flood", 90) == 90
    assert places.take("quiet")
    for _ in range(90 - SHARE):
        assert not places.take("flood")
        places.give_back("flood")
    assert not places.take("flood")
    places.give_back("flood")
    assert places.take("flood")


def test_where_all_have_much_all_get_much() -> None:
    """The share grows with what the tenant with the least has had at once."""
    clock = Clock()
    places = SharedPlaces(100, clock)
    assert places.take("quiet")
    assert places.take("busy")
    assert places.take("quiet")
    assert places.take("busy")
    clock.now += LATELY_SECONDS
    assert taken(places, "busy", 90) == SHARE + SHARE_MORE - 2


async def settled() -> None:
    """Lets every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_goes_when_its_tenant_may_again() -> None:
    """In order, one for each place that is given back, and all of them once the other tenant has gone."""
    clock = Clock()
    places = SharedPlaces(100, clock)
    places.take("quiet")
    places.give_back("quiet")
    assert taken(places, "flood", SHARE) == SHARE
    waiting = [asyncio.ensure_future(places.wait(60, "flood")) for _ in range(20)]
    await settled()
    assert [one.done() for one in waiting] == [False] * 20
    places.give_back("flood")
    await settled()
    assert [one.done() for one in waiting] == [True] + [False] * 19
    for _ in range(2):
        clock.now += 2 * LATELY_SECONDS
        places.take("flood")
        places.give_back("flood")
    await settled()
    assert await asyncio.gather(*waiting) == [True] * 20


@pytest.mark.parametrize("gets_it", [False, True])
async def test_one_that_is_cancelled_keeps_no_place(*, gets_it: bool) -> None:
    """Whether its place came in the same moment or not."""
    places = SharedPlaces(1, Clock())
    assert places.take("a")
    waiting = asyncio.ensure_future(places.wait(60, "b"))
    await settled()
    if gets_it:
        places.give_back("a")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    if not gets_it:
        places.give_back("a")
    assert places.taken == 0
    assert places.take("b")
