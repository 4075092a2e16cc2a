"""What was kept outside, read for `eab audit verify`: a checkpoint, and what witnesses have.

Witnesses are those that are named, or those that the settings of a home name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.cli.render import counted
from enhanced_agent_bus.cli.session import Json

if TYPE_CHECKING:
    from enhanced_agent_bus.audit.verify import Note
    from enhanced_agent_bus.audit.witnessed import Kept


def kept_checkpoint(path: Path) -> Note:
    """A checkpoint that was kept. Raises: CliError, when the file holds none; OSError."""
    from enhanced_agent_bus.audit.verify import read_note

    try:
        return read_note(path.read_text(encoding="utf-8"))
    except ValueError:  # no UTF-8, no three lines, no base64
        what = f"{path}: no checkpoint: origin, size and root are expected on three lines"
        raise CliError(what, remedy="`eab audit checkpoint` prints one", code="file") from None


def named_witnesses(names: Sequence[str]) -> list[Kept]:
    """Raises: CliError, when one of them is no witness or cannot be read."""
    from enhanced_agent_bus.settings import WITNESS_SCHEMES, load_settings

    kept = []
    for name in names:
        given = name if name.partition(":")[0] in WITNESS_SCHEMES and not Path(name).exists() else _address_of(name)
        (url,) = load_settings(None, {"audit": {"witnesses": [given]}}).audit.witnesses
        one = _read(url)
        if one is None:
            remedy = "name a file with what was collected there"
            raise CliError(f"what the witness {name} has cannot be read back", remedy=remedy)
        if one.error is not None:
            remedy = "name a file of checkpoints, a git repository or the home of a bus"
            raise CliError(f"the witness {name} cannot be read: {one.error}", remedy=remedy, code="file")
        if not one.notes:
            remedy = "name what a witness was given: a file of checkpoints, a git repository or the home of a bus"
            raise CliError(f"the witness {name} holds no checkpoint, of any log", remedy=remedy, code="file")
        kept.append(one)
    return kept


def configured_witnesses(log: Path) -> list[Kept]:
    """Those of a home that can be read back; one that does not answer says so. Raises: ConfigInvalid."""
    from enhanced_agent_bus.settings import load_settings

    if not log.is_dir():
        return []
    read = [_read(url) for url in load_settings(log).audit.witnesses]
    return [one for one in read if one is not None]


def vouched(home: Path, checkpoint: Path | None) -> int:
    """How many records what is kept outside says that a home's log has: the checkpoint, and its witnesses.

    Raises: CliError, when the file holds no checkpoint; ConfigInvalid; OSError.
    """
    from enhanced_agent_bus.audit import witnessed
    from enhanced_agent_bus.audit.homes import read_key

    given = 0 if checkpoint is None else kept_checkpoint(checkpoint).size
    try:
        key = read_key((home / "keys" / "log.vkey").read_text())
        kept = witnessed.of_log(witnessed.origin_of(home, key), configured_witnesses(home))
        return max(given, witnessed.vouched(home, key, kept))
    except (OSError, ValueError, LookupError, TypeError, sqlite3.Error):  # what is wrong with it the verification says
        return given


def _address_of(name: str) -> str:
    path = Path(name).absolute()
    if not path.is_dir():
        return f"file:{path}"
    return f"bus:{path}" if (path / "home.json").is_file() else f"git:{path}"


def _read(url: str) -> Kept | None:
    from enhanced_agent_bus.audit.witnessed import Kept
    from enhanced_agent_bus.errors import ConfigInvalid
    from enhanced_agent_bus.witness.places import witness_at

    if url.partition(":")[0] in ("stdout", "stderr", "otlp"):
        return None
    try:
        notes = witness_at(url).notes()
    except (OSError, sqlite3.Error, ValueError, ConfigInvalid) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Kept(url, error=said)
    return None if notes is None else Kept(url, notes)


def witness_line(witness: Mapping[str, Json]) -> str:
    """How far one has the log, in words."""
    name, count, covers = witness["witness"], witness["checkpoints"], witness["covers"]
    if witness["error"] is not None:
        return f"{name}: not read: {witness['error']}"
    if not count:
        return f"{name}: has no checkpoint of this log"
    told = f"{name}: {counted(count, 'checkpoint')}, the newest of {counted(witness['newest_size'], 'record')}"
    return told if not covers else f"{told}: covers seq 0 to {covers - 1}"
