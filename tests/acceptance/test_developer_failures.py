"""Handlers that fail, retries, dead letters, replay and discard, as the documentation promises them."""

import asyncio
import contextlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, DeadLetter, Message, Retry
from tests.developer import Inbox, adds_up, log, log_text, small_bus, until
from tests.support import write_constitution

QUICK = Retry.exponential(attempts=3, base_seconds=0.001, cap_seconds=0.002)
NOBODY = {"no": "admit if input.message.id == input.message.type"}
ONCE = Retry.exponential(attempts=1)


async def fail_once(bus: AgentBus, payload: dict[str, Any] | None = None, id: str = "order") -> str:
    """Leaves one dead letter for booker, whose next run will succeed, and returns its id."""
    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", Inbox(ValueError("the reason")), tenant="acme", retry=ONCE)
    receipt = await desk.send("booker", payload, id=id)
    assert (await receipt.outcome(timeout=5)).state == "dead_lettered"
    return receipt.message_id


async def test_failed_attempts_are_retried_until_one_succeeds(tmp_path: Path) -> None:
    """A handler that fails twice is run a third time; attempts count from 1, each with an allow record of its own."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox(ValueError("one"), ValueError("two"), {"ok": 1})
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme", retry=QUICK)
        receipt = await desk.send("booker")
        outcome = await receipt.outcome(timeout=5)
        assert (outcome.state, outcome.attempts) == ("delivered", 3)
        assert [message.attempt for message in inbox.got] == [1, 2, 3]
        assert len({message.id for message in inbox.got}) == 1
    decisions = log(tmp_path / "home", "decision", message_id=receipt.message_id)
    assert [(r["why"], r["attempt"], r["verdict"]) for r in decisions] == [
        ("send", 1, "allow"), ("retry", 2, "allow"), ("retry", 3, "allow")
    ]  # fmt: skip
    assert [r["previous"] for r in decisions] == [None, decisions[0]["decision_id"], decisions[1]["decision_id"]]
    assert len({r["decision_id"] for r in decisions}) == 3
    outcomes = log(tmp_path / "home", "outcome", message_id=receipt.message_id)
    assert [(r["state"], r["code"], r["attempt"], r["decision_id"]) for r in outcomes] == [
        ("failed", "handler_failed", 1, decisions[0]["decision_id"]),
        ("failed", "handler_failed", 2, decisions[1]["decision_id"]),
        ("delivered", None, 3, decisions[2]["decision_id"]),
    ]
    assert [r["error"] for r in outcomes] == [{"type": "ValueError"}, {"type": "ValueError"}, None]


async def test_attempts_end_among_the_dead_letters(tmp_path: Path) -> None:
    """A handler that always fails is run `attempts` times in all; then there is a dead letter that says what."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox(*[KeyError(n) for n in range(9)])
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme", retry=QUICK)
        receipt = await desk.send("booker", type="event")
        outcome = await receipt.outcome(timeout=5)
        assert (outcome.state, outcome.attempts, outcome.code) == ("dead_lettered", 3, "attempts_exhausted")
        assert len(inbox.got) == 3
        (letter,) = bus.dead_letters()
        assert isinstance(letter, DeadLetter)
        assert (letter.message_id, letter.sender, letter.recipient, letter.type) == (
            receipt.message_id, "desk", "booker", "event"
        )  # fmt: skip
        assert (letter.code, letter.attempts, letter.error) == ("attempts_exhausted", 3, "KeyError")
        assert datetime.now(UTC) - timedelta(minutes=1) < letter.since <= datetime.now(UTC)
        assert bus.status().accounting["dead_lettered"] == 1


async def test_retry_strategy_comes_from_the_settings(tmp_path: Path) -> None:
    """Without `retry` the section [recovery] says how often."""
    async with small_bus(tmp_path, recovery={"attempts": 2, "base_seconds": 0, "cap_seconds": 0}) as bus:
        inbox = Inbox(*[ValueError()] * 5)
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        assert (await (await desk.send("booker")).outcome(timeout=5)).attempts == 2


def test_retry_values_that_cannot_be() -> None:
    """Fewer than one attempt and negative times raise ValueError."""
    wrong: list[dict[str, Any]] = [{"attempts": 0}, {"base_seconds": -1}, {"cap_seconds": -0.1}]
    for options in wrong:
        with pytest.raises(ValueError, match=r"\S"):
            Retry.exponential(**options)


async def raise_cancelled(_message: Message) -> None:
    """A cancellation that nobody asked for."""
    raise asyncio.CancelledError


async def raise_exit(_message: Message) -> None:
    """The end of the process, on the loop."""
    raise SystemExit(3)


def raise_exit_in_thread(_message: Message) -> None:
    """The end of the process, in a thread."""
    raise SystemExit(3)


def raise_stop(_message: Message) -> None:
    """What a future cannot carry."""
    raise StopIteration


async def raise_group(_message: Message) -> None:
    """Several at once."""
    raise ExceptionGroup("several", [ValueError(1), KeyError(2)])


class OwnKind(BaseException):
    """Not an Exception, as the cancellations of some libraries."""


async def raise_own_kind(_message: Message) -> None:
    """Not an Exception."""
    raise OwnKind


async def raise_surrogate(_message: Message) -> None:
    """A text that is none."""
    raise FileNotFoundError("a file named \udcff")


class Unspeakable(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


async def raise_unspeakable(_message: Message) -> None:
    """An error without words."""
    raise Unspeakable


async def raise_long_name(_message: Message) -> None:
    """An error whose type has a name too long for a record."""
    raise type("E" * 100_000, (Exception,), {})


@pytest.mark.parametrize(
    "handler",
    [
        raise_cancelled,
        raise_exit,
        raise_exit_in_thread,
        raise_stop,
        raise_group,
        raise_own_kind,
        raise_surrogate,
        raise_unspeakable,
        raise_long_name,
    ],
    ids=lambda handler: handler.__name__,
)
async def test_whatever_a_handler_raises_is_a_failed_attempt(tmp_path: Path, handler: Any) -> None:
    """CancelledError, SystemExit and others are failed attempts: retried, dead-lettered, and nobody else's business."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=Retry.exponential(2, 0, 0))
        await bus.register("fine", Inbox(), tenant="acme")
        receipt = await desk.send("booker")
        outcome = await receipt.outcome(timeout=5)
        assert (outcome.state, outcome.attempts, outcome.code) == ("dead_lettered", 2, "attempts_exhausted")
        for name in ("fine", "booker"):
            assert (await (await desk.send(name)).outcome(timeout=5)).state in ("delivered", "dead_lettered")
        assert adds_up(bus.status().accounting)


async def test_a_failed_task_group_is_a_failed_attempt(tmp_path: Path) -> None:
    """A handler whose tasks fail as a group is retried like another, and its agent goes on (bpo: Python 3.11's group
    leaves its task half cancelled).
    """

    async def fails() -> None:
        raise ValueError("x")

    async def handler(message: Message) -> None:
        if message.attempt == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                group.create_task(asyncio.sleep(60))

    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=QUICK)
        for _ in range(3):
            outcome = await (await desk.send("booker")).outcome(timeout=5)
            assert (outcome.state, outcome.attempts) == ("delivered", 2)


@pytest.mark.parametrize(
    "rubbish",
    ["yes", 1, True, [1], (1,), b"x", object, {"a": object}, {1: 2}, {"a": float("nan")}, {"a": {1}}, set()],
    ids=repr,
)
async def test_rubbish_returned_is_a_failed_attempt(tmp_path: Path, rubbish: Any) -> None:
    """Only a dict that can be sent, or None, is an answer; anything else fails the attempt, and none is invented."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(rubbish, None), tenant="acme", retry=ONCE)
        outcome = await (await desk.send("booker")).outcome(timeout=5)
        assert (outcome.state, outcome.reply) == ("dead_lettered", None)
        assert (await (await desk.send("booker")).outcome(timeout=5)).state == "delivered"


async def test_coroutine_returned_by_a_plain_function_is_rubbish(tmp_path: Path) -> None:
    """A `def` that returns a coroutine nobody awaits has not done its work."""

    async def later() -> None:
        raise AssertionError("never run")

    def forgot_await(_message: Message) -> Any:
        return later()

    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", forgot_await, tenant="acme", retry=ONCE)
        assert (await (await desk.send("booker")).outcome(timeout=5)).state == "dead_lettered"


async def test_handler_that_hangs_is_stopped_at_its_time(tmp_path: Path) -> None:
    """An attempt longer than `timeout` fails as handler_timeout and is retried; the next message goes on."""
    async with small_bus(tmp_path) as bus:
        ended: list[str] = []

        async def hang(message: Message) -> None:
            if message.payload:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(message.id)

        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", hang, tenant="acme", timeout=0.05, retry=Retry.exponential(2, 0, 0))
        stuck, fine = await desk.send("booker", {"hang": True}), await desk.send("booker")
        outcome = await stuck.outcome(timeout=5)
        assert (outcome.state, outcome.attempts, outcome.code) == ("dead_lettered", 2, "attempts_exhausted")
        assert (await fine.outcome(timeout=5)).state == "delivered"
        assert ended == [stuck.message_id] * 2
        codes = [r["code"] for r in log(tmp_path / "home", "outcome", message_id=stuck.message_id)]
        assert codes == ["handler_timeout", "attempts_exhausted"]


async def test_handler_that_swallows_its_cancellation(tmp_path: Path) -> None:
    """A handler that goes on after its time is over cannot make a success of it, nor break the next one's."""
    async with small_bus(tmp_path) as bus:

        async def stubborn(message: Message) -> dict[str, Any]:
            if message.payload:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            return {"ok": True}

        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", stubborn, tenant="acme", timeout=0.05, retry=ONCE)
        outcome = await (await desk.send("booker", {"hang": True})).outcome(timeout=5)
        assert outcome.state in ("dead_lettered", "delivered")
        for _ in range(3):
            assert (await (await desk.send("booker")).outcome(timeout=5)).state == "delivered"


async def test_blocking_def_handler_that_hangs(tmp_path: Path) -> None:
    """A thread cannot be stopped, but its attempt ends at its time, and the agent goes on with the next message."""
    go_on = threading.Event()

    def block(message: Message) -> None:
        if message.payload:
            go_on.wait(20)

    try:
        async with small_bus(tmp_path) as bus:
            desk = await bus.register("desk", tenant="acme")
            await bus.register("booker", block, tenant="acme", timeout=0.05, retry=ONCE)
            outcome = await (await desk.send("booker", {"hang": True})).outcome(timeout=5)
            assert outcome.state == "dead_lettered"
            assert (await (await desk.send("booker")).outcome(timeout=5)).state == "delivered"
            go_on.set()
    finally:
        go_on.set()


async def test_policy_may_shorten_the_handlers_time(tmp_path: Path) -> None:
    """The obligation handler_timeout ends an attempt sooner than the agent's own timeout."""
    rules = {"quick": 'admit if input.message.id\nobligations contains {"type": "handler_timeout", "seconds": 0.05}'}
    async with small_bus(tmp_path, rules) as bus:

        async def hang(_message: Message) -> None:
            await asyncio.Event().wait()

        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", hang, tenant="acme", timeout=60, retry=ONCE)
        assert (await (await desk.send("booker")).outcome(timeout=5)).state == "dead_lettered"


async def test_replay_is_decided_anew_and_delivered(tmp_path: Path) -> None:
    """A replayed dead letter is decided again (why: replay) and queued; attempt numbers go on, its id is the same."""
    async with small_bus(tmp_path) as bus:
        message_id = await fail_once(bus)
        receipt = await bus.replay(message_id)
        assert (receipt.message_id, receipt.state) == (message_id, "accepted")
        outcome = await receipt.outcome(timeout=5)
        assert (outcome.state, outcome.attempts) == ("delivered", 2)
        assert bus.dead_letters() == []
        assert bus.status().accounting["accepted"] == 1
        first, second = log(tmp_path / "home", "decision", message_id=message_id)
        assert (second["why"], second["previous"], second["attempt"]) == ("replay", first["decision_id"], 2)
        assert second["decision_id"] == receipt.decision_id
        assert second["seq"] == receipt.audit_seq
        with pytest.raises(KeyError):
            await bus.replay(message_id)


async def test_replay_renews_attempts(tmp_path: Path) -> None:
    """A replay renews the attempts: as many runs again, with numbers that go on."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox(*[ValueError()] * 9)
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme", retry=QUICK)
        receipt = await desk.send("booker")
        assert (await receipt.outcome(timeout=5)).attempts == 3
        again = await bus.replay(receipt.message_id)
        outcome = await again.outcome(timeout=5)
        assert (outcome.state, outcome.attempts) == ("dead_lettered", 6)
        assert [message.attempt for message in inbox.got] == [1, 2, 3, 4, 5, 6]


async def test_replay_that_is_refused_leaves_the_dead_letter(tmp_path: Path) -> None:
    """Where the policy has become stricter a replay is refused(policy_denied), names the old decision, and changes
    nothing: the dead letter stays.
    """
    async with small_bus(tmp_path) as bus:
        message_id = await fail_once(bus)
        (letter,) = bus.dead_letters()
        write_constitution(tmp_path / "stricter", NOBODY)
        await bus.activate(tmp_path / "stricter")
        receipt = await bus.replay(message_id)
        assert (receipt.state, receipt.code) == ("refused", "policy_denied")
        first, second = log(tmp_path / "home", "decision", message_id=message_id)
        assert (second["verdict"], second["previous"]) == ("refuse", first["decision_id"])
        assert bus.dead_letters() == [letter]
        await bus.activate(write_constitution(tmp_path / "milder"))
        assert (await (await bus.replay(message_id)).outcome(timeout=5)).state == "delivered"
        assert adds_up(bus.status().accounting)


async def test_dead_letters_survive_a_restart(tmp_path: Path) -> None:
    """Dead letters, their attempts and codes are there after a restart, and can be replayed."""
    async with small_bus(tmp_path) as bus:
        message_id = await fail_once(bus, {"trip": 7})
        letters = bus.dead_letters()
    async with small_bus(tmp_path) as bus:
        assert bus.dead_letters() == letters
        assert bus.status().accounting["dead_lettered"] == 1
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        outcome = await (await bus.replay(message_id)).outcome(timeout=5)
        assert (outcome.state, outcome.attempts) == ("delivered", 2)
        assert inbox.got[0].payload == {"trip": 7}


async def test_discard_ends_a_dead_letter(tmp_path: Path) -> None:
    """A discarded dead letter ends as discarded, recorded, and cannot be replayed; an unknown id is a KeyError."""
    async with small_bus(tmp_path) as bus:
        message_id = await fail_once(bus)
        await bus.discard(message_id, reason="nobody needs it")
        assert bus.dead_letters() == []
        assert (await bus.outcome(message_id, timeout=1)).state == "discarded"
        counts = bus.status().accounting
        assert (counts["discarded"], counts["dead_lettered"], adds_up(counts)) == (1, 0, True)
        for message in (message_id, "desk/unknown"):
            with pytest.raises(KeyError):
                await bus.replay(message)
            with pytest.raises(KeyError):
                await bus.discard(message, reason="again")
        assert log(tmp_path / "home", "outcome", message_id=message_id)[-1]["state"] == "discarded"


async def test_replay_of_a_message_that_waits_is_a_key_error(tmp_path: Path) -> None:
    """Only dead letters can be replayed."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("absent", tenant="acme")
        receipt = await desk.send("absent")
        with pytest.raises(KeyError):
            await bus.replay(receipt.message_id)
        await bus.discard(receipt.message_id, reason="no longer wanted")
        assert (await receipt.outcome(timeout=5)).state == "discarded"


async def test_attempts_are_kept_across_a_restart(tmp_path: Path) -> None:
    """A message that is being retried when the bus closes goes on with its attempt number, decided anew."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        failing = Inbox(ValueError())
        await bus.register("booker", failing, tenant="acme", retry=Retry.exponential(3, 3600, 3600))
        receipt = await desk.send("booker", expires_in=86_400)
        await until(lambda: bus.status().accounting["retrying"] == 1)
        (waiting,) = bus.queue()
        assert (waiting.state, waiting.attempts) == ("retrying", 1)
    async with small_bus(tmp_path) as bus:
        (waiting,) = bus.queue()
        assert (waiting.state, waiting.attempts) == ("retrying", 1)
        await bus.discard(receipt.message_id, reason="it takes an hour")
    async with small_bus(tmp_path) as bus:
        assert (await bus.outcome(receipt.message_id, timeout=1)).attempts == 1


async def test_policy_that_was_tightened_refuses_a_retry(tmp_path: Path) -> None:
    """Between a failure and its retry the policy says no: refused(policy_denied), the handler is not run again."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox(ValueError())

        async def fail_then_wait(message: Message) -> None:
            inbox.got.append(message)
            await bus.activate(
                write_constitution(tmp_path / "stricter", {"no": "admit if input.message.id == input.message.type"})
            )
            raise ValueError

        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", fail_then_wait, tenant="acme", retry=QUICK)
        receipt = await desk.send("booker")
        outcome = await receipt.outcome(timeout=10)
        assert (outcome.state, outcome.code, outcome.attempts) == ("refused", "policy_denied", 1)
        assert len(inbox.got) == 1
        first, second = log(tmp_path / "home", "decision", message_id=receipt.message_id)
        assert (second["why"], second["previous"]) == ("retry", first["decision_id"])
        assert second["constitution"] == bus.status().constitution != first["constitution"]


async def test_text_of_an_exception_stays_out_of_the_log(tmp_path: Path) -> None:
    """What a handler's exception says is in no record, no list and no error; its type is."""
    secret = "s3cret-account-4711"
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(ValueError(secret)), tenant="acme", retry=ONCE)
        receipt = await desk.send("booker", {"account": secret}, headers={"x": secret})
        outcome = await receipt.outcome(timeout=5)
        shown = repr([outcome, receipt, bus.dead_letters(), bus.queue(), bus.status(), bus.agents()])
        assert secret not in shown
        await bus.discard(receipt.message_id, reason="done")
    assert secret not in log_text(tmp_path / "home")
    assert '"type":"ValueError"' in log_text(tmp_path / "home")


async def test_replays_and_discards_at_once(tmp_path: Path) -> None:
    """Of several replays and discards of one dead letter at once a single one counts; the others are KeyErrors."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        for number in range(4):
            inbox = Inbox(ValueError())
            name = f"booker-{number}"
            await bus.register(name, inbox, tenant="acme", retry=ONCE)
            message_id = (await desk.send(name, id=name)).message_id
            await bus.outcome(message_id, timeout=5)
            moves: list[Any] = [bus.replay(message_id), bus.discard(message_id, reason="done"), bus.replay(message_id)]
            moves = moves[number % 2 :] + moves[: number % 2]
            done = await asyncio.gather(*moves, return_exceptions=True)
            assert sum(isinstance(one, KeyError) for one in done) == 2, done
            await bus.wait_idle(timeout=5)
            assert len(inbox.got) == (2 if (await bus.outcome(message_id)).state == "delivered" else 1)
            assert adds_up(bus.status().accounting)
        assert bus.status().accounting["dead_lettered"] == 0
        assert bus.status().accounting["accepted"] == 4


async def test_dead_letter_of_an_absent_agent_is_delivered_when_it_is_back(tmp_path: Path) -> None:
    """What died because its recipient had gone (handler_absent) can be replayed once the recipient is registered."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        absent = await bus.register("absent", tenant="acme")
        receipt = await desk.send("absent", {"n": 1}, id="order")
        await absent.unregister()
        assert (await receipt.outcome(timeout=5)).code == "handler_absent"
        assert (await bus.replay("desk/order")).code == "recipient_unknown"
        assert [letter.message_id for letter in bus.dead_letters()] == ["desk/order"]
        inbox = Inbox()
        await bus.register("absent", inbox, tenant="acme")
        outcome = await (await bus.replay("desk/order")).outcome(timeout=5)
        assert (outcome.state, outcome.attempts) == ("delivered", 1)
        assert len(inbox.got) == 1
