"""What a command line names, made ready: the application, and the constitution that a bus starts under."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enhanced_agent_bus.cli.faults import CliError

if TYPE_CHECKING:
    from types import ModuleType

    from enhanced_agent_bus import AgentBus

FORM: Final = "write it as module:function or file.py:function, for example app.py:build"


class App:
    """A function that registers agents with a bus, found by the name that the user gave."""

    def __init__(self, name: str) -> None:
        """Raises: CliError, when there is no such module, file or function."""
        self.name = name
        target, separator, function = name.rpartition(":")
        if not separator or not target or not function:
            raise CliError(f"{name!r} names no application", remedy=FORM)
        self.folder = Path(target).absolute().parent if target.endswith(".py") else Path.cwd()
        self._build = _function(_module(target), function, name)

    async def build(self, bus: AgentBus) -> None:
        """Calls the function with the bus, and awaits what it returns. Raises: CliError, when it fails."""
        from enhanced_agent_bus.errors import BusError

        try:
            result = self._build(bus)
            if inspect.isawaitable(result):
                await result
        except BusError:
            raise
        except Exception as error:
            raise _broken(f"{self.name} failed", error) from error


def _module(target: str) -> ModuleType:
    if not target.endswith(".py"):
        _importable(Path.cwd())
        try:
            return importlib.import_module(target)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{target}.".startswith(f"{error.name}."):
                raise _broken(f"{target} cannot be imported", error) from error
            raise CliError(f"there is no module {target}", remedy=FORM) from None
        except Exception as error:
            raise _broken(f"{target} cannot be imported", error) from error
    path = Path(target)
    if not path.is_file():
        raise CliError(f"there is no file {target}", remedy=FORM, code="file")
    _importable(path.absolute().parent)
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"eab_app_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CliError(f"{target} is no Python file", remedy=FORM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as an import would: dataclasses and pydantic look a class's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _broken(f"{target} cannot be imported", error) from error
    return module


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _function(module: ModuleType, name: str, whole: str) -> Callable[[AgentBus], Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]  # called, and what it does with a bus is its own business
    near = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_")
    raise CliError(f"{whole}: there is no function {name!r}", remedy=f"it has {near}" if near else FORM)


def _broken(what: str, error: Exception) -> CliError:
    """Names the line of the user's own file at which it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = ("enhanced_agent_bus", "importlib")
    places = [frame for frame in frames if not any(name in frame.filename for name in ours)]
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return CliError(f"{what}: {detail}{where}", remedy="EAB_DEBUG=1 shows the traceback", code="app_failed")


def choose_constitution(home: Path, given: Path | None, app: App | None) -> Path | None:
    """The constitution that a bus is opened under; None means the home's own.

    That which was given; what `eab.toml` names; what an existing home has active; `policies` beside the application
    or in the current folder; the one that comes with the package.
    """
    from enhanced_agent_bus._share import share_folder
    from enhanced_agent_bus.cli.reading.home import has_constitution
    from enhanced_agent_bus.settings import load_settings

    if given is not None:
        if not given.exists():
            raise CliError(f"there is no constitution at {given}", remedy="name a folder or a bundle", code="file")
        return given
    if load_settings(home).constitution.path is not None:
        return None
    if (home / "home.json").is_file() and has_constitution(home):
        return None
    return policies_beside(app) or share_folder("policies")


def policies_beside(app: App | None) -> Path | None:
    """The folder `policies` beside the application, or in the current folder."""
    folders = [app.folder / "policies"] if app is not None and app.folder != Path.cwd() else []
    return next((folder for folder in (*folders, Path("policies")) if (folder / "bus").is_dir()), None)
