"""What a policy worker says of a constitution, as values. Not here: asking it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from enhanced_agent_bus.engines.link import Refused
from enhanced_agent_bus.errors import BusError, ConstitutionRejected
from enhanced_agent_bus.ports import Checked, Loaded, Problem


def loaded(answer: Mapping[str, Any], source: str) -> Loaded:
    """The answer of a worker that is ready to decide under it; `source` is "folder" or "bundle"."""
    return Loaded(
        digest=answer["digest"],
        revision=int(answer["revision"]),
        name=answer["name"],
        not_after=answer["not_after"],
        signed=answer["signed"],
        rules=tuple(answer["rules"]),
        read_paths=_paths(answer["read_paths"]),
        cacheable=answer["cacheable"],
        facts_read=answer["facts_read"],
        source=source,
    )


def checked(answer: Mapping[str, Any]) -> Checked:
    """The answer to a check."""
    return Checked(
        ok=answer["ok"],
        digest=answer["digest"],
        revision=int(answer["revision"] or -1),
        name=answer["name"],
        not_after=answer["not_after"],
        signed=answer["signed"],
        rules=tuple(answer["rules"]),
        read_paths=_paths(answer["read_paths"]),
        widened=tuple(answer["widened"]),
        cacheable=answer["cacheable"],
        problems=tuple(Problem(**problem) for problem in answer["problems"]),
        tests=answer["tests"],
        warnings=tuple(Problem(**warning) for warning in answer["warnings"]),
    )


def rejected(path: Path, refused: Refused) -> BusError:
    """Why there is nothing to decide under."""
    if refused.code == "not_found":
        return ConstitutionRejected(
            f"there is no constitution at {path}", reason="invalid", remedy="give a folder or a bundle.tar.gz"
        )
    return ConstitutionRejected(
        f"the constitution {path} is not valid: {refused.message}",
        reason="invalid",
        details=refused.details,
        remedy="correct it; `eab policy check` lists everything",
    )


def _paths(paths: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(path) for path in paths)
