"""The command line beside an OPA server: settings in eab.toml or the environment, `doctor`, and exit statuses."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.hostile import decided, hostile, http, provenance
from tests.opa import Opa, opa_server, pack
from tests.support import write_constitution

APP = """
async def build(bus):
    async def work(message):
        return {"n": message.payload["n"]}
    await bus.register("worker", handler=work, tenant="acme")
    await bus.register("desk", tenant="acme")
"""


class Ran(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    def finding(self, what: str) -> dict[str, str]:
        """One of `eab doctor --json`."""
        (found,) = [finding for finding in self.document["findings"] if finding["what"] == what]
        return dict(found)


class Place(NamedTuple):
    """A folder with a constitution and an app, where commands are typed."""

    folder: Path

    async def eab(self, *words: str, **variables: str) -> Ran:
        """Runs a command as a user would."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EAB_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "enhanced_agent_bus", *words),
            cwd=self.folder,
            env={**kept, "EAB_POLICY__TIMEOUT_SECONDS": "5", **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert b"Traceback" not in out + err, (out + err).decode()
        return Ran(process.returncode or 0, out.decode(), err.decode())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A small constitution, and an app."""
    write_constitution(tmp_path / "policies", {"few": "admit if input.message.payload.n < 10"}, revision="7")
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "messages.jsonl").write_text(
        "".join(json.dumps({"from": "desk", "to": "worker", "payload": {"n": n}}) + "\n" for n in (1, 11))
    )
    return Place(tmp_path)


@pytest_asyncio.fixture
async def opa(place: Place, opa_binary: Path) -> AsyncIterator[Opa]:
    """A server that serves the constitution."""
    async with opa_server(opa_binary, place.folder / "policies") as served:
        yield served


async def test_a_run_is_decided_by_the_server_that_the_settings_name(place: Place, opa: Opa) -> None:
    """Messages of `eab run` are decided there; status and log say so; the log verifies."""
    home = place.folder / ".eab"
    home.mkdir()
    (home / "eab.toml").write_text(f'[constitution]\npath = "../policies"\n[policy]\nengine = "{opa.url}"\n')
    ran = await place.eab("run", "app.py:build", "--input", "messages.jsonl", "--json")
    assert ran.status == 0, ran
    status = (await place.eab("status", "--json")).document
    assert status["accounting"]["delivered"] == 2  # the message and its reply
    assert "policy_server_trusted" in status["security_state"]
    assert status["engine"]["name"] == "server"
    assert status["engine"]["url"] == opa.url
    assert "server 1.22.2" in (await place.eab("status")).out
    assert (await place.eab("audit", "verify")).status == 0


async def test_doctor_looks_at_the_server(place: Place, opa: Opa) -> None:
    """Reachable, which OPA, bundle and revision; and what is wrong when one of them is."""
    fine = await place.eab("doctor", "--json", EAB_POLICY__ENGINE=opa.http_url)
    assert fine.status == 0, fine
    found = fine.finding("policy server")
    assert found["state"] == "ok"
    assert found["detail"] == f"{opa.http_url}: OPA 1.22.2, bundle eab, revision 7"

    other_name = await place.eab("doctor", "--json", EAB_POLICY__ENGINE=opa.url, EAB_POLICY__BUNDLE="ours")
    assert other_name.status == 1
    assert "bundles.ours.resource" in other_name.finding("policy server")["remedy"]

    embedded = await place.eab("doctor", "--json")
    assert "policy server" not in {finding["what"] for finding in embedded.document["findings"]}


async def test_doctor_compares_the_revision_with_the_home(place: Place, opa: Opa) -> None:
    """A home under revision 7 and a server with 8 do not fit, and doctor says which is which."""
    variables = {"EAB_POLICY__ENGINE": opa.url, "EAB_CONSTITUTION__PATH": "policies"}
    assert (await place.eab("run", "app.py:build", "--input", "messages.jsonl", **variables)).status == 0
    assert (await place.eab("doctor", **variables)).status == 0
    await pack(write_constitution(place.folder / "newer", revision="8"), opa.bundle)
    await opa.serve()
    ran = await place.eab("doctor", "--json", **variables)
    assert ran.status == 1
    assert ran.finding("policy server")["detail"].endswith("revision 8; revision 7 is active")


@pytest.mark.parametrize(
    ("version", "state", "words"), [("1.21.2", "wrong", "1.21.3"), ("1.21.3", "note", "1.22.2"), ("1.23.0", "note", "")]
)
async def test_doctor_names_another_version(place: Place, version: str, state: str, words: str) -> None:
    """One that is too old is wrong; another minor version is a note."""
    async with hostile(http({"provenance": provenance("7", version)})) as stub:
        ran = await place.eab("doctor", "--json", EAB_POLICY__ENGINE=stub.url)
    found = ran.finding("policy server")
    assert found["state"] == state
    assert words in found["remedy"]
    assert version in found["detail"]


async def test_doctor_says_what_keeps_the_server_away(place: Place) -> None:
    """Nobody there, a bundle that is not loaded, another program, a token that is none: one line each, exit 1."""
    nobody = await place.eab("doctor", "--json", EAB_POLICY__ENGINE=f"unix://{place.folder}/none.sock")
    assert (nobody.status, nobody.finding("policy server")["state"]) == (1, "wrong")
    assert "none.sock" in nobody.finding("policy server")["detail"]
    async with hostile(http({}, "500 Internal Server Error")) as stub:
        loading = await place.eab("doctor", "--json", EAB_POLICY__ENGINE=stub.url)
        assert "not loaded" in loading.finding("policy server")["detail"]
    async with hostile(b"220 mail.test ESMTP\r\n\r\n") as stub:
        mail = await place.eab("doctor", "--json", EAB_POLICY__ENGINE=stub.url)
        assert (mail.status, mail.finding("policy server")["state"]) == (1, "wrong")
    async with hostile(http(decided(allow=True))) as stub:
        token = await place.eab("doctor", "--json", EAB_POLICY__ENGINE=stub.url, EAB_POLICY__TOKEN_FILE="none")
        assert "policy.token_file" in token.finding("policy server")["detail"]


NO_ADDRESS = (
    *("opa:8181", "ftp://opa", "http://", "http://opa:99999", "http://opa:8181/v1/data", "http://me:pw@opa"),
    "unix://opa",
)


async def test_an_address_that_is_none_is_wrong_configuration(place: Place) -> None:
    """Exit 2, one sentence, and what may be written instead; no password is repeated."""
    for address in NO_ADDRESS:
        variables = {"EAB_POLICY__ENGINE": address, "EAB_CONSTITUTION__PATH": "policies"}
        ran = await place.eab("run", "app.py:build", "--input", "messages.jsonl", **variables)
        assert ran.status == 2, address
        assert "policy.engine" in ran.err, address
        assert '"unix:///path"' in ran.err, address
        assert "me:pw" not in ran.err
        assert not (place.folder / ".eab" / "bus.db").exists(), address


async def test_a_run_without_its_server_ends_with_refusals(place: Place) -> None:
    """The bus opens, every message is refused, and the run says so."""
    variables = {"EAB_POLICY__ENGINE": "http://127.0.0.1:9", "EAB_CONSTITUTION__PATH": "policies"}
    ran = await place.eab(
        "run", "app.py:build", "--input", "messages.jsonl", "--json", "--fail-on", "refused", **variables
    )
    assert ran.status == 1
    assert "policy_unavailable" in ran.out
