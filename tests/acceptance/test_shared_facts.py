"""Facts that scopes share across nodes: a budget is one budget, whichever node decides."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, AuditUnavailable, Fact, Receipt, Retry, faultpoints
from enhanced_agent_bus.admission.facts import Planned
from enhanced_agent_bus.admission.shared import BUCKET, SharedFacts, added_by
from enhanced_agent_bus.faultpoints import FaultPoints
from enhanced_agent_bus.ports import Letter
from enhanced_agent_bus.transports.memory import open_memory
from enhanced_agent_bus.verdict import Remember
from tests.acceptance.test_nodes import Quiet, nodes, seen
from tests.developer import Inbox, log, small_bus, until
from tests.nats_server import NatsServer

BUDGET = """
admit if object.get(input.facts.tenant, "spent", 0) + input.message.payload.amount <= 100

remember contains {"scope": "tenant", "key": "spent", "add": input.message.payload.amount} if admit
"""
LABELS = """
admit := true

remember contains {"scope": "tenant", "key": "seen", "value": input.message.payload.label}
"""
ONE_STAYS = """
admit if not input.facts.recipient.off

remember contains {"scope": "sender", "key": "off", "value": 1} if admit
"""
SENDER_HELD = """
admit := true

hold contains {"approvers": 1, "roles": ["chief"], "expires_in": 60}

remember contains {"scope": "tenant", "key": "spent", "add": 1}
"""


class Flaky:
    """A network that does what it is asked, and at times tells nobody."""

    def __init__(self, dice: random.Random, share: float) -> None:
        self.dice = dice
        self.share = share
        self.asked: list[str] = []

    def arrivals(self, letter: Letter) -> Sequence[float]:  # noqa: ARG002 - the port's words
        return (0.0,)

    def answer_lost(self, what: str) -> bool:
        self.asked.append(what)
        return self.dice.random() < self.share


@pytest.fixture
def network(tmp_path: Path) -> dict[str, Any]:
    """A network of this process."""
    return {"url": f"memory://{hashlib.sha256(tmp_path.name.encode()).hexdigest()[:16]}"}


@pytest.fixture
def dice(capsys: pytest.CaptureFixture[str]) -> random.Random:
    """Whose seed is printed where a test fails."""
    seed = random.randrange(2**32)
    with capsys.disabled():
        sys.stdout.write(f"[seed {seed}] ")
    return random.Random(seed)


async def spent(bus: AgentBus, key: str = "spent") -> Any:
    """The tenant's budget as all nodes have it."""
    found = [fact.value for fact in await bus.shared_facts("tenant", "acme") if fact.key == key]
    return found[0] if found else 0


async def until_spent(bus: AgentBus, value: int) -> None:
    """Waits until that much is used."""
    async with asyncio.timeout(10):
        while await spent(bus) != value:  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


async def _spend(tmp_path: Path, where: dict[str, Any], names: Sequence[str], dice: random.Random, many: int) -> None:
    async with nodes(tmp_path, where, *names, rules={"budget": BUDGET}) as buses:
        there = Inbox()
        await buses[-1].register("booker", there, tenant="acme")
        senders = [await bus.register(f"desk-{n}", tenant="acme") for n, bus in enumerate(buses)]
        for bus in buses:
            await seen(bus, "booker")
        amounts = [dice.choice((1, 2, 3)) for _ in range(many)] + [1] * 100
        receipts = await asyncio.gather(*(dice.choice(senders).send("booker", {"amount": n}) for n in amounts))
        assert {receipt.code for receipt in receipts} <= {None, "policy_denied"}
        assert sum(n for n, receipt in zip(amounts, receipts, strict=True) if receipt.ok) == 100
        for receipt in receipts:
            if receipt.ok:
                assert (await receipt.outcome(timeout=30)).state == "delivered"
        assert len(there.got) == sum(receipt.ok for receipt in receipts)
        assert [await spent(bus) for bus in buses] == [100] * len(buses)
        assert not any([(await sender.send("booker", {"amount": 1})).ok for sender in senders])


@pytest.mark.parametrize("names", ["ab", "abc"])
async def test_nodes_never_pass_a_budget_by_one(
    tmp_path: Path, network: dict[str, Any], dice: random.Random, names: str
) -> None:
    """Hundreds of messages from all nodes at once: the budget is used to the last unit, and not passed by one."""
    await _spend(tmp_path, network, names, dice, 100)


async def test_a_budget_on_a_real_server(tmp_path: Path, nats_server: NatsServer, dice: random.Random) -> None:
    """The same over NATS."""
    where = {"url": nats_server.url, "monitor": nats_server.monitor_url, "name": "budget"}
    await _spend(tmp_path, where, "ab", dice, 20)


async def test_labels_of_all_nodes_are_in_one_set(tmp_path: Path, network: dict[str, Any]) -> None:
    """No label that one node wrote is lost by what another writes at the same time; each counts once."""
    async with nodes(tmp_path, network, "a", "b", rules={"labels": LABELS}) as (a, b):
        await b.register("booker", Inbox(), tenant="acme")
        left, right = await a.register("left", tenant="acme"), await b.register("right", tenant="acme")
        await seen(a, "booker")
        sends = [agent.send("booker", {"label": f"{agent.id}-{n}"}) for n in range(15) for agent in (left, right)]
        receipts = await asyncio.gather(*sends)
        assert all(receipt.ok for receipt in receipts)
        for receipt in receipts:
            await receipt.outcome(timeout=30)
        labels = sorted(f"{side}-{n}" for n in range(15) for side in ("left", "right"))
        assert await spent(a, "seen") == await spent(b, "seen") == labels


async def test_two_that_read_what_the_other_writes(tmp_path: Path, network: dict[str, Any]) -> None:
    """Each may go off as long as the other is on: of two that ask at once, on two nodes, one may (write skew)."""
    async with nodes(tmp_path, network, "a", "b", rules={"one": ONE_STAYS}) as (a, b):
        pairs = []
        for n in range(10):
            left = await a.register(f"left-{n}", Inbox(), tenant="acme")
            pairs.append((left, await b.register(f"right-{n}", Inbox(), tenant="acme")))
        await seen(a, "right-9")
        await seen(b, "left-9")
        sends = [one.send(other.id) for left, right in pairs for one, other in ((left, right), (right, left))]
        receipts = await asyncio.gather(*sends)
        assert [x.ok + y.ok for x, y in zip(receipts[::2], receipts[1::2], strict=True)] == [1] * 10


async def test_a_message_counts_once_and_is_taken_back_as_on_one_node(tmp_path: Path, network: dict[str, Any]) -> None:
    """Retried, dead and replayed it counts once; rejected, or refused where it arrives, not at all."""
    rules = {"budget": BUDGET}
    async with nodes(tmp_path, network, "a", "b", rules=rules) as (a, b):
        inbox = Inbox(ValueError("no"), ValueError("no"), ValueError("no"), None)
        await b.register("booker", inbox, tenant="acme", retry=Retry.immediate(2))
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        receipt = await desk.send("booker", {"amount": 60}, id="x")
        assert (await receipt.outcome(timeout=10)).state == "dead_lettered"
        assert await spent(a) == await spent(b) == 60
        assert (await a.replay("desk/x")).ok
        await until(lambda: len(inbox.got) == 4)
        assert (await a.outcome("desk/x", timeout=10)).state == "delivered"
        assert await spent(a) == await spent(b) == 60
        assert not (await desk.send("booker", {"amount": 41})).ok


async def test_what_is_refused_where_it_arrives_is_taken_back(tmp_path: Path, network: dict[str, Any]) -> None:
    """Its sender's node had it counted; no handler has seen it."""
    async with (
        nodes(tmp_path, network, "a", rules={"budget": BUDGET}) as (a,),
        nodes(tmp_path, network, "b", gates=[Quiet()]) as (b,),
    ):
        await b.register("booker", Inbox(), tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await seen(a, "booker")
        receipt = await desk.send("booker", {"amount": 100, "loud": True})
        assert receipt.ok
        assert (await receipt.outcome(timeout=10)).code == "gate_refused"
        await until_spent(a, 0)
        assert (await desk.send("booker", {"amount": 100, "loud": False})).ok


async def test_what_is_held_counts_when_it_is_released(tmp_path: Path, network: dict[str, Any]) -> None:
    """Not before, and never when it is rejected."""
    async with nodes(tmp_path, network, "a", rules={"held": SENDER_HELD}) as (a,):
        await a.register("booker", Inbox(), tenant="acme")
        chief = await a.register("chief", tenant="acme", roles=["chief"])
        desk = await a.register("desk", tenant="acme")
        for n in range(2):
            assert (await desk.send("booker", id=f"x{n}")).state == "held"
        assert await spent(a) == 0
        await chief.approve("desk/x0")
        assert (await a.outcome("desk/x0", timeout=10)).state == "delivered"
        await chief.reject("desk/x1", reason="no")
        assert await spent(a) == 1


async def test_what_the_log_could_not_record_is_taken_back(
    tmp_path: Path, network: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was told that nothing was accepted: then nothing is counted."""
    async with nodes(tmp_path, network, "a", "b", rules={"budget": BUDGET}) as (a, b):
        await a.register("booker", Inbox(), tenant="acme")
        desk = await a.register("desk", tenant="acme")
        points = FaultPoints()
        points.arm("audit.before_commit:1:raise")
        monkeypatch.setattr(faultpoints, "hit", points.hit)
        with pytest.raises(AuditUnavailable):
            await desk.send("booker", {"amount": 100}, id="x")
        await until_spent(b, 0)
        assert (await desk.send("booker", {"amount": 100}, id="x")).ok
        assert await spent(b) == 100


async def test_what_a_dead_node_left_counts_until_its_home_opens(tmp_path: Path, network: dict[str, Any]) -> None:
    """Between the shared change and its own log a node died: the budget is used until it is back, and then is not."""
    async with nodes(tmp_path, network, "b", rules={"budget": BUDGET}) as (b,):
        async with nodes(tmp_path, network, "a"):
            name = str(log(tmp_path / "a")[0]["node"])
        await _leave(network, name, "desk/lost", 100)
        await b.register("booker", Inbox(), tenant="acme")
        desk = await b.register("other", tenant="acme")
        assert (await desk.send("booker", {"amount": 1})).code == "policy_denied"
        async with nodes(tmp_path, network, "a"):
            assert await spent(b) == 0
            assert (await desk.send("booker", {"amount": 100})).ok


async def _leave(network: dict[str, Any], node: str, message_id: str, amount: int) -> None:
    """Changes shared facts as a node does, and goes no further."""
    transport = open_memory(network["url"])
    bucket = await transport.bucket(BUCKET)
    facts = SharedFacts(bucket, lambda *_: {}, node=node, session="gone", bytes_max=10**6)
    await facts.look([("tenant", "acme"), ("message", message_id)])
    remember = [Remember("tenant", "spent", add=amount)]
    planned = facts.book.plan(message_id, (), remember, {"tenant": ("tenant", "acme")})
    assert isinstance(planned, Planned)
    assert await facts.change(planned, added_by(message_id, node, "d", planned.added))
    await transport.close()


KILLED = """
import asyncio, sys
from enhanced_agent_bus import open_bus
from enhanced_agent_bus.faultpoints import points

async def main(home, url):
    async with open_bus(home, transport={"url": url, "name": "killed"}, policy={"timeout_seconds": 5}) as bus:
        desk = await bus.agent("desk")
        points.arm("audit.before_commit:1:kill")
        await desk.send("booker", {"amount": 100}, id="x")

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_node_is_killed_between_the_shared_change_and_its_log(tmp_path: Path, nats_server: NatsServer) -> None:
    """What it had taken of the budget is there again once its home is open, and its message was never accepted."""
    where = {"url": nats_server.url, "name": "killed"}
    async with nodes(tmp_path, where, "b", rules={"budget": BUDGET}) as (b,):
        async with nodes(tmp_path, where, "a") as (a,):
            await a.register("desk", tenant="acme")
            await a.register("booker", tenant="acme")
        command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), nats_server.url]
        killed = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60)
        assert killed.returncode == -9, killed.stderr
        assert await spent(b) == 100
        async with nodes(tmp_path, where, "a") as (a,):
            assert await spent(b) == 0
            assert a.status().accounting["accepted"] == 0


async def test_where_the_shared_state_is_away_nothing_is_decided(tmp_path: Path, network: dict[str, Any]) -> None:
    """Refused at once, long before the lease is over; and decided again soon after it is back."""
    async with AsyncExitStack() as stack:
        [a] = await stack.enter_async_context(nodes(tmp_path, network, "a", rules={"budget": BUDGET}))
        looker = open_memory(network["url"])
        [mine] = [one for one in looker.network.transports if one is not looker]
        await a.register("booker", Inbox(), tenant="acme")
        desk = await a.register("desk", tenant="acme")
        assert (await desk.send("booker", {"amount": 1})).ok
        looker.network.cut(mine)
        receipt = await desk.send("booker", {"amount": 1})
        assert (receipt.state, receipt.code) == ("refused", "policy_unavailable")
        looker.network.mend(mine)
        async with asyncio.timeout(10):  # it reads first which constitution is active
            while not (await desk.send("booker", {"amount": 1})).ok:
                pass
        assert await spent(a) == 2
        await looker.close()


async def test_answers_that_are_lost(tmp_path: Path, network: dict[str, Any], dice: random.Random) -> None:
    """What was done though nobody was told: no allow is beyond the budget, and what was not allowed is taken back."""
    looker = open_memory(network["url"])
    async with nodes(tmp_path, network, "a", "b", rules={"budget": BUDGET}) as (a, b):
        await b.register("booker", Inbox(), tenant="acme")
        senders = await a.register("left", tenant="acme"), await b.register("right", tenant="acme")
        await seen(a, "booker")
        looker.network.disturbance = flaky = Flaky(dice, 0.1)
        receipts: list[Receipt] = []
        for _ in range(20):
            receipts += await asyncio.gather(*(sender.send("booker", {"amount": 3}) for sender in senders))
        flaky.share = 0.0
        states = [(await receipt.outcome(timeout=30)).state for receipt in receipts if receipt.ok]
        assert {receipt.code for receipt in receipts} <= {None, "policy_denied", "policy_unavailable"}
        assert sum(receipt.ok for receipt in receipts) <= 33
        await until_spent(a, 3 * states.count("delivered"))
    await looker.close()


async def test_who_reads_no_facts_asks_nobody(tmp_path: Path, network: dict[str, Any], dice: random.Random) -> None:
    """A decision whose constitution neither reads facts nor remembers costs no round trip."""
    looker = open_memory(network["url"])
    async with nodes(tmp_path, network, "a") as (a,):
        await a.register("booker", Inbox(), tenant="acme")
        desk = await a.register("desk", tenant="acme")
        looker.network.disturbance = flaky = Flaky(dice, 0.0)
        for n in range(20):
            await (await desk.send("booker", {"n": n})).outcome(timeout=10)
        assert "get" not in flaky.asked
    await looker.close()


async def test_what_operators_write_holds_on_all_nodes(tmp_path: Path, network: dict[str, Any]) -> None:
    """Put on one node, decided by on the other; removed there, gone here."""
    async with nodes(tmp_path, network, "a", "b", rules={"budget": BUDGET}) as (a, b):
        await b.register("booker", Inbox(), tenant="acme")
        desk = await b.register("desk", tenant="acme")
        await a.put_fact("tenant", "acme", "spent", 100)
        assert await b.shared_facts() == [Fact("tenant", "acme", "spent", 100)]
        assert (await desk.send("booker", {"amount": 1})).code == "policy_denied"
        await b.remove_fact("tenant", "acme", "spent")
        assert (await desk.send("booker", {"amount": 1})).ok
        with pytest.raises(KeyError):
            await a.remove_fact("tenant", "acme", "other")


async def test_what_a_home_knew_alone_is_shared_when_it_joins(tmp_path: Path, network: dict[str, Any]) -> None:
    """The budget that was used before there were other nodes is used."""
    async with small_bus(tmp_path, {"budget": BUDGET}, home="a") as alone:
        await alone.register("booker", Inbox(), tenant="acme")
        desk = await alone.register("desk", tenant="acme")
        assert (await desk.send("booker", {"amount": 99})).ok
    async with nodes(tmp_path, network, "a", "b") as (a, b):
        await a.register("booker", Inbox(), tenant="acme")
        first, second = await a.register("desk", tenant="acme"), await b.register("other", tenant="acme")
        await seen(b, "booker")
        assert (await first.send("booker", {"amount": 1})).ok
        assert (await second.send("booker", {"amount": 1})).code == "policy_denied"
