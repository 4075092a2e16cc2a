"""What is weaker about a NATS server than acknowledging what is on disk, as far as a client can read it.

A client of an ordinary account is told the server's version and its streams, and nothing of `sync_interval`: that
stands on the monitoring port alone (`/varz`), and in what the system account may ask for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import httpx

from enhanced_agent_bus.transports.access import Access

VERSION_WANTED: Final = (2, 15)
MONITOR_SECONDS_MAX: Final = 2.0


class Weakness(NamedTuple):
    """The name of a weakening, and what it is about this server."""

    name: str
    sentence: str


async def inspected(
    access: Access, info: Mapping[str, Any], streams: list[Mapping[str, Any]], monitor: str, replicas: int
) -> list[Weakness]:
    """From what the server said of itself, its streams' configurations, and its monitoring port where one is named."""
    found = [*_version(info), *_encryption(access, info), *_storage(streams, replicas)]
    sync = await _sync(info, streams, monitor)
    return sorted(found if sync is None else [*found, sync])


def _version(info: Mapping[str, Any]) -> list[Weakness]:
    version = str(info.get("version", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and tuple(map(int, numbers.groups())) >= VERSION_WANTED:
        return []
    wanted = ".".join(map(str, VERSION_WANTED))
    return [Weakness("nats_version", f"the NATS server is version {version or 'unknown'}; {wanted} or later is tested")]


def _encryption(access: Access, info: Mapping[str, Any]) -> list[Weakness]:
    if info.get("tls_required") or not access.is_remote:
        return []
    return [Weakness("nats_unencrypted", f"{access.shown} is another machine, and the connection has no TLS")]


def _storage(streams: list[Mapping[str, Any]], replicas: int) -> list[Weakness]:
    found = []
    memory = sorted(str(one["name"]) for one in streams if one.get("storage") != "file")
    if memory:
        found.append(Weakness("nats_memory_storage", f"kept in the server's memory alone: {', '.join(memory)}"))
    fewer = sorted(str(one["name"]) for one in streams if int(one.get("num_replicas", 1)) < replicas)
    if fewer:
        found.append(
            Weakness("nats_replicas", f"fewer than the {replicas} replicas of transport.replicas: {', '.join(fewer)}")
        )
    return found


async def _sync(info: Mapping[str, Any], streams: list[Mapping[str, Any]], monitor: str) -> Weakness | None:
    late = sorted(str(one["name"]) for one in streams if one.get("persist_mode") == "async")
    if late:
        return Weakness("nats_sync", f"acknowledged before they are written (persist_mode async): {', '.join(late)}")
    if info.get("cluster"):
        return Weakness("nats_sync", "whether every server of a cluster has sync_interval: always is not known here")
    if not monitor:
        return Weakness(
            "nats_sync",
            "whether the server has sync_interval: always cannot be read through its client port; "
            "name its monitoring port in transport.monitor",
        )
    try:
        async with httpx.AsyncClient(timeout=MONITOR_SECONDS_MAX, trust_env=False) as client:
            answer = (await client.get(f"{monitor}/varz")).raise_for_status().json()
        config, server = answer["jetstream"]["config"], answer["server_id"]
        always = config.get("sync_always", False) is True
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return Weakness("nats_sync", f"{monitor}/varz does not say whether the server has sync_interval: always")
    if server != info.get("server_id"):
        return Weakness("nats_sync", f"{monitor} belongs to another server than the one of transport.url")
    if always:
        return None
    return Weakness("nats_sync", "the server acknowledges before fsync; it needs sync_interval: always under jetstream")
