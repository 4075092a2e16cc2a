"""Workflows, as someone uses them who has read docs/howto/developer/workflows.md and no code."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Agent, AgentBus, BusClosed, BusError, Message, Refused, Retry
from enhanced_agent_bus.workflow import Call, Failure, SoFar, Step, Workflow
from tests.developer import adds_up, ids, log, small_bus, until
from tests.support import ADMIT_ALL, write_constitution

PROGRAM = Path(__file__).with_name("workflow_program.py")
ROOT = PROGRAM.parents[2]

BROKEN = ValueError("no")


class Team:
    """One agent that does every step, and notes what begins and ends; `answers` are by message id without `desk/`."""

    def __init__(self, answers: dict[str, Any] | None = None) -> None:
        self.answers = answers or {}
        self.got: list[Message] = []
        self.events: list[str] = []

    async def __call__(self, message: Message) -> Any:
        name = message.id.removeprefix("desk/")
        self.got.append(message)
        self.events.append(f"begin {name}")
        try:
            answer = self.answers.get(name, {"did": name})
            if isinstance(answer, asyncio.Event):
                await answer.wait()
                answer = {"did": name}
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.events.append(f"end {name}")

    @property
    def did(self) -> list[str]:
        """What has begun, in order, without the name of the sender."""
        return [message.id.removeprefix("desk/") for message in self.got]


async def hire(bus: AgentBus, team: Team | None = None) -> tuple[Agent, Team]:
    """The agent that runs workflows, and the one that does the steps."""
    team = team or Team()
    once = Retry.exponential(1)
    await bus.register("team", team, tenant="acme", capabilities=["work"], concurrency=8, retry=once)
    return await bus.register("desk", tenant="acme"), team


def chain(**last: Any) -> Workflow:
    """Three steps one after the other, each with a compensation; what is said goes for the last."""
    given: dict[str, Any] = {"to": "team", "after": ["two"], "undo": Call(to="team")} | last
    return Workflow(
        "chain",
        [
            Step("one", to="team", undo=Call()),
            Step("two", to="team", after=["one"], undo=Call()),
            Step("three", **given),
        ],
    )


def diamond(**more: Any) -> Workflow:
    """A step, two side by side, and one after both."""
    return Workflow(
        "diamond",
        [
            Step("last", to="team", after=["left", "right"], undo=Call()),
            Step("left", to="team", after=["first"], undo=Call()),
            Step("right", capability="work", after=["first"], undo=Call()),
            Step("first", to="team", undo=Call()),
        ],
        **more,
    )


# --- going forward ----------------------------------------------------------------------------------------------------


async def test_a_step_begins_when_those_before_it_are_done_and_no_later(tmp_path: Path) -> None:
    """Declared in any order: what waits for nothing runs side by side, and the last one after both."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        left, right = asyncio.Event(), asyncio.Event()
        desk, team = await hire(bus, Team({"w/left": left, "w/right": right}))
        run = asyncio.create_task(diamond().run(bus, desk, id="w"))
        await until(lambda: len(team.got) == 3)
        assert team.events[:2] == ["begin w/first", "end w/first"]
        assert set(team.did[1:]) == {"w/left", "w/right"}, "both are under way at once"
        left.set()
        await until(lambda: "end w/left" in team.events)
        right.set()
        result = await run
        assert team.events[-3:] == ["end w/right", "begin w/last", "end w/last"]
    assert (result.id, result.state, result.failed, result.undone) == ("w", "completed", (), ())
    assert result.replies == {name: {"did": f"w/{name}"} for name in ("first", "left", "right", "last")}


async def test_what_a_policy_and_a_handler_see_of_a_step(tmp_path: Path) -> None:
    """Each is a message of its own: decided, in the conversation of the run, with headers that name its place."""
    async with small_bus(tmp_path) as bus:
        desk, team = await hire(bus, Team({"w/three": BROKEN}))
        await chain().run(bus, desk, id="w")
        assert {message.conversation for message in team.got} == {"w"}
        assert {message.type for message in team.got} == {"task_request"}
        headers = {message.id: message.headers for message in team.got}
        assert headers["desk/w/two"] == {"workflow": "chain", "step": "two"}
        assert headers["desk/w/two/undo"] == {"workflow": "chain", "step": "two", "undo": "true"}
    for message_id in headers:
        (decision,) = log(tmp_path / "home", "decision", message_id=message_id)
        assert (decision["verdict"], decision["conversation"]) == ("allow", "w")


async def test_a_payload_is_made_of_the_input_and_of_what_came_before(tmp_path: Path) -> None:
    """A function sees the replies of the steps before its own, near and far; its compensation that of the step too."""
    seen: dict[str, SoFar] = {}

    def payload(name: str) -> Callable[[SoFar], dict[str, Any]]:
        def make(so_far: SoFar) -> dict[str, Any]:
            seen[name] = so_far
            return {"for": so_far.input["ticket"]}

        return make

    steps = [
        Step("a", to="team", payload={"fixed": 1}),
        Step("b", to="team", after=["a"], payload=payload("b"), undo=Call(payload=payload("b undone"))),
        Step("c", to="team", after=["a"]),
        Step("d", to="team", after=["b"], payload=payload("d")),
        Step("e", to="team", after=["c", "d"], accept=lambda _reply: False),
    ]
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk, team = await hire(bus)
        result = await Workflow("w", steps).run(bus, desk, {"ticket": 7}, id="w")
    assert result.state == "compensated"
    assert {name: sorted(so_far.replies) for name, so_far in seen.items()} == {
        "b": ["a"], "d": ["a", "b"], "b undone": ["a", "b"]
    }  # fmt: skip
    payloads = {message.id: message.payload for message in team.got}
    assert (payloads["desk/w/a"], payloads["desk/w/d"], payloads["desk/w/e"]) == ({"fixed": 1}, {"for": 7}, {})


async def test_a_handler_that_returns_nothing_has_done_its_step(tmp_path: Path) -> None:
    """Delivered is done: without a reply its payload is empty, for the steps behind it and in the result."""
    async with small_bus(tmp_path) as bus:
        desk, team = await hire(bus, Team({"w/two": None}))
        flow = chain(payload=lambda so_far: {"had": dict(so_far.replies)})
        result = await flow.run(bus, desk, id="w")
        assert (result.state, result.replies["two"]) == ("completed", {})
        assert team.got[-1].payload == {"had": {"one": {"did": "w/one"}, "two": {}}}
        assert await flow.run(bus, desk, id="w") == result


async def test_two_runs_at_once_are_not_mixed_up(tmp_path: Path) -> None:
    """Runs of one workflow side by side each have their own messages; two calls with one id share one run."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk, team = await hire(bus, Team({"b/three": BROKEN}))
        a, b, *same = await asyncio.gather(*(chain().run(bus, desk, id=name) for name in ("a", "b", "c", "c")))
        assert (a.state, b.state) == ("completed", "compensated")
        assert [failure.step for failure in b.failed] == ["three"]
        assert same[0] == same[1]
        assert len(team.did) == len(set(team.did)) == 3 + 6 + 3


# --- declared or called wrongly ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "needs steps"),
        ([Step("a", to="x"), Step("a", to="y")], "of its own"),
        ([Step("a", to="x", after=["b"])], "no step is named b"),
        ([Step("a", to="x", after=["a"])], "wait for each other: a → a"),
        ([Step("a", to="x", after=["c"]), Step("b", to="x", after=["a"]), Step("c", to="x", after=["b"])], " → "),
        ([Step("a")], "exactly one of"),
        ([Step("a", to="x", capability="y")], "exactly one of"),
        ([Step("a", to="x", undo=Call(to="x", capability="y"))], "one of"),
        ([Step("A/b", to="x")], "cannot be named"),
        ([Step("undo", to="x")], "cannot be named"),
        ([Step("a", to="x", timeout=0)], "more than 0"),
        ([Step("a", to="x", undo=Call(timeout=-1))], "more than 0"),
    ],
)
def test_a_workflow_that_cannot_be_is_refused_when_it_is_declared(steps: list[Step], said: str) -> None:
    """A circle, an unknown or doubled name, no recipient or two, no time: ValueError, before anything is sent."""
    with pytest.raises(ValueError, match=said):
        Workflow("w", steps)


@pytest.mark.parametrize("times", [{"timeout": 0}, {"settle": 0}])
def test_a_workflow_has_time(times: dict[str, float]) -> None:
    """No time at all for the whole is a mistake, not no limit."""
    with pytest.raises(ValueError, match="more than 0"):
        Workflow("w", [Step("a", to="x")], **times)


@pytest.mark.parametrize("name", ["", "no spaces", "/a", "é", "x" * 120])
async def test_an_id_that_no_message_could_have_starts_nothing(tmp_path: Path, name: str) -> None:
    """ValueError at once, and not at the step whose id would be the first to be too long."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk, team = await hire(bus)
        with pytest.raises(ValueError, match="the id of a run"):
            await chain().run(bus, desk, id=name)
        assert team.got == []


# --- failing, and going back ------------------------------------------------------------------------------------------

NO_SECRETS = {"no_secrets": "admit if not input.message.payload.secret"}


@pytest.mark.parametrize(
    ("answer", "last", "code", "undone"),
    [
        ({"did": "it"}, {"payload": {"secret": 1}}, "policy_denied", ["two", "one"]),
        ({"did": "it"}, {"payload": {"not JSON": {1, 2}}}, "malformed", ["two", "one"]),
        ({"did": "it"}, {"to": "nobody"}, "recipient_unknown", ["two", "one"]),
        (ValueError("broken"), {}, "attempts_exhausted", ["three", "two", "one"]),
        (None, {"accept": bool}, "no_reply", ["three", "two", "one"]),
        ({"secret": 1}, {}, "reply_refused", ["three", "two", "one"]),
        ({"ok": False}, {"accept": lambda reply: reply["ok"]}, "not_accepted", ["three", "two", "one"]),
        ({"did": "it"}, {"to": "absent", "timeout": 0.2}, "request_timeout", ["two", "one"]),
    ],
)
async def test_each_failure_and_what_is_taken_back(
    tmp_path: Path, answer: Any, last: dict[str, Any], code: str, undone: list[str]
) -> None:
    """Whatever fails is named with its code; steps whose handler ran are taken back, the last one first."""
    async with small_bus(tmp_path, NO_SECRETS, home=":memory:") as bus:
        desk, team = await hire(bus, Team({"w/three": answer}))
        await bus.register("absent", tenant="acme")
        result = await chain(**last).run(bus, desk, id="w")
        assert result.state == "compensated"
        assert [(failure.step, failure.code) for failure in result.failed] == [("three", code)]
        assert list(result.undone) == undone
        assert [name for name in team.did if name.endswith("undo")] == [f"w/{name}/undo" for name in undone]
        if code == "policy_denied":
            assert [reason.rule for reason in result.failed[0].reasons] == ["no_secrets"]


async def test_nothing_to_take_back(tmp_path: Path) -> None:
    """Steps without a compensation are left as they are, and the result says what failed."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk, team = await hire(bus, Team({"w/b": BROKEN}))
        steps = [Step("a", to="team"), Step("b", to="team", after=["a"]), Step("c", to="team", after=["b"])]
        result = await Workflow("w", steps).run(bus, desk, id="w")
        assert (result.state, result.undone, result.failed) == (
            "compensated",
            (),
            (Failure("b", "attempts_exhausted"),),
        )
        assert team.did == ["w/a", "w/b"]


async def test_what_runs_beside_a_failure_may_end_first(tmp_path: Path) -> None:
    """After a failure no step begins; compensations wait for those under way, and are sent to who did the step."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        right = asyncio.Event()
        desk, team = await hire(bus, Team({"w/left": BROKEN, "w/right": right}))
        run = asyncio.create_task(diamond().run(bus, desk, id="w"))
        await until(lambda: "end w/left" in team.events and "begin w/right" in team.events)
        assert not [name for name in team.did if name.endswith("undo")]
        right.set()
        result = await run
        assert result.failed == (Failure("left", "attempts_exhausted"),)
        assert result.undone[-1] == "first"
        assert set(result.undone) == {"left", "right", "first"}
        assert "w/last" not in team.did
        assert team.events.index("end w/right") < team.events.index(f"begin w/{result.undone[0]}/undo")


async def test_a_late_step_is_taken_back_once_its_handler_has_ended(tmp_path: Path) -> None:
    """A step that is late may yet have effects: its compensation starts behind them, not among them."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        slow = asyncio.Event()
        desk, team = await hire(bus, Team({"w/three": slow}))
        run = asyncio.create_task(chain(timeout=1).run(bus, desk, id="w"))
        await until(lambda: "begin w/three" in team.events)
        await asyncio.sleep(1.2)  # past the deadline, which nobody tells of
        assert not run.done()
        assert not [name for name in team.did if name.endswith("undo")]
        slow.set()
        result = await run
        assert result.failed == (Failure("three", "request_timeout"),)
        assert result.undone == ("three", "two", "one")
        assert team.events.index("end w/three") < team.events.index("begin w/three/undo")


async def test_a_late_step_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """`settle` seconds after its deadline a step is taken back, whether or not it has ended."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        slow = asyncio.Event()
        desk, team = await hire(bus, Team({"w/a": slow}))
        steps = [Step("a", to="team", timeout=1, undo=Call())]
        result = await Workflow("w", steps, settle=0.1).run(bus, desk, id="w")
        assert (result.state, result.undone) == ("compensated", ("a",))
        assert "end w/a" not in team.events
        slow.set()


async def test_the_whole_has_a_deadline(tmp_path: Path) -> None:
    """When its time is over no step begins, and the one under way is late; compensations have their own time."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        slow = asyncio.Event()
        desk, team = await hire(bus, Team({"w/left": slow}))
        run = asyncio.create_task(diamond(timeout=2).run(bus, desk, id="w"))
        await until(lambda: "begin w/left" in team.events)
        await asyncio.sleep(2.1)
        slow.set()
        result = await run
        assert result.failed == (Failure("left", "request_timeout"),)
        assert set(result.undone) == {"left", "right", "first"}
        assert "w/last" not in team.did


async def test_no_step_begins_after_the_deadline_of_the_whole(tmp_path: Path) -> None:
    """A step that there is no time for is not sent, and named as late."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk, team = await hire(bus)

        def dawdle(_reply: object) -> bool:
            time.sleep(2)
            return True

        steps = [Step("a", to="team", accept=dawdle, undo=Call()), Step("b", to="team", after=["a"], undo=Call())]
        result = await Workflow("w", steps, timeout=2).run(bus, desk, id="w")
        assert result.failed == (Failure("b", "request_timeout"),)
        assert team.did == ["w/a", "w/a/undo"]


# --- compensations that fail ------------------------------------------------------------------------------------------

NOT_BACK = {
    "not_back": 'admit if not back\n\nback if {\n\tinput.message.headers.undo\n\tinput.message.headers.step == "two"\n}'
}


async def test_a_compensation_that_is_refused_is_reported_and_can_be_made_up_for(tmp_path: Path) -> None:
    """The policy decides compensations too; the others are called; the same call under other rules finishes it."""
    async with small_bus(tmp_path, NOT_BACK) as bus:
        desk, team = await hire(bus, Team({"w/three": BROKEN}))
        result = await chain().run(bus, desk, id="w")
        assert (result.state, result.undone) == ("failed", ("three", "one"))
        assert [(failure.step, failure.code) for failure in result.not_undone] == [("two", "policy_denied")]
        assert [reason.rule for reason in result.not_undone[0].reasons] == ["not_back"]
        await bus.activate(write_constitution(tmp_path / "other", revision="2"))
        before = len(team.got)
        again = await chain().run(bus, desk, id="w")
        assert (again.state, again.undone, again.not_undone) == ("compensated", ("three", "two", "one"), ())
        assert team.did[before:] == ["w/two/undo"]


async def test_a_compensation_that_breaks_is_reported_and_can_be_replayed(tmp_path: Path) -> None:
    """A handler that fails leaves a dead letter; once an operator's replay got through, the run is compensated."""
    async with small_bus(tmp_path) as bus:
        desk, team = await hire(bus, Team({"w/three": BROKEN, "w/two/undo": BROKEN, "w/one/undo": BROKEN}))
        result = await chain().run(bus, desk, id="w")
        assert (result.state, result.undone) == ("failed", ("three",))
        assert result.not_undone == (Failure("two", "attempts_exhausted"), Failure("one", "attempts_exhausted"))
        (letter,) = [letter for letter in bus.dead_letters() if letter.message_id == "desk/w/two/undo"]
        del team.answers["w/two/undo"]
        receipt = await bus.replay(letter.message_id)
        assert (await receipt.outcome(timeout=5)).state == "delivered"
        again = await chain().run(bus, desk, id="w")
        assert (again.undone, again.not_undone) == (("three", "two"), (Failure("one", "attempts_exhausted"),))


async def test_a_compensation_may_be_unaccepted_or_late(tmp_path: Path) -> None:
    """A compensation has a deadline and an opinion on its reply, as a step has."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        slow = asyncio.Event()
        desk, team = await hire(bus, Team({"w/b": BROKEN, "w/a/undo": slow}))
        undo_b = Call(accept=lambda reply: reply["did"] == "something else")
        steps = [Step("a", to="team", undo=Call(timeout=1)), Step("b", to="team", after=["a"], undo=undo_b)]
        result = await Workflow("w", steps).run(bus, desk, id="w")
        assert result.not_undone == (Failure("b", "not_accepted"), Failure("a", "request_timeout"))
        slow.set()
        await until(lambda: "end w/a/undo" in team.events)
        await bus.wait_idle(timeout=5)
        assert (await Workflow("w", steps).run(bus, desk, id="w")).undone == ("a",), "late, and done after all"


# --- the same call again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [{}, {"w/three": BROKEN}])
async def test_the_same_call_again_runs_nothing_again(tmp_path: Path, answers: dict[str, Any]) -> None:
    """A run that has ended gives the same result, in another process too, and no handler runs a second time."""
    async with small_bus(tmp_path) as bus:
        desk, team = await hire(bus, Team(answers))
        first = await chain().run(bus, desk, {"ticket": 7}, id="w")
        ran = len(team.got)
        assert await chain().run(bus, desk, {"ticket": 7}, id="w") == first
        assert len(team.got) == ran
    async with small_bus(tmp_path) as bus:
        desk, team = await hire(bus)
        assert await chain().run(bus, desk, {"ticket": 7}, id="w") == first
        assert team.got == []


async def test_another_input_under_a_known_id_is_refused(tmp_path: Path) -> None:
    """Refused (`replayed`) before anything new is sent, and nothing is taken back for it."""
    step = Step("c", to="team", after=["a"], payload=lambda so_far: dict(so_far.input), undo=Call())
    steps = [Step("a", to="team", undo=Call()), Step("b", to="team", after=["a"], payload=step.payload), step]
    async with small_bus(tmp_path) as bus:
        desk, team = await hire(bus)
        await Workflow("w", steps[:2]).run(bus, desk, {"ticket": 7}, id="w")
        with pytest.raises(Refused) as caught:
            await Workflow("w", steps).run(bus, desk, {"ticket": 8}, id="w")
        assert caught.value.code == "replayed"
        assert team.did == ["w/a", "w/b"]
        result = await Workflow("w", steps).run(bus, desk, {"ticket": 7}, id="w")
        assert (result.state, team.did) == ("completed", ["w/a", "w/b", "w/c"])


async def test_a_run_that_has_taken_nothing_back_goes_forward_again(tmp_path: Path) -> None:
    """A step that was refused is decided anew, as long as no compensation has begun."""
    async with small_bus(tmp_path, NO_SECRETS) as bus:
        desk, team = await hire(bus)
        steps = [Step("a", to="team"), Step("b", to="team", after=["a"], payload={"secret": 1}, undo=Call())]
        first = await Workflow("w", steps).run(bus, desk, id="w")
        assert [failure.code for failure in first.failed] == ["policy_denied"]
        await bus.activate(write_constitution(tmp_path / "other", revision="2"))
        assert (await Workflow("w", steps).run(bus, desk, id="w")).state == "completed"
        assert team.did == ["w/a", "w/b"]


async def test_a_run_that_has_begun_to_go_back_never_goes_forward(tmp_path: Path) -> None:
    """Closed in the middle of going back, it goes on going back, though the step that failed would be allowed now."""
    slow = asyncio.Event()
    rules = {"no_third": 'admit if not input.message.headers.step == "three"'}
    async with small_bus(tmp_path, rules) as bus:
        desk, team = await hire(bus, Team({"w/two/undo": slow}))
        run = asyncio.create_task(chain().run(bus, desk, id="w"))
        await until(lambda: "begin w/two/undo" in team.events)
        await bus.close(0)
        with pytest.raises(BusClosed):
            await run
    async with small_bus(tmp_path, {"no_third": ADMIT_ALL}) as bus:
        desk, team = await hire(bus)
        result = await chain().run(bus, desk, id="w")
        assert (result.state, result.undone) == ("compensated", ("two", "one"))
        assert result.failed == (Failure("three", None),), "what an earlier call was told, only the log can say"
        assert sorted(team.did) == ["w/one/undo", "w/two/undo"]


async def test_a_cancelled_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Cancelling stops the waiting, not the step: its reply is kept, and the same call takes it up."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        slow = asyncio.Event()
        desk, team = await hire(bus, Team({"w/two": slow}))
        run = asyncio.create_task(chain().run(bus, desk, id="w"))
        await until(lambda: "begin w/two" in team.events)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        slow.set()
        assert (await chain().run(bus, desk, id="w")).state == "completed"
        assert team.did == ["w/one", "w/two", "w/three"]


async def test_a_reply_that_is_not_kept_takes_nothing_back(tmp_path: Path) -> None:
    """Where `accept` would have to see a reply again that is gone, the run stops: neither forward nor back."""
    keep_none = {"store_payloads": False}
    flow = chain(accept=lambda reply: reply["did"] == "w/three")
    async with small_bus(tmp_path, audit=keep_none) as bus:
        desk, team = await hire(bus)
        assert (await flow.run(bus, desk, id="w")).state == "completed"
    async with small_bus(tmp_path, audit=keep_none) as bus:
        desk, team = await hire(bus)
        with pytest.raises(BusError) as caught:
            await flow.run(bus, desk, id="w")
        assert caught.value.code in ("no_reply", "replayed")
        assert team.got == []


async def test_a_mistake_in_a_payload_is_raised_and_leaves_the_run_to_be_continued(tmp_path: Path) -> None:
    """What a function raises passes through; nothing is taken back for it, and the mended workflow goes on."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        desk, team = await hire(bus)
        with pytest.raises(KeyError):
            await chain(payload=lambda so_far: {"x": so_far.replies["other"]}).run(bus, desk, id="w")
        assert team.did == ["w/one", "w/two"]
        assert (await chain(payload={"x": 1}).run(bus, desk, id="w")).state == "completed"
        assert team.did == ["w/one", "w/two", "w/three"]


# --- held -------------------------------------------------------------------------------------------------------------

HELD = {
    "four_eyes": """admit if is_string(input.message.id)

hold contains {"approvers": 1, "roles": ["boss"], "expires_in": 600} if {
	input.message.headers.step == "three"
	not input.message.headers.undo
}"""
}


async def test_a_held_step_waits_for_its_approval_over_a_restart(tmp_path: Path) -> None:
    """A step that the policy holds is waited for; the same call goes on waiting, and ends when it is approved."""
    async with small_bus(tmp_path, HELD) as bus:
        desk, team = await hire(bus)
        run = asyncio.create_task(chain(timeout=600).run(bus, desk, id="w"))
        await until(lambda: ids_of(bus) == ["desk/w/three"])
        await bus.close(0)
        with pytest.raises(BusClosed):
            await run
    async with small_bus(tmp_path) as bus:
        desk, team = await hire(bus)
        boss = await bus.register("boss", tenant="acme", roles=["boss"])
        run = asyncio.create_task(chain(timeout=600).run(bus, desk, id="w"))
        await until(lambda: ids_of(bus) == ["desk/w/three"])
        await boss.approve("desk/w/three")
        assert (await run).state == "completed"
        assert team.did == ["w/three"]


def ids_of(bus: AgentBus) -> list[str]:
    """What is held."""
    return [waiting.message_id for waiting in bus.held()]


async def test_a_rejected_step_is_not_taken_back_and_those_before_it_are(tmp_path: Path) -> None:
    """A step that was held and rejected never ran."""
    async with small_bus(tmp_path, HELD, home=":memory:") as bus:
        desk, _team = await hire(bus)
        boss = await bus.register("boss", tenant="acme", roles=["boss"])
        run = asyncio.create_task(chain(timeout=600).run(bus, desk, id="w"))
        await until(lambda: ids_of(bus) == ["desk/w/three"])
        await boss.reject("desk/w/three", reason="not now")
        result = await run
        assert result.failed == (Failure("three", "approval_rejected"),)
        assert (result.state, result.undone) == ("compensated", ("two", "one"))


async def test_a_step_that_is_held_too_long_is_late(tmp_path: Path) -> None:
    """A held step expires with its deadline: nobody can approve it later, and it is not taken back."""
    async with small_bus(tmp_path, HELD, home=":memory:") as bus:
        desk, _team = await hire(bus)
        result = await chain(timeout=0.3).run(bus, desk, id="w")
        assert result.failed == (Failure("three", "request_timeout"),)
        assert result.undone == ("two", "one")
        assert bus.held() == []


# --- crashes ----------------------------------------------------------------------------------------------------------

NO_THIRD = {
    "no_third": """admit if not third

third if {
	input.message.headers.step == "deploy"
	input.message.payload.ticket == 3
}"""
}
POINTS = (
    *("audit.before_commit", "audit.after_commit", "dispatch.before_handler", "handler.after_return"),
    *("outcome.before_commit", "outcome.after_commit"),
)


async def program(home: Path, policies: Path, plan: str, *tickets: str) -> tuple[int, str]:
    """Runs the program under a plan of fault points: how it ended, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(home), str(policies), *(tickets or "123"),
        env=os.environ | {"EAB_FAULTPOINT": plan, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, error = await process.communicate()
    assert b"Traceback" not in error, error.decode()
    assert process.returncode is not None
    return process.returncode, printed.decode()


def check_three_runs(home: Path, printed: str) -> None:
    """One went through, one failed in its tests, one was refused at its deployment; nothing ran after its delivery."""
    done, red, refused = json.loads(printed)
    assert (done["state"], done["failed"]) == ("completed", [])
    assert (red["state"], red["undone"], red["not_undone"]) == ("compensated", ["review", "design"], [])
    assert [(failure["step"], failure["code"]) for failure in red["failed"]] == [("test", "not_accepted")]
    assert (refused["state"], refused["undone"], refused["not_undone"]) == ("compensated", ["review", "design"], [])
    assert [failure["step"] for failure in refused["failed"]] == ["deploy"]
    assert refused["failed"][0]["code"] in ("policy_denied", None)
    effects = [line.split() for line in home.with_suffix(".effects").read_text().splitlines()]
    assert {delivered for _, delivered in effects} == {"0"}, "no handler ran for what was delivered before"
    forward, back = {"design", "test", "review"}, {"review/undo", "design/undo"}
    assert {message_id.removeprefix("desk/") for message_id, _ in effects} == (
        {f"change-1/{name}" for name in (*forward, "deploy")}
        | {f"change-{n}/{name}" for n in (2, 3) for name in forward | back}
    )
    records = log(home, "outcome", state="delivered")
    delivered = [record["message_id"] for record in records]
    assert len(delivered) == len(set(delivered))


@pytest.mark.timeout(240)
async def test_killed_again_and_again_a_run_goes_on_to_its_end(tmp_path: Path, seed: int) -> None:
    """`kill -9` at every fault point, one after the other in one home: the same call gets every run to its end."""
    home = tmp_path / "home"
    policies = write_constitution(tmp_path / "policies", NO_THIRD)
    generator = random.Random(seed)
    points = list(POINTS)
    generator.shuffle(points)
    killed = 0
    for point in points:
        status, _ = await program(home, policies, f"{point}:{generator.randint(1, 2)}:kill")
        assert status in (0, -signal.SIGKILL), (point, points)
        killed += status != 0
    assert killed >= 2, points
    status, printed = await program(home, policies, "")
    assert status == 0
    check_three_runs(home, printed)
    async with small_bus(tmp_path, NO_THIRD) as bus:
        assert adds_up(bus.status().accounting)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "plan", [f"{POINTS[1]}:{nth}:kill" for nth in (1, 4)] + [f"{POINTS[3]}:{nth}:kill" for nth in (2, 9)]
)
async def test_killed_once_a_run_goes_on_to_its_end(tmp_path: Path, plan: str) -> None:
    """Early, in the middle and while compensations run: killed as soon as something is decided, or has been done."""
    home = tmp_path / "home"
    policies = write_constitution(tmp_path / "policies", NO_THIRD)
    assert (await program(home, policies, plan))[0] == -signal.SIGKILL
    status, printed = await program(home, policies, "")
    assert status == 0
    check_three_runs(home, printed)


@pytest.mark.parametrize("nth", [1, 3])
async def test_a_step_that_cannot_be_recorded_takes_nothing_back(tmp_path: Path, nth: int) -> None:
    """AuditUnavailable passes through `run`, and is no failure of a step: the same call goes on."""
    home = tmp_path / "home"
    policies = write_constitution(tmp_path / "policies")
    status, printed = await program(home, policies, f"audit.before_commit:{nth}:raise", "1")
    assert status == 0
    assert [result["state"] for result in json.loads(printed)] == ["completed"]
    effects = home.with_suffix(".effects").read_text().splitlines()
    assert sorted(effects) == [f"desk/change-1/{name} 0" for name in ("deploy", "design", "review", "test")]


async def test_a_run_inside_a_handler_goes_on_by_itself(tmp_path: Path) -> None:
    """Started by a message, a run is continued after a restart because the bus delivers that message again."""

    async def open_shop(bus: AgentBus, team: Team) -> Agent:
        await bus.register("team", team, tenant="acme", concurrency=8)

        async def start(message: Message) -> dict[str, Any]:
            result = await chain().run(bus, changes, message.payload, id=message.id)
            return {"state": result.state}

        changes = await bus.register("changes", start, tenant="acme", timeout=60)
        return await bus.register("desk", tenant="acme")

    async with small_bus(tmp_path) as bus:
        team = Team()
        team.answers = {"changes/desk/7/two": asyncio.Event()}
        desk = await open_shop(bus, team)
        await desk.send("changes", {"ticket": 7}, id="7")
        await until(lambda: "begin changes/desk/7/two" in team.events)
        await bus.close(0)
    async with small_bus(tmp_path) as bus:
        team = Team()
        await open_shop(bus, team)
        outcome = await bus.outcome("desk/7", timeout=10)
        assert outcome.reply is not None
        assert outcome.reply.payload == {"state": "completed"}
        assert ids(team.got) == ["changes/desk/7/two", "changes/desk/7/three"]
        assert {message.conversation for message in team.got} == {"desk/7"}
