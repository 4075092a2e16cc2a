"""The row of nodes that a NATS server joins: measured where that server and nats-py are found."""

from __future__ import annotations

from pathlib import Path

from enhanced_agent_bus.bench.figures import Figure, Missing
from enhanced_agent_bus.bench.house import Scale
from enhanced_agent_bus.bench.jetstream import nats_binary
from enhanced_agent_bus.bench.peers import installed


async def nats(folder: Path, scale: Scale) -> list[Figure]:
    """Requests between nodes beside bare nats-py, then messages to one, two and three nodes. Raises: Missing."""
    binary = nats_binary()
    if binary is None:
        raise Missing("there is no nats-server on PATH, nor in a checkout's .tools/bin")
    if not installed("nats"):
        raise Missing("nats-py is not installed: pip install 'opa-agent-bus[nats]'")
    from enhanced_agent_bus.bench.joined import joined  # noqa: PLC0415 - an extra

    return await joined(binary, folder, scale)
