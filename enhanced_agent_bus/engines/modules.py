"""Whether a server has the modules of a constitution, by the hashes of their texts.

Not here: data (basedata.py).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from enhanced_agent_bus.engines.reply import CONTAINERS_MAX, MalformedReplyError

LIST_BYTES_MAX: Final = 4 << 20  # of the server's list, which has each module as text and as a tree, ten times as long
ROOT: Final = "bus"
SCHEMA_BUILTINS: Final = (b"json.match_schema", b"json.verify_schema")
TEST_SUFFIX: Final = "_test.rego"


class Modules(NamedTuple):
    """The hashes of the texts of a constitution's modules."""

    deciding: frozenset[bytes]
    tests: frozenset[bytes]  # a server loads them too; ours does not
    take_schemas: bool  # a schema can name another file or host: a server follows that, ours does not


def modules_of(path: Path) -> Modules:
    """Of a folder or a bundle that an engine has loaded."""
    found = list(_files(path))
    return Modules(
        frozenset(sha256(text).digest() for name, text in found if not name.endswith(TEST_SUFFIX)),
        frozenset(sha256(text).digest() for name, text in found if name.endswith(TEST_SUFFIX)),
        any(builtin in text for name, text in found if not name.endswith(TEST_SUFFIX) for builtin in SCHEMA_BUILTINS),
    )


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in path.rglob("*.rego"):
            yield file.name, file.read_bytes()
        return
    with tarfile.open(path) as bundle:
        for member in bundle:
            if member.isfile() and member.name.endswith(".rego") and (content := bundle.extractfile(member)):
                yield member.name, content.read()


def same(ours: Modules, listed: bytes) -> bool:
    """Whether the answer to `GET /v1/policies` has our modules and no others in `data.bus`.

    Other packages are other bundles' business. Raises: MalformedReplyError, where the list cannot be read.
    """
    theirs = frozenset(sha256(text).digest() for text in _texts(listed))
    return ours.deciding <= theirs <= ours.deciding | ours.tests


def _texts(listed: bytes) -> Iterator[bytes]:
    if listed.count(b"{") + listed.count(b"[") > 2 * CONTAINERS_MAX:
        raise MalformedReplyError("the list has too many parts")
    try:
        document = orjson.loads(listed)
        for module in document["result"]:
            if _package(module)[1:2] == [ROOT]:
                yield module["raw"].encode()
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise MalformedReplyError("it is no list of modules") from error


def _package(module: dict[str, Any]) -> list[str]:
    """Its path, ["data", "bus", ...]."""
    return [step["value"] for step in module["ast"]["package"]["path"]]
