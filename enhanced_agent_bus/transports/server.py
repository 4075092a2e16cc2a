"""What is weaker about NATS servers than acknowledging what is on disk, as far as a client can know it.

A client of an ordinary account is told the version of the server of its connection, its streams and the names of the
servers that hold them, and nothing of `sync_interval`: that stands on the monitoring port of each server alone, and in
what the system account may ask for. What is not known is weak. Not here: asking (monitor).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.monitor import Said, of_one_cluster

VERSION_WANTED: Final = (2, 15)
ALWAYS: Final = "sync_interval: always"


class Weakness(NamedTuple):
    """The name of a weakening, and what it is about these servers."""

    name: str
    sentence: str


def weaknesses(
    access: Access, info: Mapping[str, Any], streams: Sequence[Mapping[str, Any]], said: Sequence[Said], replicas: int
) -> list[Weakness]:
    """From what the connection's server said of itself, how its streams are (STREAM.INFO), and the monitoring ports."""
    configs = [one["config"] for one in streams]
    found = [*_version(info, said), *_encryption(access, info), *_storage(configs, replicas)]
    sync = _sync(info, streams, said)
    return sorted(found if sync is None else [*found, Weakness("nats_sync", sync)])


def _version(info: Mapping[str, Any], said: Sequence[Said]) -> list[Weakness]:
    versions = {str(info.get("version", "")), *(one.version for one in of_one_cluster(info["server_id"], said))}
    old = sorted(version for version in versions if not _is_wanted(version))
    if not old:
        return []
    wanted = ".".join(map(str, VERSION_WANTED))
    return [Weakness("nats_version", f"the NATS server is version {old[0] or 'unknown'}; {wanted} or later is tested")]


def _is_wanted(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= VERSION_WANTED


def _encryption(access: Access, info: Mapping[str, Any]) -> list[Weakness]:
    if info.get("tls_required") or not access.is_remote:
        return []
    return [Weakness("nats_unencrypted", f"{access.shown} is another machine, and the connection has no TLS")]


def _storage(configs: Sequence[Mapping[str, Any]], replicas: int) -> list[Weakness]:
    found = []
    memory = sorted(str(one["name"]) for one in configs if one.get("storage") != "file")
    if memory:
        found.append(Weakness("nats_memory_storage", f"kept in the server's memory alone: {', '.join(memory)}"))
    fewer = sorted(str(one["name"]) for one in configs if int(one.get("num_replicas", 1)) < replicas)
    if fewer:
        found.append(
            Weakness("nats_replicas", f"fewer than the {replicas} replicas of transport.replicas: {', '.join(fewer)}")
        )
    return found


def _sync(info: Mapping[str, Any], streams: Sequence[Mapping[str, Any]], said: Sequence[Said]) -> str | None:
    """None where everything that is acknowledged is known to be on disk first."""
    configs = [one["config"] for one in streams]
    late = sorted(str(one["name"]) for one in configs if one.get("persist_mode") == "async")
    if late:
        return f"acknowledged before they are written (persist_mode async): {', '.join(late)}"
    if not said:
        return _unasked(in_cluster=bool(info.get("cluster")))
    ours = of_one_cluster(info["server_id"], said)
    if not ours:
        return _foreign(said)
    if info.get("cluster"):
        return _sync_of_cluster(info, streams, ours)
    return None if ours[0].always else f"the server acknowledges before fsync; it needs {ALWAYS} under jetstream"


def _unasked(*, in_cluster: bool) -> str:
    if in_cluster:
        return (
            f"whether the servers of the cluster have {ALWAYS} cannot be read through their client ports; "
            "name the monitoring port of each in transport.monitor, with commas"
        )
    return (
        f"whether the server has {ALWAYS} cannot be read through its client port; "
        "name its monitoring port in transport.monitor"
    )


def _sync_of_cluster(info: Mapping[str, Any], streams: Sequence[Mapping[str, Any]], ours: Sequence[Said]) -> str | None:
    """By the names of the servers that hold the bus: names are given once in a cluster, and only ours are looked at."""
    known = {one.name: one.always for one in ours}
    holders = sorted(holding(streams) or {str(info.get("server_name", "")), *known})
    late = [name for name in holders if not known.get(name, True)]
    unknown = [name for name in holders if name not in known]
    if not late and not unknown:
        return None
    always = [name for name in holders if known.get(name)]
    told = [
        f"{', '.join(names)} {what}"
        for names, what in (
            (late, f"acknowledge before fsync and need {ALWAYS} under jetstream"),
            (unknown, "did not say (transport.monitor names no port of theirs that answers)"),
            (always, "sync always"),
        )
        if names
    ]
    return f"of the servers that hold the bus {'; '.join(told)}"


def holding(streams: Sequence[Mapping[str, Any]]) -> set[str]:
    """The names of the servers that any of the streams is on; empty outside a cluster."""
    found = set[str]()
    for one in streams:
        cluster = one.get("cluster") or {}
        replicas = cluster.get("replicas") or ()
        found |= {str(name) for name in (cluster.get("leader"), *(each.get("name") for each in replicas)) if name}
    return found


def _foreign(said: Sequence[Said]) -> str:
    """None of the ports is of a server that we are connected with, or of its cluster."""
    silent = [one.monitor for one in said if not one.id]
    if silent:
        return f"{', '.join(f'{one}/varz' for one in silent)} does not say whether the server has {ALWAYS}"
    return f"{', '.join(one.monitor for one in said)} belongs to another server than the one of transport.url"
