"""The agents of a back office: who reads the web, who decides, who checks, who pays.

eab run examples/back_office/app.py:build --input examples/back_office/messages.jsonl --at 2026-03-04T10:30:00Z
"""

from __future__ import annotations

from typing import Any

from enhanced_agent_bus import AgentBus, Message


async def build(bus: AgentBus) -> None:
    """Registers everybody; `eab run` calls this with the bus it has opened."""

    async def listen(_message: Message) -> None:
        pass

    async def pay(message: Message) -> dict[str, Any]:
        return {"paid": message.payload["amount"]}

    await bus.register("reader", handler=listen, tenant="acme", capabilities=["web"])
    await bus.register("analyst", handler=listen, tenant="acme")
    await bus.register("helper", handler=listen, tenant="acme")
    await bus.register("clerk", handler=listen, tenant="acme")
    await bus.register("buyer", handler=listen, tenant="acme")
    await bus.register("checker", handler=listen, tenant="acme", roles=["checker"])
    await bus.register("controller", tenant="acme", roles=["controller"])
    await bus.register("bank", handler=pay, tenant="acme", capabilities=["payments"])
