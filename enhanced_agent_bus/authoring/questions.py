"""Recorded decisions as questions that can be asked again, and what a constitution reads of one.

Not here: where decisions are kept (cli), and what becomes of the answers (backtest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from enhanced_agent_bus.ports import Loaded

Json: TypeAlias = Any
Path: TypeAlias = tuple[str, ...]

#: Why a recorded decision cannot be asked again, and what that means.
WHY: Final = {
    "before_policy": "refused before the policy was asked",
    "undecided": "no answer was had then: not in time, or not from the server",
    "payload_gone": "the payload was erased or is not kept",
    "payload_altered": "the payload is not the one that was decided",
    "texts_gone": "headers, remembered strings or reasons were erased",
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
        message = {**document["message"], "payload": orjson.Fragment(self.body)}
        return orjson.dumps({**document, "message": message})


class Law:
    """A constitution that is ready to be asked, and what it reads."""

    def __init__(self, loaded: Loaded) -> None:
        self.digest = loaded.digest
        self.revision = loaded.revision
        self.rules = loaded.rules
        self._cacheable = loaded.cacheable
        self._whole = () in loaded.read_paths
        self._paths: Sequence[Path] = [path for path in loaded.read_paths if path]
        self._reads_payload = self._whole or any(
            path == ("message",) or path[:2] == ("message", "payload") for path in self._paths
        )
        self._seed = bytes.fromhex(loaded.digest)

    def key(self, decision: Decision, document: dict[str, Json]) -> bytes | None:
        """Two questions with one key have one answer: the values at the paths that are read, absent and null apart.

        None, when nothing can be said about that: a policy that says `with` reads what it likes.
        """
        if not self._cacheable:
            return None
        if self._reads_payload:
            document = {**document, "message": {**document["message"], "payload": decision.payload}}
        read = document if self._whole else [_at(document, path) for path in self._paths]
        return sha256(self._seed + orjson.dumps(read, option=orjson.OPT_SORT_KEYS)).digest()


def _at(node: Json, path: Path) -> tuple[Json, ...]:
    """(value,), or () where the path leads nowhere."""
    for step in path:
        if type(node) is not dict or step not in node:
            return ()
        node = node[step]
    return (node,)
