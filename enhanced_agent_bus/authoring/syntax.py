"""What OPA's parser says about a file that is no Rego, in words for people who write policies, not parsers."""

from __future__ import annotations

import re
from typing import Final

_WORDS: Final = {
    "unexpected eof token": "the file ends too early: a bracket is not closed, or a line is not finished",
    "non-terminated string": 'a string has no closing "',
    "illegal token": "this is no Rego",
    "package expected": "the file has to begin with `package`, before anything else",
    "var cannot be used for rule name": "this is no rule: a rule is written `name if { ... }` or `name := value`",
}
_UNEXPECTED: Final = re.compile(r"unexpected (?P<what>.+?) token(?:: expected (?P<wanted>.*))?")


def in_words(message: str) -> str:
    """The same problem said plainly; what is not known here stays as it is."""
    if message in _WORDS:
        return _WORDS[message]
    found = _UNEXPECTED.fullmatch(message)
    if found is None:
        return message
    wanted = (found["wanted"] or "").replace("\\n", "a new line").replace("\n", "a new line")
    return f"{found['what']} cannot stand here" + (f": {wanted} was expected" if wanted else "")
