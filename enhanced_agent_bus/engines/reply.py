"""What an OPA server's reply says: from status, type and bytes to an answer. Pure; no sockets.

Not here: the shape of a decision (admission/answer.py), which gets the bytes of `result` as the server wrote them.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, Final, NamedTuple

from enhanced_agent_bus.verdict import Answer

BODY_BYTES_MAX: Final = 1 << 20  # decoded, and as it comes
CONTAINERS_MAX: Final = 65_536  # objects and arrays in one reply: they take far more memory than bytes
OK: Final = 200
BAD_REQUEST: Final = 400
SERVER_ERROR: Final = 500
DETAIL_CHARS_MAX: Final = 500
GZIP_WBITS: Final = 31  # gzip, and nothing else
_SPACE: Final = re.compile(r"[ \t\n\r]*")


class MalformedReplyError(ValueError):
    """The reply is not what an OPA server says."""


class Reply(NamedTuple):
    """An answer, and which OPA gave it: None where the reply says nothing of that, "" where it should and does not."""

    answer: Answer
    version: str | None = None


class Inflater:
    """The bytes of a body, decoded, at most `bytes_max` of them."""

    def __init__(self, encoding: str, bytes_max: int = BODY_BYTES_MAX) -> None:
        """Raises: MalformedReplyError for an encoding that was not asked for and is not known."""
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise MalformedReplyError("its content encoding is not known")
        self._gzip = zlib.decompressobj(GZIP_WBITS) if encoding.endswith("gzip") else None
        self._bytes_max = bytes_max
        self._read = 0
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Raises: MalformedReplyError, where it is too large or cannot be decoded."""
        self._read += len(piece)
        if self._gzip is not None:
            try:
                piece = self._gzip.decompress(piece, self._bytes_max - self._size + 1)
            except zlib.error as error:
                raise MalformedReplyError("it is not gzip") from error
        self._size += len(piece)
        if self._size > self._bytes_max or self._read > self._bytes_max:
            raise MalformedReplyError(f"it is larger than {self._bytes_max} bytes")
        self._pieces.append(piece)

    def body(self) -> bytes:
        """All of it. Raises: MalformedReplyError, where gzip has not ended, or more comes behind it."""
        if self._gzip is not None and (not self._gzip.eof or self._gzip.unused_data):
            raise MalformedReplyError("its gzip does not end where it should")
        return b"".join(self._pieces)


def read_decision(status: int, media_type: str, body: bytes, *, bundle: str, revision: str, us: int) -> Reply:
    """The answer in a reply to `POST /v1/data/bus/decision?provenance=true&strict-builtin-errors=true`.

    It is read whatever the revision, and says policy_revision_mismatch beside the document where that is another one:
    what is no decision at all is then still named as that.
    """
    is_json = is_json_type(media_type)
    if status != OK:
        return Reply(_failure(status, body if is_json else b"", bundle))
    if not is_json:
        return Reply(malformed("it is not application/json"))
    try:
        found = members(body)
    except MalformedReplyError as error:
        return Reply(malformed(str(error)))
    served, version = provenance(found, bundle)
    if "result" not in found:
        return Reply(Answer("policy_undefined", b"", us, "data.bus.decision is undefined"), version)
    document = found["result"][1].encode()
    if served != revision:
        detail = f"the OPA server decides under revision {_shown(served)}, and {revision} is active"
        return Reply(Answer("policy_revision_mismatch", document, us, detail), version)
    return Reply(Answer(None, document, us), version)


def provenance(found: dict[str, tuple[Any, str]], bundle: str) -> tuple[str | None, str]:
    """The revision of the bundle that the server names, and its own version."""
    document = found["provenance"][0] if "provenance" in found else None
    if not isinstance(document, dict):
        return None, ""
    bundles = document.get("bundles")
    named = bundles.get(bundle) if isinstance(bundles, dict) else None
    revision = named.get("revision") if isinstance(named, dict) else None
    version = document.get("version")
    return revision if isinstance(revision, str) else None, version if isinstance(version, str) else ""


def members(body: bytes) -> dict[str, tuple[Any, str]]:
    """The members of a JSON object, each as a value and as it was written.

    Raises: MalformedReplyError, for anything else: a key that stands twice, at any depth, and NaN among it.
    """
    if body.count(b"{") + body.count(b"[") > CONTAINERS_MAX:
        raise MalformedReplyError("it has too many parts")
    try:
        return _members(body.decode())
    except MalformedReplyError:
        raise
    except (ValueError, RecursionError, IndexError) as error:  # ValueError: no JSON, no UTF-8, or too many digits
        raise MalformedReplyError("it is not JSON") from error


def _members(text: str) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    at = _expect(text, 0, "{")
    if text[at] != "}":
        while True:
            if text[at] != '"':
                raise MalformedReplyError("it is not JSON")
            key, at = _DECODER.raw_decode(text, at)
            begin = _expect(text, at, ":")
            value, end = _DECODER.raw_decode(text, begin)
            if key in found:
                raise MalformedReplyError("a key stands twice in one object")
            found[key] = (value, text[begin:end])
            at = _space(text, end)
            if text[at] == "}":
                break
            at = _expect(text, at, ",")
    if _space(text, at + 1) != len(text):
        raise MalformedReplyError("something stands behind its end")
    return found


def _expect(text: str, at: int, mark: str) -> int:
    """The place after a mark, and the space around that."""
    at = _space(text, at)
    if text[at] != mark:
        raise MalformedReplyError("it is not an object" if mark == "{" else "it is not JSON")
    return _space(text, at + 1)


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match is not None else at


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedReplyError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise MalformedReplyError(f"{name} is no JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def is_json_type(media_type: str) -> bool:
    """Whether a Content-Type is application/json, with parameters or without."""
    return media_type.partition(";")[0].strip().lower() == "application/json"


def malformed(why: str) -> Answer:
    """No answer, since the server's reply is none."""
    return Answer("policy_malformed", detail=f"the OPA server's reply cannot be used: {why}")


def _failure(status: int, body: bytes, bundle: str) -> Answer:
    """What another status than 200 means."""
    code, said = "", ""
    try:
        found = members(body) if body else {}
    except MalformedReplyError:
        found = {}
    if isinstance(value := found.get("code", ("",))[0], str):
        code = value
    if status == SERVER_ERROR and code == "internal_error":
        said = _first_error(found.get("errors", (None,))[0], bundle)
        return Answer("policy_error", detail=said or "the OPA server could not evaluate the policy")
    if status == BAD_REQUEST and code == "invalid_parameter":
        return Answer("policy_error", detail="the OPA server could not read the question")
    return Answer("policy_unavailable", detail=f"the OPA server answered with status {status}")


def _first_error(errors: object, bundle: str) -> str:
    """As the embedded engine words it: `file:row: code: message`."""
    error = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(error, dict):
        return ""
    location = error.get("location")
    place = ""
    if isinstance(location, dict):
        file = str(location.get("file", "")).removeprefix(f"{bundle}/")
        place = f"{file}:{location.get('row', 0)}: "
    return f"{place}{error.get('code', '')}: {error.get('message', '')}"[:DETAIL_CHARS_MAX]


def _shown(revision: str | None) -> str:
    """A revision as a server named it, short and plain."""
    return "of no such bundle" if revision is None else ascii(revision[:40])
