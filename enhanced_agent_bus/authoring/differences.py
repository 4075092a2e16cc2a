"""What differs between two constitutions: rules, files, data key by key, and what is read of the input.

Not here: what that means for messages (backtest).
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from enhanced_agent_bus.ports import Loaded

Json: TypeAlias = Any
How: TypeAlias = Literal["added", "removed", "changed"]
RULES_FOLDER: Final = "bus/rules/"
DATA_FILE: Final = "data.json"
SIGNATURES: Final = ".signatures.json"  # not part of what is hashed


@dataclass(frozen=True, slots=True)
class Constitution:
    """One side: what was loaded, and its files."""

    loaded: Loaded
    files: Mapping[str, bytes]


def files_of(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle that was packed by the worker, by path. Raises: OSError."""
    found: dict[str, bytes] = {}
    with tarfile.open(bundle, "r:gz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            name = member.name.removeprefix("/").removeprefix("./")
            if content is not None and name != SIGNATURES:
                found[name] = content.read()
    return found


def differences(old: Constitution, new: Constitution) -> dict[str, Json]:
    """Everything that differs, as `--json` prints it; `same` when nothing does."""
    files = [{"file": name, "change": how} for name, how in _changed(old.files, new.files)]
    changed: dict[str, list[dict[str, str]]] = {}
    for file in files:
        rule = _rule_of(file["file"])
        if rule is not None:
            changed.setdefault(rule, []).append(file)
    both = [rule for rule in new.loaded.rules if rule in old.loaded.rules]
    return {
        "same": old.loaded.digest == new.loaded.digest,
        "revision": _pair(old.loaded.revision, new.loaded.revision),
        "name": _pair(old.loaded.name, new.loaded.name),
        "not_after": _pair(old.loaded.not_after, new.loaded.not_after),
        "rules": {
            "added": [rule for rule in new.loaded.rules if rule not in old.loaded.rules],
            "removed": [rule for rule in old.loaded.rules if rule not in new.loaded.rules],
            "changed": [{"rule": rule, "files": changed[rule]} for rule in both if rule in changed],
            "reordered": both != [rule for rule in old.loaded.rules if rule in new.loaded.rules],
        },
        "files": files,
        "data": list(_data(old.files, new.files)),
        "reads": {
            "added": _paths(set(new.loaded.read_paths) - set(old.loaded.read_paths)),
            "removed": _paths(set(old.loaded.read_paths) - set(new.loaded.read_paths)),
        },
        "cacheable": _pair(old.loaded.cacheable, new.loaded.cacheable),
    }


def _pair(old: Json, new: Json) -> dict[str, Json] | None:
    return None if old == new else {"from": old, "to": new}


def _paths(paths: set[tuple[str, ...]]) -> list[str]:
    return [".".join(("input", *path)) for path in sorted(paths)]


def _changed(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Iterator[tuple[str, How]]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield name, "added" if name not in old else "removed" if name not in new else "changed"


def _rule_of(name: str) -> str | None:
    below = name.removeprefix(RULES_FOLDER)
    return below.partition("/")[0] if below != name else None


def _data(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Iterator[dict[str, Json]]:
    """The values that differ under `data`, each by its path."""
    for name in sorted({*old, *new}):
        if name.rpartition("/")[2] == DATA_FILE and old.get(name) != new.get(name):
            yield from _values(["data", *name.split("/")[:-1]], _document(old.get(name)), _document(new.get(name)))


def _document(content: bytes | None) -> Json:
    return {} if content is None else json.loads(content)


def _values(path: Sequence[str], old: Json, new: Json) -> Iterator[dict[str, Json]]:
    """Objects key by key; whatever else differs, whole."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        if _text(old) != _text(new):
            lists = isinstance(old, list) and isinstance(new, list)
            items = {"added": _without(new, old), "removed": _without(old, new)} if lists else {}
            yield {"path": _ref(path), "change": "changed", "from": old, "to": new, **items}
        return
    for key in sorted({*old, *new}):
        if key not in old:
            yield {"path": _ref([*path, key]), "change": "added", "to": new[key]}
        elif key not in new:
            yield {"path": _ref([*path, key]), "change": "removed", "from": old[key]}
        else:
            yield from _values([*path, key], old[key], new[key])


def _without(some: list[Json], others: list[Json]) -> list[Json]:
    """The items of one list that another one has not, or not as often."""
    left = Counter(map(_text, others))
    found = []
    for item in some:
        if left[_text(item)]:
            left[_text(item)] -= 1
        else:
            found.append(item)
    return found


def _text(value: Json) -> str:
    """1, 1.0 and true apart; keys in any order are the same."""
    return json.dumps(value, sort_keys=True)


def _ref(path: Sequence[str]) -> str:
    """As Rego writes it: data.bus.rules.cap["a key"]."""
    return path[0] + "".join(f".{step}" if step.isidentifier() else f"[{json.dumps(step)}]" for step in path[1:])
