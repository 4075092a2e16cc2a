"""What `eab doctor` finds of a bus of several nodes: the server that joins them, as this home's settings name it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enhanced_agent_bus.cli.doctor import Finding
from enhanced_agent_bus.cli.render import counted
from enhanced_agent_bus.weakenings import WEAKENINGS

if TYPE_CHECKING:
    from enhanced_agent_bus.settings import Transport
    from enhanced_agent_bus.transports.look import Seen

CLOCK_SECONDS_MAX: Final = 1.0
FILLED_MAX: Final = 0.8
CLOCKS: Final = "have all machines keep time (chrony, systemd-timesyncd): tickets and expiries go by these clocks"


def nodes(home: Path) -> Iterator[Finding]:
    """Whether the transport answers, is the one of this home's bus, and is as strong as it should be."""
    import asyncio

    from enhanced_agent_bus.errors import BusError, TransportAway
    from enhanced_agent_bus.settings import ALONE, load_settings

    try:
        settings = load_settings(home).transport
    except BusError:
        return  # that was found before
    if settings.url == ALONE:
        return
    if settings.url.startswith(ALONE):
        remedy = "name a NATS server in transport.url to join other processes and machines"
        yield Finding("transport", "note", f"{settings.url} joins buses of one process only", remedy)
        return
    yield from _keys(settings)
    try:
        seen = asyncio.run(_look(settings))
    except TransportAway as error:
        remedy = f"{error.remedy}; while it is away no node decides anything" if error.remedy else "see that it runs"
        yield Finding("transport", "wrong", error.message, remedy)
        return
    except BusError as error:
        yield Finding("transport", "wrong", error.message, error.remedy)
        return
    yield from _found(home, settings, seen)


async def _look(settings: Transport) -> Seen:
    from enhanced_agent_bus.cli.demo_nodes import require_client
    from enhanced_agent_bus.transports.access import Access

    files = (settings.creds_file, settings.nkey_file, settings.tls_ca, settings.tls_cert, settings.tls_key)
    access = Access(settings.url, *files)
    require_client(access.shown)
    from enhanced_agent_bus.transports.look import look

    return await look(access, settings.name, replicas=settings.replicas, monitor=settings.monitor)


def _found(home: Path, settings: Transport, seen: Seen) -> Iterator[Finding]:
    ours = _bus_of(home)
    told = f"NATS {seen.version}, {seen.milliseconds:.1f} ms an answer, bus {settings.name}"
    if seen.bus_id is None:
        yield Finding("transport", "ok", f"{told}: no node has opened it there yet")
    elif ours not in (None, seen.bus_id):
        remedy = "join with a new home, or give this bus another transport.name or server"
        yield Finding("transport", "wrong", f"{told} is {seen.bus_id}, and this home is of {ours}", remedy)
    else:
        yield Finding("transport", "ok", f"{told} ({seen.bus_id}), {counted(seen.letters, 'letter')} on the way")
    if seen.filled > FILLED_MAX:
        remedy = "give the stream more room (`nats stream edit`), and start the nodes that these letters wait for"
        told = f"{seen.filled:.0%} of the server's room for letters is taken; what has none waits in its sender's home"
        yield Finding("letters", "wrong", told, remedy)
    for weakness in seen.weaknesses:
        yield Finding(weakness.name, "note", weakness.sentence, WEAKENINGS[weakness.name].remedy)
    if seen.ahead_seconds is not None:
        off = abs(seen.ahead_seconds)
        where = "ahead of" if seen.ahead_seconds > 0 else "behind"
        if off > CLOCK_SECONDS_MAX:
            yield Finding("clock", "note", f"the server's is {off:.1f} s {where} this machine's", CLOCKS)
        else:
            yield Finding("clock", "ok", f"within {CLOCK_SECONDS_MAX:g} s of the server's")


def _keys(settings: Transport) -> Iterator[Finding]:
    from enhanced_agent_bus.errors import ConfigInvalid
    from enhanced_agent_bus.wiring import believed

    try:
        if believed(settings) is None:
            yield Finding("nodes_unpinned", "note", *WEAKENINGS["nodes_unpinned"])
    except ConfigInvalid as error:
        yield Finding("node key", "wrong", error.message, error.remedy)


def _bus_of(home: Path) -> str | None:
    """None, where there is no home yet: it will take the id of the bus."""
    try:
        return str(json.loads((home / "home.json").read_bytes())["bus"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
