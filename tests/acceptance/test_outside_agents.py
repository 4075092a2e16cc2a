"""Agents of other processes, as a stranger in Go writes one: trusted, challenged, joined, and refused where it lies."""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enhanced_agent_bus import AgentBus, AgentExists, AuditUnavailable, BusError, Message
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.letters.keys import write_vkey
from tests.developer import log, log_text, small_bus
from tests.outsider import Outsider, outsider
from tests.support import write_constitution

APP: Final = """
async def build(bus):
    async def work(message):
        return {"done": message.payload["n"]}

    await bus.register("worker", handler=work, tenant="acme", capabilities=["work"], topics=["news"])
"""
#: Only planners may send, so that what an agent was given decides.
RULES: Final = {"planners": 'admit if "planner" in input.sender.roles\n\nadmit if input.message.type == "response"'}
SEED: Final = b"d" * 32
STRANGER: Final = b"x" * 32
SECRET: Final = "the-secret-of-the-payload"


def vkey(seed: bytes = SEED, name: str = "acme/desk") -> str:
    """The public key of a seed under a name."""
    return write_vkey(name, Ed25519PrivateKey.from_private_bytes(seed).public_key())


@pytest.fixture(scope="module")
def go() -> Iterator[Outsider]:
    """Whoever has read the page and wrote a program in Go."""
    with outsider() as program:
        yield program


class Desk(NamedTuple):
    """The agent elsewhere: what it knows of its session, and its key."""

    go: Outsider
    bus: str
    session: str
    name: str = "acme/desk"
    seed: bytes = SEED

    def envelope(self, n: int, **message: Any) -> str:
        """A signed one; by default to the worker."""
        tenant, _, agent = self.name.partition("/")
        said = {"v": 1, "bus": self.bus, "from": agent, "tenant": tenant, "session": self.session, "n": n}
        where = {} if {"to", "capability", "topic"} & message.keys() else {"to": "worker"}
        text = json.dumps({**said, **where, "payload": {"n": n, "note": SECRET}, **message})
        return self.go.ask("envelope", "", text=text, name=self.name, seed=self.seed.hex())


def said(letter: str) -> dict[str, Any]:
    """What is signed in a letter."""
    document: dict[str, Any] = json.loads(base64.b64decode(json.loads(letter)["payload"]))
    return document


def answered(go: Outsider, challenge: str, node: str, seed: bytes = SEED, name: str = "acme/desk") -> tuple[str, Desk]:
    """The answer to a challenge of the node with this vkey, and the session that it begins."""
    nonce, bus = said(challenge)["nonce"], said(challenge)["origin"].partition("/")[0]
    answer = go.ask("join", node, text=challenge, name=name, seed=seed.hex())
    return answer, Desk(go, bus, nonce, name, seed)


class Late(SystemClock):
    """The machine's clock, put forward on command."""

    later_us = 0

    def now_us(self) -> int:
        return super().now_us() + self.later_us


# --- with a bus that runs, by commands -----------------------------------------------------------------------------


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """`eab run` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "enhanced_agent_bus", "run", "app.py:build"]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("serving" in line for line in process.stderr)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an application, a constitution and the agent's public key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAB_HOME", raising=False)
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "desk.vkey").write_text(vkey() + "\n")
    write_constitution(tmp_path / "policies", RULES)
    return tmp_path


class Eab(NamedTuple):
    """Commands of this process, with what they print."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str, status: int = 0) -> str:
        """What it prints: the answer, or what is wrong."""
        assert run_command(words) == status, self.capsys.readouterr()
        out, err = self.capsys.readouterr()
        return (err if status and not out else out).strip()

    def send(self, envelope: str, *, status: int = 0) -> dict[str, Any]:
        """The receipt."""
        Path("envelope.json").write_text(envelope)
        document = json.loads(self("--json", "send", "--envelope", "envelope.json", status=status))
        return dict(document["receipt"])

    def join(self, go: Outsider) -> Desk:
        """A session that has begun."""
        challenge = self("agents", "challenge")
        answer, desk = answered(go, challenge, Path(".eab/keys/node.vkey").read_text())
        Path("answer.json").write_text(answer)
        joined = json.loads(self("--json", "agents", "join", "answer.json"))
        assert (joined["id"], joined["roles"], joined["live"], joined["trusted"]) == ("desk", ["planner"], True, True)
        return desk


def test_a_stranger_joins_a_bus_that_runs_and_sends(
    folder: Path, go: Outsider, capsys: pytest.CaptureFixture[str]
) -> None:
    """By commands and files alone; what it asks is decided, delivered and recorded; no later process takes it again."""
    eab = Eab(capsys)
    with serving(folder):
        eab("agents", "trust", "desk", "--tenant", "acme", "--key", "desk.vkey", "--role", "planner")
        assert "desk" in eab("agents")
        desk = eab.join(go)
        first = desk.envelope(1, id="order-1")
        receipt = eab.send(first)
        assert (receipt["state"], receipt["message_id"]) == ("accepted", "desk/order-1")
        assert eab.send(desk.envelope(2, topic="news"))["recipient"] == "worker"
        assert eab.send(desk.envelope(3, capability="work"))["state"] == "accepted"
        again = eab.send(first, status=1)
        assert (again["state"], again["code"]) == ("refused", "replayed")
        assert eab.send(desk.envelope(4, to="nobody"), status=1)["code"] == "recipient_unknown"
        assert "stands alone" in eab("send", "--envelope", "envelope.json", "--from", "desk", status=2)
    for command in (("agents", "challenge"), ("agents", "join", "answer.json"), ("send", "--envelope", "answer.json")):
        assert "no bus runs" in eab(*command, status=2)
    with serving(folder):  # it is trusted still, and has to join again
        assert eab.send(desk.envelope(5), status=1)["code"] == "identity_unproven"
        assert "no challenge of" in eab("agents", "join", "answer.json", status=1)
        newer = eab.join(go)
        assert eab.send(newer.envelope(1))["state"] == "accepted"
        eab("agents", "distrust", "desk")
        assert eab.send(newer.envelope(2), status=1)["code"] == "identity_unproven"
    eab("audit", "verify")
    taken = log(folder / ".eab", "decision", sender="desk", verdict="allow", why="send")
    assert [record["input"]["sender"]["roles"] for record in taken] == [["planner"]] * 4
    assert "not trusted" in eab("agents", "distrust", "desk", status=1)


def test_what_an_operator_types_wrong_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key of another name, of another tenant, or that is none lets nobody in; who is trusted is listed at rest."""
    eab = Eab(capsys)
    assert run_command(["run", "app.py:build", "--input", os.devnull]) == 0
    capsys.readouterr()
    Path("none.vkey").write_text("desk")
    trust = ("agents", "trust", "desk", "--tenant")
    assert "is of 'acme/desk', not of globex/desk" in eab(*trust, "globex", "--key", "desk.vkey", status=2)
    assert "not the vkey" in eab(*trust, "acme", "--key", "none.vkey", status=2)
    assert "No such file" in eab(*trust, "acme", "--key", "absent.vkey", status=2)
    assert "does not match" in eab(*trust, "acme", "--key", "desk.vkey", "--role", "No Name", status=2)
    assert [json.loads(line)["id"] for line in eab("--json", "agents").splitlines()] == ["worker"]
    eab(*trust, "acme", "--key", "desk.vkey", "--role", "planner")
    (row,) = [row for line in eab("--json", "agents").splitlines() if (row := json.loads(line))["id"] == "desk"]
    assert (row["trusted"], row["live"], row["roles"]) == (True, False, ["planner"])
    [record] = log(folder / ".eab", "agent", event="trusted")
    assert (record["agent"], record["tenant"], record["vkey"]) == ("desk", "acme", vkey())
    eab("agents", "distrust", "desk")
    assert '"desk"' not in eab("--json", "agents")


# --- with a bus of this process ------------------------------------------------------------------------------------


@asynccontextmanager
async def open_home(folder: Path, **given: Any) -> AsyncIterator[AgentBus]:
    """A bus with a worker, which trusts desk as a planner."""
    async with small_bus(folder, RULES, **given) as bus:

        async def work(message: Message) -> dict[str, Any]:
            return {"from": message.sender}

        await bus.register("worker", work, tenant="acme")
        await bus.trust_agent("desk", tenant="acme", key=vkey(), roles=["planner"])
        yield bus


async def joined(bus: AgentBus, go: Outsider, folder: Path, **given: Any) -> Desk:
    """An agent that has joined."""
    challenge = bus.challenge()
    answer, desk = answered(go, challenge, (folder / "home/keys/node.vkey").read_text(), **given)
    await bus.join(answer)
    return desk


def letter_changed(letter: str, **changes: Any) -> str:
    """A letter in which somebody has altered what was signed."""
    document = json.loads(letter)
    text = json.dumps({**said(letter), **changes}).encode()
    return json.dumps({**document, "payload": base64.b64encode(text).decode()})


async def test_every_wrong_envelope_is_refused_on_the_record(tmp_path: Path, go: Outsider) -> None:
    """By its code, with nothing of it kept, under the agent's name only where its key signed it; none is handled."""
    async with open_home(tmp_path) as bus:
        desk = await joined(bus, go, tmp_path)
        good = desk.envelope(1)
        wrong = {
            "identity_unproven": [
                desk._replace(seed=STRANGER).envelope(2),
                desk._replace(name="globex/desk").envelope(2),
                desk._replace(name="acme/worker").envelope(2),
                desk._replace(bus="bus-of-another").envelope(2),
                desk._replace(session="ab" * 40).envelope(2),
                letter_changed(desk.envelope(2), payload={"note": "altered-content"}),
                letter_changed(good, n=2),
                desk.envelope(2, **{"from": "worker"}),
            ],
            "replayed": [good, desk.envelope(1, payload={"other": 1})],
            "malformed": [
                "",
                "{}",
                "\ud800",
                desk.envelope(2, capability="work", to="worker"),
                desk.envelope(2, extra=1),
            ],
        }
        [receipt] = await bus.send_envelope(good)
        assert (await receipt.outcome(timeout=20)).state == "delivered"
        for code, letters in wrong.items():
            for letter in letters:
                [refused] = await bus.send_envelope(letter)
                assert (refused.state, refused.code) == ("refused", code), letter
        [receipt] = await bus.send_envelope(desk.envelope(2))
        assert receipt.state == "accepted"
        await bus.wait_idle(20)
    home = tmp_path / "home"
    refusals = log(home, "decision", verdict="refuse")
    assert [record["code"] for record in refusals] == [code for code, letters in wrong.items() for _ in letters]
    assert {record["sender"] for record in refusals} == {"", "desk"}
    assert {record["code"] for record in refusals if record["sender"]} == {"replayed"}
    assert len(log(home, "decision", verdict="allow", sender="desk", why="send")) == 2
    assert SECRET not in log_text(home)
    assert all(b"altered-content" not in file.read_bytes() for file in home.glob("bus.db*"))


async def test_every_wrong_answer_is_refused_on_the_record(tmp_path: Path, go: Outsider) -> None:
    """Another key, tenant or name, an old challenge, one answered before, one of nobody: nobody has joined by it."""
    clock = Late()
    async with open_home(tmp_path, clock=clock) as bus:
        challenge = bus.challenge()
        node = (tmp_path / "home/keys/node.vkey").read_text()
        wrong = [
            ("identity_unproven", answered(go, challenge, node, seed=STRANGER)[0]),
            ("identity_unproven", answered(go, challenge, node, name="globex/desk")[0]),
            ("identity_unproven", answered(go, challenge, node, name="acme/other")[0]),
            ("malformed", "no letter"),
        ]
        old, good = answered(go, bus.challenge(), node)[0], answered(go, challenge, node)[0]
        for code, answer in wrong:
            with pytest.raises(BusError) as refused:
                await bus.join(answer)
            assert refused.value.code == code
        assert not any(info.live for info in bus.agents() if info.id == "desk")
        await bus.join(good)
        clock.later_us = 31_000_000
        for code, answer in (("expired", good), ("expired", old)):
            with pytest.raises(BusError) as refused:
                await bus.join(answer)
            assert refused.value.code == code
        again = answered(go, bus.challenge(), node)[0]
        await bus.join(again)
        with pytest.raises(BusError) as refused:
            await bus.join(again)
        assert refused.value.code == "replayed"
    codes = [record["code"] for record in log(tmp_path / "home", "agent", event="join_refused")]
    assert codes == ["identity_unproven"] * 3 + ["malformed", "expired", "expired", "replayed"]


async def test_it_gets_no_more_than_the_operator_gave(tmp_path: Path, go: Outsider) -> None:
    """The stranger wants to be a planner; trusted without that role it is none, and policy refuses what it sends."""
    async with open_home(tmp_path) as bus:
        await bus.trust_agent("desk", tenant="acme", key=vkey(), roles=["clerk"])
        desk = await joined(bus, go, tmp_path)
        [receipt] = await bus.send_envelope(desk.envelope(1))
        assert (receipt.state, receipt.code) == ("refused", "policy_denied")
        (info,) = [info for info in bus.agents() if info.id == "desk"]
        assert (info.roles, info.trusted) == ((), True)


async def test_a_session_ends_with_the_trust_the_registration_or_the_next_one(tmp_path: Path, go: Outsider) -> None:
    """At once: not one envelope more is taken in it."""
    async with open_home(tmp_path) as bus:

        async def code(desk: Desk) -> str | None:
            [receipt] = await bus.send_envelope(desk.envelope(7))
            return receipt.code

        first = await joined(bus, go, tmp_path)
        second = await joined(bus, go, tmp_path)
        assert (await code(first), await code(second)) == ("identity_unproven", None)
        await (await bus.agent("desk")).unregister()
        assert await code(second) == "identity_unproven"
        third = await joined(bus, go, tmp_path)
        await bus.trust_agent("desk", tenant="acme", key=vkey(STRANGER), roles=["planner"])
        assert await code(third) == "identity_unproven"
        with pytest.raises(BusError, match="refused"):
            await joined(bus, go, tmp_path)
        fourth = await joined(bus, go, tmp_path, seed=STRANGER)
        assert await code(fourth) is None
        await bus.distrust_agent("desk")
        assert await code(fourth) == "identity_unproven"
        assert "desk" not in {info.id for info in bus.agents()}
        with pytest.raises(KeyError):
            await bus.distrust_agent("desk")


async def test_an_agent_of_this_process_cannot_be_joined_from_outside(tmp_path: Path, go: Outsider) -> None:
    """Nor the other way round: a name is one agent's at a time."""
    async with open_home(tmp_path) as bus:
        here = await bus.register("desk", tenant="acme", roles=["planner"])
        with pytest.raises(AgentExists):
            await joined(bus, go, tmp_path)
        await here.unregister()
        await joined(bus, go, tmp_path)
        with pytest.raises(AgentExists):
            await bus.register("desk", tenant="acme")
        with pytest.raises(AgentExists):
            await bus.trust_agent("worker", tenant="globex", key=vkey(name="globex/worker"))


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can be written to, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_distrust_that_cannot_be_recorded_ends_the_session_all_the_same(tmp_path: Path, go: Outsider) -> None:
    """Nothing more is taken in it; the agent is trusted as before, and can join again."""
    async with open_home(tmp_path) as bus:
        desk = await joined(bus, go, tmp_path)
        await bus.wait_idle(20)
        with no_room(), pytest.raises(AuditUnavailable):
            await bus.distrust_agent("desk")
        assert [info.live for info in bus.agents() if info.trusted] == [False]
        [refused] = await bus.send_envelope(desk.envelope(1))
        assert refused.code == "identity_unproven"
        again = await joined(bus, go, tmp_path)
        [receipt] = await bus.send_envelope(again.envelope(1))
        assert receipt.state == "accepted"
    assert not [one for one in log(tmp_path / "home") if one.get("event") == "distrusted"]
