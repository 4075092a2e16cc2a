"""The bus without `await`: the same names, for scripts and threaded servers; every call from any thread.

Each bus has one daemon thread with one event loop, on which the async bus lives. A call hands its work to that loop,
in the context of whoever calls, and waits: inside a handler the message being handled is the cause. One loop a bus,
not one a process: a handler that blocks its loop holds up no other bus, and whatever a bus has started ends with it.

Not here: what the calls do (`bus.py`, `agent.py`). Each does and raises what the async one of its name does.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from pydantic import BaseModel

import enhanced_agent_bus as awaited
from enhanced_agent_bus import (
    Activation,
    AgentInfo,
    BusClosed,
    DeadLetter,
    Deliberated,
    Drained,
    Erasure,
    Fact,
    Gate,
    LegalHold,
    Message,
    Outcome,
    Priority,
    Recovery,
    Refused,
    Retention,
    Retry,
    ShadowReport,
    Status,
    Stopped,
    Waiting,
)
from enhanced_agent_bus.ports import Clock

__all__ = ["Agent", "AgentBus", "Receipt", "open_bus"]

Handler = Callable[[Message], Awaitable[Any]] | Callable[[Message], Any]
P = ParamSpec("P")
T = TypeVar("T")


def open_bus(
    home: str | Path,
    *,
    constitution: str | Path | Mapping[str, Any] | None = None,
    strict: bool | None = None,
    gates: Sequence[Gate] = (),
    clock: Clock | None = None,
    **sections: Mapping[str, Any],
) -> AgentBus:
    """Opens the bus of a home, as `enhanced_agent_bus.open_bus` does; close it, or use it in a `with` statement.

    Raises: ConfigInvalid, ConstitutionRejected, EngineMissing, StoreCorrupt, StoreLocked, AuditUnavailable.
    """
    return AgentBus(
        _Loop(awaited.open_bus(home, constitution=constitution, strict=strict, gates=gates, clock=clock, **sections))
    )


class AgentBus:
    """The bus of one home, for any number of threads. Made by `open_bus`.

    Methods do and raise what those of `enhanced_agent_bus.AgentBus` do. Each may also raise BusClosed, once the bus
    is closed and in a forked child, and RuntimeError, where an `async def` handler calls it on the bus's own loop.
    """

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._bus = loop.bus

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(None if error is None else 0)  # in trouble: keep what waits, and let go

    def register(
        self,
        agent_id: str,
        handler: Handler | None = None,
        *,
        tenant: str,
        roles: Sequence[str] = (),
        capabilities: Sequence[str] = (),
        topics: Sequence[str] = (),
        payload: type[BaseModel] | None = None,
        concurrency: int | None = None,
        timeout: float | None = None,
        retry: Retry | Mapping[str, Retry] | None = None,
        when_full: str | None = None,
        constitution: str = "latest",
        shared: bool = False,
    ) -> Agent:
        """Registers an agent, durably. A `def` handler runs in a thread, an `async def` one on the bus's loop."""
        agent = self._loop.run(
            self._bus.register, agent_id, handler, tenant=tenant, roles=roles, capabilities=capabilities,
            topics=topics, payload=payload, concurrency=concurrency, timeout=timeout, retry=retry, when_full=when_full,
            constitution=constitution, shared=shared,
        )  # fmt: skip
        return Agent(self._loop, agent)

    def agent(self, agent_id: str) -> Agent:
        """The handle of a registered agent. Raises: KeyError, when nobody is registered under this id."""
        return Agent(self._loop, self._loop.run(self._bus.agent, agent_id))

    def agents(self) -> list[AgentInfo]:
        """Everyone who is registered, in this process or in the home."""
        return self._loop.look(self._bus.agents)

    def trust_agent(
        self,
        agent_id: str,
        *,
        tenant: str,
        key: str,
        roles: Sequence[str] = (),
        capabilities: Sequence[str] = (),
        topics: Sequence[str] = (),
    ) -> None:
        """Lets an agent of another process join under this name with this key; recorded. Raises: ValueError."""
        self._loop.run(
            self._bus.trust_agent, agent_id, tenant=tenant, key=key, roles=roles, capabilities=capabilities,
            topics=topics,
        )  # fmt: skip

    def distrust_agent(self, agent_id: str) -> None:
        """An agent of another process may not join any more; recorded. Raises: KeyError, when it is not trusted."""
        self._loop.run(self._bus.distrust_agent, agent_id)

    def challenge(self) -> str:
        """What an agent of another process has to answer within 30 s to join."""
        return self._loop.look(self._bus.challenge)

    def join(self, answer: str) -> AgentInfo:
        """Registers an agent of another process that has answered a challenge. Raises: BusError; AgentExists."""
        return self._loop.run(self._bus.join, answer)

    def send_envelope(self, envelope: str) -> list[Receipt]:
        """Sends what an agent of another process has signed in its session."""
        return [_receipt(self._loop, receipt) for receipt in self._loop.run(self._bus.send_envelope, envelope)]

    def activate(
        self,
        path: str | Path,
        *,
        percent: int = 100,
        max_refusals: float | None = None,
        max_errors: float | None = 0.01,
        over: int = 100,
    ) -> Activation:
        """Puts a constitution in force, or rolls it out to a share of the conversations."""
        return self._loop.run(
            self._bus.activate, path, percent=percent, max_refusals=max_refusals, max_errors=max_errors, over=over
        )

    def roll_back(self) -> Activation:
        """The active constitution decides everything again. Raises: KeyError, when nothing is being rolled out."""
        return self._loop.run(self._bus.roll_back)

    def start_shadow(self, path: str | Path, *, percent: int = 100) -> ShadowReport:
        """Lets a candidate look on: it is asked what was just decided, and never acts."""
        return self._loop.run(self._bus.start_shadow, path, percent=percent)

    def shadow(self) -> ShadowReport | None:
        """What the shadow has found so far; None when there is none."""
        return self._loop.look(self._bus.shadow)

    def stop_shadow(self) -> ShadowReport:
        """Ends the shadow; says what it found. Raises: KeyError, when there is none."""
        return self._loop.run(self._bus.stop_shadow)

    def queue(self) -> list[Waiting]:
        """What has not ended, by when it came."""
        return self._loop.look(self._bus.queue)

    def held(self) -> list[Waiting]:
        """What waits for approval."""
        return self._loop.look(self._bus.held)

    def dead_letters(self) -> list[DeadLetter]:
        """What could not be delivered and waits for a replay or a discard."""
        return self._loop.look(self._bus.dead_letters)

    def outcome(self, message_id: str, timeout: float | None = None) -> Outcome:
        """Waits for how a message ended, after a restart too. Raises: TimeoutError; KeyError."""
        return self._loop.run(self._bus.outcome, message_id, timeout)

    def replay(self, message_id: str) -> Receipt:
        """Decides a dead letter anew; allowed, it is queued again. Raises: KeyError."""
        return _receipt(self._loop, self._loop.run(self._bus.replay, message_id))

    def discard(self, message_id: str, *, reason: str) -> None:
        """Ends a dead letter, or a message that waits. Raises: KeyError, when there is none of this id."""
        self._loop.run(self._bus.discard, message_id, reason=reason)

    def recoveries(self, state: str | None = None) -> list[Recovery]:
        """What failed and is, or was, to be tried again."""
        return self._loop.look(self._bus.recoveries, state)

    def pause_recovery(self, message_id: str | None = None) -> None:
        """Holds back every message that is to be tried again, after a restart too, or this one. Raises: KeyError."""
        self._loop.run(self._bus.pause_recovery, message_id)

    def resume_recovery(self, message_id: str | None = None) -> None:
        """Ends the pause; or tries this message now, which is decided anew. Raises: KeyError."""
        self._loop.run(self._bus.resume_recovery, message_id)

    def cancel_recovery(self, message_id: str) -> None:
        """Tries this message no more: it becomes a dead letter. Raises: KeyError."""
        self._loop.run(self._bus.cancel_recovery, message_id)

    def facts(self, scope: str | None = None, owner: str | None = None) -> list[Fact]:
        """What decisions have remembered."""
        return self._loop.look(self._bus.facts, scope, owner)

    def shared_facts(self, scope: str | None = None, owner: str | None = None) -> list[Fact]:
        """The same, as all nodes of the bus have it now. Raises: TransportAway."""
        return self._loop.run(self._bus.shared_facts, scope, owner)

    def put_fact(self, scope: str, owner: str, key: str, value: str | float) -> None:
        """An operator's fact, recorded. Raises: ValueError, when it cannot be."""
        self._loop.run(self._bus.put_fact, scope, owner, key, value)

    def remove_fact(self, scope: str, owner: str, key: str) -> None:
        """Raises: KeyError, when there is no such fact."""
        self._loop.run(self._bus.remove_fact, scope, owner, key)

    def note_access(self, command: str, what: str, *, by: str = "operator") -> None:
        """Records that somebody was shown payloads."""
        self._loop.run(self._bus.note_access, command, what, by=by)

    def checkpoint(self) -> str:
        """Signs a checkpoint of every record so far; returns the note."""
        return self._loop.run(self._bus.checkpoint)

    def rotate_key(self) -> str:
        """Signs the log with a new key from now on, recorded under both; returns its vkey."""
        return self._loop.run(self._bus.rotate_key)

    def witness(self, note: str) -> None:
        """Records the signed checkpoint of another log, in this one."""
        self._loop.run(self._bus.witness, note)

    def witnessed(self, origin: str) -> str | None:
        """The newest checkpoint of another log that this bus has witnessed; None when there is none."""
        return self._loop.look(self._bus.witnessed, origin)

    def erase(self, of: str, name: str, *, reason: str, by: str = "operator") -> Erasure:
        """Removes payloads, headers, salts and texts of a "message", a "conversation" or all of an "agent"; recorded.

        Raises: KeyError, when nothing is recorded of it.
        """
        return self._loop.run(self._bus.erase, of, name, reason=reason, by=by)

    def stopped(self) -> list[Stopped]:
        """What `stop_traffic` has stopped."""
        return self._loop.look(self._bus.stopped)

    def stop_traffic(self, of: str, name: str = "", *, reason: str, by: str = "operator") -> Stopped:
        """Stops an "agent", a "tenant" or "all", on every node. Raises: ValueError; TransportAway."""
        return self._loop.run(self._bus.stop_traffic, of, name, reason=reason, by=by)

    def resume_traffic(self, of: str, name: str = "", *, reason: str, by: str = "operator") -> None:
        """Ends a stop, on every node. Raises: KeyError, when it is not stopped; ValueError; TransportAway."""
        self._loop.run(self._bus.resume_traffic, of, name, reason=reason, by=by)

    def legal_holds(self) -> list[LegalHold]:
        """What must be kept."""
        return self._loop.look(self._bus.legal_holds)

    def add_legal_hold(self, of: str, name: str, *, reason: str, by: str = "operator") -> LegalHold:
        """Keeps content from erasure and retention; recorded. Raises: KeyError, for a message that there is not."""
        return self._loop.run(self._bus.add_legal_hold, of, name, reason=reason, by=by)

    def remove_legal_hold(self, of: str, name: str, *, reason: str, by: str = "operator") -> None:
        """Ends a hold; recorded. Raises: KeyError, when there is none."""
        self._loop.run(self._bus.remove_legal_hold, of, name, reason=reason, by=by)

    def retention(self) -> Retention:
        """How long content is kept, and what is past its time."""
        return self._loop.run(self._bus.retention)

    def status(self) -> Status:
        """The state of the bus: `accounting` sums up, and `security_state` names every weakening in force."""
        return self._loop.look(self._bus.status)

    def status_constitution(self) -> str:
        """The digest of the active constitution."""
        return self._loop.look(self._bus.status_constitution)

    def security_state(self) -> list[str]:
        """Every weakening in force, sorted."""
        return self._loop.look(self._bus.security_state)

    def wait_idle(self, timeout: float | None = None) -> None:
        """Waits until nothing is queued, running or about to be retried. Raises: TimeoutError."""
        self._loop.run(self._bus.wait_idle, timeout)

    def close(self, timeout: float | None = None) -> Drained:
        """Drains for at most `timeout` seconds, keeps the rest in the home, ends the loop and its thread, and reports.

        The second time it reports the same. A forked child has nothing to close.
        """
        if self._loop.elsewhere:
            return Drained(0, 0, 0)
        with suppress(BusClosed):
            self._loop.run(self._bus.close, timeout)
        return self._loop.end()


class Agent:
    """A registered agent. Made by `AgentBus.register` and `AgentBus.agent` only."""

    __slots__ = ("_agent", "_loop")

    def __init__(self, loop: _Loop, agent: awaited.Agent) -> None:
        self._loop = loop
        self._agent = agent

    def __repr__(self) -> str:
        return repr(self._agent)

    @property
    def id(self) -> str:
        return self._agent.id

    @property
    def tenant(self) -> str:
        return self._agent.tenant

    @property
    def constitution(self) -> str:
        """The digest that this agent agreed to: the pinned one, else the one that is active."""
        return self._agent.constitution

    def send(
        self,
        to: str | None = None,
        payload: Any = None,
        *,
        capability: str | None = None,
        type: str = "command",
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        conversation: str | None = None,
        cause: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> Receipt:
        """Sends to one agent, or to a capability; returns once accepted, held or refused."""
        receipt = self._loop.run(
            self._agent.send, to, payload, capability=capability, type=type, priority=priority, id=id,
            conversation=conversation, cause=cause, headers=headers, expires_in=expires_in,
        )  # fmt: skip
        return _receipt(self._loop, receipt)

    def request(
        self,
        to: str | None = None,
        payload: Any = None,
        *,
        timeout: float,
        capability: str | None = None,
        type: str = "query",
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        conversation: str | None = None,
        cause: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> Message:
        """Sends and waits for the reply, at most `timeout` seconds. Raises: Refused, NotDelivered, RequestTimeout."""
        try:
            return self._loop.run(
                self._agent.request, to, payload, timeout=timeout, capability=capability, type=type, priority=priority,
                id=id, conversation=conversation, cause=cause, headers=headers, expires_in=expires_in,
            )  # fmt: skip
        except Refused as refused:  # its receipt is for programs without `await` too
            raise Refused(_receipt(self._loop, refused.receipt)) from None

    def publish(
        self,
        topic: str,
        payload: Any = None,
        *,
        type: str = "event",
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        conversation: str | None = None,
        cause: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> list[Receipt]:
        """Sends to every subscriber of a topic of the tenant: a message, a decision and a receipt for each."""
        receipts = self._loop.run(
            self._agent.publish, topic, payload, type=type, priority=priority, id=id, conversation=conversation,
            cause=cause, headers=headers, expires_in=expires_in,
        )  # fmt: skip
        return [_receipt(self._loop, receipt) for receipt in receipts]

    def broadcast(
        self,
        payload: Any = None,
        *,
        type: str = "notification",
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        conversation: str | None = None,
        cause: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires_in: float | None = None,
    ) -> list[Receipt]:
        """Sends to everyone else of the tenant: a message, a decision and a receipt for each."""
        receipts = self._loop.run(
            self._agent.broadcast, payload, type=type, priority=priority, id=id, conversation=conversation,
            cause=cause, headers=headers, expires_in=expires_in,
        )  # fmt: skip
        return [_receipt(self._loop, receipt) for receipt in receipts]

    def approve(self, message_id: str, *, comment: str | None = None) -> Deliberated:
        """Approves what is held of a message and wants a role of this agent."""
        return self._loop.run(self._agent.approve, message_id, comment=comment)

    def reject(self, message_id: str, *, reason: str) -> Deliberated:
        """Ends a held message as refused (approval_rejected)."""
        return self._loop.run(self._agent.reject, message_id, reason=reason)

    def unregister(self) -> None:
        """Ends the registration; what waits for this agent becomes dead letters (handler_absent)."""
        self._loop.run(self._agent.unregister)


@dataclass(frozen=True, slots=True)
class Receipt(awaited.Receipt):
    """What became of one send; the fields and the rest are those of `enhanced_agent_bus.Receipt`."""

    _loop: _Loop | None = field(default=None, repr=False, compare=False)

    def outcome(self, timeout: float | None = None) -> Outcome:  # type: ignore[override]  # the one that blocks
        """Waits for the end of the message, at most `timeout` seconds. Raises: TimeoutError; the message goes on."""
        if self._loop is None:
            raise RuntimeError("this receipt was made without a bus")
        return self._loop.run(awaited.Receipt.outcome, self, timeout)


def _receipt(loop: _Loop, receipt: awaited.Receipt) -> Receipt:
    return Receipt(**{part.name: getattr(receipt, part.name) for part in fields(receipt)}, _loop=loop)


class _Loop:
    """One thread with one event loop, and the async bus that it opens, runs and closes.

    Raises: whatever opening raises; then the thread has ended.
    """

    def __init__(self, opening: AbstractAsyncContextManager[awaited.AgentBus]) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._opened: Future[awaited.AgentBus] = Future()
        self._ended: Future[Drained] = Future()
        self._door = threading.Lock()  # held while work is handed over, and while that comes to its end
        self._over = False
        self._life = self._loop.create_task(self._live(opening))
        self._thread = threading.Thread(target=self._run, name="eab-loop", daemon=True)
        self._thread.start()
        try:
            self.bus = self._opened.result()
            _before_exit(weakref.WeakMethod(self.abandon))
        except BaseException:
            self.abandon()
            raise

    @property
    def elsewhere(self) -> bool:
        """Whether this is a forked child: the thread is the parent's."""
        return os.getpid() != self._pid

    def run(self, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs an async function on the loop, in the caller's context, and waits; interrupted, it is cancelled.

        Raises: what the function raises; BusClosed; RuntimeError on the loop itself, which would wait for itself.
        """
        if self.elsewhere:
            raise BusClosed("the bus belongs to the process that was forked", remedy="open one after the fork")
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "an async def handler cannot wait for the loop that it runs on: write it as a plain def, which runs "
                "in a thread, or use the async bus with await"
            )
        with self._door:
            if self._over:
                raise _closed()
            # The caller's context goes with it: in a handler, what is being handled.
            answer = asyncio.run_coroutine_threadsafe(call(*args, **kwargs), self._loop)
        try:
            return answer.result()
        except CancelledError:  # by the end of the loop
            raise _closed() from None
        except BaseException:  # Ctrl-C, for one: nobody waits for the answer any more
            answer.cancel()
            raise

    def look(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a plain function of the bus on the loop, like everything else of it. Raises: as `run` does."""

        async def called() -> T:
            return call(*args, **kwargs)

        return self.run(called)

    def end(self) -> Drained:
        """Closes the bus, if it is not closed, and ends the thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        return self._ended.result()

    def abandon(self) -> None:
        """Ends the thread at once; what waits is kept in the home."""
        if not self.elsewhere:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._life.cancel)
            self._thread.join()

    async def _live(self, opening: AbstractAsyncContextManager[awaited.AgentBus]) -> Drained:
        async with opening as bus:
            self._opened.set_result(bus)
            try:
                await self._end.wait()
                return await bus.close()
            finally:
                with self._door:
                    self._over = True
                await asyncio.sleep(0)  # by now all that was handed over is a task, and can be cancelled

    async def _lived(self) -> Drained:
        try:
            return await self._life
        finally:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                drained = runner.run(self._lived())
        except BaseException as error:  # noqa: BLE001 - it is raised where the bus is opened or closed
            if not self._opened.done():
                self._opened.set_exception(error)
            self._ended.set_exception(error)
        else:
            self._ended.set_result(drained)


def _closed() -> BusClosed:
    return BusClosed("the bus is closed", remedy="open it again")


def _before_exit(leave: weakref.WeakMethod[Callable[[], None]]) -> None:
    """For a bus that nobody closed. `atexit` is too late for one: by then no handler and no closing gets a thread."""

    def left() -> None:
        if (leaving := leave()) is not None:
            leaving()

    getattr(threading, "_register_atexit", atexit.register)(left)
