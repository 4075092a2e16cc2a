"""The socket to one policy worker: what it is asked, pipelined, and what its answers are.

Here a worker is ended that sends garbage, or does not answer a call in time. Not here: the process at the other end
(process), which worker is asked, and the deadlines of decisions (worker).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from enhanced_agent_bus.engines.frames import (
    STATUS_OK,
    AnswerFrame,
    FrameReader,
    GarbageError,
    Op,
    decide_head,
    encode,
)
from enhanced_agent_bus.errors import BusError
from enhanced_agent_bus.verdict import Answer

PROBE_SECONDS: Final = 5.0  # between looks whether a worker that takes long is alive, and for the answer to each
UNSENT_BYTES_MAX: Final = 8 << 20  # bytes that a worker has not taken; beyond it is not asked
TIMEOUT_US_MAX: Final = 0xFFFFFFFF  # what the frame has room for: 71 minutes
EVAL_US_BYTES: Final = 4  # the u32 before a decision

_CODES: Final[Mapping[str, str]] = {
    "policy_error": "policy_error",
    "policy_timeout": "policy_timeout",
    "policy_malformed": "policy_error",
    "unknown_digest": "policy_unavailable",
    "unavailable": "policy_unavailable",
}


class WorkerLostError(BusError):
    """A worker ended, or did not answer, while something other than a decision was asked of it."""

    default_code = "policy_unavailable"


class Refused(Exception):
    """The worker answered with an error."""

    def __init__(self, body: bytes) -> None:
        answer = document_of(body)
        self.code = str(answer.get("code", ""))
        self.message = str(answer.get("message", ""))
        self.details: list[dict[str, Any]] = answer.get("details") or []
        super().__init__(f"{self.code}: {self.message}")


def document_of(body: bytes) -> dict[str, Any]:
    """The JSON object of an answer. Raises: GarbageError."""
    answer = orjson.loads(body)
    if not isinstance(answer, dict):
        raise GarbageError("the answer is not an object")
    return answer


class Question:
    """A decision that someone waits for."""

    __slots__ = ("again", "deadline", "digest", "document", "future", "id", "link", "op", "overdue", "tenant")

    def __init__(
        self, op: Op, digest: bytes, tenant: bytes, document: bytes, deadline: float, future: asyncio.Future[Answer]
    ) -> None:
        self.op = op
        self.digest = digest
        self.tenant = tenant
        self.document = document
        self.deadline = deadline
        self.future = future
        self.link: Link | None = None
        self.id = 0
        self.again = False
        self.overdue = False

    def lost(self) -> str:
        """Why there is no answer, when its worker was lost."""
        return f"a policy worker was lost: {self.link.reason}" if self.link is not None else "no policy worker is left"

    def answer(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)
        self.document = b""  # the timer's heap may hold this for a while

    def over(self) -> bool:
        """Whether nothing has to happen at its deadline any more. One that is cancelled may still hold a worker."""
        return self.future.done() and not self.overdue and not self.future.cancelled()


class Link(asyncio.Protocol):
    """One worker process and the socket to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[Link], None]) -> None:
        self._loop = loop
        self._lost = lost
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[AnswerFrame]] = {}
        self._transport: asyncio.Transport | None = None
        self.questions: dict[int, Question] = {}
        self.overdue = 0
        self.busy = False  # more is unsent than it should have to remember
        self.gone = False
        self.reason = ""
        self.digests: set[str] = set()
        self.hello: dict[str, Any] = {}

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)

    def pause_writing(self) -> None:
        self.busy = True

    def resume_writing(self) -> None:
        self.busy = False

    def data_received(self, data: bytes) -> None:
        questions = self.questions
        try:
            for frame in self._reader.feed(data):
                frame_id = frame.id
                question = questions.get(frame_id)
                if question is None:
                    self._call_answered(frame)
                    continue
                question.answer(decision_of(frame))  # first: when it is garbage, the question is asked again
                del questions[frame_id]
                if question.overdue:
                    self.overdue -= 1
        except ValueError as error:  # GarbageError, or JSON that is none
            self.end(f"it sent garbage: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"its connection broke: {exc}" if exc else "it ended")

    # --- ours

    def ask(self, question: Question, timeout_seconds: float) -> None:
        """Raises ValueError when the question is larger than a frame can be."""
        document = question.document
        timeout_us = min(max(int(timeout_seconds * 1_000_000), 0), TIMEOUT_US_MAX)
        question.link = self
        question.id = question_id = next(self._ids)
        head = decide_head(question_id, question.digest, question.tenant, len(document), timeout_us, question.op)
        if self.questions or self._out or self._transport is None:
            self._write(head, document)
        else:
            self._transport.write(head + document)  # the worker has nothing else to do, so nothing is waited for
        self.questions[question_id] = question

    @property
    def connected(self) -> bool:
        """Whether a transport has the socket, and closes it."""
        return self._transport is not None

    async def call(self, op: Op, body: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """Asks for anything but a decision. Raises Refused, WorkerLostError."""
        if self.gone:
            raise WorkerLostError(f"the policy worker is gone: {self.reason}")
        call_id = next(self._ids)
        future: asyncio.Future[AnswerFrame] = self._loop.create_future()
        self._calls[call_id] = future
        self._write(encode(call_id, op, orjson.dumps(body)), b"")
        try:
            async with asyncio.timeout(timeout_seconds):
                while timeout_seconds > PROBE_SECONDS and not future.done():
                    if not (await asyncio.wait([future], timeout=PROBE_SECONDS))[0]:
                        with contextlib.suppress(WorkerLostError):  # then `future` says so too
                            await self.call(Op.STATS, {}, PROBE_SECONDS)
                frame = await future
        except TimeoutError:
            if future.cancelled() or not future.done():  # else it came in the same turn: the loop was blocked
                future.cancel()
                self.end(f"it did not answer {op.name.lower()} within {timeout_seconds:g} s")
                raise WorkerLostError(f"the policy worker was ended: {self.reason}") from None
            frame = future.result()
        except asyncio.CancelledError:
            future.cancel()  # nobody waits for what becomes of it
            raise
        if frame.status != STATUS_OK:
            raise Refused(frame.body)
        return document_of(frame.body)

    def _call_answered(self, frame: AnswerFrame) -> None:
        future = self._calls.pop(frame.id, None)
        if future is None:
            raise GarbageError(f"an answer to the question {frame.id}, which nobody asked")
        if not future.done():
            future.set_result(frame)

    def _write(self, head: bytes, document: bytes) -> None:
        """Hands over a frame; what is asked in one turn of the loop leaves together at its end."""
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(head)
        out.append(document)

    def _flush(self) -> None:
        if self._transport is not None and not self.gone:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def end(self, reason: str) -> None:
        """Cuts the connection, for good. Whoever waits for an answer learns of it; so does the engine, once."""
        if self.gone:
            return
        self.gone = True
        self.reason = reason
        if self._transport is not None:
            self._transport.abort()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(WorkerLostError(f"the policy worker was lost: {reason}"))
        self._calls.clear()
        self._lost(self)


def decision_of(frame: AnswerFrame) -> Answer:
    """What the engine answers to a question. Raises: GarbageError; ValueError, for JSON that is none."""
    body = frame.body
    if frame.status == STATUS_OK:
        if len(body) > EVAL_US_BYTES:
            return Answer(None, body[EVAL_US_BYTES:], int.from_bytes(body[:EVAL_US_BYTES], "little"))
        if len(body) < EVAL_US_BYTES:
            raise GarbageError("a decision that is too short")
        return Answer("policy_undefined", b"", int.from_bytes(body, "little"), "data.bus.decision is undefined")
    refused = Refused(body)
    return Answer(_CODES.get(refused.code, "policy_error"), b"", 0, refused.message)
