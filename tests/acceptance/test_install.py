"""What someone has who installed the wheel and nothing else: no checkout, no Go, no network.

The sdist is built from this tree and the wheel from the sdist, as `python -m build` does it. The wheel is installed in
an environment that holds the packages it asks for and no others, so that a forgotten dependency is found here.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "opa-agent-bus"
COMMAND_SECONDS_MAX = 60


@dataclass(frozen=True)
class Artifacts:
    """What `python -m build` leaves."""

    sdist: Path
    wheel: Path


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it."""

    folder: Path

    @property
    def package(self) -> Path:
        """The installed package."""
        return next(self.folder.glob("lib/python*/site-packages")) / "enhanced_agent_bus"

    @property
    def distribution(self) -> Distribution:
        """What its metadata says."""
        return next(iter(Distribution.discover(name=PROJECT, path=[str(self.package.parent)])))

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment as a user would, with nothing of this checkout or machine in reach."""
        home = cwd.parent / f"{cwd.name}-user"
        home.mkdir(exist_ok=True)
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """Sdist and wheel of this tree; Go's cache makes it a matter of seconds."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Artifacts(sdist=next(out.glob("*.tar.gz")), wheel=next(out.glob("*.whl")))


@pytest.fixture(scope="module")
def installed(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, and links to what it requires instead of a second download."""
    installed = Installed(tmp_path_factory.mktemp("environment"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", installed.folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(installed.folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(artifacts.wheel)], check=True)
    for required in requirements_of(installed.distribution, set()):
        link(required, installed.package.parent)
    return installed


def requirements_of(wanted: Distribution, seen: set[str]) -> Iterator[Distribution]:
    """All that is needed to run it, by way of everything in between, each once."""
    for line in wanted.requires or []:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            seen.add(name)
            found = distribution(requirement.name)
            assert requirement.specifier.contains(found.version), f"{requirement} and {found.version} is installed"
            yield found
            yield from requirements_of(found, seen)


def link(required: Distribution, site: Path) -> None:
    """Make what a package put at the top of site-packages visible in another one."""
    for name in {file.parts[0] for file in required.files or []} - {"..", "__pycache__"}:
        # A namespace that several packages fill would need more than a link; none of ours is one.
        (site / name).symlink_to(Path(str(required.locate_file(name))))


def files_below(folder: Path) -> dict[str, bytes]:
    """Relative path → content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def files_of_sdist(sdist: Path, folder: str) -> dict[str, bytes]:
    """Relative path → content of what the sdist has below a folder."""
    with tarfile.open(sdist) as archive:
        top = f"{archive.getnames()[0].partition('/')[0]}/{folder}/"
        members = [member for member in archive if member.isfile() and member.name.startswith(top)]
        opened = {member.name.removeprefix(top): archive.extractfile(member) for member in members}
        return {name: file.read() for name, file in opened.items() if file is not None}


def test_the_wheel_holds_a_worker_that_runs_on_its_own(artifacts: Artifacts, installed: Installed) -> None:
    """The worker is in the wheel, for this platform and any Python 3, executable once installed."""
    assert "-py3-none-" in artifacts.wheel.name
    assert not artifacts.wheel.name.endswith("-any.whl")
    worker = installed.package / "_bin" / "eab-pdp"
    assert os.access(worker, os.X_OK)
    assert {path.name for path in worker.parent.iterdir()} == {"eab-pdp", "LICENCES.txt"}


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("readelf") is None, reason="asks Linux's readelf")
def test_the_worker_needs_no_c_library(installed: Installed) -> None:
    """The worker asks for no interpreter and no shared library, so that the manylinux and musllinux tags are true."""
    headers = ["readelf", "--program-headers", "--dynamic", str(installed.package / "_bin" / "eab-pdp")]
    shown = subprocess.run(headers, capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in shown
    assert "NEEDED" not in shown


@pytest.mark.parametrize(("name", "known"), [("policies", ".manifest"), ("examples", "travel_desk/messages.jsonl")])
def test_the_wheel_carries_the_shared_folders(
    artifacts: Artifacts, installed: Installed, name: str, known: str
) -> None:
    """The starter constitution and the examples are installed byte for byte, and `share_folder` finds them there."""
    code = f"from enhanced_agent_bus._share import share_folder; print(share_folder({name!r}))"
    done = installed.run("python", "-c", code, cwd=installed.folder)
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.strip())
    assert found == installed.package / "_share" / name
    assert known in files_below(found)
    assert files_below(found) == files_of_sdist(artifacts.sdist, name)


def test_the_wheel_is_typed_and_holds_no_tests(artifacts: Artifacts) -> None:
    """py.typed is there; tests, caches and homes are not."""
    names = zipfile.ZipFile(artifacts.wheel).namelist()
    assert "enhanced_agent_bus/py.typed" in names
    tops = {name.split("/")[0].split("-")[0] for name in names}
    assert tops == {"enhanced_agent_bus", "opa_agent_bus"}
    assert not [name for name in names if "__pycache__" in name or "/.eab/" in name or name.endswith(".part")]


def test_every_dependency_is_named_with_its_licence(installed: Installed) -> None:
    """docs/reference/dependencies.md has a row for each package in pyproject.toml and each module in the worker."""
    rows = (ROOT / "docs" / "reference" / "dependencies.md").read_text().splitlines()
    named = {
        name.split(" ")[0] for row in rows if row.startswith("| ") for name in row.split("|")[1].strip().split(", ")
    }
    packages = {Requirement(line).name for line in installed.distribution.requires or []}
    texts = (installed.package / "_bin" / "LICENCES.txt").read_text().splitlines()
    modules = {line.split(" ")[1] for line in texts if line.startswith("## ")}
    assert "github.com/open-policy-agent/opa" in modules
    assert packages | modules <= named


def test_the_sdist_holds_sources_and_no_builds(artifacts: Artifacts) -> None:
    """Someone who has only the sdist can build and test: sources, Makefile, tests, and no environment or worker."""
    with tarfile.open(artifacts.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in [
        "pdp/go.mod",
        "pdp/go.sum",
        "hatch_build.py",
        "Makefile",
        "tests/support.py",
        "LICENSE",
        "README.md",
    ]:
        assert wanted in names
    assert not [name for name in names if name.startswith((".venv", ".tools", "enhanced_agent_bus/_bin", ".git/"))]


def test_the_command_answers(artifacts: Artifacts, installed: Installed, tmp_path: Path) -> None:
    """`eab --version` and `python -m enhanced_agent_bus --version` name the installed version."""
    version = artifacts.wheel.name.split("-")[1]
    for command in (["eab", "--version"], ["python", "-m", "enhanced_agent_bus", "--version"]):
        done = installed.run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert version in done.stdout


def test_doctor_finds_nothing_wrong(installed: Installed, tmp_path: Path) -> None:
    """`eab doctor` is content with a fresh installation, and names the worker's OPA."""
    done = installed.run("eab", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OPA" in done.stdout


def test_init_and_the_line_that_it_prints(installed: Installed, tmp_path: Path) -> None:
    """In an empty folder `eab init` writes a bus, and the line that it prints runs it to its end."""
    folder = tmp_path / "empty"
    folder.mkdir()
    done = installed.run("eab", "init", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {"app.py", "policies", "messages.jsonl", ".eab"} <= {path.name for path in folder.iterdir()}

    printed = [line.strip(" `$>") for line in done.stdout.splitlines() if "eab run" in line]
    assert printed, done.stdout
    assert printed[0].endswith("eab run app.py:build --input messages.jsonl")
    ran = installed.run("eab", "run", "app.py:build", "--input", "messages.jsonl", cwd=folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr

    status = installed.run("eab", "--json", "status", cwd=folder)
    assert status.returncode == 0, status.stderr
    accounting = json.loads(status.stdout)["accounting"]
    accepted = accounting.pop("accepted")
    assert accepted == sum(accounting.values())
    assert accounting["delivered"] > 0

    verified = installed.run("eab", "audit", "verify", cwd=folder)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_demo_runs_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    """`eab demo` needs no checkout."""
    done = installed.run("eab", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir()), "the demo has a home of its own"
