"""Packs: one zip with a log and everything by which somebody else can check it without us.

The layout and the page that explains it; files go in one after another, a log of any length through little memory.
Not here: what goes in (cli).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Final

SUMS: Final = "SHA256SUMS"
LOG: Final = "log.jsonl"
KEY: Final = "log.vkey"
CHECKPOINT: Final = "checkpoint"
VERIFIER: Final = "verify.py"
FINDINGS: Final = "findings.json"
README: Final = "README.md"
#: Zip has no time before this one; a pack says no other, so that the same content makes the same bytes.
_NO_TIME: Final = (1980, 1, 1, 0, 0, 0)
_PAGE: Final = """\
# The log of {origin}

{size} records, from {first} to {last}, as they are stored; payloads are not among them{payloads}.

## Check it in three commands

Python 3.11 or later, and nothing else. The first compares every file with `{sums}`, the second checks the log, the
third does so against a key and a checkpoint that you got before, or from somebody else, and not out of this zip:
without these nobody can tell that the end was not cut off, or that all of it was not written anew.

```
sha256sum --check --quiet {sums}
python3 -I {verifier} {log} --key {key} --checkpoint {checkpoint}
python3 -I {verifier} {log} --key YOUR-KEY --checkpoint YOUR-CHECKPOINT
```

`{verifier}` is one file under 500 lines, on nothing but Python's standard library: read it before trusting it. It gives
three verdicts: integrity (bytes, tree, signatures), completeness (nothing missing, no outcome without its decision),
time (order, clock steps). The exit status is 0 when nothing wrong was found, else 1; `first_bad` says what and where.
`unanchored` counts the records that came after your checkpoint: for them there is only the key's word, and
`--require-anchor` takes that for a 1. `rotations` are changes of the key: one of any time before or after will do.

## What is in it

| file | is |
|---|---|
| `{log}` | the records, one a line. The sha256 of a zero byte and a line is a leaf of a Merkle tree (RFC 6962) |
| `{key}` | the public key of the log |
| `{checkpoint}` | its newest signed tree head (C2SP signed note) |
| `{verifier}` | checks it |
| `findings.json` | what was found when this was made: the verdicts, what there is, which records were drawn |
| `reports/` | what the log shows for each control of a framework, where that was asked for |
| `proofs/` | for each record that was drawn a C2SP tlog-proof: it alone shows that the record is in the log |
| `constitutions/` | every constitution that decided something, by its hash |
| `schemas/` | JSON Schemas of a record, and of what a policy sees |
| `openings/` | payload, headers and salts of decisions that were drawn, where they were included |
| `inputs/` | the same decisions as OPA takes them |

## Who decided, and by what

A constitution's hash is that of its files:

```
mkdir c && tar -xzf constitutions/HASH.tar.gz -C c && cd c
find . -type f ! -name .signatures.json | sed 's|^\\./||' | LC_ALL=C sort | xargs sha256sum | sha256sum
```

A decision with a file in `inputs/` can be asked again, with stock OPA:

```
opa eval --strict-builtin-errors -b constitutions/HASH.tar.gz -i inputs/SEQ.json data.bus.decision
```

or, where the package is installed, with `eab audit reproduce ID --pack THIS.zip`, which compares the answer as well.

## What it cannot show

That the software told the truth when it wrote (the log proves what was written, and that it stayed so); what happened
after the last record; what any framework asks for: that is for whoever reads this to judge.
"""


class Pack:
    """A zip that is being written, with the sum of every file in it."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._zip = archive
        self._sums: dict[str, str] = {}

    @classmethod
    @contextmanager
    def create(cls, path: Path) -> Iterator[Pack]:
        """The zip appears under its name when it is whole. Raises: OSError."""
        part = path.with_name(f"{path.name}.part")
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
                pack = cls(archive)
                yield pack
                sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(pack._sums.items()))
                pack._open(SUMS, [sums.encode()])
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def add(self, name: str, data: bytes | str) -> None:
        """A file."""
        self.stream(name, [data.encode() if isinstance(data, str) else data])

    def stream(self, name: str, chunks: Iterable[bytes]) -> None:
        """A file, a piece at a time."""
        self._sums[name] = self._open(name, chunks)

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def _open(self, name: str, chunks: Iterable[bytes]) -> str:
        found = sha256()
        info = zipfile.ZipInfo(name, _NO_TIME)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        with self._zip.open(info, "w", force_zip64=True) as file:
            for chunk in chunks:
                found.update(chunk)
                file.write(chunk)
        return found.hexdigest()


def page(*, origin: str, size: int, first: str, last: str, payloads: int) -> str:
    """The page that tells an outsider how to check it."""
    shown = f", but for those of {payloads} decisions in `openings/`" if payloads else ""
    names = {"sums": SUMS, "verifier": VERIFIER, "log": LOG, "key": KEY, "checkpoint": CHECKPOINT}
    return _PAGE.format(origin=origin, size=size, first=first, last=last, payloads=shown, **names)


def verifier() -> bytes:
    """`verify.py`, as it is."""
    return files("enhanced_agent_bus.audit").joinpath(VERIFIER).read_bytes()


def record_schema() -> bytes:
    """The JSON Schema of a record."""
    return files("enhanced_agent_bus.audit").joinpath("schemas", "record.json").read_bytes()
