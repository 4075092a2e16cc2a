"""What a mask takes out of a decision log event, as OPA 1.22 does it, and what is left of a row then. Pure.

https://www.openpolicyagent.org/docs/management-decision-logs#masking-sensitive-data: a rule is a path, which is
removed, or {op: remove or upsert, path, value}; a path that leads nowhere is passed over. Two things differ. Where OPA
drops an event whose mask failed, `redacted` keeps it without input and result. And names are compared as they are: OPA
compares them escaped, so that it never finds one with a space. Not here: who evaluates the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from enhanced_agent_bus.audit.formats.row import Document, Row

PARTS: Final = ("input", "result", "nd_builtin_cache")
REMOVE: Final = "remove"
UPSERT: Final = "upsert"
_PLAIN: Final = "$&+=:@-_.~"  # what Go's url.PathEscape leaves as it is


class BadMaskError(ValueError):
    """A mask answered something that is no list of rules."""


class Rule(NamedTuple):
    """One thing to do."""

    op: str
    parts: tuple[str, ...]
    value: Any = None

    @property
    def path(self) -> str:
        """As OPA writes it under `erased` and `masked`."""
        return "/" + "/".join(quote(part, safe=_PLAIN) for part in self.parts)


def rules_of(answer: Any) -> list[Rule]:
    """The rules that a mask answered. Raises: BadMaskError."""
    if not isinstance(answer, list):
        raise BadMaskError("it is no set of rules")
    return [_rule(one) for one in answer]


def _rule(one: Any) -> Rule:
    op: Any = REMOVE
    path, value = one, None
    if isinstance(one, Mapping):
        op, path, value = one.get("op"), one.get("path"), one.get("value")
    if op not in (REMOVE, UPSERT) or not isinstance(path, str) or not path.startswith("/"):
        raise BadMaskError("a rule has neither a path nor an op that is known")
    parts = tuple(path[1:].split("/"))
    if parts[0] not in PARTS:
        raise BadMaskError("a rule's path begins with none of /input, /result, /nd_builtin_cache")
    return Rule(op, parts, value)


def masked(row: Row, event: Mapping[str, Any], rules: Sequence[Rule]) -> Row:
    """The row with an event that the rules were applied to, one after the other, and with the content left by them."""
    found: Document = deepcopy(dict(event))
    erased, changed = [], []
    for rule in rules:
        if rule.op == REMOVE and _remove(found, rule.parts):
            erased.append(rule.path)
        elif rule.op == UPSERT and _upsert(found, rule.parts, rule.value):
            changed.append(rule.path)
    if erased:
        found["erased"] = [*found.get("erased", []), *erased]
    if changed:
        found["masked"] = changed
    content = None if row.content is None else _content(row.content, found)
    return row._replace(event=found, content=content, erased=tuple(erased), masked=tuple(changed))


def redacted(row: Row, event: Mapping[str, Any]) -> Row:
    """The row with nothing that a mask might have taken out: no mask has answered in a form that can be used."""
    found = {name: value for name, value in event.items() if name not in PARTS}
    paths = [f"/{part}" for part in PARTS if part in event]
    content: Document | None = None if row.content is None else {}
    found |= {"erased": paths} if paths else {}
    return row._replace(event=found, content=content, erased=tuple(paths), masked=())


def _remove(document: Any, parts: Sequence[str]) -> bool:
    node = _walk(document, parts[:-1])
    if isinstance(node, dict) and parts[-1] in node:
        del node[parts[-1]]
        return True
    place = _index(node, parts[-1])
    if place is not None:
        del node[place]
        return True
    return False


def _upsert(document: Any, parts: Sequence[str], value: Any) -> bool:
    if parts[0] not in document and len(parts) > 1:
        return False
    node = document
    for part in parts[:-1]:
        place = _index(node, part)
        if isinstance(node, dict):
            node = node.setdefault(part, {})
        elif place is not None:
            node = node[place]
        else:
            return False
    place = _index(node, parts[-1])
    if isinstance(node, dict):
        node[parts[-1]] = value
    elif place is not None:
        node[place] = value
    return isinstance(node, dict) or place is not None


def _walk(node: Any, parts: Sequence[str]) -> Any:
    """What stands at a path; None where it leads nowhere."""
    for part in parts:
        place = _index(node, part)
        node = node.get(part) if isinstance(node, dict) else None if place is None else node[place]
    return node


def _index(node: Any, part: str) -> int | None:
    """The place in a list that a part of a path names."""
    if not isinstance(node, list) or not part.isascii() or not part.isdecimal() or int(part) >= len(node):
        return None
    return int(part)


def _content(content: Mapping[str, Any], event: Mapping[str, Any]) -> Document:
    """Of the content what the event still has."""
    message = _walk(event, ("input", "message"))
    left = {
        name: message[name]
        for name in ("payload", "headers")
        if isinstance(message, dict) and name in content and name in message
    }
    facts = {}
    for scope, values in content.get("facts", {}).items():
        known = _walk(event, ("input", "facts", scope))
        if isinstance(known, dict):
            facts[scope] = {key: known[key] for key in values if key in known}
    if facts:
        left["facts"] = facts
    reasons = _walk(event, ("result", "reasons"))
    if "reasons" in content and isinstance(reasons, list):
        said = [reason if isinstance(reason, dict) else {} for reason in reasons]
        left["reasons"] = [[reason.get("message"), reason.get("remedy")] for reason in said]
    return left
