"""Subscriptions with wildcards, everyone of a tenant, and strategies, as the documentation promises them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Message, Retry, Strategy
from tests.developer import Doorman, Inbox, adds_up, ids, log, small_bus, until

ONCE = Retry.exponential(attempts=1)


@pytest.mark.parametrize(
    ("subscription", "taken", "not_taken"),
    [
        ("trips.*", ["trips.delay", "trips.5"], ["trips", "trips.delay.long", "hotels.delay"]),
        ("trips.>", ["trips.delay", "trips.delay.long"], ["trips", "hotels.delay"]),
        ("*.delay", ["trips.delay", "hotels.delay"], ["delay", "trips.delay.long"]),
        ("*", ["trips"], ["trips.delay"]),
        (">", ["trips", "trips.delay.long"], []),
        ("trips.*.long", ["trips.delay.long"], ["trips.delay", "trips.delay.short"]),
    ],
)
async def test_wildcards_take_what_nats_takes(
    tmp_path: Path, subscription: str, taken: list[str], not_taken: list[str]
) -> None:
    """`*` is one token and `>` one or more at the end; what is not taken is recipient_unknown, with a record."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox()
        await bus.register("clerk", inbox, tenant="acme", topics=[subscription])
        await bus.register("stranger", Inbox(), tenant="umbrella", topics=[">"])
        for topic in taken:
            [receipt] = await desk.publish(topic)
            assert (await receipt.outcome(timeout=5)).state == "delivered"
        for topic in not_taken:
            assert await desk.publish(topic) == []
        assert [message.topic for message in inbox.got] == taken
    assert len(log(tmp_path / "home", "decision", code="recipient_unknown")) == len(not_taken)


async def test_a_subscriber_gets_one_message_however_many_of_its_subscriptions_match(tmp_path: Path) -> None:
    """One subscriber, one message; and it takes its subscriptions back when it goes."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme", topics=["trips.>"])
        inbox = Inbox()
        clerk = await bus.register("clerk", inbox, tenant="acme", topics=["trips.*", "trips.>", "trips.delay"])
        [receipt] = await desk.publish("trips.delay", id="x")
        assert receipt.message_id == "desk/x/clerk"
        await receipt.outcome(timeout=5)
        assert len(inbox.got) == 1
        await clerk.unregister()
        assert await desk.publish("trips.delay") == []


@pytest.mark.parametrize("topic", ["trips.>.delay", "trips*", "tr>", ".>", "*x", "", "Trips.*", "trips.> "])
async def test_what_is_no_subscription_is_not_registered(tmp_path: Path, topic: str) -> None:
    """A wildcard stands for a whole token, `>` only for the last ones; anything else is a ValueError."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        with pytest.raises(ValueError, match="topic"):
            await bus.register("clerk", tenant="acme", topics=[topic])
        assert bus.agents() == []


@pytest.mark.parametrize("topic", ["trips.*", ">", "*"])
async def test_a_message_has_a_topic_without_wildcards(tmp_path: Path, topic: str) -> None:
    """Publishing to a wildcard is malformed, and recorded; nobody gets it."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox()
        await bus.register("clerk", inbox, tenant="acme", topics=[">"])
        assert await desk.publish(topic) == []
        assert not inbox.got
    assert len(log(tmp_path / "home", "decision", code="malformed")) == 1


async def test_everyone_of_a_tenant_and_nobody_else(tmp_path: Path) -> None:
    """A broadcast is a message, a decision and a receipt for each other agent of the tenant, present or absent."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        here, elsewhere = Inbox(), Inbox()
        await bus.register("clerk", here, tenant="acme")
        await bus.register("absent", tenant="acme")
        await bus.register("stranger", elsewhere, tenant="umbrella")
        receipts = await desk.broadcast({"note": "closing early"}, id="note")
        assert [receipt.message_id for receipt in receipts] == ["desk/note/absent", "desk/note/clerk"]
        await until(lambda: here.got)
        assert here.got[0].type == "notification"
        assert not elsewhere.got
        assert bus.status().accounting["parked"] == 1
    assert len(log(tmp_path / "home", "decision", verdict="allow")) == 2


async def test_a_broadcast_that_nobody_hears_is_recorded(tmp_path: Path) -> None:
    """Alone in a tenant: no receipt, and one refused decision; never an invented success."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        assert await desk.broadcast({}) == []
    assert len(log(tmp_path / "home", "decision", code="recipient_unknown")) == 1


async def test_all_answers_with_every_reply(tmp_path: Path) -> None:
    """Every handler gets a payload of its own; the replies come in the order of the handlers."""

    async def spoils(message: Message) -> dict[str, Any]:
        message.payload["trip"] = "spoilt"
        return {"by": "spoils"}

    def in_a_thread(message: Message) -> dict[str, Any]:
        return {"trip": message.payload["trip"]}

    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Strategy.all(spoils, in_a_thread, Inbox()), tenant="acme")
        reply = await desk.request("booker", {"trip": 7}, timeout=5)
        assert reply.payload == {"replies": [{"by": "spoils"}, {"trip": 7}, None]}
        await bus.register("quiet", Strategy.all(Inbox(), Inbox()), tenant="acme")
        outcome = await (await desk.send("quiet")).outcome(timeout=5)
        assert (outcome.state, outcome.reply) == ("delivered", None)


async def test_all_fails_when_one_fails(tmp_path: Path) -> None:
    """The attempt fails with that handler's error, and is retried as a whole."""
    steady = Inbox()
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        both = Strategy.all(steady, Inbox(ValueError("x")))
        await bus.register("booker", both, tenant="acme", retry=Retry.immediate())
        outcome = await (await desk.send("booker")).outcome(timeout=5)
        assert (outcome.state, outcome.attempts) == ("delivered", 2)
        assert len(steady.got) == 2
    [failed] = log(tmp_path / "home", "outcome", state="failed")
    assert failed["error"] == {"type": "ValueError"}


async def test_first_that_works(tmp_path: Path) -> None:
    """In the order given; the attempt fails with the error of the last, and none runs after one that worked."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        one, two = Inbox(OSError("a"), OSError("b")), Inbox({"by": "two"}, OSError("c"))
        three = Inbox({"by": "three"})
        await bus.register("booker", Strategy.first(one, two, three), tenant="acme", retry=ONCE)
        assert (await desk.request("booker", timeout=5)).payload == {"by": "two"}
        assert not three.got
        assert (await desk.request("booker", timeout=5)).payload == {"by": "three"}
        await bus.register("hopeless", Strategy.first(Inbox(OSError()), Inbox(KeyError())), tenant="acme", retry=ONCE)
        assert (await (await desk.send("hopeless")).outcome(timeout=5)).state == "dead_lettered"
        assert [letter.error for letter in bus.dead_letters()] == ["KeyError"]


async def test_round_robin_and_nesting(tmp_path: Path) -> None:
    """One handler a message, in turn; strategies nest."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        one, two, last = Inbox({"by": 1}, {"by": 1}), Inbox({"by": 2}, RuntimeError()), Inbox({"by": 3})
        turns = Strategy.first(Strategy.round_robin(one, two), last)
        await bus.register("booker", turns, tenant="acme")
        replies = [(await desk.request("booker", timeout=5)).payload["by"] for _ in range(4)]
        assert replies == [1, 2, 1, 3]


async def test_by_key_keeps_the_order_of_a_conversation(tmp_path: Path) -> None:
    """With eight handlers at once, messages of one conversation start one after another, in the order of sending."""
    started: dict[str, list[int]] = {}
    running: set[str] = set()
    most = 0

    async def book(message: Message) -> None:
        nonlocal most
        assert message.conversation not in running
        running.add(message.conversation)
        most = max(most, len(running))
        started.setdefault(message.conversation, []).append(message.payload["n"])
        for _ in range(message.payload["n"] % 5):
            await asyncio.sleep(0)
        running.discard(message.conversation)

    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Strategy.by_key(book), tenant="acme", concurrency=8)
        sends = [desk.send("booker", {"n": n}, conversation=f"c{n % 7}") for n in range(140)]
        receipts = await asyncio.gather(*sends)
        by_seq = sorted(receipts, key=lambda receipt: receipt.audit_seq)
        assert {(await receipt.outcome(timeout=10)).state for receipt in receipts} == {"delivered"}
        order = {receipt.message_id: place for place, receipt in enumerate(by_seq)}
        assert most > 1
        assert sum(map(len, started.values())) == 140
        sent = {n: order[receipt.message_id] for n, receipt in enumerate(receipts)}
        for numbers in started.values():
            assert [sent[n] for n in numbers] == sorted(sent[n] for n in numbers)


async def test_by_a_key_of_ones_own(tmp_path: Path) -> None:
    """A key that raises makes a message wait for no other; expired and discarded ones free their key."""
    door = Doorman()
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        by_trip = Strategy.by_key(door, key=lambda message: str(message.payload["trip"]))
        await bus.register("booker", by_trip, tenant="acme", concurrency=4)
        first = await desk.send("booker", {"trip": 1})
        second = await desk.send("booker", {"trip": 1})
        third = await desk.send("booker", {"trip": 1})
        odd = await desk.send("booker", {})
        await until(lambda: len(door.got) == 2)
        assert ids(door.got) == [first.message_id, odd.message_id]
        await bus.discard(second.message_id, reason="not needed")
        door.open.set()
        assert (await third.outcome(timeout=5)).state == "delivered"
        assert ids(door.got)[2:] == [third.message_id]
        assert adds_up(bus.status().accounting)


def test_by_key_belongs_outside() -> None:
    """Where it would order nothing it is refused, and so is what is no handler."""
    with pytest.raises(ValueError, match="outside"):
        Strategy.first(Strategy.by_key(Inbox()), Inbox())
    with pytest.raises(ValueError, match="at least one"):
        Strategy.all()
    with pytest.raises(TypeError, match="not a handler"):
        Strategy.first(Inbox(), "booker")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="key is a function of a message, not 'trip'"):
        Strategy.by_key(Inbox(), key="trip")  # type: ignore[arg-type]


async def test_one_tenants_flood_stands_before_nobody_else(tmp_path: Path) -> None:
    """Where tenants share an agent they take turns: for a place in its mailbox, and to be handled."""
    turns = asyncio.Semaphore(0)
    got: list[str] = []

    async def handle(message: Message) -> None:
        await turns.acquire()
        got.append(message.sender)

    async with small_bus(tmp_path, home=":memory:", limits={"mailbox": 50}) as bus:
        flood = await bus.register("flood", tenant="umbrella")
        desk = await bus.register("desk", tenant="acme")
        await bus.register("shared", handle, tenant="shared")
        sends = [asyncio.create_task(flood.send("shared", {"n": n})) for n in range(100)]
        await until(lambda: bus.status().accounting["accepted"] == 50)
        one = asyncio.create_task(desk.send("shared"))
        handled = 0
        while not one.done():  # until the message has its place: one of the flood goes, one more comes
            turns.release()
            handled += 1
            await until(lambda: len(got) == handled)  # noqa: B023 - it is waited for here
        receipt = await one
        for _ in range(101 - handled):
            turns.release()
        assert (await receipt.outcome(timeout=5)).state == "delivered"
        await asyncio.gather(*sends)
        await bus.wait_idle(timeout=10)
        assert handled < 25
        assert got.index("desk") <= handled + 2
