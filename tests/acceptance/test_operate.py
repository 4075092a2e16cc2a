"""Whoever runs a bus on several machines: what nodes are allowed, how it stands, what is said when it cannot."""

from __future__ import annotations

import asyncio
import configparser
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg

from enhanced_agent_bus._share import share_folder
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.cli.doctor_nodes import nodes
from enhanced_agent_bus.ports import BUCKETS
from enhanced_agent_bus.transports.memory import open_memory
from enhanced_agent_bus.transports.permissions import as_config, permissions
from tests.developer import Doorman, Inbox, small_bus, until
from tests.nats_server import BINARY, NatsServer, free_port, running

DEMO_SECONDS = 30.0
ENDS = ("delivered", "refused", "discarded", "apart")
#: Two nodes, and somebody else with an inbox as NATS users have it.
USERS = """
authorization { users: [
  { user: one, password: a, permissions: $EAB_SHOP_NODE }
  { user: two, password: b, permissions: $EAB_SHOP_NODE }
  { user: three, password: c, permissions: { publish: { allow: ["other.>"] }, subscribe: { allow: ["_INBOX.>"] } } }
] }
"""


async def test_two_nodes_work_with_exactly_the_permissions_that_are_printed(tmp_path: Path) -> None:
    """And another user of that server hears no letter, posts into no box, and reads and changes no shared key."""
    allowed = permissions("shop")
    with running(tmp_path / "server", extra=as_config("shop", allowed) + USERS) as server:

        def at(user: str) -> dict[str, Any]:
            return {"url": server.url.replace("//", f"//{user}@"), "monitor": server.monitor_url, "name": "shop"}

        heard: list[str] = []
        stranger = await nats.connect(server.url, user="three", password="c", allow_reconnect=False)
        await stranger.subscribe("_INBOX.>", cb=_noting(heard))
        async with (
            small_bus(tmp_path, home="a", transport=at("one:a")) as a,
            small_bus(tmp_path, home="b", transport=at("two:b")) as b,
        ):
            desk = await a.register("desk", tenant="acme")
            await b.register("booker", Inbox({"booked": 7}, {"booked": 8}), tenant="acme")
            await until(lambda: any(one.id == "booker" for one in a.agents()))
            for trip in (7, 8):
                assert (await desk.request("booker", {"trip": trip}, timeout=10)).payload == {"booked": trip}
            await until(lambda: not b.status().accounting["handed_over"])
        await stranger.flush()
        assert heard == []
        await stranger.close()
        assert await denied(server.url, allowed.publish, allowed.subscribe) == {*allowed.publish, *allowed.subscribe}


async def denied(url: str, publish: Sequence[str], subscribe: Sequence[str]) -> set[str]:
    """Which of these the server does not let the third user do: it says so of each."""
    said: list[str] = []
    client = await nats.connect(url, user="three", password="c", error_cb=_told(said), allow_reconnect=False)
    for subject in publish:
        await client.publish(_one_of(subject), b"{}")
    for subject in subscribe:
        await client.subscribe(subject)
    await until(lambda: len(said) == len(publish) + len(subscribe))
    await client.close()
    denials = {f'permissions violation for publish to "{_one_of(subject)}"'.lower(): subject for subject in publish}
    denials |= {f'permissions violation for subscription to "{one}"'.lower(): one for one in subscribe}
    return {denials[one.removeprefix("nats: ").lower()] for one in said}


def _one_of(subject: str) -> str:
    return subject.replace("*", "x").replace(">", "x")


def _noting(heard: list[str]) -> Callable[[Msg], Awaitable[None]]:
    async def note(message: Msg) -> None:
        heard.append(message.subject)

    return note


def _told(said: list[str]) -> Callable[[Exception], Awaitable[None]]:
    async def tell(error: Exception) -> None:
        said.append(str(error))

    return tell


async def test_every_bucket_that_a_bus_opens_is_among_those_that_a_node_is_allowed(tmp_path: Path) -> None:
    """A node with the printed permissions is kept from none of its shared keys."""
    url = f"memory://{tmp_path.name[:50]}-buckets"
    other = open_memory(url)
    async with small_bus(tmp_path, home="a", transport={"url": url}) as bus:
        await bus.register("desk", tenant="acme")
        assert set(other.network.buckets) <= set(BUCKETS)
    await other.close()


def test_the_demo_of_nodes_says_which_program_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence with how to get it, and exit 2; nothing was started."""
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("enhanced_agent_bus.cli.demo_nodes.__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.chdir(tmp_path)
    assert run_command(["demo", "--nats"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "there is no nats-server on this machine's PATH" in said.err
    assert "go install github.com/nats-io/nats-server" in said.err


def test_permissions_are_printed_for_the_bus_of_the_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the name in its settings, as a document, a command for nsc or a configuration; a name that cannot be is 2."""
    (tmp_path / "eab.toml").write_text('[transport]\nurl = "nats://127.0.0.1"\nname = "shop"\n')
    assert run_command(["--home", str(tmp_path), "--json", "nats", "permissions"]) == 0
    document = json.loads(capsys.readouterr().out)
    allowed = permissions("shop")
    assert document == {"bus": "shop", "publish": list(allowed.publish), "subscribe": list(allowed.subscribe)}
    assert run_command(["--home", str(tmp_path), "nats", "permissions", "--nsc", "node-1"]) == 0
    command = capsys.readouterr().out
    assert shlex.split(command)[:5] == ["nsc", "edit", "user", "--name", "node-1"]
    subjects = [word for word in shlex.split(command) if "eab.shop." in word]
    assert subjects == ["eab.shop.box.*", "eab.shop.node.*", "eab.shop.notices.*", "eab.shop.inbox.>"]
    assert run_command(["nats", "permissions", "--bus", "a b"]) == 2
    assert "no name of a bus" in capsys.readouterr().err


async def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The status and what was printed, while buses of this process go on."""
    capsys.readouterr()
    status = await asyncio.to_thread(run_command, words)
    return status, capsys.readouterr().out


async def test_a_person_sees_who_is_there_and_what_is_handed_over_to_whom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The nodes with their leases, on which node each agent is, and where a message waits that has left."""
    where = {"url": f"memory://{tmp_path.name[:50]}-seen", "lease_seconds": 1.0}
    async with small_bus(tmp_path, home="a", transport=where) as a:
        desk = await a.register("desk", tenant="acme")
        async with small_bus(tmp_path, home="b", transport=where) as b:
            there = b.status().node
            door = Doorman()
            await b.register("booker", door, tenant="acme")
            await until(lambda: any(one.id == "booker" for one in a.agents()))
            receipt = await desk.send("booker", id="x")
            await until(lambda: door.got)
            home = str(tmp_path / "a")
            _, status = await typed(capsys, "--home", home, "status")
            assert f"{there}: its lease holds, renewed" in status
            assert f"{a.status().node} (this one): its lease holds" in status
            _, agents = await typed(capsys, "--home", home, "agents")
            [booker] = [line.split() for line in agents.splitlines() if line.startswith("booker")]
            assert "there" in booker
            assert booker[-1] == there
            _, listed = await typed(capsys, "--home", home, "queue", "list")
            assert listed.splitlines()[-1].split()[0] == "desk/x"
            assert listed.splitlines()[-1].split()[-1] == there
            _, lines = await typed(capsys, "--home", home, "--json", "queue", "list")
            assert json.loads(lines)["nodes"] == [there]
            door.open.set()
            assert (await receipt.outcome(timeout=10)).state == "delivered"
        await until(lambda: not all(node.alive for node in a.status().nodes))
        _, status = await typed(capsys, "--home", home, "status")
        assert f"{there}: gone or cut off, last heard of" in status


async def test_the_doctor_looks_at_the_server_as_the_home_is_set_up(tmp_path: Path, nats_server: NatsServer) -> None:
    """Nobody there yet, the bus of this home, of another home, no server: each in a sentence; nothing is made."""
    name = f"doctor{os.getpid()}"
    where = {"url": nats_server.url, "monitor": nats_server.monitor_url, "name": name}

    async def transport(home: str) -> tuple[str, str]:
        """As a home of these settings has it."""
        (tmp_path / home).mkdir(exist_ok=True)
        (tmp_path / home / "eab.toml").write_text(
            "[transport]\n" + "".join(f'{key} = "{value}"\n' for key, value in where.items())
        )
        found = await asyncio.to_thread(lambda: [*nodes(tmp_path / home)])
        assert "nats_sync" not in [one.what for one in found]  # this server has sync_interval: always, and says so
        [one] = [one for one in found if one.what == "transport"]
        return one.state, one.detail

    state, detail = await transport("a")
    assert state == "ok"
    assert "no node has opened it there yet" in detail
    async with small_bus(tmp_path, home="a", transport=where) as a:
        state, detail = await transport("a")
        assert (state, a.status().bus in detail) == ("ok", True)
    async with small_bus(tmp_path, home="other"):
        pass
    state, detail = await transport("other")
    assert state == "wrong"
    assert "and this home is of" in detail
    where["url"] = f"nats://127.0.0.1:{free_port()}"
    state, detail = await transport("a")
    assert state == "wrong"
    assert "cannot be reached" in detail


def test_a_server_that_is_away_or_lets_nobody_in_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away: could not decide (3). Not let in: wrong configuration (2). In both, what to look at; no traceback."""
    monkeypatch.chdir(tmp_path)
    app = f"{share_folder('examples') / 'three_nodes' / 'app.py'}:front"
    policies = str(share_folder("policies"))
    with running(tmp_path / "server", extra="authorization { user: one, password: a }") as server:
        for url, status, word in (
            (f"nats://127.0.0.1:{free_port()}", 3, "cannot be reached"),
            (server.url, 2, "does not let this node in"),
            (server.url.replace("//", "//one:wrong@"), 2, "does not let this node in"),
        ):
            (tmp_path / "home").mkdir(exist_ok=True)
            (tmp_path / "home" / "eab.toml").write_text(f'[transport]\nurl = "{url}"\n')
            assert run_command(["--home", "home", "run", app, "--constitution", policies]) == status
            said = capsys.readouterr().err
            assert word in said
            assert "Traceback" not in said
            assert "wrong@" not in said


@pytest.mark.soak
def test_the_demo_of_nodes_ends_alike_on_all_logs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, soak_seconds: float
) -> None:
    """With one node killed in the middle, each message ends, and the logs of the nodes fit together."""
    if soak_seconds < DEMO_SECONDS:
        pytest.skip("the server waits half a minute for a node that was killed: `make soak` does")
    monkeypatch.setenv("PATH", f"{BINARY.parent}:{os.environ['PATH']}")
    assert run_command(["--json", "demo", "--nats"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert {line["type"] for line in told["messages"]} == {"command", "event", "response"}
    assert all(line["messages"] == sum(line[end] for end in ENDS) for line in told["messages"])
    assert [one["open"] for one in told["logs"].values()] == [0, 0, 0]
    assert told["joined"]["ok"]
    assert not (Path(told["homes"]["front"]).parent / "server").exists()
    shutil.rmtree(Path(told["homes"]["front"]).parent)


DEPLOY = Path(__file__).resolve().parents[2] / "examples" / "three_nodes" / "deploy"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "operator" / "nats.md"


def test_what_the_page_shows_is_what_is_there_to_copy() -> None:
    """Each file of the folder stands in the page as it is."""
    page = PAGE.read_text(encoding="utf-8")
    for file in sorted(DEPLOY.iterdir()):
        assert f"```text\n{file.read_text(encoding='utf-8')}```\n" in page, file.name


def test_the_compose_file_has_a_server_and_a_home_for_each_node(opa_binary: Path) -> None:
    """YAML as a stranger reads it: no two nodes share a home, and the server keeps its store."""
    command = [str(opa_binary), "eval", "--format=raw", "--data", str(DEPLOY / "compose.yaml"), "data"]
    document = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    services = document["services"]
    nodes = {name: service for name, service in services.items() if name != "nats"}
    assert set(nodes) == {"front", "booking", "records"}
    for name, service in nodes.items():
        assert service["command"] == ["eab", "--home", "/home/bus", "run", f"app.py:{name}"]
        assert service["volumes"] == [f"{name}-home:/home/bus"]
        assert service["restart"] == "unless-stopped"
    assert "nats-store:/etc/nats/store" in services["nats"]["volumes"]
    assert set(document["volumes"]) == {"nats-store", *(f"{name}-home" for name in nodes)}


@pytest.mark.parametrize("name", ["eab-node@.service", "nats-server.service"])
def test_the_units_are_units(name: str, tmp_path: Path) -> None:
    """The machine's systemd takes them, where there is one; else they have the sections and keys that it needs."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    assert {"ExecStart", "Restart", "User", "WorkingDirectory"} <= set(unit["Service"])
    if shutil.which("systemd-analyze") is not None:
        started = unit["Service"]["ExecStart"].split()[0]
        file = tmp_path / name.replace("@", "@one")
        file.write_text(text.replace(started, "/bin/true"))
        done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
        assert not [line for line in done.stderr.splitlines() if file.name in line and "User" not in line], done.stderr
