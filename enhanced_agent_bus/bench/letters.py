"""A ticket letter as it goes between nodes, for measuring what sealing and opening one takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import orjson

from enhanced_agent_bus.admission.seal import seal
from enhanced_agent_bus.bench.nodes import routes
from enhanced_agent_bus.bench.workload import directory
from enhanced_agent_bus.ledger.checkpoint import Signer
from enhanced_agent_bus.letters.tickets import Ticket, open_ticket, seal_ticket
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.verdict import Party

ORIGIN: Final = "bench/sender"
CREATED_US: Final = 1_790_000_000_000_000
EXPIRES_US: Final = CREATED_US + 3_600_000_000
SALT_BYTES: Final = 32


class SealedLetter(NamedTuple):
    """A message of the workload, its ticket, and both as one signed letter."""

    signer: Signer
    envelope: Envelope
    ticket: Ticket
    body: bytes


def a_letter() -> SealedLetter:
    """Of the first route."""
    load, profiles, signer = routes(1)[0], directory(), Signer.fresh(ORIGIN)
    sender, recipient = (Party(one.id, one.tenant, (), ()) for one in (profiles[load.sender], profiles[load.recipient]))
    message_id = "019a0000-0000-7000-8000-000000000000"
    envelope = seal(
        id=message_id,
        type=load.type,
        priority=load.priority,
        sender=sender,
        recipient=recipient,
        topic=None,
        conversation=load.conversation,
        cause=None,
        created_us=CREATED_US,
        expires_us=EXPIRES_US,
        hops=0,
        headers={},
        headers_bytes=b"{}",
        body=orjson.dumps(load.payload, option=orjson.OPT_SORT_KEYS),
        salt=bytes(SALT_BYTES),
    )
    ticket = Ticket(
        ORIGIN, 1, f"{message_id}#1", envelope.digest, "0" * 64, 1, CREATED_US, EXPIRES_US, "0" * 32
    )  # fmt: skip
    return SealedLetter(signer, envelope, ticket, seal_ticket(signer, envelope, ticket))


def sealing_us(letter: SealedLetter, count: int) -> float:
    """Processor time, in microseconds."""
    return _us(lambda: seal_ticket(letter.signer, letter.envelope, letter.ticket), count)


def opening_us(letter: SealedLetter, count: int) -> float:
    """Processor time, in microseconds."""
    keys = {ORIGIN: letter.signer.key.public_key()}
    return _us(lambda: open_ticket(letter.body, keys), count)


def _us(call: Callable[[], object], count: int) -> float:
    started = time.thread_time()
    for _ in range(count):
        call()
    return (time.thread_time() - started) / count * 1e6
