"""How a node shows a NATS server who it is: what is wrong is one sentence and a status, and never a secret."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import nkeys
import pytest

from enhanced_agent_bus.cli.app import run_command
from tests.developer import Inbox, small_bus, until
from tests.nats_server import running
from tests.nats_users import Authority, Key, Operator, credentials
from tests.support import write_constitution

APP = "async def build(bus):\n    await bus.register('desk', tenant='acme')\n"
SECRET = re.compile(r"SU[A-Z2-7]{20,}|eyJ|PRIVATE")


async def joins(folder: Path, **transport: Any) -> None:
    """Two nodes that come in so hand a message over."""
    async with (
        small_bus(folder, home="a", transport=transport) as a,
        small_bus(folder, home="b", transport=transport) as b,
    ):
        await b.register("booker", Inbox(), tenant="acme")
        desk = await a.register("desk", tenant="acme")
        await until(lambda: any(one.id == "booker" for one in a.agents()), 30)
        assert (await (await desk.send("booker")).outcome(timeout=30)).state == "delivered"


class Turned:
    """Types a command as a node that is turned away."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self._home = folder / "turned"
        self._policies = write_constitution(folder / "own")
        self._app = folder / "app.py"
        self._app.write_text(APP, encoding="utf-8")

    def away(self, **transport: str | Path) -> tuple[int, str]:
        """The status, and the sentence that says why and what to do."""
        with self._monkeypatch.context() as patch:
            for key, value in transport.items():
                patch.setenv(f"EAB_TRANSPORT__{key.upper()}", str(value))
            words = ["--home", str(self._home), "run", f"{self._app}:build", "--constitution", str(self._policies)]
            status = run_command(words)
        out, err = self._capsys.readouterr()
        assert not out
        assert not SECRET.search(err), err
        assert not (self._home / "bus.db").exists()
        return status, err


@pytest.fixture
def turned(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Turned:
    """A node of the command line."""
    return Turned(tmp_path, capsys, monkeypatch)


def test_a_credentials_file_lets_in(tmp_path: Path, turned: Turned) -> None:
    """One of a user of the account; not one of another operator's, of an over time, with another's seed, or torn."""
    operator = Operator()
    with running(tmp_path / "server", extra=operator.config) as server:
        good = tmp_path / "good.creds"
        good.write_text(operator.credentials(), encoding="ascii")
        asyncio.run(joins(tmp_path, url=server.url, creds_file=good))
        wrong = {
            "foreign": Operator().credentials(),
            "over": operator.credentials(expires_in=-10),
            "seed": operator.credentials(key=Key(nkeys.PREFIX_BYTE_USER)),
        }
        for name, text in wrong.items():
            path = tmp_path / f"{name}.creds"
            path.write_text(text, encoding="ascii")
            status, said = turned.away(url=server.url, creds_file=path)
            assert (status, "does not let this node in" in said, "transport.creds_file" in said) == (2, True, True), (
                said
            )
        torn = {
            "no seed of a user": good.read_text().partition("-----BEGIN USER")[0],
            "no JWT of a user": good.read_text().partition("\n\n")[2],
            "no seed of": credentials("eyJhbGciOi.eyJ.eyJ", "SUAsecret"),
            "no JWT of": credentials("eyJhbGciOi", "SUAsecret"),
        }
        for words, text in torn.items():
            path = tmp_path / "torn.creds"
            path.write_text(text, encoding="ascii")
            status, said = turned.away(url=server.url, creds_file=path)
            assert (status, words in said, "torn.creds" in said) == (2, True, True), said


def test_a_client_certificate_lets_in(tmp_path: Path, turned: Turned) -> None:
    """One of the server's CA, with that CA here; not without one, with a stranger's, or at a server of another CA."""
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    certificate, key = ours.issue("server")
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{ours.path}", verify: true }}'
    with running(tmp_path / "server-folder", extra=tls) as server:
        url = server.url.replace("nats:", "tls:")
        node, node_key = ours.issue("node")
        stranger, stranger_key = other.issue("stranger")
        asyncio.run(joins(tmp_path, url=url, tls_ca=ours.path, tls_cert=node, tls_key=node_key))
        for shown in (
            {"tls_ca": ours.path},
            {"tls_ca": ours.path, "tls_cert": stranger, "tls_key": stranger_key},
            {"tls_ca": other.path, "tls_cert": node, "tls_key": node_key},
            {"tls_cert": node, "tls_key": node_key},
        ):
            status, said = turned.away(url=url, **shown)
            assert (status, "by TLS" in said, "transport.tls_" in said) == (2, True, True), said
        for wrong in (stranger_key, tmp_path / "none.key", ours.path):
            status, said = turned.away(url=url, tls_ca=ours.path, tls_cert=node, tls_key=wrong)
            assert (status, "cannot be set up" in said, str(wrong) in said) == (2, True, True), said


def test_an_nkey_lets_in(tmp_path: Path, turned: Turned) -> None:
    """The one that the server knows; not another, and not one of an account."""
    known, unknown = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    for name, key in (("known", known), ("unknown", unknown), ("account", Key(nkeys.PREFIX_BYTE_ACCOUNT))):
        (tmp_path / f"{name}.nk").write_bytes(key.seed)
    with running(tmp_path / "server", extra=f"authorization {{ users: [ {{ nkey: {known.public} }} ] }}") as server:
        asyncio.run(joins(tmp_path, url=server.url, nkey_file=tmp_path / "known.nk"))
        status, said = turned.away(url=server.url, nkey_file=tmp_path / "unknown.nk")
        assert (status, "does not let this node in" in said) == (2, True), said
        status, said = turned.away(url=server.url, nkey_file=tmp_path / "account.nk")
        assert (status, "has no seed of a user" in said) == (2, True), said
        status, said = turned.away(url=server.url.replace("//", "//node:SUsecret@"))
        assert (status, "does not let this node in" in said) == (2, True), said
    status, said = turned.away(url=server.url, nkey_file=tmp_path / "known.nk")
    assert (status, "cannot be reached" in said) == (3, True), said
