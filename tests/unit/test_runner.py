"""One handler run: within its time, whatever the handler does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import BaseModel

from enhanced_agent_bus.delivery.runner import (
    Alarm,
    Failed,
    Handler,
    Overtaken,
    Returned,
    Threads,
    is_async,
    misfits,
    run,
)
from enhanced_agent_bus.message import Message
from tests.entries import envelope


class Trip(BaseModel):
    """What booker takes."""

    trip: int
    note: str = ""


class Run:
    """Runs handlers as a worker does."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads = threads

    async def __call__(
        self, handler: Handler, *, seconds: float = 20, model: type[BaseModel] | None = None, still: bool = True
    ) -> Returned | Failed | Overtaken:
        threads = None if is_async(handler) else Threads(self.threads, lambda: still)
        alarm = Alarm(this_task())
        try:
            return await run(handler, Message(envelope(7)), model=model, seconds=seconds, alarm=alarm, threads=threads)
        finally:
            alarm.close()


def this_task() -> asyncio.Task[Any]:
    """The task that runs the test."""
    task = asyncio.current_task()
    assert task is not None
    return task


@pytest.fixture
async def attempt() -> AsyncIterator[Run]:
    """Runs one handler after the other, as a worker does."""
    with ThreadPoolExecutor(2) as threads:
        yield Run(threads)


async def test_what_a_handler_returns(attempt: Run) -> None:
    """None, a dict and a model are answers; anything else is a failed attempt that says what to return."""

    class Odd(dict[str, Any]):
        """A dict that is not exactly one."""

    for value, expected in [(None, None), ({"a": 1}, {"a": 1}), (Trip(trip=1), {"trip": 1, "note": ""})]:

        async def answer(_message: Message, value: Any = value) -> Any:
            return value

        assert await attempt(answer) == Returned(expected)
        assert await attempt(lambda _message, value=value: value) == Returned(expected)
    for rubbish in ("text", 1, [], True, Odd(), object(), b"x"):
        result = await attempt(lambda _message, rubbish=rubbish: rubbish)
        assert isinstance(result, Failed)
        assert (result.code, result.error) == ("handler_failed", "TypeError")
        assert type(rubbish).__name__ in result.text


async def test_a_function_that_returns_a_coroutine_is_told_so(attempt: Run) -> None:
    """A plain function that returns a coroutine has not done its work; the coroutine is closed, not forgotten."""

    async def work() -> None: ...

    result = await attempt(lambda _message: work())
    assert isinstance(result, Failed)
    assert "coroutine" in result.text


class Unsayable(Exception):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("why"),
        KeyError("k"),
        StopIteration(),
        StopAsyncIteration(),
        SystemExit(1),
        asyncio.CancelledError(),
        TimeoutError(),
        RecursionError(),
        BaseException("odd"),
        Unsayable(),
        ValueError("\ud800" * 9),
        ExceptionGroup("g", [OSError()]),
        AssertionError("x" * 100_000),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_is_a_failed_attempt(attempt: Run, error: BaseException) -> None:
    """On the loop and in a thread: the type is kept, the text is bounded text, and the worker lives."""

    async def on_loop(_message: Message) -> None:
        raise error

    def in_thread(_message: Message) -> None:
        raise error

    for handler in (on_loop, in_thread):
        result = await attempt(handler)
        assert isinstance(result, Failed), result
        assert result.code == "handler_failed"
        assert not result.never_again
        assert len(result.text.encode()) < 20_000
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_handler_that_hangs_is_ended_at_its_time(attempt: Run) -> None:
    """The attempt fails with handler_timeout, and its task is as it was before: the next one runs undisturbed."""

    async def hangs(_message: Message) -> None:
        await asyncio.Event().wait()

    release = threading.Event()

    def blocks(_message: Message) -> None:
        release.wait(20)

    try:
        for handler in (hangs, blocks):
            result = await attempt(handler, seconds=0.02)
            assert isinstance(result, Failed)
            assert (result.code, result.error) == ("handler_timeout", "TimeoutError")
            task = asyncio.current_task()
            assert task is not None
            assert not task.cancelling()
            await asyncio.sleep(0.03)
            assert await attempt(lambda _message: None) == Returned(None)
    finally:
        release.set()


async def test_a_handler_that_swallows_its_deadline_leaves_nothing_behind(attempt: Run) -> None:
    """It may still answer, late; what follows it is not cancelled in its place."""

    async def swallows(_message: Message) -> dict[str, int]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return {"late": 1}

    assert await attempt(swallows, seconds=0.02) == Returned({"late": 1})
    await asyncio.sleep(0.03)
    assert await attempt(lambda _message: None, seconds=5) == Returned(None)


@pytest.mark.parametrize("seconds", [0.02, 20])
async def test_a_cancellation_from_outside_passes_through(attempt: Run, seconds: float) -> None:
    """Also when the deadline comes in the same instant: whoever closes the bus is not kept waiting."""
    running = asyncio.Event()

    async def hangs(_message: Message) -> None:
        running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(attempt(hangs, seconds=seconds))
    await running.wait()
    if seconds < 1:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        loop.call_at(until, task.cancel)  # in the same turn as the alarm
    else:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_thread_does_not_start_what_is_no_longer_allowed(attempt: Run) -> None:
    """What waited for a thread while its constitution was replaced has not run."""
    ran: list[Message] = []

    def handler(message: Message) -> None:
        ran.append(message)

    assert await attempt(handler, still=False) == Overtaken()
    assert not ran


async def test_a_model_makes_the_payload(attempt: Run) -> None:
    """The handler gets the model; a payload that does not fit never reaches it, and is not tried again."""
    got: list[Any] = []

    class Other(BaseModel):
        """What this payload is not."""

        missing: int

    assert await attempt(lambda message: got.append(message.payload), model=Trip) == Returned(None)
    assert got == [Trip(trip=7, note="a trip")]
    result = await attempt(got.append, model=Other)
    assert isinstance(result, Failed)
    assert (result.code, result.never_again, len(got)) == ("malformed", True, 1)


def test_a_misfit_is_told_without_the_values() -> None:
    """Which field and what is wrong with it; nothing of what was in it."""
    assert misfits(None, b"{}") == misfits(Trip, b'{"trip":1}') == ""
    told = misfits(Trip, b'{"trip":"the secret"}')
    assert told.startswith("trip: ")
    assert "secret" not in told


async def test_one_timer_serves_many_runs() -> None:
    """An alarm that was stopped does not ring, and one that was set again rings at the later time."""
    loop = asyncio.get_running_loop()
    alarm = Alarm(this_task())
    alarm.start(0.01)
    alarm.stop()
    await asyncio.sleep(0.03)
    start = loop.time()
    alarm.start(0.01)
    alarm.start(0.1)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5)
    assert alarm.rung
    assert loop.time() - start >= 0.1
    this_task().uncancel()
    alarm.close()
