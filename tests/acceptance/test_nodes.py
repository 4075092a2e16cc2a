"""Several nodes, one bus: what is sent on one is decided there and where it arrives, and ends once on both logs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, AgentExists, ConfigInvalid, Message, NotDelivered, Pass, Refusal, Retry
from enhanced_agent_bus.ports import Letter
from enhanced_agent_bus.transports.memory import open_memory
from tests.developer import Doorman, Inbox, adds_up, ids, log, small_bus, until
from tests.nats_server import NatsServer


@pytest.fixture(params=["memory", "nats"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """What joins the nodes of one test: a network of this process, and a real server."""
    name = hashlib.sha256(tmp_path.name.encode()).hexdigest()[:16]
    if request.param == "memory":
        return {"url": f"memory://{name}"}
    server: NatsServer = request.getfixturevalue("nats_server")
    return {"url": server.url, "monitor": server.monitor_url, "name": name}


#: What the transport makes no difference to.
in_memory = pytest.mark.parametrize("where", ["memory"], indirect=True)


@asynccontextmanager
async def nodes(
    folder: Path, where: dict[str, Any], *names: str, rules: Any = None, **settings: Any
) -> AsyncIterator[list[AgentBus]]:
    """Buses of one transport, each in a home of its own."""
    settings["transport"] = {**where, **settings.get("transport", {})}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(small_bus(folder, rules if not n else None, home=name, **settings))
            for n, name in enumerate(names)
        ]


async def test_a_message_is_decided_on_both_nodes_and_ends_on_both(tmp_path: Path, where: dict[str, Any]) -> None:
    """Allowed and recorded where it was sent, then where it arrived, before the handler ran; delivered in both logs."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        desk = await a.register("desk", tenant="acme")
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme")
        await until(lambda: any(one.id == "booker" for one in a.agents()))
        receipt = await desk.send("booker", {"trip": 7}, headers={"k": "v"}, id="x")
        assert receipt.ok
        outcome = await receipt.outcome(timeout=10)
        assert (outcome.state, outcome.attempts) == ("delivered", 1)
        assert [message.payload for message in inbox.got] == [{"trip": 7}]
        assert adds_up(a.status().accounting)
        assert adds_up(b.status().accounting)
    [sent] = log(tmp_path / "a", "decision", message_id="desk/x")
    [received] = log(tmp_path / "b", "decision", message_id="desk/x")
    assert (sent["why"], received["why"], received["previous"]) == ("send", "receive", None)
    assert received["digest"] == sent["digest"] == receipt.digest
    assert received["ticket"]["decision_id"] == sent["decision_id"]
    assert (received["ticket"]["origin"], received["ticket"]["seq"]) == (receipt.origin, receipt.audit_seq)
    [there] = log(tmp_path / "b", "outcome", message_id="desk/x")
    [here] = log(tmp_path / "a", "outcome", message_id="desk/x")
    assert there["state"] == here["state"] == "delivered"
    assert (here["by"]["origin"], here["by"]["seq"]) == (f"{there['bus']}/{there['node']}", there["seq"])


async def test_a_request_is_answered_across_nodes(tmp_path: Path, where: dict[str, Any]) -> None:
    """The reply is a message of its own, decided on both nodes too."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        desk = await a.register("desk", tenant="acme")
        await b.register("booker", Inbox({"booked": 7}), tenant="acme")
        await until(lambda: any(one.id == "booker" for one in a.agents()))
        reply = await desk.request("booker", {"trip": 7}, timeout=10)
        assert (reply.payload, reply.sender) == ({"booked": 7}, "booker")
        await a.wait_idle(timeout=10)
        await b.wait_idle(timeout=10)
        await until(lambda: not b.status().accounting["handed_over"])
        assert adds_up(a.status().accounting)
        assert adds_up(b.status().accounting)
    assert [record["why"] for record in log(tmp_path / "a", "decision", sender="booker")] == ["receive"]
    assert [record["why"] for record in log(tmp_path / "b", "decision", sender="booker")] == ["send"]


async def seen(bus: AgentBus, *agents: str) -> None:
    """Once the node knows of these agents."""
    await until(lambda: set(agents) <= {one.id for one in bus.agents() if one.live or one.nodes})


@in_memory
async def test_the_receiver_decides_for_itself(tmp_path: Path, where: dict[str, Any]) -> None:
    """What is refused there runs no handler there, and its sender hears by which code."""
    async with nodes(tmp_path, where, "a") as (a,), nodes(tmp_path, where, "b", gates=[Quiet()]) as (b,):
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme")
        desk = await a.register("desk", tenant="acme")
        receipt = await desk.send("booker", {"loud": True})
        assert receipt.ok
        outcome = await receipt.outcome(timeout=10)
        assert (outcome.state, outcome.code) == ("refused", "gate_refused")
        assert (await (await desk.send("booker", {})).outcome(timeout=10)).state == "delivered"
        assert len(inbox.got) == 1
        with pytest.raises(NotDelivered) as raised:
            await desk.request("booker", {"loud": True}, timeout=10)
        assert raised.value.code == "gate_refused"


class Quiet:
    """A gate of one node."""

    name = "quiet"

    async def check(self, message: Message) -> Pass | Refusal:
        return Refusal("loud", "not so loud", "speak softly") if (message.payload or {}).get("loud") else Pass()


@in_memory
async def test_what_fails_there_is_retried_and_replayed_there(tmp_path: Path, where: dict[str, Any]) -> None:
    """One retry engine: the receiver's. Both nodes say dead letter, and both say delivered after the replay."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        inbox = Inbox(ValueError("no"), ValueError("no"), ValueError("no"), None)
        await b.register("booker", inbox, tenant="acme", retry=Retry.immediate(3))
        desk = await a.register("desk", tenant="acme")
        receipt = await desk.send("booker", id="x")
        outcome = await receipt.outcome(timeout=10)
        assert (outcome.state, outcome.attempts, outcome.error) == ("dead_lettered", 3, "ValueError")
        assert [letter.message_id for letter in b.dead_letters()] == ["desk/x"]
        assert (await b.replay("desk/x")).ok
        assert (await b.outcome("desk/x", timeout=10)).state == "delivered"
        await until(lambda: a.status().accounting["delivered"] == 1)
        assert adds_up(a.status().accounting)
        assert adds_up(b.status().accounting)


@in_memory
async def test_a_dead_letter_is_replayed_by_its_sender(tmp_path: Path, where: dict[str, Any]) -> None:
    """Decided anew on the sender's node, then on the receiver's."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        await b.register("booker", Inbox(ValueError("no"), None), tenant="acme", retry=Retry.immediate(1))
        desk = await a.register("desk", tenant="acme")
        receipt = await desk.send("booker", id="x")
        assert (await receipt.outcome(timeout=10)).state == "dead_lettered"
        assert (await a.replay("desk/x")).ok
        assert (await a.outcome("desk/x", timeout=10)).state == "delivered"
    assert [record["why"] for record in log(tmp_path / "a", "decision", message_id="desk/x")] == ["send", "replay"]
    assert [record["why"] for record in log(tmp_path / "b", "decision", message_id="desk/x")] == ["receive", "receive"]


async def test_what_is_sent_while_the_receiver_is_away_waits_for_it(tmp_path: Path, where: dict[str, Any]) -> None:
    """Handed over, as status and accounting say, until its node is there again; its sender may close meanwhile."""
    async with nodes(tmp_path, where, "keeper"):
        async with nodes(tmp_path, where, "b") as (b,):
            await b.register("booker", tenant="acme")
        async with nodes(tmp_path, where, "a") as (a,):
            desk = await a.register("desk", tenant="acme")
            await seen(a, "booker")
            assert (await desk.send("booker", {"n": 1}, id="x")).ok
            await until(lambda: a.status().accounting["handed_over"] == 1)
            assert [(entry.message_id, entry.state) for entry in a.queue()] == [("desk/x", "handed_over")]
        inbox = Inbox()
        async with nodes(tmp_path, where, "b") as (b,):
            await b.register("booker", inbox, tenant="acme")
            await until(lambda: inbox.got)
            async with nodes(tmp_path, where, "a") as (a,):
                assert (await a.outcome("desk/x", timeout=10)).state == "delivered"
                assert adds_up(a.status().accounting)
    assert ids(inbox.got) == ["desk/x"]


async def test_what_was_running_when_its_node_ended_comes_again(tmp_path: Path, where: dict[str, Any]) -> None:
    """To another instance at once: at least once, with the same id, and each log says what it did."""
    async with nodes(tmp_path, where, "a") as (a,):
        desk = await a.register("desk", tenant="acme")
        door = Doorman()
        async with nodes(tmp_path, where, "b", delivery={"drain_seconds": 0.01}) as (b,):
            await b.register("booker", door, tenant="acme", shared=True)
            await seen(a, "booker")
            receipt = await desk.send("booker", id="x")
            await until(lambda: b.status().accounting["in_flight"])
        inbox = Inbox()
        async with nodes(tmp_path, where, "c") as (c,):
            await c.register("booker", inbox, tenant="acme", shared=True)
            assert (await receipt.outcome(timeout=10)).state == "delivered"
        async with nodes(tmp_path, where, "b") as (b,):
            await until(lambda: b.status().accounting["discarded"] == b.status().accounting["accepted"] == 1)
    assert ids(inbox.got) == ["desk/x"]
    ends = [(record["state"], record["code"]) for record in log(tmp_path / "b", "outcome")]
    assert ends == [("discarded", "returned")]


@in_memory
async def test_what_anybody_puts_into_a_box_is_refused_and_recorded(tmp_path: Path, where: dict[str, Any]) -> None:
    """Bytes that no node of the bus has signed run nothing."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme")
        desk = await a.register("desk", tenant="acme")
        stranger = open_memory(where["url"])
        await stranger.post(Letter("agent.booker", "junk", b"{}"))
        await until(lambda: log(tmp_path / "b", "decision"))
        [refused] = log(tmp_path / "b", "decision")
        assert (refused["verdict"], refused["recipient"], refused["why"]) == ("refuse", "booker", "receive")
        assert (await (await desk.send("booker")).outcome(timeout=10)).state == "delivered"
        assert len(inbox.got) == 1
        await stranger.close()


@in_memory
async def test_topics_capabilities_and_tenants_span_the_nodes(tmp_path: Path, where: dict[str, Any]) -> None:
    """Each subscriber of each node gets its own; a capability is found wherever it is; other tenants are not."""
    async with nodes(tmp_path, where, "a", "b", "c") as (a, b, c):
        there, far = Inbox(), Inbox()
        await b.register("near", there, tenant="acme", topics=["trips.*"], capabilities=["flights"])
        await c.register("far", far, tenant="acme", topics=["trips.>"])
        await c.register("other", Inbox(), tenant="globex", topics=["trips.>"], capabilities=["flights"])
        desk = await a.register("desk", tenant="acme")
        await seen(a, "near", "far", "other")
        receipts = await desk.publish("trips.delay", {"minutes": 5})
        assert {receipt.recipient for receipt in receipts} == {"near", "far"}
        for receipt in receipts:
            assert (await receipt.outcome(timeout=10)).state == "delivered"
        one = await desk.send(capability="flights", payload={"trip": 8})
        assert one.recipient == "near"
        assert (await one.outcome(timeout=10)).state == "delivered"


async def test_an_agent_is_on_one_node_or_shared_by_several(tmp_path: Path, where: dict[str, Any]) -> None:
    """A live id cannot be taken; one whose node has gone can, on record; a shared one works on both."""
    async with nodes(tmp_path, where, "a", "b", "c") as (a, b, c):
        await a.register("booker", tenant="acme")
        with pytest.raises(AgentExists, match="is live on the node"):
            await b.register("booker", tenant="acme")
        with pytest.raises(AgentExists, match="another tenant"):
            await b.register("booker", tenant="globex")
        first, second = Inbox(), Inbox()
        await b.register("worker", first, tenant="acme", shared=True)
        await c.register("worker", second, tenant="acme", shared=True)
        desk = await a.register("desk", tenant="acme")
        await seen(a, "worker")
        receipts = [await desk.send("worker", {"n": n}) for n in range(20)]
        for receipt in receipts:
            assert (await receipt.outcome(timeout=10)).state == "delivered"
        assert len(first.got) + len(second.got) == 20
        assert first.got
        assert second.got
        await a.close()
        await b.register("booker", tenant="acme")
    [taken] = log(tmp_path / "b", "agent", event="registered", agent="booker")
    assert taken["taken_over_from"] == log(tmp_path / "a")[0]["node"]


@in_memory
async def test_ends_that_could_not_be_told_are_told_together(tmp_path: Path, where: dict[str, Any]) -> None:
    """Those of a time without connection share letters; of two ends of one message neither is lost."""
    door = Doorman()

    async def breaks_once(message: Message) -> None:
        await door(message)
        if message.id == "desk/0" and message.attempt == 1:
            raise ValueError

    async with nodes(tmp_path, where, "a", "b") as (a, b):
        network = open_memory(where["url"]).network
        far = network.transports[1]
        await b.register("booker", breaks_once, tenant="acme", concurrency=4, retry=Retry.immediate(1))
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        for n in range(4):
            assert (await desk.send("booker", id=str(n))).ok
        await until(lambda: len(door.got) == 4)
        network.cut(far)
        door.open.set()
        await until(lambda: b.status().accounting["dead_lettered"] == 1 and b.status().accounting["delivered"] == 3)
        assert (await b.replay("desk/0")).ok
        await until(lambda: b.status().accounting["delivered"] == 4)
        network.mend(far)
        await until(lambda: a.status().accounting["delivered"] == 4)
        letters = [letter for box in network.boxes for letter in network.boxes[box].known if box.startswith("node.")]
        assert len(letters) < 5  # of as many notices
    ends = {n: log(tmp_path / "a", "outcome", message_id=f"desk/{n}") for n in range(4)}
    assert [record["state"] for record in ends[0]] == ["dead_lettered", "delivered"]
    for n in range(4):
        [*_, there] = log(tmp_path / "b", "outcome", message_id=f"desk/{n}")
        assert (ends[n][-1]["state"], ends[n][-1]["by"]["seq"]) == ("delivered", there["seq"])


@in_memory
async def test_a_node_that_is_cut_off_decides_nothing(tmp_path: Path, where: dict[str, Any]) -> None:
    """Once its lease is over it refuses, since the others may have changed what it decides by; then it goes on."""
    async with nodes(tmp_path, where, "a", transport={"lease_seconds": 0.5}) as (a,):
        [mine] = open_memory(where["url"]).network.transports[:1]
        inbox = Inbox()
        await a.register("booker", inbox, tenant="acme")
        desk = await a.register("desk", tenant="acme")
        mine.network.cut(mine)
        await until(lambda: not any(node.alive for node in a.status().nodes))
        refused = await desk.send("booker")
        assert (refused.state, refused.code) == ("refused", "policy_unavailable")
        mine.network.mend(mine)
        await until(lambda: all(node.alive for node in a.status().nodes))
        assert (await desk.send("booker")).ok


@pytest.mark.parametrize("where", ["nats"], indirect=True)
async def test_a_payload_that_no_letter_can_carry_is_wrong_configuration(tmp_path: Path, where: dict[str, Any]) -> None:
    """Said when the bus is opened, not when the first large message stops on its way."""
    with pytest.raises(ConfigInvalid, match="a letter may have"):
        async with nodes(tmp_path, where, "a", limits={"payload_bytes": 8_000_000}):
            pass
