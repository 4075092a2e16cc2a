"""Held messages: who may say yes or no, what that changes, and that a yes opens nothing without a new decision."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Agent, AgentBus, BusError, Receipt, Retry, open_bus
from tests.developer import PATIENT, Inbox, adds_up, log, small_bus, until
from tests.support import write_constitution


def large(approvers: int = 1, roles: str = '"boss"', seconds: float = 3600) -> str:
    """A rule that holds what is above 100."""
    entry = f'{{"approvers": {approvers}, "roles": [{roles}], "expires_in": {seconds}}}'
    return f"admit if true\n\nhold contains {entry} if input.message.payload.n > 100"


async def office(bus: AgentBus, inbox: Inbox, **settings: Any) -> tuple[Agent, Agent, Agent]:
    """A desk that sends, two bosses; the booker gets what is released."""
    desk = await bus.register("desk", tenant="acme", roles=["planner", "boss"])
    await bus.register("booker", inbox, tenant="acme", **settings)
    bosses = [await bus.register(name, tenant="acme", roles=["boss"]) for name in ("anna", "bert")]
    return desk, bosses[0], bosses[1]


async def held(desk: Agent, message_id: str = "big") -> Receipt:
    """A message that the rule holds."""
    receipt = await desk.send("booker", {"n": 500}, id=message_id)
    assert (receipt.state, receipt.code) == ("held", None)
    return receipt


async def test_with_the_approval_it_is_decided_anew_and_delivered(tmp_path: Path) -> None:
    """The release names the decision before it, the approval stands before it in the log, and the policy saw it."""
    seen = """admit if true

remember contains {"scope": "sender", "key": "approver", "value": approval.approver} if {
	some approval in input.approvals
}"""
    inbox = Inbox()
    async with small_bus(tmp_path, {"large": large(), "seen": seen}) as bus:
        desk, anna, _ = await office(bus, inbox)
        receipt = await held(desk)
        assert not inbox.got
        done = await anna.approve(receipt.message_id, comment="asked the customer")
        assert (done.state, done.code, done.missing) == ("accepted", None, ())
        outcome = await receipt.outcome(timeout=10)
        assert (outcome.state, outcome.attempts) == ("delivered", 1)
        assert [fact.value for fact in bus.facts("agent", "desk") if fact.key == "approver"] == [["anna"]]
        assert adds_up(bus.status().accounting)
    [approval] = log(tmp_path / "home", "approval")
    first, second = log(tmp_path / "home", "decision", message_id=receipt.message_id)
    assert (first["verdict"], second["verdict"], second["why"]) == ("hold", "allow", "release")
    assert second["previous"] == first["decision_id"] == approval["decision_id"]
    assert first["seq"] < approval["seq"] < second["seq"]
    assert (approval["event"], approval["approver"], approval["rules"]) == ("approved", "anna", ["large"])
    assert approval["digest"] == receipt.digest
    [given] = second["input"]["approvals"]
    assert (given["approver"], given["rule"], given["roles"]) == ("anna", "large", ["boss"])
    assert "asked the customer" not in json.dumps(approval)


async def test_what_the_approver_was_shown_can_be_reproduced(tmp_path: Path) -> None:
    """The record commits to it, and it stands apart like a payload: message, reasons, who had approved before."""
    async with small_bus(tmp_path, {"large": large(2)}) as bus:
        desk, anna, bert = await office(bus, Inbox())
        receipt = await held(desk)
        await anna.approve(receipt.message_id, comment="fine")
        await bert.approve(receipt.message_id)
    database = sqlite3.connect(tmp_path / "home" / "bus.db")
    views = []
    for approval in log(tmp_path / "home", "approval"):
        salt, body = database.execute("SELECT salt, body FROM texts WHERE seq = ?", (approval["seq"],)).fetchone()
        assert hashlib.sha256(salt + body).hexdigest() == approval["texts"]
        views.append(json.loads(body))
    database.close()
    assert [view["words"] for view in views] == ["fine", None]
    shown = views[1]["shown"]
    assert (shown["message_id"], shown["sender"], shown["digest"]) == (receipt.message_id, "desk", receipt.digest)
    assert [given["approver"] for given in shown["approvals"]] == ["anna"]
    assert shown["reasons"][0]["rule"] == "large"
    [payload] = {record["payload"] for record in log(tmp_path / "home", "decision", message_id=receipt.message_id)}
    assert shown["payload"] == payload


async def test_several_approvers_each_count_once(tmp_path: Path) -> None:
    """One of two leaves it held and says what is missing; the same one again is refused, and that is recorded."""
    async with small_bus(tmp_path, {"large": large(2)}) as bus:
        desk, anna, bert = await office(bus, Inbox())
        receipt = await held(desk)
        assert (await anna.approve(receipt.message_id)).missing == (("large", 1),)
        with pytest.raises(BusError, match="counts once") as raised:
            await anna.approve(receipt.message_id)
        assert raised.value.code == "approval_refused"
        assert [waiting.message_id for waiting in bus.held()] == [receipt.message_id]
        assert (await bert.approve(receipt.message_id)).state == "accepted"
        assert (await receipt.outcome(timeout=10)).state == "delivered"
    assert [record["event"] for record in log(tmp_path / "home", "approval")] == ["approved", "refused", "approved"]


async def test_who_may_not_approve_changes_nothing(tmp_path: Path) -> None:
    """The sender, an agent without the role, one of a foreign tenant, an unknown message: each is recorded."""
    async with small_bus(tmp_path, {"large": large()}) as bus:
        desk, anna, _ = await office(bus, Inbox())
        clerk = await bus.register("clerk", tenant="acme", roles=["worker"])
        stranger = await bus.register("stranger", tenant="globex", roles=["boss"])
        receipt = await held(desk)
        for agent in (desk, clerk, stranger):
            with pytest.raises(BusError) as raised:
                await agent.approve(receipt.message_id)
            assert raised.value.code == "approval_refused"
            assert raised.value.remedy
            with pytest.raises(BusError):
                await agent.reject(receipt.message_id, reason="no")
        for unknown in ("desk/other", "not an id\n", ""):
            with pytest.raises(KeyError):
                await anna.approve(unknown)
        await anna.unregister()
        with pytest.raises(BusError, match="not registered"):
            await anna.approve(receipt.message_id)
        assert bus.status().accounting["held"] == 1
    refused = log(tmp_path / "home", "approval", event="refused")
    assert len(refused) == 10
    assert all(record["why"] for record in refused)


async def test_a_rejection_ends_it(tmp_path: Path) -> None:
    """The sender learns the code, not the words; nothing of it runs."""
    inbox = Inbox()
    async with small_bus(tmp_path, {"large": large()}) as bus:
        desk, anna, bert = await office(bus, inbox)
        receipt = await held(desk)
        await anna.reject(receipt.message_id, reason="too dear")
        outcome = await receipt.outcome(timeout=10)
        assert (outcome.state, outcome.code) == ("refused", "approval_rejected")
        with pytest.raises(KeyError):
            await bert.approve(receipt.message_id)
        assert not inbox.got
        assert adds_up(bus.status().accounting)
    [record] = log(tmp_path / "home", "approval", event="rejected")
    assert "too dear" not in json.dumps(record)


async def test_a_tightened_policy_decides_about_the_release(tmp_path: Path) -> None:
    """An approval under the old constitution opens nothing under the new one."""
    async with small_bus(tmp_path, {"large": large()}) as bus:
        desk, anna, _ = await office(bus, Inbox())
        receipt = await held(desk)
        stricter = {"large": large(), "cap": "admit if input.message.payload.n < 200"}
        await bus.activate(write_constitution(tmp_path / "stricter", stricter, revision="2"))
        done = await anna.approve(receipt.message_id)
        assert (done.state, done.code) == ("refused", "policy_denied")
        outcome = await receipt.outcome(timeout=10)
        assert (outcome.state, outcome.code) == ("refused", "policy_denied")
    last = log(tmp_path / "home", "decision", message_id=receipt.message_id)[-1]
    assert (last["why"], last["verdict"], last["reasons"][0]["rule"]) == ("release", "refuse", "cap")


async def test_approvals_survive_a_restart(tmp_path: Path) -> None:
    """One before, one after; and it counts once in what its sender has sent."""
    async with small_bus(tmp_path, {"large": large(2)}) as bus:
        desk, anna, _ = await office(bus, Inbox())
        receipt = await held(desk)
        await anna.approve(receipt.message_id)
    inbox = Inbox()
    async with small_bus(tmp_path) as bus:
        _, _, bert = await office(bus, inbox)
        assert (await bert.approve(receipt.message_id)).state == "accepted"
        assert (await bus.outcome(receipt.message_id, timeout=10)).state == "delivered"
    last = log(tmp_path / "home", "decision", message_id=receipt.message_id)[-1]
    assert [given["approver"] for given in last["input"]["approvals"]] == ["anna", "bert"]
    assert last["input"]["facts"]["sender"]["sent"] == 0


async def test_what_has_all_approvals_is_released_at_the_next_start(tmp_path: Path) -> None:
    """A bus that ends between the last approval and a decision on it loses neither; here no decision comes in time."""
    endless = """admit if count(input.approvals) == 0

admit if {
	count(input.approvals) > 0
	count([1 | some x in numbers.range(1, 4000); some y in numbers.range(1, 4000); x * y == 0]) == 0
}"""
    async with small_bus(tmp_path, {"large": large(), "endless": endless}, policy={"timeout_seconds": 0.5}) as bus:
        desk, anna, _ = await office(bus, Inbox())
        receipt = await held(desk)
        done = await anna.approve(receipt.message_id)
        assert (done.state, done.code, done.missing) == ("held", None, ())
        assert adds_up(bus.status().accounting)
    inbox = Inbox()
    async with small_bus(tmp_path, {"large": large(), "endless": "admit if true"}) as bus:
        await office(bus, inbox)
        assert (await bus.outcome(receipt.message_id, timeout=10)).state == "delivered"
    assert [message.id for message in inbox.got] == [receipt.message_id]


async def test_a_retry_keeps_the_approval_and_a_replay_wants_a_new_one(tmp_path: Path) -> None:
    """It is for this message until that has ended: the attempts after a failure need no second yes."""
    inbox = Inbox(OSError("first"), OSError("second"))
    async with small_bus(tmp_path, {"large": large()}) as bus:
        retry = Retry.exponential(attempts=2, base_seconds=0.001, cap_seconds=0.001)
        desk, anna, bert = await office(bus, inbox, retry=retry)
        receipt = await held(desk)
        await anna.approve(receipt.message_id)
        assert (await receipt.outcome(timeout=10)).state == "dead_lettered"
        assert len(inbox.got) == 2
        assert (await bus.replay(receipt.message_id)).state == "held"
        assert (await bert.approve(receipt.message_id)).state == "accepted"
        await until(lambda: len(inbox.got) == 3)
    whys = [record["why"] for record in log(tmp_path / "home", "decision", message_id=receipt.message_id)]
    assert whys == ["send", "release", "retry", "replay", "release"]


async def test_many_approvals_at_once_release_it_once(tmp_path: Path) -> None:
    """Whatever the interleaving: one release, one handler run."""
    inbox = Inbox()
    async with small_bus(tmp_path, {"large": large(2)}) as bus:
        desk, anna, bert = await office(bus, inbox)
        more = [await bus.register(f"boss{number}", tenant="acme", roles=["boss"]) for number in range(6)]
        receipt = await held(desk)
        agents = [anna, bert, *more]
        done = await asyncio.gather(*(agent.approve(receipt.message_id) for agent in agents), return_exceptions=True)
        assert any(getattr(one, "state", None) == "accepted" for one in done)
        assert (await receipt.outcome(timeout=10)).state == "delivered"
    assert len(inbox.got) == 1
    assert len(log(tmp_path / "home", "decision", why="release")) == 1


async def test_two_rules_each_want_their_own(tmp_path: Path) -> None:
    """An agent with both roles gives both; one with a single role leaves the other rule waiting."""
    rules = {"large": large(), "legal": large(roles='"lawyer"')}
    async with small_bus(tmp_path, rules) as bus:
        desk, anna, _ = await office(bus, Inbox())
        both = await bus.register("both", tenant="acme", roles=["boss", "lawyer"])
        first, second = await held(desk, "one"), await held(desk, "two")
        assert (await anna.approve(first.message_id)).missing == (("legal", 1),)
        assert (await both.approve(second.message_id)).state == "accepted"
        assert (await both.approve(first.message_id)).state == "accepted"


async def test_redacted_fields_reach_nobody(tmp_path: Path) -> None:
    """The handler, the reply and the stored reply lack them; the outcome record commits to what was delivered."""
    hide = """admit if true

obligations contains {"type": "redact", "path": "/card/number"} if input.message.type == "query"

obligations contains {"type": "redact", "path": "/tokens/1"} if input.message.type == "query"

obligations contains {"type": "redact", "path": "/secret"}"""
    payload = {"card": {"number": "4111", "holder": "a"}, "tokens": ["x", "hidden", "y"], "secret": "hush", "n": 1.5}
    got: list[dict[str, Any]] = []

    async def book(message: Any) -> dict[str, Any]:
        got.append(message.payload)
        return {"answer": 1, "secret": "whisper"}

    async with small_bus(tmp_path, {"hide": hide}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", book, tenant="acme")
        reply = await desk.request("booker", payload, timeout=10, id="q")
        assert reply.payload == {"answer": 1}
        await bus.wait_idle(10)
    assert got == [{"card": {"holder": "a"}, "tokens": ["x", "y"], "n": 1.5}]
    async with small_bus(tmp_path) as bus:
        stored = (await bus.outcome("desk/q")).reply
        assert stored is not None
        assert stored.payload == {"answer": 1}
    [outcome] = log(tmp_path / "home", "outcome", message_id="desk/q")
    [decision] = log(tmp_path / "home", "decision", message_id="desk/q")
    database = sqlite3.connect(tmp_path / "home" / "bus.db")
    [salt] = database.execute("SELECT salt FROM payloads WHERE seq = ?", (decision["seq"],)).fetchone()
    database.close()
    delivered = b'{"card":{"holder":"a"},"n":1.5,"tokens":["x","y"]}'
    assert outcome["payload"] == hashlib.sha256(salt + delivered).hexdigest() != decision["payload"]


async def test_only_a_delivered_attempt_commits_to_what_was_delivered(tmp_path: Path) -> None:
    """The attempt that failed had a redacted payload; that the message was discarded later delivered nothing."""
    hide = 'admit if true\n\nobligations contains {"type": "redact", "path": "/secret"}'
    async with small_bus(tmp_path, {"hide": hide}) as bus:
        desk = await bus.register("desk", tenant="acme")
        retry = Retry.exponential(attempts=2, base_seconds=600, cap_seconds=600)
        inbox = Inbox(OSError("busy"), OSError("busy"))
        await bus.register("booker", inbox, tenant="acme", retry=retry)
        receipt = await desk.send("booker", {"secret": "hush"}, id="q")
        await until(lambda: [one.state for one in bus.queue()] == ["retrying"])
        await bus.discard("desk/q", reason="no longer wanted")
        assert (await receipt.outcome(timeout=10)).state == "discarded"
    failed, discarded = log(tmp_path / "home", "outcome", message_id="desk/q")
    assert "payload" in failed
    assert "payload" not in discarded


async def test_a_redaction_that_is_no_pointer_is_no_allow(tmp_path: Path) -> None:
    """An obligation that cannot be kept refuses."""
    rule = 'admit if true\n\nobligations contains {"type": "redact", "path": input.message.payload.path}'
    async with small_bus(tmp_path, {"hide": rule}) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        codes = [(await desk.send("booker", {"path": path})).code for path in ("card", "/a~2", 7, "/path")]
        assert codes == ["policy_malformed", "policy_malformed", "policy_malformed", None]
        await until(lambda: inbox.got)
        assert inbox.got[0].payload == {}


async def test_approvals_work_in_memory(tmp_path: Path) -> None:
    """The ledger in memory keeps the same."""
    policies = write_constitution(tmp_path / "policies", {"large": large(2)})
    async with open_bus(":memory:", constitution=policies, policy=dict(PATIENT)) as bus:
        desk, anna, bert = await office(bus, Inbox())
        receipt = await held(desk)
        await anna.approve(receipt.message_id)
        assert (await bert.approve(receipt.message_id)).state == "accepted"
        assert (await receipt.outcome(timeout=10)).state == "delivered"
