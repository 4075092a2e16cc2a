"""`eab console` as a command: what it prints, how it ends, and what it says where it cannot be."""

from __future__ import annotations

import asyncio
import getpass
import html
import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.console.server import listening
from tests.developer import log, small_bus


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which nothing has happened yet."""
    folder = tmp_path_factory.mktemp("made")

    async def make() -> None:
        async with small_bus(folder):
            pass

    asyncio.run(make())
    return folder / "home"


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the one that commands find."""
    shutil.copytree(made, tmp_path / "home", ignore=shutil.ignore_patterns("control.sock"))
    monkeypatch.setenv("EAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_where_it_is_and_ends_cleanly(ended_by: signal.Signals, home: Path) -> None:
    """One address to read, another to replay as well; Ctrl-C and SIGTERM end it with status 0 and not a word."""
    line = [sys.executable, "-m", "enhanced_agent_bus", "--json", "console", "--allow-replay"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["url"].startswith("http://127.0.0.1:")
        assert said["replay_url"] != said["url"]
        try:
            for url in (said["url"], said["replay_url"]):
                with httpx.Client(trust_env=False, follow_redirects=True, timeout=60) as client:
                    assert "Log" in client.get(url).text
        finally:
            process.send_signal(ended_by)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert [record["what"] for record in log(home, "access")] == [
        "start with replay",
        *["log kind:decision"] * 2,
    ]
    assert {record["by"] for record in log(home, "access")} == {getpass.getuser()}


def test_for_people_it_says_what_to_open(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One address, and that views are recorded; nobody is given a token for replays who did not ask."""
    monkeypatch.setattr("enhanced_agent_bus.console.server.serve", lambda _app, _bound: None)
    assert run_command(["console"]) == 0
    out = capsys.readouterr().out
    assert str(home) in out
    assert out.count("?token=") == 1
    assert "recorded" in out


def test_where_nothing_can_be_recorded_the_terminal_says_it_at_the_start(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log that was altered takes no record of who looks: one line says that, and why the verdicts alone are shown."""
    with sqlite3.connect(home / "bus.db") as database:
        database.execute("UPDATE records SET body = replace(body, '0', '1') WHERE seq = 0")
    database.close()
    monkeypatch.setattr("enhanced_agent_bus.console.server.serve", lambda _app, _bound: None)
    assert run_command(["console"]) == 0
    said = capsys.readouterr()
    assert said.out.count("?token=") == 1
    assert "who looks cannot be recorded now, so the verdicts alone are shown: " in said.err
    assert said.err.count("\n") == 1


def test_commands_on_a_page_work_in_any_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the home was called when the console was started."""
    shown: list[str] = []

    def page(app: Any, _bound: socket.socket) -> None:
        transport = httpx.ASGITransport(app)
        port = _bound.getsockname()[1]
        token = re.search(r"token=(\S+)", capsys.readouterr().out)
        assert token is not None

        async def get() -> None:
            async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}") as client:
                answer = await client.get("/proof", headers={"Authorization": f"Bearer {token[1]}"})
                shown.append(html.unescape(answer.text))

        asyncio.run(get())

    monkeypatch.setattr("enhanced_agent_bus.console.server.serve", page)
    monkeypatch.chdir(home.parent)
    assert run_command(["--home", home.name, "console"]) == 0
    assert f"--home {home} audit verify" in shown[0]


def test_a_taken_port_is_one_sentence_and_exit_2(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the port and the way out."""
    with listening(0) as taken:
        port = taken.getsockname()[1]
        assert run_command(["console", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert str(port) in err
    assert "--port" in err
    assert home.exists()


@pytest.mark.parametrize(
    ("options", "word"), [(["--checkpoint", "missing.txt"], "missing.txt"), (["--port", "99999"], "port")]
)
def test_wrong_usage_is_exit_2(options: list[str], word: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a sentence."""
    assert home.exists()
    assert run_command(["console", *options]) == 2
    assert word in capsys.readouterr().err


def test_without_a_home_there_is_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, and nothing is made."""
    assert run_command(["--home", str(tmp_path / "none"), "console"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_extra_is_named(missing: str, home: Path) -> None:
    """With what to type, as a command that lacks something says it."""
    code = f"import sys; sys.modules[{missing!r}] = None; from enhanced_agent_bus.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--home", str(home), "console"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'opa-agent-bus[console]'" in done.stderr
    assert missing in done.stderr
    assert "Traceback" not in done.stderr
