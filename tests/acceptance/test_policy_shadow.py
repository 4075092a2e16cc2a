"""A shadow: a candidate that looks on at live decisions, counts what it would have said otherwise, and never acts."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, ConstitutionRejected, ShadowReport, open_bus
from enhanced_agent_bus.admission.shadow import DIVERGENCES_MAX, WAITING_MAX
from enhanced_agent_bus.cli.app import run_command
from tests.developer import PATIENT, Inbox, log, small_bus, until
from tests.support import constitution_digest, write_constitution

CAP = "admit if input.message.payload.amount <= 100"
Captured = pytest.CaptureFixture[str]


def report_of(bus: AgentBus) -> ShadowReport:
    """What the shadow has found, which must be there."""
    report = bus.shadow()
    assert report is not None
    return report


async def looked_at(bus: AgentBus, count: int) -> ShadowReport:
    """The report once so many decisions were compared."""
    await until(lambda: report_of(bus).compared + report_of(bus).dropped >= count, 60)
    return report_of(bus)


async def test_what_it_would_say_otherwise_is_counted_and_listed(tmp_path: Path) -> None:
    """By verdicts and by rule, with ids; the live verdicts are those of the active constitution."""
    boss = 'hold contains {"roles": ["boss"]} if input.message.payload.amount == 3'
    new = write_constitution(
        tmp_path / "new",
        {
            "cap": "admit if input.message.payload.amount <= 150",
            "boss": f"admit if true\n\n{boss}",
            "odd": "admit if input.message.payload.amount != 2",
        },
    )
    async with small_bus(tmp_path, {"cap": CAP}) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        started = await bus.start_shadow(new)
        assert (started.digest, started.percent, started.seen) == (constitution_digest(new), 100, 0)
        receipts = [await desk.send("booker", {"amount": n}, id=f"pay-{n}") for n in (1, 2, 3, 120, 200)]
        await desk.send("nobody", {"amount": 1})
        report = await looked_at(bus, 5)
        assert [receipt.state for receipt in receipts] == ["accepted"] * 3 + ["refused"] * 2
        assert (report.seen, report.compared, report.same, report.dropped) == (5, 5, 2, 0)
        assert report.flips == {"allow->refuse": 1, "allow->hold": 1, "refuse->allow": 1}
        assert report.rules == {"odd": 1, "boss": 1, "cap": 1}
        assert [(one.message_id, one.was, one.would_be, one.rules) for one in report.divergences] == [
            ("desk/pay-2", "allow", "policy_denied", ("odd",)),
            ("desk/pay-3", "allow", "hold", ("boss",)),
            ("desk/pay-120", "policy_denied", "allow", ("cap",)),
        ]
        assert report.divergences[0].decision_id == receipts[1].decision_id
        assert bus.status().shadow == report.digest
        assert bus.status().constitution == constitution_digest(tmp_path / "policies")
        await bus.wait_idle(10)
        stopped = await bus.stop_shadow()
        assert stopped.flips == report.flips
        assert (bus.shadow(), bus.status().shadow) == (None, None)
        await desk.send("booker", {"amount": 2})
        with pytest.raises(KeyError):
            await bus.stop_shadow()
    assert {record["constitution"] for record in log(tmp_path / "home", "decision")} == {
        constitution_digest(tmp_path / "policies")
    }
    started_record, stopped_record = log(tmp_path / "home", "policy")[1:]
    assert (started_record["event"], started_record["digest"], started_record["percent"]) == (
        "shadow_started",
        constitution_digest(new),
        100,
    )
    assert stopped_record["event"] == "shadow_stopped"
    assert {
        key: stopped_record[key] for key in ("reason", "seen", "compared", "dropped", "same", "flips", "errors")
    } == {
        "reason": "command",
        "seen": 5,
        "compared": 5,
        "dropped": 0,
        "same": 2,
        "flips": report.flips,
        "errors": {},
    }


ERRORS = {
    "fails": "admit if not input.message.payload.fails\n\nadmit if to_number(input.message.payload.fails) > 0",
    "sings": 'admit if true\n\nobligations contains {"type": "sing"} if input.message.payload.sings',
    "slow": "admit if not input.message.payload.slow\n\n"
    "admit if count([x | some x in numbers.range(1, 20000); some y in numbers.range(1, 20000); x == y]) > 0",
}


async def test_its_errors_are_divergences_of_their_own_kind(tmp_path: Path) -> None:
    """A built-in that fails, an obligation that nobody knows, an answer that comes too late."""
    new = write_constitution(tmp_path / "new", ERRORS)
    async with small_bus(tmp_path, policy={"timeout_seconds": 2, "workers": 1}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        await bus.start_shadow(new)
        for number, name in enumerate(("fails", "sings", "fine", "slow"), start=1):
            assert (await desk.send("booker", {name: "x"}, id=name)).state == "accepted"
            report = await looked_at(bus, number)  # each by itself: beside the slow one others could come too late
        assert report.errors == {"policy_error": 1, "obligation_unknown": 1, "policy_timeout": 1}
        assert (report.same, report.flips) == (1, {})
        assert {one.would_be for one in report.divergences} == set(report.errors)


async def test_it_is_asked_what_the_live_decision_saw(tmp_path: Path) -> None:
    """Facts as they were before the message added its own, approvals, attempts: the same rules never diverge."""
    rules = {
        "notes": 'admit if not input.message.payload.note in object.get(input.facts.sender, "notes", [])\n\n'
        'remember contains {"scope": "sender", "key": "notes", "value": input.message.payload.note}',
        "first": "admit if input.facts.conversation.sent < 2",
        "boss": 'admit if input.sender.id\n\nhold contains {"roles": ["boss"]} if input.message.payload.held',
    }
    async with small_bus(tmp_path, rules) as bus:
        desk = await bus.register("desk", tenant="acme")
        boss = await bus.register("chief", tenant="acme", roles=["boss"])
        await bus.register("booker", Inbox(ConnectionError()), tenant="acme")
        await bus.start_shadow(write_constitution(tmp_path / "new", rules, revision="2"))
        states = [
            (
                await desk.send("booker", {"note": note, "held": note == "d"}, id=f"m-{n}", conversation=f"c-{n // 3}")
            ).state
            for n, note in enumerate("abacde")
        ]
        await boss.approve("desk/m-4")
        await bus.wait_idle(10)
        decisions = len(log(tmp_path / "home", "decision"))
        report = await looked_at(bus, decisions)
        assert set(states) == {"accepted", "refused", "held"}
        assert (report.compared, report.same, report.divergences) == (decisions, decisions, ())


async def test_what_it_would_remember_otherwise_is_counted(tmp_path: Path) -> None:
    """Its verdicts are those of the active one, and later ones would not be; the same facts in other words are none."""
    rule = 'admit if input.sender.id\n\nremember contains {"scope": "%s", "key": "sum", "add": %s}'
    old = rule % ("sender", "input.message.payload.n")
    async with small_bus(tmp_path, {"sums": old}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        seen = 0
        for new, other in (
            (old, 0),
            (rule % ("sender", "2 * input.message.payload.n"), 2),
            (rule % ("tenant", "1"), 3),
        ):
            await bus.start_shadow(write_constitution(tmp_path / "new", {"sums": new}, revision="2"))
            for n in (0, 1, 2):
                assert (await desk.send("booker", {"n": n})).ok
            report = await looked_at(bus, 3)
            seen += 1
            assert (report.same, report.other_facts) == (3, other)
        assert seen == 3


async def test_it_looks_at_a_share_of_the_conversations(tmp_path: Path) -> None:
    """The same ones for every candidate: by the first 8 bytes of sha256(bus, newline, conversation)."""
    new = write_constitution(tmp_path / "new", {"no": "admit if input.message.payload.never"})
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        await bus.start_shadow(new, percent=30)
        name = bus.status().bus
        chosen = set()
        for number in range(100):
            await desk.send("booker", {}, id=f"m-{number}", conversation=f"trip-{number}")
            place = int.from_bytes(sha256(f"{name}\ntrip-{number}".encode()).digest()[:8], "big") / 2**64
            if place < 0.3:
                chosen.add(f"desk/m-{number}")
        report = await looked_at(bus, len(chosen))
        assert 0 < len(chosen) < 100
        assert report.seen == len(chosen)
        assert {one.message_id for one in report.divergences} == chosen
        for percent in (0, 101, -1, True):
            with pytest.raises(ValueError, match="percent"):
                await bus.start_shadow(new, percent=percent)


async def test_under_load_it_drops_and_the_bus_goes_on(tmp_path: Path) -> None:
    """A candidate that is slow holds up nobody: what it cannot look at is dropped and counted, in bounded memory."""
    slow = "admit if count([x | some x in numbers.range(1, 600); some y in numbers.range(1, 600); x == y]) < 0"
    reads = '\n\nadmit if input.message.id == "1"'
    new = write_constitution(tmp_path / "new", {"slow": slow + reads})
    count = WAITING_MAX + 500
    async with small_bus(tmp_path, home=":memory:", limits={"mailbox": count, "inflight": count}) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        await bus.start_shadow(new)
        receipts = await asyncio.gather(*(desk.send("booker", {}) for _ in range(count)))
        await bus.wait_idle(60)
        assert all(receipt.ok for receipt in receipts)
        assert len(inbox.got) == count
        report = report_of(bus)
        assert report.seen == count
        assert report.dropped > 0
        assert report.compared + report.dropped <= count
        report = await bus.stop_shadow()
        assert len(report.divergences) <= DIVERGENCES_MAX


async def test_a_restart_ends_it(tmp_path: Path) -> None:
    """It survives nothing; closing the bus records what it had found."""
    new = write_constitution(tmp_path / "new", {"no": "admit if input.message.payload.never"})
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        await bus.start_shadow(new)
        await desk.send("booker", {})
        await looked_at(bus, 1)
    last = log(tmp_path / "home", "policy")[-1]
    assert (last["event"], last["reason"], last["flips"]) == ("shadow_stopped", "closed", {"allow->refuse": 1})
    async with open_bus(tmp_path / "home", policy=PATIENT) as bus:
        assert (bus.shadow(), bus.status().shadow) == (None, None)
        assert bus.status().constitution == constitution_digest(tmp_path / "policies")


async def test_a_new_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    """Once it is ready: one that is rejected leaves the old one looking on, and an activation leaves both be."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        first = await bus.start_shadow(write_constitution(tmp_path / "one", revision="2"))
        broken = write_constitution(tmp_path / "broken", {"no": "admit if input.mesage"})
        with pytest.raises(ConstitutionRejected):
            await bus.start_shadow(broken)
        assert report_of(bus).digest == first.digest
        second = await bus.start_shadow(write_constitution(tmp_path / "two", {"no": "admit if input.x"} | {"no": CAP}))
        await bus.activate(write_constitution(tmp_path / "three", revision="3"))
        await desk.send("booker", {})
        report = await looked_at(bus, 1)
        assert (report.digest, report.flips) == (second.digest, {"allow->refuse": 1})
    events = [(record["event"], record["reason"]) for record in log(tmp_path / "home", "policy")]
    assert events == [
        ("activated", None),
        ("shadow_started", None),
        ("shadow_stopped", "replaced"),
        ("shadow_started", None),
        ("activated", None),
        ("shadow_stopped", "closed"),
    ]


async def command(*arguments: str) -> int:
    """A command in another thread: the bus of this one answers it."""
    return await asyncio.to_thread(run_command, arguments)


async def test_from_the_command_line(tmp_path: Path, capsys: Captured) -> None:
    """start, status and stop talk to the running bus; payloads are never shown."""
    new = write_constitution(tmp_path / "new", {"no": "admit if input.message.payload.never"})
    home = str(tmp_path / "home")
    shadow = ("--home", home, "policy", "shadow")
    async with small_bus(tmp_path) as bus:
        assert await command(*shadow, "status") == 0
        assert await command(*shadow, "stop") == 1
        out, err = capsys.readouterr()
        assert "no shadow" in out
        assert "no shadow" in err
        assert await command(*shadow, "start", str(new), "--percent", "100") == 0
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        await desk.send("booker", {"word": "secret-word"}, id="one")
        await looked_at(bus, 1)
        capsys.readouterr()
        assert await command(*shadow, "status") == 0
        out = capsys.readouterr().out
        for said in ("allow -> refuse", "desk/one", "no", constitution_digest(new)):
            assert said in out
        assert await command("--home", home, "status") == 0
        assert f"shadow        {constitution_digest(new)}" in capsys.readouterr().out
        assert await command("--json", *shadow, "stop") == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert report["flips"] == {"allow->refuse": 1}
        assert report["divergences"][0]["message_id"] == "desk/one"
        assert "secret-word" not in json.dumps(report)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["start", "new"], 2, "no bus is running"),
        (["stop"], 2, "no bus is running"),
        (["start", "nowhere"], 2, "nowhere"),
        (["start", "new", "--percent", "0"], 2, "percent"),
        (["start"], 2, "PATH"),
        (["status", "--home", "elsewhere"], 2, "elsewhere"),
    ],
)
async def test_without_a_bus_it_says_so(
    arguments: list[str], status: int, said: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shadow lives in a running bus; without one there is nothing to start, and nothing is left behind."""
    async with small_bus(tmp_path):
        pass
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAB_HOME", "home")
    write_constitution(tmp_path / "new")
    size = len(log(tmp_path / "home"))
    assert await command("policy", "shadow", *arguments) == status
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in out + err
    assert len(log(tmp_path / "home")) == size
    assert await command("policy", "shadow", "status") == 0
