"""Nodes of one bus are the witnesses of each other's logs, and come to rest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from enhanced_agent_bus.ledger.checkpoint import Checkpoint, Signer
from enhanced_agent_bus.letters.vouching import Vouching, seal_vouching
from enhanced_agent_bus.ports import Item
from enhanced_agent_bus.transports.memory import open_memory
from tests.acceptance.test_nodes import nodes
from tests.developer import Inbox, log, until

QUICK: dict[str, Any] = {"checkpoint_seconds": 0.05, "checkpoint_records": 2}


def name_of(home: Path) -> str:
    """The origin of a home's log."""
    return "{bus}/{node}".format(**log(home)[0])


def noted(home: Path, origin: str) -> list[int]:
    """The sizes of another log that a home has on record."""
    return [record["size"] for record in log(home, "witness", event="witnessed", origin=origin)]


async def test_two_nodes_witness_each_other_and_come_to_rest(tmp_path: Path) -> None:
    """Each has the newest checkpoint of the other, `no_witness` is over, and an idle bus writes no more."""
    where = {"url": f"memory://{tmp_path.name}"}
    async with nodes(tmp_path, where, "a", "b", audit=QUICK) as (a, b):
        homes = tmp_path / "a", tmp_path / "b"
        desk = await a.register("desk", tenant="acme")
        await b.register("booker", Inbox(), tenant="acme")
        await until(lambda: any(one.id == "booker" for one in a.agents()))
        for _ in range(5):
            assert (await (await desk.send("booker")).outcome(timeout=10)).state == "delivered"

        def settled() -> bool:
            for one, other in (homes, homes[::-1]):
                newest = max((record["size"] for record in log(other, "checkpoint")), default=-1)
                if max(noted(one, name_of(other)), default=0) != newest:
                    return False
            return not {"no_witness"} & {*a.status().security_state, *b.status().security_state}

        await until(settled)
        sizes = [len(log(home)) for home in homes]
        await asyncio.sleep(0.6)  # no event says that nothing happens: twelve times as long as a round takes
        assert settled()
        assert [len(log(home)) for home in homes] == sizes
        for one, other in (homes, homes[::-1]):
            steps = noted(one, name_of(other))
            assert steps == sorted(set(steps)), "each checkpoint once"


async def test_alone_nobody_has_the_log(tmp_path: Path) -> None:
    """A node of a bus that has no other one is not witnessed."""
    async with nodes(tmp_path, {"url": f"memory://{tmp_path.name}"}, "a", audit=QUICK) as (a,):
        assert "no_witness" in a.status().security_state


async def test_nobody_can_show_a_checkpoint_for_another_node(tmp_path: Path) -> None:
    """What is not signed by that node's key is not recorded, and a checkpoint of a third log neither."""
    where = {"url": f"memory://{tmp_path.name}"}
    async with nodes(tmp_path, where, "a", "b", audit=QUICK) as (a, _b):
        home, origin = tmp_path / "a", name_of(tmp_path / "b")
        await until(lambda: noted(home, origin))
        before = max(noted(home, origin))
        thief = Signer.fresh(origin)
        note = thief.sign(Checkpoint(origin, 10_000, bytes(32)))
        stranger = open_memory(where["url"])
        bucket = await stranger.bucket("checkpoints")
        node = origin.rpartition("/")[2]
        await bucket.put(node, seal_vouching(thief, Vouching(origin, note, {name_of(home): 10_000})))
        shown: list[Item] = []
        stop = await bucket.watch(lambda item: shown.append(item) if item.key in name_of(home) else None)
        for agent in ("desk", "booker"):  # between two checkpoints that it shows it looks at what others show
            count = len(shown)
            await a.register(agent, tenant="acme")
            await until(lambda: len(shown) > count)  # noqa: B023 - awaited here
        stop()
        assert max(noted(home, origin)) < 10_000
        assert before < 10_000
        await stranger.close()
