"""Checks what `eab audit` hands out with none of its software; an error means that it is not shown. Copy and change it.

python check.py log.vkey  checkpoint NOTE | proof TLOG_PROOF | growth OLD_NOTE PROOF
"""

import sys
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def sha(*parts: bytes) -> bytes:  # RFC 6962 §2.1: of a leaf after a byte 0, of an inner node after a byte 1
    return sha256(b"".join(parts)).digest()


def opened(note: str, vkey: str) -> tuple[int, bytes]:  # C2SP tlog-checkpoint: size and root, if the key signed them
    (name, key_id, key), (text, signatures) = vkey.strip().split("+", 2), note.split("\n\n", 1)
    origin, size, digest = text.split("\n")
    ours = [b64decode(line.split(" ")[2]) for line in signatures.splitlines() if line.split(" ")[1] == name == origin]
    signature = next(one[4:] for one in ours if one[:4].hex() == key_id)
    Ed25519PublicKey.from_public_bytes(b64decode(key)[1:]).verify(signature, f"{text}\n".encode())
    return int(size), b64decode(digest)


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


def check(vkey: str, what: str, text: str, more: str = "") -> str:
    head, note = (more or text).split("\n\n", 1) if what in ("proof", "growth") else ("", text)
    (size, signed), lines, said, shown = opened(note, vkey), head.split("\n"), note, what == "checkpoint"
    path = [b64decode(line) for line in lines[3 if what == "proof" else 1 :]]
    if what == "proof":
        said, at = b64decode(lines[1].removeprefix("extra ")).decode(), int(lines[2].removeprefix("index "))
        shown = 0 <= at < size and above(at, size, sha(b"\0", said.encode()), path) == signed
    elif what == "growth":
        old, before = opened(text, vkey)
        shown = lines[0] == f"old {old}" and grown(old, size, before, path) == (before, signed)
    if not shown or path:
        raise ValueError("this is not shown")
    return said


if __name__ == "__main__":
    print(check(Path(sys.argv[1]).read_text(), sys.argv[2], *(Path(file).read_text() for file in sys.argv[3:])), end="")
