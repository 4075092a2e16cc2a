"""The first decision of a new process: `python -m enhanced_agent_bus.bench.first CONSTITUTION FOLDER`."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from pathlib import Path

import orjson

from enhanced_agent_bus import open_bus
from enhanced_agent_bus.bench import workload


async def main(constitution: Path, folder: Path) -> None:
    """Opens a new home, registers two agents, sends once, and prints how long that took."""
    profiles = workload.directory()
    load = next(itertools.islice(workload.admitted(profiles), 1))
    began = time.monotonic()
    async with open_bus(folder / "home", constitution=constitution) as bus:
        sender, recipient = (profiles[name] for name in (load.sender, load.recipient))
        agent = await bus.register(sender.id, tenant=sender.tenant, roles=sender.roles)
        await bus.register(recipient.id, tenant=recipient.tenant, roles=recipient.roles)
        receipt = await agent.send(load.recipient, load.payload, type=load.type, priority=load.priority)
        decided = time.monotonic()
        receipt.raise_for_refusal()
    print(orjson.dumps({"open_seconds": decided - began, "decided_monotonic": decided}).decode())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
