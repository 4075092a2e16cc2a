"""Letters of agents of other processes, carried to the bus that runs: a session belongs to its process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from enhanced_agent_bus.cli.faults import FOUND, CliError
from enhanced_agent_bus.cli.session import Json, Session

LETTER_BYTES_MAX: Final = 8 * 1024 * 1024  # a longer one is no letter, and what is left of it neither
LETTER_CODES: Final = ("identity_unproven", "replayed", "expired", "malformed", "too_large", "too_deep")


def read_letter(source: str) -> str:
    """The text of a file, or of standard input (`-`). What is no text stays none. Raises: OSError."""
    if source == "-":
        raw = sys.stdin.buffer.read(LETTER_BYTES_MAX)
    else:
        with Path(source).open("rb") as file:
            raw = file.read(LETTER_BYTES_MAX)
    return raw.decode("utf-8", "replace").strip()


def ask(session: Session, op: str, args: Mapping[str, Json]) -> Json:
    """The answer of the bus that runs in this home. Raises: CliError, also where none runs; BusError."""
    from enhanced_agent_bus.control.client import call
    from enhanced_agent_bus.errors import BusError
    from enhanced_agent_bus.ledger.lock import control_socket

    home = session.existing_home()
    socket = control_socket(home)
    try:
        if socket is not None:
            return call(socket, op, args)
    except BusError as error:
        if error.code not in LETTER_CODES:
            raise
        raise CliError(error.message, remedy=error.remedy, code=error.code, status=FOUND) from None
    except OSError:
        pass  # left behind by a process that died
    raise CliError(
        f"no bus runs in {home}, and an agent joins a process",
        remedy="start one with `eab run APP`",
        code="not_running",
    )
