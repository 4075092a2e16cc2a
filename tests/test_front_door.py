"""What the package shows at its front door: the public names, sorted, documented, typed, and nothing else.

Not here: what a user's program gets from mypy --strict (acceptance/test_user_types.py).
"""

from __future__ import annotations

import enum
import inspect
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
        "StoreCorrupt", "StoreLocked", "open_bus",
    }
)  # fmt: skip
#: What operators' lists are made of.
LISTED: Final = frozenset({"AgentInfo", "Fact", "Waiting"})
PUBLIC: Final = sorted(PROMISED | LISTED)


def test_all_is_sorted_and_complete() -> None:
    """`__all__` is what is promised and no more, in order."""
    assert enhanced_agent_bus.__all__ == PUBLIC


def test_nothing_else_is_public() -> None:
    """Every name without an underscore is in `__all__`, or is a module of the package."""
    others = {
        name
        for name, value in vars(enhanced_agent_bus).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert others == set(PUBLIC)


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
