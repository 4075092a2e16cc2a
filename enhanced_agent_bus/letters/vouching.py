"""What a node shows the others of its log: its newest signed checkpoint, and how far it has theirs on record.

Signed with the node's key. The note in it was signed with the log's, which whoever verifies that log checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from enhanced_agent_bus.letters import fields as f
from enhanced_agent_bus.letters.dsse import CHECKPOINT, BadLetter, Signs, decode, encode, verify


class Vouching(NamedTuple):
    """Of the node `origin`: its newest checkpoint, "" before the first, and the sizes that it witnessed of others."""

    origin: str
    note: str
    has: dict[str, int]


VOUCHING_FIELDS: Final = {"v": f.THIS_VERSION, "origin": f.ORIGIN, "note": f.TEXT, "has": f.OBJECT}


def seal_vouching(signer: Signs, vouching: Vouching) -> bytes:
    """Signs it."""
    assert signer.name == vouching.origin, f"{signer.name} cannot sign for {vouching.origin}"
    return encode(CHECKPOINT, f.write({"v": f.VERSION, **vouching._asdict()}), signer)


def open_vouching(body: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Vouching:
    """What a node shows, when the node that it names has signed it. Raises: BadLetter."""
    signed = decode(body)
    payload = verify(signed, (CHECKPOINT,), keys)
    said: dict[str, Any] = f.check(f.parse(payload, "checkpoint letter"), VOUCHING_FIELDS, "checkpoint letter")
    if said["origin"] != signed.keyid:
        raise BadLetter("identity_unproven", f"a checkpoint of {said['origin']} was signed by {signed.keyid}")
    sizes = {name: size for name, size in said["has"].items() if f.ORIGIN.good(name) and f.COUNT.good(size)}
    return Vouching(said["origin"], said["note"], sizes)
