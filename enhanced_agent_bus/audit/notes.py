"""Finds signed checkpoints in text: a file that one note after another was added to, or what a log collector kept.

Whatever stands between them is passed over. Not here: whether a signature holds (verify), what notes prove (witnessed).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Final

from enhanced_agent_bus.ports import SignedNote

#: https://c2sp.org/tlog-checkpoint: origin, size, root, maybe more lines, an empty one, and signatures.
_NOTE: Final = re.compile(
    r"^(?P<origin>[^\n]+)\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    r"(?:[^\n]+\n)*\n(?:\N{EM DASH} [^ \n]+ [A-Za-z0-9+/=]+(?:\n|\Z))+",
    re.MULTILINE,
)


def notes_in(text: str) -> Iterator[SignedNote]:
    """Every signed checkpoint in a text, in order; of a line that is a JSON object, those in `note` or `log`."""
    for found in _NOTE.finditer(text):
        yield SignedNote(
            found["origin"], int(found["size"]), base64.b64decode(found["root"]), found[0].rstrip("\n") + "\n"
        )
    for line in text.split("\n"):
        if line.startswith("{"):
            yield from _in_json(line)


def one_note(text: str) -> SignedNote:
    """Raises: ValueError, when the text is not one signed checkpoint."""
    found = list(notes_in(text))
    if len(found) != 1 or found[0].text.strip("\n") != text.strip("\n"):
        raise ValueError("this is no signed checkpoint: origin, size, root, an empty line and a signature are expected")
    return found[0]


def _in_json(line: str) -> Iterator[SignedNote]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict):
        for key in ("note", "log"):  # ours, and what Docker's json-file puts around a line
            if isinstance(document.get(key), str):
                yield from notes_in(document[key])
