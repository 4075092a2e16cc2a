"""P1 to P7 hold in any order of calls that Hypothesis thinks of; one that breaks them is shrunk to the shortest."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.world import World
from tests.world_rules import AGENTS

SHARES = st.sampled_from([0.0, 0.3, 1.0])


class OneBus(RuleBasedStateMachine):
    """What may happen next to a bus in virtual time; the details of each step are drawn from `seed`."""

    world: World

    @initialize(seed=st.integers(0, 2**32))
    def open(self, seed: int) -> None:
        self.world = World(seed)
        self.do(self.world.open())

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        self.world.loop.run_until_complete(work)

    async def begin(self, work: Any, *args: Any) -> None:
        self.world.start(work, *args)

    @rule(name=st.sampled_from(sorted(AGENTS)), count=st.integers(1, 3))
    def act(self, name: str, count: int) -> None:
        if name in self.world.agents:
            for _ in range(count):
                self.do(self.begin(self.world.one_act, self.world.agents[name]))

    @rule(turns=st.integers(0, 20))
    def go_on(self, turns: int) -> None:
        async def some() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.do(some())

    @rule(seconds=st.sampled_from([0.001, 0.1, 2.0, 100.0]))
    def let_pass(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    @precondition(lambda self: self.world.tasks)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        tasks = sorted(self.world.tasks, key=hash)
        tasks[which % len(tasks)].cancel()

    @rule()
    def activate(self) -> None:
        self.do(self.begin(self.world.activate, self.world.bus))

    @rule()
    def recover(self) -> None:
        self.do(self.begin(self.world.one_of_the_recoveries, self.world.bus))

    @rule()
    def replay_or_discard(self) -> None:
        self.do(self.begin(self.world.one_of_the_dead, self.world.bus))

    @rule()
    def approve_or_reject(self) -> None:
        self.do(self.begin(self.world.one_of_the_held, self.world.bus))

    @rule()
    def discard(self) -> None:
        self.do(self.begin(self.world.discard, self.world.bus))

    @rule(name=st.sampled_from(sorted(AGENTS)))
    def leave_and_come(self, name: str) -> None:
        if name in self.world.agents:
            self.do(self.begin(self.world.leave_and_come, self.world.watch.opened, name))

    @rule(engine=SHARES, disk=SHARES, slow=st.sampled_from([0.0, 0.2]))
    def weather(self, engine: float, disk: float, slow: float) -> None:
        weather = self.world.home.weather
        weather.engine, weather.disk, weather.slow = engine, min(disk, 0.9), slow

    @rule(timeout=st.sampled_from([None, 0.0, 0.1]))
    def close_and_open(self, timeout: float | None) -> None:
        self.do(self.world.close(timeout))
        self.world.home.weather.clear_up()
        self.do(self.world.open())

    @rule()
    def crash_and_open(self) -> None:
        self.do(self.world.crash())
        self.do(self.world.open())

    @invariant()
    def nothing_is_broken(self) -> None:
        assert not self.world.watch.found, self.world.watch.story()

    def teardown(self) -> None:
        world = self.world
        try:
            self.do(world.close(None))
            self.do(world.end_well())
        finally:
            world.loop.close()
        assert not world.watch.found, world.watch.story()
        assert not world.loop.errors


@pytest.mark.fuzz
class TestOneBus(OneBus.TestCase):  # type: ignore[misc, valid-type]
    """P1 to P7 hold after every step, and what was acknowledged ends."""

    settings = settings(max_examples=settings.default.max_examples, stateful_step_count=30)  # type: ignore[union-attr]
