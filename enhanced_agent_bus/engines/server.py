"""The policy engine beside: an OPA server, asked over its HTTP API. Activation and the cache still use the worker.

A question has one total deadline, one place among those asked at once, and one connection to itself. What comes back
counts only as JSON of a bounded size under the revision that is active; what it says is not vouched for by anyone,
hence the weakening `policy_server_trusted`.

Not here: HTTP itself (`http1.py`), what a reply means (`reply.py`), what a decision means (admission).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx

from enhanced_agent_bus.engines.access import Token, place_of, tls_context
from enhanced_agent_bus.engines.basedata import DATA_BYTES_MAX, data_of, defined, same_data
from enhanced_agent_bus.engines.breaker import Breaker
from enhanced_agent_bus.engines.http1 import OneAnswerTransport
from enhanced_agent_bus.engines.modules import LIST_BYTES_MAX, Modules, modules_of, same
from enhanced_agent_bus.engines.reply import (
    BODY_BYTES_MAX,
    OK,
    Inflater,
    MalformedReplyError,
    Reply,
    is_json_type,
    malformed,
    members,
    provenance,
    read_decision,
)
from enhanced_agent_bus.engines.turns import Turns
from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.ports import Checked, Loaded, Verified
from enhanced_agent_bus.verdict import Answer

DECISION: Final = "/v1/data/bus/decision?provenance=true&strict-builtin-errors=true"
VERSION: Final = "/v1/data/bus/manifest?provenance=true"
MODULES: Final = "/v1/policies"
DATA: Final = "/v1/data/bus"  # without an input: data, and what rules say then
HEALTH: Final = "/health"
BUNDLES: Final = "/health?bundles"
AT_ONCE_MAX: Final = 64  # questions on the way; a tenant takes no more than it leaves free
QUESTION_BYTES_MAX: Final = 16 << 20  # as for the worker
LOOK_SECONDS: Final = 1.0  # for a look at version, modules and data; so long does a silent server delay a start
LOOK_AGAIN_SECONDS: Final = 60.0
UNAUTHORIZED: Final = 401
VERSION_MIN: Final = (1, 21, 3)
AWAY: Final = "the OPA server cannot be reached"


@dataclass(slots=True)
class _Known:
    """A constitution that the server is asked about."""

    revision: str
    modules: Modules
    data: Any  # of `data.bus`; None: too large to compare
    differs: bool = False  # the server has other modules, or does not show them
    data_differs: bool = False  # the modules are ours, and the data is not, or is not shown
    due: bool = True  # to be compared at the next answer
    looked_at: float = 0.0


@dataclass(slots=True)
class _Asked:
    """When a question went out; None while it waits for its turn."""

    at: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a server says of itself. `problem` is set where it says nothing."""

    problem: str = ""
    version: str = ""
    revision: str | None = None  # of our bundle; None where it has none of that name
    ready: bool = False  # every bundle of it is loaded


class ServerEngine:
    """Decisions of an OPA server. Opened by `start`, closed by `close`, used on the loop that started it."""

    def __init__(
        self,
        url: str,
        place: tuple[str | None, httpx.URL],
        *,
        bundle: str,
        token: Token | None,
        transport: httpx.AsyncBaseTransport | None,
        tls: ssl.SSLContext | None,
        worker: WorkerEngine,
    ) -> None:
        self._shown_url = url
        self._bundle = bundle
        self._token = token
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._closed = False
        self._heard_at = -1.0
        self._version: str | None = None  # None while it has not been heard
        self._known: dict[str, _Known] = {}
        self._decided = ""  # the digest of the last one that was asked about
        self._breaker = Breaker()
        self._turns = Turns(AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._life: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._label = self._labelled("unknown")
        path, self._url = place
        self._transport = transport or OneAnswerTransport(
            address=None if path else (self._url.raw_host.decode(), self._url.port or (443 if tls else 80)),
            path=path,
            tls=tls,
            heard=self._heard,
        )
        self._decision_url = self._url.join(DECISION)
        self._headers = [
            (b"Host", self._url.netloc),
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"opa-agent-bus"),
        ]

    @classmethod
    async def start(
        cls,
        url: str,
        *,
        bundle: str = "eab",
        token_file: Path | None = None,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        memory_mb: int = 512,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> Self:
        """Starts the worker and reads the files; the server may be away. `transport` is for tests.

        Raises: ConfigInvalid, EngineMissing.
        """
        place = place_of(url)
        token = Token(token_file) if token_file is not None else None
        tls = tls_context(tls_ca, tls_cert, tls_key) if url.startswith("https:") else None
        worker = await WorkerEngine.start(workers=1, memory_mb=memory_mb)
        return cls(url, place, bundle=bundle, token=token, transport=transport, tls=tls, worker=worker)

    @property
    def label(self) -> Mapping[str, str]:
        return self._label

    @property
    def weakenings(self) -> Sequence[str]:
        """What is weaker than deciding in place, as far as it is known by now."""
        found = ["policy_server_trusted"]
        ours = version_numbers(self.worker_version)
        if self._version is not None and version_numbers(self._version)[:2] != ours[:2]:
            found.append("policy_server_version")
        newest = next(reversed(self._known.values()), None)
        decides = self._known.get(self._decided, newest)  # a candidate can be loaded, too
        if decides is not None and decides.differs:
            found.append("policy_server_modules")
        if decides is not None and decides.data_differs:
            found.append("policy_server_data")
        if decides is not None and decides.modules.take_schemas:
            found.append("policy_server_schemas")
        return found

    @property
    def worker_version(self) -> str:
        """Which OPA the package's own worker is."""
        return self._worker.label["opa"]

    # --- deciding

    async def decide(self, digest: str, tenant: str, document: bytes, timeout_seconds: float) -> Answer:
        """Answers within the timeout, whatever the server does."""
        known = self._known.get(digest)
        if known is None or self._closed or os.getpid() != self._pid:
            return Answer(
                "policy_unavailable", detail="the policy engine does not know this constitution, or is closed"
            )
        if len(document) > QUESTION_BYTES_MAX:
            return Answer("policy_error", detail=f"a question of {len(document)} bytes is too large")
        self._decided = digest
        asked = _Asked()
        deadline = self._loop.time() + timeout_seconds
        try:
            async with asyncio.timeout_at(deadline):
                return await self._in_turn(known, tenant, document, asked, deadline)
        except TimeoutError:
            return self._late(asked)
        except asyncio.CancelledError:
            if asked.at is not None:
                self._breaker.left()
            raise

    async def _in_turn(self, known: _Known, tenant: str, document: bytes, asked: _Asked, deadline: float) -> Answer:
        if not await self._turns.take(tenant):
            return Answer("policy_unavailable", detail="too many questions wait for the OPA server")
        try:
            now = self._loop.time()
            if not self._breaker.may_ask(now):
                return Answer("policy_unavailable", detail=AWAY)
            asked.at = now
            half_time = self._loop.call_at(now + (deadline - now) / 2, self._look_for_life, now, deadline)
            try:
                reply = await self._post(known, document)
            except (httpx.HTTPError, OSError):
                known.due = True  # it may be another one when it is back
                self._breaker.failed(self._loop.time())
                return Answer("policy_unavailable", detail=AWAY)
            finally:
                half_time.cancel()
            self._breaker.answered()
        finally:
            self._turns.give_back(tenant)
        self._learn(known, reply)
        return reply.answer

    def _late(self, asked: _Asked) -> Answer:
        """Past the deadline: the policy is slow where the server gave a sign of life, else the server is away."""
        if asked.at is None:
            return Answer("policy_timeout", detail="the OPA server was busy with other questions")
        if self._heard_at >= asked.at:
            self._breaker.left()
            return Answer("policy_timeout", detail="no answer within the deadline")
        self._breaker.failed(self._loop.time())
        return Answer("policy_unavailable", detail=AWAY)

    async def _post(self, known: _Known, document: bytes) -> Reply:
        began = self._loop.time()
        body = b'{"input":%b}' % document
        response = await self._transport.handle_async_request(self._request("POST", self._decision_url, body))
        try:
            read = await _read(response, BODY_BYTES_MAX)
        except MalformedReplyError as error:
            return Reply(malformed(str(error)))
        finally:
            await response.aclose()
        if response.status_code == UNAUTHORIZED and self._token is not None:
            self._token.read_again()
        us = int((self._loop.time() - began) * 1e6)
        media_type = response.headers.get("content-type", "")
        return read_decision(
            response.status_code, media_type, read, bundle=self._bundle, revision=known.revision, us=us
        )

    def _request(self, method: str, url: httpx.URL, body: bytes = b"", *, alone: bool = False) -> httpx.Request:
        headers = [*self._headers]
        if self._token is not None:
            headers.append((b"Authorization", self._token.header))
        if body:
            headers += [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
        return httpx.Request(
            method, url, headers=headers, stream=httpx.ByteStream(body), extensions={"alone": True} if alone else {}
        )

    # --- what is learnt on the way

    def _heard(self) -> None:
        self._heard_at = self._loop.time()

    def _look_for_life(self, asked_at: float, deadline: float) -> None:
        """Half of a question's time has gone in silence: is anybody there?"""
        if self._heard_at < asked_at and (self._life is None or self._life.done()):
            self._life = self._keep(self._sign_of_life(deadline))

    async def _sign_of_life(self, deadline: float) -> None:
        with contextlib.suppress(TimeoutError, httpx.HTTPError, OSError, MalformedReplyError):
            async with asyncio.timeout_at(deadline):
                await self._get(HEALTH)
                self._heard()

    def _learn(self, known: _Known, reply: Reply) -> None:
        if reply.version is not None and reply.version != self._version:
            self._learn_version(reply.version)
        if reply.answer.code == "policy_revision_mismatch":
            known.due = True
            return
        looking = self._looking is not None and not self._looking.done()
        due = known.due or self._loop.time() > known.looked_at + LOOK_AGAIN_SECONDS
        if due and not looking and reply.version is not None:
            self._looking = self._keep(self._look(known))

    def _learn_version(self, version: str) -> None:
        self._version = version
        self._label = self._labelled(version or "unknown")

    def _labelled(self, version: str) -> dict[str, str]:
        capabilities = self._worker.label["capabilities"]
        return {"name": "server", "opa": version, "capabilities": capabilities, "url": self._shown_url}

    async def _look(self, known: _Known) -> None:
        """Compares the server's modules and data with ours. What cannot be compared differs, silence does not."""
        known.due = False
        known.looked_at = self._loop.time()
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                listed = await self._same_modules(known)
                known.differs = listed is None
                known.data_differs = listed is not None and not await self._same_data(known, listed)
        except (TimeoutError, httpx.HTTPError, OSError):
            known.due = True

    async def _same_modules(self, known: _Known) -> bytes | None:
        """The server's list of modules, where they are ours. Raises: TimeoutError, httpx.HTTPError, OSError."""
        try:
            status, listed = await self._get(MODULES, LIST_BYTES_MAX)
            return listed if status == OK and await asyncio.to_thread(same, known.modules, listed) else None
        except MalformedReplyError:
            return None

    async def _same_data(self, known: _Known, listed: bytes) -> bool:
        """Raises: TimeoutError, httpx.HTTPError, OSError."""
        if known.data is None:
            return False
        try:
            status, found = await self._get(DATA, DATA_BYTES_MAX)
            if status != OK:
                return False
            where = await asyncio.to_thread(defined, listed)
            return await asyncio.to_thread(same_data, known.data, where, found)
        except MalformedReplyError:
            return False

    async def _get(self, path: str, bytes_max: int = BODY_BYTES_MAX) -> tuple[int, bytes]:
        """Status and body, on a connection of its own; a body that is not JSON counts as none.

        Raises: httpx.HTTPError, OSError, MalformedReplyError.
        """
        response = await self._transport.handle_async_request(self._request("GET", self._url.join(path), alone=True))
        try:
            body = await _read(response, bytes_max)
        finally:
            await response.aclose()
        return response.status_code, body if is_json_type(response.headers.get("content-type", "")) else b""

    async def _read_version(self) -> str | None:
        """Learns the server's version, and returns the revision of our bundle there. Raises: as `_get`."""
        status, body = await self._get(VERSION)
        if status != OK:
            return None
        revision, version = provenance(members(body), self._bundle)
        self._learn_version(version)
        return revision

    async def inspect(self, timeout_seconds: float) -> Found:
        """What the server says of itself, for `eab doctor`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                ready, _ = await self._get(BUNDLES)
                revision = await self._read_version()
        except TimeoutError:
            return Found(problem=f"no answer within {timeout_seconds:g} s")
        except (httpx.HTTPError, OSError, MalformedReplyError) as error:
            return Found(problem=str(error) or type(error).__name__)
        return Found(version=self._version or "", revision=revision, ready=ready == OK)

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- constitutions: the worker's

    async def load(self, path: Path) -> Loaded:
        """Makes a constitution ready here, and looks whether the server has it too. Raises: ConstitutionRejected."""
        loaded = await self._worker.load(path)
        modules, data = await asyncio.to_thread(lambda: (modules_of(path), data_of(path)))
        known = self._known[loaded.digest] = _Known(str(loaded.revision), modules, data)
        with contextlib.suppress(TimeoutError, httpx.HTTPError, OSError, MalformedReplyError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._read_version()
                await self._look(known)
        known.due = known.due or known.differs or known.data_differs  # it may be about to fetch them
        return loaded

    async def drop(self, digest: str) -> None:
        self._known.pop(digest, None)
        await self._worker.drop(digest)

    async def check(self, path: Path) -> Checked:
        return await self._worker.check(path)

    async def pack(self, path: Path, out: Path) -> str:
        return await self._worker.pack(path, out)

    async def hash(self, path: Path) -> str:
        """The constitutional hash of a folder or bundle. Raises: ConstitutionRejected."""
        return await self._worker.hash(path)

    async def verify(self, path: Path, keys: Sequence[str]) -> Verified:
        return await self._worker.verify(path, keys)

    async def close(self) -> None:
        """Closes every connection and ends the worker. What is still asked is answered policy_unavailable."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.aclose()
        await self._worker.close()


async def _read(response: httpx.Response, bytes_max: int) -> bytes:
    """The body, decoded. Raises: MalformedReplyError, as soon as it is too large."""
    inflater = Inflater(response.headers.get("content-encoding", "").strip().lower(), bytes_max)
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for piece in response.stream:
        inflater.feed(piece)
    return inflater.body()


def version_numbers(version: str) -> tuple[int, ...]:
    """1.22.2 as (1, 22, 2), as far as it is numbers."""
    found = []
    for part in version.partition("-")[0].split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return tuple(found)
