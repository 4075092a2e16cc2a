"""Who checks the log with other people's software (Go's x/mod/sumdb), and writes letters with none of ours.

A program in Go, which is built when it has changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "outside"
TOOLS = ROOT / ".tools"


class Rejected(Exception):
    """What was asked is not shown."""


def build() -> Path:
    """The program, made anew when its sources are not those that it was made of."""
    sources = [SOURCE / "go.mod", SOURCE / "go.sum", *sorted(SOURCE.glob("*.go"))]
    made_of = sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:16]
    program = TOOLS / f"outside-{made_of}"
    if not program.exists():
        TOOLS.mkdir(exist_ok=True)
        part = program.with_name(f"{program.name}.{os.getpid()}.part")
        command = [sys.executable, str(ROOT / "tools" / "with_go.py"), "go", "build", "-o", str(part), "."]
        subprocess.run(command, cwd=SOURCE, check=True)
        part.replace(program)
    return program


class Outsider:
    """A running program that answers questions."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, op: str, vkey: str, **given: str) -> str:
        """The answer. Raises: Rejected."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, "vkey": vkey, **given}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise Rejected(answer["error"])
        return str(answer["ok"])


@contextmanager
def outsider() -> Iterator[Outsider]:
    """Starts it, and ends it."""
    with subprocess.Popen([build()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Outsider(process)
