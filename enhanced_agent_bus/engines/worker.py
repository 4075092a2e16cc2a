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
import os
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from enhanced_agent_bus.engines.deadlines import Deadlines
from enhanced_agent_bus.engines.documents import checked, loaded, rejected
from enhanced_agent_bus.engines.frames import FrameReader, Op
from enhanced_agent_bus.engines.link import TIMEOUT_US_MAX, Link, Question, Refused, WorkerLostError, decision_of
from enhanced_agent_bus.engines.process import HELLO_SECONDS, Worker
from enhanced_agent_bus.errors import ConfigInvalid, EngineMissing
from enhanced_agent_bus.ports import Checked, Loaded, Verified
from enhanced_agent_bus.verdict import Answer

BINARY: Final = Path(__file__).resolve().parent.parent / "_bin" / "eab-pdp"
AGAIN_SECONDS: Final = 0.005  # before asking again: workers that end together are all known to be gone by then
LOAD_SECONDS: Final = 60.0
AUTHORING_SECONDS: Final = 90.0  # check and test; pdp ends a test run after 60
STAFFED_SECONDS: Final = 10.0  # how long load and the like wait for a live worker
IN_FLIGHT_MAX: Final = 8192  # questions in one worker; beyond: policy_unavailable
WAITING_MAX: Final = 4096  # questions while no worker lives; beyond: policy_unavailable
STARTS_MAX: Final = 8  # in any STARTS_WINDOW_SECONDS
STARTS_WINDOW_SECONDS: Final = 2.0
START_PAUSE_SECONDS: Final = 0.1  # after a failed start, doubled each time
START_PAUSE_SECONDS_MAX: Final = 2.0


def start_pause(starts: Iterable[float], failures: int, now: float) -> float:
    """Seconds to wait before the next worker is started: none at first, so that a replacement is quick.

    `starts` are the times of earlier starts, oldest first; `failures` counts those in a row that did not get ready.
    """
    recent = [start for start in starts if now - start < STARTS_WINDOW_SECONDS]
    pause = min(START_PAUSE_SECONDS * 2.0**failures, START_PAUSE_SECONDS_MAX) if failures else 0.0
    if len(recent) >= STARTS_MAX:
        pause = max(pause, recent[-STARTS_MAX] + STARTS_WINDOW_SECONDS - now)
    return pause


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
        self._live: dict[Link, Worker] = {}
        self._links: tuple[Link, ...] = ()
        self._bundles: dict[str, bytes] = {}
        self._waiting: deque[Question] = deque()
        self._orphans: list[Question] = []
        self._asking_again: asyncio.TimerHandle | None = None
        self._deadlines = Deadlines(self._loop)
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
            first, *other = map(decision_of, FrameReader().feed(both.body))
        except ValueError:  # GarbageError, or JSON that is none
            return None
        return first, other[0] if other else first  # one answer: both have the same

    def _put(self, op: Op, digest: str, tenant: str, document: bytes, timeout_seconds: float) -> asyncio.Future[Answer]:
        loop = self._loop
        deadline = loop.time() + timeout_seconds
        future: asyncio.Future[Answer] = loop.create_future()
        question = Question(
            op, digest.encode("utf-8", "replace"), tenant.encode("utf-8", "replace"), document, deadline, future
        )
        self._place(question, timeout_seconds)
        if not future.done():
            self._deadlines.add(question)
        return future

    def _place(self, question: Question, timeout_seconds: float) -> None:
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

    def _choose(self) -> Link | None:
        """The least loaded worker; one that is past a deadline already only when there is no other."""
        best: Link | None = None
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

    # --- workers

    def _lost(self, link: Link) -> None:
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
            if isinstance(error, OSError | WorkerLostError | Refused):
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
                except (OSError, WorkerLostError, Refused):
                    self._failures += 1

    async def _recruit(self) -> None:
        """Starts a worker that knows every constitution in use. Raises OSError, WorkerLostError, Refused."""
        self._starts.append(time.monotonic())
        worker = await Worker.spawn(self._binary, self._memory_mb, self._lost, self._workers_wanted)
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

    async def _load_bytes(self, link: Link, digest: str, bundle: bytes | None) -> None:
        if bundle is not None:
            with _bundle_file(bundle) as path:
                await link.call(Op.LOAD, {"path": str(path), "digest": digest}, LOAD_SECONDS)
        link.digests.add(digest)

    async def _any_link(self) -> Link:
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
        except Refused as refused:
            raise rejected(path, refused) from refused
        return loaded(answer, str(packed["source"]))

    async def load_mask(self, path: Path, text: str) -> str:
        """Makes one module that says what is masked ready in one worker; `decide` takes the digest that comes back.

        A worker that replaces it does not know it. Raises: ConfigInvalid, when it does not compile; EngineMissing.
        """
        link = await self._any_link()
        try:
            answer = await link.call(Op.MASK, {"path": str(path), "source": text}, LOAD_SECONDS)
        except Refused as refused:
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
        return checked(answer)

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
        worker = await Worker.spawn(self._binary, self._memory_mb, lambda _link: None)
        try:
            return await worker.link.call(op, body, AUTHORING_SECONDS)
        except Refused as refused:
            raise rejected(path, refused) from refused
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
        self._deadlines.stop()
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
