"""A user's program that test_kill.py kills: it sends and handles messages, and notes what it was told and did.

`python killed_program.py HOME CONSTITUTION RUN`. HOME.acks gets the id of each message that was accepted, HOME.effects
a line for each handler run: the id, and how many allow records of it anybody could read at that moment.
"""

import asyncio
import os
import sqlite3
import sys

from enhanced_agent_bus import Agent, Message, Retry, open_bus

MESSAGES = 40
SENDERS = 4


def note(path: str, line: str) -> None:
    """Appends a line in one write, which a kill leaves whole."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def allows(home: str, message_id: str) -> int:
    """How many allow records of this message stand in the log."""
    database = sqlite3.connect(f"file:{home}/bus.db?mode=ro", uri=True)
    query = """SELECT count(*) FROM records WHERE instr(body, CAST(? AS BLOB)) AND instr(body, CAST(? AS BLOB))"""
    (count,) = database.execute(query, (f'"message_id":"{message_id}"', '"verdict":"allow"')).fetchone()
    database.close()
    return int(count)


async def main(home: str, constitution: str, run: str) -> None:
    """Sends MESSAGES from SENDERS tasks and waits for the end of all that waits."""
    failed: set[str] = set()

    async def book(message: Message) -> dict[str, str] | None:
        note(f"{home}.effects", f"{message.id} {allows(home, message.id)}")
        if message.payload["n"] % 4 == 0 and message.id not in failed:
            failed.add(message.id)
            raise ValueError("the first time")
        return {"booked": message.id} if message.payload["n"] % 3 == 0 else None

    async def send(desk: Agent, first: int) -> None:
        for n in range(first, MESSAGES, SENDERS):
            receipt = await desk.send("booker", {"n": n}, id=f"{run}-{n}")
            if receipt.ok:
                note(f"{home}.acks", receipt.message_id)

    async with open_bus(home, constitution=constitution, policy={"workers": 1, "timeout_seconds": 5}) as bus:
        retry = Retry.exponential(attempts=9, base_seconds=0.001, cap_seconds=0.01)
        await bus.register("booker", book, tenant="acme", retry=retry, concurrency=2)
        desk = await bus.register("desk", tenant="acme")
        async with asyncio.TaskGroup() as tasks:
            for first in range(SENDERS):
                tasks.create_task(send(desk, first))
        await bus.wait_idle(timeout=30)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
