"""Recorded decisions as questions that can be asked again, and what a constitution reads of one.

Not here: where decisions are kept (cli), and what becomes of the answers (backtest).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from enhanced_agent_bus.ports import Loaded

Json: TypeAlias = Any
Path: TypeAlias = tuple[str, ...]
PAYLOAD: Final = ("message", "payload")
MANIFEST: Final = ".manifest"

#: Why a recorded decision cannot be asked again, and what that means.
WHY: Final = {
    "before_policy": "refused before the policy was asked",
    "undecided": "no answer was had then: not in time, or not from the server",
    "payload_gone": "the payload was erased or is not kept",
    "payload_altered": "the payload is not the one that was decided",
    "texts_gone": "headers, remembered strings or reasons were erased",
    "texts_altered": "remembered strings or reasons are not those that were recorded",
    "constitution_missing": "its constitution is not in the home",
    "constitution_unusable": "its constitution, as the home keeps it, cannot be used",
}


class Unasked(NamedTuple):
    """A recorded decision that cannot be asked again; `why` is a key of WHY."""

    seq: int
    message_id: str
    why: str


@dataclass(slots=True)
class Decision:
    """A recorded decision with its whole input: `document`, and the payload's bytes beside it."""

    seq: int
    message_id: str
    decision_id: str
    sender: str
    tenant: str
    constitution: str
    verdict: str
    code: str | None
    reasons: tuple[tuple[str, str], ...]  # rule, code
    words: tuple[tuple[str, str], ...] | None  # message and remedy of each reason, as far as they are kept
    opa: str  # the version that decided
    document: dict[str, Json]  # the input without the payload
    body: bytes
    _payload: Json = None
    _unruled: bytes | None = None  # the input without what names the constitution, as the engine takes it
    _read: tuple[Sequence[Path], bytes] | None = None  # what was read at which paths

    @property
    def payload(self) -> Json:
        """The payload, parsed when it is first asked for."""
        if self._payload is None:
            self._payload = orjson.loads(self.body)
        return self._payload

    def under(self, law: Law) -> dict[str, Json]:
        """The input, were this constitution the active one; whoever had agreed to the active one agrees to it."""
        known = self.document["constitution"]
        agreed = law.digest if known["agreed"] == known["digest"] else known["agreed"]
        new = {"digest": law.digest, "agreed": agreed, "revision": law.revision}
        return {**self.document, "constitution": new}

    def question(self, document: dict[str, Json]) -> bytes:
        """The input as the engine takes it: the payload is the very bytes that were decided."""
        if self._unruled is None:  # it is the same under every constitution
            message = {**self.document["message"], "payload": orjson.Fragment(self.body)}
            rest = {key: value for key, value in self.document.items() if key != "constitution"}
            self._unruled = orjson.dumps({**rest, "message": message})
        return b'%s,"constitution":%s}' % (self._unruled[:-1], orjson.dumps(document["constitution"]))

    def at(self, paths: Sequence[Path]) -> bytes:
        """The values at paths of the input that no constitution changes, absent and null apart."""
        if self._read is None or self._read[0] != paths:
            document = self.document
            if any(path[:2] == PAYLOAD and path != PAYLOAD for path in paths):
                document = {**document, "message": {**document["message"], "payload": self.payload}}
            values = [_at(document, path) for path in paths if path != PAYLOAD]
            found = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
            self._read = (paths, found + self.body if PAYLOAD in paths else found)
        return self._read[1]


class Law:
    """A constitution that is ready to be asked, and what it reads."""

    def __init__(self, loaded: Loaded, files: Mapping[str, bytes] | None = None) -> None:
        """`files` are those of the constitution, where they are at hand: of two with the same rules one is asked."""
        self.digest = loaded.digest
        self.revision = loaded.revision
        self.rules = loaded.rules
        self._cacheable = loaded.cacheable
        self._whole = bool({(), ("message",)} & set(loaded.read_paths))
        self._paths = tuple(path for path in loaded.read_paths if path[:1] != ("constitution",))
        self._own_paths = tuple(path for path in loaded.read_paths if path[:1] == ("constitution",))
        self._knows_itself = not loaded.cacheable or () in loaded.read_paths or bool(self._own_paths)
        self._seed = bytes.fromhex(loaded.digest) if files is None else deciding(files)

    def same_input(self, other: Law) -> bool:
        """Whether one input will do for both: neither reads what names the constitution, which is all that differs."""
        return not self._knows_itself and not other._knows_itself

    def key(self, decision: Decision, document: dict[str, Json]) -> bytes | None:
        """Two questions with one key have one answer: the values at the paths that are read, absent and null apart.

        None, when nothing can be said about that: a policy that says `with` reads what it likes.
        """
        if not self._cacheable:
            return None
        if self._whole:
            read = decision.question(document)
        else:
            own = [_at(document, path) for path in self._own_paths]
            read = orjson.dumps(own, option=orjson.OPT_SORT_KEYS) + decision.at(self._paths)
        return sha256(self._seed + read).digest()


def deciding(files: Mapping[str, bytes]) -> bytes:
    """Equal for constitutions that give the same answer to the same question: texts, tests and numbers aside."""
    manifest = json.loads(files[MANIFEST])
    rest = {key: value for key, value in manifest.items() if key not in ("revision", "metadata")}
    kept = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()) if _decides(name)]
    return sha256("".join((json.dumps(rest, sort_keys=True), "\n", *kept)).encode()).digest()


def _decides(name: str) -> bool:
    return not name.endswith((".md", "_test.rego")) and name not in (MANIFEST, ".signatures.json")


def _at(node: Json, path: Path) -> tuple[Json, ...]:
    """(value,), or () where the path leads nowhere."""
    for step in path:
        if type(node) is not dict or step not in node:
            return ()
        node = node[step]
    return (node,)
