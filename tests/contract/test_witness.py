"""Every kind of witness keeps the same promises: a real file, git, standard output, OTLP receiver and other bus."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from enhanced_agent_bus import ConfigInvalid
from enhanced_agent_bus.audit.notes import notes_in
from enhanced_agent_bus.ports import SignedNote, Witness
from enhanced_agent_bus.witness.places import witness_at
from tests.developer import log, small_bus, until
from tests.otlp import Collector, collector

KINDS: Final = ("file", "git", "bus", "stdout", "otlp")
#: Those that can say what they have.
READABLE: Final = ("file", "git", "git+file", "bus")


class Place(Protocol):
    """A witness's address, and a look at what is there that does not use its own code."""

    url: str

    def found(self) -> list[SignedNote]: ...


class _File:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoints"
        self.url = f"file://{self.path}"

    def found(self) -> list[SignedNote]:
        return list(notes_in(self.path.read_text())) if self.path.exists() else []


def git(path: Path, *arguments: str) -> str:
    """What git says in a repository."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(path), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class _Git:
    def __init__(self, folder: Path, scheme: str) -> None:
        self.path = folder / "repository"
        self.url = f"git:{self.path}" if scheme == "git" else f"git+file://{self.path}"

    def found(self) -> list[SignedNote]:
        if not self.path.exists():
            return []
        revisions = git(self.path, "rev-list", "--reverse", "eab-checkpoints").split()
        return [note for revision in revisions for note in self._at(revision)]

    def _at(self, revision: str) -> Iterator[SignedNote]:
        for file in git(self.path, "show", "--format=", "--name-only", revision).split():
            yield from notes_in(git(self.path, "show", f"{revision}:{file}"))


class _Bus:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.url = f"bus:{home}"

    def found(self) -> list[SignedNote]:
        records = log(self.home, "witness", event="witnessed")
        return [note for record in records for note in notes_in(record["note"])]


class _Stdout:
    def __init__(self, captured: Any) -> None:
        self._captured = captured
        self._read = ""
        self.url = "stdout:"

    def found(self) -> list[SignedNote]:
        self._read += self._captured.readouterr().out
        return list(notes_in(self._read))


class _Otlp:
    def __init__(self, server: Collector) -> None:
        self.server = server
        self.url = f"otlp:{server.address}/v1/logs"

    def found(self) -> list[SignedNote]:
        return [note for text in self.server.texts for note in notes_in(text)]


@asynccontextmanager
async def place_of(kind: str, folder: Path, captured: Any) -> AsyncIterator[Place]:
    """A place of this kind, ready to be given checkpoints."""
    if kind == "file":
        yield _File(folder)
    elif kind.startswith("git"):
        yield _Git(folder, kind)
    elif kind == "stdout":
        yield _Stdout(captured)
    elif kind == "otlp":
        with collector() as server:
            yield _Otlp(server)
    else:
        async with small_bus(folder, home="other"):
            yield _Bus(folder / "other")


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path, capfd: Any) -> AsyncIterator[Place]:
    """Each kind of place."""
    async with place_of(request.param, tmp_path, capfd) as found:
        yield found


def note(size: int, *, origin: str = "bus-1/node-1", root: int | None = None) -> SignedNote:
    """A checkpoint in its form; nobody here looks at its signature."""
    digest = bytes([size % 256 if root is None else root]) * 32
    text = f"{origin}\n{size}\n{base64.b64encode(digest).decode()}\n\n\N{EM DASH} {origin} c2lnbmF0dXJl\n"
    return SignedNote(origin, size, digest, text)


async def taken(witness: Witness, *notes: SignedNote) -> None:
    """Its methods block, so they run in a thread."""
    for one in notes:
        await asyncio.to_thread(witness.take, one)


async def test_what_was_taken_is_there_byte_for_byte_and_in_order(place: Place) -> None:
    """Each checkpoint that a witness took can be had there, as it was signed, the oldest first."""
    witness = witness_at(place.url)
    await taken(witness, note(3), note(7), note(9))
    assert place.found() == [note(3), note(7), note(9)]


async def test_several_logs_share_a_witness(place: Place) -> None:
    """Each log's newest checkpoint is its own, whoever else writes there."""
    other = note(40, origin="bus-2/node-2")
    await taken(witness_at(place.url), note(3))
    await taken(witness_at(place.url), other)
    await taken(witness_at(place.url), note(5))
    assert sorted(place.found(), key=lambda one: one.text) == sorted(
        [note(3), other, note(5)], key=lambda one: one.text
    )


async def test_a_bus_brings_its_checkpoints_and_its_last_one(place: Place, tmp_path: Path) -> None:
    """The newest checkpoint is with the witness when the bus has closed, and no_witness is no weakening then."""
    async with small_bus(tmp_path, audit={"witnesses": [place.url]}) as bus:
        await bus.register("desk", tenant="acme")
        assert "no_witness" not in bus.status().security_state
    ours = [one for one in place.found() if one.origin == f"{bus.status().bus}/{bus.status().node}"]
    assert ours[-1].text == (tmp_path / "home" / "checkpoint").read_text()
    assert len({one.size for one in ours}) == len(ours)


async def test_a_later_process_goes_on_where_the_one_before_ended(place: Place, tmp_path: Path) -> None:
    """Opened again, a witness gets the newer checkpoints; one that can say what it has gets none twice."""
    for _ in range(2):
        async with small_bus(tmp_path, audit={"witnesses": [place.url]}) as bus:
            pass
    ours = [one for one in place.found() if one.origin == f"{bus.status().bus}/{bus.status().node}"]
    assert ours[-1].text == (tmp_path / "home" / "checkpoint").read_text()
    if place.url.partition(":")[0] in READABLE:
        assert len({one.size for one in ours}) == len(ours)


@pytest.mark.parametrize("kind", READABLE)
async def test_what_can_be_read_back_is(kind: str, tmp_path: Path, capfd: Any) -> None:
    """A witness that can say what it has gives the newest checkpoint of a log, and all of every log."""
    async with place_of(kind, tmp_path, capfd) as place:
        assert await asyncio.to_thread(witness_at(place.url).newest, "bus-1/node-1") is None
        await taken(witness_at(place.url), note(3), note(7), note(40, origin="bus-2/node-2"))
        witness = witness_at(place.url)
        assert await asyncio.to_thread(witness.newest, "bus-1/node-1") == note(7)
        assert await asyncio.to_thread(witness.newest, "bus-3/node-3") is None
        found = await asyncio.to_thread(witness.notes)
        assert found is not None
        assert {one.text for one in found} == {note(3).text, note(7).text, note(40, origin="bus-2/node-2").text}


# --- what is a kind's own ------------------------------------------------------------------------------------------


async def test_a_file_with_half_a_checkpoint_at_its_end_is_added_to(tmp_path: Path) -> None:
    """What a crash left half done is passed over, and nothing that was there is changed."""
    path = tmp_path / "checkpoints"
    path.write_text(f"{note(3).text}\n{note(5).text[:40]}")
    before = path.read_bytes()
    await taken(witness_at(f"file:{path}"), note(5))
    assert path.read_bytes().startswith(before)
    assert list(notes_in(path.read_text())) == [note(3), note(5)]


async def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A disk that is not mounted is not mistaken for an empty one."""
    for url in (f"file:{tmp_path}/mnt/checkpoints", f"git:{tmp_path}/mnt/repository"):
        with suppress(OSError):
            await taken(witness_at(url), note(3))
        assert not (tmp_path / "mnt").exists(), url


async def test_git_leaves_the_work_of_others_alone(tmp_path: Path) -> None:
    """A repository with a work tree keeps its branch, its index and its files; hooks do not run."""
    path = tmp_path / "work"
    path.mkdir()
    git(path, "init", "--quiet", "-b", "main")
    (path / "a.txt").write_text("a\n")
    git(path, "add", "a.txt")
    git(path, "commit", "--quiet", "-m", "first")
    (path / "a.txt").write_text("b\n")
    before = git(path, "rev-parse", "main"), git(path, "status", "--porcelain"), git(path, "symbolic-ref", "HEAD")
    hook = path / ".git" / "hooks" / "reference-transaction"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    await taken(witness_at(f"git:{path}"), note(3), note(5))
    assert not (tmp_path / "ran").exists()
    hook.unlink()
    assert before == (
        git(path, "rev-parse", "main"),
        git(path, "status", "--porcelain"),
        git(path, "symbolic-ref", "HEAD"),
    )
    assert git(path, "show", "eab-checkpoints:bus-1/node-1/checkpoint") == note(5).text


async def test_git_pushes_where_there_is_a_remote(tmp_path: Path) -> None:
    """With a remote named origin the branch is there too; a remote that is away is a failure, made good later."""
    remote, path = tmp_path / "remote", tmp_path / "here"
    git(tmp_path, "init", "--quiet", "--bare", str(path))
    git(path, "remote", "add", "origin", str(remote))
    witness = witness_at(f"git:{path}")
    with pytest.raises(OSError, match="git push"):
        await taken(witness, note(3))
    git(tmp_path, "init", "--quiet", "--bare", str(remote))
    await taken(witness, note(3))
    assert await asyncio.to_thread(witness_at(f"git:{remote}").newest, "bus-1/node-1") == note(3)
    assert len(witness_at(f"git:{path}").notes() or ()) == 1


def hanging_repository(folder: Path) -> tuple[str, Path]:
    """The address of a repository whose push never ends, and a file that is there once one has begun."""
    path, began, program = folder / "hangs", folder / "began", folder / "hang.sh"
    program.write_text(f"#!/bin/sh\ntouch {began}\nexec sleep 100\n")
    program.chmod(0o755)
    git(folder, "init", "--quiet", "--bare", str(path))
    git(path, "config", "remote.origin.url", f"ext::{program}")
    git(path, "config", "protocol.ext.allow", "always")
    return f"git:{path}", began


async def test_git_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """A push that hangs is ended by `stop`, with all that git had started."""
    url, began = hanging_repository(tmp_path)
    witness = witness_at(url)
    task = asyncio.create_task(taken(witness, note(3)))
    await until(began.exists)
    witness.stop()
    with pytest.raises(OSError, match="git push"):
        await task


async def test_a_witness_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    """Sends go on, closing ends, and the status says who has not answered."""
    url, began = hanging_repository(tmp_path)
    kept = f"file:{tmp_path}/kept"
    async with small_bus(tmp_path, audit={"witnesses": [url, kept]}) as bus:
        await until(began.exists)
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", handler=lambda _message: None, tenant="acme")
        for _ in range(20):
            assert (await (await desk.send("booker")).outcome(timeout=10)).state == "delivered"
    newest = (tmp_path / "home" / "checkpoint").read_text()
    assert list(notes_in((tmp_path / "kept").read_text()))[-1].text == newest
    kept_of = json.loads((tmp_path / "home" / "witnessed").read_text())
    assert kept_of[url]["error"] == "it did not answer before the bus closed"
    assert kept_of[kept]["error"] is None


async def test_a_collector_gets_what_the_variables_of_opentelemetry_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an address behind it, `otlp:` goes where OTEL_* says, with its headers; an error is a failure."""
    del tmp_path
    with collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=audit")
        await taken(witness_at("otlp:"), note(3))
        assert [one for text in server.texts for one in notes_in(text)] == [note(3)]
        assert server.headers[0]["x-team"] == "audit"
        server.status = 400
        with pytest.raises(OSError, match="collector"):
            await taken(witness_at("otlp:"), note(5))


async def test_a_bus_does_not_witness_what_contradicts_itself(tmp_path: Path) -> None:
    """Another bus records growing checkpoints of a log; a smaller one, another root, its own and rubbish it refuses."""
    async with small_bus(tmp_path) as bus:
        own = f"{bus.status().bus}/{bus.status().node}"
        await bus.witness(note(5).text)
        await bus.witness(note(5).text)
        for wrong in (note(4), note(5, root=9), note(3, origin=own)):
            with pytest.raises(ValueError, match=r"\w"):
                await bus.witness(wrong.text)
        for rubbish in ("", "x", note(7).text * 2, note(7).text + "more\n", "x" * 5000):
            with pytest.raises(ValueError, match="checkpoint"):
                await bus.witness(rubbish)
        assert bus.witnessed("bus-1/node-1") == note(5).text
    assert [record["size"] for record in log(tmp_path / "home", "witness")] == [5]


async def test_two_buses_that_witness_each_other_come_to_rest(tmp_path: Path) -> None:
    """What another log had signed is no reason to sign again, so that two idle buses do not talk for ever."""
    quick = {"checkpoint_seconds": 0.05}
    with_b = {"audit": {**quick, "witnesses": [f"bus:{tmp_path}/b"]}}
    with_a = {"audit": {**quick, "witnesses": [f"bus:{tmp_path}/a"]}}
    async with small_bus(tmp_path, home="a", **with_b) as a, small_bus(tmp_path, home="b", **with_a) as b:

        def at_rest() -> bool:
            return all(
                info.size is not None and not info.behind_seconds for bus in (a, b) for info in bus.status().witnesses
            )

        sizes: list[tuple[int, int]] = []
        while len(sizes) < 5 or len(set(sizes[-5:])) > 1 or not at_rest():
            await asyncio.sleep(0.3)  # several times checkpoint_seconds
            sizes.append((a.status().records, b.status().records))
            assert len(sizes) < 60, sizes
        assert not {"no_witness", "witness_behind"} & {*a.status().security_state, *b.status().security_state}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("fil:///x", "did you mean file:"),
        ("gitt:/x", "did you mean git:"),
        ("otpl:", "did you mean otlp:"),
        ("/var/checkpoints", "did you mean"),
        ("file:", "names no path"),
        ("file://x", "names no path"),
        ("stdout:x", "nothing behind it"),
        ("otlp:ftp://x", "http://"),
        ("otlp:http://me:secret@x", "without a password"),
    ],
)
async def test_an_address_that_is_none_names_the_nearest(url: str, said: str, tmp_path: Path) -> None:
    """A witness that cannot be meant is ConfigInvalid, with the nearest scheme, and no secret of it is repeated."""
    with pytest.raises(ConfigInvalid, match=said) as caught:
        async with small_bus(tmp_path, audit={"witnesses": [url]}):
            pass
    assert "secret" not in str(caught.value)
    assert '"git:/path"' in caught.value.remedy
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("url", ["file:{home}/checkpoints", "git:{home}/repository", "bus:{home}"])
async def test_a_witness_in_the_home_is_none(url: str, tmp_path: Path) -> None:
    """What is replaced together with the log vouches for nothing."""
    with pytest.raises(ConfigInvalid, match="in the home itself"):
        async with small_bus(tmp_path, audit={"witnesses": [url.format(home=tmp_path / "home")]}):
            pass


def test_an_extra_that_is_missing_is_named(tmp_path: Path) -> None:
    """Without the packages of `otlp:` the bus does not start, and says what to install."""
    program = (
        "import sys, asyncio\n"
        "sys.modules['opentelemetry.sdk'] = None\n"
        "from enhanced_agent_bus import ConfigInvalid\n"
        "from enhanced_agent_bus.witness.places import witness_at\n"
        "try: witness_at('otlp:')\n"
        "except ConfigInvalid as error: print(error.remedy)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "opa-agent-bus[otlp]" in done.stdout, json.dumps(done.stderr)
