"""Running a handler once: within its time, whatever it raises, and only ever on a recorded allow."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import orjson
from pydantic import BaseModel, ValidationError

from enhanced_agent_bus.message import Message

Handler = Callable[[Message], Awaitable[Any]] | Callable[[Message], Any]
ERROR_TEXT_CHARS_MAX: Final = 2000
ERROR_NAME_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler has done its work; `reply` is what it returned."""

    reply: dict[str, Any] | None


_NOTHING: Final = Returned(None)


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed. `error` is the type; `text` stands with the payload and in no record."""

    code: str
    error: str
    text: str
    never_again: bool = False
    raised: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The handler did not start: while it waited for a thread, what allowed it went out of force."""


class Threads(NamedTuple):
    """Where a plain `def` runs, and what it asks before it starts: whether it is still allowed to."""

    pool: Executor
    still: Callable[[], bool]


class _Late(Exception):
    """How a thread says that it did not start; see Overtaken."""


class Alarm:
    """A deadline for one worker's current handler, cheap to set: one timer serves many short runs.

    `task` is the worker: the alarm cancels what it does.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._loop = task.get_loop()
        self._task = task
        self._timer: asyncio.TimerHandle | None = None
        self._until: float | None = None
        self.rung = False

    def start(self, seconds: float) -> None:
        until = self._until = self._loop.time() + seconds
        self.rung = False
        if self._timer is None or self._timer.when() > until:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(until, self._ring)

    def stop(self) -> None:
        self._until = None

    def close(self) -> None:
        self.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._until is None:
            return
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._ring)
            return
        self.rung = True
        self._task.cancel()


def is_async(handler: Handler) -> bool:
    """Whether the handler runs on the loop; a plain `def` runs in a thread."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def require_handler(handler: Any) -> None:
    """Says at registration what each delivery would fail with. Raises: TypeError."""
    if not callable(handler):
        raise TypeError(f"the handler is {type(handler).__name__}: give a function of a message")
    try:
        inspect.signature(handler).bind(None)
    except ValueError:  # a callable that does not say what it takes
        return
    except TypeError as error:
        name = getattr(handler, "__qualname__", type(handler).__qualname__)
        raise TypeError(
            f"the handler {name} cannot be called with a message ({error}): give it one parameter"
        ) from None


def misfits(model: type[BaseModel] | None, body: bytes) -> str:
    """Why a recipient's model does not take a payload, without the values; empty when it does."""
    if model is None:
        return ""
    try:
        model.model_validate(orjson.loads(body))
    except ValidationError as error:
        return _misfit(error)
    except Exception as error:  # noqa: BLE001 - a model's own checks may raise anything: that is no yes
        return f"its model raised {type(error).__name__[:ERROR_NAME_CHARS_MAX]}"
    return ""


def _misfit(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['type']}" for item in found)[:ERROR_TEXT_CHARS_MAX]


async def run(
    handler: Handler,
    message: Message,
    *,
    model: type[BaseModel] | None,
    seconds: float,
    alarm: Alarm,
    threads: Threads | None,
) -> Returned | Failed | Overtaken:
    """One attempt, on the loop or in a thread. Only a cancellation from outside passes through."""
    if model is not None:
        try:
            message = message.carrying(model.model_validate(message.payload))
        except ValidationError as error:
            return Failed("malformed", "ValidationError", _misfit(error), never_again=True)
        except Exception as error:  # noqa: BLE001 - a model's own checks are the agent's code, like its handler
            return _failed(error)
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    alarm.start(seconds)
    try:
        if threads is None:
            value = await handler(message)
        else:
            context = copy_context()
            started = partial(context.run, _called, handler, message, threads.still)
            value = await asyncio.get_running_loop().run_in_executor(threads.pool, started)
    except asyncio.CancelledError as error:
        if task.cancelling() > before + alarm.rung:  # by somebody else than the alarm
            raise
        if alarm.rung:
            return Failed("handler_timeout", "TimeoutError", f"no end after {seconds:g} s")
        return _failed(error)  # the handler raised it itself
    except _Late:
        return Overtaken()
    except (KeyboardInterrupt, GeneratorExit):  # not the handler's: somebody ends the process, or this coroutine
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises is a failed attempt, SystemExit too
        return _failed(error)
    finally:
        alarm.stop()
        # The alarm's own cancellation ends here, also where the handler swallowed it; and so does that which a failed
        # asyncio.TaskGroup of the handler leaves behind in Python 3.11.
        while task.cancelling() > before:
            task.uncancel()
    if value is None:
        return _NOTHING
    if type(value) is dict:
        return Returned(value)
    if isinstance(value, BaseModel):
        try:
            return Returned(value.model_dump(mode="json"))
        except Exception as error:  # noqa: BLE001 - a model's own serializers may raise anything
            return _failed(error)
    if inspect.iscoroutine(value):
        value.close()
    return Failed("handler_failed", "TypeError", f"the handler returned {type(value).__name__}: return a dict or None")


def _called(handler: Handler, message: Message, still: Callable[[], bool]) -> Any:
    """A StopIteration never arrives through a future; PEP 479 does the same for coroutines."""
    if not still():
        raise _Late
    try:
        return handler(message)
    except StopIteration as error:
        raise RuntimeError("the handler raised StopIteration") from error


def _failed(error: BaseException) -> Failed:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an error that cannot say what it is has its type still
        text = ""
    # A file name in an error may hold lone surrogates, which are no text that can be kept.
    text = text[:ERROR_TEXT_CHARS_MAX].encode("utf-8", "backslashreplace").decode()
    return Failed("handler_failed", type(error).__name__[:ERROR_NAME_CHARS_MAX], text, raised=error)
