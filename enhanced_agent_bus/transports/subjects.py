"""What a bus is called on a NATS server: its streams, its subjects, and what JetStream is asked about them.

No connection is made here: what a node needs to be allowed is made of the same names (permissions).
"""

from __future__ import annotations

from typing import Final

API: Final = "$JS.API."
ACK: Final = "$JS.ACK."
#: A bucket's name has no hyphen, so that this one and the bus's own names cannot meet.
SERVERS: Final = "own-servers"

INFO: Final = "INFO"

AGENTS: Final = "agent"
#: The kinds of boxes (ports.Letter), each with a stream of its own: how its name and its subjects begin.
_KINDS: Final = {AGENTS: ("EAB", "box"), "node": ("EAB-NODES", "node"), "notices": ("EAB-NOTICES", "notices")}
KINDS: Final = tuple(_KINDS)


def kind_of(box: str) -> str:
    """The kind of a box; of one that is called otherwise, that of the agents'."""
    kind = box.partition(".")[0]
    return kind if kind in _KINDS else AGENTS


def letters_stream(bus: str, kind: str = AGENTS) -> str:
    """The stream with the letters of a bus in boxes of one kind."""
    return f"{_KINDS[kind][0]}_{bus}"


def letters_front(bus: str, kind: str = AGENTS) -> str:
    """Before the token of a box."""
    return f"eab.{bus}.{_KINDS[kind][1]}."


def inbox_front(bus: str) -> str:
    """Before what no two use: where answers and letters come. Not below `_INBOX`, which others may hear."""
    return f"eab.{bus}.inbox."


def bucket_name(bus: str, bucket: str) -> str:
    """As `nats kv` calls it."""
    return f"EAB_{bus}-{bucket}"


def bucket_stream(name: str) -> str:
    """The stream below a key-value store."""
    return f"KV_{name}"


def bucket_front(name: str) -> str:
    """Before a key."""
    return f"$KV.{name}."


def stream_info(stream: str) -> str:
    """How a stream is."""
    return f"STREAM.INFO.{stream}"


def stream_create(stream: str) -> str:
    """Make it."""
    return f"STREAM.CREATE.{stream}"


def stream_update(stream: str) -> str:
    """Change it."""
    return f"STREAM.UPDATE.{stream}"


def message_get(stream: str) -> str:
    """Read one message of it."""
    return f"STREAM.MSG.GET.{stream}"


def consumer_create(stream: str, consumer: str) -> str:
    """Make a consumer, or bring it to what is said."""
    return f"CONSUMER.CREATE.{stream}.{consumer}"


def consumer_next(stream: str, consumer: str) -> str:
    """Pull."""
    return f"CONSUMER.MSG.NEXT.{stream}.{consumer}"
