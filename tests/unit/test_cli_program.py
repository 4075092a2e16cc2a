"""What hints tell a user to type: a command that works where he stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from enhanced_agent_bus.authoring.syntax import in_words
from enhanced_agent_bus.cli.program import named, program_called
from enhanced_agent_bus.cli.session import Session

MODULE = "/somewhere/enhanced_agent_bus/__main__.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `eab` in a folder that the shell does not look into, from where it is called."""
    path = tmp_path / "bin" / "eab"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    return path


def test_what_the_shell_finds_is_called_by_its_name(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eab`, whatever path it was called by."""
    monkeypatch.setenv("PATH", str(script.parent))
    assert program_called(str(script), "python3") == "eab"
    assert program_called("bin/eab", "python3") == "eab"


def test_what_the_shell_does_not_find_is_called_by_its_path(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the shell would find another one."""
    assert program_called("bin/eab", "python3") == "bin/eab"
    other = script.parent.parent / "elsewhere" / "eab"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert program_called("bin/eab", "python3") == "bin/eab"


def test_a_path_still_holds_after_a_cd(script: Path) -> None:
    """`eab init DIR` says to go there first."""
    assert program_called("bin/eab", "python3", from_folder=Path("desk")) == str(script)
    assert program_called("bin/eab", "python3", from_folder=Path()) == "bin/eab"
    assert program_called(MODULE, "python3", from_folder=Path("desk")) == "python3 -m enhanced_agent_bus"


@pytest.mark.parametrize(
    ("interpreter", "says"),
    [
        ("python", "python -m enhanced_agent_bus"),
        (".venv/bin/python", ".venv/bin/python -m enhanced_agent_bus"),
        ("/a b/python", "'/a b/python' -m enhanced_agent_bus"),
    ],
)
def test_a_module_is_called_by_its_interpreter(interpreter: str, says: str) -> None:
    """As it was typed, ready for a shell."""
    assert program_called(MODULE, interpreter) == says


def test_within_another_program_it_has_its_own_name() -> None:
    """These tests, for one."""
    assert program_called("/usr/bin/pytest", "python") == "eab"
    assert named("see `eab agents`, not eab or `eabs x`") == "see `eab agents`, not eab or `eabs x`"


def test_remedies_name_the_program_as_it_was_called(tmp_path: Path) -> None:
    """Whoever wrote them: an error of the bus names no program that is not there."""
    command = [sys.executable, "-m", "enhanced_agent_bus", "--home", str(tmp_path / "none"), "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"`{sys.executable} -m enhanced_agent_bus --home {tmp_path / 'none'} init`" in done.stderr


def test_a_hint_names_the_home_that_it_is_about() -> None:
    """Unless it is the one that would be taken anyway."""
    assert Session(Path(".eab"), json=False).command("dlq list") == "eab dlq list"
    assert Session(Path("a b"), json=False).command("dlq list") == "eab --home 'a b' dlq list"
    assert Session(Path("h"), json=False).named("see `eab agents`") == "see `eab --home h agents`"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("unexpected eof token", "ends too early"),
        ("unexpected } token", "} cannot stand here"),
        ("unexpected { token: expected \\n or ; or }", "{ cannot stand here: a new line or ; or } was expected"),
        ("non-terminated string", "no closing"),
        ("package expected", "`package`"),
        ("the rule is new", "the rule is new"),
    ],
)
def test_a_parser_is_put_into_words(said: str, says: str) -> None:
    """No tokens; what is not known is left as it was."""
    assert says in in_words(said)
    assert "token" not in in_words(said)
