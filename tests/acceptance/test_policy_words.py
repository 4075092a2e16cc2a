"""What the commands for authors say about what cannot be: what, which, and what to do now."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from enhanced_agent_bus import ConfigInvalid, ConstitutionRejected, open_bus
from enhanced_agent_bus.admission.answer import ruling
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.settings import load_settings
from enhanced_agent_bus.verdict import Answer, Refusal
from tests.acceptance.test_signatures import Signer, edited, trusting
from tests.developer import PATIENT, log
from tests.support import constitution_digest, write_constitution

Captured = pytest.CaptureFixture[str]
PAST = "2020-01-01T00:00:00Z"
BROKEN = {"one": "admit if nosuch(input.message)", "two": "admit if neither(input.message)"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in, without a home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAB_HOME", raising=False)
    return tmp_path


def opened(folder: Path, policies: Path) -> None:
    """A home `.eab` that knows the agent desk."""

    async def start() -> None:
        async with open_bus(folder / ".eab", constitution=policies, policy=PATIENT) as bus:
            await bus.register("desk", tenant="acme")

    asyncio.run(start())


# --- expired -------------------------------------------------------------------------------------------------------


def test_check_says_that_a_constitution_has_expired(here: Path, capsys: Captured) -> None:
    """Every check of an activation is made, at the machine's time; building is about the content alone."""
    write_constitution(here / "old", not_after=PAST)
    assert run_command(["policy", "check", "old"]) == 1
    shown = capsys.readouterr().out
    assert f"expired at {PAST}" in shown
    assert "old cannot be activated: 1 problem" in shown
    assert run_command(["--json", "policy", "check", "old"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], [problem["reason"] for problem in document["problems"]]) == (False, ["expired"])
    assert run_command(["policy", "build", "old"]) == 0
    assert "expired" in capsys.readouterr().err
    write_constitution(here / "new", not_after="2999-01-01T00:00:00Z")
    assert run_command(["policy", "check", "new"]) == 0


def test_history_says_what_was_rejected_and_why(here: Path, capsys: Captured) -> None:
    """Digest, revision, path, and the first problem in words, expired or invalid."""
    opened(here, write_constitution(here / "policies"))
    old = write_constitution(here / "old", revision="7", not_after=PAST)
    broken = write_constitution(here / "broken", BROKEN, revision="8")
    assert [run_command(["policy", "activate", name]) for name in ("old", "broken")] == [1, 1]
    expired, invalid = log(here / ".eab", "policy", event="rejected")
    assert (expired["digest"], expired["revision"], expired["reason"]) == (constitution_digest(old), 7, "expired")
    assert (invalid["digest"], invalid["revision"], invalid["reason"]) == (constitution_digest(broken), 8, "invalid")
    assert (expired["path"], invalid["path"]) == (str(old), str(broken))
    capsys.readouterr()
    assert run_command(["policy", "history"]) == 0
    shown = capsys.readouterr().out
    for said in (str(old), f"expired at {PAST}", str(broken), "undefined function nosuch"):
        assert said in shown


# --- signatures ----------------------------------------------------------------------------------------------------


def changed(files: dict[str, bytes]) -> None:
    """After it was signed."""
    files["bus/main.rego"] += b"#"


def test_each_bad_signature_has_its_own_remedy(here: Path, capsys: Captured) -> None:
    """Changed since, signed by another, not signed, not even built."""
    signer, other = Signer(here / "signer"), Signer(here / "other")
    cases = {
        edited(signer.bundle("2"), changed): "it was changed after it was signed: fetch it again",
        other.bundle("2"): "none of the trusted keys has signed it: sign it with one of them, or add its key",
        write_constitution(here / "folder"): "build it, then sign it",
    }
    unsigned = here / "unsigned.tar.gz"
    assert run_command(["policy", "build", "folder", "-o", str(unsigned)]) == 0
    cases[unsigned] = "sign it with `eab policy sign`"

    async def tried() -> None:
        async with open_bus(here / "home", **trusting(signer, signer.bundle("1"))) as bus:
            for path, remedy in cases.items():
                with pytest.raises(ConstitutionRejected) as raised:
                    await bus.activate(path)
                assert remedy in raised.value.remedy

    asyncio.run(tried())
    (here / "home" / "eab.toml").write_text(f'[constitution]\ntrust = ["{signer.public}"]\n')
    for path, remedy in cases.items():
        capsys.readouterr()
        status = run_command(["--home", "home", "policy", "check", str(path)])
        assert status == (0 if path.is_dir() else 1)  # a folder is being written: it is signed once it is built
        if not path.is_dir():
            assert remedy.split("`")[0] in capsys.readouterr().out


def test_check_says_whether_a_bundle_is_signed(here: Path, capsys: Captured) -> None:
    """And what that is worth: with keys that the home trusts it is verified."""
    signer = Signer(here / "signer")
    bundle, unsigned = signer.bundle("1"), here / "unsigned.tar.gz"
    write_constitution(here / "policies")
    run_command(["policy", "build", "policies", "-o", str(unsigned)])

    def signature(path: Path, status: int = 0) -> dict[str, object]:
        capsys.readouterr()
        assert run_command(["--json", "policy", "check", str(path)]) == status
        found = json.loads(capsys.readouterr().out)["signature"]
        assert isinstance(found, dict)
        return found

    assert (signature(bundle)["signed"], signature(bundle)["trusted"]) == (True, None)
    assert (signature(unsigned)["signed"], signature(unsigned)["trusted"]) == (False, None)
    run_command(["policy", "check", str(unsigned)])
    assert "it is not signed" in capsys.readouterr().out
    (here / ".eab").mkdir()
    (here / ".eab" / "eab.toml").write_text(f'[constitution]\ntrust = ["{signer.public}"]\n')
    assert signature(bundle)["trusted"] is True
    assert signature(unsigned, 1)["trusted"] is False


def test_what_cannot_be_signed_says_what_to_do_first(here: Path, capsys: Captured) -> None:
    """A folder is built first; without a home the key has to be named."""
    write_constitution(here / "policies")
    assert run_command(["policy", "sign", "policies"]) == 2
    assert "eab policy build policies -o bundle.tar.gz" in capsys.readouterr().err.replace(".venv/bin/", "")
    run_command(["policy", "build", "policies"])
    assert run_command(["policy", "sign", "bundle.tar.gz"]) == 2
    assert "--key PEM" in capsys.readouterr().err


# --- invalid -------------------------------------------------------------------------------------------------------


def test_what_is_invalid_is_not_built(here: Path, capsys: Captured) -> None:
    """As with `opa build`: exit 1, the problems, and no file; one that is there stays as it is."""
    write_constitution(here / "broken", BROKEN)
    assert run_command(["policy", "build", "broken", "-o", "out.tar.gz"]) == 1
    assert "nosuch" in capsys.readouterr().err
    assert not (here / "out.tar.gz").exists()


@pytest.mark.parametrize("command", ["test", "activate", "build"])
def test_each_problem_is_named_once_with_its_hint(command: str, here: Path, capsys: Captured) -> None:
    """Also where there are several, and where the first is in the sentence already."""
    opened(here, write_constitution(here / "policies"))
    write_constitution(here / "broken", BROKEN, revision="2")
    assert run_command(["policy", command, "broken"]) == 1
    said = capsys.readouterr().err
    assert [said.count(name) for name in ("nosuch", "neither")] == [1, 1]
    assert said.count("check the spelling") == 2


def test_diff_names_what_was_given(here: Path, capsys: Captured) -> None:
    """No file of ours."""
    write_constitution(here / "good")
    write_constitution(here / "broken", BROKEN)
    assert run_command(["policy", "diff", "good", "broken"]) == 1
    said = capsys.readouterr().err
    assert "the constitution broken is not valid" in said
    assert "1.tar.gz" not in said


def test_diff_shows_what_lists_and_long_texts_differ_in(here: Path, capsys: Captured) -> None:
    """Items that came and went, and of a text the part from which on it differs."""
    names, text = [f"name-{number}" for number in range(40)], "a" * 100
    for folder, listed, end in (("a", names, "b"), ("b", [*names[1:], "late"], "c")):
        write_constitution(here / folder, data={"everything": {"names": listed, "text": text + end}})
    assert run_command(["policy", "diff", "a", "b"]) == 1
    shown = capsys.readouterr().out
    assert 'without "name-0"' in shown
    assert 'with "late"' in shown
    assert 'ab"' in shown
    assert 'ac"' in shown
    run_command(["--json", "policy", "diff", "a", "b"])
    data = {one["path"]: one for one in json.loads(capsys.readouterr().out)["data"]}
    names_changed = data["data.bus.rules.everything.names"]
    assert (names_changed["added"], names_changed["removed"]) == (["late"], ["name-0"])


# --- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["check", "test", "hash", "build", "activate", "shadow start", "backtest --candidate", "diff a"]
)
def test_an_empty_path_is_no_folder(words: str, here: Path, capsys: Captured) -> None:
    """A shell variable that is not set is not the current folder."""
    opened(here, write_constitution(here / "a"))
    assert run_command(["policy", *words.split(), ""]) == 2
    assert "empty" in capsys.readouterr().err


def test_facts_take_negative_numbers_and_agents_that_there_are(here: Path, capsys: Captured) -> None:
    """-5 is a value; a word with a dash is an option that there is not; nobody has facts who is nobody."""
    opened(here, write_constitution(here / "policies"))
    assert run_command(["facts", "put", "agent", "desk", "balance", "-5"]) == 0
    assert run_command(["facts", "put", "agent", "desk", "balance", "--", "-6.5"]) == 0
    assert run_command(["facts", "put", "agent", "desk", "balance", "--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err
    assert run_command(["facts", "put", "agent", "dsek", "balance", "1"]) == 1
    assert "nobody is registered as 'dsek'" in capsys.readouterr().err
    assert run_command(["--json", "facts", "list", "--scope", "sender"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == -6.5


def test_a_shape_that_is_not_right_is_said_in_plain_words() -> None:
    """What pydantic says is for programmers."""
    wrong = [
        {"allow": "yes"},
        {},
        [],
        {"allow": True, "more": 1},
        {"allow": True, "remember": [{"scope": "all", "key": "a", "value": 1}]},
        {"allow": True, "remember": [{"scope": "sender", "key": "a", "value": []}]},
        {"allow": True, "remember": [{"scope": "sender", "key": "a"}]},
        {"allow": True, "hold": [{"rule": "a", "roles": [], "approvers": 0}]},
        {"allow": True, "obligations": [{"type": "handler_timeout", "seconds": -1}]},
    ]
    for document in wrong:
        found = ruling(Answer(None, json.dumps(document).encode()))
        assert isinstance(found, Refusal)
        assert found.code == "policy_malformed"
        assert "nput should" not in found.message
        assert "alue error" not in found.message
        assert "valid" not in found.message
    for section in ({"policy": {"workers": 0}}, {"policy": {"timeout_seconds": "soon"}}, {"policy": {"engine": "x"}}):
        with pytest.raises(ConfigInvalid) as raised:
            load_settings(None, section)
        assert "nput should" not in str(raised.value)


def test_run_says_that_the_folder_of_the_settings_does_not_decide(here: Path, capsys: Captured) -> None:
    """Where something else was activated since, in one line, with what to type."""
    home = here / ".eab"
    write_constitution(here / "policies")
    home.mkdir()
    (home / "eab.toml").write_text('[constitution]\npath = "../policies"\n')
    (here / "app.py").write_text("def build(bus):\n    pass\n")
    (here / "none.jsonl").write_text("")
    run = ["run", "app.py:build", "--input", "none.jsonl"]
    assert run_command(run) == 0
    assert "is not the active constitution" not in capsys.readouterr().err
    write_constitution(here / "other", revision="2")
    assert run_command(["policy", "activate", "other"]) == 0
    capsys.readouterr()
    assert run_command(run) == 0
    [note] = [line for line in capsys.readouterr().err.splitlines() if "is not the active constitution" in line]
    assert "policy activate" in note
