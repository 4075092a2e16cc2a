"""Freezing a message: one envelope with its commitments and digest, from bytes that were checked already."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.verdict import Party

SALT_BYTES: Final = 32
_UUID_FIXED: Final = (0xF << 76) | (0b11 << 62)  # version and variant among the 80 bits after the time
_UUID_7: Final = (0x7 << 76) | (0b10 << 62)
_POOL_BYTES: Final = 8192  # random bytes are fetched many at a time: one system call costs as much as the hash


class Randomness:
    """Random bytes from the operating system, a pool at a time. A forked child never shares what is left of a pool."""

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        self._source = source
        self._pool = b""
        self._at = 0
        os.register_at_fork(after_in_child=self._empty)

    def _empty(self) -> None:
        self._pool = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        start = self._at
        end = start + count
        if end > len(self._pool):
            self._pool = self._source(_POOL_BYTES)
            start, end = 0, count
        self._at = end
        return self._pool[start:end]

    def uuid7(self, now_us: int) -> str:
        """A UUIDv7 (RFC 9562 §5.7) of this instant."""
        chance = int.from_bytes(self.take(10), "big")
        value = (now_us // 1000 << 80) | (chance & ~_UUID_FIXED) | _UUID_7
        digits = f"{value:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def instant(us: int) -> str:
    """RFC 3339 UTC with microseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(us // 1_000_000)) + f".{us % 1_000_000:06d}Z"


def from_instant(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 instant. Raises: ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def commitment(salt: bytes, content: bytes) -> str:
    """The hex sha256 of a 32-byte salt and canonical bytes (contract §10)."""
    return sha256(salt + content).hexdigest()


def seal(
    *,
    id: str,
    type: str,
    priority: int,
    sender: Party,
    recipient: Party,
    topic: str | None,
    conversation: str,
    cause: str | None,
    created_us: int,
    expires_us: int,
    hops: int,
    headers: dict[str, str],
    headers_bytes: bytes,
    body: bytes,
    salt: bytes,
) -> Envelope:
    """Makes the envelope. All text in it has passed the id patterns, so that nothing needs escaping below.

    The digest is the sha256 of this JSON object in canonical form, the payload's commitment in the payload's place.
    """
    payload = sha256(salt + body).hexdigest()
    headers_digest = sha256(salt + headers_bytes).hexdigest() if headers else None
    cause_text = f'"{cause}"' if cause is not None else "null"
    headers_text = f'"{headers_digest}"' if headers_digest is not None else "null"
    topic_text = f'"{topic}"' if topic is not None else "null"
    digest = sha256(
        f'{{"cause":{cause_text},"conversation":"{conversation}","created_us":{created_us},"expires_us":{expires_us},'
        f'"headers":{headers_text},"hops":{hops},"id":"{id}","payload":"{payload}","priority":{priority},'
        f'"recipient":"{recipient.id}","recipient_tenant":"{recipient.tenant}","sender":"{sender.id}",'
        f'"tenant":"{sender.tenant}","topic":{topic_text},"type":"{type}"}}'.encode()
    ).hexdigest()
    return Envelope(
        id,
        type,
        priority,
        sender.id,
        sender.tenant,
        recipient.id,
        recipient.tenant,
        topic,
        conversation,
        cause,
        created_us,
        expires_us,
        hops,
        headers,
        body,
        salt,
        payload,
        headers_digest,
        digest,
    )
