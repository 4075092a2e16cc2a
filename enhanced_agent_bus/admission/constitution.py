"""From a folder or bundle to a constitution that may decide: checked whole, kept by its digest, loaded from there.

What was checked, what is kept and what decides are the same bytes, since the bundle is packed first and everything
after reads the bundle.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from enhanced_agent_bus.errors import ConstitutionRejected
from enhanced_agent_bus.ports import Checked, Clock, Loaded, PolicyEngine, Problem

REMEDY = "run `eab policy check` on it; the constitution that was active stays so"


class Constitutions:
    """The constitutions of one home, in `folder`, each as `<digest>.tar.gz`."""

    def __init__(self, *, engine: PolicyEngine, folder: Path, clock: Clock) -> None:
        self._engine = engine
        self._folder = folder
        self._clock = clock

    async def prepare(self, path: Path) -> Loaded:
        """Checks, keeps and loads. Raises: ConstitutionRejected, with the one reason and every problem found."""
        if not path.exists():
            raise ConstitutionRejected(
                f"there is no constitution at {path}", reason="invalid", remedy="name a folder or a bundle.tar.gz"
            )
        first = await self._engine.check(path)
        _require(first, path)
        kept = self._folder / f"{first.digest}.tar.gz"
        if not kept.exists():
            part = self._folder / f".{first.digest}.{os.getpid()}.part"
            digest = await self._engine.pack(path, part)
            if digest != first.digest:
                part.unlink(missing_ok=True)
                raise ConstitutionRejected(
                    f"{path} changed while it was read",
                    reason="invalid",
                    remedy="activate it again, when nobody writes",
                )
            _sync(part)
            part.replace(kept)
            _sync(self._folder)
        return await self.load(first.digest, "folder" if path.is_dir() else "bundle")

    async def load(self, digest: str, source: str) -> Loaded:
        """A constitution that was activated before, from what is kept. Raises: ConstitutionRejected."""
        kept = self._folder / f"{digest}.tar.gz"
        if not kept.exists():
            raise ConstitutionRejected(
                f"the constitution {digest} is not in this home", reason="invalid", remedy="activate it from its folder"
            )
        loaded = await self._engine.load(kept)
        if loaded.digest != digest:
            raise ConstitutionRejected(
                f"{kept.name} holds the constitution {loaded.digest}",
                reason="invalid",
                remedy="activate it from its folder",
            )
        self.require_fresh(loaded.not_after, digest)
        return replace(loaded, source=source)  # a folder is kept as a bundle too, and stays a weakening

    def require_fresh(self, not_after: str | None, digest: str) -> None:
        """Raises: ConstitutionRejected(expired), past `metadata.eab.not_after`."""
        if not_after is None:
            return
        try:
            end = datetime.fromisoformat(not_after)
        except ValueError:
            end = None
        if end is None or end.tzinfo is None:
            raise ConstitutionRejected(
                f"not_after {not_after!r} of {digest} is no RFC 3339 time",
                reason="invalid",
                remedy="write it as 2027-01-31T00:00:00Z",
            )
        if self._clock.now_us() >= end.astimezone(UTC).timestamp() * 1e6:
            raise ConstitutionRejected(
                f"the constitution {digest} expired at {not_after}",
                reason="expired",
                remedy="activate a newer revision",
            )


def _require(checked: Checked, path: Path) -> None:
    if checked.ok:
        return
    first = checked.problems[0] if checked.problems else Problem("invalid", "tests failed")
    place = f"{first.file}:{first.row}: " if first.file else ""
    raise ConstitutionRejected(
        f"the constitution at {path} was rejected: {place}{first.message}",
        reason=first.reason,
        details=[
            {
                "file": item.file,
                "line": item.row,
                "col": item.col,
                "message": item.message,
                "text": item.text,
                "hint": item.hint,
            }
            for item in checked.problems
        ],
        remedy=first.hint or REMEDY,
        digest=checked.digest or None,
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
