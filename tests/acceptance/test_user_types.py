"""The public names are typed: a user's program under mypy --strict finds what is wrong with it, and nothing else."""

import subprocess
import sys
from pathlib import Path

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outside of the checkout, with mypy's cache for both programs."""
    return tmp_path_factory.mktemp("user")


def check(folder: Path, program: str) -> list[str]:
    """What mypy --strict finds, run as a user runs it: outside of the checkout and of its settings."""
    file = folder / "program.py"
    file.write_text(program)
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "--cache-dir",
         str(folder / "cache"), str(file)],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert found.returncode in (0, 1), found.stderr
    return found.stdout.splitlines()


def test_users_program_is_clean(folder: Path) -> None:
    """A program that uses the public names as documented has no finding."""
    assert check(folder, FINE) == []


def test_users_mistakes_are_found(folder: Path) -> None:
    """A wrong type, a missing argument, an assignment to a frozen value: each line is found."""
    lines = {int(line.split(":")[1]) for line in check(folder, WRONG) if ": error:" in line}
    assert lines == {11, 12, 14, 15, 16, 17}
