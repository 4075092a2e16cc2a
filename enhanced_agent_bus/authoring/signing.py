"""Signatures of bundles: a compact JWS (RFC 7515) with ES256 over what the worker says is in the bundle.

The worker never sees a private key. A key can live elsewhere too (a KMS, an HSM): then `signing_input` is what is
signed there, and `token_with` takes the signature back.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from enhanced_agent_bus.errors import ConfigInvalid

#: The protected header, as bytes that never change. No key id: OPA then takes the key that it is told to use.
_HEADER: Final = b'{"alg":"ES256"}'
_NUMBER_BYTES: Final = 32
_KEY_BYTES_MAX: Final = 65_536


def signing_input(payload: str) -> bytes:
    """What ES256 signs (with SHA-256): the header and the payload, each in base64url."""
    return _base64url(_HEADER) + b"." + _base64url(payload.encode())


def signed(payload: str, key: EllipticCurvePrivateKey) -> str:
    """The token of a payload, signed with this key."""
    return token_with(payload, key.sign(signing_input(payload), ECDSA(SHA256())), key.public_key())


def token_with(payload: str, signature: bytes, key: EllipticCurvePublicKey) -> str:
    """The token with a signature that was made elsewhere: DER, as KMS services give it, or the 64 bytes of RFC 7518.

    Raises: ConfigInvalid, when it is not this key's signature of this payload.
    """
    der = signature
    if len(signature) == 2 * _NUMBER_BYTES:
        der = encode_dss_signature(
            int.from_bytes(signature[:_NUMBER_BYTES], "big"), int.from_bytes(signature[_NUMBER_BYTES:], "big")
        )
    try:
        key.verify(der, signing_input(payload), ECDSA(SHA256()))
        r, s = decode_dss_signature(der)
    except (InvalidSignature, ValueError):
        raise ConfigInvalid(
            "the signature is not this key's signature of this bundle",
            remedy="sign exactly what `eab policy sign --digest-only` prints for these bytes, with ES256",
        ) from None
    raw = r.to_bytes(_NUMBER_BYTES, "big") + s.to_bytes(_NUMBER_BYTES, "big")
    return (signing_input(payload) + b"." + _base64url(raw)).decode()


def private_key(path: Path) -> EllipticCurvePrivateKey:
    """The signing key of a PEM file. Raises: ConfigInvalid, when it is none on the curve P-256; OSError."""
    try:
        key = load_pem_private_key(_pem(path), password=None)
    except TypeError:  # as `cryptography` says that it wants a password
        raise ConfigInvalid(
            f"the key in {path} is locked with a passphrase, and nobody is asked for one",
            remedy="sign with one that is not, or elsewhere: `eab policy sign --digest-only`, then `--signature`",
        ) from None
    except ValueError:
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise ConfigInvalid(
            f"{path} holds no private key for ES256",
            remedy="make one: openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt",
        )
    return key


def public_key(path: Path) -> EllipticCurvePublicKey:
    """The public key of a PEM file, which may hold the private one. Raises: ConfigInvalid; OSError."""
    try:
        key = load_pem_public_key(_pem(path))
    except ValueError:
        return private_key(path).public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ConfigInvalid(f"{path} holds no public key for ES256", remedy="write it with openssl pkey -pubout")
    return key


def public_pem(path: Path) -> str:
    """A trusted key as PEM text. Raises: ConfigInvalid, when the file is missing or holds none for ES256."""
    try:
        key = public_key(path)
    except OSError as error:
        raise ConfigInvalid(
            f"the trusted key {path} cannot be read: {error.strerror}",
            remedy="mend constitution.trust, or put it there",
        ) from None
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def signature_from(text: str) -> bytes:
    """A signature as base64, base64url or hex text. Raises: ConfigInvalid."""
    plain = "".join(text.split())
    try:
        return bytes.fromhex(plain)
    except ValueError:
        pass
    try:
        padded = plain.rstrip("=") + "=" * (-len(plain.rstrip("=")) % 4)
        return base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigInvalid(
            "the signature is neither base64 nor hex", remedy="give it as your signer prints it"
        ) from None


def _pem(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_KEY_BYTES_MAX)


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
