"""The control socket: how a command reaches the bus of another process that has the home open.

One JSON object a line: `{"op": ..., "args": {...}}` is answered by `{"ok": ...}` or `{"error": {code, message, remedy,
kind}}`. Only the owner of the home can connect (mode 0600), so an operator here may do what opening the home would
allow, and nothing more: each operation calls one public method of the bus.

Not here: who takes the lock (ledger), what is printed (cli).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from enhanced_agent_bus import errors
from enhanced_agent_bus.admission.canonical import NotJson
from enhanced_agent_bus.errors import BusError, ConstitutionRejected
from enhanced_agent_bus.message import Message, Priority
from enhanced_agent_bus.outcome import Outcome, Receipt

if TYPE_CHECKING:
    from enhanced_agent_bus.bus import AgentBus

SOCKET_NAME: Final = "control.sock"
PATH_BYTES_MAX: Final = 100  # the kernels' limit on a socket's path is 104 to 108 bytes
LINE_BYTES_MAX: Final = 16 * 1024 * 1024  # a longer request is answered by an error and the connection closed
CONNECTIONS_MAX: Final = 16  # one more is told that the bus is busy
IDLE_SECONDS_MAX: Final = 30.0  # a connection that asks nothing for so long is closed
CONNECT_SECONDS_MAX: Final = 5.0

T = TypeVar("T")
Json: TypeAlias = Any  # what json.loads makes; whoever reads it knows its shape
Operation = Callable[["AgentBus", "Arguments"], Awaitable[Json]]


# --- values as JSON ------------------------------------------------------------------------------------------------


def plain(value: Json) -> Json:
    """The JSON form of what the bus answers: dataclasses as objects, times as RFC 3339, messages without content."""
    if isinstance(value, Message):
        return message_document(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        document = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name[0] != "_"}
        return document | {"ok": value.ok} if isinstance(value, Receipt) else document
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def message_document(message: Message, *, content: bool = False) -> dict[str, Any]:
    """A message as JSON; payload and headers only when asked for."""
    names = ("id", "type", "sender", "tenant", "recipient", "topic", "conversation", "cause", "hops", "digest")
    document = {name: getattr(message, name) for name in names}
    document["priority"] = int(message.priority)
    if content:
        document["payload"], document["headers"] = message.payload, message.headers
    return document


def outcome_document(outcome: Outcome, *, content: bool = False) -> dict[str, Any]:
    """An outcome as JSON; its reply's payload only when asked for."""
    document: dict[str, Any] = plain(outcome)
    if outcome.reply is not None:
        document["reply"] = message_document(outcome.reply, content=content)
    return document


_LIMITS: Final = ("percent", "max_refusals", "max_errors", "over")  # of an activation; the bus checks them

# --- operations ----------------------------------------------------------------------------------------------------


class Arguments:
    """The arguments of one request, taken by name and type. Raises: ValueError, when one is missing or another type."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def take(self, name: str, kind: type[T]) -> T:
        value = self._values.get(name)
        if isinstance(value, kind):
            return value
        raise ValueError(f"argument {name!r} must be {kind.__name__}, not {type(value).__name__}")

    def maybe(self, name: str, kind: type[T]) -> T | None:
        return None if self._values.get(name) is None else self.take(name, kind)

    def raw(self, name: str) -> Json:
        return self._values.get(name)


async def _send(bus: AgentBus, args: Arguments) -> list[Any]:
    """Answers the receipts: one, or for a topic one a subscriber."""
    agent = await bus.agent(args.take("from", str))
    seconds = args.raw("expires_in")
    common: dict[str, Any] = {
        "type": args.maybe("type", str) or ("command" if args.raw("topic") is None else "event"),
        "priority": Priority.NORMAL if args.raw("priority") is None else Priority(args.take("priority", int)),
        "id": args.maybe("id", str),
        "conversation": args.maybe("conversation", str),
        "headers": args.maybe("headers", dict),
        "expires_in": None if seconds is None else float(seconds),
    }
    unreadable = args.maybe("unreadable", dict)  # a text that is no JSON: admission refuses it, and that is recorded
    payload = args.raw("payload") if unreadable is None else NotJson(unreadable["code"], unreadable["message"])
    topic = args.maybe("topic", str)
    if topic is not None:
        return [plain(receipt) for receipt in await agent.publish(topic, payload, **common)]
    receipt = await agent.send(args.maybe("to", str), payload, capability=args.maybe("capability", str), **common)
    return [plain(receipt)]


async def _outcome(bus: AgentBus, args: Arguments) -> Json:
    """Answers null when the message has not ended in time."""
    seconds = args.raw("timeout")
    try:
        outcome = await bus.outcome(args.take("id", str), timeout=None if seconds is None else float(seconds))
    except TimeoutError:
        return None
    return outcome_document(outcome, content=args.raw("content") is True)


async def _status(bus: AgentBus, _args: Arguments) -> Json:
    return plain(bus.status())


async def _agents(bus: AgentBus, _args: Arguments) -> Json:
    return plain(bus.agents())


async def _trust_agent(bus: AgentBus, args: Arguments) -> None:
    lists = {name: args.take(name, list) for name in ("roles", "capabilities", "topics")}
    await bus.trust_agent(args.take("agent", str), tenant=args.take("tenant", str), key=args.take("key", str), **lists)


async def _distrust_agent(bus: AgentBus, args: Arguments) -> None:
    await bus.distrust_agent(args.take("agent", str))


async def _challenge(bus: AgentBus, _args: Arguments) -> str:
    """Answers the letter."""
    return bus.challenge()


async def _join(bus: AgentBus, args: Arguments) -> Json:
    return plain(await bus.join(args.take("answer", str)))


async def _send_envelope(bus: AgentBus, args: Arguments) -> list[Any]:
    """Answers the receipts, as `send` does."""
    return [plain(receipt) for receipt in await bus.send_envelope(args.take("envelope", str))]


async def _queue(bus: AgentBus, _args: Arguments) -> Json:
    return plain(bus.queue())


async def _held(bus: AgentBus, _args: Arguments) -> Json:
    return plain(bus.held())


async def _dead_letters(bus: AgentBus, _args: Arguments) -> Json:
    return plain(bus.dead_letters())


async def _replay(bus: AgentBus, args: Arguments) -> Json:
    return plain(await bus.replay(args.take("id", str)))


async def _recoveries(bus: AgentBus, _args: Arguments) -> Json:
    return plain(bus.recoveries())


async def _recovery_pause(bus: AgentBus, args: Arguments) -> None:
    await bus.pause_recovery(args.maybe("id", str))


async def _recovery_resume(bus: AgentBus, args: Arguments) -> None:
    await bus.resume_recovery(args.maybe("id", str))


async def _recovery_cancel(bus: AgentBus, args: Arguments) -> None:
    await bus.cancel_recovery(args.take("id", str))


async def _discard(bus: AgentBus, args: Arguments) -> None:
    await bus.discard(args.take("id", str), reason=args.take("reason", str))


async def _approve(bus: AgentBus, args: Arguments) -> Json:
    agent = await bus.agent(args.take("as", str))
    return plain(await agent.approve(args.take("id", str), comment=args.maybe("comment", str)))


async def _reject(bus: AgentBus, args: Arguments) -> Json:
    agent = await bus.agent(args.take("as", str))
    return plain(await agent.reject(args.take("id", str), reason=args.take("reason", str)))


async def _activate(bus: AgentBus, args: Arguments) -> Json:
    limits = {name: value for name in _LIMITS if (value := args.raw(name)) is not None}
    return plain(await bus.activate(Path(args.take("path", str)), **limits))


async def _roll_back(bus: AgentBus, _args: Arguments) -> Json:
    return plain(await bus.roll_back())


async def _shadow_start(bus: AgentBus, args: Arguments) -> Json:
    percent = args.maybe("percent", int)
    return plain(await bus.start_shadow(Path(args.take("path", str)), percent=100 if percent is None else percent))


async def _shadow_status(bus: AgentBus, _args: Arguments) -> Json:
    """Answers null when nobody looks on."""
    return plain(bus.shadow())


async def _shadow_stop(bus: AgentBus, _args: Arguments) -> Json:
    return plain(await bus.stop_shadow())


async def _facts(bus: AgentBus, args: Arguments) -> Json:
    return plain(await bus.shared_facts(args.maybe("scope", str), args.maybe("owner", str)))


async def _put_fact(bus: AgentBus, args: Arguments) -> None:
    owner, key = args.take("owner", str), args.take("key", str)
    await bus.put_fact(args.take("scope", str), owner, key, args.raw("value"))


async def _remove_fact(bus: AgentBus, args: Arguments) -> None:
    await bus.remove_fact(args.take("scope", str), args.take("owner", str), args.take("key", str))


async def _checkpoint(bus: AgentBus, _args: Arguments) -> str:
    """Answers the note."""
    return await bus.checkpoint()


async def _rotate_key(bus: AgentBus, _args: Arguments) -> str:
    """Answers the new vkey."""
    return await bus.rotate_key()


async def _note_access(bus: AgentBus, args: Arguments) -> None:
    await bus.note_access(args.take("command", str), args.take("what", str))


async def _witness(bus: AgentBus, args: Arguments) -> None:
    await bus.witness(args.take("note", str))


async def _witnessed(bus: AgentBus, args: Arguments) -> Json:
    """Answers null when nothing of that log was witnessed."""
    return bus.witnessed(args.take("origin", str))


async def _erase(bus: AgentBus, args: Arguments) -> Json:
    return plain(await bus.erase(args.take("of", str), args.take("name", str), **_said(args)))


async def _add_legal_hold(bus: AgentBus, args: Arguments) -> Json:
    return plain(await bus.add_legal_hold(args.take("of", str), args.take("name", str), **_said(args)))


async def _remove_legal_hold(bus: AgentBus, args: Arguments) -> None:
    await bus.remove_legal_hold(args.take("of", str), args.take("name", str), **_said(args))


async def _stop_traffic(bus: AgentBus, args: Arguments) -> Json:
    return plain(await bus.stop_traffic(args.take("of", str), args.take("name", str), **_said(args)))


async def _resume_traffic(bus: AgentBus, args: Arguments) -> None:
    await bus.resume_traffic(args.take("of", str), args.take("name", str), **_said(args))


def _said(args: Arguments) -> dict[str, str]:
    return {"reason": args.take("reason", str), "by": args.take("by", str)}


async def _retention(bus: AgentBus, _args: Arguments) -> Json:
    return plain(await bus.retention())


OPERATIONS: Final[Mapping[str, Operation]] = {
    "activate": _activate,
    "add_legal_hold": _add_legal_hold,
    "agents": _agents,
    "approve": _approve,
    "challenge": _challenge,
    "checkpoint": _checkpoint,
    "dead_letters": _dead_letters,
    "discard": _discard,
    "distrust_agent": _distrust_agent,
    "erase": _erase,
    "facts": _facts,
    "held": _held,
    "join": _join,
    "note_access": _note_access,
    "outcome": _outcome,
    "put_fact": _put_fact,
    "queue": _queue,
    "recoveries": _recoveries,
    "recovery_cancel": _recovery_cancel,
    "recovery_pause": _recovery_pause,
    "recovery_resume": _recovery_resume,
    "remove_fact": _remove_fact,
    "remove_legal_hold": _remove_legal_hold,
    "reject": _reject,
    "replay": _replay,
    "resume_traffic": _resume_traffic,
    "retention": _retention,
    "roll_back": _roll_back,
    "rotate_key": _rotate_key,
    "send": _send,
    "send_envelope": _send_envelope,
    "shadow_start": _shadow_start,
    "shadow_status": _shadow_status,
    "shadow_stop": _shadow_stop,
    "status": _status,
    "stop_traffic": _stop_traffic,
    "trust_agent": _trust_agent,
    "witness": _witness,
    "witnessed": _witnessed,
}


async def perform(bus: AgentBus, op: str, args: Mapping[str, Any]) -> Json:
    """Does one operation on a bus of this process, and answers as the socket would.

    Raises: BusError; KeyError, when an id is unknown; ValueError, when the request cannot be read.
    """
    operation = OPERATIONS.get(op)
    if operation is None:
        raise ValueError(f"no operation {op!r}; there are {', '.join(OPERATIONS)}")
    return await operation(bus, Arguments(args))


# --- errors across the socket --------------------------------------------------------------------------------------


def error_document(error: Exception) -> dict[str, Any]:
    """An error as it travels: what `raise_error` makes an exception of again."""
    if isinstance(error, BusError):
        document: dict[str, Any] = {
            "code": error.code,
            "message": error.message,
            "remedy": error.remedy,
            "kind": type(error).__name__,
        }
        if isinstance(error, ConstitutionRejected):
            document |= {"reason": error.reason, "details": error.details}
        return document
    if isinstance(error, KeyError):
        return {"code": "unknown_id", "message": str(error.args[0] if error.args else error), "kind": "KeyError"}
    return {"code": "bad_request", "message": str(error) or type(error).__name__, "kind": "ValueError"}


def raise_error(document: Mapping[str, Any]) -> None:
    """Raises what the other process raised: a BusError of the same class, KeyError or ValueError."""
    message, code = str(document.get("message", "")), str(document.get("code", "error"))
    kind, remedy = str(document.get("kind", "")), str(document.get("remedy", ""))
    if kind == "KeyError":
        raise KeyError(message)
    if kind == "ValueError":
        raise ValueError(message)
    if kind == "ConstitutionRejected":
        raise ConstitutionRejected(
            message, reason=str(document.get("reason", "")), details=document.get("details") or (), remedy=remedy
        )
    plain_kinds = {
        kind.__name__: kind
        for kind in (
            errors.AgentExists,
            errors.AuditUnavailable,
            errors.BusClosed,
            errors.ConfigInvalid,
            errors.EngineMissing,
            errors.StoreCorrupt,
            errors.StoreLocked,
        )
    }
    raise plain_kinds.get(kind, BusError)(message, code=code, remedy=remedy)


# --- the server ----------------------------------------------------------------------------------------------------


def socket_path(home: Path) -> Path:
    """Where the socket of this home goes: in the home, or in a new private folder where that path is too long."""
    path = home.absolute() / SOCKET_NAME
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        return path
    return Path(tempfile.mkdtemp(prefix="eab-", dir=_short_folder())) / SOCKET_NAME


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    room = PATH_BYTES_MAX - len("/eab-12345678/") - len(SOCKET_NAME)
    return folder if len(os.fsencode(folder)) <= room else "/tmp"  # noqa: S108  mkdtemp makes a private folder there


class ControlServer:
    """Serves one bus on one socket, from `start` to `close`. The process must hold the lock of the home."""

    def __init__(self, bus: AgentBus, path: Path) -> None:
        self._bus = bus
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises: OSError, when the socket cannot be made."""
        self._path.unlink(missing_ok=True)  # of a process that died: the lock is ours
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o600)  # before listen: until then nobody can connect
            self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=LINE_BYTES_MAX)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Takes no more requests, ends those under way and removes the socket."""
        if self._server is None:
            return
        self._server.close()
        current = asyncio.current_task()
        others = [task for task in self._connections if task is not current]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        self._path.unlink(missing_ok=True)
        if self._path.parent.name.startswith("eab-"):
            shutil.rmtree(self._path.parent, ignore_errors=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > CONNECTIONS_MAX:
                await _answer(writer, {"error": {"code": "busy", "message": "too many commands ask this bus at once"}})
                return
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.CancelledError):
            pass  # the other side is gone, or this server closes: either way this connection is over
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one line; False when there will be no more."""
        try:
            async with asyncio.timeout(IDLE_SECONDS_MAX):
                line = await reader.readline()
        except TimeoutError:
            return False
        except ValueError:  # longer than the reader's limit
            too_long = f"a request has at most {LINE_BYTES_MAX} bytes"
            await _answer(writer, {"error": {"code": "too_large", "message": too_long, "kind": "BusError"}})
            return False
        if not line.endswith(b"\n"):
            return False
        await _answer(writer, await self._judge(line))
        return True

    async def _judge(self, line: bytes) -> dict[str, Any]:
        try:
            op, args = _read_request(line)
            return {"ok": await perform(self._bus, op, args)}
        except (BusError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
            return {"error": error_document(error)}


def _read_request(line: bytes) -> tuple[str, dict[str, Any]]:
    request = json.loads(line)
    op, args = (request.get("op"), request.get("args", {})) if isinstance(request, dict) else (None, None)
    if isinstance(op, str) and isinstance(args, dict):
        return op, args
    raise ValueError("a request is an object with op and args")


async def _answer(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    writer.write(json.dumps(document).encode() + b"\n")
    await writer.drain()


# --- the client ----------------------------------------------------------------------------------------------------


def call(path: Path, op: str, args: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Json:
    """Asks the bus behind this socket, blocking.

    Raises: BusError, KeyError or ValueError as the other process did; OSError, when it cannot be reached.
    """
    line = json.dumps({"op": op, "args": dict(args or {})}).encode() + b"\n"
    if len(line) > LINE_BYTES_MAX:
        raise BusError(f"the request has {len(line)} bytes, more than {LINE_BYTES_MAX}", code="too_large")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_SECONDS_MAX)
        connection.connect(str(path))
        connection.settimeout(timeout)
        with suppress(BrokenPipeError):  # it closed already: why is told in what it has sent
            connection.sendall(line)
        answer = bytearray()
        while not answer.endswith(b"\n"):
            part = connection.recv(65536)
            if not part:
                raise ConnectionResetError("the running bus closed the connection without an answer")
            answer += part
    document = json.loads(answer)
    if "error" in document:
        raise_error(document["error"])
    return document.get("ok")
