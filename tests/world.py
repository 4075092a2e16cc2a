"""A run in virtual time, drawn from a seed: buses opened one after the other on one disk, and everybody who takes part.

What agents do is in `world_agents.py`, what operators do in `world_operators.py`, what it is all drawn from in
`world_rules.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from random import Random
from typing import Final

import orjson

from enhanced_agent_bus import AuditUnavailable, BusError
from tests.observer import Observer
from tests.virtual import VirtualGate, VirtualHome
from tests.virtual_loop import Stuck, VirtualLoop
from tests.world_operators import Operators
from tests.world_rules import AGENTS, about, constitution, settings_of

HOURS_2: Final = 7200.0


class World(Operators):
    """Everybody's part in one seed's run."""

    def __init__(self, seed: int) -> None:
        dice = Random(seed)
        self.loop = VirtualLoop(dice)
        watch = Observer(self.loop.time, about)
        self.budget = dice.choice([None, None, 12])
        cacheable = dice.random() < 0.7
        self.constitutions = [
            constitution(
                number,
                set(dice.sample(["odd", "rare", "costly"], dice.randrange(3))),
                cross=dice.random() < 0.7,
                budget=self.budget,
                cacheable=cacheable,
            )
            for number in range(1, 5)
        ]
        settings = settings_of(dice)
        home = VirtualHome(self.loop, dice, settings, self.constitutions, watch)
        home.engine.heard = watch.engine_said
        if dice.random() < 0.3:
            home.gates = [VirtualGate(dice, home.weather)]
            home.gates[0].heard, watch.gated = watch.gate_said, True
        watch.places = dict.fromkeys(AGENTS, settings.limits.mailbox)
        super().__init__(dice, watch, home, itertools.count(1))

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self.everything())
        except Stuck as stuck:
            self.watch.blame(f"stuck: {stuck}")
        finally:
            self.loop.close()
        for context in self.loop.errors:
            self.watch.blame(f"asyncio was told: {context.get('message')} {context.get('exception')!r}")

    async def everything(self) -> None:
        dice = self.dice
        for _ in range(dice.choice([1, 1, 2, 3])):
            if not await self.open():
                continue
            if dice.random() < 0.4:
                self.change_weather()
            actors = [self.start(self.acting, name) for name in AGENTS]
            self.start(self.operating)
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random() * dice.choice([0.01, 0.1, 1]))
            else:
                await asyncio.wait(actors)
            if dice.random() < 0.4:
                await self.crash()
            else:
                await self.close(dice.choice([None, 0, 0.1]))
        await self.end_well()

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def open(self) -> bool:
        opened = self.watch.opening(self.home.store.size())
        try:
            self.bus = await self.home.open()
        except AuditUnavailable:
            self.home.weather.clear_up()
            await self.home.ledger.close()
            return False
        self.watch.bus = self.bus
        self.watch.concurrency = {}
        self.agents = {}
        for name in AGENTS:
            if self.calm or self.dice.random() < 0.9:
                try:
                    await self.register(opened, name)
                except BusError as error:
                    self.watch.note("not registered", name, type(error).__name__)
        return True

    async def close(self, timeout: float | None) -> None:
        drained = await self.bus.close(timeout)
        self.watch.note("closed", drained)
        self.watch.closing()
        await self.home.ledger.close()
        await self.all_let_go()

    async def crash(self) -> None:
        self.watch.note("crash")
        self.home.ledger.crash()
        self.watch.opening(self.home.store.size())  # what goes on now is not seen by anybody
        self.watch.closing()
        self.home.weather.clear_up()
        me = asyncio.current_task()
        while left := [task for task in asyncio.all_tasks() if task is not me]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=1)
        self.tasks.clear()

    async def all_let_go(self) -> None:
        """After a close everybody who waits is answered, and no task is left over."""
        me = asyncio.current_task()
        while self.tasks:
            done, late = await asyncio.wait(self.tasks, timeout=100)
            if not done:
                self.watch.blame(f"after close there still wait: {late}")
                break
        left = [task for task in asyncio.all_tasks() if task is not me]
        if left:
            self.watch.blame(f"left over after close: {left}")
            for task in left:
                task.cancel()
        self.tasks.clear()

    async def end_well(self) -> None:
        """The sky clears: what was acknowledged ends, all is where it is said to be, and nothing comes after."""
        self.calm = True
        self.home.weather.clear_up()
        if not await self.open():
            self.watch.blame("it does not open again")
            return
        try:
            await self.bus.wait_idle(HOURS_2)
        except TimeoutError:
            self.watch.blame(f"P5: never idle: {self.bus.queue()}")
            return
        while not self.home.ledger.quiet:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0)
        self.watch.at_rest()
        for message_id in self.watch.acknowledged:
            if self.watch.lives[message_id].state not in ("held", "parked"):  # whose retry is manual
                self.watch.outcome(message_id, await self.bus.outcome(message_id, timeout=1))
        self._check_budget()
        await self.close(None)
        runs = self.watch.runs
        await asyncio.sleep(HOURS_2)
        if self.watch.runs != runs:
            self.watch.blame("a handler ran after everything had ended")

    def _check_budget(self) -> None:
        """Two messages never both pass on the same remaining budget, and each counts once."""
        spent = dict.fromkeys(AGENTS, 0)
        for life in self.watch.lives.values():
            payload = orjson.loads(life.body)
            if life.state == "delivered":
                spent[self.watch.sent[payload["n"]].sender] += payload.get("cost", 0)
        for name, sum_of in spent.items():
            if self.budget is not None and sum_of > self.budget:
                self.watch.blame(f"{name} has spent {sum_of} of {self.budget}")
