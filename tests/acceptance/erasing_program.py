"""A user's program that test_erasure.py kills while it erases: `python erasing_program.py HOME MESSAGE_ID`."""

import asyncio
import sys

from enhanced_agent_bus import open_bus


async def main(home: str, message_id: str) -> None:
    """Opens the bus of the home and erases one message."""
    async with open_bus(home, policy={"workers": 1, "timeout_seconds": 5}) as bus:
        await bus.erase("message", message_id, reason="request 4711")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
