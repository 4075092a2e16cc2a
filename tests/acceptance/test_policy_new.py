"""`eab policy new`: a rule that can be checked and tested as it is written, and what it refuses to write."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from shutil import copytree
from typing import Any, Final

import pytest

from enhanced_agent_bus.cli.app import run_command
from tests.support import write_constitution

ROOT: Final = Path(__file__).resolve().parents[2]
FILES: Final = {"quiet_hours.rego", "quiet_hours_test.rego", "data.json"}


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the starter constitution, as `eab init` leaves it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAB_HOME", raising=False)
    return copytree(ROOT / "policies", tmp_path / "policies")


def as_it_was(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the document."""
    status = run_command(["--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_a_new_rule_is_a_folder_a_name_in_the_list_and_a_paragraph(policies: Path) -> None:
    """The rest of the constitution keeps its bytes, and its list its layout."""
    before = as_it_was(policies)
    assert run_command(["policy", "new", "quiet_hours"]) == 0
    after = as_it_was(policies)
    changed = {name for name, content in after.items() if before.get(name) != content}
    assert changed == {f"bus/rules/quiet_hours/{file}" for file in FILES} | {
        "bus/manifest/data.json",
        "CONSTITUTION.md",
    }
    listed = after["bus/manifest/data.json"].decode()
    assert json.loads(listed)["rules"] == [*json.loads(before["bus/manifest/data.json"])["rules"], "quiet_hours"]
    assert listed.splitlines()[:10] == [
        *before["bus/manifest/data.json"].decode().splitlines()[:9],
        '    "office_hours",',
    ]
    words = after["CONSTITUTION.md"].decode()
    assert "## 7. Quiet hours\n" in words
    assert words.index("Enforced by `office_hours`.") < words.index("Enforced by `quiet_hours`.")
    assert words.index("Enforced by `quiet_hours`.") < words.index("## What these rules do not do")


def test_what_is_written_passes_as_it_is(policies: Path, capsys: pytest.CaptureFixture[str], opa_binary: Path) -> None:
    """Checked without a warning, tested with every line of it run, and taken by stock OPA, formatted."""
    assert run_command(["policy", "new", "quiet_hours"]) == 0
    capsys.readouterr()
    status, checked = answer(capsys, "policy", "check", "policies", "--strict-warnings")
    assert (status, checked["ok"], checked["warnings"]) == (0, True, [])
    status, tested = answer(capsys, "policy", "test", "policies")
    assert (status, tested["ok"]) == (0, True)
    (coverage,) = [file for file in tested["coverage"] if file["file"].endswith("quiet_hours.rego")]
    assert (coverage["covered"], coverage["uncovered_rows"]) == (coverage["total"], [])
    for arguments in (["check", "--bundle", "--strict"], ["test", "--bundle"], ["fmt", "--list", "--fail"]):
        done = subprocess.run([opa_binary, *arguments, policies], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["count", "json", "time", "settings", "startswith", "admit", "bus", "a", "x" * 64])
def test_a_name_may_be_one_that_rego_has_for_something(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rule's name is a part of its package, and nothing else is called so."""
    policies = write_constitution(tmp_path / "policies")
    assert run_command(["policy", "new", name, "--in", str(policies)]) == 0
    capsys.readouterr()
    status, tested = answer(capsys, "policy", "test", str(policies))
    assert (status, len(tested["tests"])) == (0, 4)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("same-tenant", "same_tenant"),
        ("QuietHours", "quiet_hours"),
        ("7days", "quiet_hours"),
        ("", "quiet_hours"),
        ("../x", "'x'"),
        ("a.b", "a_b"),
        ("größe", "gr_e"),
        ("every", "every_rule"),
        ("input", "input_rule"),
        ("quiet_test", "leave out _test"),
        ("x" * 65, "at most 64"),
        ("x\n", "'x'"),
    ],
)
def test_a_name_that_cannot_be_is_exit_2(
    name: str, remedy: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names it, and what to write instead; nothing is written."""
    before = as_it_was(policies)
    assert run_command(["policy", "new", "--", name]) == 2
    err = capsys.readouterr().err
    assert remedy in err
    assert "Traceback" not in err
    assert as_it_was(policies) == before


@pytest.mark.parametrize("name", ["same_tenant", "left_over"])
def test_a_rule_that_is_there_is_not_written_over(
    name: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listed or not."""
    (policies / "bus/rules/left_over").mkdir()
    before = as_it_was(policies)
    assert run_command(["policy", "new", name]) == 2
    assert name in capsys.readouterr().err
    assert as_it_was(policies) == before


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (None, "is not there"),
        ("bundle", "is a file"),
        ("empty", "it has no .manifest"),
        ("no main", "it has no bus/main.rego"),
        ("no list", "it has no bus/manifest/data.json"),
        ("broken list", "is not JSON"),
        ("no rules", "has no list of rules"),
    ],
)
def test_a_folder_that_is_no_constitution_is_exit_2(
    there: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what is missing, and writes nothing."""
    folder = tmp_path / "policies"
    if there == "bundle":
        folder.write_bytes(b"x")
    elif there == "empty":
        folder.mkdir()
    elif there is not None:
        write_constitution(folder)
        manifest = folder / "bus/manifest/data.json"
        if there == "no main":
            (folder / "bus/main.rego").unlink()
        elif there == "no list":
            manifest.unlink()
        else:
            manifest.write_text("{" if there == "broken list" else '{"rules": "all"}')
    before = as_it_was(tmp_path)
    assert run_command(["policy", "new", "quiet_hours", "--in", str(folder)]) == 2
    assert said in capsys.readouterr().err
    assert as_it_was(tmp_path) == before


def test_a_constitution_without_words_gets_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CONSTITUTION.md is written where there is none, and the answer names every file."""
    policies = write_constitution(tmp_path / "policies")
    (policies / "CONSTITUTION.md").unlink()
    status, written = answer(capsys, "policy", "new", "quiet_hours", "--in", str(policies))
    assert status == 0
    assert {Path(path).name for path in written["written"]} == FILES
    assert {Path(path).name for path in written["changed"]} == {"data.json", "CONSTITUTION.md"}
    assert "Enforced by `quiet_hours`." in (policies / "CONSTITUTION.md").read_text()


def test_half_a_rule_is_none(policies: Path) -> None:
    """When the list cannot be written, the folder and the paragraph are gone again."""
    (policies / "bus" / "manifest" / "data.json.part").mkdir()  # where the new list would be written first
    before = as_it_was(policies)
    assert run_command(["policy", "new", "quiet_hours"]) == 2
    assert as_it_was(policies) == before
