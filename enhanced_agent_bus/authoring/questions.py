"""Recorded decisions as questions that can be asked again, and what a constitution reads of one.

Not here: where decisions are kept (cli), and what becomes of the answers (backtest).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from enhanced_agent_bus.ports import Loaded

Json: TypeAlias = Any
Path: TypeAlias = tuple[str, ...]
PAYLOAD: Final = ("message", "payload")
MANIFEST: Final = ".manifest"
PLACES_MAX: Final = 64  # of different constitutions

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
    _read: tuple[Places, bytes] | None = None  # what was read, and where

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

    def at(self, places: Places) -> bytes:
        """The values at these places of the input, absent and null apart."""
        if self._read is None or self._read[0] is not places:
            document = self.document
            if places.in_payload:
                document = {**document, "message": {**document["message"], "payload": self.payload}}
            found = _values(document, places.paths)
            self._read = (places, found + self.body if places.whole_payload else found)
        return self._read[1]


class Places:
    """Where constitutions that read the same read the input, but for what names a constitution."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.whole_payload = PAYLOAD in paths  # then it is compared as the bytes that it came in
        self.paths = tuple(path for path in paths if path != PAYLOAD)
        self.in_payload = any(path[:2] == PAYLOAD for path in self.paths)


_places: Final = lru_cache(maxsize=PLACES_MAX)(Places)  # one for each, so that its identity tells


class Law:
    """A constitution that is ready to be asked, and what it reads."""

    def __init__(self, loaded: Loaded, files: Mapping[str, bytes] | None = None) -> None:
        """`files` are those of the constitution, where they are at hand: of two with the same rules one is asked."""
        self.digest = loaded.digest
        self.revision = loaded.revision
        self.rules = loaded.rules
        self._cacheable = loaded.cacheable
        self._whole = bool({(), ("message",)} & set(loaded.read_paths))
        self._places = _places(tuple(path for path in loaded.read_paths if path[:1] != ("constitution",)))
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
            read = decision.at(self._places)
            if self._own_paths:
                read = _values(document, self._own_paths) + read
        return sha256(self._seed + read).digest()


def deciding(files: Mapping[str, bytes]) -> bytes:
    """Equal for constitutions that give the same answer to the same question: texts, tests and numbers aside."""
    manifest = json.loads(files[MANIFEST])
    rest = {key: value for key, value in manifest.items() if key not in ("revision", "metadata")}
    kept = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()) if _decides(name)]
    return sha256("".join((json.dumps(rest, sort_keys=True), "\n", *kept)).encode()).digest()


def _decides(name: str) -> bool:
    return not name.endswith((".md", "_test.rego")) and name not in (MANIFEST, ".signatures.json")


def _values(document: dict[str, Json], paths: Sequence[Path]) -> bytes:
    """A list of what stands at each path, in a list, or of an empty one where it leads nowhere."""
    values: list[tuple[Json, ...]] = []
    for path in paths:
        node: Json = document
        for step in path:
            if type(node) is not dict or step not in node:
                values.append(())
                break
            node = node[step]
        else:
            values.append((node,))
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
