"""Facts under concurrency, holds, and what becomes of waiting messages when the constitution changes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Agent, AgentBus, ConstitutionRejected, Message, Receipt, Retry, open_bus
from tests.developer import PATIENT, Doorman, Inbox, adds_up, log, small_bus, until
from tests.support import constitution_digest, write_constitution

# 100 a sender: what a message spends is in its payload.
BUDGET = """
spent := object.get(input.facts.sender, "spent", 0)

admit if spent + input.message.payload.amount <= 100

remember contains {"scope": "sender", "key": "spent", "add": input.message.payload.amount}
"""
NOBODY = "admit if input.message.id == input.message.type"


def codes(receipts: list[Receipt]) -> list[str]:
    """The state of each, or the code of its refusal."""
    return [receipt.code or receipt.state for receipt in receipts]


def fact(bus: AgentBus, owner: str, key: str, scope: str = "agent") -> Any:
    """What is remembered, None when nothing is."""
    return next((fact.value for fact in bus.facts(scope, owner) if fact.key == key), None)


@pytest.mark.parametrize("home", ["home", ":memory:"])
async def test_two_messages_never_pass_on_the_same_rest_of_a_budget(tmp_path: Path, home: str) -> None:
    """Fifty messages at once want 7 each of the last 100 of a budget: fourteen pass, whatever the interleaving."""
    async with small_bus(tmp_path, {"budget": BUDGET}, home=home) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        other = await bus.register("other", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        receipts = await asyncio.gather(
            *(agent.send("booker", {"amount": 7}) for _ in range(50) for agent in (desk, other))
        )
        assert codes(receipts).count("accepted") == 28
        assert codes(receipts).count("policy_denied") == 72
        assert [fact(bus, agent, "spent") for agent in ("desk", "other")] == [98, 98]
        await until(lambda: len(inbox.got) == 28)
        assert (await desk.send("booker", {"amount": 2})).ok
        assert (await desk.send("booker", {"amount": 1})).code == "policy_denied"


async def test_budget_that_all_share_is_shared(tmp_path: Path) -> None:
    """A budget in the scope of the tenant, the recipient or the conversation is one for all that share it."""
    rules = {
        name: f"""
admit if object.get(input.facts.{scope}, "{name}", 0) + 1 <= {limit}
remember contains {{"scope": "{scope}", "key": "{name}", "add": 1}}
"""
        for name, scope, limit in (("a", "tenant", 30), ("b", "recipient", 12), ("c", "conversation", 5))
    }
    async with small_bus(tmp_path, rules) as bus:
        for name in ("one", "two"):
            await bus.register(name, Inbox(), tenant="acme")
        senders = [await bus.register(f"desk-{n}", tenant="acme") for n in range(5)]
        foreign = await bus.register("foreign", tenant="globex")
        talk = await asyncio.gather(*(desk.send("one", conversation="talk") for desk in senders * 4))
        assert codes(talk).count("accepted") == 5
        rest = await asyncio.gather(*(desk.send("one") for desk in senders * 4))
        assert codes(rest).count("accepted") == 7
        more = await asyncio.gather(*(desk.send("two") for desk in senders * 4))
        assert codes(more).count("accepted") == 12
        assert fact(bus, "acme", "a", "tenant") == 24
        assert (await foreign.send("one")).code == "policy_denied"


async def test_label_of_a_sender_is_not_shed_by_a_new_conversation(tmp_path: Path) -> None:
    """Nothing leaves after a secret was read: a label on the sender holds in every conversation, one on the recipient
    travels with the data, and one on the conversation stays in it.
    """
    rules = {
        "leaves": """
admit if not input.message.payload.out

admit if {
	input.message.payload.out
	not "secret" in object.get(input.facts.sender, "read", [])
	not "tainted" in object.get(input.facts.conversation, "talk", [])
}

remember contains {"scope": "sender", "key": "read", "value": "secret"} if input.message.payload.reads
remember contains {"scope": "recipient", "key": "read", "value": "secret"} if input.message.payload.tells
remember contains {"scope": "conversation", "key": "talk", "value": "tainted"} if input.message.payload.taints
"""
    }
    async with small_bus(tmp_path, rules) as bus:
        agents = {name: await bus.register(name, Inbox(), tenant="acme") for name in ("a", "b", "c", "d")}
        assert (await agents["a"].send("d", {"out": True})).ok
        assert (await agents["a"].send("d", {"reads": True}, conversation="first")).ok
        for conversation in (None, "first", "second"):
            assert (await agents["a"].send("d", {"out": True}, conversation=conversation)).code == "policy_denied"
        assert (await agents["b"].send("d", {"out": True})).ok
        assert (await agents["a"].send("b", {"tells": True})).ok
        assert (await agents["b"].send("d", {"out": True})).code == "policy_denied"
        assert (await agents["c"].send("d", {"taints": True}, conversation="talk")).ok
        assert (await agents["c"].send("d", {"out": True}, conversation="talk")).code == "policy_denied"
        assert (await agents["c"].send("d", {"out": True}, conversation="other")).ok


async def test_facts_survive_a_restart(tmp_path: Path) -> None:
    """Numbers, sets and the bus's own counters are there after a restart, as policies see them."""
    rules = {
        "words": """
admit if input.message.payload.word != "no"
remember contains {"scope": "sender", "key": "words", "value": input.message.payload.word}
remember contains {"scope": "sender", "key": "count", "add": 2}
remember contains {"scope": "sender", "key": "last", "value": count(input.message.payload.word)}
"""
    }
    async with small_bus(tmp_path, rules) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        for word in ("ten", "two", "seven", "two", "no"):
            await desk.send("booker", {"word": word}, conversation="talk")
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        receipt = await desk.send("booker", {"word": "one"}, conversation="talk")
        assert fact(bus, "desk", "words") == ["one", "seven", "ten", "two"]
    (record,) = log(tmp_path / "home", "decision", message_id=receipt.message_id)
    seen = record["input"]["facts"]
    assert (seen["sender"]["sent"], seen["sender"]["refused"]) == (4, 1)
    assert (seen["conversation"]["sent"], seen["conversation"]["refused"]) == (4, 1)
    assert (seen["sender"]["count"], seen["sender"]["last"]) == (8, 3)
    assert "words" not in seen["sender"], "strings stand apart from the record"


async def test_message_counts_once_however_often_it_is_decided(tmp_path: Path) -> None:
    """Retried, replayed, decided anew after an activation and after a restart: a message near its budget passes each
    time, and is in the budget once.
    """
    async with small_bus(tmp_path, {"budget": BUDGET}) as bus:
        desk = await bus.register("desk", tenant="acme")
        failing = Inbox(*[ValueError()] * 9)
        await bus.register("booker", failing, tenant="acme", retry=Retry.exponential(3, 0, 0))
        await bus.register("absent", tenant="acme")
        receipt = await desk.send("booker", {"amount": 90}, id="big")
        assert (await receipt.outcome(timeout=5)).attempts == 3
        assert fact(bus, "desk", "spent") == 90
        replayed = await bus.replay(receipt.message_id)
        assert replayed.ok
        assert (await replayed.outcome(timeout=5)).attempts == 6
        assert fact(bus, "desk", "spent") == 90
        assert (await desk.send("absent", {"amount": 10}, id="small")).ok
        again = await desk.send("absent", {"amount": 10}, id="small")
        assert again.ok
        await bus.activate(write_constitution(tmp_path / "policies", {"budget": BUDGET}, revision="2"))
    async with small_bus(tmp_path) as bus:
        inbox = Inbox()
        await bus.register("absent", inbox, tenant="acme")
        assert (await bus.outcome("desk/small", timeout=5)).state == "delivered"
        assert fact(bus, "desk", "spent") == 100
        await bus.register("booker", Inbox(), tenant="acme")
        assert (await (await bus.replay("desk/big")).outcome(timeout=5)).state == "delivered"
        assert fact(bus, "desk", "spent") == 100
        desk = await bus.register("desk", tenant="acme")
        assert (await desk.send("booker", {"amount": 1})).code == "policy_denied"
    sent = [r["input"]["facts"]["sender"]["sent"] for r in log(tmp_path / "home", "decision", sender="desk")]
    assert max(sent) == 2


async def test_refused_message_spends_nothing(tmp_path: Path) -> None:
    """Only an allow that is accepted is remembered: not what was refused, and not what had no place."""
    async with small_bus(tmp_path, {"budget": BUDGET}, limits={"mailbox": 1}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("absent", tenant="acme")
        assert (await desk.send("absent", {"amount": 101})).code == "policy_denied"
        assert fact(bus, "desk", "spent") is None
        assert (await desk.send("absent", {"amount": 40})).ok
        assert (await desk.send("absent", {"amount": 40})).code == "queue_full"
        assert (await desk.send("nobody", {"amount": 40})).code == "recipient_unknown"
        assert fact(bus, "desk", "spent") == 40


async def test_facts_are_bounded(tmp_path: Path) -> None:
    """Beyond 256 keys a scope, or 1,000 values a key, the message is refused(facts_full); what is known still works."""
    rules = {
        "keys": """
admit if input.message.id
remember contains {"scope": "sender", "key": name, "add": 1} if some name in input.message.payload.keys
remember contains {"scope": "sender", "key": "set", "value": name} if some name in input.message.payload.values
"""
    }
    async with small_bus(tmp_path, rules) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        many = await bus.register("many-keys", tenant="acme")
        assert (await many.send("booker", {"keys": [f"k{n}" for n in range(256)]})).ok
        assert (await many.send("booker", {"keys": ["one-more"]})).code == "facts_full"
        assert (await many.send("booker", {"keys": ["k7", "one-more"]})).code == "facts_full"
        assert fact(bus, "many-keys", "k7") == 1, "all of a decision's facts or none"
        assert (await many.send("booker", {"keys": ["k7"]})).ok
        wide = await bus.register("many-values", tenant="acme")
        for start in (0, 500):
            assert (await wide.send("booker", {"values": [f"v{n}" for n in range(start, start + 500)]})).ok
        assert (await wide.send("booker", {"values": ["one-more"]})).code == "facts_full"
        assert (await wide.send("booker", {"values": ["v7"]})).ok


async def test_mixed_kinds_of_facts_are_malformed(tmp_path: Path) -> None:
    """A string and a number under one key are refused(policy_malformed), in one answer or one after the other."""
    rules = {
        "mixed": """
admit if input.message.id
remember contains {"scope": "sender", "key": "k", "value": "text"} if input.message.payload.text
remember contains {"scope": "sender", "key": "k", "add": 1} if input.message.payload.add
remember contains {"scope": "sender", "key": "k", "value": 3} if input.message.payload.number
"""
    }
    async with small_bus(tmp_path, rules) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        assert (await desk.send("booker", {"text": True, "add": True})).code == "policy_malformed"
        assert (await desk.send("booker", {"text": True})).ok
        for kind in ("add", "number"):
            assert (await desk.send("booker", {kind: True})).code == "policy_malformed"
        assert fact(bus, "desk", "k") == ["text"]


@pytest.mark.parametrize(
    "note",
    [
        '{"scope": "sender", "key": "k"}',
        '{"scope": "sender", "key": "k", "value": 1, "add": 1}',
        '{"scope": "everyone", "key": "k", "add": 1}',
        '{"scope": "sender", "key": "k", "value": true}',
        '{"scope": "sender", "key": "k", "value": null}',
        '{"scope": "sender", "key": "k", "value": ["a"]}',
        '{"scope": "sender", "key": "sent", "add": -1}',
        '{"scope": "sender", "key": "k", "add": "1"}',
        '{"scope": "sender", "key": 7, "add": 1}',
        '{"scope": "sender", "key": "k", "add": 1, "ttl": 3}',
        '"k"',
    ],
)
async def test_remember_in_another_shape_is_malformed(tmp_path: Path, note: str) -> None:
    """What is not in the shape of `remember` refuses the message: the policy has given no usable answer."""
    rules = {"shape": f"admit if input.message.id\nremember contains {note}"}
    if note == '"k"':  # main.rego gathers entries as they are
        rules = {"shape": "admit if input.message.id\nremember := {17}"}
    async with small_bus(tmp_path, rules, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        assert (await desk.send("booker")).code == "policy_malformed"
        assert bus.facts() == []


# --- holds ----------------------------------------------------------------------------------------------------------

HOLD = """
admit if input.message.id
code := "large"
hold contains {"approvers": 1, "roles": ["chief"], "expires_in": seconds} if input.message.payload.amount > 10
seconds := object.get(input.message.payload, "seconds", 3600)
remember contains {"scope": "sender", "key": "spent", "add": input.message.payload.amount}
"""


async def test_held_message_waits_and_is_listed(tmp_path: Path) -> None:
    """With `hold` a message is held: recorded, listed with its rule, not delivered, and still held after a restart."""
    async with small_bus(tmp_path, {"large": HOLD}) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        receipt = await desk.send("booker", {"amount": 11}, id="big")
        assert (receipt.state, receipt.code, receipt.ok) == ("held", None, False)
        assert [reason.rule for reason in receipt.reasons] == ["large"]
        receipt.raise_for_refusal()
        (held,) = bus.held()
        assert (held.message_id, held.state) == ("desk/big", "held")
        assert fact(bus, "desk", "spent") is None
        (record,) = log(tmp_path / "home", "decision", message_id="desk/big")
        assert (record["verdict"], record["reasons"]) == ("hold", [{"rule": "large", "code": "large"}])
        with pytest.raises(TimeoutError):
            await receipt.outcome(timeout=0.02)
        counts = bus.status().accounting
        assert (counts["held"], counts["accepted"], adds_up(counts)) == (1, 1, True)
        small = await desk.send("booker", {"amount": 10})
        await small.outcome(timeout=5)
        assert [message.id for message in inbox.got] == [small.message_id]
    async with small_bus(tmp_path) as bus:
        assert [waiting.message_id for waiting in bus.held()] == ["desk/big"]
        await bus.register("booker", inbox, tenant="acme")
        await bus.discard("desk/big", reason="nobody approves here")
        assert (await bus.outcome("desk/big", timeout=5)).state == "discarded"
    assert len(inbox.got) == 1


async def test_held_message_sent_again_gets_the_first_receipt(tmp_path: Path) -> None:
    """A repeated id of a held message is answered with the first receipt, its reasons in words, after a restart too."""
    async with small_bus(tmp_path, {"large": HOLD + 'message := "over ten"\nremedy := "ask the chief"\n'}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        first = await desk.send("booker", {"amount": 11}, id="big")
        assert (first.reasons[0].message, first.reasons[0].remedy) == ("over ten", "ask the chief")
        assert await desk.send("booker", {"amount": 11}, id="big") == first
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        assert await desk.send("booker", {"amount": 11}, id="big") == first


async def test_hold_that_nobody_approves_expires(tmp_path: Path) -> None:
    """A hold ends after its `expires_in` as refused(approval_expired), after a restart too."""
    async with small_bus(tmp_path, {"large": HOLD}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        quick = await desk.send("booker", {"amount": 11, "seconds": 0.05})
        outcome = await quick.outcome(timeout=5)
        assert (outcome.state, outcome.code, outcome.attempts) == ("refused", "approval_expired", 0)
        assert bus.held() == []
        slow = await desk.send("booker", {"amount": 11, "seconds": 0.4})
    async with small_bus(tmp_path) as bus:
        outcome = await bus.outcome(slow.message_id, timeout=5)
        assert (outcome.state, outcome.code) == ("refused", "approval_expired")
        counts = bus.status().accounting
        assert (counts["refused"], counts["accepted"], adds_up(counts)) == (2, 2, True)


# --- the constitution changes while messages wait -----------------------------------------------------------------


async def test_no_waiting_message_starts_under_the_old_constitution(tmp_path: Path) -> None:
    """A constitution is activated while 1,000 messages wait: after `activate` returned none starts under the old one,
    those that the new one admits are delivered under it, the others end as refused.
    """
    async with small_bus(tmp_path) as bus:
        doorman = Doorman()
        started: list[tuple[str, str, int]] = []

        async def book(message: Message) -> None:
            started.append((message.id, message.constitution, message.payload["n"]))
            await doorman(message)

        agents: list[Agent] = [await bus.register(f"desk-{n}", tenant="acme") for n in range(4)]
        for name in ("one", "two"):
            await bus.register(name, book, tenant="acme")
        receipts = await asyncio.gather(*(agents[n % 4].send(("one", "two")[n % 2], {"n": n}) for n in range(1002)))
        await until(lambda: len(started) == 2)
        old = bus.status().constitution
        new = write_constitution(tmp_path / "new", {"even": "admit if input.message.payload.n % 4 < 2"})
        activation = await bus.activate(new)
        running = {message_id for message_id, _, _ in started}
        assert activation.digest == constitution_digest(new) == bus.status().constitution != old
        assert len(running) == 2
        doorman.open.set()
        outcomes = {receipt.message_id: await receipt.outcome(timeout=60) for receipt in receipts}
        for receipt, n in zip(receipts, range(1002), strict=True):
            expected = "delivered" if receipt.message_id in running or n % 4 < 2 else "refused"
            assert outcomes[receipt.message_id].state == expected
        assert all(constitution == activation.digest for _, constitution, _ in started[2:])
        assert adds_up(bus.status().accounting)
    decisions = log(tmp_path / "home", "decision", why="activation")
    assert len(decisions) == 1000
    assert {record["constitution"] for record in decisions} == {activation.digest}
    firsts = {record["message_id"]: record["decision_id"] for record in log(tmp_path / "home", "decision", why="send")}
    assert all(record["previous"] == firsts[record["message_id"]] for record in decisions)
    (activated,) = [r["seq"] for r in log(tmp_path / "home", "policy", digest=activation.digest)]
    assert activated < decisions[0]["seq"]


async def test_no_handler_starts_under_a_constitution_that_is_not_active(tmp_path: Path) -> None:
    """While messages are sent and constitutions change all the time, each handler starts under the one active then."""
    async with small_bus(tmp_path) as bus:
        wrong: list[str] = []
        started: list[str] = []

        async def book(message: Message) -> None:
            started.append(message.constitution)
            if message.constitution != bus.status().constitution:
                wrong.append(message.id)
            await asyncio.sleep(0)

        for name in ("one", "two"):
            await bus.register(name, book, tenant="acme", concurrency=2)
        desk = await bus.register("desk", tenant="acme")
        done = asyncio.Event()

        async def send(name: str) -> None:
            while not done.is_set():
                await asyncio.gather(*(desk.send(name) for _ in range(20)))

        sending = [asyncio.create_task(send(name)) for name in ("one", "two")]
        for number in range(6):
            activation = await bus.activate(write_constitution(tmp_path / "new", name=f"number {number}"))
            before = len(started)
            await until(lambda before=before: len(started) > before + 20)  # type: ignore[misc]
            assert set(started[before:]) == {activation.digest}
        done.set()
        await asyncio.gather(*sending)
        await bus.wait_idle(timeout=20)
        assert wrong == []
        assert len(set(started)) == 7
        assert adds_up(bus.status().accounting)


async def test_agent_that_comes_back_has_its_concurrency(tmp_path: Path) -> None:
    """An agent that unregisters while its handler runs, and registers again, still runs one message at a time."""
    async with small_bus(tmp_path) as bus:
        doorman = Doorman()
        at_once: list[int] = []
        running = 0

        async def book(_message: Message) -> None:
            nonlocal running
            running += 1
            at_once.append(running)
            for _ in range(3):
                await asyncio.sleep(0)
            running -= 1

        desk = await bus.register("desk", tenant="acme")
        booker = await bus.register("booker", doorman, tenant="acme")
        first = await desk.send("booker")
        await until(lambda: doorman.got)
        await booker.unregister()
        await bus.register("booker", book, tenant="acme")
        doorman.open.set()
        await first.outcome(timeout=5)
        await asyncio.gather(*(desk.send("booker", {"n": n}) for n in range(20)))
        await bus.wait_idle(timeout=10)
        assert len(at_once) == 20
        assert max(at_once) == 1


async def test_parked_message_is_decided_under_the_constitution_of_its_start(tmp_path: Path) -> None:
    """What waits for an absent agent is judged by what is active when the agent comes, not by what was."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("absent", tenant="acme")
        receipt = await desk.send("absent", {"n": 1}, id="order")
        await bus.activate(write_constitution(tmp_path / "no", {"no": NOBODY}))
    inbox = Inbox()
    async with open_bus(tmp_path / "home", policy=PATIENT) as bus:
        await bus.register("absent", inbox, tenant="acme")
        outcome = await bus.outcome(receipt.message_id, timeout=5)
        assert (outcome.state, outcome.code) == ("refused", "policy_denied")
    assert inbox.got == []


async def test_sender_that_pinned_the_old_constitution_is_refused_after_a_change(tmp_path: Path) -> None:
    """A waiting message of an agent that agreed to the old constitution alone is refused(constitution_mismatch)."""
    async with small_bus(tmp_path) as bus:
        old = bus.status().constitution
        doorman = Doorman()
        pinned = await bus.register("pinned", tenant="acme", constitution=old)
        latest = await bus.register("latest", tenant="acme")
        await bus.register("booker", doorman, tenant="acme")
        first = await latest.send("booker")
        await until(lambda: doorman.got)
        waiting = [await pinned.send("booker"), await latest.send("booker")]
        await bus.activate(write_constitution(tmp_path / "new", revision="2"))
        doorman.open.set()
        assert (await first.outcome(timeout=5)).state == "delivered"
        outcome = await waiting[0].outcome(timeout=5)
        assert (outcome.state, outcome.code) == ("refused", "constitution_mismatch")
        assert (await waiting[1].outcome(timeout=5)).state == "delivered"
        assert (await pinned.send("booker")).code == "constitution_mismatch"


async def test_grace_for_those_who_pinned_the_constitution_before(tmp_path: Path) -> None:
    """Within `constitution.grace_seconds` an agent that pinned the one before may still send."""
    policies = write_constitution(tmp_path / "policies")
    async with small_bus(tmp_path) as bus:
        old = bus.status().constitution
    settings: dict[str, Any] = {"grace_seconds": 60, "path": str(policies)}
    async with open_bus(tmp_path / "home", constitution=settings, policy=PATIENT) as bus:
        pinned = await bus.register("pinned", tenant="acme", constitution=old)
        await bus.register("booker", Inbox(), tenant="acme")
        await bus.activate(write_constitution(tmp_path / "new", revision="2"))
        receipt = await pinned.send("booker")
        assert receipt.ok
        assert receipt.constitution == bus.status().constitution != old


async def test_rejected_constitution_changes_nothing(tmp_path: Path) -> None:
    """A constitution that does not pass is recorded with its reason, and the old one decides on."""
    async with small_bus(tmp_path) as bus:
        before = bus.status().constitution
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        with pytest.raises(ConstitutionRejected) as caught:
            await bus.activate(write_constitution(tmp_path / "bad", {"bad": "admit if input.mesage.id"}))
        assert caught.value.reason == "invalid"
        assert bus.status().constitution == before
        assert (await desk.send("booker")).constitution == before
        same = await bus.activate(tmp_path / "policies")
        assert same.digest == before
    events = [(r["event"], r["reason"]) for r in log(tmp_path / "home", "policy")]
    assert events == [("activated", None), ("rejected", "invalid"), ("unchanged", None)]


async def test_accounting_adds_up_at_every_instant(tmp_path: Path) -> None:
    """While a mixed load runs, at every sample and after a restart, accepted is the sum of all states."""
    rules = {
        "most": """
admit if input.message.payload.n % 7 != 0
hold contains {"approvers": 1, "roles": ["chief"]} if input.message.payload.n % 11 == 5
"""
    }
    samples: list[dict[str, int]] = []
    async with small_bus(tmp_path, rules, delivery={"drain_seconds": 0.05}) as bus:

        async def flaky(message: Message) -> dict[str, Any] | None:
            await asyncio.sleep(0)
            if message.payload["n"] % 5 == message.attempt:
                raise ValueError
            return {"n": message.payload["n"] + 7} if message.payload["n"] % 3 == 0 else None

        for name in ("one", "two"):
            await bus.register(name, flaky, tenant="acme", retry=Retry.exponential(3, 0.001, 0.002), concurrency=3)
        await bus.register("stuck", Doorman(), tenant="acme")
        await bus.register("absent", tenant="acme")
        agents = [await bus.register(f"desk-{n}", tenant="acme") for n in range(8)]
        done = asyncio.Event()

        async def sample() -> None:
            while not done.is_set():
                samples.append(bus.status().accounting)
                await asyncio.sleep(0)

        sampling = asyncio.create_task(sample())
        receipts = await asyncio.gather(
            *(
                agents[n % 8].send(("one", "two", "stuck", "absent")[n % 4], {"n": n}, expires_in=600)
                for n in range(400)
            )
        )
        await until(lambda: not any(w.recipient in ("one", "two") and w.state != "held" for w in bus.queue()))
        done.set()
        await sampling
        last = bus.status().accounting
        assert len(samples) > 20
        assert all(adds_up(counts) for counts in [*samples, last])
        remembered = sum(receipt.state != "refused" for receipt in receipts)
        assert last["accepted"] - remembered <= last["delivered"], "the rest are replies"
        assert last["held"] > 0
        assert last["parked"] > 0
        assert last["in_flight"] == 1
    async with small_bus(tmp_path) as bus:
        after = bus.status().accounting
        assert adds_up(after)
        assert after["accepted"] == last["accepted"]
        for state in ("held", "parked", "delivered", "dead_lettered", "refused", "expired", "discarded"):
            expected = last[state] + (last["queued"] + last["in_flight"] if state == "parked" else 0)
            assert after[state] in (last[state], expected), state
