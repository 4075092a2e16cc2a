"""Two nodes in processes of their own on a real server, killed at fault points, cut off, and the server with them.

Judged by what the programs noted themselves, and by both logs. `make soak` does at least SOAK_KILLS kills.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.developer import log
from tests.faults.node_program import AWAY
from tests.faults.test_kill import POINTS, ROOT, lines
from tests.nats_server import NatsServer, proxy_to, running
from tests.support import write_constitution

PROGRAM = Path(__file__).with_name("node_program.py")
SOAK_KILLS = 200
KILLED = -9
SEND_POINTS = [point for point in POINTS if point.startswith(("audit", "outcome"))]
SERVE_POINTS = [point for point in POINTS if not point.startswith(("policy", "retry"))]
AHEAD = {"send": "0", "serve": "3600"}  # one node's clock is an hour off


class Nodes:
    """The two programs of one bus."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        self._folder = folder
        self._policies = write_constitution(folder / "policies")
        self.urls = {"send": server.url, "serve": server.url}
        self._runs = 0

    async def start(self, what: str, plan: str = "") -> asyncio.subprocess.Process:
        """One life of a node."""
        self._runs += 1
        home, url = self._folder / what, self.urls[what]
        with (self._folder / f"{what}.errors").open("ab") as errors:
            return await asyncio.create_subprocess_exec(
                sys.executable, str(PROGRAM), str(home), str(self._policies), url, what, str(self._runs), AHEAD[what],
                env=os.environ | {"PYTHONPATH": str(ROOT), "EAB_FAULTPOINT": plan},
                stdin=asyncio.subprocess.PIPE, stderr=errors,
            )  # fmt: skip

    def errors(self) -> str:
        return "\n".join(line for what in AHEAD for line in lines(self._folder / f"{what}.errors")[-15:])

    def judge(self) -> Counter[str]:
        """Holds the notes against both logs; how often each message ran."""
        told = [json.loads(line) for line in lines(self._folder / "send.notes")]
        ran = [json.loads(line) for line in lines(self._folder / "serve.notes")]
        allowed = {
            what: {(one["message_id"], one["digest"]) for one in log(self._folder / what, "decision", verdict="allow")}
            for what in AHEAD
        }
        for one in ran:
            assert (one["ran"], one["digest"]) in allowed["send"] & allowed["serve"], one
        ends = Counter(one["message_id"] for one in log(self._folder / "send", "outcome", state="delivered"))
        times = Counter(one["ran"] for one in ran)
        for one in told:
            assert ends[one["told"]] == 1, (one, ends[one["told"]])
            assert times[one["told"]], one
        return times


async def ended(process: asyncio.subprocess.Process) -> int:
    """Lets a serving program go."""
    assert process.stdin is not None
    process.stdin.close()
    return await process.wait()


def drawn(generator: random.Random, points: list[str]) -> str:
    """A kill at one of these fault points, drawn by the generator."""
    point = generator.choice(points)
    return f"{point}:{generator.randint(1, POINTS[point])}:kill"


async def killed_now_and_then(
    folder: Path, server: NatsServer, generator: random.Random, kills: int, seconds: float
) -> None:
    """Kills one node or the other, until there were so many kills and so much time has gone by."""
    nodes = Nodes(folder, server)
    deadline = time.monotonic() + seconds
    done = sent = 0
    serving = await nodes.start("serve", drawn(generator, SERVE_POINTS))
    async with proxy_to(server.port) as proxy:
        nodes.urls["send"] = proxy.url
        while done < kills or time.monotonic() < deadline:
            proxy.delay_seconds = generator.choice([0, 0, 0.005])
            sending = await nodes.start("send", drawn(generator, SEND_POINTS) if generator.random() < 0.6 else "")
            sent += 1
            trouble = generator.random()
            if trouble < 0.2:
                server.kill()
                await asyncio.sleep(generator.random())
                server.start()
            elif trouble < 0.4:
                await asyncio.sleep(generator.random() * 2)
                proxy.cut()
                await asyncio.sleep(generator.random())
                proxy.mend()
            waits = asyncio.ensure_future(sending.wait())
            while not waits.done():
                await asyncio.wait([waits], timeout=0.2)
                if serving.returncode is not None:
                    done += serving.returncode == KILLED
                    again = done < kills and generator.random() < 0.7
                    serving = await nodes.start("serve", drawn(generator, SERVE_POINTS) if again else "")
            assert waits.result() in (0, KILLED, AWAY), nodes.errors()
            done += waits.result() == KILLED
        last = await nodes.start("send")
        while last.returncode is None:
            await asyncio.sleep(0.1)
            if serving.returncode is not None:
                serving = await nodes.start("serve")
        assert last.returncode == 0, nodes.errors()
    assert await ended(serving) == 0, nodes.errors()
    times = nodes.judge()
    twice = sum(count > 1 for count in times.values())
    said = f"{done} kills, {sent} runs, {len(times)} messages ran, {twice} of them more than once"
    sys.stderr.write(f"{said}\n")
    assert twice <= 8 * max(done, 1), said  # those that were under way, or whose ends were on their way to the disk


@pytest.mark.timeout(120)
async def test_a_sender_that_is_killed_loses_nothing(tmp_path: Path, seed: int) -> None:
    """Each message that was acknowledged is delivered once in its log, and ran on two allows of its bytes."""
    generator = random.Random(seed)
    with running(tmp_path / "server") as server:
        nodes = Nodes(tmp_path, server)
        serving = await nodes.start("serve")
        assert await (await nodes.start("send", drawn(generator, SEND_POINTS))).wait() == KILLED, nodes.errors()
        assert await (await nodes.start("send")).wait() == 0, nodes.errors()
        assert await ended(serving) == 0, nodes.errors()
        nodes.judge()


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_nodes_that_are_killed_for_long(tmp_path: Path, seed: int, soak_seconds: float) -> None:
    """The same, with the receiver and the server killed too, and a proxy that delays and cuts."""
    if soak_seconds < 60:
        pytest.skip("a letter of a receiver that died comes again after half a minute: `make soak`")
    with running(tmp_path / "server") as server:
        await killed_now_and_then(tmp_path, server, random.Random(seed), SOAK_KILLS, soak_seconds)
