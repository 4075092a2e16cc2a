"""Plausible entries for the ledger, as the bus would make them, and homes filled with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.ledger.home import open_home
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.ports import Entry, FactChange, Ledger, Move, Opening

CONSTITUTION = "c" * 64


def envelope(number: int, *, recipient: str = "booker", note: str = "a trip") -> Envelope:
    """Message `number` of desk's."""
    message_id = f"desk/order-{number}"
    body = b'{"note":"%s","trip":%d}' % (note.encode(), number)
    salt = sha256(message_id.encode()).digest()
    return Envelope(
        id=message_id,
        type="command",
        priority=1,
        sender="desk",
        tenant="acme",
        recipient=recipient,
        recipient_tenant="acme",
        topic=None,
        conversation=message_id,
        cause=None,
        created_us=1_700_000_000_000_000 + number,
        expires_us=1_700_003_600_000_000 + number,
        hops=0,
        headers={"trace": "1"} if number % 2 else {},
        body=body,
        salt=salt,
        commitment=sha256(salt + body).hexdigest(),
        headers_commitment=sha256(salt + b'{"trace":"1"}').hexdigest() if number % 2 else None,
        digest=sha256(body + message_id.encode()).hexdigest(),
    )


def decision(
    number: int,
    *,
    verdict: str = "allow",
    state: str = "queued",
    facts: Sequence[FactChange] = (),
    **changes: Any,
) -> Entry:
    """The record of a decision on message `number`, which is opened unless the verdict is refuse."""
    message = envelope(number, **changes)
    decision_id = f"{message.id}#{number:04x}"
    fields = {
        "message_id": message.id,
        "sender_n": number,
        "digest": message.digest,
        "conversation": message.conversation,
        "cause": None,
        "sender": message.sender,
        "tenant": message.tenant,
        "recipient": message.recipient,
        "recipient_tenant": message.recipient_tenant,
        "topic": None,
        "type": message.type,
        "priority": message.priority,
        "hops": 0,
        "attempt": 1,
        "verdict": verdict,
        "code": "policy_denied" if verdict == "refuse" else None,
        "reasons": [{"rule": "spending", "code": "over_budget"}] if verdict == "refuse" else [],
        "decision_id": decision_id,
        "constitution": CONSTITUTION,
        "revision": 3,
        "engine": {"name": "embedded", "opa": "1.22.2"},
        "cached_from": None,
        "why": "send",
        "previous": None,
        "input": {"message": {"id": message.id, "type": message.type}, "sender": {"id": message.sender}},
        "payload": message.commitment,
        "headers": message.headers_commitment,
        "eval_us": 40,
    }
    opening = None if verdict == "refuse" else Opening(message, state, decision_id, b"{}", b"[]", 0)
    keep = message if verdict == "refuse" else None
    return Entry("decision", fields, message.id, opening=opening, keep=keep, facts=facts)


def move(
    number: int, row: int, *, was: str = "queued", state: str = "delivered", code: str | None = None, **changes: Any
) -> Entry:
    """The outcome record of message `number`, and its new state."""
    message = envelope(number)
    decision_id = f"{message.id}#{number:04x}"
    fields = {
        "message_id": message.id,
        "decision_id": decision_id,
        "state": state,
        "code": code,
        "attempt": 1,
        "duration_us": 7,
        "error": None,
    }
    new = Move(
        row=row,
        was=was,
        state=state,
        attempts=1,
        due_us=0,
        since_us=5,
        code=code,
        error=None,
        decision_id=decision_id,
        added=b"{}",
        expires_us=message.expires_us,
        reply_id=None,
        forget=False,
    )._replace(**changes)
    return Entry("outcome", fields, message.id, move=new, certain=True)


def putting(ledger: Ledger, entry: Entry) -> asyncio.Future[int]:
    """Puts an entry; the future has its seq once it is durable, or raises what `done` was told."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def done(seq: int, error: BusError | None) -> None:
        if error is None:
            future.set_result(seq)
        else:
            future.set_exception(error)

    entry.done = done
    ledger.put(entry)
    return future


async def put_all(ledger: Ledger, entries: Iterable[Entry]) -> list[int]:
    """Puts entries together and waits until all are durable."""
    return list(await asyncio.gather(*[putting(ledger, entry) for entry in entries]))


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; the caller bounds the time."""
    while not condition():  # noqa: ASYNC110 - files and other threads set no event
        await asyncio.sleep(0.005)


async def open_ledger(home: Path, **settings: Any) -> SqliteLedger:
    """The ledger of a home, made where there is none."""
    locked = open_home(home)
    try:
        return await SqliteLedger.open(locked, clock=SystemClock(), **settings)
    except BaseException:
        locked.release()
        raise


async def fill(home: Path, messages: int, *, checkpoint_records: int = 1000, ended: int | None = None) -> int:
    """A home with so many messages, `ended` of them delivered (all by default); returns how many records it has."""
    ledger = await open_ledger(home, checkpoint_records=checkpoint_records)
    await put_all(ledger, [Entry("opened", {"security_state": []})])
    for start in range(0, messages, 50):
        numbers = range(start, min(start + 50, messages))
        rows = await put_all(ledger, [decision(number) for number in numbers])
        over = [move(n, row) for n, row in zip(numbers, rows, strict=True) if ended is None or n < ended]
        await put_all(ledger, over)
    await put_all(ledger, [Entry("closed", {"security_state": []})])
    await ledger.close()
    return ledger.size()
