"""The command line's own small parts: options anywhere, errors as sentences, output that cannot drive a terminal."""

from __future__ import annotations

import errno
import json
import sqlite3
from pathlib import Path

import pytest

import enhanced_agent_bus
from enhanced_agent_bus import errors
from enhanced_agent_bus.cli import faults
from enhanced_agent_bus.cli.app import hoist, run_command
from enhanced_agent_bus.cli.faults import CliError, describe, report
from enhanced_agent_bus.cli.render import safe
from enhanced_agent_bus.cli.runs.carry import read_time
from enhanced_agent_bus.cli.runs.loading import App


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        (["status", "--json"], ["--json", "status"]),
        (["dlq", "list", "--home", "h", "--json"], ["--home", "h", "--json", "dlq", "list"]),
        (["dlq", "list", "--home=h"], ["--home=h", "dlq", "list"]),
        (["send", "--", "--json"], ["send", "--", "--json"]),
        (["status", "--home"], ["--home", "status"]),
    ],
)
def test_global_options_may_stand_anywhere(typed: list[str], means: list[str]) -> None:
    """Before or after the command; what follows a `--` is never one."""
    assert hoist(typed) == means


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.ConfigInvalid("x"), 2, "config_invalid"),
        (errors.AgentExists("x"), 2, "agent_exists"),
        (errors.ConstitutionRejected("x", reason="invalid"), 1, "constitution_rejected"),
        (errors.StoreCorrupt("x"), 3, "store_corrupt"),
        (errors.StoreLocked("x"), 3, "store_locked"),
        (errors.AuditUnavailable("x"), 3, "audit_unavailable"),
        (errors.EngineMissing("x"), 3, "engine_missing"),
        (CliError("x"), 2, "usage"),
        (faults.unknown_id("x"), 1, "unknown_id"),
        (FileNotFoundError(errno.ENOENT, "No such file", "f"), 2, "file"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 2, "file"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 3, "store_unavailable"),
        (sqlite3.DatabaseError("file is not a database"), 3, "store_unreadable"),
        (ZeroDivisionError("division by zero"), 3, "unexpected"),
    ],
)
def test_every_error_has_its_exit_status(error: Exception, status: int, code: str) -> None:
    """Contract §8: 1 refused or unknown, 2 usage and configuration, 3 could not decide or record."""
    found, document = describe(error)
    assert (found, document["code"]) == (status, code)


def test_an_error_as_json_has_one_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """{"error": {code, message, remedy}} on standard error and nothing on standard output."""
    report(errors.StoreLocked("taken", remedy="wait"), as_json=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {"error": {"code": "store_locked", "message": "taken", "remedy": "wait"}}


def test_an_unexpected_error_is_a_sentence_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EAB_DEBUG shows where it happened; otherwise only what."""
    monkeypatch.delenv("EAB_DEBUG", raising=False)
    assert report(ZeroDivisionError("division by zero"), as_json=False) == 3
    quiet = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in quiet
    assert "Traceback" not in quiet
    monkeypatch.setenv("EAB_DEBUG", "1")
    report(ZeroDivisionError("division by zero"), as_json=False)
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\nb", "\u2028", "\u202eexe.txt", "\x9b1m", "\ud800", "\u200b"])
def test_nothing_shown_can_drive_a_terminal(text: str) -> None:
    """Controls, line separators and marks of direction are written as escapes, on one line."""
    shown = safe(text)
    assert shown.isprintable()
    assert "\\" in shown


def test_ordinary_text_is_shown_as_it_is() -> None:
    """Letters of any script stay readable."""
    assert safe("Grüße, 世界, Ωmega") == "Grüße, 世界, Ωmega"


@pytest.mark.parametrize(
    "line",
    [["nonsense"], ["policy"], ["policy", "chek"], ["send"], ["run"], ["--bogus"], ["dlq", "discard", "x"]],
)
def test_wrong_usage_exits_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With one sentence on standard error."""
    assert run_command(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("eab: ")


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["agents"],
        ["queue", "list"],
        ["held", "list"],
        ["dlq", "list"],
        ["facts", "list"],
        ["policy", "history"],
    ],
)
def test_without_a_home_reading_commands_say_so_and_create_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, and the folder that was named is not made."""
    home = tmp_path / "none"
    assert run_command(["--home", str(home), *command, "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "no_home"
    assert not home.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("app", "names no application"),
        ("nowhere.py:build", "there is no file"),
        ("no_such_module_here:build", "there is no module"),
        ("broken.py:build", "SyntaxError"),
        ("raises.py:build", "raises.py, line 2"),
        ("empty.py:build", "no function 'build'"),
        ("import_missing.py:build", "not_there"),
    ],
)
def test_an_application_that_cannot_be_had_is_named(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typo, a syntax error, an exception at import: a sentence with the file and line, exit 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "raises.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "empty.py").write_text("def other(bus): ...\n")
    (tmp_path / "import_missing.py").write_text("import not_there\n")
    with pytest.raises(CliError) as caught:
        App(name)
    assert says in caught.value.message
    assert caught.value.status == 2


def test_times_are_rfc_3339_and_utc_without_an_offset() -> None:
    """Z, an offset or none; anything else is a usage error."""
    assert (
        read_time("2026-03-04T10:30:00Z") == read_time("2026-03-04T10:30:00") == read_time("2026-03-04T12:30:00+02:00")
    )
    with pytest.raises(CliError):
        read_time("tomorrow")


@pytest.mark.parametrize("line", [[], ["--help"], ["policy", "--help"], ["run", "--help"]])
def test_help_is_plain_text(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for, exit 0; shown because there was no command, exit 2."""
    assert run_command(line) == (0 if line else 2)
    out, err = capsys.readouterr()
    assert out.startswith("Usage: eab")
    assert err == ""


def test_the_version_is_the_packages_own(capsys: pytest.CaptureFixture[str]) -> None:
    """One line."""
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"eab {enhanced_agent_bus.__version__}\n"
