"""The promise, point by point, as somebody tries it who believes none of it."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Agent, AgentBus, ConstitutionRejected, Message, Receipt, Retry, open_bus
from tests.developer import PATIENT, Doorman, Inbox, adds_up, log, small_bus, until
from tests.support import write_constitution


async def pair(bus: AgentBus, handler: Any) -> Agent:
    """A sender, and booker with this handler."""
    await bus.register("booker", handler, tenant="acme", retry=Retry.exponential(1))
    return await bus.register("desk", tenant="acme")


# --- P1: decided before delivered -------------------------------------------------------------------------------------


async def test_restart_decides_anew(tmp_path: Path) -> None:
    """What was accepted and has not started is decided again after a restart, under the constitution active then."""
    async with small_bus(tmp_path, delivery={"drain_seconds": 0.01}) as bus:
        doorman = Doorman()
        desk = await pair(bus, doorman)
        receipts = [await desk.send("booker", {"n": n}, id=f"order-{n}") for n in range(4)]
        await until(lambda: doorman.got)
    inbox = Inbox()
    rules = {"even": "admit if input.message.payload.n % 2 == 0"}
    async with open_bus(
        tmp_path / "home", constitution=write_constitution(tmp_path / "new", rules), policy=PATIENT
    ) as bus:
        await bus.register("booker", inbox, tenant="acme")
        outcomes = [await bus.outcome(receipt.message_id, timeout=5) for receipt in receipts]
        assert [outcome.state for outcome in outcomes] == ["delivered", "refused"] * 2
        assert {message.constitution for message in inbox.got} == {bus.status().constitution}
    assert sorted(message.payload["n"] for message in inbox.got) == [0, 2]
    for receipt in receipts:
        first, second = log(tmp_path / "home", "decision", message_id=receipt.message_id)
        assert (first["why"], second["why"], second["previous"]) == ("send", "restart", first["decision_id"])


async def test_every_handler_run_has_an_allow_of_its_own(tmp_path: Path) -> None:
    """Sent, retried, replayed, restarted: as many allow records as handler runs, each before its run's outcome."""
    runs: list[str] = []
    async with small_bus(tmp_path) as bus:

        async def fail(message: Message) -> None:
            runs.append(message.id)
            raise ValueError

        await bus.register("booker", fail, tenant="acme", retry=Retry.exponential(3, 0, 0))
        desk = await bus.register("desk", tenant="acme")
        receipt = await desk.send("booker")
        await receipt.outcome(timeout=5)
        await (await bus.replay(receipt.message_id)).outcome(timeout=5)
    records = log(tmp_path / "home", message_id=receipt.message_id)
    assert len(runs) == 6
    assert [record["kind"] for record in records] == ["decision", "outcome"] * 6
    assert all(a["decision_id"] == b["decision_id"] for a, b in zip(records[::2], records[1::2], strict=True))


# --- P2: recorded before delivered ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_handler_finds_its_own_decision_in_the_log(tmp_path: Path, kind: str) -> None:
    """When a handler starts, anybody who reads the file finds the allow that it runs on, with the digest it got."""
    found: list[list[dict[str, Any]]] = []

    def read(message: Message) -> None:
        found.append(log(tmp_path / "home", "decision", message_id=message.id, digest=message.digest))
        if message.attempt < 3:
            raise ValueError

    async def read_on_loop(message: Message) -> None:
        read(message)

    async with small_bus(tmp_path) as bus:
        handler = read if kind == "def" else read_on_loop
        await bus.register("booker", handler, tenant="acme", retry=Retry.exponential(3, 0, 0))
        desk = await bus.register("desk", tenant="acme")
        receipts = await asyncio.gather(*(desk.send("booker", {"n": n}) for n in range(10)))
        for receipt in receipts:
            assert (await receipt.outcome(timeout=10)).attempts == 3
    assert len(found) == 30
    for records in found:
        assert records
        assert records[-1]["verdict"] == "allow"
    assert sorted(len(records) for records in found) == [1] * 10 + [2] * 10 + [3] * 10


async def test_receipt_is_durable_when_it_is_returned(tmp_path: Path) -> None:
    """When `send` returns, the decision is in the file: an allow, a hold and a refusal."""
    rules = {
        "some": """
admit if input.message.payload.n != 1
hold contains {"approvers": 1, "roles": ["chief"]} if input.message.payload.n == 2
"""
    }
    async with small_bus(tmp_path, rules) as bus:
        desk = await pair(bus, Inbox())
        for n, verdict in ((0, "allow"), (1, "refuse"), (2, "hold")):
            receipt = await desk.send("booker", {"n": n})
            (record,) = log(tmp_path / "home", "decision", message_id=receipt.message_id)
            assert (record["seq"], record["verdict"]) == (receipt.audit_seq, verdict)


async def test_log_cannot_be_changed_from_a_reader(tmp_path: Path) -> None:
    """Reading the log while the bus writes it is safe: a reader sees whole records, in order, without a gap."""
    async with small_bus(tmp_path) as bus:
        desk = await pair(bus, Inbox())
        sending = asyncio.gather(*(desk.send("booker", {"n": n}) for n in range(300)))
        seen = 0
        while not sending.done():
            records = log(tmp_path / "home")
            assert [record["seq"] for record in records] == list(range(len(records)))
            assert len(records) >= seen
            seen = len(records)
            await asyncio.sleep(0)
        await sending


# --- P3: nothing turns into an allow ----------------------------------------------------------------------------------

# data.bus.decision in shapes that are no allow. Each is the whole of main.rego after its package.
ANSWERS: dict[str, tuple[str, set[str]]] = {
    "undefined": ("decision := 1 if input.message.id == input.message.type", {"policy_undefined"}),
    "null": ("decision := null", {"policy_malformed", "policy_undefined"}),
    "true": ("decision := true", {"policy_malformed"}),
    "the string true": ('decision := "true"', {"policy_malformed"}),
    "1": ("decision := 1", {"policy_malformed"}),
    "a list": ("decision := []", {"policy_malformed"}),
    "an empty object": ("decision := {}", {"policy_malformed"}),
    "allow as a string": ('decision := {"allow": "true"}', {"policy_malformed"}),
    "allow as a number": ('decision := {"allow": 1}', {"policy_malformed"}),
    "allow as null": ('decision := {"allow": null}', {"policy_malformed"}),
    "an unknown key": ('decision := {"allow": true, "also": 1}', {"policy_malformed"}),
    "another spelling": ('decision := {"Allow": true}', {"policy_malformed"}),
    "false": ('decision := {"allow": false}', {"policy_denied"}),
    "reasons that are none": ('decision := {"allow": true, "reasons": "none"}', {"policy_malformed"}),
    "a hold for nobody": ('decision := {"allow": true, "hold": [{"rule": "r", "approvers": 0}]}', {"policy_malformed"}),
    "an unknown obligation": (
        'decision := {"allow": true, "obligations": [{"type": "encrypt"}]}', {"obligation_unknown"}
    ),
    "an obligation for another": (
        'decision := {"allow": true, "obligations": [{"type": "deliver_only_to", "agent": "desk"}]}', {"policy_denied"}
    ),
    "a built-in that fails": (
        'decision := {"allow": true} if {\n\tnot net.cidr_contains("10.0.0.0/8", input.message.payload.ip)\n}',
        {"policy_error"},
    ),
    "a division by zero": ('decision := {"allow": 1 / input.message.payload.zero == 1}', {"policy_error"}),
    "conflicting values": (
        'decision := {"allow": true} if input.message.id\n\ndecision := {"allow": false} if input.message.type',
        {"policy_error"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_only_json_true_in_the_declared_shape_allows(tmp_path: Path, name: str) -> None:
    """Whatever else a constitution answers is refused with its code, recorded, and the handler does not run."""
    main, codes = ANSWERS[name]
    files = {"bus/main.rego": f"package bus\n\n# METADATA\n# entrypoint: true\n{main}\n"}
    write_constitution(tmp_path / "policies", files=files)
    async with small_bus(tmp_path) as bus:
        inbox = Inbox()
        desk = await pair(bus, inbox)
        for _ in range(2):
            receipt = await desk.send("booker", {"ip": "10.0.0.300", "zero": 0})
            assert receipt.state == "refused"
            assert receipt.code in codes
        assert inbox.got == []
        assert [r["verdict"] for r in log(tmp_path / "home", "decision")] == ["refuse"] * 2


async def test_broken_deny_refuses(tmp_path: Path) -> None:
    """A built-in that fails in a rule refuses the message (policy_error) and the next, sound one is fine."""
    rules = {"numbers": "admit if to_number(input.message.payload.n) > 0"}
    async with small_bus(tmp_path, rules) as bus:
        desk = await pair(bus, Inbox())
        codes = [(await desk.send("booker", {"n": n})).code for n in ("7", "seven", "-7", "8")]
        assert codes == [None, "policy_error", "policy_denied", None]


async def test_bomb_is_stopped_at_the_deadline(tmp_path: Path) -> None:
    """A policy that loops too long refuses its message within the deadline and half a second; others are decided."""
    rules = {
        "bomb": """
admit if not input.message.payload.bomb

admit if {
	input.message.payload.bomb
	count([1 | some x in numbers.range(1, 4000); some y in numbers.range(1, 4000); x * y == 0]) == 0
}
"""
    }
    async with small_bus(tmp_path, rules, policy={"timeout_seconds": 0.3, "workers": 2}) as bus:
        inbox = Inbox()
        desk = await pair(bus, inbox)
        loop = asyncio.get_running_loop()
        assert (await desk.send("booker", {"warm": True})).ok
        started = loop.time()
        receipt = await desk.send("booker", {"bomb": True})
        assert receipt.code == "policy_timeout"
        assert loop.time() - started < 0.8
        assert (await desk.send("booker", {"after": True})).ok
        await until(lambda: len(inbox.got) == 2)


async def test_missing_field_ends_in_no(tmp_path: Path) -> None:
    """A rule over a field that is not there does not admit: absent is no."""
    rules = {"limit": "admit if input.message.payload.amount < 10"}
    async with small_bus(tmp_path, rules) as bus:
        desk = await pair(bus, Inbox())
        codes = [(await desk.send("booker", payload)).code for payload in ({"amount": 5}, {}, {"Amount": 5}, None)]
        assert codes == [None, "policy_denied", "policy_denied", "policy_denied"]


# --- P4: decided = delivered = recorded -------------------------------------------------------------------------------


async def test_same_digest_from_receipt_to_record_to_handler(tmp_path: Path) -> None:
    """One digest a message: in the receipt, in each of its decision records, at the handler on each attempt; and
    another for anything that differs.
    """
    async with small_bus(tmp_path) as bus:
        inbox = Inbox(ValueError(), None)
        await bus.register("booker", inbox, tenant="acme", retry=Retry.exponential(2, 0, 0))
        await bus.register("other", Inbox(), tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        receipt = await desk.send("booker", {"n": 1})
        await receipt.outcome(timeout=5)
        assert [message.digest for message in inbox.got] == [receipt.digest] * 2
        records = log(tmp_path / "home", "decision", message_id=receipt.message_id)
        assert [record["digest"] for record in records] == [receipt.digest] * 2
        variants: list[Receipt] = [
            await desk.send("booker", {"n": 1}),
            await desk.send("booker", {"n": 1.0}),
            await desk.send("other", {"n": 1}),
            await desk.send("booker", {"n": 1}, type="event"),
            await desk.send("booker", {"n": 1}, headers={"a": "b"}),
        ]
        assert len({receipt.digest, *(variant.digest for variant in variants)}) == 6


async def test_payload_commitment_is_salted(tmp_path: Path) -> None:
    """Two equal payloads have different commitments, so that a record betrays no payload that could be guessed."""
    async with small_bus(tmp_path) as bus:
        desk = await pair(bus, Inbox())
        receipts = [await desk.send("booker", {"vote": "yes"}) for _ in range(2)]
    one, two = (log(tmp_path / "home", "decision", message_id=receipt.message_id)[0] for receipt in receipts)
    assert len(one["payload"]) == 64
    assert one["payload"] != two["payload"]


async def test_payloads_may_be_kept_only_as_long_as_needed(tmp_path: Path) -> None:
    """With store_payloads = false nothing of a payload is in the home once its message has ended."""
    secret = b"s3cret-account-4711"
    async with small_bus(tmp_path, audit={"store_payloads": False}) as bus:
        inbox = Inbox(ValueError())
        desk = await pair(bus, inbox)
        failed = await desk.send("booker", {"account": secret.decode()})
        assert (await failed.outcome(timeout=5)).state == "dead_lettered"
        assert (await (await bus.replay(failed.message_id)).outcome(timeout=5)).state == "delivered"
        assert inbox.got[1].payload == {"account": secret.decode()}
        await (await desk.send("booker", {"account": secret.decode()})).outcome(timeout=5)
    database = sqlite3.connect(f"file:{tmp_path / 'home' / 'bus.db'}?mode=ro", uri=True)
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = [repr(row) for table in tables for row in database.execute(f"SELECT * FROM {table}")]  # noqa: S608 - ours
    database.close()
    assert not any(secret.decode() in row for row in rows)


# --- P6 and P7: ids, bounds -------------------------------------------------------------------------------------------


async def test_flood_stops_at_the_sender(tmp_path: Path) -> None:
    """A producer faster than the consumer waits or is refused, as set; what is queued is bounded, others go on."""
    async with small_bus(tmp_path, limits={"mailbox": 20}) as bus:
        doorman, other = Doorman(), Inbox()
        await bus.register("slow", doorman, tenant="acme", when_full="refuse")
        await bus.register("other", other, tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        receipts = await asyncio.gather(*(desk.send("slow", {"n": n}) for n in range(200)))
        codes = [receipt.code for receipt in receipts]
        assert (codes.count(None), codes.count("queue_full")) == (20, 180)
        assert len(bus.queue()) == 20
        assert (await (await desk.send("other")).outcome(timeout=5)).state == "delivered"
        doorman.open.set()
        await until(lambda: bus.status().accounting["delivered"] == 21)
        assert adds_up(bus.status().accounting)


async def test_waiting_senders_all_come_through(tmp_path: Path) -> None:
    """With when_full="wait" 200 sends into a mailbox of 5 are all delivered, each once, without a deadlock."""
    async with small_bus(tmp_path, limits={"mailbox": 5}) as bus:
        inbox = Inbox()
        desk = await pair(bus, inbox)
        receipts = await asyncio.gather(*(desk.send("booker", {"n": n}) for n in range(200)))
        assert all(receipt.ok for receipt in receipts)
        await until(lambda: len(inbox.got) == 200)
        assert sorted(message.payload["n"] for message in inbox.got) == list(range(200))


async def test_few_in_flight_are_enough(tmp_path: Path) -> None:
    """`limits.inflight` bounds how many are being decided at once; more wait their turn and none is lost."""
    async with small_bus(tmp_path, limits={"inflight": 2}) as bus:
        desk = await pair(bus, Inbox())
        receipts = await asyncio.gather(*(desk.send("booker", {"n": n}) for n in range(50)))
        assert all(receipt.ok for receipt in receipts)


async def test_cancelled_send_is_accepted_or_not_at_all(tmp_path: Path) -> None:
    """A sender that is cancelled at any moment has sent or has not: the accounting and the handler agree."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox()
        desk = await pair(bus, inbox)
        tasks: list[asyncio.Task[Receipt]] = []
        for n in range(120):
            task = asyncio.create_task(desk.send("booker", {"n": n}, id=f"order-{n}"))
            for _ in range(n % 12):
                await asyncio.sleep(0)
            task.cancel()
            tasks.append(task)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(one, asyncio.CancelledError) for one in done)
        await bus.wait_idle(timeout=10)
        counts = bus.status().accounting
        assert adds_up(counts)
        assert counts["accepted"] == counts["delivered"] == len(inbox.got)
        assert {message.id for message in inbox.got} >= {one.message_id for one in done if isinstance(one, Receipt)}
        again = await asyncio.gather(*(desk.send("booker", {"n": n}, id=f"order-{n}") for n in range(120)))
        assert all(receipt.ok for receipt in again)
        await bus.wait_idle(timeout=10)
        assert len(inbox.got) == 120, "each id ran once"


async def test_no_rules_are_no_constitution(tmp_path: Path) -> None:
    """An empty list of rules is rejected, never an allow for everything."""
    with pytest.raises(ConstitutionRejected) as caught:
        async with small_bus(tmp_path, {}):
            pass
    assert caught.value.reason == "invalid"
