"""Operators in a run in virtual time: they activate, replay, discard, approve, and the weather changes."""

from __future__ import annotations

from pathlib import Path

from enhanced_agent_bus import AgentBus, AgentExists
from tests.virtual import Constitution
from tests.world_agents import Agents
from tests.world_rules import AGENTS


class Operators(Agents):
    """What operators do beside the agents."""

    constitutions: list[Constitution]

    async def operating(self) -> None:
        dice, bus, opened = self.dice, self.bus, self.watch.opened
        for _ in range(dice.randrange(8)):
            await self.pause()
            kind = dice.random()
            if kind < 0.25:
                await self.perhaps_cancelled(self.activate, bus)
            elif kind < 0.45:
                await self.perhaps_cancelled(self.one_of_the_dead, bus)
            elif kind < 0.6:
                await self.perhaps_cancelled(self.one_of_the_held, bus)
            elif kind < 0.7 and self.agents:
                name = dice.choice(sorted(self.agents))
                await self.perhaps_cancelled(self.leave_and_come, opened, name)
            elif kind < 0.75:
                await self.perhaps_cancelled(self.discard, bus)
            elif kind < 0.85:
                await self.perhaps_cancelled(self.one_of_the_recoveries, bus)
            else:
                self.change_weather()
        self.home.weather.clear_up()

    def change_weather(self) -> None:
        weather, dice = self.home.weather, self.dice
        weather.engine = dice.choice([0, 0.3, 1])
        weather.disk = dice.choice([0, 0, 0.1, 0.5])
        weather.slow = dice.choice([0, 0.1, 0.3])
        weather.gate = dice.choice([0, 0.2, 1])
        weather.outage_seconds = dice.choice([0.01, 2])

    async def activate(self, bus: AgentBus) -> None:
        name = self.dice.choice([*(one.loaded.name for one in self.constitutions), "no-such"])
        active = await bus.activate(Path(name))
        self.watch.note("activate returned", active.digest[:4])
        if bus.status().constitution != self.watch.active:
            self.watch.blame("P1: another constitution decides than the log says")

    async def discard(self, bus: AgentBus) -> None:
        if waiting := bus.queue():
            await bus.discard(self.dice.choice(waiting).message_id, reason="no longer")

    async def one_of_the_recoveries(self, bus: AgentBus) -> None:
        """What failed is held back, tried now, or given up, whatever it waits for."""
        if found := [one for one in bus.recoveries() if one.state in ("pending", "waiting", "retrying")]:
            work = self.dice.choice([bus.pause_recovery, bus.resume_recovery, bus.cancel_recovery])
            await work(self.dice.choice(found).message_id)

    async def one_of_the_dead(self, bus: AgentBus) -> None:
        """Or of those that are parked until somebody says what to do."""
        ids = [one.message_id for one in bus.dead_letters()]
        ids += [one.message_id for one in bus.queue() if one.state == "parked"]
        if not ids:
            return
        message_id = self.dice.choice(ids)
        if self.dice.random() < 0.7:
            receipt = await bus.replay(message_id)
            self.watch.note("replayed", message_id, receipt.state, receipt.code)
        else:
            await bus.discard(message_id, reason="no longer wanted")
            if self.watch.lives[message_id].state != "discarded":
                self.watch.blame(f"P5: {message_id} was discarded, and is {self.watch.lives[message_id].state}")

    async def one_of_the_held(self, bus: AgentBus) -> None:
        held = bus.held()
        bosses = [agent for name, agent in self.agents.items() if "boss" in AGENTS[name][1]]
        if not held or not bosses:
            return
        message_id, boss = self.dice.choice(held).message_id, self.dice.choice(bosses)
        if self.dice.random() < 0.8:
            await boss.approve(message_id)
        else:
            await boss.reject(message_id, reason="no")

    async def leave_and_come(self, opened: int, name: str) -> None:
        await self.agents[name].unregister()
        await self.pause()
        try:
            await self.register(opened, name)
        except AgentExists:
            self.watch.note("taken up by another", name)
