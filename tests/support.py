"""What tests of every room share: one maker of small constitutions.

It writes files as the documentation describes them and knows nothing of the package's own code.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Admits whatever has come far enough to have an id: for tests that are about something else.
ADMIT_ALL = "admit if is_string(input.message.id)"

# The gathering of answers is the same in every constitution, and no rule's business: the shipped one is taken.
MAIN = Path(__file__).resolve().parent.parent / "policies" / "bus" / "main.rego"


def write_constitution(
    folder: Path,
    rules: Mapping[str, str] | None = None,
    *,
    revision: str = "1",
    name: str = "small",
    not_after: str | None = None,
    listed: Sequence[str] | None = None,
    data: Mapping[str, Mapping[str, Any]] | None = None,
    tests: Mapping[str, str] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Write a valid constitution and return its folder; what is already in the folder is replaced file by file.

    Args:
        folder: made where it is missing.
        rules: name → Rego without `package` and `default admit := false`, which are put in front; a body with a
            `package` line is taken as it is. Without rules there is one that admits everything.
        revision: as in .manifest.
        name: as in .manifest.
        not_after: as in .manifest.
        listed: the names in bus/manifest/data.json, where they are to differ from `rules`.
        data: rule → its data.json, found at data.bus.rules.<rule>.
        tests: rule → Rego tests without `package`; as with `rules`.
        files: path → content of any further file; it wins over what was written before.
    """
    rules = {"everything": ADMIT_ALL} if rules is None else rules
    manifest = {
        "revision": revision,
        "roots": ["bus"],
        "rego_version": 1,
        "metadata": {"eab": {"name": name, "not_after": not_after}},
    }
    written: dict[str, str | bytes] = {
        ".manifest": _json(manifest),
        "CONSTITUTION.md": f"# {name}\n\n" + "".join(f"* {rule}\n" for rule in rules),
        "bus/main.rego": MAIN.read_bytes(),
        "bus/manifest/data.json": _json({"rules": list(rules if listed is None else listed)}),
    }
    for rule, body in rules.items():
        head = f"package bus.rules.{rule}\n\ndefault admit := false\n\n"
        written[f"bus/rules/{rule}/{rule}.rego"] = _rego(head, body)
    for rule, document in (data or {}).items():
        written[f"bus/rules/{rule}/data.json"] = _json(document)
    for rule, body in (tests or {}).items():
        written[f"bus/rules/{rule}/{rule}_test.rego"] = _rego(f"package bus.rules.{rule}_test\n\n", body)
    for path, content in (written | dict(files or {})).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def constitution_digest(folder: Path) -> str:
    """The constitutional hash, as the shell line in the documentation computes it."""
    paths = sorted(
        str(path.relative_to(folder)).encode()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".signatures.json"
    )
    lines = [
        b"%s  %s\n" % (hashlib.sha256((folder / path.decode()).read_bytes()).hexdigest().encode(), path)
        for path in paths
    ]
    return hashlib.sha256(b"".join(lines)).hexdigest()


def as_killed(live: Path, to: Path, *left_out: str) -> Path:
    """A home as it lies there when its process is killed: a copy, made while nothing in it changed.

    Args:
        live: a home that a bus has open.
        to: where the copy goes.
        left_out: patterns of names that are not copied, besides sockets, which cannot be.
    """
    before, now = None, _looks(live)
    while before != now:
        shutil.rmtree(to, ignore_errors=True)
        with suppress(shutil.Error, FileNotFoundError):  # a file that was just made is gone
            shutil.copytree(live, to, ignore=shutil.ignore_patterns("*.sock", *left_out))
        before, now = now, _looks(live)
    return to


def _looks(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return sorted(found)


def _rego(head: str, body: str) -> str:
    whole = any(line.startswith("package ") for line in body.splitlines())
    return f"{'' if whole else head}{body.rstrip()}\n"


def _json(document: object) -> str:
    return json.dumps(document) + "\n"
