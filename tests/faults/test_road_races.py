"""The road between its awaits: cancelled, overtaken, closed or re-registered at the worst moment, nothing is lost,
counted twice, delivered on an old answer, or left waiting for ever.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from enhanced_agent_bus import AgentBus, BusClosed, Message, Pass, Receipt, Retry, open_bus
from tests.developer import PATIENT, Doorman, Inbox, SteppedClock, adds_up, log, small_bus, until
from tests.support import ADMIT_ALL, write_constitution

ONCE = Retry.exponential(attempts=1)
STEPS = 40  # turns of the loop after which something is cancelled: more than any of these calls takes


class Turnstile:
    """A gate that lets everybody through, and makes them wait while it is shut."""

    name = "turnstile"

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0

    async def check(self, message: Message) -> Pass:  # noqa: ARG002 - the port's
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        return Pass()


async def dead_letter(bus: AgentBus, id: str = "order") -> str:
    """Leaves one dead letter for booker, whose later runs succeed, and returns its id."""
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", Inbox(ValueError("once")), tenant="acme", retry=ONCE)
    receipt = await desk.send("booker", id=id)
    assert (await receipt.outcome(timeout=5)).state == "dead_lettered"
    return receipt.message_id


async def after_steps(steps: int, work: Awaitable[Any]) -> BaseException | None:
    """Cancels work after so many turns of the loop; returns what it raised."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0]


# --- replay and discard ----------------------------------------------------------------------------------------------


async def test_a_dead_letter_is_taken_once(tmp_path: Path) -> None:
    """Of many replays and discards of one dead letter at once one is done, the others find none; it adds up."""
    async with small_bus(tmp_path) as bus:
        letter = await dead_letter(bus)
        done = await asyncio.gather(
            bus.replay(letter), bus.replay(letter), bus.discard(letter, reason="x"), return_exceptions=True
        )
        assert [type(one) for one in done].count(KeyError) == 2
        await bus.wait_idle(5)
        accounting = bus.status().accounting
        assert adds_up(accounting), accounting
        assert accounting["delivered"] == 1
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting == accounting


async def test_a_discard_that_is_asked_for_twice_counts_once(tmp_path: Path) -> None:
    """Discarding one message twice at the same time ends it once."""
    async with small_bus(tmp_path) as bus:
        letter = await dead_letter(bus)
        await bus.register("nobody", tenant="acme")
        parked = await (await bus.agent("desk")).send("nobody")
        for one in (letter, parked.message_id):
            done = await asyncio.gather(
                bus.discard(one, reason="a"), bus.discard(one, reason="b"), return_exceptions=True
            )
            assert [type(item) for item in done].count(KeyError) == 1
        accounting = bus.status().accounting
        assert adds_up(accounting), accounting
        assert accounting["discarded"] == 2
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting == accounting


async def test_a_replay_that_is_cancelled_has_happened_or_not(tmp_path: Path) -> None:
    """Cancelled at any await, a replay leaves a dead letter or a message that is delivered, and both logs agree."""
    async with small_bus(tmp_path, recovery={"breaker_failures": 1000}) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox(*[ValueError("once")] * STEPS)
        await bus.register("booker", inbox, tenant="acme", retry=ONCE)
        letters = []
        for step in range(STEPS):
            receipt = await desk.send("booker", id=f"m{step}")
            assert (await receipt.outcome(timeout=5)).state == "dead_lettered"
            letters.append(receipt.message_id)
        for step, letter in enumerate(letters):
            await after_steps(step, bus.replay(letter))
        await bus.wait_idle(5)
        accounting = bus.status().accounting
        assert adds_up(accounting), accounting
        assert accounting["dead_lettered"] == len(bus.dead_letters())
        assert accounting["delivered"] + accounting["dead_lettered"] == STEPS
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting == accounting


# --- while it is decided again ---------------------------------------------------------------------------------------


async def waiting_again(folder: Path, bus: AgentBus, gate: Turnstile, inbox: Inbox, **send: Any) -> str:
    """A message that is being decided anew, under a constitution that came while it waited."""
    desk = await bus.register("desk", tenant="acme")
    doorman = Doorman()

    async def handler(message: Message) -> Any:
        return await (doorman if message.payload.get("first") else inbox)(message)

    await bus.register("booker", handler, tenant="acme")
    await desk.send("booker", {"first": True})
    await until(lambda: doorman.got)
    receipt = await desk.send("booker", {}, **send)
    await bus.activate(write_constitution(folder / "next", {"everything": ADMIT_ALL}, revision="2"))
    gate.open.clear()
    doorman.open.set()
    await until(lambda: gate.waiting)
    return receipt.message_id


async def test_what_is_discarded_while_it_is_decided_again_stays_so(tmp_path: Path) -> None:
    """A discard that was answered holds: the message never runs, after a restart neither."""
    gate, inbox = Turnstile(), Inbox()
    async with small_bus(tmp_path, gates=[gate], limits={"gate_seconds": 30}) as bus:
        message_id = await waiting_again(tmp_path, bus, gate, inbox)
        try:
            await bus.discard(message_id, reason="no longer wanted")
            discarded = True
        except KeyError:
            discarded = False
        gate.open.set()
        await until(lambda: not gate.waiting)
        await until(lambda: len(log(tmp_path / "home", "decision", message_id=message_id)) == 2)
        await bus.wait_idle(5)
        accounting = bus.status().accounting
        assert adds_up(accounting)
        assert bool(inbox.got) is not discarded
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting == accounting


async def test_what_expires_while_it_is_decided_again_ends_once(tmp_path: Path) -> None:
    """It ends as expired, in the log and in the bus alike, and does not come back after a restart."""
    gate, inbox, clock = Turnstile(), Inbox(), SteppedClock()
    async with small_bus(tmp_path, gates=[gate], limits={"gate_seconds": 300}, clock=clock) as bus:
        message_id = await waiting_again(tmp_path, bus, gate, inbox, expires_in=3)
        await asyncio.sleep(3.1)  # its timer runs on the loop's clock; so much may come before on a busy machine
        gate.open.set()
        await until(lambda: not gate.waiting)
        await until(lambda: len(log(tmp_path / "home", "decision", message_id=message_id)) == 2)
        assert (await bus.outcome(message_id, timeout=5)).state == "expired"
        accounting = bus.status().accounting
        assert adds_up(accounting)
    assert not inbox.got
    async with small_bus(tmp_path) as bus:
        assert bus.status().accounting == accounting
        assert bus.queue() == []


# --- registrations ---------------------------------------------------------------------------------------------------


async def test_an_agent_registered_again_has_the_workers_it_asked_for(tmp_path: Path) -> None:
    """A worker that was still busy when its agent was unregistered does not serve the next registration."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        first, second = Doorman(), Doorman()
        booker = await bus.register("booker", first, tenant="acme")
        await desk.send("booker")
        await until(lambda: first.got)
        await booker.unregister()
        await bus.register("booker", second, tenant="acme", concurrency=1)
        first.open.set()
        await desk.send("booker")
        await desk.send("booker")
        await until(lambda: bus.status().accounting["delivered"] == 1)
        await until(lambda: second.got)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(second.got) == 1
        second.open.set()
        await bus.wait_idle(5)


async def test_a_recipient_that_comes_with_other_roles_is_decided_anew(tmp_path: Path) -> None:
    """An allow on a remembered recipient does not deliver to one that has lost the role that it was allowed for."""
    rules = {"cleared": 'admit if "cleared" in input.recipient.roles'}
    async with small_bus(tmp_path, rules) as bus:
        await bus.register("desk", tenant="acme")
        await bus.register("booker", tenant="acme", roles=["cleared"])
    inbox = Inbox()
    async with small_bus(tmp_path) as bus:
        desk = await bus.agent("desk")
        receipt = await desk.send("booker")
        assert receipt.ok
        await bus.register("booker", inbox, tenant="acme", roles=[])
        outcome = await receipt.outcome(timeout=5)
        assert (outcome.state, outcome.code) == ("refused", "policy_denied")
        assert not inbox.got


async def test_cancelled_registrations_leave_whole_states(tmp_path: Path) -> None:
    """Cancelled at any await, register and unregister have happened or not: the id can be used either way."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        for step in range(STEPS):
            await after_steps(step, bus.register(f"a{step}", Inbox(), tenant="acme"))
            await (await bus.agent(f"a{step}") if any(a.id == f"a{step}" for a in bus.agents()) else desk).send("desk")
        for step in range(STEPS):
            agent = await bus.register(f"b{step}", Inbox(), tenant="acme")
            await after_steps(step, agent.unregister())
            await until(lambda: True)
            gone = not any(info.id == f"b{step}" for info in bus.agents())
            receipt = await desk.send(f"b{step}")
            assert receipt.ok is not gone
            if gone:
                await bus.register(f"b{step}", Inbox(), tenant="acme")
                receipt = await desk.send(f"b{step}")
            assert (await receipt.outcome(timeout=5)).state == "delivered"
        listed = {info.id for info in bus.agents()}
    async with small_bus(tmp_path) as bus:
        assert {info.id for info in bus.agents()} >= {one for one in listed if one.startswith("b")}


# --- sends -----------------------------------------------------------------------------------------------------------


async def test_a_cancelled_send_can_be_sent_again_at_once(tmp_path: Path) -> None:
    """Sending again with the same id is safe at every moment: one message, one delivery, a receipt and no error."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        for step in range(STEPS):
            await after_steps(step, desk.send("booker", {"n": step}, id=f"m{step}"))
            receipt = await desk.send("booker", {"n": step}, id=f"m{step}")
            assert receipt.ok
            assert (await receipt.outcome(timeout=5)).state == "delivered"
        assert sorted(message.payload["n"] for message in inbox.got) == list(range(STEPS))
        assert adds_up(bus.status().accounting)
        assert bus.status().accounting["accepted"] == STEPS
    numbers = [record["sender_n"] for record in log(tmp_path / "home", "decision", sender="desk")]
    assert numbers == list(range(len(numbers)))


async def test_a_cancelled_request_leaves_nothing_behind(tmp_path: Path) -> None:
    """Cancelled at any await, a request is a message that ends, and every place in the mailbox is given back."""
    async with small_bus(tmp_path, limits={"mailbox": 2}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(*[{"n": 1}] * 1000), tenant="acme")
        for step in range(STEPS * 3):
            await after_steps(step, desk.request("booker", {}, timeout=5))
        await bus.wait_idle(5)
        assert (await desk.request("booker", {}, timeout=5)).payload == {"n": 1}
        await bus.wait_idle(5)
        assert adds_up(bus.status().accounting)
        (booker,) = [info for info in bus.agents() if info.id == "booker"]
        assert booker.waiting == 0


# --- activation ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_activation_is_in_force_when_it_is_recorded(tmp_path: Path) -> None:
    """What the log says is active decides: a cancelled activate leaves no bus that decides under another."""
    async with small_bus(tmp_path) as bus:
        for number in range(2, 8):
            folder = write_constitution(tmp_path / f"next-{number}", {"everything": ADMIT_ALL}, revision=str(number))
            task = asyncio.create_task(bus.activate(folder))
            size = bus.status().records
            await until(lambda size=size, task=task: bus.status().records > size or task.done())  # type: ignore[misc]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            last = log(tmp_path / "home", "policy")[-1]
            assert (last["digest"], last["revision"]) == (bus.status().constitution, bus.status().revision)


async def test_no_thread_starts_under_the_old_constitution(tmp_path: Path) -> None:
    """Plain functions that wait for a free thread when a constitution is replaced are decided anew before they run."""
    release, ran = threading.Event(), []

    def blocking(message: Message) -> None:
        ran.append(message.constitution)
        release.wait(20)

    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", blocking, tenant="acme", concurrency=40)
        receipts = [await desk.send("booker") for _ in range(40)]
        await until(lambda: bus.status().accounting["in_flight"] == 40)
        await until(lambda: len(ran) == 32)  # as many threads as there are
        new = await bus.activate(write_constitution(tmp_path / "next", {"everything": ADMIT_ALL}, revision="2"))
        started = len(ran)
        release.set()
        for receipt in receipts:
            assert (await receipt.outcome(timeout=10)).attempts == 1
        assert len(ran) == 40
        assert set(ran[started:]) == {new.digest}


# --- close -----------------------------------------------------------------------------------------------------------


async def test_close_wakes_everybody_who_waits(tmp_path: Path) -> None:
    """A sender that waits for a place, a requester and who waits for an outcome hear BusClosed, and do not hang."""
    async with small_bus(tmp_path, limits={"mailbox": 1}) as bus:
        desk = await bus.register("desk", tenant="acme")
        doorman = Doorman()
        await bus.register("booker", doorman, tenant="acme")
        await bus.register("clerk", Doorman(), tenant="acme")
        receipt = await desk.send("booker")
        waits: list[Callable[[], Awaitable[Any]]] = [
            lambda: desk.send("booker", id="a"),
            lambda: desk.send("booker", id="a"),
            lambda: desk.send("booker"),
            receipt.outcome,
            lambda: bus.outcome(receipt.message_id),
            lambda: desk.request("clerk", timeout=60),
            bus.wait_idle,
        ]
        tasks = [asyncio.ensure_future(wait()) for wait in waits]
        await until(lambda: doorman.got and len(bus.queue()) == 2)
        await bus.close(timeout=0)
        _, pending = await asyncio.wait(tasks, timeout=5)
        assert not pending
        assert [type(task.exception()) for task in tasks] == [BusClosed] * len(tasks)
        with pytest.raises(BusClosed):
            await receipt.outcome()


async def test_close_does_not_wait_for_what_only_waits_itself(tmp_path: Path) -> None:
    """Once nothing is queued or running the drain is over, though a message waits for its next attempt."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        doorman = Doorman()

        async def failing(message: Message) -> None:
            await doorman(message)
            raise ValueError

        await bus.register("booker", failing, tenant="acme", retry=Retry(5, 600.0, 600.0))
        await desk.send("booker")
        await until(lambda: doorman.got)
        closing = asyncio.create_task(bus.close(timeout=60))
        await asyncio.sleep(0)
        doorman.open.set()
        async with asyncio.timeout(5):
            assert (await closing).kept == 1


async def test_registering_while_the_bus_closes_leaves_no_worker(tmp_path: Path) -> None:
    """A registration that is overtaken by close is refused, and starts nothing."""
    async with small_bus(tmp_path) as bus:
        before = asyncio.all_tasks()
        registering = asyncio.create_task(bus.register("late", Inbox(), tenant="acme"))
        await asyncio.sleep(0)
        await bus.close(timeout=0)
        assert isinstance((await asyncio.gather(registering, return_exceptions=True))[0], BusClosed)
        assert not [task for task in asyncio.all_tasks() - before if "worker" in task.get_name()]


# --- handlers and models that misbehave ------------------------------------------------------------------------------


class Picky(BaseModel):
    """A model whose own check breaks."""

    trip: int = 0

    @field_validator("trip")
    @classmethod
    def breaks(cls, value: int) -> int:
        if value:
            raise RuntimeError("the validator itself is broken")
        return value


class Unsayable(BaseModel):
    """A model that cannot be written as JSON."""

    model_config = {"arbitrary_types_allowed": True}
    thing: Any = None


async def test_a_model_that_breaks_is_no_end_of_the_bus(tmp_path: Path) -> None:
    """A validator that raises refuses as malformed; a reply or payload that cannot be dumped fails; others go on."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("picky", Inbox(), tenant="acme", payload=Picky)
        await bus.register("odd", Inbox(Unsayable(thing=object())), tenant="acme", retry=ONCE)
        assert (await desk.send("picky", {"trip": 1})).code == "malformed"
        assert (await (await desk.send("odd")).outcome(timeout=5)).state == "dead_lettered"
        assert (await desk.send("odd", Unsayable(thing=object()))).code == "malformed"
        assert (await desk.send("odd", expires_in=10**400)).ok
        assert (await (await desk.send("picky")).outcome(timeout=5)).state == "delivered"


async def test_what_a_handler_started_is_not_bound_to_its_message_for_ever(tmp_path: Path) -> None:
    """A task that outlives the handler that started it sends with a life of its own."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        go, kept, left = asyncio.Event(), list[Receipt](), set[asyncio.Task[None]]()

        async def later() -> None:
            await go.wait()
            kept.append(await desk.send("sink"))

        async def handler(_message: Message) -> None:
            left.add(asyncio.create_task(later()))

        inbox = Inbox()
        await bus.register("sink", inbox, tenant="acme")
        await bus.register("booker", handler, tenant="acme")
        receipt = await desk.send("booker", expires_in=0.2)
        await receipt.outcome(timeout=5)
        await asyncio.sleep(0.25)
        go.set()
        await asyncio.gather(*left)
        assert (await kept[0].outcome(timeout=5)).state == "delivered"


# --- opening ---------------------------------------------------------------------------------------------------------


async def test_a_home_whose_constitution_has_expired_takes_a_newer_one(tmp_path: Path) -> None:
    """An expired constitution stops the home from opening, until a folder with a newer one is given."""
    clock = SteppedClock()
    old = write_constitution(tmp_path / "old", not_after="2099-01-01T00:00:00Z")
    async with open_bus(tmp_path / "home", constitution=old, policy=PATIENT):
        pass
    clock.ahead_seconds = 100 * 366 * 86_400.0
    new = write_constitution(tmp_path / "new", revision="2")
    async with open_bus(tmp_path / "home", constitution=new, policy=PATIENT, clock=clock) as bus:
        assert bus.status().revision == 2


async def test_a_message_of_a_reply_type_is_not_lost_by_a_restart(tmp_path: Path) -> None:
    """Only a reply whose requester has gone is discarded at the next start; what was sent like any message waits."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", tenant="acme")
        sent = [await desk.send("booker", type=kind, cause="of/long-ago") for kind in ("response", "task_response")]
    inbox = Inbox()
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", inbox, tenant="acme")
        for receipt in sent:
            assert (await bus.outcome(receipt.message_id, timeout=5)).state == "delivered"


async def test_facts_of_an_operator_are_recorded_though_nobody_waits(tmp_path: Path) -> None:
    """Cancelled at any await, a fact is put in memory and on disk alike."""
    async with small_bus(tmp_path) as bus:
        for step in range(STEPS):
            await after_steps(step, bus.put_fact("agent", "desk", f"k{step}", step))
        await bus.put_fact("agent", "desk", "last", 1)
        kept = bus.facts()
    async with small_bus(tmp_path) as bus:
        assert bus.facts() == kept
        with pytest.raises(ValueError, match="surrogates"):
            await bus.put_fact("agent", "desk", "bad", "\ud800")
        with pytest.raises(ValueError, match="beyond"):
            await bus.put_fact("agent", "desk", "bad", float("nan"))
