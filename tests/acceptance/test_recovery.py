"""Retries of every kind, the breaker, and the queue of recoveries, from Python and by `eab recovery`."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, Message, NotDelivered, Retry
from enhanced_agent_bus.cli.app import run_command
from tests.developer import Doorman, adds_up, ids, log, small_bus, until
from tests.support import write_constitution

ONCE = Retry.immediate(attempts=1)
SLOW = Retry.linear(attempts=5, base_seconds=3600, cap_seconds=3600)


class Moody:
    """A handler that fails while `down` is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.down = True
        self.error = error or ValueError("out of order")
        self.got: list[Message] = []

    async def __call__(self, message: Message) -> dict[str, Any] | None:
        self.got.append(message)
        if self.down:
            raise self.error
        return {"done": message.attempt} if message.type == "query" else None


def state_of(bus: AgentBus, message_id: str) -> str:
    """A recovery's state."""
    return {recovery.message_id: recovery.state for recovery in bus.recoveries()}[message_id]


@pytest.mark.parametrize(
    ("retry", "runs"), [(Retry.immediate(attempts=4), 4), (Retry.linear(3, 0.001, 0.002), 3), (Retry.immediate(), 3)]
)
async def test_each_kind_ends_after_its_attempts(tmp_path: Path, retry: Retry, runs: int) -> None:
    """`attempts` counts handler runs in all; each is decided anew, with the record that names the decision before."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        handler = Moody()
        await bus.register("booker", handler, tenant="acme", retry=retry)
        outcome = await (await desk.send("booker", id="x")).outcome(timeout=5)
        assert (outcome.state, outcome.attempts, outcome.code, outcome.error) == (
            "dead_lettered",
            runs,
            "attempts_exhausted",
            "ValueError",
        )
        assert [message.attempt for message in handler.got] == list(range(1, runs + 1))
        assert state_of(bus, "desk/x") == "failed"
    decisions = log(tmp_path / "home", "decision", message_id="desk/x")
    assert [record["why"] for record in decisions] == ["send"] + ["retry"] * (runs - 1)
    assert [record["previous"] for record in decisions[1:]] == [record["decision_id"] for record in decisions[:-1]]


async def test_a_manual_retry_parks_until_a_replay(tmp_path: Path) -> None:
    """It waits through its time to live and a restart, and a replay renews attempts; attempt numbers go on."""
    handler = Moody()
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=Retry.manual())
        receipt = await desk.send("booker", id="x", expires_in=0.2)
        await until(lambda: bus.status().accounting["parked"] == 1)
        [waiting] = bus.queue()
        assert (waiting.state, waiting.attempts) == ("parked", 1)
        with pytest.raises(TimeoutError):
            await receipt.outcome(timeout=0.3)  # longer than it had to live
        assert state_of(bus, "desk/x") == "pending"
        assert adds_up(bus.status().accounting)
    async with small_bus(tmp_path) as bus:
        assert state_of(bus, "desk/x") == "pending"
        handler.down = False
        await bus.register("booker", handler, tenant="acme", retry=Retry.manual())
        await bus.wait_idle(timeout=5)
        assert ids(handler.got).count("desk/x") == 1
        assert (await bus.replay("desk/x")).ok
        outcome = await bus.outcome("desk/x", timeout=5)
        assert (outcome.state, outcome.attempts) == ("delivered", 2)
        assert state_of(bus, "desk/x") == "succeeded"
        assert adds_up(bus.status().accounting)
    states = [record["state"] for record in log(tmp_path / "home", "outcome", message_id="desk/x")]
    assert states == ["parked", "delivered"]


async def test_a_replay_that_is_refused_leaves_it_parked(tmp_path: Path) -> None:
    """Under a stricter constitution nothing moves; discarding it is possible, and then it has ended."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Moody(), tenant="acme", retry=Retry.manual())
        await desk.send("booker", id="x")
        await until(lambda: bus.status().accounting["parked"] == 1)
        await bus.activate(write_constitution(tmp_path / "strict", {"no": "admit if false"}, revision="2"))
        receipt = await bus.replay("desk/x")
        assert (receipt.state, receipt.code) == ("refused", "policy_denied")
        assert bus.status().accounting["parked"] == 1
        await bus.discard("desk/x", reason="no longer wanted")
        assert (await bus.outcome("desk/x")).state == "discarded"
        assert state_of(bus, "desk/x") == "cancelled"
        assert adds_up(bus.status().accounting)


async def test_errors_that_are_never_retried_end_at_once(tmp_path: Path) -> None:
    """By class or by name: a dead letter with the code handler_failed after one run."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk = await bus.register("desk", tenant="acme")
        retry = Retry.exponential(never=[LookupError, "PermissionError"])
        for name, error in [("a", KeyError("k")), ("b", PermissionError())]:
            await bus.register(name, Moody(error), tenant="acme", retry=retry)
            outcome = await (await desk.send(name)).outcome(timeout=5)
            assert (outcome.state, outcome.attempts, outcome.code) == ("dead_lettered", 1, "handler_failed")


async def test_retries_by_message_type(tmp_path: Path) -> None:
    """A registration may name one a type; what is no type is a ValueError."""
    async with small_bus(tmp_path, home=":memory:", recovery={"strategy": "immediate", "attempts": 2}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Moody(), tenant="acme", retry={"event": ONCE})
        for kind, runs in [("event", 1), ("command", 2)]:
            outcome = await (await desk.send("booker", type=kind)).outcome(timeout=5)
            assert outcome.attempts == runs
        with pytest.raises(ValueError, match="no type"):
            await bus.register("other", Moody(), tenant="acme", retry={"evnet": ONCE})


async def test_an_open_breaker_makes_messages_wait_and_requests_fail(tmp_path: Path) -> None:
    """No attempt is used while it is open; requests get breaker_open at once; one run tries, and then all go on."""
    handler = Moody()
    recovery = {"breaker_failures": 3, "breaker_seconds": 0.5}
    async with small_bus(tmp_path, recovery=recovery) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=ONCE)
        for _ in range(3):
            await (await desk.send("booker")).outcome(timeout=5)
        assert bus.status().breakers == {"booker": "open"}
        assert {agent.id: agent.breaker for agent in bus.agents()} == {"booker": "open", "desk": "closed"}
        receipts = [await desk.send("booker", {"n": n}) for n in range(5)]
        with pytest.raises(NotDelivered) as caught:
            await desk.request("booker", timeout=5)
        assert caught.value.code == "breaker_open"
        assert caught.value.outcome.state == "dead_lettered"
        assert {waiting.state for waiting in bus.queue()} == {"queued"}
        assert len(handler.got) == 3
        handler.down = False
        outcomes = [await receipt.outcome(timeout=5) for receipt in receipts]
        assert {(outcome.state, outcome.attempts) for outcome in outcomes} == {("delivered", 1)}
        assert bus.status().breakers == {}
        assert (await desk.request("booker", timeout=5)).payload == {"done": 1}
        assert adds_up(bus.status().accounting)


async def test_a_breaker_that_opens_fails_the_requests_that_wait(tmp_path: Path) -> None:
    """Whoever waits for a reply behind the runs that open it is told at once, not at its timeout."""
    door = Doorman()

    async def handler(message: Message) -> None:
        await door(message)
        raise ValueError

    async with small_bus(tmp_path, home=":memory:", recovery={"breaker_failures": 2, "breaker_seconds": 3600}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=ONCE)
        for _ in range(2):
            await desk.send("booker")
        asked = [asyncio.create_task(desk.request("booker", timeout=60)) for _ in range(3)]
        await until(lambda: bus.status().accounting["accepted"] == 5)
        door.open.set()
        for error in await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5):
            assert isinstance(error, NotDelivered)
            assert error.code == "breaker_open"
        assert len(door.got) == 2


async def test_a_replay_does_not_wait_for_the_breaker(tmp_path: Path) -> None:
    """Somebody who replays wants to know now whether it works again."""
    handler = Moody()
    async with small_bus(tmp_path, home=":memory:", recovery={"breaker_failures": 1, "breaker_seconds": 3600}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=ONCE)
        receipt = await desk.send("booker")
        assert (await receipt.outcome(timeout=5)).state == "dead_lettered"
        handler.down = False
        assert (await bus.replay(receipt.message_id)).ok
        assert (await bus.outcome(receipt.message_id, timeout=5)).state == "delivered"
        assert bus.status().breakers == {}


async def test_pause_resume_and_cancel(tmp_path: Path) -> None:
    """A pause holds back what failed and lets new messages run, after a restart too; each step is recorded."""
    handler = Moody()
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=Retry.immediate(attempts=9))
        await bus.pause_recovery()
        for name in "abc":
            await desk.send("booker", id=name)
        await until(lambda: len(bus.recoveries("pending")) == 3)
        await bus.cancel_recovery("desk/c")
        assert (await bus.outcome("desk/c")).state == "dead_lettered"
        assert state_of(bus, "desk/c") == "cancelled"
        assert bus.status().recovery_paused
        assert len(handler.got) == 3
    async with small_bus(tmp_path) as bus:
        handler.down = False
        await bus.register("booker", handler, tenant="acme")
        desk = await bus.agent("desk")
        assert (await (await desk.send("booker", id="new")).outcome(timeout=5)).state == "delivered"
        assert {recovery.state for recovery in bus.recoveries()} == {"pending"}
        await bus.resume_recovery()
        for name in "ab":
            outcome = await bus.outcome(f"desk/{name}", timeout=5)
            assert (outcome.state, outcome.attempts) == ("delivered", 2)
        assert not bus.status().recovery_paused
        with pytest.raises(KeyError):
            await bus.cancel_recovery("desk/a")
        assert adds_up(bus.status().accounting)
    events = [(record["event"], record["message_id"]) for record in log(tmp_path / "home", "recovery")]
    assert events == [("paused", None), ("cancelled", "desk/c"), ("resumed", None)]


async def test_one_message_is_paused_and_resumed(tmp_path: Path) -> None:
    """Paused it is parked, and does not expire; resumed it is decided anew at once, whenever it was due."""
    handler = Moody()
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=SLOW)
        await desk.send("booker", id="x")
        await desk.send("booker", id="y")
        await until(lambda: len(bus.recoveries("waiting")) == 2)
        assert bus.recoveries()[0].due is not None
        await bus.pause_recovery("desk/x")
        assert {waiting.message_id: waiting.state for waiting in bus.queue()} == {
            "desk/x": "parked",
            "desk/y": "retrying",
        }
        handler.down = False
        for name in "xy":
            await bus.resume_recovery(f"desk/{name}")
            outcome = await bus.outcome(f"desk/{name}", timeout=5)
            assert (outcome.state, outcome.attempts) == ("delivered", 2)
        for unknown in (bus.pause_recovery, bus.resume_recovery, bus.cancel_recovery):
            with pytest.raises(KeyError):
                await unknown("desk/x")


async def test_what_waits_for_its_retry_is_taken_up_after_a_restart(tmp_path: Path) -> None:
    """Attempts and the time of the next one survive."""
    handler = Moody()
    for first in (True, False):
        async with small_bus(tmp_path) as bus:
            desk = await bus.register("desk", tenant="acme")
            await bus.register("booker", handler, tenant="acme", retry=SLOW)
            if first:
                await desk.send("booker", id="x")
            else:
                [recovery] = bus.recoveries()
                assert (recovery.state, recovery.attempts, recovery.error) == ("waiting", 1, "ValueError")
                await bus.resume_recovery("desk/x")
            await until(lambda: bus.recoveries("waiting") and bus.recoveries()[-1].attempts == len(handler.got))
    assert [message.attempt for message in handler.got] == [1, 2]


async def test_retries_are_held_back_by_the_budget_of_the_bus(tmp_path: Path) -> None:
    """When much fails at once, retries come as the budget has them; none is lost for that."""
    handler = Moody()
    budget = {"budget_per_second": 0.001, "budget_ratio": 0.0, "breaker_failures": 1000}
    async with small_bus(tmp_path, home=":memory:", recovery=budget) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler, tenant="acme", retry=Retry.immediate(attempts=2))
        await asyncio.gather(*(desk.send("booker") for _ in range(12)))
        await until(lambda: len(handler.got) == 12 + 1)  # one can always be saved up
        await until(lambda: len(bus.recoveries("pending")) == 11)
        assert bus.status().accounting["retrying"] == 11
        assert adds_up(bus.status().accounting)


async def home_with_failures(tmp_path: Path) -> Path:
    """A home at rest: `desk/late` waits for an hour, `desk/parked` for somebody, three others are dead letters."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        for name, retry in [("slow", SLOW), ("manual", Retry.manual()), ("once", ONCE)]:
            await bus.register(name, Moody(), tenant="acme", retry=retry)
        await desk.send("slow", id="late")
        await desk.send("manual", id="parked")
        for name in ("d1", "d2", "d3"):
            await desk.send("once", id=name, type="event" if name == "d3" else "command")
        await until(lambda: bus.status().accounting["dead_lettered"] == 3 and len(bus.recoveries()) >= 2)
    return tmp_path / "home"


def test_the_command_on_a_home_at_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """List reads; pause, resume and cancel are recorded; what cannot be done is exit 1 with what to look at."""
    home = str(asyncio.run(home_with_failures(tmp_path)))

    def eab(*args: str) -> tuple[int, list[Any]]:
        capsys.readouterr()
        status = run_command(["--home", home, "--json", *args])
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    status, rows = eab("recovery", "list")
    assert (status, {row["message_id"]: row["state"] for row in rows}) == (
        0,
        {"desk/late": "waiting", "desk/parked": "pending"},
    )
    assert eab("recovery", "list", "--state", "pending")[1][0]["message_id"] == "desk/parked"
    assert eab("recovery", "list", "--state", "odd")[0] == 2
    assert eab("recovery", "pause")[0] == 0
    assert eab("status")[1][0]["recovery_paused"] is True
    assert eab("recovery", "resume")[0] == 0
    assert eab("recovery", "pause", "desk/late") == (0, [{"message_id": "desk/late", "event": "paused"}])
    assert {row["state"] for row in eab("recovery", "list")[1]} == {"pending"}
    assert eab("recovery", "cancel", "desk/late")[0] == 0
    assert eab("recovery", "cancel", "desk/late")[0] == 1
    assert eab("recovery", "resume", "nobody/x")[0] == 1
    assert "desk/late" in [row["message_id"] for row in eab("dlq", "list")[1]]
    assert eab("audit", "verify")[0] == 0


def test_many_dead_letters_are_chosen_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By recipient, type and code, at a rate; what goes on is named, and bad usage is exit 2."""
    home = str(asyncio.run(home_with_failures(tmp_path)))

    def eab(*args: str) -> tuple[int, list[Any]]:
        capsys.readouterr()
        status = run_command(["--home", home, "--json", *args])
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [row["message_id"] for row in eab("dlq", "list", "--type", "event")[1]] == ["desk/d3"]
    assert eab("dlq", "list", "--recipient", "slow")[1] == []
    for wrong in (["desk/d1", "--all"], [], ["desk/d1", "--rate", "1"], ["--all", "--rate", "0"]):
        assert eab("dlq", "replay", *wrong)[0] == 2
    assert eab("dlq", "replay", "--all", "--recipient", "nobody") == (0, [])
    status, rows = eab("dlq", "replay", "--all", "--type", "command", "--rate", "1000")
    assert (status, [(row["message_id"], row["state"]) for row in rows]) == (
        0,
        [("desk/d1", "accepted"), ("desk/d2", "accepted")],
    )
    assert [row["message_id"] for row in eab("dlq", "list")[1]] == ["desk/d3"]
    assert {row["state"] for row in eab("queue", "list")[1]} == {"retrying", "parked", "queued"}


def test_what_is_replayed_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, and a last one that says no more than is so; what is refused is counted as staying."""
    home = str(asyncio.run(home_with_failures(tmp_path)))
    capsys.readouterr()
    assert run_command(["--home", home, "dlq", "replay", "--all", "--type", "command"]) == 0
    assert capsys.readouterr().out == "accepted: desk/d1\naccepted: desk/d2\n2 of 2 go on\n"
    write_constitution(tmp_path / "others", {"no": 'admit if input.message.type == "command"'})
    assert run_command(["--home", home, "policy", "activate", str(tmp_path / "others")]) == 0
    capsys.readouterr()
    assert run_command(["--home", home, "dlq", "replay", "--all"]) == 1
    told = "refused: desk/d3 (policy_denied)\n0 of 1 go on; 1 stays a dead letter\n"
    assert capsys.readouterr().out == told
    assert run_command(["--home", home, "dlq", "replay", "--all", "--recipient", "nobody"]) == 0
    assert capsys.readouterr().out == "there are no such dead letters\n"


async def test_an_interrupted_replay_leaves_the_rest(tmp_path: Path) -> None:
    """Beside a running bus each replay is told as it comes; after Ctrl-C no more are, and the bus does not go on."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        handler = Moody()
        await bus.register("booker", handler, tenant="acme", retry=ONCE)
        for n in range(3):
            await (await desk.send("booker", id=f"d{n}")).outcome(timeout=5)
        handler.down = False
        words = ["--home", str(tmp_path / "home"), "dlq", "replay", "--all", "--rate", "0.01"]
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "enhanced_agent_bus", *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert command.stdout is not None
        assert await command.stdout.readline() == b"accepted: desk/d0\n"
        command.send_signal(signal.SIGINT)
        told, _ = await command.communicate()
        assert (command.returncode, told) == (130, b"1 of 3 goes on; 2 stay dead letters\n")
        assert (await bus.outcome("desk/d0", timeout=5)).state == "delivered"
        assert [letter.message_id for letter in bus.dead_letters()] == ["desk/d1", "desk/d2"]
        assert len(handler.got) == 4


async def test_agents_show_their_breaker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`eab agents` says how the breaker of each agent stands, with a running bus and without."""
    home = ["--home", str(tmp_path / "home")]
    async with small_bus(tmp_path, recovery={"breaker_failures": 1, "breaker_seconds": 3600}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Moody(), tenant="acme", retry=ONCE)
        await (await desk.send("booker")).outcome(timeout=5)
        assert await asyncio.to_thread(run_command, [*home, "agents"]) == 0
        head, booker, other = capsys.readouterr().out.splitlines()
        assert (head.split()[-1], booker.split()[-1], other.split()[-1]) == ("breaker", "open", "closed")
    assert run_command([*home, "--json", "agents"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["id"]: row["breaker"] for row in rows} == {"booker": "closed", "desk": "closed"}


def test_a_dead_letter_is_shown_with_its_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each decision, each end of a run and what an operator did, oldest first: when, what, why, attempt and code."""

    async def scenario() -> None:
        async with small_bus(tmp_path) as bus:
            desk = await bus.register("desk", tenant="acme")
            await bus.register("booker", Moody(), tenant="acme", retry=Retry.immediate(attempts=2))
            await (await desk.send("booker", {"card": "4111"}, id="x")).outcome(timeout=5)
            await bus.register("other", Moody(), tenant="acme", retry=SLOW)
            await desk.send("other", id="y")
            await until(lambda: bus.status().accounting["retrying"] == 1)
            await bus.cancel_recovery("desk/y")
            await bus.activate(write_constitution(tmp_path / "strict", {"no": "admit if false"}, revision="2"))
            assert (await bus.replay("desk/x")).code == "policy_denied"

    asyncio.run(scenario())
    home = ["--home", str(tmp_path / "home")]

    def history(message_id: str) -> list[tuple[Any, ...]]:
        capsys.readouterr()
        assert run_command([*home, "--json", "dlq", "show", message_id]) == 0
        found = json.loads(capsys.readouterr().out)
        records = log(tmp_path / "home", message_id=message_id)
        assert [step["at"] for step in found["history"]] == [record["at"] for record in records]
        return [tuple(step[name] for name in ("what", "why", "attempt", "code")) for step in found["history"]]

    assert history("desk/x") == [
        ("allow", "send", 1, None),
        ("failed", "ValueError", 1, "handler_failed"),
        ("allow", "retry", 2, None),
        ("dead_lettered", "ValueError", 2, "attempts_exhausted"),
        ("refuse", "replay", 3, "policy_denied"),
    ]
    cancelled = history("desk/y")
    assert [step[:2] for step in cancelled[:2]] == [("allow", "send"), ("failed", "ValueError")]
    assert ("cancelled", "operator", None, None) in cancelled
    assert run_command([*home, "dlq", "show", "desk/x"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[1:] for line in text.splitlines() if "policy_denied" in line] == [
        ["refuse", "replay", "3", "policy_denied"]
    ]
    assert "4111" not in text
