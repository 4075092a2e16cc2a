"""Letters between nodes that come at the wrong time: each bug that the seeds or a reader found, on the real bus."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Agent, AgentBus, BusError, RequestTimeout, Retry, open_bus
from enhanced_agent_bus.ports import Letter
from enhanced_agent_bus.transports.memory import MemoryNetwork, open_memory
from enhanced_agent_bus.verdict import Answer
from tests.acceptance.test_approvals import held, large
from tests.acceptance.test_nodes import nodes, seen
from tests.developer import Doorman, Inbox, SteppedClock, adds_up, ids, log, until


@pytest.fixture
def where(tmp_path: Path) -> dict[str, Any]:
    """A network of this test's own."""
    return {"url": f"memory://{tmp_path.name}"}


def network(where: dict[str, Any]) -> MemoryNetwork:
    """The one that the nodes of a test are on."""
    return open_memory(where["url"]).network


class Doubled:
    """Each letter comes twice."""

    def arrivals(self, letter: Letter) -> tuple[float, float]:  # noqa: ARG002 - the port's
        return (0.0, 0.0)

    def answer_lost(self, what: str) -> bool:  # noqa: ARG002 - the port's
        return False


async def test_a_letter_that_comes_twice_at_once_is_one_message(tmp_path: Path, where: dict[str, Any]) -> None:
    """Two tasks have the same id before either is on disk: one decides, one opens, and the bus goes on."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        network(where).disturbance = Doubled()
        inbox = Inbox(None, {"done": 1})
        await b.register("booker", inbox, tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        assert (await (await desk.send("booker", id="x")).outcome(timeout=10)).state == "delivered"
        assert (await desk.request("booker", {}, timeout=10)).payload == {"done": 1}
        assert len(inbox.got) == 2
        assert len(log(tmp_path / "b", "decision", message_id="desk/x")) == 1
        assert adds_up(a.status().accounting)
        assert adds_up(b.status().accounting)


class FirstNoticeLost:
    """The first letter to a node is lost on its way; `message` is the last one to an agent."""

    def __init__(self) -> None:
        self.message: Letter | None = None
        self.lost: list[str] = []

    def arrivals(self, letter: Letter) -> tuple[float, ...]:
        if letter.box.startswith("agent."):
            self.message = letter
        elif not self.lost:
            self.lost.append(letter.id)
            return ()
        return (0.0,)

    def answer_lost(self, what: str) -> bool:  # noqa: ARG002 - the port's
        return False


@pytest.mark.parametrize("answer", [None, ValueError("no")])
async def test_a_notice_that_is_sent_again_names_the_end(answer: object, tmp_path: Path, where: dict[str, Any]) -> None:
    """Its sender's node records the outcome that it follows from, as it would have by the first one; nothing runs."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        lost = network(where).disturbance = FirstNoticeLost()
        inbox = Inbox(answer, answer)
        await b.register("booker", inbox, tenant="acme", retry=Retry.immediate(2))
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        receipt = await desk.send("booker", id="x")
        await until(lambda: lost.lost)
        runs = len(inbox.got)
        assert lost.message is not None
        network(where).boxes["agent.booker"].known.clear()
        network(where).take(lost.message)
        ended = await receipt.outcome(timeout=10)
    assert len(inbox.got) == runs == (2 if answer else 1)
    there = log(tmp_path / "b", "outcome", message_id="desk/x")[-1]
    [here] = log(tmp_path / "a", "outcome", message_id="desk/x")
    assert here["state"] == there["state"] == ended.state
    assert here["by"] == {"origin": f"{there['bus']}/{there['node']}", "seq": there["seq"]}


async def test_what_came_back_runs_though_its_payload_is_not_kept(tmp_path: Path, where: dict[str, Any]) -> None:
    """With `store_payloads = false` a restarted receiver has the content from the letter, which its sender keeps."""
    audit = {"store_payloads": False}
    async with nodes(tmp_path, where, "a", audit=audit) as (a,):
        desk = await a.register("desk", tenant="acme")
        door, inbox = Doorman(), Inbox()
        async with nodes(tmp_path, where, "b", audit=audit, delivery={"drain_seconds": 0}) as (b,):
            await b.register("booker", door, tenant="acme")
            await seen(a, "booker")
            receipt = await desk.send("booker", {"trip": 7}, id="x")
            await until(lambda: door.got)
        async with nodes(tmp_path, where, "b", audit=audit) as (b,):
            await b.register("booker", inbox, tenant="acme")
            assert (await receipt.outcome(timeout=10)).state == "delivered"
    assert [message.payload for message in inbox.got] == [{"trip": 7}]


async def test_an_approval_outlives_a_restart_of_the_node_that_holds(tmp_path: Path, where: dict[str, Any]) -> None:
    """As on a bus of one node: it counts when the letter comes again, and only the approvals that lacked are asked."""
    async with nodes(tmp_path, where, "a", rules={"large": large(2)}) as (a,):
        inbox = Inbox()
        desk = await office_abroad(a)
        async with nodes(tmp_path, where, "b") as (b,):
            cleo, _ = await branch(b, inbox)
            await seen(a, "booker")
            receipt = await held(desk)
            await approved_at_home(a)
            await until(b.held)
            assert (await cleo.approve(receipt.message_id)).missing == (("large", 1),)
        async with nodes(tmp_path, where, "b") as (b,):
            cleo, dora = await branch(b, inbox)
            await until(b.held)
            with pytest.raises(BusError, match="counts once"):
                await cleo.approve(receipt.message_id)
            assert (await dora.approve(receipt.message_id)).state == "accepted"
            assert (await receipt.outcome(timeout=10)).state == "delivered"
    assert len(inbox.got) == 1
    last = log(tmp_path / "b", "decision", message_id=receipt.message_id)[-1]
    assert [one["approver"] for one in last["input"]["approvals"]] == ["cleo", "dora"]


async def test_what_its_sender_replays_is_approved_anew(tmp_path: Path, where: dict[str, Any]) -> None:
    """On the node where it arrives too: it comes on another ticket, and an approval is used once."""
    async with nodes(tmp_path, where, "a", rules={"large": large(2)}) as (a,):
        desk = await office_abroad(a)
        async with nodes(tmp_path, where, "b") as (b,):
            inbox = Inbox(ValueError("no"), None)
            cleo, dora = await branch(b, inbox)
            await seen(a, "booker")
            receipt = await held(desk)
            for attempt in range(2):
                await approved_at_home(a)
                await until(b.held)
                assert (await cleo.approve(receipt.message_id)).missing == (("large", 1),)
                assert (await dora.approve(receipt.message_id)).state == "accepted"
                await until(lambda: len(inbox.got) == attempt + 1)  # noqa: B023 - it is awaited at once
                if not attempt:
                    await until(lambda: a.status().accounting["dead_lettered"])
                    assert (await a.replay(receipt.message_id)).state == "held"
            assert (await a.outcome(receipt.message_id, timeout=10)).state == "delivered"


async def office_abroad(bus: AgentBus) -> Agent:
    """A desk and two bosses; the booker is on another node."""
    for name in ("anna", "bert"):
        await bus.register(name, tenant="acme", roles=["boss"])
    return await bus.register("desk", tenant="acme")


async def approved_at_home(bus: AgentBus) -> None:
    """By both bosses of the sender's node, so that it leaves."""
    for name in ("anna", "bert"):
        await (await bus.agent(name)).approve("desk/big")


async def branch(bus: AgentBus, inbox: Inbox) -> tuple[Agent, Agent]:
    """The booker, and two bosses on its node."""
    bosses = [await bus.register(name, tenant="acme", roles=["boss"]) for name in ("cleo", "dora")]
    await bus.register("booker", inbox, tenant="acme", retry=Retry.immediate(1))
    return bosses[0], bosses[1]


async def test_what_came_back_too_late_is_refused(tmp_path: Path, where: dict[str, Any]) -> None:
    """A ticket is good until its end, and a restart of the receiver gives it no more time."""
    clock = SteppedClock()
    async with nodes(tmp_path, where, "a") as (a,):
        desk = await a.register("desk", tenant="acme")
        door, inbox = Doorman(), Inbox()
        async with nodes(tmp_path, where, "b", delivery={"drain_seconds": 0}) as (b,):
            await b.register("booker", door, tenant="acme")
            await seen(a, "booker")
            receipt = await desk.send("booker", id="x", expires_in=60)
            await until(lambda: door.got)
        clock.ahead_seconds = 120
        path = tmp_path / "policies"
        async with open_bus(tmp_path / "b", constitution=path, transport=where, clock=clock) as b:
            await b.register("booker", inbox, tenant="acme")
            outcome = await receipt.outcome(timeout=10)
    assert (outcome.state, outcome.code, inbox.got) == ("refused", "expired", [])


async def test_a_reply_that_nobody_waits_for_is_refused_on_both_nodes(tmp_path: Path, where: dict[str, Any]) -> None:
    """As on one node: whoever asked has had a timeout, so the late reply is `reply_unexpected`; both logs say so."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        go = asyncio.Event()

        async def slow(_message: object) -> dict[str, int]:
            await go.wait()
            return {"late": 1}

        await b.register("booker", slow, tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        with pytest.raises(RequestTimeout):
            await desk.request("booker", {}, timeout=0.3, id="x", expires_in=60)
        go.set()
        outcome = await a.outcome("desk/x", timeout=10)
        assert (outcome.state, outcome.code) == ("delivered", "reply_refused")
        await until(lambda: not b.status().accounting["handed_over"])
    assert [one["reasons"][0]["code"] for one in log(tmp_path / "a", "decision", sender="booker")] == [
        "reply_unexpected"
    ]
    assert log(tmp_path / "b", "outcome", state="refused")[0]["code"] == "reply_unexpected"


async def test_a_message_whose_agent_moved_to_its_sender_comes_home(tmp_path: Path, where: dict[str, Any]) -> None:
    """It was handed over, and its agent's node went: registered where it was sent, the agent gets it there."""
    async with nodes(tmp_path, where, "a") as (a,):
        desk = await a.register("desk", tenant="acme")
        async with nodes(tmp_path, where, "b") as (b,):
            await b.register("booker", tenant="acme")
            await seen(a, "booker")
        receipt = await desk.send("booker", {"n": 1}, id="x")
        await until(lambda: a.status().accounting["handed_over"] == 1)
        inbox = Inbox()
        await a.register("booker", inbox, tenant="acme")
        assert (await receipt.outcome(timeout=10)).state == "delivered"
        assert ids(inbox.got) == ["desk/x"]
        assert adds_up(a.status().accounting)
    whys = [record["why"] for record in log(tmp_path / "a", "decision", message_id="desk/x")]
    assert whys == ["send", "activation"]


async def test_instances_of_a_shared_agent_can_send_to_each_others_nodes(tmp_path: Path, where: dict[str, Any]) -> None:
    """A node that runs an agent too believes the other node's instance of it."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        await a.register("worker", Inbox(), tenant="acme", shared=True)
        worker = await b.register("worker", Inbox(), tenant="acme", shared=True)
        await a.register("desk", Inbox(), tenant="acme")
        await seen(b, "desk")
        assert (await (await worker.send("desk")).outcome(timeout=10)).state == "delivered"


async def test_one_id_with_other_content_after_a_move_ends_as_replayed(tmp_path: Path, where: dict[str, Any]) -> None:
    """The receiver knows the id from the sender's node before: it refuses, and the sender's new node hears of it."""
    async with nodes(tmp_path, where, "c") as (c,):
        inbox = Inbox()
        await c.register("booker", inbox, tenant="acme")
        for name, payload, state in (("a", {"n": 1}, "delivered"), ("b", {"n": 2}, "refused")):
            async with nodes(tmp_path, where, name) as (bus,):
                desk = await bus.register("desk", tenant="acme")
                await seen(bus, "booker")
                outcome = await (await desk.send("booker", payload, id="x")).outcome(timeout=10)
                assert outcome.state == state
        assert len(inbox.got) == 1
    assert outcome.code == "replayed"


async def test_nothing_is_lost_while_the_receivers_mailbox_is_full(tmp_path: Path, where: dict[str, Any]) -> None:
    """One place on the receiver, two hundred letters: each runs once."""
    async with nodes(tmp_path, where, "a") as (a,), nodes(tmp_path, where, "b", limits={"mailbox": 1}) as (b,):
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        receipts = [await desk.send("booker", {"n": n}) for n in range(200)]
        for receipt in receipts:
            assert (await receipt.outcome(timeout=30)).state == "delivered"
        assert sorted(message.payload["n"] for message in inbox.got) == list(range(200))


async def test_a_node_that_cannot_be_asked_ends_nothing(tmp_path: Path, where: dict[str, Any]) -> None:
    """A letter is not refused for good because the receiver's constitution could not be asked just now."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        engine: Any = b.charter._engine  # noqa: SLF001 - one that fails on command
        decide, engine.decide = engine.decide, unavailable
        receipt = await desk.send("booker", {"n": 1})
        await until(lambda: log(tmp_path / "b", "decision", verdict="refuse"))
        engine.decide = decide
        assert (await receipt.outcome(timeout=10)).state == "delivered"
        assert len(inbox.got) == 1


async def unavailable(*_asked: object) -> Any:
    """An engine whose worker is gone."""
    return Answer("policy_unavailable", detail="away")
