"""A bus of two or three nodes on a bad network, in an order that a seed repeats: nothing is lost, or runs unallowed.

The buses and the network are the real ones; time, disks and engines are those of `tests/virtual.py`, and
`tests/sea_watch.py` watches. `EAB_NODE_SEEDS=n` runs n seeds; `make soak` runs them by the clock.
"""

from __future__ import annotations

import itertools
import os
import time
from functools import partial
from typing import Final

import pytest

from tests.sea import Node, Sea

SEEDS: Final = 20


def one_seed(seed: int) -> Sea:
    """Runs a seed. Raises: AssertionError, with the story and how to hear it again."""
    sea = Sea(seed)
    sea.run()
    if sea.watch.found:
        again = f"EAB_NODE_SEED={seed} .venv/bin/python -m pytest tests/faults/test_node_seeds.py -k chosen"
        pytest.fail(f"seed {seed}: {sea.watch.story()}\n\nagain: {again}", pytrace=False)
    return sea


def test_no_seed_breaks_a_promise_of_several_nodes(seed: int) -> None:
    """Each acknowledged message ends once where it was sent, no handler runs without both nodes' allow, and all adds
    up, though letters come twice and late, answers are lost, and nodes are killed, cut off, closed and moved.
    """
    count = int(os.environ.get("EAB_NODE_SEEDS", SEEDS))
    first = seed * 1_000_000 if "EAB_NODE_SEEDS" in os.environ else 0
    runs = sum(sum(one_seed(first + number).watch.ran.values()) for number in range(count))
    assert runs > count, "these seeds do hardly anything"


@pytest.mark.skipif("EAB_NODE_SEED" not in os.environ, reason="EAB_NODE_SEED names the seed")
def test_the_chosen_seed() -> None:
    """One seed, to look at."""
    one_seed(int(os.environ["EAB_NODE_SEED"]))


@pytest.mark.soak
def test_seeds_of_several_nodes_for_long(seed: int, soak_seconds: float) -> None:
    """As many seeds as there is time for."""
    until = time.monotonic() + soak_seconds
    for number in itertools.count((seed + 1) * 1_000_000):
        one_seed(number)
        if time.monotonic() > until:
            break


def test_a_node_that_dies_between_a_reply_and_the_end_of_its_request_ends_it_later() -> None:
    """The reply is on disk, what it answers is not ended: the letter comes again, and says how that ended."""
    for seed in range(6):
        sea = Sea(seed)
        sea.storm.calm()
        for node in sea.nodes:
            node.watch.dies_on_reply = partial(_kill, node)
        sea.run()
        assert not sea.watch.found, sea.watch.story()


def _kill(node: Node) -> None:
    node.home.loop.create_task(node.kill())
