"""What a bus of one process can do, over several nodes: broadcasts, workflows, erasure, signed constitutions."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import ConstitutionRejected, Retry, open_bus
from enhanced_agent_bus.cli.app import run_command
from tests.acceptance.test_erasure import found_in
from tests.acceptance.test_nodes import in_memory, nodes, seen, where
from tests.acceptance.test_witnesses import signed_bundle
from tests.acceptance.test_workflow import Team, chain
from tests.developer import PATIENT, Inbox, adds_up, log, until

__all__ = ["where"]
pytestmark = in_memory
SECRET = "s3cret-over-nodes-4715"


async def test_a_broadcast_reaches_everyone_once(tmp_path: Path, where: dict[str, Any]) -> None:
    """Each other agent of the tenant, on whatever node, one shared by two nodes once; a topic its subscribers."""
    async with nodes(tmp_path, where, "a", "b", "c") as (a, b, c):
        boxes = {name: Inbox() for name in ("here", "there", "far", "foreign")}
        shared = [Inbox(), Inbox()]
        await a.register("here", boxes["here"], tenant="acme")
        await b.register("there", boxes["there"], tenant="acme", topics=["news.>"])
        await b.register("team", shared[0], tenant="acme", shared=True, topics=["news.*"])
        await c.register("team", shared[1], tenant="acme", shared=True, topics=["news.*"])
        await c.register("far", boxes["far"], tenant="acme")
        await c.register("foreign", boxes["foreign"], tenant="globex", topics=["news.>"])
        desk = await a.register("desk", tenant="acme")
        await seen(a, "there", "team", "far", "foreign")
        receipts = await desk.broadcast({"n": 1}, id="all")
        assert {receipt.message_id for receipt in receipts} == {
            f"desk/all/{name}" for name in ("here", "there", "team", "far")
        }
        receipts += await desk.publish("news.today", {"n": 2})
        for receipt in receipts:
            assert (await receipt.outcome(timeout=10)).state == "delivered"
        assert {name: len(box.got) for name, box in boxes.items()} == {"here": 1, "there": 2, "far": 1, "foreign": 0}
        assert len(shared[0].got) + len(shared[1].got) == 2
        assert all(adds_up(bus.status().accounting) for bus in (a, b, c))


async def test_a_workflow_runs_on_agents_of_another_node(tmp_path: Path, where: dict[str, Any]) -> None:
    """Replies come back into the steps after; where a step fails there, what was done there is undone there."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        team = Team({"bad/three": ValueError("no")})
        await b.register("team", team, tenant="acme", capabilities=["work"], concurrency=8, retry=Retry.exponential(1))
        desk = await a.register("desk", tenant="acme")
        await seen(a, "team")
        result = await chain().run(a, desk, {"trip": 7}, id="good")
        assert (result.state, result.replies["three"]) == ("completed", {"did": "good/three"})
        again = await chain().run(a, desk, {"trip": 7}, id="good")
        assert (again.state, again.replies) == ("completed", result.replies)
        assert len(team.got) == 3
        failed = await chain(timeout=5).run(a, desk, id="bad")
        assert failed.state == "compensated", failed
        assert team.did[-3:] == ["bad/three/undo", "bad/two/undo", "bad/one/undo"]
        assert adds_up(a.status().accounting)
        assert adds_up(b.status().accounting)


async def test_a_workflow_goes_on_after_its_node_was_closed(tmp_path: Path, where: dict[str, Any]) -> None:
    """A step that ran on the other node meanwhile is not run again: its reply is on record."""
    gate = asyncio.Event()
    async with nodes(tmp_path, where, "b") as (b,):
        team = Team({"w/two": gate})
        await b.register("team", team, tenant="acme", concurrency=8)
        async with nodes(tmp_path, where, "a") as (a,):
            desk = await a.register("desk", tenant="acme")
            run = asyncio.create_task(chain().run(a, desk, id="w"))
            await until(lambda: team.did == ["w/one", "w/two"])
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        gate.set()
        async with nodes(tmp_path, where, "a") as (a,):
            desk = await a.register("desk", tenant="acme")
            result = await chain().run(a, desk, id="w")
            assert (result.state, result.replies["two"]) == ("completed", {"did": "w/two"})
        assert team.did == ["w/one", "w/two", "w/three"]


async def test_each_node_erases_its_own_and_names_the_others(
    tmp_path: Path, where: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """No byte is left in the home where it was typed; the answer and the record say who else may keep it."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        await b.register("booker", Inbox({"who": SECRET}), tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        reply = await desk.request("booker", {"who": SECRET}, id="x", conversation="trip", timeout=10)
        await until(lambda: a.status().accounting["delivered"] == b.status().accounting["delivered"] == 2)
        origins = {name: f"{first['bus']}/{first['node']}" for name in ("a", "b") for first in log(tmp_path / name)[:1]}
        for name, other, left in (("a", "b", ["b"]), ("b", "a", [])):
            command = ["--home", str(tmp_path / name), "--json", "audit", "erase", "--conversation", "trip"]
            assert await asyncio.to_thread(run_command, [*command, "--reason", "request 4711"]) == 0
            told = json.loads(capsys.readouterr().out)
            assert (told["messages"], told["payloads"], told["elsewhere"]) == (2, 2, [origins[other]])
            assert [home for home in ("a", "b") if found_in(tmp_path / home, SECRET)] == left
            [record] = log(tmp_path / name, "erasure")
            assert record["elsewhere"] == [origins[other]]
        words = ["--home", str(tmp_path / "a"), "audit", "erase", reply.id, "--reason", "request 4711"]
        assert await asyncio.to_thread(run_command, words) == 0
        assert f"erase it on each: {origins['b']}" in capsys.readouterr().out
    for name in ("a", "b"):
        assert run_command(["--home", str(tmp_path / name), "audit", "verify"]) == 0
    assert run_command(["audit", "verify", "--all", str(tmp_path / "a"), str(tmp_path / "b")]) == 0


async def test_a_signed_bundle_is_activated_over_nodes(tmp_path: Path, where: dict[str, Any]) -> None:
    """Each node verifies it by its own trusted keys; one that trusts another key decides nothing until it can."""
    for name in ("first", "second", "strange"):
        (tmp_path / name).mkdir()
    first = signed_bundle(tmp_path / "first")
    second = signed_bundle(tmp_path / "second", revision="2", key=(tmp_path / "first" / "policy.key").read_bytes())
    strange = signed_bundle(tmp_path / "strange", revision="3")
    ours, others = (str(tmp_path / name / "policy.pub") for name in ("first", "strange"))

    def at(home: str, *trust: str) -> Any:
        return open_bus(tmp_path / home, constitution={"path": first, "trust": trust}, transport=where, policy=PATIENT)

    async with at("a", ours, others) as a, at("b", ours) as b:
        await b.register("booker", Inbox(), tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        for bus in (a, b):
            assert not {"constitution_folder", "unsigned_constitution"} & set(bus.status().security_state)
        active = await a.activate(second)
        await until(lambda: b.status().constitution == active.digest)
        assert (await (await desk.send("booker")).outcome(timeout=10)).state == "delivered"
        [taken] = log(tmp_path / "b", "policy", event="activated", digest=active.digest)
        assert taken["origin"] == f"{taken['bus']}/{log(tmp_path / 'a')[0]['node']}"
        for path, reason in ((first, "rollback"), (strange, "bad_signature")):
            with pytest.raises(ConstitutionRejected) as raised:
                await b.activate(path)
            assert raised.value.reason == reason
        here = await b.register("here", tenant="acme")
        foreign = await a.activate(strange)
        await until(
            lambda: log(tmp_path / "b", "policy", event="rejected", digest=foreign.digest, reason="bad_signature")
        )
        refused = await here.send("booker")
        assert (refused.code, foreign.digest in refused.reasons[0].message) == ("policy_unavailable", True)
