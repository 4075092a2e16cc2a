"""Requests, replies and topics, as someone uses them who has read the documentation and no code."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import BusError, Message, NotDelivered, Refused, RequestTimeout, Retry
from tests.developer import Doorman, Inbox, ids, log, small_bus, until


async def test_request_returns_the_reply(tmp_path: Path) -> None:
    """A request returns the reply, which is a message of its own: decided, recorded, caused by the request."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox({"seat": "12A"})
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        reply = await desk.request("booker", {"trip": 7}, timeout=5)
        (asked,) = inbox.got
        assert asked.type == "query"
        assert (reply.type, reply.sender, reply.recipient, reply.payload) == (
            "response", "booker", "desk", {"seat": "12A"}
        )  # fmt: skip
        assert (reply.cause, reply.conversation, reply.hops) == (asked.id, asked.conversation, 1)
        outcome = await bus.outcome(asked.id, timeout=5)
        assert outcome.state == "delivered"
        assert outcome.reply is not None
        assert outcome.reply.id == reply.id
    decisions = {record["message_id"]: record for record in log(tmp_path / "home", "decision")}
    assert decisions[reply.id]["verdict"] == "allow"
    assert decisions[reply.id]["digest"] == reply.digest
    assert decisions[reply.id]["seq"] > decisions[asked.id]["seq"]


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("query", "response"),
        ("command", "response"),
        ("task_request", "task_response"),
        ("governance_request", "governance_response"),
    ],
)
async def test_type_of_a_reply(tmp_path: Path, asked: str, answered: str) -> None:
    """A reply is a response, a task_response or a governance_response, after what was asked."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox({"ok": True}), tenant="acme")
        assert (await desk.request("booker", timeout=5, type=asked)).type == answered


async def test_request_by_capability(tmp_path: Path) -> None:
    """A request may name a capability instead of an agent."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox({"ok": True}), tenant="acme", capabilities=["flights"])
        assert (await desk.request(capability="flights", payload={"trip": 8}, timeout=5)).sender == "booker"


async def test_request_that_is_refused(tmp_path: Path) -> None:
    """A refused request raises Refused with the receipt; the handler does not run."""
    rules = {"no_secrets": "admit if not input.message.payload.secret"}
    async with small_bus(tmp_path, rules) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        with pytest.raises(Refused) as caught:
            await desk.request("booker", {"secret": True}, timeout=5)
        assert caught.value.code == "policy_denied"
        assert [reason.rule for reason in caught.value.receipt.reasons] == ["no_secrets"]
        with pytest.raises(Refused) as caught:
            await desk.request("nobody", timeout=5)
        assert caught.value.code == "recipient_unknown"
        assert inbox.got == []


async def test_request_without_a_reply(tmp_path: Path) -> None:
    """A handler that returns None answers no request: NotDelivered with code no_reply and the outcome."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        with pytest.raises(NotDelivered) as caught:
            await desk.request("booker", timeout=5)
        assert caught.value.code == "no_reply"
        assert caught.value.outcome.state == "delivered"
        assert isinstance(caught.value, BusError)


async def test_request_whose_reply_is_refused(tmp_path: Path) -> None:
    """A reply that the policy refuses never reaches the requester, who is told reply_refused; the log has the no."""
    rules = {"no_secrets": "admit if not input.message.payload.secret"}
    async with small_bus(tmp_path, rules) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox({"secret": "the word"}, {"secret": "the word"}), tenant="acme")
        with pytest.raises(NotDelivered) as caught:
            await desk.request("booker", timeout=5)
        assert caught.value.code == "reply_refused"
        assert "the word" not in str(caught.value)
        assert caught.value.outcome.reply is None
        (refused,) = log(tmp_path / "home", "decision", verdict="refuse")
        assert (refused["code"], refused["sender"], refused["type"]) == ("policy_denied", "booker", "response")
        receipt = await desk.send("booker")
        outcome = await receipt.outcome(timeout=5)
        assert (outcome.state, outcome.code, outcome.reply) == ("delivered", "reply_refused", None)


async def test_request_whose_handler_fails(tmp_path: Path) -> None:
    """A request whose handler fails to the end raises NotDelivered with the code of that end."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register(
            "booker", Inbox(ValueError("a"), ValueError("b")), tenant="acme", retry=Retry.exponential(2, 0, 0)
        )
        with pytest.raises(NotDelivered) as caught:
            await desk.request("booker", timeout=5)
        assert caught.value.code == "attempts_exhausted"
        assert (caught.value.outcome.state, caught.value.outcome.attempts) == ("dead_lettered", 2)


async def test_request_that_gets_no_answer_in_time(tmp_path: Path) -> None:
    """A request waits for `timeout` seconds: RequestTimeout; a reply that comes later is refused and never seen."""
    async with small_bus(tmp_path) as bus:
        release = asyncio.Event()

        async def slow(_message: Message) -> dict[str, Any]:
            await release.wait()
            return {"late": True}

        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", slow, tenant="acme")
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(RequestTimeout) as caught:
            await desk.request("booker", timeout=0.1, id="ask", expires_in=60)
        assert 0.1 <= loop.time() - started < 2
        assert isinstance(caught.value, BusError)
        release.set()
        outcome = await bus.outcome("desk/ask", timeout=5)
        assert (outcome.code, outcome.reply) == ("reply_refused", None)
        (refused,) = log(tmp_path / "home", "decision", verdict="refuse")
        assert (refused["code"], refused["cause"]) == ("reply_unexpected", "desk/ask")


async def test_request_to_an_absent_agent_times_out(tmp_path: Path) -> None:
    """A request to an agent that has no handler waits no longer than asked."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("absent", tenant="acme")
        with pytest.raises((RequestTimeout, NotDelivered)):
            await desk.request("absent", timeout=0.1)
        await until(lambda: bus.status().accounting["expired"] == 1)


async def test_same_request_again_gets_the_same_reply(tmp_path: Path) -> None:
    """A request repeated under its id is answered, not run again."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox({"n": 1}, {"n": 2})
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        first = await desk.request("booker", {"trip": 7}, timeout=5, id="ask")
        again = await desk.request("booker", {"trip": 7}, timeout=5, id="ask")
        assert (again.id, again.payload) == (first.id, first.payload)
        assert len(inbox.got) == 1


async def test_dict_returned_for_a_plain_send_is_found_in_the_outcome(tmp_path: Path) -> None:
    """What a handler returns for a plain send is decided in the same way and stands in `Outcome.reply`."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", inbox, tenant="acme")
        await bus.register("booker", Inbox({"ok": 1}), tenant="acme")
        outcome = await (await desk.send("booker")).outcome(timeout=5)
        assert outcome.reply is not None
        assert outcome.reply.payload == {"ok": 1}
        assert len(log(tmp_path / "home", "decision", message_id=outcome.reply.id)) == 1
        assert inbox.got == [], "a reply goes to who asked, not to a handler"


async def test_many_requests_at_once_are_not_mixed_up(tmp_path: Path) -> None:
    """Fifty requests of five agents at once each get their own reply."""
    async with small_bus(tmp_path) as bus:

        async def echo(message: Message) -> dict[str, Any]:
            return {"to": message.sender, "n": message.payload["n"]}

        await bus.register("echo", echo, tenant="acme", concurrency=5)
        agents = [await bus.register(f"agent-{n}", tenant="acme") for n in range(5)]
        replies = await asyncio.gather(
            *(agent.request("echo", {"n": n}, timeout=20) for n in range(10) for agent in agents)
        )
        expected = [{"to": agent.id, "n": n} for n in range(10) for agent in agents]
        assert [reply.payload for reply in replies] == expected


async def test_request_from_a_handler(tmp_path: Path) -> None:
    """A handler may ask another agent and answer with what it learnt."""
    async with small_bus(tmp_path) as bus:
        agents: dict[str, Any] = {}

        async def middle(_message: Message) -> dict[str, Any]:
            reply = await agents["middle"].request("end", timeout=5)
            return {"heard": reply.payload, "conversation": reply.conversation}

        agents["middle"] = await bus.register("middle", middle, tenant="acme")
        await bus.register("end", Inbox({"n": 1}), tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        reply = await desk.request("middle", timeout=5, conversation="talk")
        assert reply.payload == {"heard": {"n": 1}, "conversation": "talk"}


# --- topics ---------------------------------------------------------------------------------------------------------


async def test_publish_reaches_every_subscriber_of_the_tenant(tmp_path: Path) -> None:
    """Each subscriber of the tenant gets a message, a decision and a receipt of its own; not the sender itself."""
    async with small_bus(tmp_path) as bus:
        inboxes = {name: Inbox() for name in ("one", "two", "foreign", "other", "desk")}
        for name, inbox in inboxes.items():
            tenant = "globex" if name == "foreign" else "acme"
            topics = ["news"] if name == "other" else ["trips", "news"]
            agent = await bus.register(name, inbox, tenant=tenant, topics=topics)
        desk = agent
        receipts = await desk.publish("trips", {"note": "delay"}, id="note", headers={"a": "b"})
        assert sorted(receipt.message_id for receipt in receipts) == ["desk/note/one", "desk/note/two"]
        assert len({receipt.decision_id for receipt in receipts}) == 2
        assert len({receipt.audit_seq for receipt in receipts}) == 2
        for receipt in receipts:
            assert (await receipt.outcome(timeout=5)).state == "delivered"
        assert {name: len(inbox.got) for name, inbox in inboxes.items()} == {
            "one": 1, "two": 1, "foreign": 0, "other": 0, "desk": 0
        }  # fmt: skip
        message = inboxes["one"].got[0]
        assert (message.topic, message.type, message.payload, message.headers) == (
            "trips", "event", {"note": "delay"}, {"a": "b"}
        )  # fmt: skip
        again = await desk.publish("trips", {"note": "delay"}, id="note", headers={"a": "b"})
        assert again == receipts


async def test_publish_without_subscribers(tmp_path: Path) -> None:
    """Nobody listens: an empty list, and one refused decision that names the topic; never an invented success."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme", topics=["trips"])
        await bus.register("foreign", Inbox(), tenant="globex", topics=["trips"])
        assert await desk.publish("trips", {"note": "delay"}) == []
        (record,) = log(tmp_path / "home", "decision")
        assert (record["verdict"], record["code"], record["topic"]) == ("refuse", "recipient_unknown", "trips")
        assert bus.status().accounting["accepted"] == 0


async def test_publish_is_decided_for_each(tmp_path: Path) -> None:
    """Where the policy admits one subscriber and not another, one gets it and the other's receipt is refused."""
    rules = {"cleared": 'admit if "cleared" in input.recipient.roles'}
    async with small_bus(tmp_path, rules) as bus:
        inboxes = {"one": Inbox(), "two": Inbox()}
        await bus.register("one", inboxes["one"], tenant="acme", roles=["cleared"], topics=["news"])
        await bus.register("two", inboxes["two"], tenant="acme", topics=["news"])
        desk = await bus.register("desk", tenant="acme")
        receipts = {receipt.recipient: receipt for receipt in await desk.publish("news")}
        assert {name: receipt.code for name, receipt in receipts.items()} == {"one": None, "two": "policy_denied"}
        await receipts["one"].outcome(timeout=5)
        assert {name: len(inbox.got) for name, inbox in inboxes.items()} == {"one": 1, "two": 0}


async def test_one_subscriber_cannot_hold_up_another(tmp_path: Path) -> None:
    """A subscriber whose handler hangs does not keep a message from the others."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        doorman, inbox = Doorman(), Inbox()
        await bus.register("a-stuck", doorman, tenant="acme", topics=["news"])
        await bus.register("b-quick", inbox, tenant="acme", topics=["news"])
        desk = await bus.register("desk", tenant="acme")
        receipts = await desk.publish("news")
        await until(lambda: inbox.got)
        assert ids(inbox.got) == [receipts[1].message_id]
        doorman.open.set()


async def test_subscription_ends_with_the_registration(tmp_path: Path) -> None:
    """After `unregister` an agent is no longer among the subscribers and the capable."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        one = await bus.register("one", Inbox(), tenant="acme", topics=["news"], capabilities=["flights"])
        assert len(await desk.publish("news")) == 1
        await one.unregister()
        assert await desk.publish("news") == []
        assert (await desk.send(capability="flights")).code == "recipient_unknown"
