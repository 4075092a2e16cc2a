"""Signed envelopes: DSSE v1.0 (https://github.com/secure-systems-lab/dsse) with one Ed25519 signature.

Narrower than the protocol: exactly one signature, its `keyid` is the name of the key, and base64 is the standard one,
in the one spelling that a text has. Not here: what the signed text says (tickets, notices, joining, envelopes).
"""

from __future__ import annotations

import binascii
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple, Protocol

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from enhanced_agent_bus.admission.canonical import NotJson, loads_strict
from enhanced_agent_bus.message import shown

TICKET: Final = "application/vnd.eab.ticket+json"
NOTICE: Final = "application/vnd.eab.notice+json"
NOTICES: Final = "application/vnd.eab.notices+json"
QUESTION: Final = "application/vnd.eab.question+json"
ANSWER: Final = "application/vnd.eab.answer+json"
CHALLENGE: Final = "application/vnd.eab.challenge+json"
JOIN: Final = "application/vnd.eab.join+json"
ENVELOPE: Final = "application/vnd.eab.envelope+json"
CHECKPOINT: Final = "application/vnd.eab.checkpoint+json"

LETTER_BYTES: Final = 16_384  # of a letter without a payload: names, ids and a signature
PAYLOAD_BYTES: Final = 262_144  # where nobody says otherwise: limits.payload_bytes
_HEADER_BYTES: Final = 65_536  # the longest way to write 8 KB of headers, inside another text
_OUTSIDE_DEPTH: Final = 3


class BadLetter(ValueError):
    """A letter that is not to be believed.

    `code` is identity_unproven, malformed, replayed or expired; of what is too much of it, too_large or too_deep.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Signs(Protocol):
    """A private key under its name: `<bus>/<node>` of a node, `<tenant>/<agent>` of an agent."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> Ed25519PrivateKey: ...


class Signed(NamedTuple):
    """A letter as it came, believed by nobody yet."""

    payload_type: str
    payload: bytes
    keyid: str
    signature: bytes


def bytes_max(payload_bytes: int = PAYLOAD_BYTES) -> int:
    """The longest letter that carries a payload of so many bytes: twice in a text, and by a third more in base64."""
    return (2 * payload_bytes + _HEADER_BYTES) * 4 // 3 + LETTER_BYTES


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """PAE of the protocol: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def encode(payload_type: str, payload: bytes, signer: Signs) -> bytes:
    """The letter, signed."""
    signature = signer.key.sign(pre_authentication(payload_type, payload))
    return orjson.dumps(
        {
            "payload": _base64(payload),
            "payloadType": payload_type,
            "signatures": [{"keyid": signer.name, "sig": _base64(signature)}],
        }
    )


def decode(body: bytes, *, bytes_max: int = LETTER_BYTES) -> Signed:
    """Takes a letter apart, and believes nothing of it. Raises: BadLetter."""
    document = _parsed(body, bytes_max)
    _keys(document, {"payload", "payloadType", "signatures"}, "letter")
    signatures = document["signatures"]
    if type(signatures) is not list or len(signatures) != 1:
        raise BadLetter("malformed", "the letter does not have exactly one signature")
    _keys(signatures[0], {"keyid", "sig"}, "signature")
    payload_type, keyid = document["payloadType"], signatures[0]["keyid"]
    if type(payload_type) is not str or type(keyid) is not str:
        raise BadLetter("malformed", "the letter's payloadType and keyid are not both strings")
    return Signed(
        payload_type,
        _bytes(document["payload"], "the letter's payload"),
        keyid,
        _bytes(signatures[0]["sig"], "the letter's signature"),
    )


def verify(signed: Signed, kinds: Collection[str], keys: Mapping[str, Ed25519PublicKey]) -> bytes:
    """The text of a letter of one of these kinds, signed by the one of these keys that it names. Raises: BadLetter."""
    if signed.payload_type not in kinds:
        raise BadLetter("malformed", f"the letter is {shown(signed.payload_type)}, not {' or '.join(sorted(kinds))}")
    key = keys.get(signed.keyid)
    if key is None:
        raise BadLetter(
            "identity_unproven", f"the letter says that {shown(signed.keyid)} has signed it, who is unknown"
        )
    try:
        key.verify(signed.signature, pre_authentication(signed.payload_type, signed.payload))
    except InvalidSignature:
        raise BadLetter("identity_unproven", f"the letter was not signed by {shown(signed.keyid)} as it is") from None
    return signed.payload


def _parsed(body: bytes, bytes_max: int) -> Any:
    try:
        if len(body) <= bytes_max:
            document = orjson.loads(body)
            if orjson.dumps(document) == body:  # as we write it, so that no key stands in it twice
                return document
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass  # what is wrong with it is said below
    try:
        return loads_strict(body, bytes_max=bytes_max, depth_max=_OUTSIDE_DEPTH)
    except NotJson as error:
        code = "too_large" if error.code == "too_large" else "malformed"
        raise BadLetter(code, f"the letter is not JSON as it has to be: {error}") from None


def _keys(document: Any, names: set[str], what: str) -> None:
    if type(document) is not dict or document.keys() != names:
        raise BadLetter("malformed", f"the {what} does not have exactly the fields {', '.join(sorted(names))}")


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _bytes(text: Any, what: str) -> bytes:
    """Decodes the one spelling of standard base64 that some bytes have."""
    if type(text) is str and text.isascii():
        try:
            data = binascii.a2b_base64(text)
        except binascii.Error:
            pass
        else:
            if _base64(data) == text:
                return data
    raise BadLetter("malformed", f"{what} is not standard base64")
