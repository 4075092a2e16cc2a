"""A new rule: its folder, its place in the list of rules, and its paragraph in CONSTITUTION.md.

What is written passes `check` and `test` as it is, and admits what the other rules' tests send: a rule to start from.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NAME_CHARS_MAX: Final = 64  # what a reason shows of a rule's name
MANIFEST: Final = "bus/manifest/data.json"
CONSTITUTION: Final = "CONSTITUTION.md"
RULES: Final = "bus/rules"

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
#: What Rego does not take as a part of a package's name, or takes for something else.
RESERVED: Final = frozenset(
    {"and", "as", "contains", "data", "default", "else", "every", "false", "if", "import", "in", "input"}
    | {"not", "null", "or", "package", "rego", "some", "true", "with"}
)
_HEADING: Final = re.compile(r"^## (\d+)\. ", re.MULTILINE)
_ENFORCED: Final = re.compile(r"^Enforced by .*$", re.MULTILINE)

RULE: Final = """\
# METADATA
# title: {title}
# description: |
#   Say here what has to hold for a message to be admitted, and why. As it is written, agents
#   that data.json lists as `stopped` send nothing.
package bus.rules.{name}

import data.bus.rules.{name}.settings

default admit := false

# A rule says what is right, never only what is wrong: a field that is missing ends in no.
admit if {{
	is_string(input.sender.id)
	not input.sender.id in settings.stopped
}}

code := "{name}"

message := sprintf("%s is stopped", [input.sender.id])

remedy := "have it taken off the list in bus/rules/{name}/data.json"
"""

TEST: Final = """\
package bus.rules.{name}_test

settings := {{"stopped": ["rogue"]}}

from(agent) := {{"sender": {{"id": agent, "tenant": "acme", "roles": [], "capabilities": []}}}}

test_an_ordinary_message_is_admitted if {{
	data.bus.rules.{name}.admit with input as from("desk") with data.bus.rules.{name}.settings as settings
}}

test_a_stopped_agent_is_refused if {{
	not data.bus.rules.{name}.admit with input as from("rogue") with data.bus.rules.{name}.settings as settings
}}

test_what_is_missing_ends_in_no if {{
	not data.bus.rules.{name}.admit with input as {{}} with data.bus.rules.{name}.settings as settings
}}

test_the_refusal_says_what_to_do if {{
	said := data.bus.rules.{name}.message with input as from("rogue")
	said == "rogue is stopped"
	data.bus.rules.{name}.code == "{name}"
	contains(data.bus.rules.{name}.remedy, "data.json")
}}
"""

LINE_END: Final = "\n"
DATA: Final[dict[str, Any]] = {"settings": {"stopped": []}}


class NoRule(ValueError):
    """The rule cannot be written; the message says why, and `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Written:
    """The files that are new, and those that were added to."""

    new: tuple[Path, ...]
    changed: tuple[Path, ...]


def new_rule(name: str, folder: Path) -> Written:
    """Writes a rule into a constitution's folder, all of it or nothing. Raises: NoRule, OSError."""
    check_name(name)
    manifest, words, target = folder / MANIFEST, folder / CONSTITUTION, folder / RULES / name
    listed = _with_rule(folder, name)
    if target.exists() or target.is_symlink():
        raise NoRule(f"{target} is there already", "choose another name, or remove it")
    told = _with_paragraph(words.read_text(encoding="utf-8") if words.exists() else "# Constitution\n", name)
    files = {
        target / f"{name}.rego": RULE.format(name=name, title=title_of(name)),
        target / f"{name}_test.rego": TEST.format(name=name),
        target / "data.json": json.dumps(DATA, indent=2) + "\n",
    }
    with ExitStack() as undone:  # all of it, unless the last step is taken
        target.mkdir(parents=True)
        undone.callback(shutil.rmtree, target)
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
        if words.exists():
            undone.callback(words.write_bytes, words.read_bytes())
        else:
            undone.callback(words.unlink, missing_ok=True)
        _replace(words, told)
        _replace(manifest, listed)  # last: from here on it is asked
        undone.pop_all()
    return Written(tuple(files), (manifest, words))


def check_name(name: str) -> None:
    """Raises: NoRule, for a name that a rule cannot have."""
    if _NAME.fullmatch(name) is None:
        raise NoRule(
            f"{name[:NAME_CHARS_MAX]!r} cannot be a rule's name: that has small letters, digits and _, a letter first",
            f"write {near!r}" if (near := _near(name)) else "write one like quiet_hours",
        )
    if len(name) > NAME_CHARS_MAX:
        raise NoRule(f"a rule's name of {len(name)} characters is too long", f"use at most {NAME_CHARS_MAX}")
    if name in RESERVED:
        raise NoRule(f"{name!r} means something else in Rego", f"write a name that says more: {name}_rule")
    if name.endswith("_test"):
        raise NoRule(f"{name!r} is the name of tests: they stand in package bus.rules.<rule>_test", "leave out _test")


def _near(name: str) -> str:
    """The name that was most likely meant; empty when nothing is left of it."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    near = re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")[:NAME_CHARS_MAX]
    return near if _NAME.fullmatch(near) and near not in RESERVED and not near.endswith("_test") else ""


def title_of(name: str) -> str:
    """quiet_hours: Quiet hours."""
    return name.replace("_", " ").capitalize()


def _with_rule(folder: Path, name: str) -> str:
    """The list of rules with one more, laid out as it was. Raises: NoRule, when the folder is no constitution."""
    remedy = "name a constitution's folder with --in DIR; `eab init` writes one to start from"
    if not folder.is_dir():
        what = "is a file, and a rule is written into a folder" if folder.exists() else "is not there"
        raise NoRule(f"{folder} {what}", remedy)
    for file in (".manifest", "bus/main.rego", MANIFEST):
        if not (folder / file).is_file():
            raise NoRule(f"{folder} is no constitution: it has no {file}", remedy)
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise NoRule(f"{folder / MANIFEST} is not JSON: {error}", "mend it first") from None
    rules = document.get("rules") if isinstance(document, dict) else None
    if not isinstance(rules, list):
        raise NoRule(f"{folder / MANIFEST} has no list of rules", 'write {"rules": [...]}')
    if name in rules:
        raise NoRule(f"the rule {name} is listed in {folder / MANIFEST} already", "choose another name")
    layout = _layout(text, document)
    rules.append(name)
    return json.dumps(document, ensure_ascii=False, indent=layout) + "\n"


def _layout(text: str, document: Any) -> int | str | None:
    """The indentation with which a JSON file was written."""
    for indent in (2, 4, "\t", None):
        if json.dumps(document, ensure_ascii=False, indent=indent) == text.rstrip():
            return indent
    return None if "\n" not in text.strip() else 2


def _with_paragraph(text: str, name: str) -> str:
    """The words of the constitution with a principle for the rule, behind the last one that names its rules."""
    numbers = [int(number) for number in _HEADING.findall(text)]
    number = f"{max(numbers) + 1}. " if numbers else ""
    paragraph = (
        f"## {number}{title_of(name)}\n\n"
        "Say here in words what has to hold, and why. As it is written, the rule stops the senders that its data name."
        "\n\n"
        f"Enforced by `{name}`.\n"
    )
    ends = [found.end() for found in _ENFORCED.finditer(text)]
    if not ends:
        return f"{text.rstrip()}\n\n{paragraph}"
    return f"{text[: ends[-1]]}\n\n{paragraph}{text[ends[-1] :].removeprefix(LINE_END)}"


def _replace(path: Path, text: str) -> None:
    """The whole new text or the old one, never half of it."""
    part = path.with_name(f"{path.name}.part")
    with ExitStack() as undone:
        undone.callback(part.unlink, missing_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
        undone.pop_all()
