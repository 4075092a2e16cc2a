"""Signed tree heads: C2SP tlog-checkpoint in a C2SP signed note, with Ed25519.

https://c2sp.org/tlog-checkpoint and https://c2sp.org/signed-note. Not here: when one is written (store).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enhanced_agent_bus.ledger.merkle import HASH_BYTES

_ED25519 = b"\x01"  # the signature type of the signed-note format
_KEY_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint vouches for: the first `size` records of the log named `origin` have this root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class Verifier:
    """The public key of a log under its name."""

    name: str
    key: Ed25519PublicKey

    @property
    def _raw(self) -> bytes:
        return self.key.public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def key_id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self._raw).digest()[:_KEY_ID_BYTES]

    @property
    def vkey(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self._raw).decode()}"

    @classmethod
    def from_vkey(cls, vkey: str) -> Verifier:
        """Raises: ValueError, when this is not the vkey of an Ed25519 key."""
        name, _, rest = vkey.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = base64.b64decode(encoded, validate=True)
        if raw[:1] != _ED25519:
            raise ValueError("not an Ed25519 vkey")
        verifier = cls(name, Ed25519PublicKey.from_public_bytes(raw[1:]))
        if verifier.key_id.hex() != key_id:
            raise ValueError("the key id of the vkey does not belong to its name and key")
        return verifier

    def open(self, note: str) -> Checkpoint:
        """The checkpoint of a note that this key signed. Raises: ValueError, when it is not that."""
        text, separator, signatures = note.partition("\n\n")
        text += "\n"
        for line in signatures.splitlines() if separator else ():
            dash, name, encoded = (*line.split(" "), "", "", "")[:3]
            if dash == "\N{EM DASH}" and name == self.name and self._signed(text, encoded):
                return parse(text)
        raise ValueError(f"no valid signature by {self.name}")

    def _signed(self, text: str, encoded: str) -> bool:
        try:
            signature = base64.b64decode(encoded, validate=True)
            if signature[:_KEY_ID_BYTES] != self.key_id:
                return False
            self.key.verify(signature[_KEY_ID_BYTES:], text.encode())
        except (binascii.Error, InvalidSignature):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Signer:
    """The private key of a log under its name."""

    name: str
    key: Ed25519PrivateKey

    @classmethod
    def fresh(cls, name: str) -> Signer:
        """With a new key."""
        return cls(name, Ed25519PrivateKey.generate())

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.name, self.key.public_key())

    def sign(self, checkpoint: Checkpoint, also: Signer | None = None) -> str:
        """The note; signed by another key as well, where one follows the other."""
        lines = self._line(checkpoint) + ("" if also is None else also._line(checkpoint))  # noqa: SLF001 - a Signer
        return f"{checkpoint.text}\n{lines}"

    def _line(self, checkpoint: Checkpoint) -> str:
        signature = base64.b64encode(self.verifier.key_id + self.key.sign(checkpoint.text.encode())).decode()
        return f"\N{EM DASH} {self.name} {signature}\n"


def parse(text: str) -> Checkpoint:
    """Reads the signed lines of a checkpoint. Raises: ValueError, when they are not that."""
    lines = text.split("\n")
    if len(lines) < 4 or not lines[1].isdecimal() or lines[1] != str(int(lines[1])):  # noqa: PLR2004 - origin, size, root, end
        raise ValueError("not a checkpoint: origin, size and root are expected on three lines")
    root = base64.b64decode(lines[2], validate=True)
    if len(root) != HASH_BYTES:
        raise ValueError("not a checkpoint: the root is not 32 bytes")
    return Checkpoint(lines[0], int(lines[1]), root)
