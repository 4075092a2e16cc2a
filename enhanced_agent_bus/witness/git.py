"""A git repository: each checkpoint is a commit on a branch of its own, pushed where there is a remote `origin`.

Git is run as a program, without a shell, with little of the environment, and not for longer than a deadline. The
working tree, the index and whatever branch is checked out are not touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from enhanced_agent_bus.audit.notes import notes_in
from enhanced_agent_bus.ports import SignedNote

BRANCH: Final = "eab-checkpoints"
REMOTE: Final = "origin"
GIT_SECONDS: Final = 20.0
#: Loose objects are packed after so many commits of one process.
COMMITS_BETWEEN_PACKS: Final = 500
#: What git keeps of our environment: who we are to ssh and to credential helpers, and nothing of other repositories.
KEPT_VARIABLES: Final = ("PATH", "HOME", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "TMPDIR")
_OPTIONS: Final = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync")


class GitWitness:
    """Fills `ports.Witness` with a repository; a bare one is made where there is nothing yet."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = url
        self._path = path
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._commits = 0

    def newest(self, origin: str) -> SignedNote | None:
        if not self._is_there():
            return None
        return max(self._notes(origin, "-1"), key=lambda note: note.size, default=None)

    def take(self, note: SignedNote) -> None:
        if not self._is_there():
            if not self._path.parent.is_dir():  # never the folder around it: a disk may not be mounted
                raise FileNotFoundError(f"there is no folder {self._path.parent}")
            self._git("init", "--quiet", "--bare", "--", str(self._path), inside=False)
        newest = self.newest(note.origin)
        if newest is None or newest.text != note.text:
            self._commit(note)
        if REMOTE in self._git("remote").decode().split():
            self._git("push", "--quiet", REMOTE, f"refs/heads/{BRANCH}:refs/heads/{BRANCH}")

    def notes(self) -> list[SignedNote]:
        if not self._is_there():
            raise FileNotFoundError(f"there is no repository at {self._path}")
        return self._notes("")

    def stop(self) -> None:
        self._stopped.set()
        running = self._running
        if running is not None:
            _kill(running)

    def _is_there(self) -> bool:
        return self._path.exists() and any(self._path.iterdir())

    def _has_branch(self) -> bool:
        return bool(self._git("for-each-ref", "--format=%(objectname)", f"refs/heads/{BRANCH}").strip())

    def _commit(self, note: SignedNote) -> None:
        """One run of fast-import, which moves the branch only on from where it is."""
        message, body = f"{note.origin}: checkpoint of {note.size} records".encode(), note.text.encode()
        lines = [
            f"commit refs/heads/{BRANCH}",
            f"committer eab <eab@localhost> {int(time.time())} +0000",
            f"data {len(message)}",
        ]
        stream = "\n".join(lines).encode() + b"\n" + message + b"\n"
        if self._has_branch():
            stream += f"from refs/heads/{BRANCH}^0\n".encode()
        stream += f"M 100644 inline {_file_of(note.origin)}\ndata {len(body)}\n".encode() + body + b"\ndone\n"
        self._git("fast-import", "--quiet", "--done", "--date-format=raw", data=stream)
        self._commits += 1
        if self._commits % COMMITS_BETWEEN_PACKS == 0:
            self._git("gc", "--auto", "--quiet")

    def _notes(self, origin: str, *limit: str) -> list[SignedNote]:
        """Those of one log, or of all, newest commit first."""
        if not self._has_branch():
            return []
        paths = ("--", _file_of(origin)) if origin else ("--",)
        listing = self._git("log", "--format=%x00%H", "--name-only", *limit, f"refs/heads/{BRANCH}", *paths).decode()
        wanted = []
        for commit in listing.split("\0")[1:]:
            revision, *files = commit.split()
            wanted += [f"{revision}:{file}" for file in files]
        blobs = self._git("cat-file", "--batch", data="".join(f"{one}\n" for one in wanted).encode())
        found = notes_in(blobs.decode(errors="replace"))
        return [note for note in found if not origin or note.origin == origin]

    def _git(self, *arguments: str, data: bytes = b"", inside: bool = True) -> bytes:
        """Raises: OSError, when git says no, or nothing in time."""
        where = ["-C", str(self._path)] if inside else []
        with subprocess.Popen(
            ["git", *_OPTIONS, *where, *arguments],  # noqa: S607 - found on PATH, as everywhere
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
            start_new_session=True,  # what git starts in turn (ssh) ends with it
        ) as process:
            self._running = process
            try:
                if self._stopped.is_set():
                    raise ConnectionError("the bus closes")
                out, told = process.communicate(data, timeout=GIT_SECONDS)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"git {arguments[0]} took longer than {GIT_SECONDS:g} s") from None
            finally:
                self._running = None
                _kill(process)
        if process.returncode:
            raise OSError(f"git {arguments[0]}: {_last_line(told)}")
        return out

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name in KEPT_VARIABLES if (value := os.environ.get(name)) is not None}
        return kept | {
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
            "GIT_CEILING_DIRECTORIES": str(self._path.parent),  # not the repository that this one may lie in
        }


def _file_of(origin: str) -> str:
    """Where the newest checkpoint of a log is in the tree of a commit."""
    return f"{origin}/checkpoint"


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _last_line(told: bytes) -> str:
    lines: Sequence[str] = told.decode(errors="replace").strip().splitlines() or ["it failed and did not say why"]
    said = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return ascii((said or lines)[0])[1:-1][:300]
