"""Who may import whom: the rooms of the package, read from the source of every module.

Imports inside functions and for types alone count like any others. Not here: what a room does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

PACKAGE: Final = "enhanced_agent_bus"
FOLDER: Final = Path(__file__).resolve().parent.parent / PACKAGE

VALUES: Final = frozenset({"message", "verdict", "outcome", "errors", "weakenings"})
STATIONS: Final = frozenset({"admission", "routing", "delivery", "recovery", "deliberation", "retention"})
FILLERS: Final = frozenset({"engines", "ledger", "transports"})
SHOWN: Final = VALUES | {"ports", "settings", "agent", "bus", "clock", "control", "wiring", "_share"}

#: Each room (a module at the top, or a folder) and the rooms that it may import besides itself.
MAY_IMPORT: Final[dict[str, frozenset[str]]] = {
    "message": VALUES,
    "verdict": VALUES,
    "outcome": VALUES,
    "errors": VALUES,
    "weakenings": VALUES,
    "settings": VALUES,
    "ports": VALUES,
    "clock": VALUES,
    "faultpoints": VALUES,
    "_share": frozenset(),
    **dict.fromkeys(STATIONS, VALUES | {"ports"}),
    **dict.fromkeys(FILLERS, VALUES | {"ports", "faultpoints"}),
    "letters": VALUES | {"ports", "admission"},  # of admission, the strict JSON and what seals an envelope
    "agent": VALUES | {"bus"},  # the bus by its type alone: `bus` imports `agent`
    "road": VALUES
    | STATIONS
    | {"ports", "settings", "agent", "faultpoints", "letters", "audit"},  # of audit, finding notes
    "bus": VALUES | STATIONS | {"ports", "settings", "agent", "road"},
    "control": VALUES | {"bus", "admission"},  # of admission, the strict JSON
    "wiring": VALUES
    | STATIONS
    | FILLERS
    | {"ports", "settings", "bus", "road", "clock", "control", "faultpoints", "letters", "observe", "witness"}
    | {"transports"}
    | {"authoring"},  # keys
    "witness": VALUES | {"ports", "audit", "control", "ledger"},  # of audit, finding notes and opening a log to read
    "audit": VALUES | {"ports"},  # `audit/verify.py` nobody at all: see below
    "authoring": VALUES
    | {"ports", "engines", "admission"},  # of engines, the worker; of admission, what an answer means
    "sync": VALUES | {"ports", PACKAGE},  # the public names, as anybody has them
    "observe": VALUES | {"ports"},
    "workflow": frozenset({PACKAGE}),
    "cli": SHOWN | STATIONS | FILLERS | {PACKAGE, "audit", "authoring", "bench", "console", "observe", "witness"},
    "console": VALUES | {"ports", "clock", "control", "ledger", "audit", "cli"},  # what commands read and do, on a page
    "bench": SHOWN | STATIONS | FILLERS | {PACKAGE, "audit", "letters"},
    "__main__": frozenset({"cli"}),
    PACKAGE: VALUES | {"agent", "bus", "delivery", "ports", "recovery", "wiring"},
}

#: What any room may use of other people's: JSON, and checked values at the edge.
COMMON: Final = frozenset({"orjson", "pydantic"})
#: What one room uses besides.
THIRD_PARTY: Final[dict[str, frozenset[str]]] = {
    "engines": frozenset({"cachetools", "h11", "httpx"}),
    "ledger": frozenset({"cryptography"}),
    "letters": frozenset({"cryptography"}),
    "audit": frozenset({"cryptography", "jinja2", "pyarrow"}),
    "authoring": frozenset({"cryptography"}),
    "transports": frozenset({"httpx", "nats", "nkeys"}),  # the extra `nats`; httpx for the server's monitoring port
    "observe": frozenset({"opentelemetry"}),  # its API; in `sdk.py` the extra `otlp`
    "witness": frozenset({"opentelemetry"}),  # the extra `otlp`
    "cli": frozenset({"rich", "typer"}),
    "console": frozenset({"anyio", "jinja2", "markupsafe", "starlette", "uvicorn"}),
    "bench": frozenset({"autogen_core", "cryptography", "faststream", "httpx", "nats", "rich", "taskiq", "vaara"}),
}


class Import(NamedTuple):
    """One import: in which file, of which module, and whether it runs when that file is loaded."""

    file: str
    line: int
    module: str
    name: str | None  # X of `from module import X`
    at_load: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}{f'.{self.name}' if self.name else ''}"


class Finder(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, file: str) -> None:
        self.found: list[Import] = []
        self._file = file
        self._later = 0  # depth of functions and of `if TYPE_CHECKING`

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.found.append(Import(self._file, node.lineno, alias.name, None, not self._later))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert not node.level, f"{self._file}:{node.lineno}: write the import from {PACKAGE} on"
        for alias in node.names:
            self.found.append(Import(self._file, node.lineno, node.module or "", alias.name, not self._later))

    def visit_If(self, node: ast.If) -> None:
        self._inside(node, later=isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside(node, later=True)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._inside(node, later=True)

    def _inside(self, node: ast.AST, *, later: bool) -> None:
        self._later += later
        self.generic_visit(node)
        self._later -= later


def module_of(file: Path) -> str:
    """The dotted name below the package; the package itself is the empty one."""
    parts = file.relative_to(FOLDER).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: Final = {module_of(file): file for file in sorted(FOLDER.rglob("*.py"))}


@cache
def imports_of(module: str) -> list[Import]:
    """All imports of a module of ours."""
    file = MODULES[module]
    finder = Finder(str(file.relative_to(FOLDER.parent)))
    finder.visit(ast.parse(file.read_text(encoding="utf-8")))
    return finder.found


def target(found: Import) -> str | None:
    """The module of ours that an import loads; None for anybody else's."""
    if found.module.split(".")[0] != PACKAGE:
        return None
    below = found.module.removeprefix(PACKAGE).removeprefix(".")
    if found.name is not None and (deeper := f"{below}.{found.name}".removeprefix(".")) in MODULES:
        return deeper
    return below


def room_of(module: str) -> str:
    """The folder or top-level module that a module belongs to."""
    return module.partition(".")[0] or PACKAGE


ROOMS: Final = sorted({room_of(module) for module in MODULES})


def imports_of_room(room: str) -> Iterator[Import]:
    """All imports of a room's modules."""
    for module in MODULES:
        if room_of(module) == room:
            yield from imports_of(module)


def test_every_room_stands_in_the_table() -> None:
    """A new room has to say whom it may import, and a room that is gone leaves the table."""
    assert sorted(MAY_IMPORT) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_table_lets_it(room: str) -> None:
    """The stations know values and ports and never each other, engines or the ledger; only wiring knows all sides."""
    wrong = [
        str(found)
        for found in imports_of_room(room)
        if (module := target(found)) is not None and room_of(module) not in MAY_IMPORT[room] | {room}
    ]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_the_third_party_that_is_its_own(room: str) -> None:
    """Signatures are the ledger's business, terminals the command line's; what a room does not name it does not use."""
    allowed = COMMON | THIRD_PARTY.get(room, frozenset())
    wrong = [
        str(found)
        for found in imports_of_room(room)
        if target(found) is None
        and (top := found.module.split(".")[0]) not in sys.stdlib_module_names
        and top not in allowed
    ]
    assert not wrong


def test_verify_needs_no_more_than_the_standard_library() -> None:
    """An auditor can read `audit/verify.py` as one file, under 500 lines, and run it with any Python."""
    standard = sys.stdlib_module_names
    assert len((FOLDER / "audit" / "verify.py").read_text(encoding="utf-8").splitlines()) < 500
    wrong = [str(found) for found in imports_of("audit.verify") if found.module.partition(".")[0] not in standard]
    assert not wrong


def test_joining_needs_no_more_than_the_standard_library() -> None:
    """An auditor of several nodes can run `audit/joined.py` with any Python too."""
    wrong = [
        str(one) for one in imports_of("audit.joined") if one.module.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong


def test_the_edges_use_one_named_part_of_a_room() -> None:
    """Where a room is open to one outside it, it is by name: strict JSON of admission, the worker of engines."""
    narrow = {
        ("control", "admission"): {"admission.canonical"},
        ("letters", "admission"): {"admission.canonical", "admission.seal"},
        ("road", "audit"): {"audit.notes"},
        ("witness", "audit"): {"audit.homes", "audit.notes"},
        ("witness", "ledger"): {"ledger.home", "ledger.lock", "ledger.sql"},
        ("authoring", "engines"): {"engines.worker"},
        ("authoring", "admission"): {"admission.answer", "admission.supposed"},
    }
    for (room, other), only in narrow.items():
        used = {target(found) for found in imports_of_room(room)}
        assert {module for module in used if module is not None and room_of(module) == other} <= only


def test_underscore_names_stay_in_their_room() -> None:
    """What a room writes with an underscore is imported by nobody outside it; `_share` is a room, not a name."""
    wrong = [
        str(found)
        for room in ROOMS
        for found in imports_of_room(room)
        if (module := target(found)) is not None
        and room_of(module) != room
        and any(part.startswith("_") for part in [*module.split(".")[1:], found.name or ""])
        and found.name != "__version__"  # public, and spelled so everywhere
    ]
    assert not wrong


def test_nothing_is_imported_in_a_circle() -> None:
    """At load, imports only go down: every module can be loaded first."""
    below = {
        module: {name for found in imports_of(module) if found.at_load and (name := target(found)) and name != module}
        for module in MODULES
    }
    done: set[str] = set()
    while ready := {module for module in below if module not in done and below[module] <= done}:
        done |= ready
    assert not {module: sorted(below[module] - done) for module in below if module not in done}


@pytest.mark.parametrize(
    ("ticket", "maker"),
    [
        ("Addressed", {"routing.router"}),
        ("Admitted", {"admission.chain"}),
        ("Recorded", {"ledger.memory", "ledger.sqlite"}),
    ],
)
def test_a_ticket_has_one_maker(ticket: str, maker: set[str]) -> None:
    """The ticket to the next door is made by the station that it stands for, and nowhere else in the package."""
    makers = {
        module
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == ticket
        and any(found.name == ticket for found in imports_of(module))
    }
    assert makers == maker
