"""Your agents. `eab run app.py:build --input messages.jsonl` sends the lines of messages.jsonl between them.

Every message is decided by the constitution in policies/ and recorded in .eab before its handler starts. Change
anything and run it again.
"""

from __future__ import annotations

from typing import Any

from enhanced_agent_bus import AgentBus, Message


async def build(bus: AgentBus) -> None:
    """Registers the agents; their roles are what the rules in policies/ go by."""
    notes: list[str] = []

    async def book(message: Message) -> dict[str, Any]:
        # What a handler returns travels back to the sender as a message of its own, decided as well.
        return {"booking": f"B-{message.payload.get('trip', 0)}"}

    async def pay(message: Message) -> dict[str, Any]:
        return {"paid": message.payload["amount"]}  # the rule daily_budget has seen to it that there is one

    async def write_down(message: Message) -> None:
        notes.append(f"{message.sender}: {message.payload.get('note', '')}")

    # Planners give commands. An agent that only sends needs no handler.
    await bus.register("desk", tenant="acme", roles=["planner"])
    # Workers do things; `records` clears the booker for personal data, `notes` is not cleared.
    await bus.register("booker", handler=book, tenant="acme", roles=["worker", "records"], capabilities=["flights"])
    await bus.register("payments", handler=pay, tenant="acme", roles=["worker"], capabilities=["payments"])
    await bus.register("notes", handler=write_down, tenant="acme", roles=["worker"], topics=["trips"])
    # Another tenant on the same bus.
    await bus.register("globex-notes", handler=write_down, tenant="globex", roles=["worker"], topics=["trips"])
