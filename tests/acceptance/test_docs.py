"""What the documentation says is true: its blocks run, print what they say they print, and its links lead somewhere.

Each page is one reader: its blocks run in order, in a folder of their own, with nothing in the environment but the
command (forked, see `zygote`: hundreds are typed here; `test_install` types the installed one).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import pytest

from enhanced_agent_bus.settings import load_settings

ROOT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
TOOLS: Final = ROOT / ".tools" / "bin"  # servers that a page starts
ZYGOTE: Final = ROOT / "tests" / "zygote.py"
BLOCK_SECONDS_MAX: Final = 120
OURS: Final = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "policies/CONSTITUTION.md")
PAGES: Final = sorted(
    str(page.relative_to(ROOT))
    for page in [*map(ROOT.joinpath, OURS), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")]
)
#: Pages for somebody without a checkout; the others are read in its root.
IN_AN_EMPTY_FOLDER: Final = frozenset({"docs/quickstart.md"})
#: What a page says before it shows the output of the block above.
SHOWS_OUTPUT: Final = "It prints:"


class Block(NamedTuple):
    """One fenced block: its language, where it begins, what it holds, and the line of text before it."""

    language: str
    line: int
    text: str
    before: str


def blocks_of(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    opened: tuple[str, int, str] | None = None
    held: list[str] = []
    before = ""
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            held.append(line)
            before = line.strip() or before
        elif opened is None:
            opened, held = (line[3:].strip(), number, before), []
        else:
            yield Block(opened[0], opened[1], "\n".join(held) + "\n", opened[2])
            opened = None
    assert opened is None, f"{page}:{opened[1]} is never closed"


def prose_of(page: str) -> str:
    """A page without its fenced blocks and code spans, where brackets are only brackets."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def with_blocks(*languages: str) -> list[str]:
    """The pages that have a block of one of these languages."""
    return [page for page in PAGES if any(block.language in languages for block in blocks_of(page))]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the command, for the path of whoever types it."""
    folder = tmp_path_factory.mktemp("bin")
    with TemporaryDirectory(prefix="eab-") as place:
        socket = Path(place) / "zygote"
        start = [sys.executable, str(ZYGOTE), "serve", str(socket)]
        with subprocess.Popen(start, stdout=subprocess.PIPE, text=True, start_new_session=True) as serving:
            assert serving.stdout is not None
            assert serving.stdout.readline() == "ready\n"
            eab = folder / "eab"
            eab.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {ZYGOTE} {socket} "$@"\n')
            eab.chmod(0o755)
            yield folder
            serving.kill()


@pytest.mark.timeout(5 * BLOCK_SECONDS_MAX)
@pytest.mark.parametrize("page", with_blocks("bash", "python"))
def test_a_page_can_be_followed(page: str, tmp_path: Path, command: Path) -> None:
    """Whoever types what a page shows, from top to bottom, gets what it says."""
    folder = tmp_path / "here"
    folder.mkdir()
    if page not in IN_AN_EMPTY_FOLDER:
        for name in ("policies", "examples"):
            copytree(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(BIN.parent)
    try:
        follow(page, folder, command)
    finally:
        for file in folder.rglob("*.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def follow(page: str, folder: Path, command: Path) -> None:
    """Types what a page shows."""
    printed = ""
    for block in blocks_of(page):
        if block.language in ("bash", "python"):
            printed = typed(page, block, folder, command)
        elif block.before == SHOWS_OUTPUT:
            assert block.text == printed, f"{page}:{block.line} shows something else than what is printed"


def typed(page: str, block: Block, folder: Path, command: Path) -> str:
    """What a block prints on standard output; any failure fails the test. Targets of make are only looked up."""
    text = block.text
    if block.language == "bash":
        for target in re.findall(r"^make ([a-z-]+)", text, flags=re.MULTILINE):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), f"no target {target}"
        text = re.sub(r"^make .*$", "", text, flags=re.MULTILINE)
    program = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*program, text],
        cwd=folder,
        env={
            "PATH": f"{command}:{BIN}:{TOOLS}:/usr/bin:/bin",
            "HOME": str(folder.parent),
            "LANG": "C.UTF-8",
            "TMPDIR": str(folder.parent),
            "EAB_POLICY__TIMEOUT_SECONDS": "10",  # a busy machine may take its time
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BLOCK_SECONDS_MAX,
        check=False,
    )
    told = f"{page}:{block.line} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, told
    assert "Traceback" not in done.stderr, told
    return done.stdout


@pytest.mark.parametrize("page", with_blocks("rego"))
def test_rego_is_rego(page: str, tmp_path: Path, opa_binary: Path) -> None:
    """Stock OPA takes each policy that a page shows."""
    for block in blocks_of(page):
        if block.language == "rego":
            file = tmp_path / "shown.rego"
            file.write_text(block.text)
            done = subprocess.run([opa_binary, "check", file], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{page}:{block.line}\n{done.stderr}"


@pytest.mark.parametrize("page", with_blocks("json", "toml"))
def test_data_is_data(page: str, tmp_path: Path) -> None:
    """Each JSON block is one document, and each TOML block a set of settings that the bus takes."""
    for block in blocks_of(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            (tmp_path / "eab.toml").write_text(block.text)
            assert tomllib.loads(block.text)
            load_settings(tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """No link points to a file, or to a heading of one, that is not there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page} links to {link}"
        assert there.resolve().is_relative_to(ROOT), f"{page} links out of the checkout: {link}"
        if heading:
            assert heading in headings(there), f"{page} links to {link}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_found_from_the_index() -> None:
    """A reader who starts at docs/index.md can reach each page, one by one or as a folder."""
    reached: set[str] = set()
    waiting = ["docs/index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for link in re.findall(r"\]\(([^)#\s:]+)", prose_of(page)):
            there = Path(os.path.normpath((ROOT / page).parent / link))
            found = there.glob("*.md") if there.is_dir() else [there]
            names = {str(file.relative_to(ROOT)) for file in found if file.suffix == ".md"}
            waiting.extend(names - reached - set(waiting))
    assert {page for page in PAGES if page.startswith("docs/")} <= reached
