"""The constitutions that a home keeps, as a page shows them: rules with their words, and source with marked lines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from enhanced_agent_bus.audit.timeline import rule_place
from enhanced_agent_bus.cli.audit.timeline import kept_files, name_of, rules_of

#: A file of a constitution is shown up to here.
LINES_MAX: Final = 2000
#: In an explanation a longer rule is shown around the lines that count.
WHOLE_LINES_MAX: Final = 60
AROUND_LINES: Final = 6
KEPT_MAX: Final = 4  # constitutions in memory; each is at most 64 MiB

_TITLE: Final = re.compile(r"#\s*title:\s*(.+)")
_ENFORCED: Final = re.compile(r"^Enforced by (.+)$", re.MULTILINE)
_HEADING: Final = re.compile(r"^##\s+(.+)$", re.MULTILINE)


class Line(NamedTuple):
    """A line of source; a number of 0 stands for lines left out."""

    number: int
    text: str
    marked: bool = False


class Rule(NamedTuple):
    """One rule of a constitution: its title, the principle that it enforces, and its file."""

    name: str
    title: str
    principle: str
    file: str | None
    line: int


class Kept(NamedTuple):
    """A constitution whose files are those of its digest."""

    digest: str
    name: str
    files: Mapping[str, bytes]
    rules: Sequence[Rule]


@lru_cache(maxsize=KEPT_MAX)
def _read(home: Path, digest: str) -> Kept | None:
    files = kept_files(home, digest)
    if files is None:
        return None
    principles = _principles(files.get("CONSTITUTION.md", b"").decode("utf-8", "replace"))
    rules = [_rule(files, rule, principles.get(rule, "")) for rule in rules_of(files)]
    return Kept(digest, name_of(files), files, rules)


def kept(home: Path, digest: str) -> Kept | None:
    """None when the home does not keep it, or keeps something else in its place."""
    found = _read(home, digest)
    if found is None:
        _read.cache_clear()  # it may come yet
    return found


def _rule(files: Mapping[str, bytes], name: str, principle: str) -> Rule:
    place = rule_place(files, name, "admit")
    file = None if place is None else str(place["file"])
    text = "" if file is None else files[file].decode("utf-8", "replace")
    title = _TITLE.search(text)
    line = 1 if place is None else int(place["line"])
    return Rule(name, title[1].strip() if title else "", principle, file, line)


def _principles(text: str) -> dict[str, str]:
    """By rule, the heading of CONSTITUTION.md under which it is named as enforcing."""
    found: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    for place, heading in enumerate(headings):
        end = headings[place + 1].start() if place + 1 < len(headings) else len(text)
        for enforced in _ENFORCED.finditer(text, heading.end(), end):
            found.update(dict.fromkeys(re.findall(r"`([^`]+)`", enforced[1]), heading[1].strip()))
    return found


def source(files: Mapping[str, bytes], name: str, marked: Sequence[int] = (), *, whole: bool = False) -> list[Line]:
    """A file with some lines marked: the whole of it, or what is around those."""
    text = files[name].decode("utf-8", "replace").split("\n")
    if whole or len(text) <= WHOLE_LINES_MAX:
        shown = set(range(1, min(len(text), LINES_MAX) + 1))
    else:
        around = (range(line - AROUND_LINES, line + AROUND_LINES + 1) for line in marked or (1,))
        shown = {number for numbers in around for number in numbers if 1 <= number <= len(text)}
    lines: list[Line] = []
    before = 0
    for number in sorted(shown):
        if number != before + 1:
            lines.append(Line(0, ""))
        lines.append(Line(number, text[number - 1].expandtabs(2), number in marked))
        before = number
    if before < len(text):
        lines.append(Line(0, ""))
    return lines
