"""From a folder or bundle to a constitution that may decide: checked whole, kept by its digest, loaded from there.

What was checked, what is kept and what decides are the same bytes, since the bundle is packed first and everything
after reads the bundle.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from enhanced_agent_bus.admission.signature import remedy_for
from enhanced_agent_bus.errors import ConstitutionRejected
from enhanced_agent_bus.ports import Checked, Clock, Loaded, Marks, PolicyEngine, Problem, Verified

REMEDY = "run `eab policy check` on it; the constitution that was active stays so"


class Constitutions:
    """The constitutions of one home, in `folder`, each as `<digest>.tar.gz`."""

    def __init__(
        self, *, engine: PolicyEngine, folder: Path, clock: Clock, marks: Marks, trust: Sequence[str] = ()
    ) -> None:
        """`trust` has public keys (PEM): with any, only a bundle that one of them has signed is taken."""
        self._engine = engine
        self._folder = folder
        self._clock = clock
        self._marks = marks
        self._trust = tuple(trust)

    def on(self, engine: PolicyEngine) -> Constitutions:
        """The same home, with another engine to make ready."""
        return Constitutions(
            engine=engine, folder=self._folder, clock=self._clock, marks=self._marks, trust=self._trust
        )

    async def identify(self, path: Path) -> str:
        """The hash of a folder or bundle that may be taken as far as its signature goes. Raises: ConstitutionRejected.

        Before anything else is made of it: what nobody has signed has no revision that could be compared.
        """
        verified = await self._require_signed(path)
        return verified.digest if verified is not None else await self._engine.hash(path)

    async def older_than(self, path: Path, revision: int) -> Checked | None:
        """What was found in a bundle that is valid, and not newer. Raises: ConstitutionRejected."""
        checked = await self._engine.check(path)
        return checked if checked.ok and checked.revision <= revision else None

    async def prepare(self, path: Path) -> Loaded:
        """Checks, keeps and loads. Raises: ConstitutionRejected, with the one reason and every problem found."""
        if not path.exists():
            raise ConstitutionRejected(
                f"there is no constitution at {path}", reason="invalid", remedy="name a folder or a bundle.tar.gz"
            )
        await self._require_signed(path)
        first = await self._engine.check(path)
        require_passed(first, path)
        self.require_fresh(first.not_after, first.digest, first.revision)
        if self._trust:
            self._require_newer(first)
        kept = self._folder / f"{first.digest}.tar.gz"
        if self._trust or not kept.exists():  # what is kept may lack the signature
            part = self._folder / f".{first.digest}.{os.getpid()}.{id(self)}.part"
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

    async def _require_signed(self, path: Path, digest: str | None = None) -> Verified | None:
        """Raises: ConstitutionRejected (unsigned, bad_signature), where keys are trusted and none has signed it."""
        if not self._trust:
            return None
        verified = await self._engine.verify(path, self._trust)
        if not verified.ok:
            raise ConstitutionRejected(
                f"the constitution at {path} was rejected: {verified.message}",
                reason=verified.reason,
                remedy=remedy_for(verified, path),
                digest=verified.digest or digest,
            )
        return verified

    def _require_newer(self, checked: Checked) -> None:
        """Revisions of signed bundles only go up."""
        mark = self._marks.read_mark()
        if mark is None or (checked.revision, checked.digest) == (mark["revision"], mark["digest"]):
            return
        if checked.revision == mark["revision"]:
            raise ConstitutionRejected(
                f"revision {checked.revision} was {mark['digest']}, and this is {checked.digest}",
                reason="revision_reused",
                remedy="give changed content a higher revision in .manifest",
                digest=checked.digest,
                revision=checked.revision,
            )
        if checked.revision < mark["revision"]:
            raise ConstitutionRejected(
                f"revision {checked.revision} is older than {mark['revision']}, the highest that was active",
                reason="rollback",
                remedy="to go back, sign the old content again under a higher revision",
                digest=checked.digest,
                revision=checked.revision,
            )

    def raise_mark(self, loaded: Loaded) -> None:
        """Before a signed one is active: a crash in between leaves the older one deciding, and nothing older still."""
        mark = self._marks.read_mark()
        if loaded.signed and (mark is None or loaded.revision > mark["revision"]):
            self._marks.write_mark({"revision": loaded.revision, "digest": loaded.digest})

    async def bundle(self, digest: str) -> bytes:
        """The bundle of one that was activated here."""
        return await asyncio.to_thread((self._folder / f"{digest}.tar.gz").read_bytes)

    async def load(self, digest: str, source: str) -> Loaded:
        """A constitution that was activated before, from what is kept. Raises: ConstitutionRejected."""
        kept = self._folder / f"{digest}.tar.gz"
        if not kept.exists():
            raise ConstitutionRejected(
                f"the constitution {digest} is not in this home", reason="invalid", remedy="activate it from its folder"
            )
        await self._require_signed(kept, digest)
        loaded = await self._engine.load(kept)
        if loaded.digest != digest:
            raise ConstitutionRejected(
                f"{kept.name} holds the constitution {loaded.digest}",
                reason="invalid",
                remedy="activate it from its folder",
            )
        self.require_fresh(loaded.not_after, digest, loaded.revision)
        # A signature that nobody has verified is none; a folder is kept as a bundle too, and stays a weakening.
        return replace(loaded, source=source, signed=bool(self._trust))

    def require_fresh(self, not_after: str | None, digest: str, revision: int) -> None:
        """Raises: ConstitutionRejected(expired), past `metadata.eab.not_after`."""
        if not_after is None:
            return
        end = end_of(not_after)
        if end is None:
            raise ConstitutionRejected(
                f"not_after {not_after!r} of {digest} is no RFC 3339 time",
                reason="invalid",
                remedy="write it as 2027-01-31T00:00:00Z",
                digest=digest,
                revision=revision,
            )
        if self._clock.now_us() >= end.timestamp() * 1e6:
            raise ConstitutionRejected(
                f"the constitution {digest} expired at {not_after}",
                reason="expired",
                remedy="activate a newer revision",
                digest=digest,
                revision=revision,
            )


def end_of(not_after: str) -> datetime | None:
    """When a constitution expires; None for what is no RFC 3339 time."""
    try:
        end = datetime.fromisoformat(not_after)
    except ValueError:
        return None
    return end.astimezone(UTC) if end.tzinfo is not None else None


def require_passed(checked: Checked, path: Path) -> None:
    """Raises: ConstitutionRejected, with every problem that was found."""
    if checked.ok:
        return
    first = checked.problems[0] if checked.problems else Problem("invalid", "tests failed")
    place = ":".join(str(part) for part in (first.file, first.row) if part)
    raise ConstitutionRejected(
        f"the constitution at {path} was rejected: {f'{place}: ' if place else ''}{first.message}",
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
        revision=checked.revision if checked.revision >= 0 else None,
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
