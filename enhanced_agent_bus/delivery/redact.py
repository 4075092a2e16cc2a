"""What a policy takes out of a payload before its handler sees it: nothing comes in its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

INDEX_DIGITS_MAX: Final = 10  # no payload has a list with so many items


def redacted(payload: dict[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """The payload without what these JSON pointers (RFC 6901) lead to; the payload that was given is changed.

    A pointer that leads nowhere takes nothing; the empty one takes everything. Of several places in one list all are
    taken as they stood before.
    """
    found: list[tuple[Any, Any]] = []
    for path in paths:
        if not path:
            return {}
        place = _place(payload, path)
        if place is not None:
            found.append(place)
    lists: dict[int, tuple[list[Any], set[int]]] = {}
    for node, step in found:
        if isinstance(node, list):
            lists.setdefault(id(node), (node, set()))[1].add(step)
        else:
            node.pop(step, None)
    for node, steps in lists.values():
        node[:] = [item for index, item in enumerate(node) if index not in steps]
    return payload


def _place(node: Any, path: str) -> tuple[Any, Any] | None:
    """The dict or list that holds what a pointer leads to, and its key or index there."""
    *way, last = [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]
    for step in way:
        key = _key(node, step)
        if key is None:
            return None
        node = node[key]
    key = _key(node, last)
    return None if key is None else (node, key)


def _key(node: Any, step: str) -> str | int | None:
    if isinstance(node, dict) and step in node:
        return step
    if isinstance(node, list) and step.isascii() and step.isdecimal() and (step == "0" or step[0] != "0"):
        index = int(step[:INDEX_DIGITS_MAX])
        return index if index < len(node) and len(step) < INDEX_DIGITS_MAX else None
    return None
