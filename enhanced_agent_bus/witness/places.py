"""Which witness an address names, and making it. Not here: what addresses may look like (settings)."""

from __future__ import annotations

import shutil
from pathlib import Path

from enhanced_agent_bus.errors import ConfigInvalid
from enhanced_agent_bus.ports import Witness
from enhanced_agent_bus.witness.bus import BusWitness
from enhanced_agent_bus.witness.file import FileWitness
from enhanced_agent_bus.witness.git import GitWitness
from enhanced_agent_bus.witness.stream import StreamWitness


def witness_at(url: str) -> Witness:
    """The witness of a checked address. Raises: ConfigInvalid, when something it needs is not installed."""
    scheme, _, rest = url.partition(":")
    if scheme in ("stdout", "stderr"):
        return StreamWitness(url)
    if scheme == "otlp":
        return _otlp(url, rest)
    path = path_of(url)
    if scheme == "file":
        return FileWitness(url, path)
    if scheme == "bus":
        return BusWitness(url, path)
    if shutil.which("git") is None:
        raise ConfigInvalid(f"the witness {url} needs the program git", remedy="install git, or name another witness")
    return GitWitness(url, path)


def path_of(url: str) -> Path:
    """The path in an address of a file, a repository or a home."""
    return Path(url.partition(":")[2].removeprefix("//"))


def require_outside(url: str, home: Path) -> None:
    """Raises: ConfigInvalid, for a witness in the home itself, where it vouches for nothing."""
    if url.partition(":")[0] in ("file", "git", "git+file", "bus") and path_of(url).resolve().is_relative_to(
        home.resolve()
    ):
        raise ConfigInvalid(
            f"the witness {url} is in the home itself, and would be replaced together with it",
            remedy="name a place on another disk, or better on another machine",
        )


def _otlp(url: str, endpoint: str) -> Witness:
    try:
        from enhanced_agent_bus.witness.otlp import OtlpWitness  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigInvalid(
            f"the witness {url} needs the package {error.name}, which is not installed",
            remedy="install the extra: pip install 'opa-agent-bus[otlp]'",
        ) from None
    return OtlpWitness(url, endpoint)
