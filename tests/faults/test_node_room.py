"""A NATS server that is full or slow: what a sender is told, what is kept, and that it goes on by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from enhanced_agent_bus.cli.doctor_nodes import nodes as findings
from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.jetstream import asked
from enhanced_agent_bus.transports.line import Line
from tests.developer import Inbox, adds_up, ids, log, small_bus, until
from tests.nats_server import NatsServer, proxy_to

MESSAGES = 12


async def with_room_for(server: NatsServer, bus: str, size: int) -> None:
    """An operator gives the letters of a bus so many bytes."""
    line = Line(Access(server.url), name="an operator", answer_seconds=30.0, ping_seconds=30.0)
    await line.open()
    config: dict[str, Any] = (await asked(line, f"STREAM.INFO.EAB_{bus}"))["config"]
    await asked(line, f"STREAM.UPDATE.EAB_{bus}", {**config, "max_bytes": size})
    await line.close()


async def test_a_full_server_delays_and_loses_nothing(tmp_path: Path, nats_server: NatsServer) -> None:
    """Senders are accepted, what has no room waits in their home, doctor says so, and all leaves once there is room."""
    where = {"url": nats_server.url, "monitor": nats_server.monitor_url, "name": "roomless"}
    async with small_bus(tmp_path, home="a", transport=where) as a:
        async with small_bus(tmp_path, home="b", transport=where) as b:
            await b.register("booker", tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await until(lambda: any(one.id == "booker" for one in a.agents()), 30)
        await with_room_for(nats_server, "roomless", 60_000)
        receipts = [await desk.send("booker", {"n": n, "text": "x" * 10_000}, id=str(n)) for n in range(MESSAGES)]
        assert all(receipt.ok for receipt in receipts)
        await until(lambda: a.status().accounting["handed_over"] == MESSAGES, 30)
        (tmp_path / "a" / "eab.toml").write_text(
            f'[transport]\nurl = "{nats_server.url}"\nname = "roomless"\nmonitor = "{nats_server.monitor_url}"\n'
        )
        found = {one.what: one for one in await asyncio.to_thread(lambda: list(findings(tmp_path / "a")))}
        assert (found["letters"].state, "room for letters" in found["letters"].detail) == ("wrong", True)
        inbox = Inbox()
        await with_room_for(nats_server, "roomless", 2**30)
        async with small_bus(tmp_path, home="b", transport=where) as b:
            await b.register("booker", inbox, tenant="acme", concurrency=4)
            for receipt in receipts:
                assert (await receipt.outcome(timeout=60)).state == "delivered"
            assert adds_up(a.status().accounting)
            assert adds_up(b.status().accounting)
    assert Counter(ids(inbox.got)) == Counter(receipt.message_id for receipt in receipts)


async def test_a_server_that_stops_answering_stops_decisions_until_it_is_back(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    """Slow is only slow; silent for longer than the lease is refused, recorded, and over once it answers again."""
    async with proxy_to(nats_server.port) as proxy:
        where = {"name": "slow", "lease_seconds": 2}
        async with (
            small_bus(tmp_path, home="a", transport={**where, "url": proxy.url}) as a,
            small_bus(tmp_path, home="b", transport={**where, "url": nats_server.url}) as b,
        ):
            inbox = Inbox()
            await b.register("booker", inbox, tenant="acme")
            desk = await a.register("desk", tenant="acme")
            await until(lambda: any(one.id == "booker" for one in a.agents()), 30)
            proxy.delay_seconds = 0.1
            assert (await (await desk.send("booker", id="slow")).outcome(timeout=60)).state == "delivered"
            proxy.delay_seconds = 0.0
            proxy.swallow()
            refused = await desk.send("booker", id="0")
            told = [refused.message_id] if refused.ok else []
            async with asyncio.timeout(60):
                while refused.ok:
                    refused = await desk.send("booker", id=str(len(told)))
                    told += [refused.message_id] if refused.ok else []
                    await asyncio.sleep(0.1)
            assert refused.code == "policy_unavailable"
            assert "lease" in refused.reasons[0].message or "reach" in refused.reasons[0].message, refused
            proxy.cut()
            proxy.mend()
            async with asyncio.timeout(60):
                while not (receipt := await desk.send("booker")).ok:  # noqa: ASYNC110 - a send is an answer, no event
                    await asyncio.sleep(0.1)
            assert (await receipt.outcome(timeout=60)).state == "delivered"
            await until(lambda: not a.queue(), 60)
            assert adds_up(a.status().accounting)
    delivered = {record["message_id"] for record in log(tmp_path / "a", "outcome", state="delivered")}
    assert set(told) <= delivered
    assert set(ids(inbox.got)) == delivered
