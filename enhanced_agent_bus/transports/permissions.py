"""What one node has to be allowed on a NATS server, and nothing beside it: made of the names that the transport uses.

All nodes of a bus need the same: any of them may serve any agent of any tenant. What a node may do with what it reads
is decided by keys and by the bus itself, not here.
"""

from __future__ import annotations

import json
import shlex
from typing import NamedTuple

from enhanced_agent_bus.ports import BUCKETS
from enhanced_agent_bus.transports.names import checked_bus
from enhanced_agent_bus.transports.subjects import (
    ACK,
    API,
    INFO,
    KINDS,
    SERVERS,
    bucket_front,
    bucket_name,
    bucket_stream,
    consumer_create,
    consumer_next,
    inbox_front,
    letters_front,
    letters_stream,
    message_get,
    stream_create,
    stream_info,
    stream_update,
)


class Permissions(NamedTuple):
    """Subjects, with wildcards."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def permissions(bus: str) -> Permissions:
    """Of one node of the bus of that name. Raises: ValueError, when it cannot be one."""
    checked_bus(bus)
    asked, said = [INFO], []
    for kind in KINDS:
        letters = letters_stream(bus, kind)
        asked += [*_kept(letters), stream_update(letters), consumer_next(letters, "*")]
        said += [f"{letters_front(bus, kind)}*", f"{ACK}{letters}.>", f"{ACK}*.*.{letters}.>"]
    for bucket in (*BUCKETS, SERVERS):
        name = bucket_name(bus, bucket)
        asked += [*_kept(bucket_stream(name)), message_get(bucket_stream(name))]
        said.append(f"{bucket_front(name)}>")
    return Permissions(tuple(sorted([*(f"{API}{what}" for what in asked), *said])), (f"{inbox_front(bus)}>",))


def _kept(stream: str) -> list[str]:
    """The first node makes it; of the letters' ones a node that needs a longer duplicate window raises that."""
    return [stream_info(stream), stream_create(stream), consumer_create(stream, "*")]


def as_config(bus: str, allowed: Permissions) -> str:
    """A variable for the server's configuration, which users of that file are given as `permissions: $NAME`."""
    name = f"EAB_{bus.upper().replace('-', '_')}_NODE"
    lines = [
        f"# What a node of the bus {bus} may do. Include this file and name it where the node's user is:",
        f"#   authorization {{ users: [ {{ nkey: U..., permissions: ${name} }} ] }}",
        f"{name} {{",
    ]
    for what, subjects in zip(allowed._fields, allowed, strict=True):
        lines += [f"  {what}: {{", "    allow: [", *(f"      {json.dumps(one)}" for one in subjects), "    ]", "  }"]
    return "\n".join([*lines, "}"])


def as_nsc(allowed: Permissions, user: str) -> str:
    """The command that gives an nsc user this and nothing else."""
    options = [
        line
        for option, subjects in zip(("--allow-pub", "--allow-sub"), allowed, strict=True)
        for line in (f"  {option} {shlex.quote(one)}" for one in subjects)
    ]
    return " \\\n".join([f"nsc edit user --name {shlex.quote(user)}", *options])
