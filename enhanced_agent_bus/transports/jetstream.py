"""JetStream's interface for programs, as far as the bus needs it: requests in JSON, and messages with a number.

docs.nats.io/reference/reference-protocols/nats_api_reference. It is asked through `Line`, which has one deadline for
all of it, and not through nats-py's own wrapping, which waits on when a connection has gone.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson
from nats.aio.msg import Msg

from enhanced_agent_bus.errors import TransportAway
from enhanced_agent_bus.transports.line import Line
from enhanced_agent_bus.transports.subjects import ACK, API

NANO: Final = 1_000_000_000
NOT_FOUND: Final = 404
#: Error codes of the server (server/errors.json).
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
NOT_ENABLED: Final = frozenset({10039, 10076})  # for this account; at all
STREAM_EXISTS: Final = 10058
NO_PEERS: Final = 10005  # too few servers are there for so many replicas, or are not known to be there yet
#: Of a cluster: incomplete; without a leader; asked of a server that no longer leads. It passes.
ELECTING: Final = frozenset({10004, 10008, 10009})

_OLD_TOKENS: Final = 9  # of an ack subject without domain and account


class ApiError(Exception):
    """What JetStream answered instead of what it was asked for."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.code = int(error.get("code", 0))
        self.number = int(error.get("err_code", 0))
        super().__init__(str(error.get("description", "an error without a description")))


class Number(NamedTuple):
    """Which message this is, as its ack subject says."""

    times: int  # how often it was handed out
    stream: int
    consumer: int
    taken_ns: int
    pending: int  # how many more there are


def answer_of(message: Msg) -> dict[str, Any]:
    """The JSON of an answer. Raises: ApiError; TransportAway, when it is none, or an election goes on."""
    try:
        answer = orjson.loads(message.data)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise TransportAway("what answers in JetStream's place is not JetStream")
    if error := answer.get("error"):
        refused = ApiError(error)
        if refused.number in ELECTING:
            raise TransportAway(f"JetStream has no leader: {refused}", remedy="it may pass; see that its servers run")
        raise refused
    return answer


async def asked(line: Line, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request of JetStream's own interface. Raises: ApiError, TransportAway."""
    return answer_of(await line.ask(f"{API}{what}", b"" if body is None else orjson.dumps(body)))


async def published(line: Line, subject: str, body: bytes, headers: dict[str, str] | None = None) -> int:
    """The number of a message that is stored, durable. Raises: ApiError, TransportAway."""
    return int(answer_of(await line.ask(subject, body, headers))["seq"])


def number_of(message: Msg) -> Number | None:
    """None where it does not come from a stream."""
    if not message.reply.startswith(ACK):
        return None
    parts = message.reply.split(".")
    rest = parts[4:9] if len(parts) == _OLD_TOKENS else parts[6:11]
    return Number(*map(int, rest))


def away(line: Line, error: ApiError) -> TransportAway:
    """JetStream's no, in the words of the port."""
    return TransportAway(f"{line.url} did not take it: {error}", remedy="it may pass; else look into the server's log")
