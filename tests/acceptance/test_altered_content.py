"""Content that somebody put beside a record: no command passes it off as what was decided on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from enhanced_agent_bus import StoreCorrupt
from enhanced_agent_bus.cli.app import run_command
from tests.developer import Inbox, log, small_bus

FORGED = "forged by somebody"
ALTERED = "altered: not what was decided on"


async def eab(capsys: pytest.CaptureFixture[str], home: Path, *words: str, status: int = 0) -> str:
    """What one command prints."""
    found = await asyncio.to_thread(run_command, ["--home", str(home), *words])
    out, err = capsys.readouterr()
    assert found == status, out + err
    return str(out + err)


async def a_home(folder: Path) -> Path:
    """One message delivered, with a header; and one that was refused, with words."""
    async with small_bus(folder) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler=Inbox(), tenant="acme")
        receipt = await desk.send("booker", {"trip": 7}, id="order-1", headers={"who": "us"})
        await receipt.outcome(timeout=10)
    return folder / "home"


def forge(home: Path, column: str, value: object) -> None:
    """Somebody who can write to the database puts it in the place of what is there."""
    connection = sqlite3.connect(home / "bus.db", isolation_level=None)
    content = value if isinstance(value, str | bytes) else json.dumps(value).encode()
    assert connection.execute(f"UPDATE payloads SET {column} = ? WHERE length(body) > 0", (content,)).rowcount  # noqa: S608
    connection.close()


@pytest.mark.parametrize(
    ("column", "value"), [("body", {"trip": FORGED}), ("headers", {"who": FORGED}), ("headers", {})]
)
async def test_a_forged_payload_or_header_is_not_shown_as_what_was_decided_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: object
) -> None:
    """`verify` names the message; whatever shows content holds it against the commitment in its record."""
    home = await a_home(tmp_path)
    assert "us" in await eab(capsys, home, "audit", "show", "desk/order-1", "--payload")
    assert json.loads(await eab(capsys, home, "--json", "audit", "verify"))["content"] == 1
    forge(home, column, value)
    verdict = json.loads(await eab(capsys, home, "--json", "audit", "verify", status=1))
    assert (verdict["integrity"], verdict["completeness"], verdict["first_bad"]["damage"]) == ("bad", "ok", "altered")
    assert verdict["first_bad"]["seq"] == verdict["first_bad"]["seq_to"] == log(home, "decision")[0]["seq"]
    assert "desk/order-1" in verdict["first_bad"]["why"]
    shown = await eab(capsys, home, "audit", "show", "desk/order-1", "--payload")
    assert FORGED not in shown
    assert ALTERED in shown
    decision = log(home, "decision")[0]
    said = await eab(capsys, home, "audit", "reproduce", str(decision["seq"]), status=1)
    assert "not the one" in said
    said = await eab(capsys, home, "policy", "explain", "desk/order-1", "--payload", status=3)
    assert FORGED not in said
    assert "not what was decided on" in said
    for form in ("opa", "cloudevents"):
        assert FORGED not in await eab(capsys, home, "audit", "export", "--format", form, "--payload")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("body", "text"),
        ("salt", b"other"),
        ("salt", "text"),
        ("headers", "text"),
        ("headers", b"[1]"),
        ("headers", b"\xff"),
    ],
)
async def test_whatever_stands_beside_a_record_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: object
) -> None:
    """What no bus would write there is found like any other, and says of which message."""
    home = await a_home(tmp_path)
    forge(home, column, value)
    verdict = json.loads(await eab(capsys, home, "--json", "audit", "verify", status=1))
    assert verdict["first_bad"]["damage"] == "altered"
    assert "desk/order-1" in verdict["first_bad"]["why"]


async def test_an_altered_text_is_found_and_what_is_gone_is_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words of a refusal are held against their commitment; a payload that was erased, or an export, has none."""
    async with small_bus(tmp_path, {"quiet": 'admit if false\n\nmessage := "be quiet"'}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler=Inbox(), tenant="acme")
        for number in range(3):
            await desk.send("booker", {"n": number}, id=f"order-{number}")
    home = tmp_path / "home"
    assert json.loads(await eab(capsys, home, "--json", "audit", "verify"))["content"] == 6
    await eab(capsys, home, "audit", "erase", "desk/order-0", "--reason", "request 1")
    assert json.loads(await eab(capsys, home, "--json", "audit", "verify"))["content"] == 4
    await eab(capsys, home, "audit", "export", "-o", str(tmp_path / "log"))
    assert json.loads(await eab(capsys, home, "--json", "audit", "verify", str(tmp_path / "log")))["content"] is None
    assert "not looked at" in await eab(capsys, home, "audit", "verify", str(tmp_path / "log"))
    with closing(sqlite3.connect(home / "bus.db")) as database, database:
        assert database.execute("UPDATE texts SET body = ?", (b'{"reasons":[["be loud",""]]}',)).rowcount == 2
    said = await eab(capsys, home, "audit", "verify", status=1)
    assert "the texts of desk/order-1" in said
    assert "beside 1 more" in said


async def test_what_was_never_kept_is_told_apart_from_what_was_erased(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An erasure is named by its record; without one the content was not kept."""
    home = await a_home(tmp_path)
    assert "not kept" not in await eab(capsys, home, "audit", "show", "desk/order-1", "--payload")
    await eab(capsys, home, "audit", "erase", "desk/order-1", "--reason", "request 1")
    [erasure] = log(home, "erasure")
    shown = await eab(capsys, home, "audit", "show", "desk/order-1", "--payload")
    assert f"erased by request, seq {erasure['seq']}" in shown
    async with small_bus(tmp_path, audit={"store_payloads": False}) as bus:
        desk = await bus.agent("desk")
        booker = await bus.agent("booker")
        await booker.unregister()
        await bus.register("booker", handler=Inbox(), tenant="acme")
        receipt = await desk.send("booker", {"trip": 8}, id="order-2")
        await receipt.outcome(timeout=10)
    shown = await eab(capsys, home, "audit", "show", "desk/order-2", "--payload")
    assert "not kept" in shown
    assert "erased" not in shown


@pytest.mark.parametrize(("column", "content"), [("body", b'{"n":2}'), ("headers", b'{"k":"other"}'), ("headers", b"")])
async def test_what_waits_is_not_run_with_other_content(tmp_path: Path, column: str, content: bytes) -> None:
    """A payload or headers changed in the database are no message that was decided on: the home does not open."""
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        assert (await desk.send("booker", {"n": 1}, headers={"k": "v"})).ok
    with closing(sqlite3.connect(tmp_path / "home" / "bus.db")) as database, database:
        database.execute(f"UPDATE payloads SET {column} = ?", (content,))  # noqa: S608 - one of two
    with pytest.raises(StoreCorrupt, match="not what was stored"):
        async with small_bus(tmp_path):
            pass
