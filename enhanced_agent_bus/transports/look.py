"""A look at a NATS server as one node of a bus has it, for whoever asks what is wrong. Makes and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from enhanced_agent_bus.errors import ConfigInvalid
from enhanced_agent_bus.ports import BUCKETS
from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.buckets import NatsBucket
from enhanced_agent_bus.transports.jetstream import NOT_ENABLED, NOT_FOUND, ApiError, asked
from enhanced_agent_bus.transports.line import Line
from enhanced_agent_bus.transports.monitor import said_at
from enhanced_agent_bus.transports.server import Weakness, weaknesses
from enhanced_agent_bus.transports.subjects import (
    AGENTS,
    INFO,
    KINDS,
    bucket_name,
    bucket_stream,
    inbox_front,
    letters_stream,
    stream_info,
)

ANSWER_SECONDS: Final = 3.0


class Seen(NamedTuple):
    """What there is."""

    version: str
    milliseconds: float  # of one question and its answer
    weaknesses: list[Weakness]
    bus_id: str | None  # None, where no node has opened that bus yet
    letters: int  # that nobody has settled yet
    filled: float  # how much of the room for letters they take, from 0 to 1; of the kind that has least left
    ahead_seconds: float | None  # of the server's clock before ours


async def look(access: Access, bus: str, *, replicas: int, monitor: str) -> Seen:
    """Raises: ConfigInvalid; TransportAway."""
    line = Line(
        access, name=f"eab {bus} doctor", inbox=inbox_front(bus), answer_seconds=ANSWER_SECONDS, ping_seconds=60
    )
    try:
        await line.open()
        try:
            return await _look(line, access, bus, replicas, monitor)
        except ApiError as error:
            what = "has no JetStream for this account" if error.number in NOT_ENABLED else f"answers: {error}"
            raise ConfigInvalid(
                f"the server at {line.url} {what}", remedy="start it with a `jetstream` block in its configuration"
            ) from None
    finally:
        await line.close()


async def _look(line: Line, access: Access, bus: str, replicas: int, monitor: str) -> Seen:
    began = time.perf_counter()
    await asked(line, INFO)
    milliseconds = (time.perf_counter() - began) * 1000
    before = time.time()
    first = await _info(line, letters_stream(bus))
    after = time.time()
    others = [await _info(line, letters_stream(bus, kind)) for kind in KINDS if kind != AGENTS]
    letters = [one for one in (first, *others) if one is not None]
    kept = [await _info(line, bucket_stream(bucket_name(bus, bucket))) for bucket in BUCKETS]
    streams = [*letters, *(one for one in kept if one is not None)]
    item = None if first is None else await NatsBucket(line, bucket_name(bus, "bus"), set()).get("id")
    return Seen(
        version=str(line.info.get("version", "")),
        milliseconds=milliseconds,
        weaknesses=weaknesses(access, line.info, streams, await said_at(monitor, access), replicas),
        bus_id=None if item is None or item.value is None else item.value.decode(),
        letters=sum(int(one["state"]["messages"]) for one in letters),
        filled=max(map(_filled, letters), default=0.0),
        ahead_seconds=None if first is None else _ahead(first, before, after),
    )


def _filled(letters: Mapping[str, Any]) -> float:
    room = int(letters["config"].get("max_bytes", -1))
    return int(letters["state"]["bytes"]) / room if room > 0 else 0.0


async def _info(line: Line, stream: str) -> Mapping[str, Any] | None:
    """None, where there is none yet. Raises: ApiError; TransportAway."""
    try:
        return await asked(line, stream_info(stream))
    except ApiError as error:
        if error.code == NOT_FOUND:
            return None
        raise


def _ahead(info: Mapping[str, Any], before: float, after: float) -> float | None:
    """By how much at least: an answer that took long says little."""
    try:
        there = datetime.fromisoformat(info["ts"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
    return there - after if there > after else there - before if there < before else 0.0
