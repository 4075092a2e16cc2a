"""What to do about a bundle that no trusted key has signed as it is. Not here: its verification (the engine's)."""

from __future__ import annotations

import base64
import binascii
import json
import tarfile
from pathlib import Path
from typing import Final

from enhanced_agent_bus.ports import Verified

SIGNATURES: Final = ".signatures.json"
SIGNATURES_BYTES_MAX: Final = 16 << 20  # with 10,000 files in it; the engine has its own limits


def remedy_for(verified: Verified, path: Path) -> str:
    """Where it went wrong: nobody has signed it, it was changed since, or somebody else has signed it."""
    if path.is_dir():
        return f"build it, then sign it: `eab policy build {path} -o bundle.tar.gz`, `eab policy sign bundle.tar.gz`"
    if verified.reason == "unsigned":
        return "sign it with `eab policy sign`, with the key of one that constitution.trust names"
    claimed = claimed_digest(path)
    if claimed is None:
        return "its signature cannot be read: sign it again with `eab policy sign`"
    if claimed != verified.digest:
        return "it was changed after it was signed: fetch it again"
    return "none of the trusted keys has signed it: sign it with one of them, or add its key to constitution.trust"


def claimed_digest(bundle: Path) -> str | None:
    """The hash that a bundle's signature is about, believed by nobody yet; None where that cannot be read."""
    try:
        with tarfile.open(bundle, "r:gz") as tar:
            for member in tar:
                if member.isfile() and member.name.removeprefix("/").removeprefix("./") == SIGNATURES:
                    file = tar.extractfile(member)
                    text = b"" if file is None else file.read(SIGNATURES_BYTES_MAX)
                    return _claimed(text)
    except (tarfile.TarError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return None


def _claimed(text: bytes) -> str | None:
    part = json.loads(text)["signatures"][0].split(".")[1]
    try:
        payload = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        return None
    digest = json.loads(payload)["eab_digest"]
    return digest if isinstance(digest, str) else None
