"""What to type to call this program again: hints must work where the user stands.

`eab` where that is what the shell finds; otherwise the path or the interpreter that it was called by.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

NAME: Final = "eab"
PACKAGE: Final = "enhanced_agent_bus"
_COMMAND: Final = re.compile(r"`eab(?=[ `])")


def program(*, from_folder: Path | None = None) -> str:
    """This program as it was called, ready for a shell; `from_folder` is where that shell will stand."""
    return program_called(sys.argv[0], sys.orig_argv[0], from_folder=from_folder)


def program_called(script: str, interpreter: str, *, from_folder: Path | None = None) -> str:
    """As `program`, for the path of the script that runs and the word that the interpreter was called by."""
    path = Path(script)
    if path.name == "__main__.py" and path.parent.name == PACKAGE:
        return f"{shlex.quote(_from(interpreter, from_folder))} -m {PACKAGE}"
    if path.name != NAME:  # called by another program, which can only pass it on
        return NAME
    found = shutil.which(NAME)
    if found is not None and path.exists() and path.samefile(found):
        return NAME
    return shlex.quote(_from(script, from_folder))


def _from(path: str, folder: Path | None) -> str:
    """A path that is relative to this folder as one that holds in the other; a bare word is looked up by the shell."""
    if folder is None or os.sep not in path or folder.absolute() == Path.cwd():
        return path
    return str(Path(path).absolute())


def named(text: str, command: str | None = None) -> str:
    """A sentence of ours with its `eab ...` as this program was called, or as this command."""
    return _COMMAND.sub(lambda _: f"`{command or program()}", text)
