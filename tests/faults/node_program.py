"""One node of several, in a process that tests kill: it asks an agent elsewhere, or is asked.

`python node_program.py HOME CONSTITUTION URL send|serve RUN AHEAD`. `HOME.notes` gets a line of JSON for each message
that was accepted, and for each handler that begins. `send` ends once all that left has an end; `serve` when it is
killed, or its standard input ends. Its clock is AHEAD seconds ahead. It ends with AWAY where no server was there to
begin with, or it went away while the agent was registered.
"""

from __future__ import annotations

import asyncio
import sys

from enhanced_agent_bus import AgentBus, Message, Retry, TransportAway, open_bus
from tests.developer import PATIENT, SteppedClock, until
from tests.faults.killed_program import note

MESSAGES = 30
SENDERS = 3
AWAY = 3


async def send(bus: AgentBus, home: str, run: str) -> None:
    """Sends MESSAGES from SENDERS tasks, and waits for the ends of everything that ever left this home."""
    desk = await bus.register("desk", tenant="acme")
    await until(lambda: any(one.id == "booker" for one in bus.agents()), 60)

    async def some(first: int) -> None:
        for n in range(first, MESSAGES, SENDERS):
            receipt = await desk.send("booker", {"n": n}, id=f"{run}-{n}")
            if receipt.ok:
                note(home, told=receipt.message_id, digest=receipt.digest)

    await asyncio.gather(*(some(first) for first in range(SENDERS)))
    async with asyncio.timeout(200):
        while bus.queue():  # noqa: ASYNC110 - it may take as long as the server waits for a receiver that died
            await asyncio.sleep(0.05)


async def serve(bus: AgentBus, home: str, run: str) -> None:
    """Handles messages until nobody wants that any more."""

    async def book(message: Message) -> dict[str, str] | None:
        note(home, ran=message.id, digest=message.digest, run=run)
        return {"booked": message.id} if message.payload["n"] % 3 == 0 else None

    retry = Retry.exponential(attempts=99, base_seconds=0.001, cap_seconds=0.01)
    await bus.register("booker", book, tenant="acme", retry=retry, concurrency=2)
    await asyncio.to_thread(sys.stdin.read)


async def main(home: str, constitution: str, url: str, what: str, run: str, ahead: str) -> int:
    """One life of the node; its exit status."""
    clock = SteppedClock()
    clock.ahead_seconds = float(ahead)
    transport = {"url": url, "lease_seconds": 3}  # what a dead node had in its hands comes again after three of them
    opening = open_bus(
        home,
        constitution=constitution,
        transport=transport,
        policy=PATIENT,
        clock=clock,
        limits={"expires_seconds": 86400},
    )
    try:
        async with opening as bus:
            await (send if what == "send" else serve)(bus, home, run)
    except TransportAway:  # raised by opening and registering alone: what is sent gets a receipt
        return AWAY
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
