"""The second example: a constitution over what happened before, and the messages that its README tells of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus.cli.app import run_command

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "back_office"
RUN = ["run", f"{EXAMPLE / 'app.py'}:build", "--input", str(EXAMPLE / "messages.jsonl")]
AT = ["--constitution", str(EXAMPLE / "policies"), "--at", "2026-03-04T10:30:00Z"]


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> list[Any]:
    """The documents of one command."""
    assert run_command(["--json", *arguments]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_message_ends_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taint travels, the purse is shared, a new payee waits once, and nothing is paid unchecked."""
    monkeypatch.setenv("EAB_HOME", str(tmp_path / "home"))
    [summary] = said(capsys, *RUN, *AT)
    assert (summary["delivered"], summary["refused"], summary["bad_lines"]) == (2, 2, 0)
    [held] = said(capsys, "held", "list")
    assert held["message_id"] == "clerk/first-payment"
    refused = said(capsys, "audit", "search", "verdict:refuse")
    rules = {record["message_id"]: {reason["rule"] for reason in record["reasons"]} for record in refused}
    assert rules == {
        "analyst/tainted": {"taint", "checked_first"},
        "helper/second-hand": {"taint", "checked_first"},
        "clerk/unchecked": {"checked_first"},
        "clerk/other-invoice": {"checked_first"},
        "buyer/too-much": {"team_budget"},
    }
    assert not [fact for fact in said(capsys, "facts", "list") if fact["key"] == "payees"]
    [approved] = said(capsys, "held", "approve", "clerk/first-payment", "--as", "controller")
    assert approved["state"] == "accepted"
    assert [fact["value"] for fact in said(capsys, "facts", "list") if fact["key"] == "payees"] == [["Paper Ltd"]]
    assert said(capsys, "held", "list") == []
    said(capsys, "audit", "verify")
