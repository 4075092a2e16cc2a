"""The bus without await: the same names and values, from any thread, with the causes kept, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest

import enhanced_agent_bus
from enhanced_agent_bus import (
    BusClosed,
    BusError,
    ConfigInvalid,
    ConstitutionRejected,
    Drained,
    Message,
    NotDelivered,
    Refused,
    RequestTimeout,
    Retry,
    StoreLocked,
    sync,
)
from tests.developer import PATIENT, adds_up, log
from tests.support import write_constitution

#: What the async bus has for its agents and for opening, and no program calls.
INNER: Final = frozenset({"approve", "ask", "dispatch", "fan_out", "reject", "start", "under_one", "unregister"})
#: Holds what is above 100, until a boss has approved it, and refuses what is below 0.
LARGE: Final = {
    "positive": "admit if input.message.payload.n >= 0",
    "large": 'admit if true\n\nhold contains {"approvers": 1, "roles": ["boss"], "expires_in": 3600} if '
    "input.message.payload.n > 100",
}


def small(folder: Path, rules: Mapping[str, str] | None = None, home: str = "home", **settings: Any) -> sync.AgentBus:
    """The bus of `folder/home` under a constitution of these rules; by default one that admits everything."""
    if rules is not None or not (folder / "policies").exists():
        write_constitution(folder / "policies", rules)
    return sync.open_bus(folder / home, constitution=folder / "policies", policy=PATIENT, **settings)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """No test leaves the thread of a bus behind."""
    yield
    assert loops() == []


def loops() -> list[threading.Thread]:
    """The threads on which buses run."""
    return [thread for thread in threading.enumerate() if thread.name == "eab-loop"]


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def answer(message: Message) -> dict[str, Any]:
    """A handler that returns what it got."""
    return {"n": 0, "got": message.payload}


# --- the same names ------------------------------------------------------------------------------------------------


def public(kind: type) -> dict[str, Any]:
    """The public functions and properties of a class, with what it inherits."""
    return {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["Agent", "AgentBus", "Receipt"])
def test_the_names_are_the_same(name: str) -> None:
    """Each public method of the async class is here, and no other, with the same parameters, defaults and types."""
    here, there = public(getattr(sync, name)), public(getattr(enhanced_agent_bus, name))
    for inner in INNER if name == "AgentBus" else ():
        del there[inner]
    assert set(here) == set(there)
    for verb, function in there.items():
        assert isinstance(here[verb], type(function)), verb
        if inspect.isfunction(function):
            assert inspect.signature(here[verb]) == inspect.signature(function), verb
            assert not inspect.iscoroutinefunction(here[verb]), verb
            assert here[verb].__doc__, verb


def test_a_bus_is_opened_with_the_same_words() -> None:
    """`open_bus` takes what the async one takes."""
    here, there = inspect.signature(sync.open_bus), inspect.signature(enhanced_agent_bus.open_bus)
    assert here.parameters == there.parameters


def test_a_receipt_has_the_same_fields() -> None:
    """A receipt is one of the async bus but for its outcome, which blocks."""
    names = [part.name for part in fields(enhanced_agent_bus.Receipt)]
    assert [part.name for part in fields(sync.Receipt)][: len(names)] == names
    assert issubclass(sync.Receipt, enhanced_agent_bus.Receipt)


# --- the whole road --------------------------------------------------------------------------------------------------


def test_a_message_is_sent_decided_recorded_and_delivered(tmp_path: Path) -> None:
    """Send, request and publish, to a handler in a thread and to one on the loop, with their outcomes."""
    where: dict[str, str] = {}

    def in_a_thread(message: Message) -> dict[str, Any]:
        where["thread"] = threading.current_thread().name
        return answer(message)

    async def on_the_loop(message: Message) -> dict[str, Any]:
        where["loop"] = threading.current_thread().name
        return answer(message)

    with small(tmp_path, LARGE) as bus:
        desk = bus.register("desk", tenant="acme", roles=["planner"])
        bus.register("thread", in_a_thread, tenant="acme", topics=["trips"], capabilities=["flights"])
        bus.register("loop", on_the_loop, tenant="acme", topics=["trips"])
        receipt = desk.send("thread", {"n": 7}, id="order-7")
        assert (receipt.ok, receipt.state, receipt.message_id) == (True, "accepted", "desk/order-7")
        outcome = receipt.outcome(timeout=10)
        assert outcome.state == "delivered"
        assert outcome.reply is not None
        assert bus.outcome("desk/order-7", 10).state == "delivered"
        assert desk.request("loop", {"n": 8}, timeout=10).payload == {"n": 0, "got": {"n": 8}}
        assert desk.request(capability="flights", payload={"n": 9}, timeout=10).payload == {"n": 0, "got": {"n": 9}}
        both = desk.publish("trips", {"n": 10})
        assert {one.outcome(10).state for one in both} == {"delivered"}
        assert {one.recipient for one in both} == {"thread", "loop"}
        bus.wait_idle(10)
        assert adds_up(bus.status().accounting)
        assert sorted(info.id for info in bus.agents()) == ["desk", "loop", "thread"]
        assert (desk.id, desk.tenant, repr(desk)) == ("desk", "acme", "<Agent desk of acme>")
        assert desk.constitution == bus.status().constitution == bus.status_constitution() == receipt.constitution
        assert bus.security_state() == bus.status().security_state
    assert where["thread"].startswith("eab-handler")
    assert where["loop"] == "eab-loop"
    assert [record["verdict"] for record in log(tmp_path / "home", "decision", message_id="desk/order-7")] == ["allow"]


def test_what_operators_do(tmp_path: Path) -> None:
    """Dead letters, approvals, facts, activation, shadow and registrations, each through its method."""

    def fails(message: Message) -> None:
        raise LookupError(message.id)

    with small(tmp_path, LARGE) as bus:
        desk = bus.register("desk", tenant="acme", roles=["boss"])
        boss = bus.register("boss", tenant="acme", roles=["boss"])
        booker = bus.register("booker", fails, tenant="acme", retry=Retry.exponential(attempts=1))
        assert desk.send("booker", {"n": 1}, id="lost").outcome(10).state == "dead_lettered"
        assert [letter.message_id for letter in bus.dead_letters()] == ["desk/lost"]
        again = bus.replay("desk/lost")
        assert isinstance(again, sync.Receipt)
        assert again.ok
        until(bus.dead_letters)
        bus.discard("desk/lost", reason="known")
        assert bus.dead_letters() == []

        held = desk.send("booker", {"n": 500})
        assert [waiting.message_id for waiting in bus.held()] == [held.message_id]
        assert boss.approve(held.message_id, comment="fine").state == "accepted"
        assert held.outcome(10).state == "dead_lettered"
        other = desk.send("booker", {"n": 500})
        assert boss.reject(other.message_id, reason="too much").state == "refused"
        with pytest.raises(KeyError):
            boss.approve(other.message_id)

        bus.put_fact("agent", "desk", "limit", 3)
        assert [fact.value for fact in bus.facts("agent", "desk")] == [3]
        bus.remove_fact("agent", "desk", "limit")
        assert bus.facts() == []
        bus.note_access("test", "nothing")

        candidate = write_constitution(tmp_path / "candidate", LARGE, revision="2")
        assert bus.shadow() is None
        assert bus.start_shadow(candidate).revision == 2
        assert bus.shadow() is not None
        assert bus.stop_shadow().seen == 0
        assert bus.activate(candidate, percent=50).percent == 50
        assert bus.roll_back().revision == 1
        assert bus.activate(candidate).revision == bus.status().revision == 2

        booker.unregister()
        with pytest.raises(KeyError):
            bus.agent("booker")
        waits = desk.send("boss", {"n": 1})
        assert [waiting.message_id for waiting in bus.queue()] == [waits.message_id]
    with small(tmp_path) as bus:
        assert bus.agent("desk").send("boss", {"n": 2}).ok


def test_the_errors_are_the_same(tmp_path: Path) -> None:
    """No, no reply, too late, not there: the exceptions of the async bus; a raised receipt is one without await."""
    goes_on = threading.Event()

    def slow(_message: Message) -> None:
        goes_on.wait()

    with small(tmp_path, LARGE) as bus:
        desk = bus.register("desk", tenant="acme")
        bus.register("nothing", lambda _message: None, tenant="acme")
        bus.register("slow", slow, tenant="acme")
        with pytest.raises(Refused) as refused:
            desk.request("nothing", {"n": -1}, timeout=10)
        assert isinstance(refused.value.receipt, sync.Receipt)
        assert refused.value.code == refused.value.receipt.code == "policy_denied"
        with pytest.raises(Refused):
            desk.send("nothing", {"n": -1}).raise_for_refusal()
        with pytest.raises(NotDelivered):
            desk.request("nothing", {"n": 1}, timeout=10)
        with pytest.raises(RequestTimeout):
            desk.request("slow", {"n": 1}, timeout=0.01)
        with pytest.raises(TimeoutError):
            desk.send("slow", {"n": 1}).outcome(timeout=0.01)
        with pytest.raises(TimeoutError):
            bus.wait_idle(0.01)
        with pytest.raises(KeyError):
            bus.outcome("desk/unknown")
        with pytest.raises(TypeError):
            desk.send()
        with pytest.raises(ValueError, match="agent id"):
            bus.register("No Name", tenant="acme")
        goes_on.set()


def test_many_threads_use_one_bus(tmp_path: Path) -> None:
    """Each of many threads gets the reply to its own message."""
    with small(tmp_path) as bus:
        bus.register("echo", answer, tenant="acme", concurrency=4)
        desk = bus.register("desk", tenant="acme")

        def ask(n: int) -> object:
            return desk.request("echo", {"n": n}, timeout=60).payload["got"]

        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(ask, range(100))) == [{"n": n} for n in range(100)]
        bus.wait_idle(10)
        assert bus.status().accounting["delivered"] == 200


# --- inside a handler ------------------------------------------------------------------------------------------------


def test_a_call_in_a_plain_handler_is_a_consequence(tmp_path: Path) -> None:
    """What a `def` handler sends has its message as cause, one hop more, its conversation, and no more time than it."""
    got: dict[str, Message] = {}

    with small(tmp_path) as bus:

        def first(message: Message) -> dict[str, Any]:
            got["first"] = message
            return {"second": middle.request("second", timeout=10).payload}

        def second(message: Message) -> dict[str, Any]:
            got["second"] = message
            return {"state": middle.send("last").state, "is": bus.status().running}

        async def last(message: Message) -> None:
            got["last"] = message

        middle = bus.register("first", first, tenant="acme")
        bus.register("second", second, tenant="acme")
        bus.register("last", last, tenant="acme")
        desk = bus.register("desk", tenant="acme")
        reply = desk.request("first", timeout=10, conversation="talk")
        assert reply.payload == {"second": {"state": "accepted", "is": True}}
        bus.wait_idle(10)
    assert [got[name].hops for name in ("first", "second", "last")] == [0, 1, 2]
    assert got["second"].cause == got["first"].id
    assert got["last"].cause == got["second"].id
    assert {message.conversation for message in got.values()} == {"talk"}
    assert got["last"].expires_at <= got["second"].expires_at <= got["first"].expires_at


def test_a_call_in_a_handler_on_the_loop_is_an_error(tmp_path: Path) -> None:
    """It would wait for itself: it raises, says what to do, and the bus goes on. In a thread it works, with cause."""
    raised: list[str] = []
    got: list[Message] = []

    with small(tmp_path) as bus:

        async def on_the_loop(message: Message) -> dict[str, str]:
            for call in (lambda: desk.send("last"), bus.status, bus.queue, bus.close):
                with pytest.raises(RuntimeError) as error:
                    call()
                raised.append(str(error.value))
            receipt = await asyncio.to_thread(desk.send, "last")
            return {"state": receipt.state, "cause": message.id}

        desk = bus.register("desk", tenant="acme")
        bus.register("on-the-loop", on_the_loop, tenant="acme")
        bus.register("last", got.append, tenant="acme")
        reply = desk.request("on-the-loop", timeout=10)
        assert reply.payload["state"] == "accepted"
        bus.wait_idle(10)
    assert len(set(raised)) == 1
    assert "plain def" in raised[0]
    assert [(message.cause, message.hops) for message in got] == [(reply.cause, 1)]


def test_a_plain_handler_may_close_the_bus(tmp_path: Path) -> None:
    """Closing waits for what is under way, and not for the handler that closes."""
    closed: list[Drained] = []
    with small(tmp_path) as bus:
        bus.register("closer", lambda _message: closed.append(bus.close()), tenant="acme")
        bus.register("desk", tenant="acme").send("closer")
        until(lambda: closed)
        assert closed == [bus.close()]


# --- closing ---------------------------------------------------------------------------------------------------------


def test_after_closing_every_call_raises(tmp_path: Path) -> None:
    """Closed is closed: each method raises BusClosed, and closing again reports the same."""
    with small(tmp_path) as bus:
        desk = bus.register("desk", tenant="acme")
        kept = desk.send("desk")
        drained = bus.close(timeout=0)
        assert drained == Drained(delivered=0, kept=1, dead_lettered=0)
        assert loops() == []
        calls = 0
        for holder in (bus, desk, kept):
            for verb, function in public(type(holder)).items():
                if inspect.isfunction(function) and verb not in ("close", "raise_for_refusal"):
                    wanted = [
                        p.name
                        for p in inspect.signature(function).parameters.values()
                        if p.default is p.empty and p.name != "self"
                    ]
                    with pytest.raises(BusClosed):
                        getattr(holder, verb)(**dict.fromkeys(wanted, "x"))
                    calls += 1
        assert calls > 25
        assert bus.close() == bus.close(timeout=5) == drained
    assert bus.close() == drained


def test_many_threads_may_close_and_wait(tmp_path: Path) -> None:
    """Whoever waits when the bus is closed gets BusClosed, and everybody who closes gets the same report."""
    with small(tmp_path) as bus, ThreadPoolExecutor(16) as threads:
        desk = bus.register("desk", tenant="acme")
        kept = desk.send("desk")
        waiting: list[Future[Any]] = [threads.submit(kept.outcome) for _ in range(4)]
        waiting.extend(threads.submit(desk.request, "desk", timeout=60) for _ in range(4))
        until(lambda: len(bus.queue()) == 5)
        reports = {threads.submit(bus.close).result() for _ in range(4)}
        assert reports == {Drained(delivered=0, kept=5, dead_lettered=0)}
        for future in waiting:
            assert isinstance(future.exception(), BusClosed)


def test_calls_that_race_with_closing_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A call that comes while the loop ends is answered or raises BusClosed; none waits for ever."""
    for _ in range(5):
        with ThreadPoolExecutor(8) as threads:
            bus = small(tmp_path, home=":memory:")

            def look(bus: sync.AgentBus = bus) -> BusError:
                while True:
                    try:
                        bus.status()
                    except BusError as error:
                        return error

            looking = [threads.submit(look) for _ in range(8)]
            bus.close()
            assert {type(future.result(30)) for future in looking} == {BusClosed}
    gc.collect()
    assert capfd.readouterr().err == ""


def test_trouble_in_the_program_keeps_what_waits(tmp_path: Path) -> None:
    """An exception in the `with` block comes out of it, and the bus is closed at once."""

    def in_trouble() -> None:
        with small(tmp_path) as bus:
            bus.register("desk", tenant="acme").send("desk")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_trouble()
    assert [record["kept"] for record in log(tmp_path / "home", "closed")] == [1]


def test_a_bus_that_does_not_open_leaves_nothing(tmp_path: Path) -> None:
    """What opening raises is what the async one raises, and no thread or lock stays."""
    with pytest.raises(ConfigInvalid, match="constitution"):
        sync.open_bus(tmp_path / "home")
    assert loops() == []
    write_constitution(tmp_path / "bad", {"broken": "admit if {"})
    with pytest.raises(ConstitutionRejected):
        sync.open_bus(tmp_path / "home", constitution=tmp_path / "bad")
    assert loops() == []
    with small(tmp_path) as bus:
        with pytest.raises(StoreLocked):
            small(tmp_path)
        assert len(loops()) == 1
        assert bus.status().running


# --- whole programs --------------------------------------------------------------------------------------------------


def program(folder: Path, text: str) -> str:
    """What a program of a user prints; anything on standard error, or another exit status than 0, is a failure."""
    write_constitution(folder / "policies")
    head = "import os, signal, sys, threading\nfrom enhanced_agent_bus import BusClosed, Drained, sync\n"
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", head + inspect.cleandoc(text)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_ctrl_c_ends_the_wait_and_what_was_waited_for(tmp_path: Path) -> None:
    """The interrupted call is cancelled on the loop; the bus is as good as before."""
    printed = program(
        tmp_path,
        """
        import asyncio
        def interrupt(message):
            os.kill(os.getpid(), signal.SIGINT)
        async def tasks(message):
            return {"tasks": [task.get_coro().__qualname__ for task in asyncio.all_tasks()]}
        with sync.open_bus("home", constitution="policies") as bus:
            desk = bus.register("desk", tenant="acme")
            bus.register("nobody", tenant="acme")
            bus.register("interrupt", interrupt, tenant="acme")
            bus.register("tasks", tasks, tenant="acme")
            parked = desk.send("nobody")
            try:
                desk.send("interrupt")
                parked.outcome()
            except KeyboardInterrupt:
                print("interrupted")
            print("Receipt.outcome" in desk.request("tasks", timeout=10).payload["tasks"])
        """,
    )
    assert printed == "interrupted\nFalse\n"


def test_ctrl_c_while_opening_leaves_nothing(tmp_path: Path) -> None:
    """Opening is cancelled, and the home can be opened at once."""
    printed = program(
        tmp_path,
        """
        from enhanced_agent_bus.clock import SystemClock
        class Interrupting(SystemClock):
            def boot(self):
                os.kill(os.getpid(), signal.SIGINT)
                return super().boot()
        bus = None
        try:
            bus = sync.open_bus("home", constitution="policies", clock=Interrupting())
            threading.Event().wait()
        except KeyboardInterrupt:
            if bus is not None:  # it was quicker than the signal
                bus.close()
            print("interrupted", threading.active_count())
        with sync.open_bus("home", constitution="policies") as bus:
            print(bus.status().running)
        """,
    )
    assert printed == "interrupted 1\nTrue\n"


def test_a_bus_that_nobody_closed_is_closed_at_the_end(tmp_path: Path) -> None:
    """A program that ends with the bus open ends quietly: what waits is kept, and the log says that it was closed.

    A handler that waits for the bus then is told, and no thread of a pool holds the program up.
    """
    program(
        tmp_path,
        """
        begun = threading.Event()
        def waits(message):
            begun.set()
            desk.send("desk").outcome()
        bus = sync.open_bus("home", constitution="policies")
        desk = bus.register("desk", tenant="acme")
        bus.register("echo", lambda message: {"is": desk.send("desk").state}, tenant="acme")
        print(desk.request("echo", timeout=10).payload)
        bus.wait_idle(10)
        bus.register("waits", waits, tenant="acme")
        desk.send("waits")
        begun.wait()
        """,
    )
    assert log(tmp_path / "home", "closed")
    with small(tmp_path) as bus:
        assert "waits" in {waiting.recipient for waiting in bus.queue()}
        assert adds_up(bus.status().accounting)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_in_a_forked_child_the_bus_is_closed(tmp_path: Path) -> None:
    """Calls raise BusClosed there instead of waiting for a thread that is the parent's, and its end harms nothing."""
    printed = program(
        tmp_path,
        """
        with sync.open_bus("home", constitution="policies") as bus:
            desk = bus.register("desk", tenant="acme")
            bus.register("echo", lambda message: {"a": 1}, tenant="acme")
            child = os.fork()
            if child == 0:
                try:
                    desk.send("echo")
                except BusClosed as closed:
                    sys.exit(0 if bus.close() == Drained(0, 0, 0) else 1)
                sys.exit(1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            print(desk.request("echo", timeout=10).payload)
        """,
    )
    assert printed == "0\n{'a': 1}\n"
