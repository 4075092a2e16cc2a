"""What NATS servers say of themselves on their monitoring ports: read here, judged elsewhere (server).

/varz has a server's id, version and `sync_interval`, /routez the ids of the servers that it is joined with:
docs.nats.io/running-a-nats-service/nats_admin/monitoring. A port that says nothing is a value too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final, NamedTuple

import httpx

from enhanced_agent_bus.errors import ConfigInvalid
from enhanced_agent_bus.transports.access import Access

MONITOR_SECONDS_MAX: Final = 2.0


class Said(NamedTuple):
    """What one monitoring port answered; `id` is empty where it is none of a server with JetStream."""

    monitor: str
    id: str = ""
    name: str = ""
    version: str = ""
    always: bool = False  # sync_interval: always
    joined: frozenset[str] = frozenset()  # ids of the other servers of its cluster


async def said_at(monitors: str, access: Access) -> list[Said]:
    """Asks each of the addresses (with commas), all at once; takes a bounded time, and never fails."""
    addresses = [one for one in monitors.split(",") if one]
    if not addresses:
        return []
    try:
        verify = access.context() if access.tls_ca is not None else True
    except ConfigInvalid:  # it could be used when the connection was made
        return [Said(address) for address in addresses]
    async with httpx.AsyncClient(timeout=MONITOR_SECONDS_MAX, trust_env=False, verify=verify) as client:
        return list(await asyncio.gather(*(_said(client, address) for address in addresses)))


async def _said(client: httpx.AsyncClient, monitor: str) -> Said:
    try:
        async with asyncio.timeout(MONITOR_SECONDS_MAX):
            server = await _read(client, f"{monitor}/varz")
            routes = await _read(client, f"{monitor}/routez") if server.get("cluster", {}).get("name") else {}
        return Said(
            monitor,
            id=str(server["server_id"]),
            name=str(server.get("server_name", "")),
            version=str(server.get("version", "")),
            always=server["jetstream"]["config"].get("sync_always", False) is True,
            joined=frozenset(str(route["remote_id"]) for route in routes.get("routes") or ()),
        )
    except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
        return Said(monitor)


async def _read(client: httpx.AsyncClient, address: str) -> dict[str, Any]:
    """Raises: httpx.HTTPError; ValueError or TypeError, for anything but a document."""
    return dict((await client.get(address)).raise_for_status().json())


def of_one_cluster(server_id: str, said: Collection[Said]) -> list[Said]:
    """Those that are the server of our connection, or joined with it over others that are."""
    ids, found = {server_id}, list[Said]()
    while more := [one for one in said if one.id in ids and one not in found]:
        found += more
        ids |= {other for one in more for other in one.joined}
    return found
