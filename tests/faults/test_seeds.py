"""A day of two tenants in a second: everything that can go wrong, in an order that a seed repeats, and P1 to P7 hold.

The bus is the real one; its time, disk and engine are those of `tests/virtual.py`, and `tests/observer.py` watches.
A failure prints the command that repeats it. `EAB_SEEDS=n` runs n seeds; `make soak` runs them by the clock.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Final

import pytest

from tests.world import World

SEEDS: Final = 1000  # in `make test`, in CHUNKS parts
CHUNKS: Final = 8


def one_seed(seed: int) -> World:
    """Runs a seed. Raises: AssertionError, with the story and how to hear it again."""
    world = World(seed)
    world.run()
    if world.watch.found:
        again = f"EAB_SEED={seed} .venv/bin/python -m pytest tests/faults/test_seeds.py -k chosen"
        pytest.fail(f"seed {seed}: {world.watch.story()}\n\nagain: {again}", pytrace=False)
    return world


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_seed_breaks_a_promise(seed: int, chunk: int) -> None:
    """Whatever fails in whatever order, P1 to P7 hold, what was acknowledged ends, and a close leaves nothing over.

    The same seeds each time, so that a change is judged by what it changes; with EAB_SEEDS, and in `make soak`, others.
    """
    count = int(os.environ.get("EAB_SEEDS", SEEDS)) // CHUNKS
    run = seed if "EAB_SEEDS" in os.environ else 0
    first = (run * CHUNKS + chunk) * 1_000_000
    runs = sum(one_seed(first + number).watch.runs for number in range(count))
    assert runs > count, "these seeds do hardly anything"


@pytest.mark.skipif("EAB_SEED" not in os.environ, reason="EAB_SEED names the seed")
def test_the_chosen_seed() -> None:
    """One seed, to look at."""
    one_seed(int(os.environ["EAB_SEED"]))


@pytest.mark.soak
def test_seeds_for_long(seed: int, soak_seconds: float) -> None:
    """As many seeds as there is time for."""
    until = time.monotonic() + soak_seconds
    for number in itertools.count((seed * CHUNKS + CHUNKS) * 1_000_000):
        one_seed(number)
        if time.monotonic() > until:
            break


def test_a_seed_repeats_itself() -> None:
    """The same seed tells the same story, to the microsecond."""
    for seed in range(5):
        assert one_seed(seed).watch.history == one_seed(seed).watch.history
