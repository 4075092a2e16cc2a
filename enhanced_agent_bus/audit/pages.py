"""Reports as pages: Markdown and HTML that need nothing else. Not here: what is in a report (report)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, select_autoescape

from enhanced_agent_bus.audit.report import MEANS

_BLANK_LINES: Final = re.compile(r"\n{3,}")
_MARKED: Final = re.compile(r"([\\`*_\[\]<>|])")


def html(report: Mapping[str, Any]) -> str:
    """One page; whatever came from a log is text in it, and never markup."""
    return _environment().get_template("report.html").render(report=report, facts=_facts(report), means=MEANS)


def markdown(report: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    page = _environment().get_template("report.md").render(report=report, facts=_facts(report), means=MEANS)
    return _BLANK_LINES.sub("\n\n", page).strip() + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("enhanced_agent_bus.audit"),
        autoescape=select_autoescape(["html"], default=False),
    )
    environment.filters["line"] = _on_one_line
    environment.filters["code"] = _in_backticks
    environment.filters["lacking"] = _lacking
    return environment


def _on_one_line(value: object) -> str:
    """Text that stays on its line and begins no markup."""
    return _MARKED.sub(r"\\\1", " ".join(str(value).split()))


def _in_backticks(value: object) -> str:
    return " ".join(str(value).split()).replace("`", "'")


def _of_starts(weakenings: Mapping[str, int], starts: int) -> str:
    told = ", ".join(f"{name} ({count} of {starts} starts)" for name, count in weakenings.items())
    return told or ("none" if starts else "not known: no start of the bus is among these records")


def _lacking(conditions: Sequence[str]) -> str:
    """Why such records cannot arise, in words."""
    words = {
        "without": "the weakening {} is in force",
        "constitution": "the active constitution has no {}",
        "setting": "the setting {} is not given",
    }
    parts = (condition.partition(":") for condition in conditions)
    return ", ".join(words[kind].format(name) for kind, _, name in parts)


def _facts(report: Mapping[str, Any]) -> list[tuple[str, object]]:
    log = report["log"]
    return [
        ("framework", f"{report['framework']['id']}, {report['framework']['source']}"),
        ("records looked at", report["records"]),
        ("from", report["from"] or "-"),
        ("to", report["to"] or "-"),
        ("integrity", log["integrity"]),
        ("completeness", log["completeness"]),
        ("time", log["time"]),
        ("size", log["size"]),
        ("root", log["root"]),
        ("records that no outside checkpoint vouches for", log["unanchored"]),
        ("weakenings in what was looked at", _of_starts(report["weakenings_of_starts"], report["starts"])),
        ("weakenings in force at the newest start", ", ".join(report["weakenings"]) or "none"),
        ("active constitution", f"{report['constitution']['digest']}, revision {report['constitution']['revision']}"),
        ("seed of the samples", report["seed"]),
    ]
