"""Public keys under a name, in the form that `log.vkey` has (C2SP signed-note): of nodes, and of agents elsewhere."""

from __future__ import annotations

import base64
import binascii
from hashlib import sha256
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

#: Of whoever is believed.
PublicKey: TypeAlias = Ed25519PublicKey
_ED25519: Final = b"\x01"  # the signature type of the signed-note format
_ID_BYTES: Final = 4


def write_vkey(name: str, key: Ed25519PublicKey) -> str:
    """`<name>+<id>+<key>`."""
    raw = _ED25519 + key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"{name}+{_id(name, raw)}+{base64.b64encode(raw).decode()}"


def read_vkey(text: str) -> tuple[str, Ed25519PublicKey]:
    """The name (`<bus>/<node>` of a node, `<tenant>/<agent>` of an agent) and the key. Raises: ValueError."""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        raw = base64.b64decode(encoded, validate=True)
        if name and raw[:1] == _ED25519 and _id(name, raw) == key_id:
            return name, Ed25519PublicKey.from_public_bytes(raw[1:])
    except (binascii.Error, UnsupportedAlgorithm, ValueError):
        pass
    raise ValueError("this is not the vkey of an Ed25519 key: <name>+<8 hex digits>+<base64>")


def _id(name: str, raw: bytes) -> str:
    return sha256(name.encode() + b"\n" + raw).digest()[:_ID_BYTES].hex()
