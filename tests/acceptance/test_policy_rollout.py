"""A roll-out: a candidate decides in a share of the conversations, and goes back on command or by itself."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enhanced_agent_bus import Agent, AgentBus, Candidate, ConfigInvalid, ConstitutionRejected, Message, open_bus
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.road.charter import Charter
from tests.developer import PATIENT, Doorman, Inbox, SteppedClock, log, small_bus, until
from tests.support import constitution_digest, write_constitution

Captured = pytest.CaptureFixture[str]
CAP = "admit if input.message.payload.amount <= 100"
FAILS = "admit if not input.message.payload.fails\n\nadmit if to_number(input.message.payload.fails) > 0"


def is_among(bus: AgentBus, conversation: str, percent: int) -> bool:
    """As the page describes it: the first 8 bytes of sha256(bus, newline, conversation), as a share of 2^64."""
    return int.from_bytes(sha256(f"{bus.status().bus}\n{conversation}".encode()).digest()[:8], "big") < (
        percent * 2**64 / 100
    )


def conversations(bus: AgentBus, percent: int, *, among: bool, count: int) -> list[str]:
    """So many conversations that are among a share, or are not."""
    found = (name for number in range(100_000) if is_among(bus, name := f"trip-{number}", percent) is among)
    return [next(found) for _ in range(count)]


def candidate_of(bus: AgentBus) -> Candidate:
    """The candidate, which must be there."""
    candidate = bus.status().candidate
    assert candidate is not None
    return candidate


async def desk_of(bus: AgentBus) -> Agent:
    """Somebody who sends, and a booker who takes everything."""
    await bus.register("booker", Inbox(), tenant="acme")
    return await bus.register("desk", tenant="acme")


def events(home: Path) -> list[tuple[str, str | None]]:
    """What became of constitutions, and why."""
    return [(record["event"], record["reason"]) for record in log(home, "policy")]


async def test_a_share_of_the_conversations_is_decided_by_the_candidate(tmp_path: Path, capsys: Captured) -> None:
    """By a hash of the conversation that anybody can compute; each record names the constitution that made it."""
    new = write_constitution(tmp_path / "new", {"cap": "admit if input.message.payload.amount <= 50"}, revision="2")
    async with small_bus(tmp_path, {"cap": CAP}) as bus:
        desk = await desk_of(bus)
        old = bus.status().constitution
        activation = await bus.activate(new, percent=30)
        assert (activation.digest, activation.revision, activation.percent) == (constitution_digest(new), 2, 30)
        status = bus.status()
        assert (status.constitution, candidate_of(bus).digest, candidate_of(bus).percent) == (
            old,
            activation.digest,
            30,
        )
        expected = {}
        for number in range(60):
            conversation = f"c-{number}"
            receipt = await desk.send("booker", {"amount": 60}, id=f"m-{number}", conversation=conversation)
            among = is_among(bus, conversation, 30)
            expected[receipt.message_id] = activation.digest if among else old
            assert (receipt.ok, receipt.constitution) == (not among, expected[receipt.message_id])
        assert len(set(expected.values())) == 2
        assert candidate_of(bus).decisions == sum(digest == activation.digest for digest in expected.values())
        assert candidate_of(bus).refusals == candidate_of(bus).decisions
        await bus.wait_idle(10)
        home = ["--home", str(tmp_path / "home")]
        assert await asyncio.to_thread(run_command, [*home, "status"]) == 0
        out = capsys.readouterr().out
        assert old in out
        assert f"{activation.digest} (revision 2), in 30 percent of the conversations" in out
    decided = {record["message_id"]: record["constitution"] for record in log(tmp_path / "home", "decision")}
    assert decided == expected
    assert await asyncio.to_thread(run_command, ["--json", *home, "status"]) == 0
    shown = json.loads(capsys.readouterr().out)["candidate"]
    assert (shown["digest"], shown["percent"]) == (activation.digest, 30)
    arguments = ["--json", *home, "policy", "backtest", "--candidate", activation.digest]
    assert await asyncio.to_thread(run_command, arguments) == 0
    assert json.loads(capsys.readouterr().out)["conclusive"]


async def test_a_larger_share_holds_the_smaller_and_100_is_all(tmp_path: Path) -> None:
    """Whoever was among 10 percent is among 50; with 100 the candidate is the active one and there is no candidate."""
    new = write_constitution(tmp_path / "new", revision="2")
    async with small_bus(tmp_path) as bus:
        desk = await desk_of(bus)
        old = bus.status().constitution
        chosen: list[set[str]] = []
        for percent in (10, 50, 100):
            digest = (await bus.activate(new, percent=percent)).digest
            names = [f"c-{number}" for number in range(60)]
            receipts = [await desk.send("booker", {}, conversation=name) for name in names]
            chosen.append(
                {name for name, receipt in zip(names, receipts, strict=True) if receipt.constitution == digest}
            )
        assert chosen[0] < chosen[1] < chosen[2] == set(names)
        assert (bus.status().constitution, bus.status().candidate) == (digest, None)
        assert old != digest
    assert [event for event, _ in events(tmp_path / "home")] == ["activated", "rolling_out", "rolling_out", "activated"]
    rolling = log(tmp_path / "home", "policy")[1]
    limits = {key: rolling[key] for key in ("percent", "max_refusals", "max_errors", "over")}
    assert limits == {"percent": 10, "max_refusals": None, "max_errors": 0.01, "over": 100}


async def test_what_waits_is_decided_again_under_the_one_for_its_conversation(tmp_path: Path) -> None:
    """No handler starts on a ticket of another constitution than the one that decides in its conversation just then."""
    new = write_constitution(tmp_path / "new", {"few": "admit if input.message.payload.n < 5"}, revision="2")
    async with small_bus(tmp_path) as bus:
        doorman = Doorman()
        await bus.register("booker", doorman, tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        (inside,) = conversations(bus, 50, among=True, count=1)
        (outside,) = conversations(bus, 50, among=False, count=1)
        await desk.send("booker", {"n": 0}, id="first", conversation=inside)
        await until(lambda: doorman.got)
        waiting = [("in-1", 1, inside), ("in-9", 9, inside), ("out-1", 1, outside), ("out-9", 9, outside)]
        for name, n, conversation in waiting:
            assert (await desk.send("booker", {"n": n}, id=name, conversation=conversation)).ok
        candidate = await bus.activate(new, percent=50)
        doorman.open.set()
        await bus.wait_idle(10)
        assert [message.id for message in doorman.got] == ["desk/first", "desk/in-1", "desk/out-1", "desk/out-9"]
        assert [message.constitution == candidate.digest for message in doorman.got] == [False, True, False, False]
        assert (await bus.outcome("desk/in-9")).state == "refused"
        doorman.open.clear()
        await desk.send("booker", {"n": 0}, id="second", conversation=inside)
        await until(lambda: len(doorman.got) == 5)
        await desk.send("booker", {"n": 2}, id="in-2", conversation=inside)
        await bus.roll_back()
        doorman.open.set()
        await bus.wait_idle(10)
        assert doorman.got[-1].constitution == bus.status().constitution
    again = {record["message_id"]: record["why"] for record in log(tmp_path / "home", "decision") if record["previous"]}
    assert again == {"desk/in-1": "activation", "desk/in-9": "activation", "desk/in-2": "activation"}


async def test_no_handler_starts_under_the_other_one(tmp_path: Path) -> None:
    """Whatever is rolled out and taken back while messages wait: each starts under what decides there just then."""
    one, two = (write_constitution(tmp_path / f"n-{n}", revision=str(n)) for n in (2, 3))
    wrong: list[str] = []
    async with small_bus(tmp_path, home=":memory:") as bus:

        async def handle(message: Message) -> None:
            candidate = bus.status().candidate
            among = candidate is not None and is_among(bus, message.conversation, candidate.percent)
            expected = candidate.digest if candidate is not None and among else bus.status().constitution
            if message.constitution != expected:
                wrong.append(message.id)
            await asyncio.sleep(0.001)

        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handle, tenant="acme", concurrency=4)

        steps = sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < 400 or steps < 4:
                assert (await desk.send("booker", {}, conversation=f"c-{sent}")).ok
                sent += 1

        sending = asyncio.create_task(send())
        while not sending.done():
            await bus.activate(one if steps % 2 else two, percent=(20, 50, 80)[steps % 3])
            await bus.roll_back()
            steps += 1
        await sending
        await bus.wait_idle(30)
        assert wrong == []
        assert bus.status().accounting["delivered"] == sent


async def test_it_goes_back_on_command(tmp_path: Path) -> None:
    """From then on the active one decides everything; there is nothing more to take back."""
    new = write_constitution(tmp_path / "new", {"no": "admit if input.message.payload.never"}, revision="2")
    async with small_bus(tmp_path) as bus:
        desk = await desk_of(bus)
        await bus.activate(new, percent=99)
        (inside,) = conversations(bus, 99, among=True, count=1)
        assert not (await desk.send("booker", {}, conversation=inside)).ok
        back = await bus.roll_back()
        assert (back.digest, back.percent) == (bus.status().constitution, 100)
        assert bus.status().candidate is None
        assert (await desk.send("booker", {}, conversation=inside)).ok
        with pytest.raises(KeyError):
            await bus.roll_back()
    last = log(tmp_path / "home", "policy")[-1]
    assert (last["event"], last["reason"], last["digest"]) == ("rolled_back", "command", constitution_digest(new))
    assert (last["percent"], last["decisions"], last["refusals"], last["errors"]) == (99, 1, 1, 0)


@pytest.mark.parametrize(
    ("rule", "payload", "limits", "reason"),
    [
        (CAP, {"amount": 200}, {"max_refusals": 0.2, "max_errors": None, "over": 10}, "refusals"),
        (FAILS, {"fails": "x"}, {"max_errors": 0.2, "over": 10}, "errors"),
    ],
)
async def test_it_goes_back_by_itself_when_a_limit_is_passed(
    rule: str, payload: dict[str, Any], limits: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """Not before so many decisions, not at the limit, but past it; the record has the figures."""
    new = write_constitution(tmp_path / "new", {"rule": rule}, revision="2")
    async with small_bus(tmp_path) as bus:
        desk = await desk_of(bus)
        await bus.activate(new, percent=50, **limits)
        names = conversations(bus, 50, among=True, count=30)
        fine = {"amount": 1}
        for name in names[:5]:
            await desk.send("booker", fine, conversation=name)
        for name, content in zip(names[5:], [payload, payload, *[fine] * 3], strict=False):
            await desk.send("booker", content, conversation=name)
        assert candidate_of(bus).newest == 10
        assert {"refusals": candidate_of(bus).refusals, "errors": candidate_of(bus).errors}[reason] == 2  # at the limit
        await desk.send("booker", payload, conversation=names[11])
        await until(lambda: bus.status().candidate is None)
        receipt = await desk.send("booker", payload, conversation=names[12])
        assert (receipt.ok, receipt.constitution) == (True, bus.status().constitution)
    last = log(tmp_path / "home", "policy")[-1]
    assert (last["event"], last["reason"], last["newest"], last["decisions"]) == ("rolled_back", reason, 10, 11)
    assert last[reason] == 3


async def test_old_decisions_leave_the_window(tmp_path: Path) -> None:
    """The shares are of the newest decisions: many good ones before do not hide what has become bad."""
    new = write_constitution(tmp_path / "new", {"cap": CAP}, revision="2")
    async with small_bus(tmp_path) as bus:
        desk = await desk_of(bus)
        await bus.activate(new, percent=99, max_refusals=0.5, over=4)
        names = conversations(bus, 99, among=True, count=40)
        for number, name in enumerate(names):
            await desk.send("booker", {"amount": 200 if number % 2 else 1}, conversation=name)
        assert candidate_of(bus).decisions == 40
        for name in names[:3]:
            await desk.send("booker", {"amount": 200}, conversation=name)
        await until(lambda: bus.status().candidate is None)


async def test_a_restart_goes_on_with_the_same_share(tmp_path: Path) -> None:
    """Also when the settings name the candidate's folder: that alone does not make it the active one."""
    new = write_constitution(tmp_path / "new", {"no": "admit if input.message.payload.never"}, revision="2")
    async with small_bus(tmp_path) as bus:
        await desk_of(bus)
        await bus.activate(new, percent=40, max_refusals=0.9, over=3)
        old = bus.status().constitution
    for given in (None, tmp_path / "policies", new):
        async with open_bus(tmp_path / "home", policy=PATIENT, constitution=given) as bus:
            assert (bus.status().constitution, candidate_of(bus).percent) == (old, 40)
            desk = await desk_of(bus)
            (inside,) = conversations(bus, 40, among=True, count=1)
            (outside,) = conversations(bus, 40, among=False, count=1)
            if given != new:
                assert not (await desk.send("booker", {}, conversation=inside)).ok
            assert (await desk.send("booker", {}, conversation=outside)).ok
    async with open_bus(tmp_path / "home", policy=PATIENT) as bus:
        desk = await desk_of(bus)
        for name in conversations(bus, 40, among=True, count=1):
            await desk.send("booker", {}, conversation=name)
        await until(lambda: bus.status().candidate is None)  # with the limits that it was given
    assert events(tmp_path / "home")[-1] == ("rolled_back", "refusals")
    async with open_bus(tmp_path / "home", policy=PATIENT) as bus:
        assert bus.status().candidate is None


async def test_what_a_candidate_decided_counts_after_a_restart(tmp_path: Path) -> None:
    """A bus that ends before so many decisions, again and again, does not keep a bad candidate for ever."""
    new = write_constitution(tmp_path / "new", {"cap": CAP}, revision="2")
    async with small_bus(tmp_path) as bus:
        await bus.activate(new, percent=50, max_refusals=0.5, over=6)
    for number in range(2):
        async with open_bus(tmp_path / "home", policy=PATIENT) as bus:
            desk = await desk_of(bus)
            assert not (await desk.send("nobody", {})).ok  # the bus's own refusals are not the candidate's
            fine, *bad = conversations(bus, 50, among=True, count=3)
            assert (await desk.send("booker", {"amount": 1}, conversation=fine)).ok
            for name in bad[number:]:
                assert not (await desk.send("booker", {"amount": 200}, conversation=name)).ok
            assert (candidate_of(bus).decisions, candidate_of(bus).refusals) == ((3, 2) if not number else (5, 3))
    async with open_bus(tmp_path / "home", policy=PATIENT) as bus:  # a larger share is counted from the beginning
        await bus.activate(new, percent=60, max_refusals=0.5, over=2)
        desk = await desk_of(bus)
        (name,) = conversations(bus, 60, among=True, count=1)
        assert not (await desk.send("booker", {"amount": 200}, conversation=name)).ok
        assert (candidate_of(bus).decisions, candidate_of(bus).newest) == (1, 1)
    async with open_bus(tmp_path / "home", policy=PATIENT) as bus:
        assert (candidate_of(bus).decisions, candidate_of(bus).refusals) == (1, 1)


async def test_a_limit_that_was_passed_when_the_process_died_is_found_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended between the decision and the roll-back: no further message is decided by the candidate."""
    new = write_constitution(tmp_path / "new", {"no": "admit if input.message.payload.never"}, revision="2")

    async def cut_off(*_: object) -> None:
        """As if the process had ended here."""

    async with small_bus(tmp_path) as bus:
        desk = await desk_of(bus)
        await bus.activate(new, percent=50, max_refusals=0.5, over=2)
        with monkeypatch.context() as patched:
            patched.setattr(Charter, "_end", cut_off)
            for name in conversations(bus, 50, among=True, count=2):
                assert not (await desk.send("booker", {}, conversation=name)).ok
    assert events(tmp_path / "home")[-1] == ("rolling_out", None)
    async with open_bus(tmp_path / "home", policy=PATIENT) as bus:
        assert bus.status().candidate is None
    assert events(tmp_path / "home")[-1] == ("rolled_back", "refusals")


@pytest.mark.parametrize(("point", "last"), [("policy.before_swap", "activated"), ("policy.after_swap", "rolling_out")])
async def test_a_crash_leaves_it_rolled_out_or_not(point: str, last: str, tmp_path: Path) -> None:
    """What the log says is what decides at the next start."""
    new = write_constitution(tmp_path / "new", revision="2")
    async with small_bus(tmp_path):
        pass
    command = ["-m", "enhanced_agent_bus", "--home", str(tmp_path / "home"), "policy", "activate", str(new)]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *command, "--percent", "20"],
        env={**os.environ, "EAB_FAULTPOINT": f"{point}:1:kill"},
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    async with open_bus(tmp_path / "home", policy=PATIENT) as bus:
        assert (bus.status().candidate is not None) is (last == "rolling_out")
        assert bus.status().constitution == constitution_digest(tmp_path / "policies")
        assert events(tmp_path / "home")[-1] == (last, None)


async def test_a_candidate_that_has_expired_meanwhile_is_taken_back_at_the_start(tmp_path: Path) -> None:
    """The bus opens, and the active one decides everything."""
    soon = (datetime.now(UTC) + timedelta(seconds=3600)).strftime("%Y-%m-%dT%H:%M:%SZ")
    new = write_constitution(tmp_path / "new", revision="2", not_after=soon)
    async with small_bus(tmp_path) as bus:
        await bus.activate(new, percent=50)
    clock = SteppedClock()
    clock.ahead_seconds = 7200
    async with open_bus(tmp_path / "home", policy=PATIENT, clock=clock) as bus:
        assert bus.status().candidate is None
    assert events(tmp_path / "home")[-1] == ("rolled_back", "expired")


async def test_an_agent_that_pinned_one_is_refused_where_the_other_decides(tmp_path: Path) -> None:
    """constitution_mismatch, with both digests: it agreed to one of the two only."""
    new = write_constitution(tmp_path / "new", revision="2")
    async with small_bus(tmp_path) as bus:
        await desk_of(bus)
        old, candidate = bus.status().constitution, constitution_digest(new)
        careful = await bus.register("careful", tenant="acme", constitution=old)
        eager = await bus.register("eager", tenant="acme", constitution=candidate)
        await bus.activate(new, percent=50)
        (inside,) = conversations(bus, 50, among=True, count=1)
        (outside,) = conversations(bus, 50, among=False, count=1)
        for agent, conversation, agrees in (
            (careful, inside, False),
            (careful, outside, True),
            (eager, inside, True),
            (eager, outside, False),
        ):
            receipt = await agent.send("booker", {}, conversation=conversation)
            assert receipt.ok is agrees
            if not agrees:
                assert receipt.code == "constitution_mismatch"
                assert old in receipt.reasons[0].message
                assert candidate in receipt.reasons[0].message


async def test_another_constitution_ends_a_roll_out(tmp_path: Path) -> None:
    """A second candidate takes the place of the first; whatever is activated for all, the active one too, ends it."""
    one, two, three = (write_constitution(tmp_path / f"n-{n}", revision=str(n)) for n in (2, 3, 4))
    async with small_bus(tmp_path) as bus:
        await desk_of(bus)
        await bus.activate(one, percent=10)
        broken = write_constitution(tmp_path / "broken", {"no": "admit if input.mesage"})
        with pytest.raises(ConstitutionRejected):
            await bus.activate(broken)
        assert candidate_of(bus).digest == constitution_digest(one)
        await bus.activate(two, percent=20)
        assert (candidate_of(bus).digest, candidate_of(bus).percent) == (constitution_digest(two), 20)
        await bus.activate(three)
        assert (bus.status().candidate, bus.status().constitution) == (None, constitution_digest(three))
        await bus.activate(two, percent=20)
        unchanged = await bus.activate(three)
        assert (bus.status().candidate, unchanged.digest) == (None, constitution_digest(three))
        assert (await bus.activate(three, percent=5)).percent == 100  # it decides everything already
        assert bus.status().candidate is None
    assert events(tmp_path / "home") == [
        ("activated", None),
        ("rolling_out", None),
        ("rejected", "invalid"),
        ("rolled_back", "replaced"),
        ("rolling_out", None),
        ("rolled_back", "replaced"),
        ("activated", None),
        ("rolling_out", None),
        ("rolled_back", "replaced"),
        ("unchanged", None),
        ("unchanged", None),
    ]


async def test_what_is_weak_about_a_candidate_is_named(tmp_path: Path) -> None:
    """It decides, so the folder that it came from is a weakening, and none any more when it is gone."""
    write_constitution(tmp_path / "policies")
    assert (
        await asyncio.to_thread(
            run_command, ["policy", "build", str(tmp_path / "policies"), "-o", str(tmp_path / "bundle.tar.gz")]
        )
        == 0
    )
    async with open_bus(tmp_path / "home", constitution=tmp_path / "bundle.tar.gz", policy=PATIENT) as bus:
        assert "constitution_folder" not in bus.status().security_state
        await bus.activate(write_constitution(tmp_path / "new", revision="2"), percent=1)
        assert {"constitution_folder", "unsigned_constitution"} <= set(bus.status().security_state)
        await bus.roll_back()
        assert "constitution_folder" not in bus.status().security_state


async def test_the_highest_revision_is_that_of_what_was_active_for_all(tmp_path: Path) -> None:
    """Of signed bundles: a candidate that went back leaves room for a lower revision, a full activation does not."""
    key = generate_private_key(SECP256R1())
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    bundles = {}
    for revision in "1357":
        folder = write_constitution(tmp_path / f"policies-{revision}", revision=revision)
        bundles[revision] = tmp_path / f"{revision}.tar.gz"
        assert await command("policy", "build", str(folder), "-o", str(bundles[revision])) == 0
        assert await command("policy", "sign", str(bundles[revision]), "--key", str(tmp_path / "key")) == 0
    section = {"path": str(bundles["1"]), "trust": [str(tmp_path / "key")]}
    async with open_bus(tmp_path / "home", constitution=section, policy=PATIENT) as bus:
        with pytest.raises(ConstitutionRejected, match="signature"):
            await bus.activate(write_constitution(tmp_path / "folder", revision="9"), percent=10)
        await bus.activate(bundles["5"], percent=10)
        await bus.roll_back()
        await bus.activate(bundles["3"], percent=10)
    async with open_bus(tmp_path / "home", constitution=section, policy=PATIENT) as bus:
        assert candidate_of(bus).revision == 3
        await bus.activate(bundles["7"], percent=50)
        await bus.activate(bundles["7"], percent=100)
        with pytest.raises(ConstitutionRejected) as caught:
            await bus.activate(bundles["5"], percent=10)
        assert caught.value.reason == "rollback"


async def test_a_shadow_and_a_roll_out_do_not_mind_each_other(tmp_path: Path) -> None:
    """The shadow compares with whatever decided."""
    new = write_constitution(tmp_path / "new", {"no": "admit if input.message.payload.never"}, revision="2")
    async with small_bus(tmp_path) as bus:
        desk = await desk_of(bus)
        await bus.start_shadow(new)
        await bus.activate(new, percent=50)
        (inside,) = conversations(bus, 50, among=True, count=1)
        (outside,) = conversations(bus, 50, among=False, count=1)
        for conversation in (inside, outside):
            await desk.send("booker", {}, conversation=conversation)
        await until(lambda: (report := bus.shadow()) is not None and report.compared == 2)
        report = await bus.stop_shadow()
        assert (report.same, report.flips) == (1, {"allow->refuse": 1})
        assert candidate_of(bus).decisions == 1
        await bus.roll_back()
        assert (await desk.send("booker", {}, conversation=inside)).ok


async def test_an_opa_server_has_one_constitution(tmp_path: Path) -> None:
    """A server serves one bundle: a share of the conversations cannot be asked of another one."""
    new = write_constitution(tmp_path / "new", revision="2")
    async with small_bus(tmp_path):
        pass
    async with open_bus(tmp_path / "home", policy={"engine": "http://127.0.0.1:9"}) as bus:
        with pytest.raises(ConfigInvalid, match="percentage"):
            await bus.activate(new, percent=10)


@pytest.mark.parametrize(
    "limits",
    [
        {"percent": 0},
        {"percent": 101},
        {"percent": True},
        {"percent": 10, "max_refusals": 1.5},
        {"percent": 10, "max_errors": -0.1},
        {"percent": 10, "max_errors": float("nan")},
        {"percent": 10, "over": 0},
        {"percent": 10, "over": 10**9},
    ],
)
async def test_a_share_or_limit_that_is_none_is_a_value_error(limits: dict[str, Any], tmp_path: Path) -> None:
    """Before anything is recorded."""
    new = write_constitution(tmp_path / "new", revision="2")
    async with small_bus(tmp_path) as bus:
        with pytest.raises(ValueError, match="from"):
            await bus.activate(new, **limits)
    assert [event for event, _ in events(tmp_path / "home")] == ["activated"]


async def command(*arguments: str) -> int:
    """A command in another thread: the bus of this one answers it."""
    return await asyncio.to_thread(run_command, arguments)


async def test_from_the_command_line(tmp_path: Path, capsys: Captured) -> None:
    """With a running bus and without one; history tells all of it."""
    new = write_constitution(tmp_path / "new", revision="2")
    home = ("--home", str(tmp_path / "home"))
    async with small_bus(tmp_path) as bus:
        limits = ("--percent", "10", "--max-refusals", "0.2", "--over", "50")
        assert await command("--json", *home, "policy", "activate", str(new), *limits) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown == {"digest": constitution_digest(new), "revision": 2, "percent": 10}
        assert candidate_of(bus).percent == 10
        assert await command(*home, "policy", "activate", "--rollback") == 0
        assert bus.status().constitution in capsys.readouterr().out
        assert bus.status().candidate is None
        assert await command(*home, "policy", "activate", "--rollback") == 1
        assert "nothing is being rolled out" in capsys.readouterr().err
    assert await command(*home, "policy", "activate", str(new), "--percent", "25") == 0
    assert "in 25 percent of the conversations" in capsys.readouterr().out
    assert await command(*home, "policy", "history") == 0
    out = capsys.readouterr().out
    assert "rolling_out 10 %" in out
    assert "rolled_back 10 %" in out
    assert await command(*home, "policy", "activate", str(new), "--percent", "100") == 0
    assert "active: revision 2" in capsys.readouterr().out
    assert events(tmp_path / "home")[-1] == ("activated", None)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "PATH"),
        (["new", "--rollback"], 2, "stands alone"),
        (["new", "--percent", "0"], 2, "percent"),
        (["new", "--max-errors", "0.1"], 2, "roll-out by percentage"),
        (["new", "--percent", "10", "--max-errors", "2"], 2, "max-errors"),
        (["new", "--percent", "10", "--over", "1000000000"], 2, "over"),
        (["nowhere", "--percent", "10"], 2, "nowhere"),
        (["--rollback", "--home", "elsewhere"], 2, "elsewhere"),
        (["broken", "--percent", "10"], 1, "rejected"),
    ],
)
async def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str], status: int, said: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong usage is 2, a rejected constitution 1."""
    async with small_bus(tmp_path):
        pass
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAB_HOME", "home")
    write_constitution(tmp_path / "new", revision="2")
    write_constitution(tmp_path / "broken", {"no": "admit if input.mesage"})
    assert await command("policy", "activate", *arguments) == status
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in out + err
