"""What the package shows at its front door: the public names, sorted, documented, typed, imported when asked for.

Not here: what a user's program gets from mypy --strict (acceptance/test_user_types.py).
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import enhanced_agent_bus

#: The names that users are promised; one that is taken away breaks their programs.
PROMISED: Final = frozenset(
    {
        "Activation", "Agent", "AgentBus", "AgentExists", "AuditUnavailable", "BusClosed", "BusError", "ConfigInvalid",
        "ConstitutionRejected", "DeadLetter", "Drained", "EngineMissing", "Gate", "Message", "NotDelivered", "Outcome",
        "Pass", "Priority", "Reason", "Receipt", "Refusal", "Refused", "RequestTimeout", "Retry", "Status",
        "StoreCorrupt", "StoreLocked", "Strategy", "TransportAway", "open_bus",
    }
)  # fmt: skip
#: What operators' lists are made of.
LISTED: Final = frozenset(
    {"AgentInfo", "Candidate", "Deliberated", "Divergence", "Fact", "NodeInfo", "Recovery", "ShadowReport", "Waiting"}
    | {"Stopped"}
    | {"Erasure", "LegalHold", "Retention"}
)
PUBLIC: Final = sorted(PROMISED | LISTED)


def test_all_is_sorted_and_complete() -> None:
    """`__all__` is what is promised and no more, in order."""
    assert enhanced_agent_bus.__all__ == PUBLIC


def test_nothing_else_is_public() -> None:
    """Every name without an underscore is in `__all__`, or is a module of the package; dir() says so too."""
    for name in PUBLIC:
        getattr(enhanced_agent_bus, name)
    others = {
        name
        for name, value in vars(enhanced_agent_bus).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert others == set(PUBLIC)
    assert set(PUBLIC) <= set(dir(enhanced_agent_bus))


def test_no_name_is_public_that_the_type_checker_does_not_see() -> None:
    """The imports for type checkers name what is promised, each from the module that it comes from at run time."""
    seen = {
        alias.name: node.module
        for node in ast.walk(ast.parse(Path(enhanced_agent_bus.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == PUBLIC
    for name, module in seen.items():
        assert getattr(enhanced_agent_bus, name) is getattr(importlib.import_module(str(module)), name)


def test_type_checkers_find_a_misspelt_name() -> None:
    """They do not see the module's `__getattr__`, which would make every name right for them."""
    body = ast.parse(Path(enhanced_agent_bus.__file__).read_text(encoding="utf-8")).body
    (condition,) = (part for part in body if isinstance(part, ast.If))
    assert ast.unparse(condition.test).endswith("TYPE_CHECKING")
    assert "__getattr__" in {part.name for part in condition.orelse if isinstance(part, ast.FunctionDef)}
    assert "__getattr__" not in {part.name for part in body if isinstance(part, ast.FunctionDef)}


def test_a_name_that_is_not_there_is_said_as_ever() -> None:
    """AttributeError and ImportError, as of a module that imports everything at once."""
    with pytest.raises(AttributeError, match="no attribute 'Bus'"):
        getattr(enhanced_agent_bus, "Bus")  # noqa: B009  the type checker would find it
    with pytest.raises(ImportError, match="cannot import name 'Bus'"):
        exec("from enhanced_agent_bus import Bus")  # noqa: S102  the type checker would find it


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import enhanced_agent_bus", ("asyncio", "pydantic", "sqlite3")),
        ("from enhanced_agent_bus import ConfigInvalid", ("asyncio", "pydantic", "sqlite3")),
        (
            "from enhanced_agent_bus.cli.app import run_command; run_command(['--help'])",
            ("asyncio", "pydantic", "rich", "enhanced_agent_bus.bus", "enhanced_agent_bus.ledger"),
        ),
        (
            "from enhanced_agent_bus.cli.app import run_command; run_command(['status', '--help'])",
            ("asyncio", "rich", "enhanced_agent_bus.bus", "enhanced_agent_bus.ledger"),
        ),
    ],
)
def test_only_what_is_asked_for_is_imported(program: str, absent: tuple[str, ...]) -> None:
    """A program that wants an error class, or the help, does not load a bus."""
    look = f"import sys; {program}; print('loaded', *(name for name in {absent!r} if name in sys.modules), sep=',')"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    """A public name has a docstring of its own, and so has each of its public functions."""
    value = getattr(enhanced_agent_bus, name)
    assert inspect.cleandoc(value.__doc__ or "")
    assert not (value.__doc__ or "").startswith(f"{name}("), "the docstring that dataclass makes says nothing"


@pytest.mark.parametrize("name", ["Agent", "AgentBus", "Receipt", "Retry"])
def test_every_verb_says_what_it_does(name: str) -> None:
    """Whoever reads help() finds a sentence at each verb, with what it raises."""
    undocumented = [
        verb
        for verb, function in vars(getattr(enhanced_agent_bus, name)).items()
        if not verb.startswith("_")
        and inspect.isfunction(function.__func__ if isinstance(function, staticmethod | classmethod) else function)
        and not function.__doc__
    ]
    assert not undocumented


def test_every_verb_is_typed() -> None:
    """Each parameter and return of the public functions has a type."""
    untyped = [
        f"{name}.{verb}"
        for name in PUBLIC
        if inspect.isclass(value := getattr(enhanced_agent_bus, name)) and not issubclass(value, enum.Enum)
        for verb, function in vars(value).items()
        if inspect.isfunction(function) and not verb.startswith("__")
        for kind in [inspect.signature(function)]
        if kind.return_annotation is inspect.Signature.empty
        or any(
            p.annotation is inspect.Parameter.empty for p in kind.parameters.values() if p.name not in ("self", "cls")
        )
    ]
    assert not untyped


def test_type_checkers_look_inside() -> None:
    """The package is marked as typed (PEP 561)."""
    assert (Path(enhanced_agent_bus.__file__).parent / "py.typed").is_file()


def test_the_version_is_one() -> None:
    """`__version__` is what was installed."""
    assert enhanced_agent_bus.__version__ == version("opa-agent-bus")
