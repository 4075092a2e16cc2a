"""How each witness stands, and HOME/witnessed, which remembers it for the next process. A note, never a proof."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from enhanced_agent_bus.outcome import WitnessInfo, instant_of
from enhanced_agent_bus.ports import Clock

WITNESSED: Final = "witnessed"  # the file in the home
_KEPT: Final = ("size", "at_us", "error", "contradicts", "lacking_since_us")


@dataclass(slots=True)
class Standing:
    """How one witness stands; of a running bus under its keeper's lock."""

    size: int | None = None
    at_us: int | None = None
    error: str | None = None
    contradicts: bool = False
    lacking_since_us: int | None = None  # since when it has lacked a checkpoint
    lacking_since: float | None = None  # the same on the steady clock
    met: bool = False  # it has answered this process: what it has goes on from what this log has
    last: bool = False  # it gets no more after what it is getting
    said: str = ""  # what was last said about it: behind, contradicted; the loop's

    def info(self, url: str, now: float) -> WitnessInfo:
        """As the status has it; `now` is the steady clock's."""
        since = self.lacking_since
        return WitnessInfo(
            witness=url,
            size=self.size,
            at=None if self.at_us is None else instant_of(self.at_us),
            behind_seconds=0.0 if since is None else max(0.0, now - since),
            error=self.error,
            contradicts=self.contradicts,
        )


def standings(home: Path, urls: Sequence[str], clock: Clock) -> dict[str, Standing]:
    """As they are remembered; a witness that is new has nothing yet."""
    known = remembered(home)
    now, now_us = clock.monotonic(), clock.now_us()
    found = {}
    for url in urls:
        kept = known.get(url, {})
        since_us = kept.get("lacking_since_us")
        found[url] = Standing(
            size=kept.get("size"),
            at_us=kept.get("at_us"),
            error=kept.get("error"),
            contradicts=kept.get("contradicts") is True,
            lacking_since_us=since_us,
            lacking_since=None if since_us is None else now - max(0, now_us - since_us) / 1e6,
        )
    return found


def at_rest(home: Path, urls: Sequence[str], clock: Clock) -> list[WitnessInfo]:
    """For who looks at a home that no process has open."""
    return [standing.info(url, clock.monotonic()) for url, standing in standings(home, urls, clock).items()]


def remembered(home: Path) -> dict[str, dict[str, Any]]:
    """What HOME/witnessed says of each address; nothing where it cannot be read."""
    try:
        document = json.loads((home / WITNESSED).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {str(url): kept for url, kept in document.items() if isinstance(kept, dict)}


def document(standings: Mapping[str, Standing]) -> bytes:
    """What HOME/witnessed is to say."""
    kept = {url: {name: getattr(standing, name) for name in _KEPT} for url, standing in standings.items()}
    return json.dumps(kept, indent=1).encode() + b"\n"
