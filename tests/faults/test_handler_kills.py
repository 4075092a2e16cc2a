"""A handler that takes its process with it, each time it is run."""

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.developer import Doorman, log, small_bus, until
from tests.support import write_constitution

PROGRAM = """
import asyncio, os, signal, sys
from enhanced_agent_bus import Message, Retry, open_bus

async def main(home: str, constitution: str) -> None:
    async def book(message: Message) -> None:
        with open(f"{home}.runs", "a") as file:
            file.write(f"{message.id} {message.attempt}\\n")
        if message.payload.get("poison"):
            os.kill(os.getpid(), signal.SIGKILL)

    async with open_bus(home, constitution=constitution, policy={"workers": 1, "timeout_seconds": 5}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", book, tenant="acme", retry=Retry.immediate(attempts=3))
        for name, poison in [("poison", True), ("one", False), ("two", False)]:
            await desk.send("booker", {"poison": poison}, id=name)
        await bus.wait_idle(timeout=20)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_handler_that_kills_its_process_each_time_ends_as_a_dead_letter(tmp_path: Path) -> None:
    """Attempts are counted across restarts; the other messages are delivered, and every run has its outcome."""
    home, program = tmp_path / "home", tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(program), str(home), str(write_constitution(tmp_path / "policies"))]
    statuses = []
    for _ in range(6):
        statuses.append(subprocess.run(command, timeout=60, check=False, capture_output=True).returncode)  # noqa: ASYNC221
        if statuses[-1] == 0:
            break
    assert statuses == [-9, -9, -9, 0]
    runs = (tmp_path / "home.runs").read_text().splitlines()
    assert [run for run in runs if "poison" in run] == [f"desk/poison {attempt}" for attempt in (1, 2, 3)]
    outcomes = log(home, "outcome", message_id="desk/poison")
    assert [(record["state"], record["attempt"]) for record in outcomes] == [
        *(("failed", attempt) for attempt in (1, 2, 3)),
        ("dead_lettered", 3),
    ]
    assert outcomes[0]["error"] == {"type": "ProcessEnded"}
    async with small_bus(tmp_path) as bus:
        [letter] = bus.dead_letters()
        assert (letter.message_id, letter.code, letter.attempts, letter.error) == (
            "desk/poison",
            "attempts_exhausted",
            3,
            "ProcessEnded",
        )
        for name in ("one", "two"):
            assert (await bus.outcome(f"desk/{name}")).state == "delivered"


async def test_a_bus_that_was_closed_counts_no_attempt(tmp_path: Path) -> None:
    """A handler that was stopped by the closing starts anew, with the attempt it had."""
    door = Doorman()
    for runs in (1, 2):
        async with small_bus(tmp_path, delivery={"drain_seconds": 0.01}) as bus:
            desk = await bus.register("desk", tenant="acme")
            await bus.register("booker", door, tenant="acme")
            await desk.send("booker", id="x")
            await until(lambda runs=runs: len(door.got) == runs)  # type: ignore[misc]
    assert {message.attempt for message in door.got} == {1}
    assert not log(tmp_path / "home", "outcome", state="failed")
