"""What a constitution reads of the input, as a key: two questions with one key have one answer.

The engine names the paths (every literal `input` path of the modules that decide). The key holds the values found
there, with absent and null apart and types apart, in full: JSON text, not a Python hash, since `1 == True` there.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import orjson

from enhanced_agent_bus.message import Envelope
from enhanced_agent_bus.ports import Loaded
from enhanced_agent_bus.verdict import Party

if TYPE_CHECKING:
    from enhanced_agent_bus.admission.sight import Sight

PARTIES_MAX: Final = 100_000
Path = tuple[str, ...]


#: Input fields that are fields of the envelope, as they are, and always there.
_OF_ENVELOPE: Final = {
    ("message", name): Envelope._fields.index(name) for name in ("id", "type", "priority", "conversation", "hops")
}


class Reading:
    """The read paths of one constitution, sorted by where their values come from."""

    def __init__(self, loaded: Loaded) -> None:
        self.cacheable = loaded.cacheable
        self.whole = () in loaded.read_paths
        paths = [path for path in loaded.read_paths if path]
        self._envelope = _fields([_OF_ENVELOPE[path] for path in paths if path in _OF_ENVELOPE])
        self._sender = [path[1:] for path in paths if path[0] == "sender"]
        self._recipient = [path[1:] for path in paths if path[0] == "recipient"]
        self._payload = [path[2:] for path in paths if path[:2] == ("message", "payload")]
        self._facts = [path[1:] for path in paths if path[0] == "facts"]
        self._rest = [
            path
            for path in paths
            if path not in _OF_ENVELOPE
            and path[0] not in ("sender", "recipient", "facts")
            and path[:2] != ("message", "payload")
        ]
        self._message = ("message",) in paths
        self.payload = self.whole or self._message or bool(self._payload)
        self._tokens: dict[Party, tuple[bytes, bytes]] = {}
        self.fact_scopes = self._scopes(paths)

    def _scopes(self, paths: list[Path]) -> frozenset[str]:
        """The scopes whose facts can change an answer."""
        every = frozenset({"sender", "recipient", "conversation", "tenant"})
        if self.whole or ("facts",) in paths:
            return every
        return frozenset(path[1] for path in paths if path[0] == "facts" and len(path) > 1) & every

    def key(self, sight: Sight, payload: Any) -> bytes:
        """The values at the read paths; `payload` is parsed from the bytes that were frozen."""
        if self.whole:
            return orjson.dumps([sight.document(), payload], option=orjson.OPT_SORT_KEYS)
        addressed = sight.case.addressed
        envelope = addressed.envelope
        picked: list[Any] = [self._envelope(envelope)]
        if self._rest:
            document = sight.document()
            for path in self._rest:
                _pick(document, path, picked)
        if self._message:
            picked.append(payload)
        for path in self._payload:
            _pick(payload, path, picked)
        key = (
            self._token(addressed.sender)[0]
            + self._token(addressed.recipient)[1]
            + orjson.dumps(picked, option=orjson.OPT_SORT_KEYS)
        )
        return key + self.facts_key(sight) if self._facts else key

    def facts_key(self, sight: Sight) -> bytes:
        """The facts that an answer can depend on: unchanged means that the answer still holds."""
        if self.whole:
            return orjson.dumps(sight.facts(), option=orjson.OPT_SORT_KEYS)
        if not self._facts:
            return b""
        facts = sight.facts()
        picked: list[Any] = []
        for path in self._facts:
            _pick(facts, path, picked)
        return orjson.dumps(picked, option=orjson.OPT_SORT_KEYS)

    def _token(self, party: Party) -> tuple[bytes, bytes]:
        """A registration's part of the key, made once: as sender, and as recipient."""
        token = self._tokens.get(party)
        if token is None:
            if len(self._tokens) >= PARTIES_MAX:
                self._tokens.clear()
            as_sender: list[Any] = []
            as_recipient: list[Any] = []
            for path in self._sender:
                _pick(party.document, path, as_sender)
            for path in self._recipient:
                _pick(party.document, path, as_recipient)
            token = (
                orjson.dumps(as_sender, option=orjson.OPT_SORT_KEYS),
                orjson.dumps(as_recipient, option=orjson.OPT_SORT_KEYS),
            )
            self._tokens[party] = token
        return token


def _fields(indices: list[int]) -> Callable[[Envelope], Any]:
    """Takes these fields of an envelope, in one step."""
    return itemgetter(*indices) if indices else lambda _: None


def _pick(node: Any, path: Path, into: list[Any]) -> None:
    """Appends [value] or, where the path leads nowhere, []: so that absent and null stay apart."""
    for step in path:
        if type(node) is not dict or step not in node:
            into.append(())
            return
        node = node[step]
    into.append((node,))
