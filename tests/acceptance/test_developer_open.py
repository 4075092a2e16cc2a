"""Opening, registering and closing, as someone does who has read the documentation and no code."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import (
    AgentBus,
    AgentExists,
    BusClosed,
    BusError,
    ConfigInvalid,
    ConstitutionRejected,
    Message,
    Status,
    StoreCorrupt,
    StoreLocked,
    Strategy,
    open_bus,
)
from tests.developer import Doorman, Inbox, SteppedClock, adds_up, log, small_bus, until
from tests.support import constitution_digest, write_constitution


async def test_new_home_needs_a_constitution(tmp_path: Path) -> None:
    """A home is made where there is none, and only with a constitution; without one nothing is left behind."""
    with pytest.raises(ConfigInvalid) as caught:
        async with open_bus(tmp_path / "home"):
            pass
    assert "constitution" in str(caught.value)
    assert not (tmp_path / "home" / "home.json").exists()
    async with small_bus(tmp_path) as bus:
        assert isinstance(bus, AgentBus)
    assert {"home.json", "bus.db", "keys", "constitutions", "checkpoint"} <= {
        p.name for p in (tmp_path / "home").iterdir()
    }


async def test_folder_with_settings_alone_is_a_new_home(tmp_path: Path) -> None:
    """A folder that holds at most an eab.toml is a new home, and a path in that file is relative to it."""
    home = tmp_path / "home"
    write_constitution(home.parent / "policies")
    home.mkdir()
    (home / "eab.toml").write_text('[constitution]\npath = "../policies"\n[policy]\nworkers = 1\n')
    async with open_bus(home) as bus:
        assert bus.status().constitution == constitution_digest(tmp_path / "policies")


async def test_reopened_home_needs_no_constitution(tmp_path: Path) -> None:
    """A home restarts with the constitution that was active, also where the folder it came from is gone."""
    async with small_bus(tmp_path) as bus:
        before = bus.status()
    (tmp_path / "policies").rename(tmp_path / "elsewhere")
    async with open_bus(tmp_path / "home", policy={"workers": 1}) as bus:
        after = bus.status()
    assert (after.constitution, after.revision, after.bus, after.node) == (
        before.constitution, before.revision, before.bus, before.node
    )  # fmt: skip


async def test_changed_folder_counts_when_the_home_is_opened_again(tmp_path: Path) -> None:
    """The constitution that is given counts for a changed folder; the same one again is a recorded no-op or nothing."""
    async with small_bus(tmp_path):
        pass
    write_constitution(tmp_path / "policies", {"everything": "admit if input.sender.id == input.recipient.tenant"})
    async with small_bus(tmp_path) as bus:
        assert bus.status().constitution == constitution_digest(tmp_path / "policies")
    events = [record["event"] for record in log(tmp_path / "home", "policy")]
    assert events.count("activated") == 2


async def test_memory_keeps_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home ":memory:" works like a home, writes no file, forgets, and is named as a weakening."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        async with small_bus(tmp_path, home=":memory:") as bus:
            assert "memory_ledger" in bus.status().security_state
            desk = await bus.register("desk", tenant="acme")
            inbox = Inbox()
            await bus.register("booker", inbox, tenant="acme")
            receipt = await desk.send("booker", {"trip": 7}, id="order")
            assert (await receipt.outcome(timeout=5)).state == "delivered"
            assert bus.status().accounting["accepted"] == 1
    assert list(tmp_path.glob("*")) == [tmp_path / "policies"]


async def test_constitution_may_be_a_section(tmp_path: Path) -> None:
    """A dict for `constitution` is the section of that name, and other sections are keywords."""
    policies = write_constitution(tmp_path / "policies")
    async with open_bus(
        ":memory:", constitution={"path": str(policies)}, policy={"workers": 1}, limits={"payload_bytes": 20}
    ) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        assert (await desk.send("booker", {"a": "x" * 20})).code == "too_large"
        assert (await desk.send("booker", {"a": "x"})).ok


@pytest.mark.parametrize(
    ("settings", "near"),
    [
        ({"limits": {"payload_byte": 1}}, "limits.payload_bytes"),
        ({"polisy": {}}, "policy"),
        ({"delivery": {"drain_second": 1}}, "delivery.drain_seconds"),
    ],
)
async def test_unknown_setting_names_the_nearest(tmp_path: Path, settings: dict[str, Any], near: str) -> None:
    """An unknown setting is an error that names the nearest known one, before anything is made."""
    with pytest.raises(ConfigInvalid) as caught:
        async with open_bus(tmp_path / "home", constitution=write_constitution(tmp_path / "policies"), **settings):
            pass
    assert near in str(caught.value)
    assert not (tmp_path / "home").exists()


async def test_settings_come_from_file_then_environment_then_keywords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eab.toml, then the environment, then keywords: the later one wins, key by key."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "eab.toml").write_text("[limits]\npayload_bytes = 10\ndepth = 2\nhops = 1\n")
    monkeypatch.setenv("EAB_LIMITS__PAYLOAD_BYTES", "30")
    monkeypatch.setenv("EAB_LIMITS__DEPTH", "3")
    async with small_bus(tmp_path, limits={"depth": 4}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        assert (await desk.send("booker", {"note": "x" * 12})).ok, "30 bytes, from the environment"
        assert (await desk.send("booker", {"note": "x" * 31})).code == "too_large"
        assert (await desk.send("booker", {"a": {"b": {"c": {}}}})).ok, "4 deep, from the keyword"
        assert (await desk.send("booker", {"a": {"b": {"c": {"d": {}}}}})).code == "too_deep"


async def test_bad_first_constitution_is_rejected(tmp_path: Path) -> None:
    """A first constitution that does not pass raises ConstitutionRejected with a reason and where to look."""
    with pytest.raises(ConstitutionRejected) as caught:
        async with small_bus(tmp_path, {"broken": "admit if input.mesage.id == 1"}):
            pass
    assert caught.value.reason == "invalid"
    detail = caught.value.details[0]
    assert str(detail["file"]).endswith("broken.rego")
    assert detail["line"] == 5


async def test_missing_constitution_is_said_plainly(tmp_path: Path) -> None:
    """A constitution that is not there is an error of ours that names the path."""
    with pytest.raises(BusError) as caught:
        async with open_bus(tmp_path / "home", constitution=tmp_path / "nowhere"):
            pass
    assert "nowhere" in str(caught.value)


async def test_home_without_its_log_is_corrupt(tmp_path: Path) -> None:
    """A home whose bus.db is gone is StoreCorrupt, never a fresh start."""
    async with small_bus(tmp_path):
        pass
    for path in (tmp_path / "home").glob("bus.db*"):
        path.unlink()
    with pytest.raises(StoreCorrupt):
        async with small_bus(tmp_path):
            pass
    assert not (tmp_path / "home" / "bus.db").exists()


async def test_one_home_belongs_to_one_bus(tmp_path: Path) -> None:
    """A home that is open cannot be opened a second time."""
    async with small_bus(tmp_path) as bus:
        with pytest.raises(StoreLocked):
            async with small_bus(tmp_path):
                pass
        assert (await bus.register("desk", tenant="acme")).id == "desk"


async def test_strict_refuses_every_weakening(tmp_path: Path) -> None:
    """`strict` refuses to start with any weakening and names them all; without it they stand in status and log."""
    with pytest.raises(ConfigInvalid) as caught:
        async with small_bus(tmp_path, home="strict", strict=True):
            pass
    assert "constitution_folder" in str(caught.value)
    assert "no_witness: name one in audit.witnesses; or open the bus without strict" in caught.value.remedy
    clock = SteppedClock()
    clock.weakenings = ("of_our_own",)
    with pytest.raises(ConfigInvalid, match="of_our_own"):
        async with small_bus(tmp_path, home="strict", strict=True, clock=clock):
            pass
    async with small_bus(tmp_path) as bus:
        state = bus.status().security_state
        assert state == sorted(state)
        assert {"constitution_folder", "no_witness"} <= set(state)
        assert "memory_ledger" not in state
    assert log(tmp_path / "home", "opened")[-1]["security_state"] == state


async def test_strict_in_the_settings_file(tmp_path: Path) -> None:
    """`strict = true` stands at the top of eab.toml, and counts."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "eab.toml").write_text("strict = true\n")
    with pytest.raises(ConfigInvalid, match="constitution_folder"):
        async with small_bus(tmp_path):
            pass


async def test_status_is_a_value(tmp_path: Path) -> None:
    """Status has the sum over all messages, the weakenings and the constitution by its hash."""
    async with small_bus(tmp_path) as bus:
        status = bus.status()
        assert isinstance(status, Status)
        assert adds_up(status.accounting)
        assert status.accounting["accepted"] == 0
        assert status.constitution == constitution_digest(tmp_path / "policies")
        assert status.revision == 1


BAD_NAMES = [
    "", "Desk", "d\u0435sk", "\uff44esk", "desk\n", " desk", "../a", "a*", "a b", "-a", ".a", "a" * 129, "x" * 10_000,
    "a/b", "a:b", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("field", ["id", "tenant", "roles", "topics", "capabilities"])
async def test_names_outside_the_pattern_cannot_be_registered(tmp_path: Path, field: str) -> None:
    """Ids, tenants, roles, topics and capabilities match one ASCII pattern, else ValueError and nothing registered."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        for name in BAD_NAMES:
            fields: dict[str, Any] = {"id": "fine", "tenant": "acme"}
            fields[field] = name if field in ("id", "tenant") else [name]
            with pytest.raises(ValueError, match=r"\S"):
                await bus.register(fields.pop("id"), **fields)
        assert bus.agents() == []


@pytest.mark.parametrize("pinned", ["", "newest", "f" * 63, "F" * 64, "g" * 64, "f" * 65])
async def test_constitution_of_an_agent_is_a_digest_or_latest(tmp_path: Path, pinned: str) -> None:
    """What an agent agrees to is "latest" or 64 hex digits, else ValueError."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        with pytest.raises(ValueError, match="latest"):
            await bus.register("desk", tenant="acme", constitution=pinned)
        assert bus.agents() == []


async def test_longest_names_are_fine(tmp_path: Path) -> None:
    """128 characters of the pattern are a name."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        long = "a" + "0._-z" * 25 + "zz"
        assert len(long) == 128
        agent = await bus.register(long, tenant=long, roles=[long], topics=[long], capabilities=[long])
        assert (agent.id, agent.tenant) == (long, long)


async def test_agent_knows_its_constitution(tmp_path: Path) -> None:
    """An agent with "latest" agrees to what is active; one that pinned a digest to that."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        latest = await bus.register("latest", tenant="acme")
        pinned = await bus.register("pinned", tenant="acme", constitution="0" * 64)
        assert latest.constitution == bus.status().constitution
        assert pinned.constitution == "0" * 64


async def test_one_of_fifty_registrations_wins(tmp_path: Path) -> None:
    """Of 50 tasks that register one id at once a single one wins, the rest get AgentExists."""
    async with small_bus(tmp_path) as bus:
        tries = await asyncio.gather(*(bus.register("desk", tenant="acme") for _ in range(50)), return_exceptions=True)
        assert sum(isinstance(one, AgentExists) for one in tries) == 49
        assert len(bus.agents()) == 1
    assert len(log(tmp_path / "home", "agent", agent="desk")) == 1


async def test_id_stays_with_its_tenant_for_ever(tmp_path: Path) -> None:
    """A live id, or one of another tenant, raises AgentExists: after unregister and after a restart too."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        for tenant in ("acme", "globex"):
            with pytest.raises(AgentExists):
                await bus.register("desk", tenant=tenant)
        await desk.unregister()
        with pytest.raises(AgentExists):
            await bus.register("desk", tenant="globex")
        again = await bus.register("desk", tenant="acme")
        await again.unregister()
    async with small_bus(tmp_path) as bus:
        with pytest.raises(AgentExists):
            await bus.register("desk", tenant="globex")
        await bus.register("desk", tenant="acme", roles=["planner"])
    assert AgentExists("").code == "agent_exists"


async def test_registration_is_durable(tmp_path: Path) -> None:
    """After a restart an agent is known, can be sent to, and is taken up again under the same id and tenant."""
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", Inbox(), tenant="acme", capabilities=["flights"], topics=["trips"])
    async with small_bus(tmp_path) as bus:
        assert [agent.id for agent in bus.agents()] == ["booker"]
        desk = await bus.register("desk", tenant="acme")
        receipts = [
            await desk.send("booker"),
            await desk.send(capability="flights"),
            *await desk.publish("trips"),
        ]
        assert [receipt.recipient for receipt in receipts] == ["booker"] * 3
        assert bus.status().accounting["parked"] == 3
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        for receipt in receipts:
            assert (await receipt.outcome(timeout=5)).state == "delivered"
        assert len(inbox.got) == 3


async def test_unregistered_agent_cannot_send(tmp_path: Path) -> None:
    """A handle whose registration has ended is refused, also when the id was registered anew."""
    async with small_bus(tmp_path) as bus:
        old = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        await old.unregister()
        assert (await old.send("booker")).code == "sender_unregistered"
        new = await bus.register("desk", tenant="acme")
        assert (await new.send("booker")).ok
        assert (await old.send("booker")).code == "sender_unregistered"
        assert (await new.send("desk2")).code == "recipient_unknown"


async def test_unregister_makes_dead_letters_of_what_waits(tmp_path: Path) -> None:
    """What waits for an agent that unregisters ends as dead letters (handler_absent); what runs finishes."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        doorman = Doorman()
        booker = await bus.register("booker", doorman, tenant="acme")
        running = await desk.send("booker", {"n": 0})
        await until(lambda: doorman.got)
        waiting = [await desk.send("booker", {"n": n}) for n in (1, 2)]
        await booker.unregister()
        for receipt in waiting:
            outcome = await receipt.outcome(timeout=5)
            assert (outcome.state, outcome.code, outcome.attempts) == ("dead_lettered", "handler_absent", 0)
        doorman.open.set()
        assert (await running.outcome(timeout=5)).state == "delivered"
        assert len(doorman.got) == 1
        assert {letter.message_id for letter in bus.dead_letters()} == {receipt.message_id for receipt in waiting}
        assert (await desk.send("booker")).code == "recipient_unknown"
        assert adds_up(bus.status().accounting)


async def test_register_values_that_cannot_be(tmp_path: Path) -> None:
    """`when_full`, `concurrency` and `timeout` that make no sense raise ValueError."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        wrong: list[dict[str, Any]] = [{"when_full": "drop"}, {"concurrency": 0}, {"timeout": 0}, {"timeout": -1}]
        for options in wrong:
            with pytest.raises(ValueError, match=r"\S"):
                await bus.register("desk", tenant="acme", **options)
        assert bus.agents() == []


async def test_close_takes_no_more_messages(tmp_path: Path) -> None:
    """A closed bus raises BusClosed for whatever would change something, a second close reports as the first."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        receipt = await desk.send("booker")
        drained = await bus.close()
        assert (drained.delivered, drained.kept, drained.dead_lettered) in ((1, 0, 0), (0, 0, 0))
        assert await bus.close() == drained
        for attempt in (
            desk.send("booker"),
            desk.publish("news"),
            desk.request("booker", timeout=1),
            desk.unregister(),
            bus.register("other", tenant="acme"),
            bus.activate(tmp_path / "policies"),
            bus.replay("x"),
            bus.discard("x", reason="none"),
        ):
            with pytest.raises(BusClosed) as caught:
                await attempt
            assert caught.value.code == "bus_closed"
        assert (await receipt.outcome(timeout=1)).state == "delivered"


async def test_close_drains_what_waits(tmp_path: Path) -> None:
    """Closing waits for what is queued and running until `drain_seconds`, and reports it."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        doorman = Doorman()
        await bus.register("booker", doorman, tenant="acme")
        receipts = [await desk.send("booker", {"n": n}) for n in range(5)]
        await until(lambda: doorman.got)
        closing = asyncio.create_task(bus.close(timeout=10))
        await asyncio.sleep(0)
        doorman.open.set()
        drained = await closing
        assert (drained.delivered, drained.kept, drained.dead_lettered) == (5, 0, 0)
        assert [(await receipt.outcome()).state for receipt in receipts] == ["delivered"] * 5


async def test_close_keeps_what_it_cannot_drain(tmp_path: Path) -> None:
    """What has not ended by the deadline is kept in the home and delivered by the next process that opens it."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        doorman = Doorman()
        await bus.register("booker", doorman, tenant="acme")
        receipts = [await desk.send("booker", {"n": n}, id=f"order-{n}") for n in range(5)]
        await until(lambda: doorman.got)
        drained = await bus.close(timeout=0.05)
        assert (drained.delivered, drained.kept) == (0, 5)
    inbox = Inbox()
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting["accepted"] == 5
        assert adds_up(bus.status().accounting)
        await bus.register("booker", inbox, tenant="acme")
        for receipt in receipts:
            assert (await bus.outcome(receipt.message_id, timeout=5)).state == "delivered"
    assert sorted(message.payload["n"] for message in inbox.got) == [0, 1, 2, 3, 4]


async def test_close_from_a_handler_comes_back(tmp_path: Path) -> None:
    """A handler may close the bus: that does not wait for the handler itself, and loses nothing."""
    async with asyncio.timeout(4), small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        begun: list[Message] = []

        async def closer(message: Message) -> None:
            begun.append(message)
            await bus.close(timeout=60)

        await bus.register("booker", closer, tenant="acme")
        receipt = await desk.send("booker")
        await until(lambda: begun)
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting["accepted"] == 1
        assert adds_up(bus.status().accounting)
        await bus.register("booker", Inbox(), tenant="acme")
        assert (await bus.outcome(receipt.message_id, timeout=5)).state == "delivered"


async def test_exception_in_the_with_block_keeps_what_waits(tmp_path: Path) -> None:
    """An exception of the caller's passes through unchanged, and messages that wait are kept."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what happens before it is the point
        async with small_bus(tmp_path) as bus:
            desk = await bus.register("desk", tenant="acme")
            await bus.register("booker", tenant="acme")
            await desk.send("booker", id="order")
            raise ZeroDivisionError
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting["parked"] == 1


async def test_bundle_that_is_not_signed_is_a_weakening(tmp_path: Path) -> None:
    """An unsigned bundle opens a home and is named in security_state; an older one given later is logged and ignored,
    a newer one counts.
    """
    bundles = []
    for revision in ("1", "2", "3"):
        folder = write_constitution(tmp_path / f"policies-{revision}", revision=revision)
        bundles.append(tmp_path / f"bundle-{revision}.tar.gz")
        words = (sys.executable, "-m", "enhanced_agent_bus", "policy", "build", str(folder), "-o", str(bundles[-1]))
        built = await asyncio.create_subprocess_exec(*words)
        assert await built.wait() == 0
    for given, active in ((1, 2), (0, 2), (2, 3)):
        async with open_bus(tmp_path / "home", constitution=bundles[given], policy={"workers": 1}) as bus:
            assert bus.status().revision == active
            assert bus.status().constitution == constitution_digest(tmp_path / f"policies-{active}")
            assert "unsigned_constitution" in bus.status().security_state
            assert "constitution_folder" not in bus.status().security_state
    events = [(record["event"], record["revision"]) for record in log(tmp_path / "home", "policy")]
    assert events == [("activated", 2), ("ignored", 1), ("activated", 3)]


async def test_nobody_waits_for_ever_on_a_bus_that_closes(tmp_path: Path) -> None:
    """Senders that wait for room, requesters and who waits for an outcome are told BusClosed, and nothing is lost."""
    async with small_bus(tmp_path, limits={"mailbox": 1}) as bus:
        desk = await bus.register("desk", tenant="acme")
        doorman = Doorman()
        await bus.register("booker", doorman, tenant="acme")
        asking = asyncio.create_task(desk.request("booker", timeout=60, id="ask"))
        await until(lambda: doorman.got)
        waiting = [asyncio.create_task(desk.send("booker", id=f"order-{n}")) for n in range(3)]
        watching = asyncio.create_task(bus.outcome("desk/ask"))
        await asyncio.sleep(0)
        assert (await bus.close(timeout=0.05)).kept == 1
        ended = await asyncio.wait_for(asyncio.gather(asking, watching, *waiting, return_exceptions=True), timeout=5)
        assert [type(one) for one in ended] == [BusClosed] * 5
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting["accepted"] == 1


async def test_sender_that_waits_for_an_agent_that_goes(tmp_path: Path) -> None:
    """A sender that waits for room in the mailbox of an agent that unregisters is refused(recipient_unknown)."""
    async with small_bus(tmp_path, limits={"mailbox": 1}) as bus:
        desk = await bus.register("desk", tenant="acme")
        doorman = Doorman()
        booker = await bus.register("booker", doorman, tenant="acme")
        first = await desk.send("booker")
        await until(lambda: doorman.got)
        waiting = [asyncio.create_task(desk.send("booker")) for _ in range(3)]
        await asyncio.sleep(0)
        await booker.unregister()
        doorman.open.set()
        assert [(await task).code for task in waiting] == ["recipient_unknown"] * 3
        assert (await first.outcome(timeout=5)).state == "delivered"
        assert bus.status().accounting["accepted"] == 1


async def takes_nothing() -> None:
    """A handler as somebody writes it who does not need the message."""


TAKES_NOTHING: Any = takes_nothing


def takes_two(message: Message, context: object) -> None:
    """A handler as another library calls it."""


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (lambda: TAKES_NOTHING, "too many positional arguments"),
        (lambda: takes_two, "missing a required argument: 'context'"),
        (lambda: Strategy.all(TAKES_NOTHING), "too many positional arguments"),
        (lambda: Strategy.by_key(TAKES_NOTHING), "too many positional arguments"),
    ],
)
async def test_a_handler_that_takes_no_message_is_not_registered(
    tmp_path: Path, handler: Callable[[], Any], says: str
) -> None:
    """Every delivery to it would fail: it is said at once, with what to write, and nobody is registered."""
    async with small_bus(tmp_path) as bus:
        with pytest.raises(TypeError, match=f"cannot be called with a message .*({says}).*one parameter"):
            await bus.register("worker", handler=handler(), tenant="acme")
        assert bus.agents() == []
        await bus.register("worker", handler=print, tenant="acme")  # whatever can be called with one will do


async def test_what_is_wrong_is_shown_where_it_is_short(tmp_path: Path) -> None:
    """A number that is none of the four is in the sentence, and a home that this process has open is not another's."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        receipt = await desk.send("desk", {}, priority=9)
        assert receipt.reasons[0].message == "the priority 9 is none"
        no_name: Any = 7
        receipt = await desk.send(no_name, {})
        assert receipt.reasons[0].message == "the recipient 7 is not an agent id"
        with pytest.raises(KeyError, match="no message nope"):
            await bus.outcome("nope")
        with pytest.raises(StoreLocked, match="in another process, or as another bus of this one"):
            async with open_bus(tmp_path / "home"):
                pass
