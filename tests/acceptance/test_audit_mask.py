"""The mask of `[audit] mask`: what OPA users write for their decision logs, before a payload leaves the process."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.audit.collector import Collector, Events
from enhanced_agent_bus.audit.formats.masking import BadMaskError, masked, rules_of
from enhanced_agent_bus.audit.formats.row import Row
from enhanced_agent_bus.cli.app import run_command
from enhanced_agent_bus.cli.audit import masking
from enhanced_agent_bus.engines.worker import WorkerEngine
from tests.entries import until
from tests.newcomer import newcomer, work_in_copy
from tests.opa import Opa, pack
from tests.support import write_constitution

SECRET = "4111 1111 1111 1111"
MASK = """package system.log

mask contains "/input/message/payload/card" if input.input.message.payload.card

mask contains {"op": "upsert", "path": "/input/message/headers/auth", "value": "***"} if {
    input.input.message.headers.auth
}
"""
FORMATS = ("opa", "ocsf", "cloudevents", "otel")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one message with a card number and a header was sent, and one without."""
    folder = tmp_path_factory.mktemp("begun")
    with newcomer(folder):
        lines = [
            {"from": "desk", "to": "booker", "id": "paid", "headers": {"auth": SECRET}, "payload": {"card": SECRET}},
            {"from": "desk", "to": "booker", "id": "plain", "payload": {"trip": 7}},
        ]
        Path("messages.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert run_command(["run", "app.py:build", "--input", "messages.jsonl"]) == 0
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, whose settings name a mask."""
    work_in_copy(begun, tmp_path, monkeypatch)
    Path(".eab/eab.toml").write_text('[audit]\nmask = "mask.rego"\n')
    Path(".eab/mask.rego").write_text(MASK)
    return tmp_path


def accesses() -> int:
    """How often the log says that somebody was shown payloads."""
    with sqlite3.connect(".eab/bus.db") as database:
        (count,) = database.execute("SELECT count(*) FROM records WHERE kind = 'access'").fetchone()
    database.close()
    return int(count)


@pytest.mark.parametrize("format", FORMATS)
def test_what_the_mask_names_is_in_no_format(format: str, folder: Path) -> None:
    """The rest of the payload is there, and the line says what was taken out."""
    assert run_command(["audit", "export", "--format", format, "--payload", "-o", "out"]) == 0
    text = Path("out").read_text()
    assert SECRET not in text
    assert "/input/message/payload/card" in text
    assert "***" in text
    assert '"trip":7' in text.replace("\\", "")
    assert folder.is_dir()


def test_an_event_says_what_was_erased_and_what_was_masked(folder: Path) -> None:
    """With OPA's own names, also where payloads were left out and nothing was there to erase."""
    assert run_command(["audit", "export", "--format", "opa", "--payload", "-o", "out"]) == 0
    events = {one["custom"]["message_id"]: one for one in map(json.loads, Path("out").read_text().splitlines())}
    paid, plain = events["desk/paid"], events["desk/plain"]
    assert paid["erased"] == ["/input/message/payload/card"]
    assert paid["masked"] == ["/input/message/headers/auth"]
    assert paid["input"]["message"]["payload"] == {}
    assert paid["input"]["message"]["headers"] == {"auth": "***"}
    assert plain["input"]["message"]["payload"] == {"trip": 7}
    assert "erased" not in plain
    assert folder.is_dir()


@pytest.mark.parametrize(
    "mask",
    [
        "mask := 7",
        'mask contains "input/message"',
        'mask contains "/custom/seq"',
        'mask contains {"op": "replace", "path": "/input", "value": 1}',
        'mask contains {"path": "/input"}',
        "mask contains x if x := to_number(input.input.message.id)",
        'mask := ["/input"] if input.nowhere',
        "mask contains x if { some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); x := i * j; x < 0 }",
    ],
)
@pytest.mark.parametrize("format", ["opa", "cloudevents"])
def test_a_mask_that_gives_no_usable_answer_hides_everything(
    mask: str, format: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another type, undefined, broken or late: every event is without input and result, and the status is 3."""
    if "range" in mask:
        monkeypatch.setattr(masking, "MASK_SECONDS_MAX", 0.05)
    Path(".eab/mask.rego").write_text(f"package system.log\n\n{mask}\n")
    assert run_command(["audit", "export", "--format", format, "--payload", "-o", "out"]) == 3
    err = capsys.readouterr().err
    assert "the mask gave no usable answer" in err
    text = Path("out").read_text()
    assert SECRET not in text
    assert '"trip":7' not in text
    if format == "opa":
        for event in map(json.loads, text.splitlines()):
            assert not {"input", "result"} & set(event)
            assert event["erased"][0] == "/input"
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("package system.log\nmask contains", "mask.rego"),
        ("package other\nmask contains 1 if true", "data.system.log.mask"),
        ('package system.log\nmask contains x if x := http.send({"url": "http://127.0.0.1"}).body', "http.send"),
        ("package system.log\nmask(x) := x", "function"),
        (None, "cannot be read"),
    ],
)
def test_a_mask_that_cannot_be_used_stops_the_export_before_anything_is_shown(
    text: str | None, word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 and one sentence; no file, and no access record of what nobody was shown."""
    Path(".eab/mask.rego").unlink()
    if text is not None:
        Path(".eab/mask.rego").write_text(text)
    assert run_command(["audit", "export", "--format", "opa", "--payload", "-o", "out"]) == 2
    err = capsys.readouterr().err
    assert word in err
    assert "Traceback" not in err
    assert not Path("out").exists()
    assert accesses() == 0
    assert folder.is_dir()


def test_stored_bytes_need_no_mask(folder: Path) -> None:
    """There is no payload in them, and they have to stay the bytes that the tree vouches for."""
    Path(".eab/mask.rego").write_text("nonsense")
    assert run_command(["audit", "export", "-o", "out"]) == 0
    assert run_command(["audit", "verify", "out"]) == 0
    assert folder.is_dir()


HOSTILE_RULES = [
    "/input/message/payload/card",
    "/input/message/payload/list/1",
    "/input/message/payload/list/9",
    "/input/message/payload/nowhere/deep",
    "/result/allow",
    "/nd_builtin_cache/x",
    {"op": "upsert", "path": "/input/message/payload/new/deep", "value": {"a": 1}},
    {"op": "upsert", "path": "/input/message/payload/list/0", "value": None},
    {"op": "upsert", "path": "/input/message/payload/text/under", "value": 1},
    {"op": "upsert", "path": "/nd_builtin_cache/x", "value": 1},
    {"op": "remove", "path": "/input/message/headers"},
]


@asynccontextmanager
async def taking(file: Path) -> AsyncIterator[str]:
    """A collector beside the test; gives its address."""
    with Events(file, bytes_max=1 << 20) as events, Collector(("127.0.0.1", 0), events, None) as server:
        serving = asyncio.get_running_loop().run_in_executor(None, server.serve_forever, 0.02)
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            await serving


async def test_stock_opa_masks_its_own_events_the_same(tmp_path: Path, opa_binary: Path) -> None:
    """One mask, one input: what a real OPA server logs, and what is made here of the event as it was before."""
    rules = "\n".join(f"mask contains {json.dumps(rule)}" for rule in HOSTILE_RULES)
    (tmp_path / "mask.rego").write_text(f"package system.log\n\n{rules}\n")
    payload = {"card": SECRET, "list": [1, 2, [3]], "text": "t"}
    asked = {"message": {"id": "m", "payload": payload, "headers": {"a": "b"}}}
    folder = write_constitution(tmp_path / "policies")
    file = tmp_path / "collected.jsonl"
    async with taking(file) as url:
        opa = Opa(
            opa_binary,
            tmp_path,
            *("--set", f"services.bus.url={url}", "--set", "decision_logs.service=bus"),
            *("--set", "decision_logs.reporting.min_delay_seconds=1"),
            *("--set", "decision_logs.reporting.max_delay_seconds=1", str(tmp_path / "mask.rego")),
        )
        await pack(folder, opa.bundle)
        try:
            await opa.serve()
            async with httpx.AsyncClient(timeout=60) as client:
                answer = (await client.post(f"{opa.http_url}/v1/data/bus/decision", json={"input": asked})).json()
            async with asyncio.timeout(60):
                await until(lambda: answer["decision_id"] in file.read_text())
        finally:
            await opa.stop()
    theirs = next(one for one in map(json.loads, file.read_text().splitlines()) if one["path"] == "bus/decision")
    engine = await WorkerEngine.start(workers=1)
    event = {"input": asked, "result": answer["result"], "path": "bus/decision"}
    digest = await engine.load_mask(tmp_path / "mask.rego", (tmp_path / "mask.rego").read_text())
    decided = await engine.decide(digest, "", json.dumps(event).encode(), 10)
    await engine.close()
    ours = masked(Row(b"", {}), event, rules_of(json.loads(decided.body))).event
    assert ours is not None
    names = ("input", "result", "erased", "masked")
    assert {name: ours.get(name) for name in names} == {name: theirs.get(name) for name in names}


def test_a_name_that_opa_would_escape_is_found() -> None:
    """OPA compares names escaped and finds none with a space or a semicolon; here they are what they are."""
    event = {"input": {"odd;name": SECRET, "two words": SECRET, "rest": 1}}
    row = masked(Row(b"", {}), event, rules_of(["/input/odd;name", "/input/two words"]))
    assert row.event == {"input": {"rest": 1}, "erased": ["/input/odd%3Bname", "/input/two%20words"]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("abc", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc01"), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.lists(st.sampled_from([*"abc012", "-1", "", "²"]), max_size=4).map(
    lambda parts: "/".join(["/input", *parts])
)
RULES = PATHS | st.fixed_dictionaries({"op": st.sampled_from(["remove", "upsert"]), "path": PATHS, "value": JSON})


@pytest.mark.fuzz
@given(JSON, st.lists(RULES, max_size=5))
def test_rules_do_what_they_can_and_never_fail(document: Any, rules: list[Any]) -> None:
    """Whatever they name: what is removed is gone, and the event that was given is as it was."""
    event = {"input": document, "result": True}
    before = json.dumps(event)
    row = masked(Row(b"", {}), event, rules_of(rules))
    assert json.dumps(event) == before
    if "/input" in rules and not any(isinstance(rule, dict) for rule in rules):
        assert row.event is not None
        assert "input" not in row.event


@pytest.mark.parametrize("answer", [None, 7, {}, "/input", [7], ["input"], [""], [{"op": "remove"}], ["/data/x"]])
def test_what_is_no_list_of_rules_is_refused_whole(answer: Any) -> None:
    """One rule that cannot be meant is enough."""
    with pytest.raises(BadMaskError):
        rules_of(answer)
