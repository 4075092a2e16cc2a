"""The example of workflows: three changes and a shortcut, and what its README says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus.cli.app import run_command

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "code_change"
RUN = ["run", f"{EXAMPLE / 'app.py'}:build", "--input", str(EXAMPLE / "messages.jsonl")]


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> list[Any]:
    """The documents of one command."""
    assert run_command(["--json", *arguments]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_change_ends_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One goes live, one fails in its tests, one is refused at its deployment; what was designed is reverted then."""
    monkeypatch.setenv("EAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EAB_POLICY__TIMEOUT_SECONDS", "10")
    [summary] = said(capsys, *RUN, "--constitution", str(EXAMPLE / "policies"))
    assert (summary["delivered"], summary["refused"], summary["bad_lines"]) == (3, 1, 0)
    refused = said(capsys, "audit", "search", "verdict:refuse")
    assert {record["message_id"] for record in refused} == {"architect/shortcut", "changes/desk/loud/deploy"}
    assert all(reason["rule"] == "tested_and_reviewed" for record in refused for reason in record["reasons"])
    delivered = {record["message_id"] for record in said(capsys, "audit", "search", "state:delivered", "changes/desk")}
    done = {name.removeprefix("changes/desk/") for name in delivered}
    every = {f"{change}/{step}" for change in ("greeting", "misspelt", "loud") for step in ("design", "test", "review")}
    assert done == every | {"greeting/deploy", "misspelt/design/undo", "loud/design/undo"}
    facts = {(fact["owner"], fact["key"]) for fact in said(capsys, "facts", "list") if fact["scope"] == "conversation"}
    assert facts == {
        *(("desk/greeting", word) for word in ("approved", "passed")),
        ("desk/misspelt", "approved"),
        ("desk/loud", "passed"),
    }
    said(capsys, "audit", "verify")


def test_its_constitution_has_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """What an example shows can be taken as it is."""
    [checked] = said(capsys, "policy", "check", str(EXAMPLE / "policies"), "--strict-warnings")
    assert checked["warnings"] == []
