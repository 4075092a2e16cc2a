"""Three NATS servers as one cluster under a bus of two nodes: a server that dies, and what is known of each."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, ConfigInvalid, open_bus
from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.nats import NatsTransport, open_nats
from tests.acceptance.test_witnesses import signed_bundle
from tests.developer import PATIENT, Inbox, adds_up, log, small_bus, until
from tests.nats_server import NatsCluster, cluster

LETTERS = "EAB_eab"


def joined(servers: NatsCluster, **more: Any) -> dict[str, Any]:
    """The settings of a node of it."""
    return {"url": servers.url, "monitor": servers.monitor_url, "replicas": 3, **more}


async def seen(bus: AgentBus, agent: str) -> None:
    """Once a node knows of an agent on another."""
    await until(lambda: any(one.id == agent for one in bus.agents()), 30)


async def sync_of(servers: NatsCluster, monitors: list[str]) -> str:
    """What is said of `sync_interval` with these monitoring ports; empty when it is always."""
    transport: NatsTransport = await open_nats(Access(servers.url), "known", replicas=3, monitor=",".join(monitors))
    try:
        return " ".join(one.sentence for one in transport.weaknesses if one.name == "nats_sync")
    finally:
        await transport.close()


async def loaded(folder: Path, servers: NatsCluster, trouble: Callable[[Inbox], Awaitable[None]]) -> Counter[str]:
    """Sends from one node to the other while there is trouble; how often each message ran, when all have ended."""
    transport = joined(servers, lease_seconds=20)
    async with (
        small_bus(folder, home="a", transport=transport) as a,
        small_bus(folder, home="b", transport=transport) as b,
    ):
        assert not [name for name in a.status().security_state if name.startswith("nats")]
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme", concurrency=4)
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        stop = asyncio.Event()
        told: list[str] = []

        async def send(lane: int) -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                receipt = await desk.send("booker", {"n": number}, id=f"{lane}-{number}")
                if receipt.ok:
                    told.append(receipt.message_id)
                await asyncio.sleep(0.02)

        lanes = [asyncio.create_task(send(lane)) for lane in range(3)]
        await until(lambda: inbox.got, 30)
        await trouble(inbox)
        stop.set()
        await asyncio.gather(*lanes)
        await until(lambda: not a.queue(), 120)
        assert adds_up(a.status().accounting)
        assert adds_up(b.status().accounting)
    delivered = Counter(record["message_id"] for record in log(folder / "a", "outcome", state="delivered"))
    ran = Counter(message.id for message in inbox.got)
    allowed = {record["message_id"] for record in log(folder / "b", "decision", verdict="allow", why="receive")}
    assert set(delivered.values()) == {1}
    assert set(told) <= set(delivered)
    assert set(told) <= set(ran) <= allowed
    return ran


async def test_the_leader_dies_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    """All three are known to sync always; what was acknowledged ends once, and another server goes on by itself."""
    with cluster(tmp_path / "servers") as servers:

        async def kill(inbox: Inbox) -> None:
            await asyncio.to_thread(servers.leader(LETTERS).kill)
            at = len(inbox.got)
            await until(lambda: len(inbox.got) > at + 20, 60)

        await loaded(tmp_path, servers, kill)


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_leaders_that_die_for_long(tmp_path: Path, soak_seconds: float) -> None:
    """The same again and again, each server being back before the next one dies."""
    if soak_seconds < 60:
        pytest.skip("an election takes some seconds: `make soak`")
    deadline, kills = time.monotonic() + soak_seconds, 0
    with cluster(tmp_path / "servers") as servers:

        async def kill(inbox: Inbox) -> None:
            nonlocal kills
            while time.monotonic() < deadline:
                dead = await asyncio.to_thread(servers.leader, LETTERS)
                await asyncio.to_thread(dead.kill)
                kills += 1
                at = len(inbox.got)
                await until(lambda at=at: len(inbox.got) > at + 50, 120)  # type: ignore[misc]
                await asyncio.to_thread(dead.start)
                await until(lambda dead=dead: servers.is_ready(dead), 120)  # type: ignore[misc]

        ran = await loaded(tmp_path, servers, kill)
    twice = sum(count > 1 for count in ran.values())
    sys.stderr.write(f"{kills} leaders killed, {len(ran)} messages ran, {twice} of them more than once\n")


async def test_what_is_known_is_said_per_server(tmp_path: Path) -> None:
    """A server that syncs late, one that nobody names, one that is down, or nobody: none is taken for always."""
    with cluster(tmp_path / "servers", sync=("always", "always", "2m")) as servers:
        one, two, three = (server.monitor_url for server in servers.servers)
        assert await sync_of(servers, [one, two, three]) == (
            "of the servers that hold the bus n3 acknowledge before fsync and need sync_interval: always under "
            "jetstream; n1, n2 sync always"
        )
        assert await sync_of(servers, [one, two]) == (
            "of the servers that hold the bus n3 did not say (transport.monitor names no port of theirs that answers); "
            "n1, n2 sync always"
        )
        assert "name the monitoring port of each" in await sync_of(servers, [])
        leader = servers.leader("EAB_known")
        dead = next(server for server in servers.servers if server is not leader)
        dead.kill()  # other streams may have to elect a leader now, which is waited for
        assert f"{dead.name} did not say" in await sync_of(servers, [one, two, three])


async def test_a_strict_bus_runs_on_a_cluster_and_starts_only_on_a_whole_one(tmp_path: Path) -> None:
    """Signed constitution, pinned nodes, witnesses, three servers that sync: nothing is weak.

    With one of them dead what runs goes on, and what starts is refused until it is back.
    """
    bundle = signed_bundle(tmp_path)
    believed = {name: tmp_path / name / "keys" / "node.vkey" for name in ("a", "b")}

    def at(servers: NatsCluster, home: str, *, strict: bool) -> AbstractAsyncContextManager[AgentBus]:
        pinned = {"nodes": [str(path) for path in believed.values()]} if strict else {}
        return open_bus(
            tmp_path / home,
            constitution={"path": bundle, "trust": [str(tmp_path / "policy.pub")]},
            strict=strict,
            transport=joined(servers, lease_seconds=20, **pinned),
            audit={"witnesses": [f"file:{tmp_path}/{home}.notes"]},
            policy=PATIENT,
        )

    with cluster(tmp_path / "servers") as servers:
        for home in believed:
            async with at(servers, home, strict=False):
                pass  # makes its keys
        async with at(servers, "a", strict=True) as a:
            async with at(servers, "b", strict=True) as b:
                assert [a.security_state(), b.security_state()] == [[], []]
                await b.register("booker", Inbox(), tenant="acme")
                desk = await a.register("desk", tenant="acme")
                await seen(a, "booker")
                assert (await (await desk.send("booker")).outcome(timeout=30)).state == "delivered"
                dead = servers.servers[0] if servers.servers[1] is servers.leader(LETTERS) else servers.servers[1]
                await asyncio.to_thread(dead.kill)
                assert (await (await desk.send("booker")).outcome(timeout=60)).state == "delivered"
            with pytest.raises(ConfigInvalid, match="nats_sync"):
                async with at(servers, "b", strict=True):
                    pass
            await asyncio.to_thread(dead.start)
            await until(lambda: servers.is_ready(dead), 60)
            async with at(servers, "b", strict=True) as b:
                assert b.security_state() == []
