"""The control socket of a running bus: who may connect, what it answers, and what it does with rubbish."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, BusError, ConstitutionRejected, Message, open_bus
from enhanced_agent_bus.control.client import call
from enhanced_agent_bus.control.server import CONNECTIONS_MAX, PATH_BYTES_MAX
from enhanced_agent_bus.control.wire import LINE_BYTES_MAX
from enhanced_agent_bus.ledger.lock import control_socket
from tests.support import write_constitution

RULES = {"no_secrets": 'admit if not "secret" in object.keys(input.message.payload)'}


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[AgentBus]:
    """A running bus with a sender and a handler."""

    async def greet(message: Message) -> dict[str, Any]:
        return {"hello": message.sender}

    async with open_bus(tmp_path / "home", constitution=write_constitution(tmp_path / "policies", RULES)) as bus:
        await bus.register("desk", tenant="acme")
        await bus.register("greeter", handler=greet, tenant="acme", capabilities=["greet"], topics=["news"])
        yield bus


@pytest.fixture
def path(bus: AgentBus) -> Path:
    """Where the bus listens."""
    found = control_socket(Path(bus.status().home))
    assert found is not None
    return found


async def ask(path: Path, op: str, args: dict[str, Any] | None = None) -> Any:
    """One question from another thread, as another process would ask it."""
    return await asyncio.to_thread(call, path, op, args, timeout=30)


async def test_only_the_owner_can_connect(path: Path) -> None:
    """The socket has mode 0600."""
    found = await asyncio.to_thread(path.stat)
    assert stat.S_IMODE(found.st_mode) == 0o600


async def test_it_answers_what_the_bus_says(bus: AgentBus, path: Path) -> None:
    """Status and agents are those of the running process."""
    assert (await ask(path, "status"))["accounting"] == bus.status().accounting
    agents = {agent["id"]: agent for agent in await ask(path, "agents")}
    assert agents["greeter"]["has_handler"]
    assert not agents["desk"]["has_handler"]


async def test_a_message_can_be_sent_through_it(path: Path) -> None:
    """The receipt comes back whole, and the outcome without the reply's payload unless it is asked for."""
    [receipt] = await ask(path, "send", {"from": "desk", "to": "greeter", "payload": {}})
    assert receipt["state"] == "accepted"
    assert receipt["ok"]
    question = {"id": receipt["message_id"], "timeout": 30}
    assert "payload" not in (await ask(path, "outcome", question))["reply"]
    outcome = await ask(path, "outcome", question | {"content": True})
    assert (outcome["state"], outcome["reply"]["payload"]) == ("delivered", {"hello": "desk"})


async def test_a_refusal_is_an_answer_with_its_reasons(path: Path) -> None:
    """The rule that said no is in the receipt."""
    [receipt] = await ask(path, "send", {"from": "desk", "to": "greeter", "payload": {"secret": 1}})
    assert (receipt["state"], receipt["code"]) == ("refused", "policy_denied")
    assert receipt["reasons"][0]["rule"] == "no_secrets"


async def test_a_payload_that_is_no_json_is_refused_and_recorded(bus: AgentBus, path: Path) -> None:
    """It takes a place in the log like any other refusal."""
    before = bus.status().records
    unreadable = {"code": "malformed", "message": "the key 'a' stands twice in one object"}
    [receipt] = await ask(path, "send", {"from": "desk", "to": "greeter", "unreadable": unreadable})
    assert (receipt["state"], receipt["code"]) == ("refused", "malformed")
    assert receipt["audit_seq"] >= before


async def test_errors_arrive_as_they_were_raised(path: Path, tmp_path: Path) -> None:
    """An unknown id is a KeyError, a rejected constitution has its reason and details."""
    with pytest.raises(KeyError):
        await ask(path, "replay", {"id": "desk/none"})
    with pytest.raises(KeyError):
        await ask(path, "send", {"from": "nobody", "to": "greeter"})
    broken = write_constitution(tmp_path / "broken", {"x": "admit if input.mesage.type"})
    with pytest.raises(ConstitutionRejected) as caught:
        await ask(path, "activate", {"path": str(broken)})
    assert caught.value.reason == "invalid"
    assert caught.value.details


async def test_facts_are_changed_through_it(path: Path) -> None:
    """What was put is listed, what was removed is gone, and what is not there is a KeyError."""
    fact = {"scope": "agent", "owner": "desk", "key": "cleared"}
    await ask(path, "put_fact", fact | {"value": "yes"})
    assert fact | {"value": ["yes"]} in await ask(path, "facts", {"scope": "agent", "owner": "desk"})
    await ask(path, "remove_fact", fact)
    assert fact["key"] not in {row["key"] for row in await ask(path, "facts", {})}
    with pytest.raises(KeyError):
        await ask(path, "remove_fact", fact)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense\n", "bad_request"),
        (b"[]\n", "bad_request"),
        (b'{"op": "no_such"}\n', "bad_request"),
        (b'{"op": "replay", "args": {}}\n', "bad_request"),
        (b'{"op": "replay", "args": {"id": 7}}\n', "bad_request"),
        (b'{"op": "send", "args": {"from": "desk", "to": "greeter", "priority": 99}}\n', "bad_request"),
        (b"[" * 100_000 + b"\n", "bad_request"),
    ],
)
async def test_rubbish_is_answered_and_the_next_one_served(path: Path, line: bytes, code: str) -> None:
    """On the same connection; the bus goes on."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line)
    assert json.loads(await reader.readline())["error"]["code"] == code
    writer.write(b'{"op": "status"}\n')
    assert "ok" in json.loads(await reader.readline())
    writer.close()
    await writer.wait_closed()


async def test_a_line_without_end_is_cut_off(path: Path) -> None:
    """A request has a largest size; the client says so itself, and the server closes on who does not."""
    with pytest.raises(BusError) as caught:
        await ask(path, "put_fact", {"value": "x" * LINE_BYTES_MAX})
    assert caught.value.code == "too_large"
    reader, writer = await asyncio.open_unix_connection(str(path), limit=LINE_BYTES_MAX)
    writer.write(b"x" * (LINE_BYTES_MAX + 70_000))
    assert json.loads(await reader.readline())["error"]["code"] == "too_large"
    assert await reader.read() == b""
    writer.close()


async def test_connections_are_bounded(path: Path) -> None:
    """One too many is told so; when one goes, the next is served."""
    idle = [await asyncio.open_unix_connection(str(path)) for _ in range(CONNECTIONS_MAX)]
    for reader, writer in idle:  # each is known to the server once it has been answered
        writer.write(b'{"op": "status"}\n')
        await reader.readline()
    with pytest.raises(BusError) as caught:
        await ask(path, "status")
    assert caught.value.code == "busy"
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(30):
        while True:
            try:
                assert await ask(path, "status")
                break
            except BusError:
                await asyncio.sleep(0)


def test_an_answer_that_came_before_the_question_is_heard(tmp_path: Path) -> None:
    """A busy server closes without reading: what it said is told, not that the pipe is broken."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def turn_away() -> None:
            connection, _ = listener.accept()
            connection.sendall(b'{"error": {"code": "busy", "message": "not now"}}\n')
            connection.close()

        server = threading.Thread(target=turn_away)
        server.start()
        with pytest.raises(BusError) as caught:  # more than a socket takes, so that it is still being sent
            call(tmp_path / "control.sock", "send", {"payload": "x" * 8_000_000}, timeout=30)
        server.join()
    assert caught.value.code == "busy"


async def test_a_client_that_goes_away_harms_nobody(path: Path) -> None:
    """Half a line and a reset, and the next command is served."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rude:
        rude.connect(str(path))
        rude.sendall(b'{"op": "sta')
    assert await ask(path, "status")


async def test_a_home_with_a_long_path_listens_elsewhere(tmp_path: Path) -> None:
    """The lock file names the short path, and the private folder goes with the bus."""
    home = tmp_path / ("deep" * 20) / ("deeper" * 10)
    async with open_bus(home, constitution=write_constitution(tmp_path / "policies")):
        found = control_socket(home)
        assert found is not None
        assert found.parent != home
        assert len(bytes(found)) <= PATH_BYTES_MAX
        assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
        assert (await ask(found, "status"))["home"] == str(home)
    assert not found.parent.exists()
    assert control_socket(home) is None
