"""A constitution that the settings name and that cannot take over: it is recorded and said, and the old one decides."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import ConstitutionRejected, open_bus
from enhanced_agent_bus.cli.app import run_command
from tests.acceptance.test_signatures import CHANGED, Signer, eab, edited, trusting
from tests.developer import PATIENT, log
from tests.support import write_constitution

SPACE = "bus/manifest/data.json"


def one_byte_more(files: dict[str, bytes]) -> None:
    """What OPA itself would not see."""
    files[SPACE] += b" "


def without_signature(files: dict[str, bytes]) -> None:
    """The bundle as it was built."""
    del files[".signatures.json"]


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """Whom the bus trusts."""
    return Signer(tmp_path / "keys")


def opened(home: Path) -> None:
    """A start as its settings say."""

    async def start() -> None:
        async with open_bus(home):
            pass

    asyncio.run(start())


def events(home: Path) -> list[tuple[Any, ...]]:
    """What the log says of constitutions."""
    return [(one["event"], one["revision"], one["reason"]) for one in log(home, "policy")]


@pytest.mark.parametrize("revision", ["1", "2"])
@pytest.mark.parametrize(("change", "reason"), [(one_byte_more, "bad_signature"), (without_signature, "unsigned")])
async def test_a_given_bundle_is_verified_before_anything_else(
    tmp_path: Path, signer: Signer, caplog: pytest.LogCaptureFixture, change: Any, reason: str, revision: str
) -> None:
    """Changed or unsigned, of whatever revision: it is recorded once, said at each start, and the old one decides."""
    home, first = tmp_path / "home", signer.bundle("1")
    forged = edited(first if revision == "1" else signer.bundle(revision), change)
    async with open_bus(home, **trusting(signer, first)) as bus:
        active = bus.status().constitution
    for _ in range(2):
        caplog.clear()
        async with open_bus(home, **trusting(signer, forged)) as bus:
            assert (bus.status().constitution, bus.status().revision) == (active, 1)
        [said] = [record for record in caplog.records if record.name == "enhanced_agent_bus"]
        assert said.levelno == logging.WARNING
        assert str(forged) in said.getMessage()
        assert reason in said.getMessage()
        assert "\n" not in said.getMessage()
    assert [(event, why) for event, _, why in events(home)] == [("activated", None), ("rejected", reason)]
    async with open_bus(home, **trusting(signer, first)):  # mended
        pass
    assert events(home)[-1] == ("unchanged", 1, None)
    async with open_bus(home, **trusting(signer, forged)):
        pass
    assert [event for event, _, _ in events(home)] == ["activated", "rejected", "unchanged", "rejected"]


async def test_a_bad_first_bundle_opens_nothing(tmp_path: Path, signer: Signer) -> None:
    """Where nothing was active, nothing goes on deciding."""
    forged = edited(signer.bundle("1"), one_byte_more)
    with pytest.raises(ConstitutionRejected) as raised:
        async with open_bus(tmp_path / "home", **trusting(signer, forged)):
            pass
    assert raised.value.reason == "bad_signature"


@pytest.mark.parametrize("kind", ["broken folder", "garbage", "expired"])
async def test_what_cannot_decide_does_not_stop_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A folder that was edited into nonsense, a file that is no bundle, one that has expired: the same."""
    home, folder = tmp_path / "home", write_constitution(tmp_path / "policies")
    async with open_bus(home, constitution=folder, policy=PATIENT) as bus:
        active = bus.status().constitution
    given, reason = folder, "expired" if kind == "expired" else "invalid"
    if kind == "garbage":
        given = tmp_path / "bundle.tar.gz"
        given.write_bytes(b"no tar")
    else:
        rules = None if kind == "expired" else {"everything": "admit if nonsense"}
        write_constitution(folder, rules, revision="2", not_after="2020-01-01T00:00:00Z")
    for _ in range(2):
        async with open_bus(home, constitution=given, policy=PATIENT) as bus:
            assert bus.status().constitution == active
    assert [(event, why) for event, _, why in events(home)] == [("activated", None), ("rejected", reason)]
    assert str(given) in caplog.text


async def test_an_active_one_that_has_ended_goes_on_with_nothing(tmp_path: Path, signer: Signer) -> None:
    """There the rejection of the one that is given is raised: nothing else could decide."""
    home, folder = tmp_path / "home", write_constitution(tmp_path / "policies")
    async with open_bus(home, constitution=folder, policy=PATIENT):
        pass
    with pytest.raises(ConstitutionRejected) as raised:
        async with open_bus(home, **trusting(signer, edited(signer.bundle("2"), one_byte_more))):
            pass
    assert raised.value.reason == "bad_signature"


async def test_an_older_one_is_said_and_recorded_once(
    tmp_path: Path, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    """A bundle with a lower revision is ignored, and so is another one with the same, for its own reason."""
    home = tmp_path / "home"
    older, newer, other = signer.bundle("1"), signer.bundle("2"), signer.bundle("2", CHANGED)
    async with open_bus(home, **trusting(signer, newer)):
        pass
    for given, reason in ((older, "rollback"), (other, "revision_reused")):
        for _ in range(2):
            caplog.clear()
            async with open_bus(home, **trusting(signer, given)) as bus:
                assert bus.status().revision == 2
            assert str(given) in caplog.text
        assert events(home)[-1] == ("ignored", 1 if given is older else 2, reason)
    assert len(events(home)) == 3


def test_every_command_that_looks_says_it(tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]) -> None:
    """The start says it on standard error; `status` and `doctor` in one line, until it is mended."""
    home, bundle = tmp_path / "home", tmp_path / "bundle.tar.gz"
    home.mkdir()
    (home / "eab.toml").write_text(f'[constitution]\npath = "{bundle}"\ntrust = ["{signer.public}"]\n')
    first = signer.bundle("1")
    bundle.write_bytes(first.read_bytes())
    opened(home)
    put = ["--home", str(home), "facts", "put", "conversation", "trip", "cleared", "yes"]
    start = [sys.executable, "-m", "enhanced_agent_bus", *put]
    assert subprocess.run(start, capture_output=True, text=True, check=True).stderr == ""
    bundle.write_bytes(edited(first, one_byte_more).read_bytes())
    done = subprocess.run(start, capture_output=True, text=True, check=True)
    [line] = done.stderr.splitlines()
    assert "bad_signature" in line
    assert str(bundle) in line
    assert "revision 1" in line
    for command in ("status", "doctor"):
        assert eab("--home", str(home), command) == 0
        [said] = [one for one in capsys.readouterr().out.splitlines() if "bad_signature" in one]
        assert str(bundle) in said
    assert run_command(["--home", str(home), "--json", "policy", "history"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["path"] == str(bundle)
    bundle.write_bytes(first.read_bytes())
    subprocess.run(start, capture_output=True, text=True, check=True)
    for command in ("status", "doctor"):
        assert eab("--home", str(home), command) == 0
        assert "bad_signature" not in capsys.readouterr().out
