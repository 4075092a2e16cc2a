"""A user's program that test_workflow.py kills: runs of one workflow at once, and what its handlers did.

`python workflow_program.py HOME CONSTITUTION TICKET...`. HOME.effects gets a line for each handler run: the
message's id, and how often anybody could read at that moment that it was delivered. Prints the results as JSON.
"""

import asyncio
import dataclasses
import json
import os
import sqlite3
import sys
from typing import Any

from enhanced_agent_bus import Agent, AgentBus, AuditUnavailable, Message, open_bus
from enhanced_agent_bus.workflow import Call, Result, Step, Workflow

CHANGE = Workflow(
    "change",
    [
        Step("design", to="worker", payload=lambda so_far: {"ticket": so_far.input["ticket"]}, undo=Call()),
        Step("test", to="worker", after=["design"], payload=lambda so_far: dict(so_far.replies["design"]),
             accept=lambda reply: reply["ticket"] != 2),
        Step("review", to="worker", after=["design"], undo=Call(payload=lambda so_far: dict(so_far.input))),
        Step("deploy", to="worker", after=["test", "review"], payload=lambda so_far: dict(so_far.input), undo=Call()),
    ],
)  # fmt: skip


def delivered(home: str, message_id: str) -> int:
    """How many records say that this message was delivered."""
    database = sqlite3.connect(f"file:{home}/bus.db?mode=ro", uri=True)
    query = "SELECT count(*) FROM records WHERE instr(body, CAST(? AS BLOB)) AND instr(body, CAST(? AS BLOB))"
    (count,) = database.execute(query, (f'"message_id":"{message_id}"', '"state":"delivered"')).fetchone()
    database.close()
    return int(count)


async def finished(bus: AgentBus, desk: Agent, ticket: int) -> Result:
    """The result of a run, whatever the disk does meanwhile."""
    while True:
        try:
            return await CHANGE.run(bus, desk, {"ticket": ticket}, id=f"change-{ticket}")
        except AuditUnavailable:
            await asyncio.sleep(0.05)


async def main(home: str, constitution: str, *tickets: str) -> None:
    """A change for each ticket: 2 fails in its tests."""

    async def work(message: Message) -> dict[str, Any]:
        file = os.open(f"{home}.effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{message.id} {delivered(home, message.id)}\n".encode())
        os.close(file)
        return {"ticket": message.payload.get("ticket")}

    async with open_bus(home, constitution=constitution, policy={"workers": 1, "timeout_seconds": 5}) as bus:
        await bus.register("worker", work, tenant="acme", concurrency=4)
        desk = await bus.register("desk", tenant="acme")
        results = await asyncio.gather(*(finished(bus, desk, int(ticket)) for ticket in tickets))
    sys.stdout.write(json.dumps([dataclasses.asdict(result) for result in results]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
