"""A handler that blocks the event loop is named: in a warning, in the status, in the log, and to another process."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from enhanced_agent_bus import Message
from tests.developer import log, small_bus, until
from tests.support import write_constitution


async def test_the_handler_that_blocks_the_loop_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Within a second, while it still blocks, by a warning; afterwards in status and log. Nothing is lost."""
    released = threading.Event()
    warned_while_blocked: list[bool] = []

    async def book(_message: Message) -> None:  # the fault: it waits without `await`
        started = time.monotonic()
        while not caplog.records and time.monotonic() - started < 30:
            time.sleep(0.01)  # noqa: ASYNC251
        warned_while_blocked.append(bool(caplog.records))
        released.set()

    caplog.set_level(logging.WARNING, "enhanced_agent_bus")
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", book, tenant="acme")
        receipt = await desk.send("booker")
        assert (await receipt.outcome(timeout=40)).state == "delivered"
        assert warned_while_blocked == [True]
        assert "the handler of booker has blocked the event loop" in caplog.text
        assert "test_watchdog.py:" in caplog.text
        await until(lambda: bus.status().blocked)
        [blocked] = bus.status().blocked
        assert (blocked.agent, blocked.over) == ("booker", True)
        assert blocked.seconds >= 0.5
    [record] = log(tmp_path / "home", "agent", event="blocked_loop")
    assert record["agent"] == "booker"
    assert record["where"].startswith("test_watchdog.py:")


async def test_a_def_handler_blocks_nobody(tmp_path: Path) -> None:
    """A plain `def` runs in a thread: others go on, and there is nothing to say."""
    may_end = threading.Event()

    def slow(_message: Message) -> None:
        may_end.wait(30)

    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("slow", slow, tenant="acme")
        await bus.register("quick", lambda _message: None, tenant="acme")
        await desk.send("slow")
        assert (await (await desk.send("quick")).outcome(timeout=20)).state == "delivered"
        may_end.set()
        assert "slow" not in {blocked.agent for blocked in bus.status().blocked}
    assert not [thread for thread in threading.enumerate() if thread.name == "eab-watchdog" and not thread.daemon]


PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from enhanced_agent_bus import open_bus

async def main(home, constitution):
    async def book(message):
        Path(home + ".blocks").touch()
        while not Path(home + ".go").exists():
            time.sleep(0.01)
    async with open_bus(home, constitution=constitution, policy={"workers": 1, "timeout_seconds": 5}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", book, tenant="acme")
        await (await desk.send("booker")).outcome()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_another_process_is_told_who_holds_up_the_bus(tmp_path: Path) -> None:
    """`eab status` does not call a bus dead that cannot answer: it runs, and this handler blocks it."""
    home, program = tmp_path / "home", tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, str(program), str(home), str(write_constitution(tmp_path / "policies"))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
    )
    command = [sys.executable, "-m", "enhanced_agent_bus", "--home", str(home), "--json", "status"]
    try:
        await until((home / "blocked").exists, 60)
        document = json.loads(await asyncio.to_thread(subprocess.check_output, command))
        assert document["running"] is True
        assert document["blocked"][0]["agent"] == "booker"
        assert document["answers"] is False
        assert document["blocked"][0]["at"].endswith("Z")
        done = await asyncio.to_thread(
            subprocess.run, [*command[:-1], "recovery", "pause"], capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 3
        assert "the handler of booker blocks its event loop" in json.loads(done.stderr)["error"]["message"]
    finally:
        Path(f"{home}.go").touch()
        _, error = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, error
    assert b"the handler of booker has blocked" in error  # where nobody set up logging, it goes to standard error
    assert not (home / "blocked").exists()
