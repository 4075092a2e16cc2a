"""`eab audit collect`: real OPA posts its decision logs to it, and what cannot be taken is answered with an error."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from enhanced_agent_bus.audit.collector import Events
from enhanced_agent_bus.cli.app import run_command
from tests.entries import until
from tests.opa import Opa, pack
from tests.support import write_constitution

EVENT = {"decision_id": "d-1", "labels": {"id": "o-1"}, "timestamp": "2026-11-21T09:00:00Z", "result": True}


@contextmanager
def collecting(file: Path, *options: str) -> Iterator[str]:
    """The command as a process of its own; gives the address that it said."""
    line = [sys.executable, "-m", "enhanced_agent_bus", "--json", "audit", "collect", "-o", str(file)]
    process = subprocess.Popen(
        [*line, "--listen", "127.0.0.1:0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://{json.loads(process.stdout.readline())['listening']}"
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def events_in(file: Path) -> list[dict[str, Any]]:
    """What was collected."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def status_of_long(url: str) -> int:
    """How a request is answered that says it has a terabyte, before it sends any of it."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.putrequest("POST", "/logs")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    with connection.getresponse() as answer:
        return answer.status


async def test_what_a_real_opa_decides_stands_in_the_file(tmp_path: Path, opa_binary: Path) -> None:
    """An OPA server is told of the service, decides, and its events arrive as it made them."""
    file = tmp_path / "decisions.jsonl"
    folder = write_constitution(tmp_path / "policies")
    with collecting(file) as url:
        opa = Opa(
            opa_binary,
            tmp_path,
            *("--set", f"services.bus.url={url}", "--set", "decision_logs.service=bus"),
            *("--set", "decision_logs.reporting.min_delay_seconds=1"),
            *("--set", "decision_logs.reporting.max_delay_seconds=1", "--set", "labels.app=elsewhere"),
        )
        await pack(folder, opa.bundle)
        try:
            await opa.serve()
            async with httpx.AsyncClient(timeout=60) as client:
                asked = {"input": {"message": {"id": "m"}}}
                answer = await client.post(f"{opa.http_url}/v1/data/bus/decision", json=asked)
            async with asyncio.timeout(60):
                await until(lambda: answer.json()["decision_id"] in file.read_text())
        finally:
            await opa.stop()
    [event] = [event for event in events_in(file) if event["path"] == "bus/decision"]
    assert event["decision_id"] == answer.json()["decision_id"]
    assert event["labels"]["app"] == "elsewhere"
    assert event["input"] == {"message": {"id": "m"}}
    assert event["bundles"] == {"eab": {"revision": "1"}}
    assert event["result"] == answer.json()["result"]


def test_what_is_no_decision_log_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    """Each with the status that tells OPA to keep it; then a good one is taken, plain and gzip'd, by path or not."""
    file = tmp_path / "decisions.jsonl"
    good = gzip.compress(json.dumps([EVENT]).encode())
    zipped = {"Content-Encoding": "gzip"}
    with collecting(file) as url, httpx.Client(base_url=url, trust_env=False) as client:
        for content, headers, status in (
            (b"nonsense", {}, 400),
            (b'{"decision_id": 1}', {}, 400),
            (b"[1]", {}, 400),
            (b"[" * 100_000, {}, 400),
            (good[:-9], zipped, 400),
            (good, {"Content-Encoding": "br"}, 400),
            (gzip.compress(b" " * (64 * 1024 * 1024 + 1)), zipped, 400),
        ):
            assert client.post("/logs", content=content, headers=headers).status_code == status
        assert client.post("/other", content=good, headers=zipped).status_code == 404
        assert client.get("/logs").status_code == 501
        assert client.post("/logs", content=iter([good]), headers=zipped).status_code == 411
        assert status_of_long(url) == 413
        assert file.read_bytes() == b""
        assert client.post("/logs", content=good, headers=zipped).status_code == 200
        assert client.post("/logs/shard", json=[EVENT, EVENT]).status_code == 200
    assert events_in(file) == [EVENT] * 3


def test_a_token_lets_in_who_has_it(tmp_path: Path) -> None:
    """And nobody else; without one it listens to this machine alone."""
    (tmp_path / "token").write_text("let-me-in\n")
    file = tmp_path / "decisions.jsonl"
    with collecting(file, "--token-file", str(tmp_path / "token")) as url:
        for header, status in ((None, 401), ("Bearer other", 401), ("Basic let-me-in", 401), ("Bearer let-me-in", 200)):
            headers = {} if header is None else {"Authorization": header}
            assert httpx.post(f"{url}/logs", json=[EVENT], headers=headers, trust_env=False).status_code == status
    assert events_in(file) == [EVENT]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["-o", "f", "--listen", "0.0.0.0:0"], "--token-file"),
        (["-o", "f", "--listen", "nowhere"], "HOST:PORT"),
        (["-o", "f", "--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["-o", "f", "--token-file", "empty"], "no token"),
        (["-o", "notes"], "no file of events"),
        (["-o", "missing/f"], "missing/f"),
    ],
)
def test_what_cannot_be_served_is_exit_2_and_one_sentence(
    options: list[str],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file of somebody's is left as it is."""
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    Path("notes").write_text("not to be lost")
    assert run_command(["audit", "collect", *options]) == 2
    assert word in capsys.readouterr().err
    assert Path("notes").read_text() == "not to be lost"


def test_an_address_that_somebody_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run_command(["audit", "collect", "-o", str(tmp_path / "f"), "--listen", address]) == 2
    assert address in capsys.readouterr().err


def test_the_file_ends_with_a_whole_line_whatever_happened(tmp_path: Path) -> None:
    """A line cut off goes; a full file takes no part of a batch; a second process is kept out."""
    file = tmp_path / "decisions.jsonl"
    with Events(file, bytes_max=300) as events:
        assert events.append([EVENT])
        with pytest.raises(BlockingIOError):
            Events(file, bytes_max=300)
        assert not events.append([EVENT] * 3)
    whole = file.read_bytes()
    for cut in range(1, len(whole) - 1, 7):
        file.write_bytes(whole + whole[:cut])
        with Events(file, bytes_max=1 << 20):
            assert file.read_bytes() == whole
    os.truncate(file, 0)
    with Events(file, bytes_max=1 << 20) as events:
        assert events.append([EVENT])
    assert file.read_bytes() == whole
