"""The kill switch: from or to what is stopped nothing new goes, and nothing that waits starts, on any node."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import BusError
from enhanced_agent_bus.cli.app import run_command
from tests.acceptance.test_nodes import nodes, seen, where
from tests.acceptance.test_one_constitution import in_memory, transport_of
from tests.developer import Doorman, Inbox, adds_up, ids, log, small_bus, until

__all__ = ["where"]


async def test_what_is_stopped_gets_and_sends_nothing(tmp_path: Path) -> None:
    """New messages are refused with the operator's reason; what waits goes on after; what runs finishes."""
    async with small_bus(tmp_path) as bus:
        door, others = Doorman(), Inbox()
        await bus.register("booker", door, tenant="acme", concurrency=1)
        await bus.register("other", others, tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        booker = await bus.agent("booker")
        running, waiting = [await desk.send("booker", id=f"{n}") for n in range(2)]
        await until(lambda: door.got)
        stopped = await bus.stop_traffic("agent", "booker", reason="it books twice", by="ann")
        assert (stopped.of, stopped.name, stopped.reason) == ("agent", "booker", "it books twice")
        for refused in (await desk.send("booker"), await booker.send("other")):
            assert (refused.state, refused.code) == ("refused", "gate_refused")
            assert refused.reasons[0].rule == "stopped"
            assert "it books twice" in refused.reasons[0].message
        door.open.set()
        assert (await running.outcome(timeout=10)).state == "delivered"
        await until(lambda: bus.status().accounting["retrying"] == 1)
        assert (await (await desk.send("other")).outcome(timeout=10)).state == "delivered"
        assert len(door.got) == 1
        await bus.resume_traffic("agent", "booker", reason="mended", by="ann")
        assert (await waiting.outcome(timeout=10)).state == "delivered"
        assert adds_up(bus.status().accounting)
        with pytest.raises(KeyError):
            await bus.resume_traffic("agent", "booker", reason="again")
    stop, resume = log(tmp_path / "home", "agent", by="ann")
    assert (stop["event"], stop["what"], stop["reason"]) == ("stopped", {"agent": "booker"}, "it books twice")
    assert (resume["event"], resume["what"]) == ("resumed", {"agent": "booker"})


@pytest.mark.parametrize(("of", "name"), [("tenant", "acme"), ("all", "")])
async def test_a_stop_outlives_the_process(tmp_path: Path, of: str, name: str) -> None:
    """A tenant or the whole bus: what waited does not start in the next process either, and expires as usual."""
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        await desk.send("booker", id="waits")
        await desk.send("booker", id="short", expires_in=0.5)
        await bus.stop_traffic(of, name, reason="audit")
    async with small_bus(tmp_path) as bus:
        assert [(one.of, one.name, one.reason) for one in bus.status().stopped] == [(of, name, "audit")]
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        assert (await bus.outcome("desk/short", timeout=10)).state == "expired"
        assert inbox.got == []
        desk = await bus.register("desk", tenant="acme")
        assert (await desk.send("booker")).code == "gate_refused"
        await bus.resume_traffic(of, name, reason="done")
        await until(lambda: ids(inbox.got) == ["desk/waits"])


async def test_what_cannot_be_stopped_is_said(tmp_path: Path) -> None:
    """A name that is none, nothing to stop by that word, no reason."""
    async with small_bus(tmp_path) as bus:
        for of, name, reason in (
            ("agent", "No Name", "x"),
            ("topic", "t", "x"),
            ("all", "acme", "x"),
            ("all", "", " "),
        ):
            with pytest.raises(ValueError, match=" "):
                await bus.stop_traffic(of, name, reason=reason)
        assert bus.stopped() == []


async def test_a_stop_on_one_node_holds_on_all(tmp_path: Path, where: dict[str, Any]) -> None:
    """Those that are there, and those that join later; each records it, and from where; so it is with resuming."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        await a.stop_traffic("agent", "booker", reason="it books twice")
        await until(b.stopped)
        assert (await desk.send("booker")).code == "gate_refused"
        here = await b.register("here", tenant="acme")
        assert (await here.send("booker")).code == "gate_refused"
        async with nodes(tmp_path, where, "c") as (c,):
            assert [one.name for one in c.status().stopped] == ["booker"]
            await c.resume_traffic("agent", "booker", reason="mended", by="ann")
            await until(lambda: not a.stopped() and not b.stopped())
        assert (await (await desk.send("booker")).outcome(timeout=10)).state == "delivered"
    [told] = log(tmp_path / "b", "agent", event="stopped")
    [said] = log(tmp_path / "a", "agent", event="stopped")
    assert (told["what"], told["reason"]) == (said["what"], said["reason"])
    assert told["origin"] == f"{said['bus']}/{said['node']}"
    [in_a], [in_b], [in_c] = [log(tmp_path / name, "agent", event="resumed") for name in "abc"]
    assert {(one["reason"], one["by"]) for one in (in_a, in_b, in_c)} == {("mended", "ann")}
    assert in_a["origin"] == in_b["origin"] == f"{in_c['bus']}/{in_c['node']}"


@in_memory
async def test_a_node_that_was_away_records_why_somebody_resumed(tmp_path: Path, where: dict[str, Any]) -> None:
    """It hears of it when it is back; of a stop that was ended twice, the reason of the one that it had."""
    async with nodes(tmp_path, where, "a") as (a,):
        async with nodes(tmp_path, where, "b"):
            await a.stop_traffic("tenant", "globex", reason="unpaid")
            await a.resume_traffic("tenant", "globex", reason="paid")
            await a.stop_traffic("tenant", "globex", reason="unpaid again")
            await until(lambda: [one["reason"] for one in heard("stopped", tmp_path)][-1:] == ["unpaid again"])
        await a.resume_traffic("tenant", "globex", reason="paid again", by="ann")
        async with nodes(tmp_path, where, "b") as (b,):
            assert b.stopped() == []
    assert [one["reason"] for one in heard("resumed", tmp_path)][-1:] == ["paid again"]
    assert heard("resumed", tmp_path)[-1]["by"] == "ann"


def heard(event: str, folder: Path) -> list[dict[str, Any]]:
    """What the node b has on record."""
    return log(folder / "b", "agent", event=event)


@in_memory
async def test_what_is_on_its_way_waits_for_the_end_of_a_stop(tmp_path: Path, where: dict[str, Any]) -> None:
    """A message that left before the stop starts no handler on the other node, and goes on after it."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        door = Doorman()
        await b.register("booker", door, tenant="acme", concurrency=1)
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        receipts = [await desk.send("booker", id=f"{n}") for n in range(3)]
        await until(lambda: door.got)
        await a.stop_traffic("all", reason="fire")
        await until(b.stopped)
        door.open.set()
        assert (await receipts[0].outcome(timeout=10)).state == "delivered"
        await until(lambda: not b.status().accounting["queued"])
        assert len(door.got) == 1
        await b.resume_traffic("all", reason="out")
        for receipt in receipts:
            assert (await receipt.outcome(timeout=10)).state == "delivered"


@in_memory
async def test_a_node_that_is_cut_off_stops_by_itself(tmp_path: Path, where: dict[str, Any]) -> None:
    """It says that the others do not know, tells them once it can, and hears first of what they stopped meanwhile."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme")
        here = await b.register("here", tenant="acme")
        theirs = transport_of(where, 1)
        theirs.network.cut(theirs)
        await a.stop_traffic("agent", "booker", reason="it books twice")
        assert (await here.send("booker")).ok  # its lease holds
        with pytest.raises(BusError, match="the other nodes could not be told") as raised:
            await b.stop_traffic("tenant", "globex", reason="unpaid")
        assert raised.value.code == "transport_away"
        with pytest.raises(BusError):
            await b.resume_traffic("tenant", "globex", reason="paid")
        assert [one.name for one in b.stopped()] == ["globex"]
        theirs.network.mend(theirs)
        told = await here.send("booker")
        while told.code == "policy_unavailable":
            told = await here.send("booker")
        assert told.code == "gate_refused"
        await until(lambda: [one.name for one in a.stopped()] == ["booker", "globex"])
        assert [one.name for one in b.stopped()] == ["booker", "globex"]
        await b.resume_traffic("tenant", "globex", reason="paid")
        await until(lambda: [one.name for one in a.stopped()] == ["booker"])


def eab(*words: str) -> int:
    """One command's exit status, outside the loop of the test."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run_command, list(words)).result()


async def test_the_command_stops_a_running_bus_and_a_resting_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the socket, or by opening the home; `eab status` shows it in both."""
    home = str(tmp_path / "home")
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        stop = ("--home", home, "stop", "--agent", "booker", "--reason", "it books twice")
        assert await asyncio.to_thread(eab, *stop) == 0
        assert [one.name for one in bus.stopped()] == ["booker"]
        assert await asyncio.to_thread(eab, "--home", home, "status") == 0
        said = capsys.readouterr().out
        assert "agent booker" in said
        assert "it books twice" in said
    assert eab("--home", home, "--json", "status") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["stopped"]] == ["booker"]
    assert eab("--home", home, "resume", "--agent", "booker", "--reason", "mended") == 0
    assert eab("--home", home, "resume", "--agent", "booker", "--reason", "mended") == 1
    assert eab("--home", home, "stop", "--reason", "which?") == 2
    assert eab("--home", home, "stop", "--all", "--reason", " ") == 2
    assert eab("--home", home, "stop", "--agent", "No Name", "--reason", "x") == 2
    capsys.readouterr()
    assert eab("--home", home, "stop", "--agent", "bookr", "--reason", "x") == 0
    assert "nobody is registered here with the agent bookr" in capsys.readouterr().err
    assert eab("--home", home, "stop", "--all", "--reason", "fire") == 0
    assert "the whole bus" in capsys.readouterr().out
