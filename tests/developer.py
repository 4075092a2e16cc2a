"""What the tests of the public surface share: opening a bus, reading a home's log as anybody can, waiting.

It knows the package by its documentation alone: the public names, and the table `records` of `bus.db`.
"""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from enhanced_agent_bus import AgentBus, Message, open_bus
from enhanced_agent_bus.clock import SystemClock
from tests.support import write_constitution

WAITING = ("queued", "in_flight", "retrying", "parked", "held", "handed_over")
ENDS = ("delivered", "refused", "expired", "dead_lettered", "discarded")

# For tests that are not about deadlines: a busy machine may take its time.
PATIENT: Mapping[str, Any] = {"workers": 1, "timeout_seconds": 5}


@asynccontextmanager
async def small_bus(
    folder: Path, rules: Mapping[str, str] | None = None, /, home: str = "home", **settings: Any
) -> AsyncIterator[AgentBus]:
    """The bus of `folder/home` under a constitution of these rules; by default one that admits everything."""
    policies = folder / "policies"
    if rules is not None or not policies.exists():
        write_constitution(policies, rules)
    settings["policy"] = {**PATIENT, **settings.get("policy", {})}
    place = home if home == ":memory:" else folder / home
    async with open_bus(place, constitution=policies, **settings) as bus:
        yield bus


def log(home: Path, kind: str | None = None, **fields: object) -> list[dict[str, Any]]:
    """The records of a home, open or not, in order; those whose fields have these values."""
    database = sqlite3.connect(f"file:{home / 'bus.db'}?mode=ro", uri=True)
    try:
        records = [json.loads(body) for (body,) in database.execute("SELECT body FROM records ORDER BY seq")]
    finally:
        database.close()
    if kind is not None:
        fields["kind"] = kind
    return [record for record in records if all(record.get(key) == value for key, value in fields.items())]


def log_text(home: Path) -> str:
    """Every record of a home, as it is stored."""
    database = sqlite3.connect(f"file:{home / 'bus.db'}?mode=ro", uri=True)
    try:
        return "\n".join(bytes(body).decode() for (body,) in database.execute("SELECT body FROM records ORDER BY seq"))
    finally:
        database.close()


def adds_up(accounting: Mapping[str, int]) -> bool:
    """Whether accepted is the sum of all states, and none is negative."""
    parts = [accounting[state] for state in (*WAITING, *ENDS)]
    return accounting["accepted"] == sum(parts) and min(parts) >= 0 and set(accounting) == {"accepted", *WAITING, *ENDS}


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Waits for a condition. Raises: TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.002)


class Inbox:
    """A handler that keeps what it gets, and returns the answers it was given in turn, then None."""

    def __init__(self, *answers: Any) -> None:
        self.got: list[Message] = []
        self._answers = list(answers)

    async def __call__(self, message: Message) -> Any:
        self.got.append(message)
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Doorman:
    """A handler that waits until it is told to go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.got: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.got.append(message)
        await self.open.wait()


class SteppedClock(SystemClock):
    """The machine's clock, put forward by hand."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def now_us(self) -> int:
        return super().now_us() + int(self.ahead_seconds * 1e6)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_seconds


def ids(messages: Sequence[Message]) -> list[str]:
    """The ids of messages, in order."""
    return [message.id for message in messages]
