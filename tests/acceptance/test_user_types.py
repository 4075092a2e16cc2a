"""The public names are typed: a user's program under mypy --strict finds what is wrong with it, and nothing else."""

import subprocess
import sys

import pytest

FINE = '''
"""A small program of a user."""

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from enhanced_agent_bus import (
    Activation, Agent, AgentBus, BusError, DeadLetter, Drained, Gate, Message, Outcome, Pass, Priority, Reason,
    Receipt, Refusal, Refused, Retry, Status, open_bus,
)


class Trip(BaseModel):
    trip: int


class Hours:
    name = "hours"

    async def check(self, message: Message) -> Pass | Refusal:
        if message.priority is Priority.CRITICAL:
            return Pass()
        return Refusal("closed", "the desk is closed", "come back tomorrow")


async def book(message: Message) -> dict[str, object] | None:
    trip: int = message.payload.trip
    return {"booked": trip, "attempt": message.attempt + message.hops}


async def nothing(message: Message) -> None:
    assert message.created_at < message.expires_at


def in_a_thread(message: Message) -> dict[str, int]:
    return {"size": len(message.headers)}


class Desk:
    async def handle(self, message: Message) -> None:
        print(message.id, message.sender, message.tenant, message.topic, message.cause, message.conversation)


async def main() -> None:
    gate: Gate = Hours()
    async with open_bus("home", constitution="policies", gates=[gate], policy={"timeout_seconds": 1}) as bus:
        desk: Agent = await bus.register("desk", tenant="acme", roles=["planner"])
        await bus.register(
            "booker", handler=book, tenant="acme", topics=["trips"], capabilities=("flights",), payload=Trip,
            retry=Retry.exponential(attempts=3, base_seconds=0.5, cap_seconds=2), concurrency=2, timeout=3.5,
            when_full="refuse",
        )
        await bus.register("thread", in_a_thread, tenant="acme")
        await bus.register("nothing", nothing, tenant="acme")
        await bus.register("desk-2", Desk().handle, tenant="acme")
        receipt: Receipt = await desk.send(
            "booker", {"trip": 7}, type="command", priority=Priority.HIGH, id="order-7", headers={"a": "b"},
            expires_in=5,
        )
        reasons: tuple[Reason, ...] = receipt.reasons
        code: str | None = receipt.code
        seq: int = receipt.audit_seq
        outcome: Outcome = await receipt.outcome(timeout=5)
        reply: Message | None = outcome.reply
        try:
            answer: Message = await desk.request("booker", Trip(trip=7), timeout=5)
            receipt.raise_for_refusal()
        except Refused as refused:
            print(refused.code.upper(), refused.receipt.reasons)
        except BusError as error:
            print(error.code.upper())
        else:
            print(answer.payload, reasons, code, seq, reply)
        many: list[Receipt] = await desk.publish("trips", {"note": "delay"})
        one: Receipt = await desk.send(capability="flights", payload={"trip": 8})
        status: Status = bus.status()
        accepted: int = status.accounting["accepted"]
        letters: list[DeadLetter] = bus.dead_letters()
        again: Receipt = await bus.replay(letters[0].message_id)
        await bus.discard(letters[0].message_id, reason="done")
        late: Outcome = await bus.outcome("desk/order-7", timeout=None)
        activation: Activation = await bus.activate("policies")
        drained: Drained = await bus.close(timeout=1)
        print(many, one, accepted, again, late, activation.digest, drained.kept, status.security_state[0].upper())
        await desk.unregister()


run: Callable[[], Awaitable[None]] = main
asyncio.run(main())
'''

WRONG = """
from enhanced_agent_bus import Agent, AgentBus, Message


class NotAGate:
    async def check(self, message: Message) -> bool:
        return True


async def main(bus: AgentBus, agent: Agent) -> None:
    await agent.send("booker", priority="high")
    await agent.request("booker")
    receipt = await agent.send("booker")
    receipt.state = "accepted"
    receipt.sate
    await bus.register("desk")
    message: Message = await agent.send("booker")
"""


SYNC = '''
"""A small program of a user, without await."""

from collections.abc import Callable

from enhanced_agent_bus import DeadLetter, Drained, Message, Outcome, Priority, Reason, Refused, Status, sync


def book(message: Message) -> dict[str, object]:
    return {"booked": message.payload}


async def note(message: Message) -> None:
    assert message.created_at < message.expires_at


def ask(agent: sync.Agent) -> Message:
    return agent.request("booker", {"trip": 7}, timeout=5)


with sync.open_bus("home", constitution="policies", policy={"timeout_seconds": 1}) as bus:
    desk: sync.Agent = bus.register("desk", tenant="acme", roles=["planner"])
    bus.register("booker", book, tenant="acme")
    bus.register("noter", note, tenant="acme")
    receipt: sync.Receipt = desk.send("booker", {"trip": 7}, priority=Priority.HIGH)
    outcome: Outcome = receipt.outcome(timeout=5)
    reasons: tuple[Reason, ...] = receipt.reasons
    try:
        print(ask(desk).payload, outcome.state, reasons)
    except Refused as refused:
        print(refused.receipt.reasons)
    many: list[sync.Receipt] = desk.publish("trips")
    status: Status = bus.status()
    letters: list[DeadLetter] = bus.dead_letters()
    again: sync.Receipt = bus.replay(letters[0].message_id)
    agent: Callable[[str], sync.Agent] = bus.agent
    held: sync.AgentBus = sync.open_bus("other")
    drained: Drained = held.close(timeout=1)

    await_it = desk.send("booker", priority="high")  # wrong
    desk.request("booker")  # wrong
    receipt.state = "accepted"  # wrong
    receipt.sate  # wrong
    bus.register("desk")  # wrong
    message: Message = desk.send("booker")  # wrong
    desk.send("booker").outcome(5).stat  # wrong
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[int]]:
    """The lines that mypy --strict finds, by program, run as a user runs it: outside of the checkout and its settings.

    All programs in one run, since most of it goes into reading the package.
    """
    folder = tmp_path_factory.mktemp("user")
    programs = {"fine.py": FINE, "wrong.py": WRONG, "without_await.py": SYNC}
    for name, program in programs.items():
        (folder / name).write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "--cache-dir",
         str(folder / "cache"), *programs],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    lines: dict[str, set[int]] = {name: set() for name in programs}
    for line in done.stdout.splitlines():
        if ": error:" in line:
            name, number, *_ = line.split(":")
            lines[name].add(int(number))
    return lines


def test_users_program_is_clean(found: dict[str, set[int]]) -> None:
    """A program that uses the public names as documented has no finding."""
    assert found["fine.py"] == set()


def test_users_mistakes_are_found(found: dict[str, set[int]]) -> None:
    """A wrong type, a missing argument, an assignment to a frozen value: each line is found."""
    assert found["wrong.py"] == {11, 12, 14, 15, 16, 17}


def test_a_program_without_await_is_typed(found: dict[str, set[int]]) -> None:
    """With `sync` what is right has no finding, and each wrong line has one."""
    wrong = {number for number, line in enumerate(SYNC.splitlines(), 1) if line.endswith("# wrong")}
    assert wrong
    assert found["without_await.py"] == wrong
