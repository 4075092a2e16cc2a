"""Carry it: the workers that take messages from mailboxes and run handlers, each on a ticket that holds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.delivery.parcel import Parcel
from enhanced_agent_bus.delivery.runner import Alarm, Failed, Overtaken, Threads, run
from enhanced_agent_bus.message import Message
from enhanced_agent_bus.road.desk import Desk, Handling, Post, handling_now
from enhanced_agent_bus.road.endings import Endings
from enhanced_agent_bus.road.mailroom import Mailroom
from enhanced_agent_bus.road.redaction import what_may_be_seen
from enhanced_agent_bus.road.replies import Replies
from enhanced_agent_bus.road.rescue import Rescue
from enhanced_agent_bus.verdict import Admitted, Recorded

TURN_MESSAGES: Final = 64  # handled in a row before other tasks get the loop
STOPPED: Final = "stopped"  # what telemetry hears of a run that did not start, or not to its end


class Carriage:
    """Runs handlers, and nothing but handlers, on tickets from the ledger."""

    def __init__(self, desk: Desk, endings: Endings, mailroom: Mailroom, rescue: Rescue, replies: Replies) -> None:
        self._desk = desk
        self._endings = endings
        self._mailroom = mailroom
        self._rescue = rescue
        self._replies = replies
        self._tasks: set[asyncio.Task[Any]] = set()
        self._owners: dict[asyncio.Task[Any], str] = {}
        self._stopping = False  # a handler may swallow that its worker is cancelled

    def start_worker(self, post: Post) -> None:
        task = self._own_task(self._work(post), f"worker of {post.agent_id}")
        self._owners[task] = post.agent_id
        post.workers.add(task)

    def agent_of(self, task: asyncio.Task[Any]) -> str:
        """Whose handler this task runs; empty where it is none's."""
        return self._owners.get(task, "")

    def _own_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that the bus owns: it is cancelled on close, and its unexpected end stops the bus loudly."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._owners.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._desk.broken = self._desk.broken or error
            if isinstance(error, KeyboardInterrupt | SystemExit):  # asyncio lets these end the program by themselves
                return
            task.get_loop().call_exception_handler(
                {"message": f"the bus stops taking messages: {task.get_name()} ended", "exception": error, "task": task}
            )

    async def _work(self, post: Post) -> None:
        task = asyncio.current_task()
        assert task is not None
        alarm = Alarm(task)
        turns = 0
        try:
            while task in post.workers and not self._stopping:
                if post.breaker.shut:
                    await self._wait_for_breaker(post)
                parcel = await post.mailbox.take()
                post.busy.add(task)
                try:
                    await self._serve(post, parcel, alarm)
                finally:
                    post.mailbox.done(parcel)
                if post.breaker.shut:  # where this was the one to try: no handler has run, for another reason
                    post.breaker.left()
                    post.breaker_moved.set()
                post.busy.discard(task)
                turns += 1
                if turns % TURN_MESSAGES == 0:
                    await asyncio.sleep(0)
        finally:
            alarm.close()
            if post.breaker.shut:
                post.breaker.left()
                post.breaker_moved.set()
            post.busy.discard(task)
            post.workers.discard(task)

    async def _wait_for_breaker(self, post: Post) -> None:
        """Until the recipient's breaker lets this worker take a message: all of them, or one to try."""
        while not post.breaker.may_start(self._desk.clock.monotonic()):
            seconds = post.breaker.seconds_left(self._desk.clock.monotonic())
            post.breaker_moved.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds or None):  # while one is tried, that one says how it went
                    await post.breaker_moved.wait()

    async def _serve(self, post: Post, parcel: Parcel, alarm: Alarm) -> None:
        """One message from the mailbox: on a ticket of the constitution that is active now, or not at all."""
        parcel.state = "in_flight"  # in a worker's hands: nobody else ends it
        while not parcel.ending:
            if self._desk.clock.now_us() >= parcel.expires_us:
                self._endings.end(parcel, "expired", "expired")
                return
            if self._desk.stops.find(parcel.envelope) is not None:
                self._mailroom.undecided(parcel)
                return
            if parcel.interrupted and not self._rescue.goes_on(post, parcel):
                return
            recorded = parcel.recorded
            if recorded is not None and self._holds(recorded) and not self._desk.stalled:
                deliver = self._deliver if self._desk.listener is None else self._deliver_heard
                await deliver(post, parcel, recorded, alarm)  # its first step has no await before the handler
                return
            parcel.recorded = None
            if self._desk.registry.party(post.agent_id) is None:
                self._mailroom.carry(post, parcel)
                return
            if not await self._rescue.readmit(parcel):
                return

    def _holds(self, recorded: Recorded) -> bool:
        """Whether what was decided on is still so: the constitution, and who the recipient is."""
        admitted = recorded.admitted
        if self._desk.cut_off() is not None:
            return False
        if admitted.constitution != self._desk.admission.digest_for(admitted.envelope.conversation):
            return False
        party = self._desk.registry.party(admitted.recipient.id)
        return party is None or party is admitted.recipient or party.document == admitted.recipient.document

    async def _deliver_heard(self, post: Post, parcel: Parcel, recorded: Recorded, alarm: Alarm) -> None:
        """The same, with telemetry told of it."""
        listener = self._desk.listener
        assert listener is not None
        run_heard = listener.starting(parcel.envelope, parcel.attempts + 1, parcel.trace)
        code: str | None = STOPPED
        try:
            code = await self._deliver(post, parcel, recorded, alarm)
        finally:
            listener.ran(run_heard, code)

    async def _deliver(self, post: Post, parcel: Parcel, recorded: Recorded, alarm: Alarm) -> str | None:
        """One run of the handler, and what follows from it; the code where it failed or did not start."""
        handler = post.handler
        if handler is None:  # the agent has gone between two steps
            self._mailroom.carry(post, parcel)
            return STOPPED
        parcel.recorded = None  # a ticket is good for one run
        parcel.attempts += 1
        message = Message(parcel.envelope, attempt=parcel.attempts, constitution=recorded.admitted.constitution)
        seconds = post.seconds
        if recorded.admitted.obligations:
            seconds = _seconds(recorded.admitted, seconds)
            message = what_may_be_seen(parcel, message, recorded.admitted)
        threads = None if post.on_loop else Threads(self._desk.threads, partial(self._still, recorded.admitted))
        if parcel.attempts == 1:
            self._desk.recoveries.budget.pay_in()
        started = self._desk.clock.monotonic()
        run_noted = self._desk.runs.begin(parcel.row)
        handling = Handling(parcel)
        token = handling_now.set(handling)
        try:
            faultpoints.hit("dispatch.before_handler")
            result = await run(handler, message, model=post.model, seconds=seconds, alarm=alarm, threads=threads)
            faultpoints.hit("handler.after_return")
        except OSError as error:  # only a fault point raises here
            result = Failed("handler_failed", type(error).__name__, str(error))
        finally:
            self._desk.runs.end(run_noted)
            handling.over = True
            handling_now.reset(token)
        duration_us = int((self._desk.clock.monotonic() - started) * 1e6)
        if isinstance(result, Overtaken):
            parcel.attempts -= 1  # it never ran: its allow is one of a constitution that has gone meanwhile
            self._mailroom.carry(post, parcel)
            return STOPPED
        if isinstance(result, Failed):
            self._rescue.rescue(post, parcel, result, duration_us)
            return result.code
        if post.breaker.failures:
            post.breaker.worked()
            post.breaker_moved.set()
        if result.reply is None:
            self._endings.end(parcel, "delivered", None, duration_us=duration_us)
        else:
            await self._replies.answer(post, parcel, result, duration_us)
        return None

    def _still(self, admitted: Admitted) -> bool:
        """Whether the constitution of a ticket decides yet: a handler may have waited for a thread."""
        decides = self._desk.admission.digest_for(admitted.envelope.conversation) == admitted.constitution
        return decides and self._desk.cut_off() is None and self._desk.stops.find(admitted.envelope) is None

    async def stop(self, seconds: float) -> None:
        """Ends the workers; a handler that does not stop in this time is left to its own."""
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)


def _seconds(admitted: Admitted, seconds: float) -> float:
    """The handler's time, capped where the policy says so."""
    for item in admitted.obligations:
        if item["type"] == "handler_timeout":
            seconds = min(seconds, float(item["seconds"]))
    return seconds
