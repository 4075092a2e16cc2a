"""Whether a server has the data of a constitution, by meaning.

Asked without an input, a server's `data.bus` is its data with what rules say beside it. Everything of ours has to be
there as it is, and nothing else may be but what the modules define: those are compared first (modules.py).

Not here: proof. A server may say anything, hence the weakening `policy_server_trusted`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from enhanced_agent_bus.engines.reply import CONTAINERS_MAX, MalformedReplyError

Json: TypeAlias = Any
Place: TypeAlias = tuple[str, ...]
DATA_BYTES_MAX: Final = 4 << 20  # of the server's document; larger data is not compared
FILE: Final = "data.json"
ROOT: Final = "bus"


class Defined(NamedTuple):
    """Where modules define documents: the objects that have them, and their names in each."""

    objects: frozenset[Place]
    names: frozenset[Place]


def data_of(path: Path) -> Json | None:
    """`data.bus` of a folder or a bundle that an engine has loaded; None when it is too large to compare."""
    merged: dict[str, Json] = {}
    left = DATA_BYTES_MAX
    for folder, content in _files(path):
        left -= len(content)
        if left < 0:
            return None
        value = orjson.loads(content)
        for step in reversed(folder):
            value = {step: value}
        _merge(merged, value)
    return merged.get(ROOT, {})


def _files(path: Path) -> Iterator[tuple[Place, bytes]]:
    if path.is_dir():
        for file in path.rglob(FILE):
            yield file.parent.relative_to(path).parts, file.read_bytes()
        return
    with tarfile.open(path) as bundle:
        for member in bundle:
            parts = Path(member.name).parts
            if member.isfile() and parts[-1:] == (FILE,) and (content := bundle.extractfile(member)):
                yield parts[:-1], content.read()


def _merge(into: dict[str, Json], value: Mapping[str, Json]) -> None:
    """No value is there twice: that would not have been loaded."""
    for key, found in value.items():
        if key in into:
            _merge(into[key], found)
        else:
            into[key] = found


def defined(listed: bytes) -> Defined:
    """What the modules in an answer to `GET /v1/policies` define. Raises: MalformedReplyError."""
    objects: set[Place] = {(ROOT,)}
    names: set[Place] = set()
    try:
        for module in orjson.loads(listed)["result"]:
            package = tuple(step["value"] for step in module["ast"]["package"]["path"])[1:]
            objects |= {package[: end + 1] for end in range(len(package))}
            for rule in module["ast"].get("rules") or ():
                place = package + _ground(rule["head"])
                objects |= {place[:end] for end in range(len(package), len(place))}
                names.add(place)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise MalformedReplyError("it is no list of modules") from error
    return Defined(frozenset(objects), frozenset(names))


def _ground(head: Mapping[str, Json]) -> Place:
    """The part of a rule's name that is fixed."""
    first, *rest = head["ref"]
    found = [first["value"]]
    for term in rest:
        if term["type"] != "string":
            break
        found.append(term["value"])
    return tuple(found)


def same_data(ours: Json, where: Defined, answered: bytes) -> bool:
    """Whether the answer to `GET /v1/data/bus` has our data and no other. Raises: MalformedReplyError."""
    if answered.count(b"{") + answered.count(b"[") > CONTAINERS_MAX:
        raise MalformedReplyError("the data has too many parts")
    try:
        theirs = orjson.loads(answered)["result"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise MalformedReplyError("it is no document") from error
    return _same(ours, theirs, (ROOT,), where)


def _same(ours: Json, theirs: Json, place: Place, where: Defined) -> bool:
    if place not in where.objects:
        return _equal(ours, theirs)
    if not isinstance(ours, dict) or not isinstance(theirs, dict) or not ours.keys() <= theirs.keys():
        return False
    for key, value in theirs.items():
        below = (*place, key)
        if key in ours or (below in where.objects and below not in where.names):
            if not _same(ours.get(key, {}), value, below, where):
                return False
        elif below not in where.names:
            return False
    return True


def _equal(ours: Json, theirs: Json) -> bool:
    """As JSON: true is no number, and 1.0 is 1."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_equal(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    return isinstance(ours, bool) is isinstance(theirs, bool) and bool(ours == theirs)
