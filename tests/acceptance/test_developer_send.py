"""Sending and handling messages, as someone does who has read the documentation and no code."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from enhanced_agent_bus import (
    AgentBus,
    BusError,
    Message,
    Outcome,
    Priority,
    Reason,
    Receipt,
    Refused,
    Retry,
)
from tests.developer import Doorman, Inbox, adds_up, ids, log, small_bus, until

TYPES = (
    "command", "query", "response", "event", "notification", "heartbeat", "governance_request",
    "governance_response", "constitutional_validation", "task_request", "task_response",
)  # fmt: skip


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[AgentBus]:
    """A bus that admits everything."""
    async with small_bus(tmp_path) as bus:
        yield bus


async def test_receipt_says_what_was_decided(bus: AgentBus, tmp_path: Path) -> None:
    """A receipt names the message, the decision and its place in the log, all of the declared types."""
    desk = await bus.register("desk", tenant="acme", roles=["planner"])
    await bus.register("booker", Inbox(), tenant="acme")
    receipt = await desk.send("booker", {"trip": 7})
    assert isinstance(receipt, Receipt)
    assert (receipt.recipient, receipt.state, receipt.code, receipt.reasons, receipt.ok) == (
        "booker", "accepted", None, (), True
    )  # fmt: skip
    (record,) = log(tmp_path / "home", "decision", message_id=receipt.message_id)
    for field in ("decision_id", "constitution", "revision", "digest"):
        assert getattr(receipt, field) == record[field]
    assert receipt.audit_seq == record["seq"]
    assert len(receipt.constitution) == 64
    assert receipt.digest is not None
    assert len(receipt.digest) == 64
    assert receipt.raise_for_refusal() is None  # type: ignore[func-returns-value]  # that it returns at all
    outcome = await receipt.outcome(timeout=5)
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.attempts, outcome.code, outcome.reply) == ("delivered", 1, None, None)
    assert await receipt.outcome() == outcome


async def test_refused_receipt(bus: AgentBus) -> None:
    """A refusal is an answer with a code and reasons; it is raised only when asked for."""
    desk = await bus.register("desk", tenant="acme")
    receipt = await desk.send("nobody")
    assert (receipt.state, receipt.code, receipt.ok) == ("refused", "recipient_unknown", False)
    reason = receipt.reasons[0]
    assert isinstance(reason, Reason)
    assert (reason.code, bool(reason.message), bool(reason.remedy)) == ("recipient_unknown", True, True)
    with pytest.raises(Refused) as caught:
        receipt.raise_for_refusal()
    assert caught.value.receipt is receipt
    assert caught.value.code == "recipient_unknown"
    assert isinstance(caught.value, BusError)
    outcome = await receipt.outcome(timeout=1)
    assert (outcome.state, outcome.attempts, outcome.code) == ("refused", 0, "recipient_unknown")
    assert bus.status().accounting["accepted"] == 0, "what was never accepted is in no state"


async def test_message_as_a_handler_sees_it(bus: AgentBus) -> None:
    """A message has every documented field, of the documented type."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme", roles=["planner"])
    await bus.register("booker", inbox, tenant="globex")
    before = datetime.now(UTC)
    receipt = await desk.send(
        "booker",
        {"trip": 7, "price": 5.0, "tags": ["a", None, True]},
        type="task_request",
        priority=Priority.HIGH,
        id="order-7",
        conversation="talk/1",
        headers={"trace": "1"},
        expires_in=60,
    )
    await receipt.outcome(timeout=5)
    (message,) = inbox.got
    assert isinstance(message, Message)
    assert (message.id, message.type, message.sender, message.tenant, message.recipient) == (
        "desk/order-7", "task_request", "desk", "acme", "booker"
    )  # fmt: skip
    assert message.priority is Priority.HIGH
    assert message.payload == {"trip": 7, "price": 5.0, "tags": ["a", None, True]}
    assert type(message.payload["price"]) is float
    assert message.headers == {"trace": "1"}
    assert (message.topic, message.cause, message.hops, message.attempt) == (None, None, 0, 1)
    assert message.conversation == "talk/1"
    assert (message.digest, message.constitution) == (receipt.digest, receipt.constitution)
    assert before - timedelta(seconds=1) < message.created_at <= datetime.now(UTC)
    assert message.expires_at - message.created_at == timedelta(seconds=60)
    assert message.created_at.utcoffset() == timedelta(0)


async def test_defaults(bus: AgentBus) -> None:
    """Nothing but a recipient is needed: a command of normal priority with an empty payload."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme")
    receipt = await desk.send("booker")
    await receipt.outcome(timeout=5)
    (message,) = inbox.got
    assert (message.type, message.priority, message.payload, message.headers) == ("command", Priority.NORMAL, {}, {})
    assert message.conversation == message.id == receipt.message_id
    assert message.expires_at - message.created_at == timedelta(hours=1)
    assert receipt.message_id[14] == "7", "a UUIDv7"


async def test_message_cannot_be_changed(bus: AgentBus) -> None:
    """A handler cannot assign to a message, and what it does to the payload's copy changes nothing else."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme")
    await (await desk.send("booker", {"a": 1})).outcome(timeout=5)
    message = inbox.got[0]
    for field, value in (("sender", "mallory"), ("payload", {}), ("priority", 3), ("new", 1)):
        with pytest.raises(AttributeError):
            setattr(message, field, value)


async def test_types_and_priorities(bus: AgentBus) -> None:
    """All eleven types and four priorities travel; anything else is refused(malformed)."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme")
    for kind in TYPES:
        receipt = await desk.send("booker", type=kind)
        assert receipt.ok or (kind.endswith("response") and receipt.code == "reply_unexpected"), kind
    wrong: list[Any] = ["", "Command", "order", "command ", None, 1]
    for kind in wrong:
        assert (await desk.send("booker", type=kind)).code == "malformed"
    assert [int(priority) for priority in Priority] == [0, 1, 2, 3]
    for priority in (*Priority, 0, 1, 2, 3):
        assert (await desk.send("booker", priority=priority)).ok
    wrong = [-1, 4, 99, 1.0, "1", None, True]
    for priority in wrong:
        assert (await desk.send("booker", priority=priority)).code == "malformed"


async def test_exactly_one_of_to_and_capability(bus: AgentBus) -> None:
    """A send names an agent or a capability, one of the two."""
    desk = await bus.register("desk", tenant="acme")
    for options in ({}, {"to": "booker", "capability": "flights"}):
        with pytest.raises(TypeError):
            await desk.send(**options)  # type: ignore[arg-type]  # that is the point


async def test_capability_picks_the_least_loaded(bus: AgentBus) -> None:
    """`capability` picks the least loaded capable agent of the tenant, never one of another tenant."""
    desk = await bus.register("desk", tenant="acme")
    doormen = {name: Doorman() for name in ("one", "two", "three")}
    for name, doorman in doormen.items():
        await bus.register(name, doorman, tenant="acme", capabilities=["flights"])
    await bus.register("foreign", Inbox(), tenant="globex", capabilities=["flights", "trains"])
    for _ in range(3):
        await desk.send("one")
    chosen = [(await desk.send(capability="flights")).recipient for _ in range(4)]
    assert sorted(chosen) == ["three", "three", "two", "two"]
    assert (await desk.send(capability="trains")).code == "recipient_unknown"
    for doorman in doormen.values():
        doorman.open.set()


# --- ids ---------------------------------------------------------------------------------------------------------


async def test_given_id_stands_behind_the_sender(bus: AgentBus) -> None:
    """An id given with or without the sender's prefix is the same id, and two senders cannot take each other's."""
    desk = await bus.register("desk", tenant="acme")
    other = await bus.register("other", tenant="acme")
    await bus.register("booker", Inbox(), tenant="acme")
    first = await desk.send("booker", {"n": 1}, id="order-7")
    assert first.message_id == "desk/order-7"
    assert (await desk.send("booker", {"n": 1}, id="desk/order-7")) == first
    theirs = await other.send("booker", {"n": 2}, id="order-7")
    assert (theirs.message_id, theirs.ok) == ("other/order-7", True)
    taken = await other.send("booker", {"n": 3}, id="desk/order-7")
    assert (taken.message_id, taken.ok) == ("other/desk/order-7", True)


async def test_same_id_and_content_is_answered_not_run_again(bus: AgentBus) -> None:
    """The same content under the same id gets the first receipt, whenever it comes, and runs once."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme")
    first = await desk.send("booker", {"a": 1, "b": [1.5]}, id="order", headers={"x": "y"})
    again = await desk.send("booker", {"b": [1.5], "a": 1}, id="order", headers={"x": "y"})
    assert again == first
    assert await again.outcome(timeout=5) == await first.outcome(timeout=5)
    assert await desk.send("booker", {"a": 1, "b": [1.5]}, id="order", headers={"x": "y"}) == first
    assert ids(inbox.got) == ["desk/order"]


@pytest.mark.parametrize(
    "change",
    [
        {"payload": {"n": 2}},
        {"payload": {"n": 1.0}},
        {"payload": {"n": True}},
        {"payload": {"n": "1"}},
        {"payload": None},
        {"to": "other"},
        {"type": "event"},
        {"priority": 2},
        {"headers": {"x": "z"}},
        {"headers": {}},
        {"conversation": "another"},
    ],
    ids=str,
)
async def test_same_id_with_other_content_is_replayed(bus: AgentBus, tmp_path: Path, change: dict[str, Any]) -> None:
    """Other content under a known id is refused(replayed), recorded, and changes nothing."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme")
    await bus.register("other", inbox, tenant="acme")
    sent: dict[str, Any] = {"to": "booker", "payload": {"n": 1}, "headers": {"x": "y"}, "conversation": "talk"}
    first = await desk.send(id="order", **sent)
    second = await desk.send(id="order", **(sent | change))
    assert (second.state, second.code, second.message_id) == ("refused", "replayed", "desk/order")
    assert (await first.outcome(timeout=5)).state == "delivered"
    assert await desk.send(id="order", **sent) == first
    assert len(inbox.got) == 1
    verdicts = [record["verdict"] for record in log(tmp_path / "home", "decision", message_id="desk/order")]
    assert verdicts == ["allow", "refuse"]


async def test_twins_at_once_are_one_message(bus: AgentBus) -> None:
    """Of 20 tasks that send one id and content at once, all get one receipt, and the handler runs once."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme")
    receipts = await asyncio.gather(*(desk.send("booker", {"n": 1}, id="order") for _ in range(20)))
    assert all(receipt == receipts[0] for receipt in receipts)
    await receipts[0].outcome(timeout=5)
    assert len(inbox.got) == 1
    mixed = await asyncio.gather(*(desk.send("booker", {"n": n % 2}, id="mixed") for n in range(20)))
    assert sorted({receipt.code or receipt.state for receipt in mixed}) == ["accepted", "replayed"]
    assert sum(receipt.ok for receipt in mixed) == 10


async def test_id_is_known_after_a_restart(tmp_path: Path) -> None:
    """A repeated id is answered with the first receipt across restarts too, and other content refused."""
    inbox = Inbox()
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        first = await desk.send("booker", {"n": 1}, id="order")
        await first.outcome(timeout=5)
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        again = await desk.send("booker", {"n": 1}, id="order")
        assert again == first
        assert (await again.outcome(timeout=5)).state == "delivered"
        assert (await desk.send("booker", {"n": 2}, id="order")).code == "replayed"
    assert len(inbox.got) == 1


async def test_refused_message_is_not_remembered(bus: AgentBus) -> None:
    """Only accepted and held messages are remembered: what was refused may be sent anew, mended, under its id."""
    desk = await bus.register("desk", tenant="acme")
    assert (await desk.send("booker", {"n": 1}, id="order")).code == "recipient_unknown"
    await bus.register("booker", Inbox(), tenant="acme")
    assert (await desk.send("booker", {"n": 2}, id="order")).ok


async def test_outcome_by_id_after_a_restart(tmp_path: Path) -> None:
    """`outcome(message_id)` tells the end of any accepted message, after a restart too; an unknown id is a KeyError."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox({"ok": 7}), tenant="acme")
        receipt = await desk.send("booker", {"n": 1}, id="order")
        before = await bus.outcome("desk/order", timeout=5)
        assert before == await receipt.outcome()
        assert before.reply is not None
    async with small_bus(tmp_path) as bus:
        after = await bus.outcome("desk/order", timeout=5)
        assert (after.state, after.attempts, after.code) == ("delivered", 1, None)
        assert after.reply is not None
        assert (after.reply.payload, after.reply.id) == ({"ok": 7}, before.reply.id)
        with pytest.raises(KeyError):
            await bus.outcome("desk/unknown", timeout=1)


async def test_outcome_waits_no_longer_than_asked(bus: AgentBus) -> None:
    """`outcome(timeout)` raises TimeoutError when the message has not ended; the message goes on."""
    doorman = Doorman()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", doorman, tenant="acme")
    receipt = await desk.send("booker")
    with pytest.raises(TimeoutError):
        await receipt.outcome(timeout=0.01)
    with pytest.raises(TimeoutError):
        await bus.outcome(receipt.message_id, timeout=0.01)
    doorman.open.set()
    assert (await receipt.outcome(timeout=5)).state == "delivered"


# --- order, room, expiry --------------------------------------------------------------------------------------------


async def test_order_of_one_sender_is_kept(bus: AgentBus) -> None:
    """With concurrency 1, messages of one sender, priority and recipient start in the order of their audit_seq."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme")
    receipts = await asyncio.gather(*(desk.send("booker", {"n": n}) for n in range(100)))
    for receipt in receipts:
        await receipt.outcome(timeout=10)
    by_seq = [receipt.message_id for receipt in sorted(receipts, key=lambda receipt: receipt.audit_seq)]
    assert ids(inbox.got) == by_seq


async def test_higher_priority_first_and_none_starved(bus: AgentBus) -> None:
    """Higher priorities start first, and a low one starts before an endless row of critical ones has ended."""
    doorman = Doorman()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", doorman, tenant="acme")
    await desk.send("booker", {"n": "first"})
    await until(lambda: doorman.got)
    for n in range(3):
        await desk.send("booker", {"n": f"low-{n}"}, priority=Priority.LOW)
    for n in range(60):
        await desk.send("booker", {"n": f"critical-{n}"}, priority=Priority.CRITICAL)
    doorman.open.set()
    await until(lambda: len(doorman.got) == 64)
    order = [message.payload["n"] for message in doorman.got]
    assert order[1] == "critical-0"
    assert order.index("low-0") < 40
    assert [name for name in order if name.startswith("critical")] == [f"critical-{n}" for n in range(60)]


async def test_concurrency_runs_that_many_at_once(bus: AgentBus) -> None:
    """`concurrency` handlers run at once for one agent, no more; the default is 1."""
    desk = await bus.register("desk", tenant="acme")
    for name, concurrency, at_once in (("one", None, 1), ("three", 3, 3)):
        doorman = Doorman()
        await bus.register(name, doorman, tenant="acme", concurrency=concurrency)
        receipts = [await desk.send(name) for _ in range(6)]
        await until(lambda at_once=at_once: bus.status().accounting["in_flight"] == at_once)  # type: ignore[misc]
        assert len(doorman.got) == at_once
        doorman.open.set()
        for receipt in receipts:
            await receipt.outcome(timeout=5)


async def test_full_mailbox_refuses_or_waits(tmp_path: Path) -> None:
    """A full mailbox is queue_full at once with when_full="refuse", and otherwise waits until there is room."""
    async with small_bus(tmp_path, limits={"mailbox": 2}) as bus:
        desk = await bus.register("desk", tenant="acme")
        doormen = {}
        for name, when_full in (("strict", "refuse"), ("patient", "wait"), ("usual", None)):
            doormen[name] = doorman = Doorman()
            await bus.register(name, doorman, tenant="acme", when_full=when_full)
            for _ in range(2):
                assert (await desk.send(name)).ok
        assert (await desk.send("strict")).code == "queue_full"
        late = {name: asyncio.create_task(desk.send(name)) for name in ("patient", "usual")}
        assert (await desk.send("strict")).code == "queue_full"
        assert not any(task.done() for task in late.values())
        for name, task in late.items():
            doormen[name].open.set()
            assert (await task).ok
        doormen["strict"].open.set()


async def test_wait_for_room_ends_with_expiry(tmp_path: Path) -> None:
    """A send that waits for room waits until the message expires, and is then refused, not lost or accepted."""
    async with small_bus(tmp_path, limits={"mailbox": 1}) as bus:
        desk = await bus.register("desk", tenant="acme")
        doorman = Doorman()
        await bus.register("booker", doorman, tenant="acme")
        await desk.send("booker")
        receipt = await desk.send("booker", expires_in=0.05)
        assert receipt.state == "refused"
        assert receipt.code in ("expired", "queue_full")
        doorman.open.set()
        assert bus.status().accounting["accepted"] == 1


async def test_parked_recipients_full_mailbox_is_refused_at_once(tmp_path: Path) -> None:
    """Nobody waits for the room of an agent that has no handler: queue_full at once."""
    async with small_bus(tmp_path, limits={"mailbox": 2}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("absent", tenant="acme")
        assert [(await desk.send("absent")).code for _ in range(3)] == [None, None, "queue_full"]
        assert bus.status().accounting["parked"] == 2


async def test_send_from_a_handler_never_waits(tmp_path: Path) -> None:
    """A send from inside a handler to a full mailbox, its own too, is queue_full at once: no deadlock."""
    async with small_bus(tmp_path, limits={"mailbox": 1}) as bus:
        codes: list[str | None] = []
        agents: dict[str, Any] = {}

        async def relay(_message: Message) -> None:
            codes.append((await agents["booker"].send("booker")).code)
            codes.append((await agents["booker"].send("desk")).code)

        agents["booker"] = await bus.register("booker", relay, tenant="acme")
        desk = agents["desk"] = await bus.register("desk", tenant="acme")
        await agents["booker"].send("desk")
        receipt = await desk.send("booker")
        assert (await receipt.outcome(timeout=5)).state == "delivered"
        assert codes == ["queue_full", "queue_full"]


async def test_messages_for_an_absent_agent_are_parked_and_taken_up(bus: AgentBus) -> None:
    """What is for a registered agent without a handler is parked, in its order, until the agent has one."""
    desk = await bus.register("desk", tenant="acme")
    absent = await bus.register("absent", tenant="acme")
    receipts = [await desk.send("absent", {"n": n}) for n in range(3)]
    assert [waiting.state for waiting in bus.queue()] == ["parked"] * 3
    assert bus.status().accounting["parked"] == 3
    with pytest.raises(TimeoutError):
        await receipts[0].outcome(timeout=0.01)
    await absent.unregister()
    assert [(await receipt.outcome(timeout=1)).code for receipt in receipts] == ["handler_absent"] * 3


async def test_expires_in(bus: AgentBus) -> None:
    """`expires_in` is more than 0 seconds, else refused(expired); a message that waits longer ends as expired."""
    desk = await bus.register("desk", tenant="acme")
    doorman = Doorman()
    await bus.register("booker", doorman, tenant="acme")
    for seconds in (0, -1, -0.5, float("-inf")):
        assert (await desk.send("booker", expires_in=seconds)).code == "expired"
    for nonsense in (float("nan"), "60", True):
        assert (await desk.send("booker", expires_in=nonsense)).code == "malformed"  # type: ignore[arg-type]
    running = await desk.send("booker", expires_in=30)
    await until(lambda: doorman.got)
    short = await desk.send("booker", {"n": "short"}, expires_in=0.05)
    outcome = await short.outcome(timeout=5)
    assert (outcome.state, outcome.code, outcome.attempts) == ("expired", "expired", 0)
    doorman.open.set()
    assert (await running.outcome(timeout=5)).state == "delivered"
    assert len(doorman.got) == 1, "it never started"
    assert bus.status().accounting["expired"] == 1


async def test_parked_message_expires(bus: AgentBus) -> None:
    """The time of a message runs while it is parked too, and an expired id is answered with what became of it."""
    desk = await bus.register("desk", tenant="acme")
    await bus.register("absent", tenant="acme")
    receipt = await desk.send("absent", {"n": 1}, expires_in=0.05, id="order")
    assert (await receipt.outcome(timeout=5)).state == "expired"
    again = await desk.send("absent", {"n": 1}, expires_in=0.05, id="order")
    assert (await again.outcome(timeout=1)).state == "expired"


# --- inside a handler -----------------------------------------------------------------------------------------------


async def test_cause_and_conversation_inside_a_handler(bus: AgentBus, tmp_path: Path) -> None:
    """Sent from inside a handler, a message follows the one being handled: cause, conversation, hops and deadline."""
    inbox = Inbox()
    agents: dict[str, Any] = {}

    async def relay(_message: Message) -> None:
        await agents["relay"].send("end", {"n": 1}, expires_in=1000)
        await agents["relay"].send("end", {"n": 2}, conversation="fresh")

    desk = agents["desk"] = await bus.register("desk", tenant="acme")
    agents["relay"] = await bus.register("relay", relay, tenant="acme")
    await bus.register("end", inbox, tenant="acme")
    first = await desk.send("relay", expires_in=20, conversation="talk")
    await first.outcome(timeout=5)
    await until(lambda: len(inbox.got) == 2)
    same, fresh = inbox.got
    assert (same.cause, same.conversation, same.hops) == (first.message_id, "talk", 1)
    assert (fresh.cause, fresh.conversation, fresh.hops) == (first.message_id, "fresh", 1)
    (record,) = log(tmp_path / "home", "decision", message_id=same.id)
    assert record["input"]["cause"] == {
        "id": first.message_id, "type": "command", "sender": "desk", "tenant": "acme"
    }  # fmt: skip
    assert same.expires_at - same.created_at <= timedelta(seconds=20)


async def test_cause_that_the_sender_did_not_get_vouches_for_nothing(bus: AgentBus, tmp_path: Path) -> None:
    """A cause outside a handler counts only where the sender got that message; another's makes no hop."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    booker = await bus.register("booker", inbox, tenant="acme")
    spy = await bus.register("spy", tenant="acme")
    first = await desk.send("booker")
    await first.outcome(timeout=5)
    honest = await booker.send("booker", cause=first.message_id)
    forged = await spy.send("booker", cause=first.message_id)
    unknown = await spy.send("booker", cause="never/sent")
    for receipt in (honest, forged, unknown):
        await receipt.outcome(timeout=5)
    records = {r["message_id"]: r for r in log(tmp_path / "home", "decision")}
    assert records[honest.message_id]["hops"] == 1
    assert records[honest.message_id]["input"]["cause"]["id"] == first.message_id
    for receipt in (forged, unknown):
        assert records[receipt.message_id]["hops"] == 0
        assert "cause" not in records[receipt.message_id]["input"]


async def test_loop_of_agents_ends_at_the_hop_limit(tmp_path: Path) -> None:
    """A → B → A loops end: each hop is decided, and the one beyond `limits.hops` is refused(hop_limit)."""
    async with small_bus(tmp_path, limits={"hops": 4}) as bus:
        agents: dict[str, Any] = {}
        refused: list[Receipt] = []

        def bouncer(own: str, other: str) -> Any:
            async def bounce(_message: Message) -> None:
                receipt = await agents[own].send(other)
                if not receipt.ok:
                    refused.append(receipt)

            return bounce

        for own, other in (("ping", "pong"), ("pong", "ping")):
            agents[own] = await bus.register(own, bouncer(own, other), tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        await desk.send("ping")
        await until(lambda: refused)
        assert refused[0].code == "hop_limit"
        hops = [record["hops"] for record in log(tmp_path / "home", "decision")]
        assert hops == [0, 1, 2, 3, 4, 5]
        await until(lambda: bus.status().accounting["delivered"] == 5)


async def test_def_handlers_run_in_a_thread(bus: AgentBus) -> None:
    """`def` handlers run beside the loop, `async def` on it; both may return a dict."""
    threads: list[int] = []
    go_on = threading.Event()

    def blocking(_message: Message) -> dict[str, Any]:
        threads.append(threading.get_ident())
        assert go_on.wait(10)
        return {"from": "thread"}

    async def on_loop(_message: Message) -> dict[str, Any]:
        threads.append(threading.get_ident())
        return {"from": "loop"}

    desk = await bus.register("desk", tenant="acme")
    await bus.register("slow", blocking, tenant="acme")
    await bus.register("quick", on_loop, tenant="acme")
    slow = asyncio.create_task(desk.request("slow", timeout=10))
    await until(lambda: threads)
    assert (await desk.request("quick", timeout=5)).payload == {"from": "loop"}, "while the thread still waits"
    go_on.set()
    assert (await slow).payload == {"from": "thread"}
    assert threads[0] != threading.get_ident() == threads[1]


async def test_callable_object_may_be_a_handler(bus: AgentBus) -> None:
    """Anything that can be called with a message is a handler, a bound method too."""

    class Desk:
        def __init__(self) -> None:
            self.seen: list[str] = []

        async def handle(self, message: Message) -> None:
            self.seen.append(message.id)

    desk = Desk()
    sender = await bus.register("sender", tenant="acme")
    await bus.register("desk", desk.handle, tenant="acme")
    receipt = await sender.send("desk")
    await receipt.outcome(timeout=5)
    assert desk.seen == [receipt.message_id]


# --- payload models -------------------------------------------------------------------------------------------------


class Trip(BaseModel):
    """A payload."""

    trip: int
    note: str = "none"


async def test_pydantic_payload_is_sent_and_received(bus: AgentBus) -> None:
    """A model may be sent, and `register(payload=Model)` hands the handler a model."""
    inbox = Inbox(Trip(trip=8))
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme", payload=Trip)
    await bus.register("plain", plain := Inbox(), tenant="acme")
    reply = await desk.request("booker", Trip(trip=7), timeout=5)
    assert inbox.got[0].payload == Trip(trip=7)
    assert reply.payload == {"trip": 8, "note": "none"}
    await (await desk.send("plain", Trip(trip=7))).outcome(timeout=5)
    assert plain.got[0].payload == {"trip": 7, "note": "none"}


async def test_payload_that_does_not_fit_the_model_is_malformed(bus: AgentBus) -> None:
    """A payload that the recipient's model does not take never reaches the handler, and is not tried again."""
    inbox = Inbox()
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", inbox, tenant="acme", payload=Trip, retry=Retry.exponential(attempts=5))
    receipt = await desk.send("booker", {"trip": "secret-word"})
    code = receipt.code
    if receipt.ok:
        outcome = await receipt.outcome(timeout=5)
        assert (outcome.state, outcome.attempts) == ("dead_lettered", 1)
        code = outcome.code
    assert code == "malformed"
    assert inbox.got == []


async def test_accounting_after_all_this(bus: AgentBus) -> None:
    """After every kind of end the sum holds."""
    desk = await bus.register("desk", tenant="acme")
    await bus.register("fine", Inbox(), tenant="acme")
    await bus.register("failing", Inbox(ValueError(), ValueError()), tenant="acme", retry=Retry.exponential(2, 0, 0))
    await bus.register("absent", tenant="acme")
    receipts = [
        await desk.send("fine"), await desk.send("failing"), await desk.send("absent", expires_in=0.01),
    ]  # fmt: skip
    for receipt in receipts:
        await receipt.outcome(timeout=5)
    await desk.send("absent")
    counts = bus.status().accounting
    assert adds_up(counts)
    expected = {"accepted": 4, "delivered": 1, "dead_lettered": 1, "expired": 1, "parked": 1}
    assert {key: value for key, value in counts.items() if value} == expected
