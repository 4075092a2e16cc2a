"""Every kind of record there is: packs' schema takes it, queries know its fields, a person can read it on one line."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from enhanced_agent_bus import Retry, open_bus
from enhanced_agent_bus.audit.pack import record_schema
from enhanced_agent_bus.audit.query import FIELDS
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.cli.audit.read import in_short
from tests.developer import PATIENT, Inbox, log, small_bus, until

HOLDS = """admit if true

hold contains {"approvers": 1, "roles": ["boss"], "expires_in": 60} if input.message.payload.n > 100"""


@pytest.fixture
async def records(tmp_path: Path) -> list[dict[str, Any]]:
    """The log of a home that was lost, begun again, and in which everything happened that can be recorded."""
    home = tmp_path / "home"
    async with small_bus(tmp_path, {"large": HOLDS}, home="other") as other:
        note = await other.checkpoint()
    async with small_bus(tmp_path) as bus:
        await bus.checkpoint()
    (home / "bus.db").unlink()
    assert eab("--home", str(home), "init", "--new-log") == 0
    async with open_bus(home, constitution=tmp_path / "policies", policy=PATIENT) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        await bus.register("broken", Inbox(*[ValueError("no")] * 9), tenant="acme", retry=Retry.linear(9, 3600, 3600))
        desk = await bus.register("desk", tenant="acme", roles=["planner"])
        boss = await bus.register("boss", tenant="acme", roles=["boss"])
        done = await desk.send("booker", {"n": 1}, id="done")
        assert (await done.outcome(timeout=10)).state == "delivered"
        held = await desk.send("booker", {"n": 500}, id="large")
        await boss.approve(held.message_id)
        failing = await desk.send("broken", {"n": 1}, id="failing")
        await until(lambda: [one for one in bus.recoveries() if one.message_id == failing.message_id])
        await until(lambda: bus.status().accounting["retrying"])
        await bus.pause_recovery()
        await bus.put_fact("agent", "desk", "spent", 7)
        await bus.note_access("a test", "message desk/done")
        await bus.witness(note)
        await bus.add_legal_hold("conversation", "trip", reason="case 12")
        await bus.erase("message", done.message_id, reason="request 4711")
        await bus.rotate_key()
        await bus.stop_traffic("all", reason="fire")
        await bus.resume_traffic("all", reason="out")
    return log(home)


def eab(*words: str) -> int:
    """One command's exit status, outside the loop of the test."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run_command, list(words)).result()


async def test_what_is_said_of_kinds_holds_for_every_kind(records: list[dict[str, Any]]) -> None:
    """The schema names each kind and no other, and takes its record; its fields can be asked for; its line is words."""
    schema = json.loads(record_schema())
    assert {record["kind"] for record in records} == set(schema["properties"]["kind"]["enum"])
    named = {name for part in schema["allOf"] for name in _kinds(part["if"]["properties"]["kind"])}
    assert named == set(schema["properties"]["kind"]["enum"]), "a kind has no shape of its own"
    fits = jsonschema.Draft202012Validator(schema)
    for record in records:
        fits.validate(record)
        assert set(record) <= FIELDS, record["kind"]
        line = in_short(record)
        assert line, record
        assert not set("{}[]'") & set(line), line


def _kinds(condition: dict[str, Any]) -> list[str]:
    return [condition["const"]] if "const" in condition else list(condition["enum"])
