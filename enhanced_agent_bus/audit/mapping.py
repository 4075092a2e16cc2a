"""Mappings: for each control of a framework, which records are evidence for it. TOML that a compliance team edits.

    id, name, source, note
    [[control]] id, title, asks; organisational = "why no log can show it", or
    [[control.evidence]] says; query = words as `audit search` takes them, or check = integrity | completeness | time |
        anchored; configured = conditions of the home under which such records could arise at all

Not here: looking for the records (report).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

from enhanced_agent_bus.audit.query import BadQuery, Query, parse

CHECKS: Final = ("integrity", "completeness", "time", "anchored")
ALWAYS: Final = "always"
#: What a condition begins with, and what it asks.
CONDITIONS: Final[Mapping[str, str]] = {
    "without": "a weakening that must not be in force",
    "constitution": "a rule, or a word of one (hold, remember, obligations), in the active constitution",
    "setting": "a setting that must be given",
}
_CONTROL: Final = frozenset(("id", "title", "asks", "organisational", "evidence"))
_EVIDENCE: Final = frozenset(("says", "query", "check", "configured"))
_TOP: Final = frozenset(("id", "name", "source", "note", "control"))


class BadMapping(ValueError):
    """What is wrong with a mapping, and where in it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Records, or a verdict on the log, that show a control at work."""

    says: str
    query: str  # as it is written; empty where `check` is given
    check: str
    configured: tuple[str, ...]

    def parsed(self) -> Query:
        """Raises: BadQuery, for a check."""
        return parse([self.query])


@dataclass(frozen=True, slots=True)
class Control:
    """One thing that a framework asks for; without evidence it is organisational, and that says why."""

    id: str
    title: str
    asks: str
    organisational: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class Framework:
    """What is asked for, and where that stands."""

    id: str
    name: str
    source: str
    note: str
    controls: tuple[Control, ...]


def shipped() -> list[str]:
    """The ids of the mappings that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def shipped_text(framework: str) -> str:
    """The file of a mapping that comes with the package. Raises: KeyError."""
    if framework not in shipped():
        raise KeyError(framework)
    return _folder().joinpath(f"{framework}.toml").read_text(encoding="utf-8")


def _folder() -> Traversable:
    return files("enhanced_agent_bus.audit").joinpath("frameworks")


def read(text: str) -> Framework:
    """A mapping from its TOML. Raises: BadMapping."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadMapping(f"it is not TOML: {error}") from None
    _only(document, _TOP, "the mapping")
    controls = document.get("control")
    if not isinstance(controls, list) or not controls:
        raise BadMapping("it has no [[control]]")
    read_controls = tuple(_control(one, number) for number, one in enumerate(controls, 1))
    ids = [control.id for control in read_controls]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise BadMapping(f"control {twice} stands there twice")
    front = {name: _text(document, name, "the mapping") for name in ("id", "name", "source")}
    return Framework(**front, note=_text(document, "note", "the mapping", needed=False), controls=read_controls)


def _control(document: Any, number: int) -> Control:
    where = f"control number {number}"
    if not isinstance(document, dict):
        raise BadMapping(f"{where} is no table")
    where = f"control {document.get('id') or f'number {number}'}"
    _only(document, _CONTROL, where)
    organisational = _text(document, "organisational", where, needed=False)
    evidence = document.get("evidence", [])
    if not isinstance(evidence, list) or bool(evidence) == bool(organisational):
        raise BadMapping(f"{where} needs either [[control.evidence]] or organisational")
    front = {name: _text(document, name, where) for name in ("id", "title", "asks")}
    return Control(**front, organisational=organisational, evidence=tuple(_evidence(one, where) for one in evidence))


def _evidence(document: Any, where: str) -> Evidence:
    where = f"evidence of {where}"
    if not isinstance(document, dict):
        raise BadMapping(f"{where} is no table")
    _only(document, _EVIDENCE, where)
    query, check = (_text(document, name, where, needed=False) for name in ("query", "check"))
    if bool(query) == bool(check):
        raise BadMapping(f"{where} needs either query or check")
    if check and check not in CHECKS:
        raise BadMapping(f"{where}: check is one of {', '.join(CHECKS)}, not {check!r}")
    if query:
        try:
            parse([query])
        except BadQuery as error:
            raise BadMapping(f"{where}: {error.message}: {error.remedy}") from None
    return Evidence(_text(document, "says", where), query, check, _conditions(document.get("configured"), where))


def _conditions(found: Any, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise BadMapping(f'{where} needs configured = ["{ALWAYS}"] or a list of conditions')
    for condition in found:
        kind, _, name = condition.partition(":")
        if condition != ALWAYS and (kind not in CONDITIONS or not name):
            kinds = ", ".join(f"{known}:NAME" for known in CONDITIONS)
            raise BadMapping(f"{where}: a condition is {ALWAYS}, {kinds}, not {condition!r}")
    return tuple(found)


def _text(document: Mapping[str, Any], name: str, where: str, *, needed: bool = True) -> str:
    value = document.get(name, "")
    if not isinstance(value, str) or (needed and not value):
        raise BadMapping(f"{where} needs a text {name}")
    return value


def _only(document: Mapping[str, Any], known: Sequence[str] | frozenset[str], where: str) -> None:
    unknown = sorted(document.keys() - known)
    if unknown:
        raise BadMapping(f"{where} has {unknown[0]!r}, which is none of {', '.join(sorted(known))}")
