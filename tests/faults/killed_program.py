"""A user's program that tests kill: it sends and handles messages, and notes what it was told and what it did.

`python killed_program.py HOME CONSTITUTION RUN` is one run. HOME.notes gets a line of JSON for each message that was
accepted, and for each handler that begins: what `tests/history_checker.py` reads.

Without arguments it runs what comes on standard input, a line of JSON `[HOME, CONSTITUTION, RUN, PLAN]` each, in a
process of its own that is forked off once everything is imported, under this plan of fault points, its errors going to
HOME.errors; and answers how that process ended, a line each.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
import traceback

from enhanced_agent_bus import Agent, Message, Retry, open_bus

MESSAGES = 40
SENDERS = 4


def note(home: str, **fields: object) -> None:
    """Appends a line in one write, which a kill leaves whole."""
    file = os.open(f"{home}.notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{json.dumps(fields)}\n".encode())
    os.close(file)


def records(home: str) -> int:
    """How many records anybody can read in the log now."""
    database = sqlite3.connect(f"file:{home}/bus.db?mode=ro", uri=True)
    with contextlib.closing(database):
        (count,) = database.execute("SELECT coalesce(max(seq) + 1, 0) FROM records").fetchone()
    return int(count)


async def main(home: str, constitution: str, run: str) -> None:
    """Sends MESSAGES from SENDERS tasks and waits for the end of all that waits."""
    failed: set[str] = set()

    async def book(message: Message) -> dict[str, str] | None:
        note(
            home, ran=message.id, what=message.payload["what"], attempt=message.attempt, digest=message.digest,
            constitution=message.constitution, records=records(home),
        )  # fmt: skip
        if message.payload["n"] % 4 == 0 and message.id not in failed:
            failed.add(message.id)
            raise ValueError("the first time")
        return {"booked": message.id} if message.payload["n"] % 3 == 0 else None

    async def send(desk: Agent, first: int) -> None:
        for n in range(first, MESSAGES, SENDERS):
            receipt = await desk.send("booker", {"n": n, "what": f"{run}-{n}"}, id=f"{run}-{n}")
            if receipt.ok:
                note(home, told=receipt.state, id=receipt.message_id, digest=receipt.digest)

    policy, recovery = {"workers": 1, "timeout_seconds": 5}, {"breaker_failures": 1_000_000}  # it would only wait
    async with open_bus(home, constitution=constitution, policy=policy, recovery=recovery) as bus:
        # Runs that were cut off count as failed: as many attempts as no message has.
        retry = Retry.exponential(attempts=99, base_seconds=0.001, cap_seconds=0.01)
        await bus.register("booker", book, tenant="acme", retry=retry, concurrency=2)
        desk = await bus.register("desk", tenant="acme")
        async with asyncio.TaskGroup() as tasks:
            for first in range(SENDERS):
                tasks.create_task(send(desk, first))
        await bus.wait_idle(timeout=60)


async def everything_imported(constitution: str) -> None:
    """What a bus needs is loaded when it is opened."""
    async with open_bus(":memory:", constitution=constitution, policy={"workers": 1}):
        pass


def forked(home: str, constitution: str, run: str, plan: str) -> int:
    """One run in a process of its own; how it ended: its exit status, or the signal as a negative number."""
    child = os.fork()
    if child == 0:
        status = 1
        errors = os.open(f"{home}.errors", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(errors, 2)
        os.environ["EAB_FAULTPOINT"] = plan
        try:
            asyncio.run(main(home, constitution, run))
            status = 0
        except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def runs() -> None:
    """What is asked for on standard input, one after the other."""
    ready = False
    for line in sys.stdin:
        home, constitution, run, plan = json.loads(line)
        if not ready:
            asyncio.run(everything_imported(constitution))
            ready = True
        sys.stdout.write(f"{forked(home, constitution, run, plan)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(*sys.argv[1:]))
    else:
        runs()
