"""Whether a home's database may be read at all. Little is imported: `audit verify` asks it too."""

from __future__ import annotations

from pathlib import Path


def require_readable(home: Path) -> None:
    """SQLite says of a database that may not be read only that it cannot be opened. Raises: OSError."""
    with (home / "bus.db").open("rb"):
        pass
