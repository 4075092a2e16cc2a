"""Checks what `eab audit` hands out with none of its software: 0 is shown, 1 is not shown, 2 is wrong usage.

python check.py KEYS  checkpoint NOTE | proof TLOG_PROOF | growth OLD_NOTE PROOF
KEYS is a file with a vkey a line: of a log whose key was changed those before and after the change. Copy and change it.
"""

import sys
from base64 import b64decode
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def sha(*parts: bytes) -> bytes:  # RFC 6962 §2.1: of a leaf after a byte 0, of an inner node after a byte 1
    return sha256(b"".join(parts)).digest()


def opened(note: str, vkeys: str) -> tuple[int, bytes]:  # C2SP tlog-checkpoint: size and root, if a key signed them
    text, signatures = note.split("\n\n", 1)
    origin, size, digest = text.split("\n")
    for name, key_id, key in (vkey.split("+", 2) for vkey in vkeys.split()):
        ours = [
            b64decode(line.split(" ")[2]) for line in signatures.splitlines() if line.split(" ")[1] == name == origin
        ]
        for signature in (one[4:] for one in ours if one[:4].hex() == key_id):
            with suppress(InvalidSignature):
                Ed25519PublicKey.from_public_bytes(b64decode(key)[1:]).verify(signature, f"{text}\n".encode())
                return int(size), b64decode(digest)
    raise ValueError("no key given signed this checkpoint")


def above(at: int, n: int, leaf: bytes, path: list[bytes]) -> bytes:  # RFC 6962 §2.1.1: the root over a leaf
    if n == 1:
        return leaf
    k, other = 1 << (n - 1).bit_length() - 1, path.pop()
    return (
        sha(b"\1", above(at, k, leaf, path), other) if at < k else sha(b"\1", other, above(at - k, n - k, leaf, path))
    )


def grown(m: int, n: int, whole: bytes, path: list[bytes]) -> tuple[bytes, bytes]:  # §2.1.2: the old and the new root
    if m == n:
        return (same := whole or path.pop()), same
    k, other = 1 << (n - 1).bit_length() - 1, path.pop()
    old, new = grown(m, k, whole, path) if m <= k else grown(m - k, n - k, b"", path)
    return (old, sha(b"\1", new, other)) if m <= k else (sha(b"\1", other, old), sha(b"\1", other, new))


def check(vkeys: str, what: str, text: str, more: str = "") -> str:
    head, note = (more or text).split("\n\n", 1) if what in ("proof", "growth") else ("", text)
    (size, signed), lines, said, shown = opened(note, vkeys), head.split("\n"), note, what == "checkpoint"
    path = [b64decode(line) for line in lines[3 if what == "proof" else 1 :]]
    if what == "proof":
        said, at = b64decode(lines[1].removeprefix("extra ")).decode(), int(lines[2].removeprefix("index "))
        shown = 0 <= at < size and above(at, size, sha(b"\0", said.encode()), path) == signed
    elif what == "growth":
        old, before = opened(text, vkeys)
        shown = lines[0] == f"old {old}" and grown(old, size, before, path) == (before, signed)
    if not shown or path:
        raise ValueError("this is not shown")
    return said


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.stderr.write(__doc__ or "")
        sys.exit(2)
    try:
        vkeys, *texts = [Path(file).read_text() for file in (sys.argv[1], *sys.argv[3:])]
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    try:
        print(check(vkeys, sys.argv[2], *texts), end="")
    except (ValueError, IndexError, TypeError) as error:  # bytes that are no proof fail in many ways
        sys.exit(f"not shown: {error}")
