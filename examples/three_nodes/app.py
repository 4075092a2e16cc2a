"""The agents of three nodes that share one bus: a front desk, those who book, and those who write down.

Each function is the application of one node, with a home of its own whose `eab.toml` names the same transport:

    eab --home front run examples/three_nodes/app.py:front
    eab --home booking run examples/three_nodes/app.py:booking
    eab --home records run examples/three_nodes/app.py:records

`eab demo --nats` runs all three on this machine, with a NATS server of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

from enhanced_agent_bus import AgentBus, Message

WORK_SECONDS = 0.02  # what a booking takes


async def front(bus: AgentBus) -> None:
    """The node that asks: agents that only send."""
    await bus.register("desk", tenant="acme", roles=["planner"])
    await bus.register("globex-desk", tenant="globex", roles=["planner"])


async def booking(bus: AgentBus) -> None:
    """The node that books, and tells a third one."""

    async def book(message: Message) -> dict[str, Any]:
        await asyncio.sleep(WORK_SECONDS)
        trip = message.payload.get("trip", 0)
        await booker.send("notes", {"trip": trip, "note": "flight booked"}, type="event")
        return {"trip": trip, "booking": f"F-{trip:04d}"}

    booker = await bus.register(
        "booker", handler=book, tenant="acme", roles=["worker", "records"], capabilities=["flights"]
    )


async def records(bus: AgentBus) -> None:
    """The node that writes down."""
    notes: list[str] = []

    async def write_down(message: Message) -> None:
        notes.append(f"{message.sender}: {message.payload.get('note', message.type)}")

    await bus.register("notes", handler=write_down, tenant="acme", roles=["worker"], topics=["trips"])
