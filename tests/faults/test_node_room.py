"""A NATS server that is full or slow: what a sender is told, what is kept, and that it goes on by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from enhanced_agent_bus import Message
from enhanced_agent_bus.cli.doctor_nodes import nodes as findings
from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.jetstream import asked
from enhanced_agent_bus.transports.line import Line
from tests.developer import Doorman, Inbox, adds_up, ids, log, small_bus, until
from tests.nats_server import NatsServer, proxy_to, running

MESSAGES = 12


async def with_room_for(server: NatsServer, bus: str, size: int | None, kind: str = "EAB") -> int:
    """An operator gives the letters of a bus so many bytes, or as many as there are; how many there are."""
    line = Line(Access(server.url), name="an operator", answer_seconds=30.0, ping_seconds=30.0)
    await line.open()
    stream: dict[str, Any] = await asked(line, f"STREAM.INFO.{kind}_{bus}")
    used = int(stream["state"]["bytes"])
    await asked(line, f"STREAM.UPDATE.{kind}_{bus}", {**stream["config"], "max_bytes": used if size is None else size})
    await line.close()
    return used


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


async def test_a_room_without_a_byte_left_empties_by_itself(tmp_path: Path) -> None:
    """The receiver comes to a stream that takes nothing more, on a server that may have forgotten what it handed out.

    It asks the sender's node about each letter, answers, and says how it ended: all of that has room of its own.
    """
    with running(tmp_path / "server") as server:
        where = {"url": server.url, "name": "brimful"}
        async with small_bus(tmp_path, home="a", transport=where) as a:
            async with small_bus(tmp_path, home="b", transport=where) as b:
                await b.register("booker", tenant="acme")
            desk = await a.register("desk", tenant="acme")
            await until(lambda: any(one.id == "booker" for one in a.agents()), 30)
            asked_for = [asyncio.create_task(desk.request("booker", {"n": n}, timeout=120)) for n in range(MESSAGES)]
            await until(lambda: a.status().accounting["handed_over"] == MESSAGES, 30)
            async with asyncio.timeout(60):
                while not await with_room_for(server, "brimful", None):  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(0.05)
            late = await desk.send("booker", {"n": "no room"}, id="late")
            server.kill()
            await asyncio.to_thread(server.start)
            inbox = Inbox(*({"done": n} for n in range(MESSAGES + 1)))  # the late one may come before a request
            async with small_bus(tmp_path, home="b", transport=where) as b:
                await b.register("booker", inbox, tenant="acme")
                async with asyncio.timeout(90):
                    replies = await asyncio.gather(*asked_for)
                assert (await late.outcome(timeout=60)).state == "delivered"
                assert adds_up(a.status().accounting)
                assert adds_up(b.status().accounting)
    assert len({reply.payload["done"] for reply in replies}) == MESSAGES
    assert Counter(ids(inbox.got)).most_common(1)[0][1] == 1


async def test_replies_that_nobody_takes_do_not_hold_up_other_nodes(tmp_path: Path, nats_server: NatsServer) -> None:
    """A node that asked for much and went away fills the room for replies; the others still send, and hear the end."""
    where = {"url": nats_server.url, "name": "unread"}
    guard = Doorman()

    async def books(message: Message) -> object:
        if message.payload.get("large"):
            await guard(message)
            return {"text": "x" * 10_000}
        return None

    async with small_bus(tmp_path, home="b", transport=where) as b, small_bus(tmp_path, home="c", transport=where) as c:
        await b.register("booker", books, tenant="acme", concurrency=MESSAGES + 1)
        other = await c.register("other", tenant="acme")
        async with small_bus(tmp_path, home="a", transport=where) as a:
            desk = await a.register("desk", tenant="acme")
            await until(lambda: all(any(one.id == "booker" for one in bus.agents()) for bus in (a, c)), 30)
            large = [asyncio.create_task(desk.request("booker", {"large": True}, timeout=600)) for _ in range(MESSAGES)]
            await until(lambda: len(guard.got) == MESSAGES, 30)
            await a.close(timeout=1)
            await asyncio.gather(*large, return_exceptions=True)
        await with_room_for(nats_server, "unread", 60_000, "EAB-NODES")
        guard.open.set()
        async with asyncio.timeout(60):
            while await with_room_for(nats_server, "unread", 60_000, "EAB-NODES") < 40_000:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        small = await other.send("booker", {"large": False})
        assert (await small.outcome(timeout=60)).state == "delivered"
        async with small_bus(tmp_path, home="a", transport=where) as a:
            await a.register("desk", tenant="acme")
            await until(lambda: not a.status().accounting["handed_over"] and not b.queue(), 120)
            assert a.status().accounting["delivered"] >= MESSAGES
            for bus in (a, b, c):
                assert adds_up(bus.status().accounting)
