"""Policy workers that are killed, stopped, talk rubbish, or are kept busy for ever: nothing is decided by accident."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from enhanced_agent_bus.engines.link import WorkerLostError
from enhanced_agent_bus.engines.worker import STARTS_MAX, WorkerEngine
from enhanced_agent_bus.errors import EngineMissing
from enhanced_agent_bus.verdict import Answer
from tests.forked import is_refused_in_a_child
from tests.support import write_constitution

Make = Callable[..., Path]
SECONDS = 10.0

BOMBS = """
admit if not input.message.payload.bomb

admit if {
	input.message.payload.bomb == "loops"
	numbers.range(1, 10000)[a] + numbers.range(1, 10000)[b] == -1
}

nodes := numbers.range(1, 11)

admit if {
	input.message.payload.bomb == "paths"
	edges := {sprintf("%d", [a]): [sprintf("%d", [b]) | some b in nodes] | some a in nodes}
	count(graph.reachable_paths(edges, {"1"})) == -1
}

admit if {
	input.message.payload.bomb == "patch"
	patches := [{"op": "add", "path": sprintf("/%d", [n]), "value": n} | some n in numbers.range(0, 60000)]
	count(json.patch(numbers.range(0, 60000), patches)) == -1
}

admit if {
	input.message.payload.bomb == "memory"
	long := concat("", ["0123456789" | some _ in numbers.range(1, 20000)])
	longer := [concat("", [sprintf("%d", [n]), long]) | some n in numbers.range(1, 20000)]
	count(longer) == -1
}
"""


def document(**payload: Any) -> bytes:
    """An input document, as far as these rules read it."""
    return json.dumps({"message": {"id": "m", "payload": payload}}).encode()


def allows(answer: Answer) -> bool:
    """Whether this is a yes."""
    return answer.code is None and json.loads(answer.body)["allow"] is True


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[WorkerEngine]:
    """Two workers."""
    made = await WorkerEngine.start()
    yield made
    await made.close()


async def pids(engine: WorkerEngine) -> set[int]:
    """The live workers."""
    return {worker["pid"] for worker in await engine.stats()}


async def until(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Wait for a condition, which may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if await held if asyncio.iscoroutine(held) else held:
                return
            await asyncio.sleep(0.01)


async def staffed(engine: WorkerEngine, without: set[int]) -> bool:
    """Whether there are two workers, none of them one of these."""
    live = await pids(engine)
    return len(live) == 2 and not live & without


@pytest.mark.parametrize("bomb", ["loops", "paths", "patch"])
async def test_a_bomb_is_a_timeout_and_stops_nobody_else(
    engine: WorkerEngine, constitution_dir: Make, bomb: str
) -> None:
    """Evaluations that run for ever, in Rego or inside one built-in, are answered by their deadline; meanwhile each
    question of another tenant gets its answer.
    """
    digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
    loop = asyncio.get_running_loop()

    async def explode() -> tuple[Answer, float]:
        started = loop.time()
        answer = await engine.decide(digest, "mallory", document(bomb=bomb), 0.25)
        return answer, loop.time() - started

    bombs = [asyncio.ensure_future(explode()) for _ in range(6)]
    others = 0
    while not all(task.done() for task in bombs):
        assert allows(await engine.decide(digest, "acme", document(), SECONDS))
        others += 1
    for answer, took in await asyncio.gather(*bombs):
        assert answer.code in {"policy_timeout", "policy_unavailable"}
        assert took < 0.25 + 0.5
    assert others > 10
    for _ in range(20):
        assert allows(await engine.decide(digest, "mallory", document(), SECONDS))


async def test_a_worker_past_its_own_deadline_is_replaced(engine: WorkerEngine, constitution_dir: Make) -> None:
    """What cannot be interrupted is killed: no worker stays behind with it."""
    digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
    before = await pids(engine)
    answer = await engine.decide(digest, "mallory", document(bomb="paths"), 0.1)
    assert answer.code == "policy_timeout"
    await until(lambda: _any_gone(engine, before))


async def _any_gone(engine: WorkerEngine, before: set[int]) -> bool:
    live = await pids(engine)
    return len(live) == 2 and live != before


async def test_a_killed_worker_costs_no_answer(engine: WorkerEngine, constitution_dir: Make) -> None:
    """What was in flight is asked once more, of the other worker; then there are two again."""
    digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
    victim = min(await pids(engine))
    asked = [asyncio.ensure_future(engine.decide(digest, f"t{n % 9}", document(n=n), SECONDS)) for n in range(300)]
    await asyncio.sleep(0)  # they are on their way
    os.kill(victim, signal.SIGKILL)
    answers = await asyncio.gather(*asked)
    assert [answer for answer in answers if not allows(answer)] == []
    await until(lambda: staffed(engine, {victim}))
    assert allows(await engine.decide(digest, "acme", document(), SECONDS))


async def test_killing_every_worker_at_once_decides_nothing_wrong(engine: WorkerEngine, constitution_dir: Make) -> None:
    """A question is asked twice at most, so some may be refused; the next ones wait for a replacement."""
    digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
    victims = await pids(engine)
    asked = [asyncio.ensure_future(engine.decide(digest, f"t{n % 9}", document(n=n), SECONDS)) for n in range(300)]
    await asyncio.sleep(0)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for answer in await asyncio.gather(*asked):
        assert allows(answer) or answer.code == "policy_unavailable"
    assert allows(await engine.decide(digest, "acme", document(), SECONDS))
    await until(lambda: staffed(engine, victims))


async def test_a_stopped_worker_is_replaced(engine: WorkerEngine, constitution_dir: Make) -> None:
    """SIGSTOP: the questions that it holds end by their deadlines, and the next ones are decided."""
    digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
    before = await pids(engine)
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    await until(lambda: all(has_stopped(pid) for pid in before))
    loop = asyncio.get_running_loop()
    started = loop.time()
    short = [engine.decide(digest, "acme", document(n=n), 0.2) for n in range(10)]
    long = [engine.decide(digest, "acme", document(n=n), SECONDS) for n in range(10)]
    asked_long = asyncio.gather(*long)
    answers = await asyncio.gather(*short)
    assert {answer.code for answer in answers} == {"policy_timeout"}
    assert loop.time() - started < 0.2 + 0.5
    assert all(allows(answer) for answer in await asked_long)  # asked again of the replacements
    await until(lambda: staffed(engine, before))


async def test_a_worker_out_of_memory_is_replaced(constitution_dir: Make) -> None:
    """A policy that fills the memory ends its worker, not the machine, and is no allow."""
    engine = await WorkerEngine.start(workers=2, memory_mb=64)
    try:
        digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
        answer = await engine.decide(digest, "mallory", document(bomb="memory"), SECONDS)
        assert answer.code in {"policy_unavailable", "policy_timeout"}
        assert allows(await engine.decide(digest, "acme", document(), SECONDS))
    finally:
        await engine.close()


FAKE = """
#!{python}
import json, os, socket, struct, sys
open({starts!r}, "a").write("x")
stream = socket.socket(fileno=0)
def read():
    head = stream.recv(13, socket.MSG_WAITALL)
    if len(head) < 13: sys.exit()
    length, ident, op = struct.unpack("<IQB", head)
    return ident, op, stream.recv(length - 9, socket.MSG_WAITALL) if length > 9 else b""
def write(ident, status, body):
    stream.sendall(struct.pack("<IQB", 9 + len(body), ident, status) + body)
ident, op, body = read()
write(ident, 0, json.dumps({{"protocol": 1, "opa": "1", "capabilities": "0" * 64, "pid": os.getpid()}}).encode())
while True:
    ident, op, body = read()
    {answer}
"""

YES = 'b"\\0\\0\\0\\0" + json.dumps({"allow": True}).encode()'
RUBBISH = {
    "noise": 'stream.sendall(b"HTTP/1.1 200 OK" * 9)',
    "an answer to another question": f"write(ident + 1, 0, {YES})",
    "an unknown status": f"write(ident, 7, {YES})",
    "a decision that is too short": 'write(ident, 0, b"ab")',
    "an error that is no JSON": 'write(ident, 1, b"{{")',
    "an error that is no object": 'write(ident, 1, b"[1]")',
    "a frame without an end": 'stream.sendall(struct.pack("<IQB", 2**31, ident, 0))',
    "the end": "sys.exit()",
    "silence and a closed socket": "stream.shutdown(socket.SHUT_RDWR)",
}


def fake(tmp_path: Path, answer: str) -> tuple[Path, Path]:
    """A program that greets like a worker and then answers like this; and the file that counts its starts."""
    starts = tmp_path / "starts"
    program = tmp_path / "worker"
    program.write_text(FAKE.format(python=sys.executable, starts=str(starts), answer=answer).lstrip())
    program.chmod(0o755)
    return program, starts


@pytest.mark.parametrize("kind", list(RUBBISH))
async def test_rubbish_on_the_pipe_decides_nothing(tmp_path: Path, kind: str) -> None:
    """A worker that breaks the protocol is replaced; its question is asked once more, and then is unavailable."""
    program, starts = fake(tmp_path, RUBBISH[kind].replace("{{", "{"))
    engine = await WorkerEngine.start(program, workers=1)
    try:
        answer = await engine.decide("0" * 64, "acme", document(), SECONDS)
    finally:
        await engine.close()
    assert answer.code == "policy_unavailable"
    assert answer.body == b""
    assert len(starts.read_text()) >= 2  # it was asked of a second one


async def test_a_worker_that_stands_still_while_it_loads_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading may take long; a worker that does not even say that it lives is ended before that time is over."""
    program, starts = fake(tmp_path, "pass")
    engine = await WorkerEngine.start(program, workers=1)
    monkeypatch.setattr("enhanced_agent_bus.engines.link.PROBE_SECONDS", 0.2)
    try:
        with pytest.raises(WorkerLostError, match="did not answer stats"):
            await asyncio.wait_for(engine.load(write_constitution(tmp_path / "policies")), SECONDS)
        await until(lambda: len(starts.read_text()) >= 2)
    finally:
        await engine.close()


async def test_a_worker_that_stands_still_before_it_greets_does_not_end_the_staffing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time may be over while it is just being looked at: that is a worker that was lost, and nothing else."""
    monkeypatch.setattr("enhanced_agent_bus.engines.process.HELLO_SECONDS", 0.2)
    monkeypatch.setattr("enhanced_agent_bus.engines.link.PROBE_SECONDS", 0.15)
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    with pytest.raises(EngineMissing, match=r"does not start: .* did not answer hello"):
        await asyncio.wait_for(WorkerEngine.start(program, workers=1), SECONDS)


async def test_workers_that_always_die_are_not_started_in_a_storm(tmp_path: Path) -> None:
    """Questions go on being refused while the pauses between starts hold."""
    program, starts = fake(tmp_path, RUBBISH["the end"])
    engine = await WorkerEngine.start(program, workers=2)
    loop = asyncio.get_running_loop()
    try:
        end = loop.time() + 1.5
        while loop.time() < end:
            answer = await engine.decide("0" * 64, "acme", document(), 0.05)
            assert answer.code in {"policy_unavailable", "policy_timeout"}
    finally:
        await engine.close()
    assert 3 <= len(starts.read_text()) <= STARTS_MAX


async def test_a_blocked_loop_does_not_cost_a_worker(engine: WorkerEngine, constitution_dir: Make) -> None:
    """When a handler blocks the loop for longer than any deadline, the workers are not the ones to blame."""
    digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
    before = await pids(engine)
    asked = asyncio.ensure_future(engine.decide(digest, "acme", document(), 0.05))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    time.sleep(0.6)  # noqa: ASYNC251  (this is the fault)
    assert (await asked).code in {None, "policy_timeout"}
    for _ in range(5):
        assert allows(await engine.decide(digest, "acme", document(), SECONDS))
    assert await pids(engine) == before


async def test_a_forked_child_decides_nothing_and_harms_nothing(engine: WorkerEngine, constitution_dir: Make) -> None:
    """The child of a fork gets refusals, and its end leaves the parent's workers alone."""
    digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
    before = await pids(engine)
    assert await is_refused_in_a_child(engine.decide(digest, "acme", document(), 1.0))
    assert allows(await engine.decide(digest, "acme", document(), SECONDS))
    assert await pids(engine) == before


def has_stopped(pid: int) -> bool:
    """Whether a SIGSTOP has reached every thread of the process."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.exists():  # no Linux: the process as a whole has to do
        return subprocess.check_output(["ps", "-o", "stat=", "-p", str(pid)], text=True).startswith("T")
    return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in tasks.glob("*/stat"))


def alive(pid: int) -> bool:
    """Whether a process with this id runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_close_leaves_no_process_and_no_question(constitution_dir: Make) -> None:
    """What is still asked is refused; every worker has ended when `close` returns."""
    engine = await WorkerEngine.start()
    digest = (await engine.load(constitution_dir({"bombs": BOMBS}))).digest
    before = await pids(engine)
    asked = [asyncio.ensure_future(engine.decide(digest, "m", document(bomb="loops"), SECONDS)) for _ in range(5)]
    await asyncio.sleep(0)
    await engine.close()
    assert {answer.code for answer in await asyncio.gather(*asked)} == {"policy_unavailable"}
    assert [pid for pid in before if alive(pid)] == []
    assert (await engine.decide(digest, "acme", document(), 1.0)).code == "policy_unavailable"
    await engine.close()


def _what_it_has(pid: int) -> tuple[list[bytes], list[str]]:
    """A process's environment and the targets of its file descriptors."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return environment, [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows what a process has")
async def test_a_worker_inherits_nothing(tmp_path: Path) -> None:
    """No variable of the environment but the three it is given, no file that the parent has open."""
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)  # noqa: FBT003  (the standard library's own)
        engine = await WorkerEngine.start(workers=1)
        try:
            (pid,) = await pids(engine)
            environment, files = _what_it_has(pid)
        finally:
            await engine.close()
    assert sorted(variable.split(b"=")[0] for variable in environment if variable) == [b"GOGC", b"GOMEMLIMIT", b"TZ"]
    assert str(tmp_path / "secret") not in files
    assert len([file for file in files if file.startswith("socket:")]) <= 2  # its own, and Go's copy of it


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows what a process has")
async def test_workers_end_with_their_parent() -> None:
    """`kill -9` of the process that uses the bus leaves no worker behind."""
    program = """
        import asyncio
        from enhanced_agent_bus.engines.worker import WorkerEngine
        async def main():
            engine = await WorkerEngine.start()
            print(*[worker["pid"] for worker in await engine.stats()], flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in (await parent.stdout.readline()).split()]
    assert len(workers) == 2
    parent.kill()
    await parent.wait()
    await until(lambda: not any(alive(pid) for pid in workers))
