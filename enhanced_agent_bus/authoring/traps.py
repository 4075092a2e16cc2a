"""What compiles, passes its tests and still does not mean what it says (contract §4): found by reading, not by running.

These are warnings. Whatever must not be activated is a problem of the worker's check, not one of these.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE_BYTES_MAX: Final = 1024 * 1024
FILES_MAX: Final = 10_000
#: Said once for a constitution that has tests: it holds whatever they say.
STOCK_TEST_NOTE: Final = (
    "stock `opa test` has no strict built-ins: a built-in that fails drops its rule there, and refuses here; "
    "`eab policy test` is strict"
)

_NEGATED_CALL: Final = re.compile(r"\bnot\s+([a-z_][\w.]*)\s*\([^)\n]*\binput\b", re.IGNORECASE)
_PACKAGE: Final = re.compile(r"^\s*package\s+([\w.]+)", re.MULTILINE)
_DECISION: Final = re.compile(r"\bdata\.bus\.decision\b")


@dataclass(frozen=True, slots=True)
class Trap:
    """A place to look at twice."""

    file: str
    row: int
    text: str
    message: str
    hint: str


def find_traps(path: Path) -> list[Trap]:
    """The traps in the Rego files of a folder or bundle. Raises: OSError."""
    return [trap for name, source in _rego_files(path) for trap in _traps_in(name, source)]


def _traps_in(name: str, source: str) -> Iterator[Trap]:
    found = _PACKAGE.search(source)
    package = found.group(1) if found is not None else ""
    is_test = name.endswith("_test.rego")
    for row, line in enumerate(source.splitlines(), start=1):
        code = line.split("#", 1)[0]
        negated = _NEGATED_CALL.search(code)
        if negated is not None and not is_test:
            yield Trap(
                name,
                row,
                line,
                f"`not {negated.group(1)}(input...)` is true when the field is missing",
                "say what must hold instead: a missing field then ends in no",
            )
        if is_test and package != "bus.main_test" and _DECISION.search(code):
            yield Trap(
                name,
                row,
                line,
                f"a test in package {package} asks data.bus.decision, which every other rule can change",
                "move it to package bus.main_test, or ask this rule's own `admit`",
            )


def _rego_files(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.rego"))[:FILES_MAX]:
            if file.is_file() and not file.is_symlink() and file.stat().st_size <= FILE_BYTES_MAX:
                yield file.relative_to(path).as_posix(), file.read_text(encoding="utf-8", errors="replace")
        return
    try:
        with tarfile.open(path, "r:gz") as bundle:
            for _, member in zip(range(FILES_MAX), bundle, strict=False):
                content = bundle.extractfile(member) if member.isfile() and member.name.endswith(".rego") else None
                if content is not None and member.size <= FILE_BYTES_MAX:
                    yield member.name.removeprefix("/").removeprefix("./"), content.read().decode(errors="replace")
    except (tarfile.TarError, EOFError):
        return  # the worker's check says what is wrong with it
