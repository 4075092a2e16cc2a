"""The embedded policy engine: OPA in worker processes (pdp/), supervised from here.

A worker is asked over a socket pair; questions are pipelined and answers come in any order. Deadlines are kept on this
side: a question that has no answer in time is answered policy_timeout, and a worker that is then still at it is killed
and replaced. What else it was asked is asked once more of another worker, within its own deadline: a decision is a
pure function, so asking again never turns a no into a yes.

Not here: what an answer means (admission/policy), the cache, and what a policy may do (pdp/).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import os
import socket
import subprocess
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from enhanced_agent_bus.engines.frames import (
    PROTOCOL,
    STATUS_OK,
    AnswerFrame,
    FrameReader,
    GarbageError,
    Op,
    decide_head,
    encode,
)
from enhanced_agent_bus.errors import BusError, ConfigInvalid, ConstitutionRejected, EngineMissing
from enhanced_agent_bus.ports import Checked, Loaded, Problem, Verified
from enhanced_agent_bus.verdict import Answer

BINARY: Final = Path(__file__).resolve().parent.parent / "_bin" / "eab-pdp"
OVERDUE_SECONDS: Final = 0.25  # how long after a question's deadline its worker may live without having answered
TIMER_SECONDS: Final = 0.005  # the shared timer wakes no more often than this
AGAIN_SECONDS: Final = 0.005  # before asking again: workers that end together are all known to be gone by then
HELLO_SECONDS: Final = 10.0
LOAD_SECONDS: Final = 60.0
AUTHORING_SECONDS: Final = 90.0  # check and test; pdp ends a test run after 60
PROBE_SECONDS: Final = 5.0  # between looks whether a worker that takes long is alive, and for the answer to each
STAFFED_SECONDS: Final = 10.0  # how long load and the like wait for a live worker
IN_FLIGHT_MAX: Final = 8192  # questions in one worker; beyond: policy_unavailable
WAITING_MAX: Final = 4096  # questions while no worker lives; beyond: policy_unavailable
UNSENT_BYTES_MAX: Final = 8 << 20  # bytes that a worker has not taken; beyond it is not asked
STDERR_BYTES_MAX: Final = 8192
TIMEOUT_US_MAX: Final = 0xFFFFFFFF  # what the frame has room for: 71 minutes
EVAL_US_BYTES: Final = 4  # the u32 before a decision
STARTS_MAX: Final = 8  # in any STARTS_WINDOW_SECONDS
STARTS_WINDOW_SECONDS: Final = 2.0
START_PAUSE_SECONDS: Final = 0.1  # after a failed start, doubled each time
START_PAUSE_SECONDS_MAX: Final = 2.0

_CODES: Final[Mapping[str, str]] = {
    "policy_error": "policy_error",
    "policy_timeout": "policy_timeout",
    "policy_malformed": "policy_error",
    "unknown_digest": "policy_unavailable",
    "unavailable": "policy_unavailable",
}


def start_pause(starts: Iterable[float], failures: int, now: float) -> float:
    """Seconds to wait before the next worker is started: none at first, so that a replacement is quick.

    `starts` are the times of earlier starts, oldest first; `failures` counts those in a row that did not get ready.
    """
    recent = [start for start in starts if now - start < STARTS_WINDOW_SECONDS]
    pause = min(START_PAUSE_SECONDS * 2.0**failures, START_PAUSE_SECONDS_MAX) if failures else 0.0
    if len(recent) >= STARTS_MAX:
        pause = max(pause, recent[-STARTS_MAX] + STARTS_WINDOW_SECONDS - now)
    return pause


class WorkerLostError(BusError):
    """A worker ended, or did not answer, while something other than a decision was asked of it."""

    default_code = "policy_unavailable"


class _Refused(Exception):
    """The worker answered with an error."""

    def __init__(self, body: bytes) -> None:
        answer = _document(body)
        self.code = str(answer.get("code", ""))
        self.message = str(answer.get("message", ""))
        self.details: list[dict[str, Any]] = answer.get("details") or []
        super().__init__(f"{self.code}: {self.message}")


def _document(body: bytes) -> dict[str, Any]:
    answer = orjson.loads(body)
    if not isinstance(answer, dict):
        raise GarbageError("the answer is not an object")
    return answer


class _Question:
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
        self.link: _Link | None = None
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


class _Link(asyncio.Protocol):
    """One worker process and the socket to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[_Link], None]) -> None:
        self._loop = loop
        self._lost = lost
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[AnswerFrame]] = {}
        self._transport: asyncio.Transport | None = None
        self.questions: dict[int, _Question] = {}
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
                question.answer(_answer(frame))  # first: when it is garbage, the question is asked again
                del questions[frame_id]
                if question.overdue:
                    self.overdue -= 1
        except ValueError as error:  # GarbageError, or JSON that is none
            self.end(f"it sent garbage: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"its connection broke: {exc}" if exc else "it ended")

    # --- ours

    def ask(self, question: _Question, timeout_seconds: float) -> None:
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
        """Asks for anything but a decision. Raises _Refused, WorkerLostError."""
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
            raise _Refused(frame.body)
        return _document(frame.body)

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


def _answer(frame: AnswerFrame) -> Answer:
    body = frame.body
    if frame.status == STATUS_OK:
        if len(body) > EVAL_US_BYTES:
            return Answer(None, body[EVAL_US_BYTES:], int.from_bytes(body[:EVAL_US_BYTES], "little"))
        if len(body) < EVAL_US_BYTES:
            raise GarbageError("a decision that is too short")
        return Answer("policy_undefined", b"", int.from_bytes(body, "little"), "data.bus.decision is undefined")
    refused = _Refused(body)
    return Answer(_CODES.get(refused.code, "policy_error"), b"", 0, refused.message)


class _Stderr(asyncio.Protocol):
    """The end of what a worker had to say."""

    def __init__(self) -> None:
        self.tail = b""

    def data_received(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-STDERR_BYTES_MAX:]

    def text(self) -> str:
        return self.tail.decode("utf-8", "replace").strip()


class _Worker:
    """A process, the link to it, and its end."""

    def __init__(self, process: subprocess.Popen[bytes], link: _Link, sock: socket.socket) -> None:
        self.process = process
        self.link = link
        self._sock = sock
        self._stderr = _Stderr()
        self._stderr_transport: asyncio.BaseTransport | None = None

    @classmethod
    async def spawn(cls, binary: Path, memory_mb: int, lost: Callable[[_Link], None], workers: int = 1) -> _Worker:
        """Starts a process, one of so many, and says hello. Raises OSError, WorkerLostError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = _popen(binary, memory_mb, theirs)
        except BaseException:
            ours.close()
            raise
        worker = cls(process, _Link(asyncio.get_running_loop(), lost), ours)
        try:
            await worker._greet(workers)
        except WorkerLostError as error:
            await worker.bury("it did not start")
            raise WorkerLostError(worker.last_words(error)) from error
        except BaseException:
            await worker.bury("it did not start")
            raise
        return worker

    async def _greet(self, workers: int) -> None:
        loop = asyncio.get_running_loop()
        self._stderr_transport, _ = await loop.connect_read_pipe(lambda: self._stderr, self.process.stderr)
        await loop.create_connection(lambda: self.link, sock=self._sock)
        self.link.hello = await self.link.call(Op.HELLO, {"workers": workers}, HELLO_SECONDS)
        if self.link.hello.get("protocol") != PROTOCOL:
            raise WorkerLostError(f"it speaks protocol {self.link.hello.get('protocol')}, not {PROTOCOL}")

    async def bury(self, reason: str) -> None:
        """Ends the process and waits for that."""
        self.link.end(reason)
        self.process.kill()
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self.process.wait))
        if self._stderr_transport is not None:
            self._stderr_transport.close()
        elif self.process.stderr is not None:
            self.process.stderr.close()
        if not self.link.connected:
            self._sock.close()
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def last_words(self, error: BaseException) -> str:
        """The error, and what the process itself had to say."""
        return f"{error}: {said}" if (said := self._stderr.text()) else str(error)

    def forget_in_child(self) -> None:
        """In a forked child: lets go of the parent's worker without touching it."""
        self.link.gone = True
        self._sock.close()


def _popen(binary: Path, memory_mb: int, stdin: socket.socket) -> subprocess.Popen[bytes]:
    """Starts the process; the socket, as its standard input, is all that it inherits."""
    return subprocess.Popen(
        [str(binary)],
        stdin=stdin.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"TZ": "UTC", "GOGC": "400", "GOMEMLIMIT": f"{memory_mb}MiB"},
        cwd="/",
        start_new_session=True,  # a Ctrl-C at the terminal is for the bus, which then drains
    )


class WorkerEngine:
    """OPA in supervised worker processes. Questions go to the least loaded one that lives.

    Opened by `start`, closed by `close`, used on the loop that started it; in a forked child it only refuses.
    """

    def __init__(self, binary: Path, *, workers: int, memory_mb: int) -> None:
        self._binary = binary
        self._workers_wanted = workers
        self._memory_mb = memory_mb
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._live: dict[_Link, _Worker] = {}
        self._links: tuple[_Link, ...] = ()
        self._bundles: dict[str, bytes] = {}
        self._waiting: deque[_Question] = deque()
        self._orphans: list[_Question] = []
        self._asking_again: asyncio.TimerHandle | None = None
        self._deadlines: list[tuple[float, int, _Question]] = []
        self._sequence = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._starts: deque[float] = deque(maxlen=STARTS_MAX)
        self._failures = 0
        self._vacant = asyncio.Event()
        self._staffed = asyncio.Event()
        self._staffing: asyncio.Task[None] | None = None
        self._burials: set[asyncio.Task[None]] = set()
        self._closed = False
        self._label: dict[str, str] = {}
        os.register_at_fork(after_in_child=functools.partial(_forget_in_child, weakref.ref(self)))

    @classmethod
    async def start(cls, binary: Path | None = None, workers: int = 2, memory_mb: int = 512) -> WorkerEngine:
        """Starts the workers. Raises: EngineMissing."""
        binary = binary or BINARY
        if not os.access(binary, os.X_OK):
            raise EngineMissing(
                f"there is no policy worker at {binary}",
                remedy="install the package anew with Go 1.26 on the path (`pip install opa-agent-bus`), "
                "or run `make setup` in a checkout",
            )
        engine = cls(binary, workers=workers, memory_mb=memory_mb)
        try:
            await engine._recruit_all()
        except BaseException:
            await engine.close()
            raise
        engine._staffing = asyncio.create_task(engine._keep_staffed(), name="policy workers")
        return engine

    @property
    def label(self) -> Mapping[str, str]:
        return self._label

    @property
    def weakenings(self) -> tuple[str, ...]:
        return ()

    # --- deciding

    async def decide(self, digest: str, tenant: str, document: bytes, timeout_seconds: float) -> Answer:
        """Answers within the timeout, whatever happens to the workers."""
        if self._closed or os.getpid() != self._pid:
            return Answer("policy_unavailable", detail="the policy engine is closed")
        return await self._put(Op.DECIDE, digest, tenant, document, timeout_seconds)

    async def compare(
        self, digest: str, candidate: str, tenant: str, document: bytes, timeout_seconds: float
    ) -> tuple[Answer, Answer] | None:
        """What `decide` answers under either constitution, in less time where they differ in a rule or two.

        None, where there are not both answers, in time or at all: then each is to be asked for by itself.
        """
        if self._closed or os.getpid() != self._pid:
            return None
        both = await self._put(Op.COMPARE, digest, tenant, candidate.encode() + document, timeout_seconds)
        if both.code is not None:
            return None
        try:
            first, *other = map(_answer, FrameReader().feed(both.body))
        except ValueError:  # GarbageError, or JSON that is none
            return None
        return first, other[0] if other else first  # one answer: both have the same

    def _put(self, op: Op, digest: str, tenant: str, document: bytes, timeout_seconds: float) -> asyncio.Future[Answer]:
        loop = self._loop
        deadline = loop.time() + timeout_seconds
        future: asyncio.Future[Answer] = loop.create_future()
        question = _Question(
            op, digest.encode("utf-8", "replace"), tenant.encode("utf-8", "replace"), document, deadline, future
        )
        self._place(question, timeout_seconds)
        if not future.done():
            heap = self._deadlines
            while heap and heap[0][2].over():
                heapq.heappop(heap)
            heapq.heappush(heap, (deadline, next(self._sequence), question))
            timer = self._timer
            if timer is None or deadline < timer.when():
                if timer is not None:
                    timer.cancel()
                self._timer = loop.call_at(deadline, self._on_timer)
        return future

    def _place(self, question: _Question, timeout_seconds: float) -> None:
        link = self._choose()
        if link is not None:
            try:
                link.ask(question, timeout_seconds)
            except ValueError as error:
                question.answer(Answer("policy_error", detail=str(error)))
        elif not self._links and len(self._waiting) < WAITING_MAX:
            self._waiting.append(question)
        else:
            question.answer(Answer("policy_unavailable", detail="the policy workers have too much to do"))

    def _choose(self) -> _Link | None:
        """The least loaded worker; one that is past a deadline already only when there is no other."""
        best: _Link | None = None
        least = IN_FLIGHT_MAX
        for link in self._links:
            load = len(link.questions)
            if load < least and not link.overdue and not link.busy:
                best, least = link, load
        if best is None:
            for link in self._links:
                load = len(link.questions)
                if load < least and not link.busy:
                    best, least = link, load
        return best

    def _on_timer(self) -> None:
        """Answers what is past its deadline, and kills the worker that is past its own."""
        self._timer = None
        now = self._loop.time()
        heap = self._deadlines
        while heap and heap[0][0] <= now:
            question = heapq.heappop(heap)[2]
            link = question.link
            if question.overdue:
                if link is not None and link.questions.get(question.id) is question:
                    link.end(f"a question was {OVERDUE_SECONDS:g} s past its deadline")
            elif not question.future.done():
                self._expire(question, now)
            elif question.future.cancelled() and link is not None and question.id in link.questions:
                self._watch(question, now)  # nobody waits for it, and still it must not hold a worker for ever
        if heap:
            self._timer = self._loop.call_at(max(heap[0][0], now + TIMER_SECONDS), self._on_timer)

    def _expire(self, question: _Question, now: float) -> None:
        link = question.link
        if link is None:
            question.answer(Answer("policy_unavailable", detail="no policy worker was there in time"))
            return
        question.answer(Answer("policy_timeout", detail="no answer within the deadline"))
        if link.questions.get(question.id) is question:
            self._watch(question, now)

    def _watch(self, question: _Question, now: float) -> None:
        """From now on its worker has OVERDUE_SECONDS left. From now, not from the deadline: the loop may be late."""
        question.overdue = True
        if question.link is not None:
            question.link.overdue += 1
        heapq.heappush(self._deadlines, (now + OVERDUE_SECONDS, next(self._sequence), question))

    # --- workers

    def _lost(self, link: _Link) -> None:
        """A worker is gone: it is replaced, and what it was asked is asked once more of another."""
        worker = self._live.pop(link, None)
        if worker is None:
            return  # it never got ready
        self._links = tuple(self._live)
        if not self._links:
            self._staffed.clear()
        burial = self._loop.create_task(worker.bury(link.reason))
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
        self._vacant.set()
        self._orphans.extend(link.questions.values())
        link.questions.clear()
        if self._asking_again is None:
            self._asking_again = self._loop.call_later(AGAIN_SECONDS, self._ask_again)

    def _ask_again(self) -> None:
        """Asks what lost workers held once more, of another worker or, where there is none, of a replacement."""
        self._asking_again = None
        now = self._loop.time()
        orphans, self._orphans = self._orphans, []
        for question in orphans:
            left = question.deadline - now
            if question.again or self._closed:
                question.answer(Answer("policy_unavailable", detail=question.lost()))
            elif left <= 0:
                question.answer(Answer("policy_timeout", detail="no answer within the deadline"))
            elif not question.future.done():
                question.again = True
                question.link = None
                self._place(question, left)

    async def _recruit_all(self) -> None:
        wanted = (self._recruit() for _ in range(self._workers_wanted))
        for error in await asyncio.gather(*wanted, return_exceptions=True):
            if isinstance(error, OSError | WorkerLostError | _Refused):
                raise EngineMissing(
                    f"the policy worker {self._binary} does not start: {error}",
                    remedy="see `eab doctor`, or build it anew",
                ) from error
            if error is not None:
                raise error

    async def _keep_staffed(self) -> None:
        while True:
            await self._vacant.wait()
            self._vacant.clear()
            while len(self._live) < self._workers_wanted:
                await asyncio.sleep(start_pause(self._starts, self._failures, time.monotonic()))
                try:
                    await self._recruit()
                except (OSError, WorkerLostError, _Refused):
                    self._failures += 1

    async def _recruit(self) -> None:
        """Starts a worker that knows every constitution in use. Raises OSError, WorkerLostError, _Refused."""
        self._starts.append(time.monotonic())
        worker = await _Worker.spawn(self._binary, self._memory_mb, self._lost, self._workers_wanted)
        link = worker.link
        try:
            while missing := self._bundles.keys() - link.digests:
                for digest in missing:
                    await self._load_bytes(link, digest, self._bundles.get(digest))
        except BaseException:
            await worker.bury("it did not get ready")
            raise
        if link.gone or self._closed:
            await worker.bury("it was lost, or the engine closed, before it was ready")
            raise WorkerLostError(worker.last_words(WorkerLostError(f"the policy worker was lost: {link.reason}")))
        self._failures = 0
        self._live[link] = worker
        self._links = tuple(self._live)
        self._label = {
            "name": "embedded",
            "opa": str(link.hello["opa"]),
            "capabilities": str(link.hello["capabilities"]),
        }
        self._staffed.set()
        while self._waiting:
            question = self._waiting.popleft()
            left = question.deadline - self._loop.time()
            if not question.future.done() and left > 0:
                self._place(question, left)

    async def _load_bytes(self, link: _Link, digest: str, bundle: bytes | None) -> None:
        if bundle is not None:
            with _bundle_file(bundle) as path:
                await link.call(Op.LOAD, {"path": str(path), "digest": digest}, LOAD_SECONDS)
        link.digests.add(digest)

    async def _any_link(self) -> _Link:
        """A worker for anything but a decision. Raises: EngineMissing."""
        try:
            async with asyncio.timeout(STAFFED_SECONDS):
                await self._staffed.wait()
        except TimeoutError:
            raise EngineMissing("no policy worker stays alive", remedy="see `eab doctor`") from None
        link = self._choose()
        return link if link is not None else self._links[0]

    # --- constitutions

    async def load(self, path: Path) -> Loaded:
        """Makes a constitution ready in every worker, now and after any replacement. Raises: ConstitutionRejected."""
        try:
            with tempfile.TemporaryDirectory(prefix="eab-") as folder:
                bundle = Path(folder) / "bundle.tar.gz"
                link = await self._any_link()
                packed = await link.call(Op.PACK, {"path": _absolute(path), "out": str(bundle)}, LOAD_SECONDS)
                digest = str(packed["digest"])
                body = {"path": str(bundle), "digest": digest}
                answer = await link.call(Op.LOAD, body, LOAD_SECONDS)
                link.digests.add(digest)
                self._bundles[digest] = bundle.read_bytes()
                for other in self._links:
                    if digest not in other.digests:
                        with contextlib.suppress(WorkerLostError):  # its replacement loads it
                            await other.call(Op.LOAD, body, LOAD_SECONDS)
                            other.digests.add(digest)
        except _Refused as refused:
            raise _rejected(path, refused) from refused
        return _loaded(answer, str(packed["source"]))

    async def load_mask(self, path: Path, text: str) -> str:
        """Makes one module that says what is masked ready in one worker; `decide` takes the digest that comes back.

        A worker that replaces it does not know it. Raises: ConfigInvalid, when it does not compile; EngineMissing.
        """
        link = await self._any_link()
        try:
            answer = await link.call(Op.MASK, {"path": str(path), "source": text}, LOAD_SECONDS)
        except _Refused as refused:
            remedy = "correct it, or leave out the setting audit.mask"
            raise ConfigInvalid(f"the mask {path} cannot be used: {refused.message}", remedy=remedy) from None
        except WorkerLostError:
            raise EngineMissing("the policy worker ended while it read the mask", remedy="see `eab doctor`") from None
        return str(answer["digest"])

    async def drop(self, digest: str) -> None:
        self._bundles.pop(digest, None)
        for link in self._links:
            link.digests.discard(digest)
            with contextlib.suppress(WorkerLostError):
                await link.call(Op.DROP, {"digest": digest}, LOAD_SECONDS)

    async def pack(self, path: Path, out: Path) -> str:
        """Writes the deterministic bundle; returns its digest. Raises: ConstitutionRejected."""
        answer = await self._author(Op.PACK, path, {"path": _absolute(path), "out": _absolute(out)})
        return str(answer["digest"])

    async def hash(self, path: Path) -> str:
        """The constitutional hash of a folder or bundle. Raises: ConstitutionRejected."""
        answer = await self._author(Op.HASH, path, {"path": _absolute(path)})
        return str(answer["digest"])

    async def claims(self, path: Path) -> tuple[str, str]:
        """The hash of a folder or bundle, and the text that a signature of it signs. Raises: ConstitutionRejected."""
        answer = await self._author(Op.CLAIMS, path, {"path": _absolute(path)})
        return str(answer["digest"]), str(answer["payload"])

    async def sign(self, path: Path, out: Path, token: str) -> str:
        """Writes the bundle with this token as its signature; returns its hash. Raises: ConstitutionRejected."""
        body = {"path": _absolute(path), "out": _absolute(out), "token": token}
        return str((await self._author(Op.SIGN, path, body))["digest"])

    async def verify(self, path: Path, keys: Sequence[str]) -> Verified:
        """Whether one of these public keys (PEM) has signed a bundle. Raises: ConstitutionRejected."""
        return Verified(**await self._author(Op.VERIFY, path, {"path": _absolute(path), "keys": list(keys)}))

    async def check(self, path: Path, *, warnings: bool = False) -> Checked:
        """Every activation check, the constitution's own tests included; `warnings` for authors take longer."""
        answer = await self._author(Op.CHECK, path, {"path": _absolute(path), "warnings": warnings})
        return Checked(
            ok=answer["ok"],
            digest=answer["digest"],
            revision=int(answer["revision"] or -1),
            name=answer["name"],
            not_after=answer["not_after"],
            signed=answer["signed"],
            rules=tuple(answer["rules"]),
            read_paths=_paths(answer["read_paths"]),
            widened=tuple(answer["widened"]),
            cacheable=answer["cacheable"],
            problems=tuple(Problem(**problem) for problem in answer["problems"]),
            tests=answer["tests"],
            warnings=tuple(Problem(**warning) for warning in answer["warnings"]),
        )

    async def test(self, path: Path, *, coverage: bool = False, run: str = "", draft: bool = False) -> dict[str, Any]:
        """Runs a constitution's tests, or those whose name `run` finds. Raises: ConstitutionRejected.

        A draft is a folder that somebody is writing: what an editor keeps there meanwhile is left out.
        """
        body = {"path": _absolute(path), "coverage": coverage, "run": run, "draft": draft}
        return await self._author(Op.TEST, path, body)

    async def explain(self, source: Path | str, document: bytes, timeout_seconds: float = 0.0) -> dict[str, Any]:
        """How each rule answers one input; `source` is a folder or bundle, or the digest of a loaded constitution.

        The decision may take as long as a live one, or 2 s where that is longer; 30 s at the most.
        Raises: ConstitutionRejected, KeyError for a digest that is not loaded.
        """
        body: dict[str, Any] = {
            "input": orjson.Fragment(document),
            "timeout_us": min(int(timeout_seconds * 1_000_000), TIMEOUT_US_MAX),
        }
        if isinstance(source, Path):
            return await self._author(Op.EXPLAIN, source, body | {"path": _absolute(source)})
        with _bundle_file(self._bundles[source]) as path:
            return await self._author(Op.EXPLAIN, path, body | {"path": str(path)})

    async def format(self, text: str) -> str:
        """Formats Rego as `opa fmt` does. Raises: ConstitutionRejected when it does not parse."""
        answer = await self._author(Op.FORMAT, Path("source.rego"), {"source": text})
        return str(answer["source"])

    async def stats(self) -> list[dict[str, Any]]:
        """What each live worker says about itself, with its process id."""
        answers = []
        for link in self._links:
            with contextlib.suppress(WorkerLostError):
                answers.append({"pid": link.hello["pid"], **await link.call(Op.STATS, {}, HELLO_SECONDS)})
        return answers

    async def _author(self, op: Op, path: Path, body: Mapping[str, Any]) -> dict[str, Any]:
        """Asks a process of its own, so that an author's test that never ends takes nothing from those who decide."""
        worker = await _Worker.spawn(self._binary, self._memory_mb, lambda _link: None)
        try:
            return await worker.link.call(op, body, AUTHORING_SECONDS)
        except _Refused as refused:
            raise _rejected(path, refused) from refused
        except WorkerLostError as error:
            raise WorkerLostError(worker.last_words(error), remedy="see `eab doctor`") from error
        finally:
            await worker.bury("its one question was answered")

    # --- the end

    async def close(self) -> None:
        """Ends every worker. What is still asked is answered policy_unavailable."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        if self._staffing is not None:
            self._staffing.cancel()
            await asyncio.gather(self._staffing, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for link in self._links:
            link.end("the bus closed it")
        if self._asking_again is not None:
            self._asking_again.cancel()
            self._ask_again()
        for question in self._waiting:
            question.answer(Answer("policy_unavailable", detail="the policy engine is closed"))
        self._waiting.clear()
        self._deadlines.clear()
        await asyncio.gather(*self._burials)

    def _forget_in_child(self) -> None:
        self._closed = True
        for worker in self._live.values():
            worker.forget_in_child()


def _forget_in_child(engine: weakref.ref[WorkerEngine]) -> None:
    if (alive := engine()) is not None:
        alive._forget_in_child()  # noqa: SLF001  (the hook cannot be a bound method: it would keep the engine alive)


@contextlib.contextmanager
def _bundle_file(bundle: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="eab-") as folder:
        path = Path(folder) / "bundle.tar.gz"
        path.write_bytes(bundle)
        yield path


def _absolute(path: Path) -> str:
    return str(Path(path).absolute())


def _paths(paths: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(path) for path in paths)


def _loaded(answer: Mapping[str, Any], source: str) -> Loaded:
    return Loaded(
        digest=answer["digest"],
        revision=int(answer["revision"]),
        name=answer["name"],
        not_after=answer["not_after"],
        signed=answer["signed"],
        rules=tuple(answer["rules"]),
        read_paths=_paths(answer["read_paths"]),
        cacheable=answer["cacheable"],
        facts_read=answer["facts_read"],
        source=source,
    )


def _rejected(path: Path, refused: _Refused) -> BusError:
    if refused.code == "not_found":
        return ConstitutionRejected(
            f"there is no constitution at {path}", reason="invalid", remedy="give a folder or a bundle.tar.gz"
        )
    return ConstitutionRejected(
        f"the constitution {path} is not valid: {refused.message}",
        reason="invalid",
        details=refused.details,
        remedy="correct it; `eab policy check` lists everything",
    )
