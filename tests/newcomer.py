"""What tests of commands share: a folder in which a newcomer has typed `eab init`, and copies of it to work in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enhanced_agent_bus.cli.app import run_command


@contextmanager
def newcomer(folder: Path) -> Iterator[None]:
    """In a folder, with the home that `eab init` has made there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("EAB_HOME", raising=False)
        assert run_command(["init"]) == 0
        yield


def work_in_copy(begun: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test goes on in a copy of a folder that others use too."""
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("EAB_HOME", raising=False)
