"""A message that comes again: after the disk failed, after its payload was forgotten, after its own replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AuditUnavailable, Message, Receipt, Retry, faultpoints
from enhanced_agent_bus.faultpoints import VARIABLE
from tests.developer import Inbox, SteppedClock, log, small_bus, until


async def test_what_was_not_recorded_is_delivered_when_it_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After AuditUnavailable the same id with the same content is accepted and delivered, once."""
    inbox = Inbox()
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", inbox, tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        hits = faultpoints.points.hits("audit.after_commit")
        monkeypatch.setenv(VARIABLE, f"audit.after_commit:{hits + 1}:raise")
        faultpoints.points.arm(f"audit.after_commit:{hits + 1}:raise")
        with pytest.raises(AuditUnavailable):
            await desk.send("booker", {"trip": 7}, id="order-7")
        receipt = await desk.send("booker", {"trip": 7}, id="order-7")
        assert receipt.state == "accepted"
        outcome = await receipt.outcome(timeout=10)
        assert outcome.state == "delivered"
        assert [message.payload for message in inbox.got] == [{"trip": 7}]
        counts = bus.status().accounting
        assert counts["accepted"] == counts["delivered"] == 1
        assert counts["discarded"] == 0
    faultpoints.points.arm("")


async def test_same_content_is_known_when_no_payload_is_kept(tmp_path: Path) -> None:
    """With store_payloads = false a repeated id is answered with the first receipt, and other content is refused."""
    inbox = Inbox()
    async with small_bus(tmp_path, audit={"store_payloads": False}) as bus:
        await bus.register("booker", inbox, tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        first = await desk.send("booker", {"trip": 7}, id="order-7")
        await first.outcome(timeout=5)
        again = await desk.send("booker", {"trip": 7}, id="order-7")
        other = await desk.send("booker", {"trip": 8}, id="order-7")
    assert again == first
    assert other.code == "replayed"
    assert len(inbox.got) == 1


HOLD = """
admit if is_number(input.message.payload.amount)
message := "over ten"
hold contains {"approvers": 1, "roles": ["chief"], "expires_in": 3600} if input.message.payload.amount > 10
"""


@pytest.mark.parametrize("home", ["home", ":memory:"])
async def test_first_receipt_is_remembered_for_dedup_seconds(tmp_path: Path, home: str) -> None:
    """Within limits.dedup_seconds the same id gets the first receipt, whatever was sent meanwhile and became of it;
    afterwards its recorded state, and other content is refused then too. Nothing runs a second time.
    """
    inbox, clock = Inbox(), SteppedClock()
    limits = {"dedup_seconds": 300, "expires_seconds": 100_000}
    async with small_bus(tmp_path, {"large": HOLD}, home=home, clock=clock, limits=limits) as bus:
        desk = await bus.register("desk", tenant="acme")
        chief = await bus.register("chief", tenant="acme", roles=["chief"])
        retry = Retry.exponential(attempts=1)
        await bus.register("booker", inbox, tenant="acme", concurrency=50)
        await bus.register("broken", Inbox(ValueError("never")), tenant="acme", retry=retry)
        sends: dict[str, tuple[str, float, float | None]] = {
            "small": ("booker", 1, None), "approved": ("booker", 11, None), "rejected": ("booker", 12, None),
            "failed": ("broken", 1, None), "late": ("chief", 1, 0.05), "dropped": ("booker", 13, None),
        }  # fmt: skip

        async def sent() -> dict[str, Receipt]:
            return {
                name: await desk.send(to, {"amount": amount}, id=name, expires_in=seconds)
                for name, (to, amount, seconds) in sends.items()
            }

        first = await sent()
        assert {name: receipt.state for name, receipt in first.items()} == {
            "small": "accepted", "approved": "held", "rejected": "held", "failed": "accepted", "late": "accepted",
            "dropped": "held",
        }  # fmt: skip
        await chief.approve("desk/approved")
        await chief.reject("desk/rejected", reason="no")
        for name in ("small", "approved", "rejected", "failed", "late"):
            await first[name].outcome(timeout=10)
        for _ in range(300):  # more than a bus in memory keeps records
            await desk.send("booker", {"amount": 1})
        await bus.discard("desk/dropped", reason="nobody approves it")
        clock.ahead_seconds = 200
        assert await sent() == first
        clock.ahead_seconds = 400
        later = await sent()
        assert {name: (receipt.state, receipt.code) for name, receipt in later.items()} == {
            "small": ("accepted", None), "approved": ("accepted", None), "rejected": ("refused", "approval_rejected"),
            "failed": ("accepted", "attempts_exhausted"), "late": ("accepted", "expired"),
            "dropped": ("refused", "discarded"),
        }  # fmt: skip
        assert {(receipt.decision_id, receipt.audit_seq, receipt.digest) for receipt in later.values()} == {
            (receipt.decision_id, receipt.audit_seq, receipt.digest) for receipt in first.values()
        }
        assert (await later["failed"].outcome(timeout=1)).state == "dead_lettered"
        assert (await desk.send("booker", {"amount": 2}, id="small")).code == "replayed"
        given = [message.id for message in inbox.got if "/" in message.id]
    assert sorted(given) == ["desk/approved", "desk/small"]


async def test_dedup_seconds_hold_across_a_restart(tmp_path: Path) -> None:
    """Another process answers with the first receipt as long as the first would have, then with the recorded state."""
    clock, inbox = SteppedClock(), Inbox()
    answers: list[Receipt] = []
    for ahead in (0, 500, 700):
        clock.ahead_seconds = ahead
        async with small_bus(tmp_path, {"large": HOLD}, clock=clock) as bus:
            desk = await bus.register("desk", tenant="acme")
            chief = await bus.register("chief", tenant="acme", roles=["chief"])
            await bus.register("booker", inbox, tenant="acme")
            answers.append(await desk.send("booker", {"amount": 11}, id="order-7"))
            if not ahead:
                await chief.approve("desk/order-7")
                assert (await bus.outcome("desk/order-7", timeout=10)).state == "delivered"
    assert answers[0] == answers[1]
    assert [receipt.state for receipt in answers] == ["held", "held", "accepted"]
    assert len(inbox.got) == 1


async def test_replay_renews_the_time_that_the_message_had(tmp_path: Path) -> None:
    """However often a letter is replayed, it has the time that its sender gave it, and its digest stays."""

    async def broken(_message: Message) -> None:
        raise ValueError

    async with small_bus(tmp_path) as bus:
        await bus.register("booker", broken, tenant="acme", retry=Retry.exponential(attempts=1))
        desk = await bus.register("desk", tenant="acme")
        receipt = await desk.send("booker", {}, id="order-7", expires_in=100)
        digests = {receipt.digest}
        for _ in range(3):
            await receipt.outcome(timeout=5)
            receipt = await bus.replay("desk/order-7")
            digests.add(receipt.digest)
            assert receipt.state == "accepted"
        await receipt.outcome(timeout=5)
    records = log(tmp_path / "home", "decision")
    assert len(digests) == 1
    assert {record["expires_us"] - record["created_us"] for record in records} == {100_000_000}


async def test_receipt_follows_a_replay(tmp_path: Path) -> None:
    """Whoever holds the first receipt of a dead letter learns that a replay was delivered."""
    fail = True

    async def mended(_message: Message) -> None:
        if fail:
            raise ValueError

    async with small_bus(tmp_path) as bus:
        await bus.register("booker", mended, tenant="acme", retry=Retry.exponential(attempts=1))
        desk = await bus.register("desk", tenant="acme")
        receipt = await desk.send("booker", {})
        assert (await receipt.outcome(timeout=5)).state == "dead_lettered"
        fail = False
        await bus.replay(receipt.message_id)
        assert (await receipt.outcome(timeout=5)).state == "delivered"


async def test_hops_count_whatever_is_named_as_the_cause(tmp_path: Path) -> None:
    """A handler that names an unknown cause does not shed the hop limit: a loop of agents ends."""
    codes: list[str | None] = []
    agents: dict[str, Any] = {}

    async def bounce(message: Message) -> None:
        other = "two" if message.recipient == "one" else "one"
        receipt = await agents[message.recipient].send(other, {}, cause="nobody/knows")
        if not receipt.ok:
            codes.append(receipt.code)

    async with small_bus(tmp_path, limits={"hops": 5}) as bus:
        for name in ("one", "two"):
            agents[name] = await bus.register(name, bounce, tenant="acme")
        await agents["one"].send("two", {})
        await until(lambda: codes != [])
    assert codes == ["hop_limit"]
