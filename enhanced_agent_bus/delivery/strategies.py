"""Strategies: how one agent handles a message with several handlers, or in which order.

Each makes a handler out of handlers, so that they nest: `Strategy.first(Strategy.round_robin(a, b), fallback)`. What a
handler gets was allowed and recorded before; a strategy sees no more than that message and can admit nothing.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from enhanced_agent_bus.delivery.runner import Handler, is_async, require_handler
from enhanced_agent_bus.message import Message


class Strategy:
    """Makes handlers out of handlers, for `register(handler=…)`."""

    @staticmethod
    def direct(handler: Handler) -> Handler:
        """The handler itself: what `register` does with a plain function."""
        return handler

    @staticmethod
    def all(*handlers: Handler) -> Handler:
        """Every handler, side by side. The attempt fails when one fails: then all run again.

        The reply is {"replies": [what each returned, in this order]}; none, when none of them returned anything.
        """
        return _All(_several(handlers))

    @staticmethod
    def first(*handlers: Handler) -> Handler:
        """The first that works, in this order; the attempt fails with the error of the last."""
        return _First(_several(handlers))

    @staticmethod
    def round_robin(*handlers: Handler) -> Handler:
        """One handler a message, in turn."""
        return _RoundRobin(_several(handlers))

    @staticmethod
    def by_key(handler: Handler, key: Callable[[Message], str] | None = None) -> Handler:
        """Of messages with one key, one at a time in the order of arrival, whatever the agent's concurrency.

        The key is the conversation, or what `key` makes of the message. One that is retried goes where it comes.
        It belongs outside: inside another strategy it would order nothing, which raises ValueError.
        """
        if key is not None and not callable(key):
            raise TypeError(f"key is a function of a message, not {key!r}")
        return ByKey(_several([handler])[0], key)


class ByKey:
    """A handler, and what its messages are ordered by. The mailbox keeps the order."""

    def __init__(self, handler: Handler, key: Callable[[Message], str] | None) -> None:
        self.handler = handler
        self._key: Callable[[Message], object] | None = key

    def key(self, message: Message) -> str:
        """The key. One that raises, or is no string, is a key of its own: such a message waits for no other."""
        if self._key is None:
            return message.conversation
        try:
            key = self._key(message)
        except Exception:  # noqa: BLE001 - the agent's code; the message fails or works in its handler, not here
            return message.id
        return key if isinstance(key, str) else message.id

    def __call__(self, _message: Message) -> Any:
        raise TypeError("a handler that is ordered by key is run by the bus alone")


class _All:
    def __init__(self, handlers: Sequence[Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, message: Message) -> dict[str, Any] | None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_call(handler, message)) for handler in self._handlers]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the attempt fails with an error of the agent's own
        replies = [task.result() for task in tasks]
        return None if all(reply is None for reply in replies) else {"replies": replies}


class _First:
    def __init__(self, handlers: Sequence[Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, message: Message) -> dict[str, Any] | None:
        for handler in self._handlers[:-1]:
            try:
                return await _call(handler, message)
            except Exception:  # noqa: BLE001, S112 - whatever it was, the next one is asked
                continue
        return await _call(self._handlers[-1], message)


class _RoundRobin:
    def __init__(self, handlers: Sequence[Handler]) -> None:
        self._handlers = handlers
        self._turn = 0

    async def __call__(self, message: Message) -> dict[str, Any] | None:
        handler = self._handlers[self._turn % len(self._handlers)]
        self._turn += 1
        return await _call(handler, message)


def _several(handlers: Sequence[Handler]) -> Sequence[Handler]:
    if not handlers:
        raise ValueError("give at least one handler")
    for handler in handlers:
        if isinstance(handler, ByKey):
            raise ValueError("Strategy.by_key goes outside: inside another strategy it would order nothing")  # noqa: TRY004
        if not callable(handler):
            raise TypeError(f"{type(handler).__name__} is not a handler: give a function of a message")
        require_handler(handler)
    return tuple(handlers)


async def _call(handler: Handler, message: Message) -> dict[str, Any] | None:
    """One of the handlers: each with a payload of its own; a plain `def` in a thread."""
    own = message.carrying(copy.deepcopy(message.payload))
    if is_async(handler):
        reply = await handler(own)
    else:
        reply = await asyncio.to_thread(partial(handler, own))
    if isinstance(reply, BaseModel):
        return reply.model_dump(mode="json")
    if reply is None or type(reply) is dict:
        return reply
    if inspect.iscoroutine(reply):
        reply.close()
    raise TypeError(f"the handler returned {type(reply).__name__}: return a dict or None")
