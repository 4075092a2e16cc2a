"""Runs a program with the Go that builds the worker: `python tools/with_go.py go vet ./...`, `… gofmt -l .`.

Not for users: the Makefile calls it, so that a machine without Go, an old Go or a foreign GOROOT gives the same answer.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hatch_build import BuildFailed, go_command


def main(command: list[str]) -> int:
    """Run it with that Go first on PATH, gofmt beside it, and hand on the exit status."""
    with go_command() as (go, environment):
        # Asked for, since what PATH has may be a link or a wrapper that lies elsewhere.
        root = subprocess.run([go, "env", "GOROOT"], env=environment, capture_output=True, text=True, check=True)
        environment["PATH"] = f"{root.stdout.strip()}/bin:{environment.get('PATH', '')}"
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BuildFailed as error:
        sys.exit(f"tools/with_go.py: {error}")
