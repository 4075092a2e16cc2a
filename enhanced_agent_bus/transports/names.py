"""What boxes, letters, buckets and keys may be called, wherever they are, and how a box is written as one token."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from enhanced_agent_bus.message import shown
from enhanced_agent_bus.ports import Letter

BOX: Final = re.compile(r"[A-Za-z0-9._-]{1,160}", re.ASCII)
LETTER_ID: Final = re.compile(r"[!-~]{1,256}", re.ASCII)
BUCKET: Final = re.compile(r"[a-z][a-z_]{0,30}", re.ASCII)
KEY: Final = re.compile(r"[A-Za-z0-9._=/-]{1,200}", re.ASCII)
BUS: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
TOKENS_KEPT: Final = 4096  # each letter names its box twice


def checked_box(box: str) -> str:
    """Raises: ValueError, for anything that cannot be a box."""
    if not BOX.fullmatch(box):
        raise ValueError(f"{shown(box)} is no name of a box ({BOX.pattern})")
    return box


def checked_letter(letter: Letter) -> Letter:
    """Raises: ValueError, for a box or an id that cannot be."""
    checked_box(letter.box)
    if not LETTER_ID.fullmatch(letter.id):
        raise ValueError(f"{shown(letter.id)} is no id of a letter ({LETTER_ID.pattern})")
    return letter


def checked_bucket(name: str) -> str:
    """Raises: ValueError, for anything that cannot be a bucket."""
    if not BUCKET.fullmatch(name):
        raise ValueError(f"{shown(name)} is no name of a bucket ({BUCKET.pattern})")
    return name


def checked_key(key: str) -> str:
    """Raises: ValueError, for anything that cannot be a key."""
    if not KEY.fullmatch(key) or "" in key.split("."):
        raise ValueError(f"{shown(key)} is no key ({KEY.pattern}, without a dot at an end or beside another)")
    return key


def checked_bus(name: str) -> str:
    """Raises: ValueError, for anything that cannot be the name of a bus."""
    if not BUS.fullmatch(name):
        raise ValueError(f"{shown(name)} is no name of a bus ({BUS.pattern})")
    return name


@lru_cache(TOKENS_KEPT)
def token(text: str) -> str:
    """One token of a subject, the same for no other text: what is not a letter, a digit, _ or - becomes =XX."""
    return "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in text.encode())
