"""What can be asked of a bus through its control socket: each operation calls one public method of it.

Not here: the socket (server), and who may connect to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from enhanced_agent_bus.admission.canonical import NotJson
from enhanced_agent_bus.control.wire import Json, outcome_document, plain
from enhanced_agent_bus.message import Priority

if TYPE_CHECKING:
    from enhanced_agent_bus.bus import AgentBus

T = TypeVar("T")
Operation = Callable[["AgentBus", "Arguments"], Awaitable[Json]]

_LIMITS: Final = ("percent", "max_refusals", "max_errors", "over")  # of an activation; the bus checks them


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
    await bus.note_access(args.take("command", str), args.take("what", str), by=args.take("by", str))


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
