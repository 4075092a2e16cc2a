"""Which gates a message passed, in order, and which one stopped it: in the record, by `eab audit show`, on the page."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest

from enhanced_agent_bus import Message, Pass, Refusal
from enhanced_agent_bus.audit.gates import GATES, gates
from enhanced_agent_bus.audit.pack import record_schema
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.console.explain import explained
from tests.developer import Inbox, log, small_bus
from tests.support import ADMIT_ALL

HOLDS = """admit if is_string(input.message.id)

hold contains {"approvers": 1, "roles": ["boss"]} if object.get(input.message.payload, "n", 0) > 100"""
QUIET = 'admit if not object.get(input.message.payload, "loud", false)'
RULES = {"everything": ADMIT_ALL, "quiet": QUIET, "large": HOLDS}
BEFORE = ["shape", "identity", "room", "time", "stops", "constitution"]


class Passing(NamedTuple):
    """A gate of the program that has nothing against any message."""

    name: str = "nothing_against"

    async def check(self, message: Message) -> Pass:  # noqa: ARG002 - as the port has it
        return Pass()


class Picky(NamedTuple):
    """A gate of the program that refuses some, and raises at others."""

    name: str = "partner_size"

    async def check(self, message: Message) -> Pass | Refusal:
        if message.payload.get("n") == 13:
            return Refusal("over_partner_limit", "13 is too many", "send fewer")
        if message.payload.get("n") == 14:
            raise ValueError("the gate is out of order")
        return Pass()


def shown(record: dict[str, Any]) -> tuple[list[str], str, str]:
    """The names of the gates that were passed, then the one that decided, and what it said."""
    *passed, last = gates(record)
    assert all(gate["said"] == "pass" for gate in passed)
    return [_name(gate) for gate in passed], _name(last), last["said"]


def _name(gate: dict[str, Any]) -> str:
    return str(gate["name"] if gate["gate"] == "own" else gate["gate"])


async def test_every_refusal_says_what_was_passed_before_it(tmp_path: Path) -> None:
    """From the record alone, for each gate of the chain; what cannot be known of a gate is not said."""
    limits = {"mailbox": 1, "hops": 0}
    async with small_bus(tmp_path, RULES, limits=limits) as bus:
        desk = await bus.register("desk", tenant="acme")
        pinned = await bus.register("pinned", tenant="acme", constitution="0" * 64)

        async def forward(_: Message) -> None:
            await relay.send("booker", {"n": 1})

        relay = await bus.register("relay", handler=forward, tenant="acme")
        await bus.register("absent", tenant="acme", when_full="refuse")
        await bus.register("booker", Inbox(), tenant="acme")
        await bus.register("clerk", Inbox(), tenant="acme")
        await desk.send("booker", {"n": float("nan")}, id="shape")
        await desk.send("nobody", {}, id="identity")
        await desk.send("absent", {}, id="fits")
        await desk.send("absent", {}, id="room")
        await (await desk.send("relay", {}, id="relayed")).outcome(timeout=20)
        await pinned.send("booker", {}, id="constitution")
        await desk.send("booker", {"loud": True}, id="policy")
        await desk.send("clerk", {"n": 500}, id="held")  # it keeps the only place there
        await (await desk.send("booker", {"n": 1}, id="allowed")).outcome(timeout=20)
        await bus.stop_traffic("agent", "booker", reason="it misbehaves")
        await desk.send("booker", {"n": 1}, id="stopped")
    found = {record["message_id"].partition("/")[2]: record for record in log(tmp_path / "home", "decision")}
    [hop] = log(tmp_path / "home", "decision", code="hop_limit")
    assert shown(found["shape"]) == ([], "shape", "refuse")
    assert shown(found["identity"]) == (BEFORE[:1], "identity", "refuse")
    assert shown(found["room"]) == (BEFORE[:2], "room", "refuse")
    assert shown(hop) == (BEFORE[:3], "time", "refuse")
    assert shown(found["stopped"]) == (BEFORE[:4], "stops", "refuse")
    assert shown(found["constitution"]) == (BEFORE[:5], "constitution", "refuse")
    assert shown(found["policy"]) == (BEFORE, "policy", "refuse")
    assert shown(found["held"]) == (BEFORE, "policy", "hold")
    assert shown(found["allowed"]) == (BEFORE, "policy", "pass")
    assert not [record for record in found.values() if "gates" in record], "no gate of the program was asked"


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a program with two gates of its own, by which one message passed and two were refused."""
    folder = tmp_path_factory.mktemp("gated")

    async def live() -> None:
        async with small_bus(folder, RULES, gates=[Passing(), Picky()]) as bus:
            desk = await bus.register("desk", tenant="acme")
            await bus.register("booker", Inbox(), tenant="acme")
            await (await desk.send("booker", {"n": 1}, id="passed")).outcome(timeout=20)
            await desk.send("booker", {"n": 13}, id="refused")
            await desk.send("booker", {"n": 14}, id="broken")
            await desk.send("booker", {"loud": True}, id="loud")

    asyncio.run(live())
    return folder / "home"


def test_the_record_names_the_gates_of_the_program(gated: Path) -> None:
    """Those that passed, in order, and the one that refused, whether it said so or broke."""
    fits = jsonschema.Draft202012Validator(json.loads(record_schema()))
    found = {record["message_id"]: record for record in log(gated, "decision")}
    for record in found.values():
        fits.validate(record)
    both = ["nothing_against", "partner_size"]
    assert shown(found["desk/passed"]) == ([*BEFORE, *both], "policy", "pass")
    assert shown(found["desk/loud"]) == ([*BEFORE, *both], "policy", "refuse")
    assert shown(found["desk/refused"]) == ([*BEFORE, both[0]], "partner_size", "refuse")
    assert shown(found["desk/broken"]) == ([*BEFORE, both[0]], "partner_size", "refuse")
    assert found["desk/broken"]["gates"] == {"passed": 1, "names": both[:1], "refused": "partner_size"}


async def test_a_record_has_room_for_any_number_of_gates(tmp_path: Path) -> None:
    """It counts them all and names the first sixteen, however long their names are."""
    many = [Passing("\N{OCTOPUS}" * 500) for _ in range(40)]
    async with small_bus(tmp_path, gates=many) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        assert (await (await desk.send("booker", {})).outcome(timeout=20)).state == "delivered"
    [decision] = log(tmp_path / "home", "decision")
    assert (decision["gates"]["passed"], len(decision["gates"]["names"])) == (40, 16)
    assert [gate["name"] for gate in gates(decision) if gate["gate"] == "own"][-1] == "24 more"


def test_the_life_of_a_message_shows_its_gates_and_rules(gated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`eab audit show`: what it passed, what stopped it, and where every rule that admitted it stands."""
    assert run_command(["--home", str(gated), "audit", "show", "desk/passed"]) == 0
    out = capsys.readouterr().out
    assert f"passed {', '.join(BEFORE)}, gate nothing_against, gate partner_size, policy\n" in out
    assert "rule quiet admits it, bus/rules/quiet/quiet.rego:5\n" in out
    assert run_command(["--home", str(gated), "audit", "show", "desk/refused"]) == 0
    out = capsys.readouterr().out
    assert f"passed {', '.join(BEFORE)}, gate nothing_against\n" in out
    assert "stopped by gate partner_size\n" in out
    assert "admits it" not in out
    assert run_command(["--home", str(gated), "--json", "audit", "show", "desk/passed", "--timeline"]) == 0
    [decided, _] = json.loads(capsys.readouterr().out)["steps"]
    assert {gate["gate"] for gate in decided["gates"]} == set(GATES)
    assert [rule["rule"] for rule in decided["admitted_by"]] == list(RULES)
    life = explained(gated, "desk/refused", content=False)
    assert life is not None
    assert [spoke.name for spoke in life.spoke] == ["partner_size"]
