"""One box on a NATS server: a durable pull consumer, and the letters of it that are in this node's hands."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from typing import Final

import nats.errors
import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from enhanced_agent_bus.errors import TransportAway
from enhanced_agent_bus.ports import Handed, Letter
from enhanced_agent_bus.transports.jetstream import NANO, ApiError, Number, asked, number_of
from enhanced_agent_bus.transports.line import Line
from enhanced_agent_bus.transports.names import token
from enhanced_agent_bus.transports.subjects import API, consumer_create, consumer_next

PULL_SECONDS: Final = 60.0
HEARTBEAT_SECONDS: Final = 5.0  # of an open pull; twice as long without a sign, and it is made anew
RETRY_SECONDS: Final = 0.2
#: Of all nodes together. What keeps a node within its means is how much it pulls.
ACK_PENDING_MAX: Final = 100_000
NAME_MAX: Final = 200
ID_HEADER: Final = "Nats-Msg-Id"

ACK: Final = b"+ACK"
AGAIN: Final = b"-NAK"
WORKING: Final = b"+WPI"


def consumer_of(box: str) -> str:
    """The name of a box's consumer: at most 255 characters, and the box in it as far as there is room."""
    name = token(box)
    if len(name) <= NAME_MAX:
        return name
    return f"{name[:NAME_MAX]}=h{hashlib.sha256(box.encode()).hexdigest()[:32]}"  # =h stands in no token


class Held:
    """A letter in the hands of this node."""

    def __init__(self, serving: Serving, message: Msg, number: Number, times: int) -> None:
        header = (message.headers or {}).get(ID_HEADER, "")
        self.letter = Letter(serving.box, header.partition("/")[2], message.data)
        self.times = times
        self.taken_us = number.taken_ns // 1000
        self.number = number.stream
        self._serving = serving
        self._reply = message.reply

    async def done(self) -> None:
        await self._serving.settle(self, self._reply, ACK)

    async def again(self, seconds: float = 0.0) -> None:
        pause = b" " + orjson.dumps({"delay": int(seconds * NANO)}) if seconds > 0 else b""
        await self._serving.settle(self, self._reply, AGAIN + pause)

    def working(self) -> None:
        self._serving.say(self._reply, WORKING)


class Serving:
    """Pulls as many letters as there is room for, anew after each connection and whenever the server falls silent."""

    def __init__(
        self,
        line: Line,
        stream: str,
        box: str,
        take: Callable[[Handed], None],
        *,
        subject: str,
        at_once: int,
        ack_seconds: float,
        certain_us: Callable[[], float],
    ) -> None:
        self.box = box
        self._line = line
        self._stream = stream
        self._subject = subject
        self._take = take
        self._at_once = at_once
        self._ack_seconds = ack_seconds
        self._certain_us = certain_us
        self._consumer = consumer_of(box)
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, Held] = {}  # by number in the stream: what comes again takes the place that it had
        self._asked = 0  # of open pulls, and not yet come
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._anew = asyncio.Event()
        self._sign = 0.0
        self._pulling = False
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] = self._loop.create_future()

    async def served(self) -> None:
        """Returns once it is, or has to wait for a connection. Raises: ApiError, when the server will not have it."""
        await asyncio.shield(self._first)

    def up(self) -> None:
        """There is a connection."""
        if self._task is None and not self._ended:
            self._task = self._line.run(self._run())

    def down(self) -> None:
        """It is lost; what is in our hands may still be settled on the next one."""
        self._begun(None)
        self._asked, self._subscription = 0, None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def end(self) -> None:
        """Gives back what is not settled."""
        if self._ended:
            return
        self._ended = True
        subscription, held = self._subscription, list(self._held.values())
        self.down()
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await subscription.drain()  # type: ignore[no-untyped-call]  # what was on its way is given back by `_heard`
        await asyncio.gather(*(one.again() for one in held), return_exceptions=True)

    async def settle(self, held: Held, reply: str, how: bytes) -> None:
        """Raises: TransportAway."""
        try:
            await self._line.ask(reply, how)
        finally:
            self._held.pop(held.number, None)
            self._pull_soon()

    def say(self, reply: str, what: bytes) -> None:
        self._line.say(reply, what)

    async def _run(self) -> None:
        while self._task is asyncio.current_task():
            try:
                await self._begin()
            except (TransportAway, ApiError) as error:
                self._begun(error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._begun(None)
            await self._silence()
            await self._leave()
            await asyncio.sleep(RETRY_SECONDS)

    def _begun(self, error: Exception | None) -> None:
        if self._first.done():
            return
        if isinstance(error, ApiError):
            self._first.set_exception(error)
            self._first.exception()  # seen, where nobody waits for it
        else:
            self._first.set_result(None)

    async def _begin(self) -> None:
        await asked(
            self._line,
            consumer_create(self._stream, self._consumer),
            {
                "stream_name": self._stream,
                "action": "",  # made, or brought to this
                "config": {
                    "name": self._consumer,
                    "durable_name": self._consumer,
                    "filter_subject": self._subject,
                    "deliver_policy": "all",
                    "ack_policy": "explicit",
                    "ack_wait": int(self._ack_seconds * NANO),
                    "max_deliver": -1,
                    "max_ack_pending": ACK_PENDING_MAX,
                    "replay_policy": "instant",
                },
            },
        )
        self._inbox = self._line.inbox()
        self._anew.clear()
        self._asked, self._sign = 0, self._loop.time()
        self._subscription = await self._line.subscribe(self._inbox, self._heard)
        self._pull()

    async def _silence(self) -> None:
        """Returns when the pull has to be made anew."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._anew.wait()
                return
            if not self._asked:  # nothing is open that could give a sign
                self._sign = self._loop.time()
            elif self._loop.time() - self._sign > 2 * HEARTBEAT_SECONDS:
                return

    async def _leave(self) -> None:
        subscription, self._subscription, self._asked = self._subscription, None, 0
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    def _heard(self, message: Msg) -> None:
        self._sign = self._loop.time()
        number = number_of(message)
        if number is None:
            self._status(message.headers or {})
            return
        self._asked = max(0, self._asked - 1)
        if self._ended:
            self._line.say(message.reply, AGAIN)
            return
        times = number.times
        if number.taken_ns < self._certain_us() * 1000:
            times = max(times, 2)
        held = Held(self, message, number, times)
        self._held[held.number] = held
        self._pull_soon()
        self._take(held)

    def _status(self, headers: dict[str, str]) -> None:
        """A heartbeat; the end of a pull, with what it did not bring; or the end of the consumer."""
        if headers.get("Status") == "100":
            return
        left = headers.get("Nats-Pending-Messages")
        if left is None:
            self._anew.set()
            return
        self._asked = max(0, self._asked - int(left))
        self._pull_soon()

    def _pull_soon(self) -> None:
        """Once for all letters that are settled in this turn of the loop."""
        if not self._pulling and not self._ended:
            self._pulling = True
            self._loop.call_soon(self._pull)

    def _pull(self) -> None:
        self._pulling = False
        room = self._at_once - len(self._held) - self._asked
        if self._subscription is None or room <= 0 or (self._asked and room < self._at_once // 2):
            return
        if not self._asked:
            self._sign = self._loop.time()
        self._asked += room
        pull = {"batch": room, "expires": int(PULL_SECONDS * NANO), "idle_heartbeat": int(HEARTBEAT_SECONDS * NANO)}
        self._line.say(f"{API}{consumer_next(self._stream, self._consumer)}", orjson.dumps(pull), self._inbox)
