"""An OPA server that lies, breaks off, stalls, floods or is another one: nobody gets an allow from it."""

import asyncio
import gzip
import itertools
import json
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from enhanced_agent_bus import Agent, AgentBus, ConfigInvalid
from enhanced_agent_bus.engines.http1 import REST_SECONDS, OneAnswerTransport
from tests.developer import Inbox, log, small_bus, until
from tests.forked import is_refused_in_a_child
from tests.hostile import NO, YES, Asked, Behave, Hostile, decided, hostile, http, provenance, sends, then_closes

DEADLINE = 0.5
HTML = "<!doctype html><title>no OPA</title>"
YES_TEXT = json.dumps(decided(allow=True))
DEEP = '{"provenance": ' + json.dumps(provenance()) + ', "result": {"allow": true, "reasons": ' + "[" * 10_000


@dataclass
class House:
    """A bus with one sender and one recipient, whose decisions come from elsewhere."""

    bus: AgentBus
    desk: Agent
    inbox: Inbox
    home: Path

    async def refused(self, *codes: str, case: str = "") -> None:
        """One message is refused with one of these codes; nobody handles it, and the log says so once."""
        handled = len(self.inbox.got)
        receipt = await self.desk.send("booker", {"n": handled})
        assert receipt.state == "refused", (case, receipt)
        assert receipt.code in codes, (case, receipt)
        assert len(self.inbox.got) == handled, case
        records = log(self.home, "decision", message_id=receipt.message_id)
        assert [(record["verdict"], record["code"]) for record in records] == [("refuse", receipt.code)]
        assert len(json.dumps(records)) < 10_000

    async def accepted(self, case: str = "") -> None:
        """One message is accepted, and comes."""
        receipt = await self.desk.send("booker", {"n": 1})
        assert receipt.state == "accepted", (case, receipt)
        assert (await receipt.outcome(timeout=5)).state == "delivered"


@asynccontextmanager
async def house(folder: Path, url: str, **policy: Any) -> AsyncIterator[House]:
    """Nothing is cached: each message is a question."""
    settings = {"engine": url, "timeout_seconds": DEADLINE, "cache_entries": 0, **policy}
    async with small_bus(folder, policy=settings) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        yield House(bus, desk, inbox, folder / "home")


# --- what is answered ------------------------------------------------------------------------------------------------

NO_DECISION: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "policy_undefined"),
    "no result": ({"provenance": provenance()}, "policy_undefined"),
    "the decision itself": ({"allow": True}, "policy_undefined"),
    "the decision itself, as text": ({"allow": "true"}, "policy_undefined"),
    "null": ({"result": None, "provenance": provenance()}, "policy_malformed"),
    "null alone": ({"result": None}, "policy_malformed"),
    "a text": ('"true"', "policy_malformed"),
    "true": ("true", "policy_malformed"),
    "1": ("1", "policy_malformed"),
    "a list": ("[]", "policy_malformed"),
    "empty": ("", "policy_malformed"),
    "result true": ({"result": True, "provenance": provenance()}, "policy_malformed"),
    "result text": ({"result": "true", "provenance": provenance()}, "policy_malformed"),
    "allow as text": (decided(allow="true"), "policy_malformed"),
    "allow as number": (decided(allow=1), "policy_malformed"),
    "allow in a list": (decided(allow=[True]), "policy_malformed"),
    "allow as text, from nowhere": ({"result": {"allow": "true"}}, "policy_malformed"),
    "an unknown key": (decided(allow=True, because="why not"), "policy_malformed"),
    "an unknown key, from nowhere": ({"result": {"allow": True, "because": "why not"}}, "policy_malformed"),
    "another shape": ({"result": {"decision": "allow"}, "provenance": provenance()}, "policy_malformed"),
    "allow twice": (YES_TEXT.replace('"allow": true', '"allow": false, "allow": true'), "policy_malformed"),
    "result twice": (YES_TEXT[:-1] + ', "result": {"allow": true}}', "policy_malformed"),
    "provenance twice": (YES_TEXT[:-1] + ', "provenance": {}}', "policy_malformed"),
    "revision twice": (YES_TEXT.replace('"revision"', '"revision": "1", "revision"'), "policy_malformed"),
    "a key twice, escaped": (YES_TEXT.replace('"allow"', '"\\u0061llow": false, "allow"'), "policy_malformed"),
    "cut off": (YES_TEXT[:-1], "policy_malformed"),
    "two documents": (YES_TEXT + YES_TEXT, "policy_malformed"),
    "NaN": (YES_TEXT.replace("true", "NaN"), "policy_malformed"),
    "5,000 digits": (YES_TEXT.replace("true", "1" * 5000), "policy_malformed"),
    "single quotes": (YES_TEXT.replace('"', "'"), "policy_malformed"),
    "a byte order mark": ("\ufeff" + YES_TEXT, "policy_malformed"),
    "UTF-16": (YES_TEXT.encode("utf-16"), "policy_malformed"),
    "no UTF-8": (YES_TEXT.encode() + b"\xff", "policy_malformed"),
    "10,000 deep": (DEEP + "]" * 10_000 + "}}", "policy_malformed"),
    "10,000 deep, without an end": (DEEP, "policy_malformed"),
    "many small parts": (decided(allow=True, reasons=[[]] * 100_000), "policy_malformed"),
    "no provenance": ({"result": {"allow": True}}, "policy_revision_mismatch"),
    "another revision": (decided(allow=True, revision="2"), "policy_revision_mismatch"),
    "the revision as a number": (
        {"provenance": {"bundles": {"eab": {"revision": 1}}}, "result": {"allow": True}},
        "policy_revision_mismatch",
    ),
    "another bundle": (
        {"provenance": {"bundles": {"other": {"revision": "1"}}}, "result": {"allow": True}},
        "policy_revision_mismatch",
    ),
    "a revision of no bundle": (
        {"provenance": {"revision": "1", "bundles": {}}, "result": {"allow": True}},
        "policy_revision_mismatch",
    ),
    "provenance of another shape": (
        {"provenance": [{"bundles": "eab"}], "result": {"allow": True}},
        "policy_revision_mismatch",
    ),
}


async def test_only_a_decision_in_its_shape_and_under_its_revision_allows(tmp_path: Path) -> None:
    """What is not JSON `true` where the contract has it, under the active revision, refuses, and is named."""
    async with hostile(YES) as stub, house(tmp_path, stub.url, timeout_seconds=5) as there:
        for case, (body, code) in NO_DECISION.items():
            stub.behave = sends(http(body))
            await there.refused(code, case=case)
        assert there.inbox.got == []


async def test_a_decision_in_its_shape_allows(tmp_path: Path) -> None:
    """The same server, honest: the question is the contract's, with the message as its input."""
    async with hostile(YES) as stub, house(tmp_path, stub.url) as there:
        await there.accepted()
        (asked,) = stub.decisions
    assert (asked.method, asked.path) == (
        "POST",
        "/v1/data/bus/decision?provenance=true&strict-builtin-errors=true",
    )
    question = json.loads(asked.body)
    assert list(question) == ["input"]
    assert question["input"]["message"]["payload"] == {"n": 1}
    assert question["input"]["sender"]["id"] == "desk"
    assert asked.headers["content-type"] == "application/json"


# --- what comes instead of an answer ---------------------------------------------------------------------------------


async def _resets(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(YES[:40])
    writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def _silent(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def _waits_for_ever(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0)


async def _endless_head(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        writer.write(b"X-%d: %s\r\n" % (number, b"x" * 1000))
        await writer.drain()


async def _drips(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    for place in range(len(YES)):
        writer.write(YES[place : place + 1])
        await writer.drain()
        await asyncio.sleep(0.1)


UNAVAILABLE = ("policy_unavailable",)
INSTEAD: dict[str, tuple[Behave | bytes, tuple[str, ...]]] = {
    "closed": (then_closes(b""), UNAVAILABLE),
    "reset": (_resets, UNAVAILABLE),
    "silence": (_silent, UNAVAILABLE),
    "a body that is cut off": (then_closes(YES[:-20]), UNAVAILABLE),
    "a chunk that is cut off": (
        then_closes(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x\r\n%s\r\n" % (len(YES_TEXT), YES_TEXT.encode())
        ),
        UNAVAILABLE,
    ),
    "half a head": (then_closes(b"HTTP/1.1 200 OK\r\nContent-"), UNAVAILABLE),
    "another protocol": (b"SSH-2.0-OpenSSH_9.9\r\n", ("policy_timeout",)),  # it waits for our part
    "another protocol that goes on": (b"* OK IMAP4rev1 ready\r\n\r\n", UNAVAILABLE),
    "two lengths": (YES.replace(b"Content-Type", b"Content-Length: 5\r\nContent-Type"), UNAVAILABLE),
    "101": (http(YES_TEXT, "101 Switching Protocols"), UNAVAILABLE),
    "100 again and again": (_waits_for_ever, ("policy_timeout",)),
    "a head without an end": (_endless_head, UNAVAILABLE),
    "204": (http(b"", "204 No Content"), UNAVAILABLE),
    "202 with a yes": (http(YES_TEXT, "202 Accepted"), UNAVAILABLE),
    "203 with a yes": (http(YES_TEXT, "203 Non-Authoritative Information"), UNAVAILABLE),
    "400": (http("{}", "400 Bad Request"), UNAVAILABLE),
    "401 with a yes": (http(YES_TEXT, "401 Unauthorized"), UNAVAILABLE),
    "404": (http({"code": "undefined_document"}, "404 Not Found"), UNAVAILABLE),
    "500 with a yes": (http(YES_TEXT, "500 Internal Server Error"), UNAVAILABLE),
    "500 as HTML": (http(HTML, "500 Internal Server Error", "text/html"), UNAVAILABLE),
    "500 of OPA": (
        http({"code": "internal_error", "message": "it failed"}, "500 Internal Server Error"),
        ("policy_error",),
    ),
    "503": (http(HTML, "503 Service Unavailable", "text/html"), UNAVAILABLE),
    "HTML": (http(HTML, content_type="text/html"), ("policy_malformed",)),
    "a yes as HTML": (http(YES_TEXT, content_type="text/html"), ("policy_malformed",)),
    "a yes as text": (http(YES_TEXT, content_type="text/plain"), ("policy_malformed",)),
    "a yes as another JSON": (http(YES_TEXT, content_type="application/json-patch+json"), ("policy_malformed",)),
    "a yes without a type": (http(YES_TEXT, content_type=None), ("policy_malformed",)),
    "an unknown encoding": (
        http(YES_TEXT, "200 OK", "application/json", "Content-Encoding: br"),
        ("policy_malformed",),
    ),
    "gzip that is none": (
        http(YES_TEXT, "200 OK", "application/json", "Content-Encoding: gzip"),
        ("policy_malformed",),
    ),
    "gzip that is cut off": (
        http(gzip.compress(YES_TEXT.encode())[:-9], "200 OK", "application/json", "Content-Encoding: gzip"),
        ("policy_malformed",),
    ),
}


async def test_what_comes_instead_of_an_answer_refuses(tmp_path: Path) -> None:
    """Whatever a connection brings that is no answer: refused by the deadline, and the next message is decided anew."""
    async with hostile(YES) as stub, house(tmp_path, stub.url) as there:
        for case, (behave, codes) in INSTEAD.items():
            stub.behave = sends(behave) if isinstance(behave, bytes) else behave
            await there.refused(*codes, case=case)
            stub.behave = sends(YES)
            await there.accepted(case)


async def test_a_yes_in_another_form_is_still_a_yes(tmp_path: Path) -> None:
    """Chunks, gzip, a charset, a closed connection behind it: those are HTTP, and no reason to refuse."""
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"".join(b"1\r\n%c\r\n" % byte for byte in YES_TEXT.encode()) + b"0\r\n\r\n"
    zipped = http(gzip.compress(YES_TEXT.encode()), "200 OK", "Application/JSON", "Content-Encoding: gzip")
    to_the_end = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + YES_TEXT.encode()
    informed = b"HTTP/1.1 103 Early Hints\r\n\r\n" + YES
    async with hostile(chunked) as stub, house(tmp_path, stub.url) as there:
        await there.accepted()
        for behave in (sends(zipped), sends(informed), then_closes(to_the_end), then_closes(YES)):
            stub.behave = behave
            await there.accepted()


async def test_nobody_listens(tmp_path: Path) -> None:
    """A connection that is refused is no allow, and no reason not to open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    async with house(tmp_path, f"http://127.0.0.1:{port}") as there:
        for _ in range(10):
            await there.refused("policy_unavailable")
    async with house(tmp_path / "unix", f"unix://{tmp_path}/nobody.sock") as there:
        await there.refused("policy_unavailable")


async def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    """A host that cannot be found refuses too."""
    async with house(tmp_path, "http://opa.invalid:8181", timeout_seconds=2) as there:
        await there.refused("policy_unavailable")


async def test_a_port_where_nobody_answers_the_door(tmp_path: Path) -> None:
    """Connections that are never accepted: refused by the deadline, and at once when that is known."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        async with house(tmp_path, f"http://127.0.0.1:{full.getsockname()[1]}", timeout_seconds=0.1) as there:
            for _ in range(8):
                await there.refused("policy_unavailable")


async def test_an_answer_that_drips_is_a_timeout(tmp_path: Path) -> None:
    """One byte every 0.1 s: refused within the deadline and a fifth, however alive the connection is."""
    loop = asyncio.get_running_loop()
    async with hostile(_drips) as stub, house(tmp_path, stub.url) as there:
        started = loop.time()
        await there.refused("policy_timeout")
        took = loop.time() - started
    assert took < DEADLINE * 1.2 + 0.2  # the log's fsync is in it, and a busy machine


# --- too much ------------------------------------------------------------------------------------------------------

LONG = json.dumps(decided(allow=True, reasons=[{"rule": "x" * 1000}] * 10_000))
PROVENANCE_TEXT = json.dumps(provenance())
BOMB = gzip.compress(
    b'{"provenance": %s, "result": {"allow": true}, "x": "' % PROVENANCE_TEXT.encode() + b"0" * (50 << 20) + b'"}'
)


async def _endless_body(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
        await writer.drain()


async def _endless_empty_gzip(_asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    head = gzip.compress(b"")[:10]
    writer.write(b"a\r\n" + head + b"\r\n")
    nothing = b"\x00\x00\x00\xff\xff" * 10_000  # stored blocks of no bytes
    while True:
        writer.write(b"%x\r\n" % len(nothing) + nothing + b"\r\n")
        await writer.drain()


TOO_MUCH: dict[str, Behave] = {
    "a gzip bomb of 50 MB": sends(http(BOMB, "200 OK", "application/json", "Content-Encoding: gzip")),
    "10 MB": sends(http(LONG)),
    "a body without an end": _endless_body,
    "gzip of nothing without an end": _endless_empty_gzip,
    "many small parts": sends(http(b'{"result": ' + b"[" + b"[]," * 300_000 + b"[]]}")),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process has used")
@pytest.mark.parametrize("name", list(TOO_MUCH))
async def test_too_much_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    """Reading stops at 1 MiB decoded: the process grows by less than 20 MB, and the next message is decided."""
    async with hostile(TOO_MUCH[name]) as stub, house(tmp_path, stub.url, timeout_seconds=5) as there:
        before = _resident_mb(peak=False)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for _ in range(3):
            await there.refused("policy_malformed")
        assert _resident_mb(peak=True) - before < 20
        stub.behave = sends(YES)
        await there.accepted()


def _resident_mb(*, peak: bool) -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status, flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


# --- answers that nobody asked for -----------------------------------------------------------------------------------


def _stray(after_seconds: float | None) -> Behave:
    """A no to each question, and behind it a yes that nobody asked for."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if not asked.is_decision:
            writer.write(http({}))
        elif after_seconds is None:
            writer.write(NO + YES)
        else:
            writer.write(NO)
            await writer.drain()
            await asyncio.sleep(after_seconds)
            writer.write(YES)

    return behave


@pytest.mark.parametrize("after", [None, 0, 0.001, 0.01, 0.05], ids=str)
async def test_an_answer_that_nobody_asked_for_answers_nothing(tmp_path: Path, after: float | None) -> None:
    """One after the other or many at once, each question gets its own answer, and never the one left over."""
    async with hostile(_stray(after)) as stub, house(tmp_path, stub.url, timeout_seconds=5) as there:
        for _ in range(20):
            await there.refused("policy_denied")
        for _ in range(5):
            receipts = await asyncio.gather(*(there.desk.send("booker", {"n": n}) for n in range(40)))
            assert {receipt.code for receipt in receipts} == {"policy_denied"}
        assert there.inbox.got == []
        assert len(stub.decisions) == 220


def _stand_still(seconds: float) -> None:
    """As a machine that has no time for this process: no thread of it runs, the server's neither."""
    interval, until = sys.getswitchinterval(), time.monotonic() + seconds
    sys.setswitchinterval(60)
    while time.monotonic() < until:
        pass
    sys.setswitchinterval(interval)


async def test_a_process_that_stands_still_has_not_waited() -> None:
    """While the loop is held up nothing is heard, so that time is no rest: what comes right after it is left over."""
    async with hostile(_stray(0.05)) as stub:
        there = httpx.URL(stub.url)
        assert there.port is not None
        transport = OneAnswerTransport(address=(there.host, there.port))
        async with httpx.AsyncClient(transport=transport, base_url=there) as client:
            for _ in range(5):
                answer = await client.post("/v1/data/bus/decision", json={"input": {}})
                assert answer.json()["result"]["allow"] is False
                _stand_still(REST_SECONDS * 2)


async def test_bytes_behind_an_answer_close_the_connection(tmp_path: Path) -> None:
    """A connection with anything left over is never used again; an honest one is."""
    async with hostile(_stray(None)) as stub, house(tmp_path, stub.url) as there:
        for _ in range(5):
            await there.refused("policy_denied")
            await asyncio.sleep(REST_SECONDS * 2)
        assert {asked.on_connection for asked in stub.decisions} == {0}
        stub.behave = sends(NO)
        asked_before = len(stub.decisions)
        for _ in range(5):
            await there.refused("policy_denied")
            await asyncio.sleep(REST_SECONDS * 2)
        assert max(asked.on_connection for asked in stub.decisions[asked_before:]) > 0


async def test_an_answer_that_comes_after_its_deadline_answers_nothing(tmp_path: Path) -> None:
    """The connection of a question that was given up is closed with it."""

    async def late(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.is_decision and b'"late":true' in asked.body:
            await asyncio.sleep(0.4)
            writer.write(YES)
        else:
            writer.write(NO)

    async with hostile(late) as stub, house(tmp_path, stub.url, timeout_seconds=0.2) as there:
        for _ in range(3):
            receipt = await there.desk.send("booker", {"late": True})
            assert receipt.code == "policy_timeout"
            for _ in range(5):
                await there.refused("policy_denied")
                await asyncio.sleep(0.05)


# --- elsewhere -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent"])
async def test_a_redirect_leads_nowhere(tmp_path: Path, status: str) -> None:
    """The answer of another host is not asked for: it sees no byte."""
    async with hostile(YES) as other:
        there_url = f"Location: {other.url}/v1/data/bus/decision"
        async with (
            hostile(http(YES_TEXT, status, "application/json", there_url)) as stub,
            house(tmp_path, stub.url) as there,
        ):
            await there.refused("policy_unavailable")
        assert other.connections == 0


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"])
async def test_a_proxy_of_the_environment_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Questions go to the server that the settings name, and to no other host."""
    async with hostile(YES) as proxy, hostile(NO) as stub:
        monkeypatch.setenv(variable, proxy.url)
        async with house(tmp_path, stub.url) as there:
            await there.refused("policy_denied")
        async with house(tmp_path / "tls", stub.url.replace("http:", "https:")) as there:
            await there.refused("policy_unavailable")
        assert proxy.connections == 0


# --- away, and back --------------------------------------------------------------------------------------------------


async def test_a_server_that_is_away_is_not_asked_again_and_again(tmp_path: Path) -> None:
    """1,000 messages to a server that breaks every connection: all are refused, and it is asked far less often.

    When it is back, the bus is too, without being told.
    """
    async with hostile(then_closes(b"")) as stub, house(tmp_path, stub.url) as there:
        for _ in range(10):
            receipts = await asyncio.gather(*(there.desk.send("booker", {"n": n}) for n in range(100)))
            assert {receipt.code for receipt in receipts} == {"policy_unavailable"}
        assert stub.connections < 300
        stub.behave = sends(YES)
        loop = asyncio.get_running_loop()
        back = loop.time()
        while (await there.desk.send("booker", {"n": 0})).state != "accepted":
            assert loop.time() - back < 5
            await asyncio.sleep(0.05)
        for _ in range(20):
            await there.accepted()


async def test_a_server_that_hangs_is_away(tmp_path: Path) -> None:
    """Silence on every connection is no slow policy: after a few deadlines messages are refused at once."""
    async with hostile(_silent) as stub, house(tmp_path, stub.url, timeout_seconds=0.1) as there:
        for _ in range(6):
            await there.refused("policy_unavailable")
        asked = len(stub.decisions)
        await there.refused("policy_unavailable")
        assert len(stub.decisions) == asked


async def test_slow_questions_do_not_cut_off_the_others(tmp_path: Path) -> None:
    """Questions that never end while the server lives are timeouts, and the breaker stays closed."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.is_decision and b'"slow":true' in asked.body:
            await asyncio.Event().wait()
        writer.write(YES if asked.is_decision else http({}))

    async with hostile(behave) as stub, house(tmp_path, stub.url, timeout_seconds=0.2) as there:
        for _ in range(3):
            receipts = await asyncio.gather(*(there.desk.send("booker", {"slow": True, "n": n}) for n in range(10)))
            assert {receipt.code for receipt in receipts} == {"policy_timeout"}
        await there.accepted()
        health = [asked for asked in stub.asked if asked.path == "/health"]
        assert 1 <= len(health) <= 10


async def test_no_tenant_has_all_of_the_connections(tmp_path: Path) -> None:
    """One tenant has 200 questions that never end on their way; another's are asked and answered meanwhile."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if b'"tenant":"mallory"' in asked.body:
            await asyncio.Event().wait()
        writer.write(YES if asked.is_decision else http({}))

    async with hostile(behave) as stub, house(tmp_path, stub.url, timeout_seconds=5) as there:
        mallory = await there.bus.register("mallory", tenant="mallory")
        await there.bus.register("drop", Inbox(), tenant="mallory")
        bombs = [asyncio.ensure_future(mallory.send("drop", {"n": n})) for n in range(200)]
        await until(lambda: len(stub.decisions) >= 32)
        for _ in range(30):
            await there.accepted()
        assert len([asked for asked in stub.decisions if b'"tenant":"mallory"' in asked.body]) <= 64
        for bomb in bombs:
            bomb.cancel()
        await asyncio.gather(*bombs, return_exceptions=True)
        await there.accepted()


async def test_a_connection_that_was_closed_meanwhile_costs_no_answer(tmp_path: Path) -> None:
    """A server closes connections that wait; a question that meets one is asked once more, on a new one."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.on_connection:
            writer.close()  # as if it had been closing when the question came
        else:
            writer.write(YES)

    async with hostile(behave) as stub, house(tmp_path, stub.url) as there:
        for _ in range(5):
            await there.accepted()
            await asyncio.sleep(REST_SECONDS * 2)
        assert any(asked.on_connection for asked in stub.decisions)


async def test_a_sender_that_gives_up_leaves_the_rest_alone(tmp_path: Path) -> None:
    """A send that is cancelled takes its connection with it; the messages after it are decided."""
    async with hostile(_silent) as stub, house(tmp_path, stub.url, timeout_seconds=5) as there:
        for _ in range(3):
            task = asyncio.ensure_future(there.desk.send("booker", {"n": 1}))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        stub.behave = sends(YES)
        await there.accepted()


async def test_close_answers_what_is_still_asked(tmp_path: Path) -> None:
    """A bus that closes while questions are out ends, and every sender gets an answer or an error."""
    async with hostile(_silent) as stub:
        async with house(tmp_path, stub.url, timeout_seconds=30) as there:
            asked = [asyncio.ensure_future(there.desk.send("booker", {"n": n})) for n in range(10)]
            await until(lambda: len(stub.decisions) == 10)
            await there.bus.close(timeout=0)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert not [answer for answer in answers if getattr(answer, "state", "refused") == "accepted"]


# --- strictness, and the secret --------------------------------------------------------------------------------------


async def test_a_server_is_a_weakening_that_strict_refuses(tmp_path: Path) -> None:
    """A server's word is taken, so a strict bus does not open beside one."""
    async with hostile(YES) as stub:
        with pytest.raises(ConfigInvalid, match="policy_server_trusted"):
            async with small_bus(tmp_path, strict=True, policy={"engine": stub.url}):
                pass


def _for_token(good: str) -> Callable[[Hostile], None]:
    def set_up(stub: Hostile) -> None:
        async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
            yes = asked.headers.get("authorization") == f"Bearer {good}"
            writer.write(YES if yes else http({"code": "unauthorized"}, "401 Unauthorized"))

        stub.behave = behave

    return set_up


async def test_the_token_is_shown_and_read_again_when_it_was_changed(tmp_path: Path) -> None:
    """The file's token goes with each question; after a 401 the file is read again. No log has it."""
    token = tmp_path / "token"
    token.write_text("first-secret\n")
    async with hostile(YES) as stub, house(tmp_path, stub.url, token_file=str(token)) as there:
        _for_token("first-secret")(stub)
        await there.accepted()
        _for_token("second-secret")(stub)
        token.write_text("second-secret\n")
        receipt = await there.desk.send("booker", {"n": 2})
        assert (receipt.state, receipt.code) == ("refused", "policy_unavailable")
        await there.accepted()
    text = (there.home / "bus.db").read_bytes()
    assert b"first-secret" not in text
    assert b"second-secret" not in text


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), ("", "one token"), ("a b", "one token"), ("a\nX-Evil: 1", "one token")]
)
async def test_a_token_that_is_none_is_a_clear_error(tmp_path: Path, content: str | None, why: str) -> None:
    """A file that is not there, is empty or holds more than a token is an error at the start, without its content."""
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    with pytest.raises(ConfigInvalid, match=f"policy.token_file.*{why}") as caught:
        async with house(tmp_path, "http://127.0.0.1:9", token_file=str(token)):
            pass
    assert "Evil" not in str(caught.value)


async def test_the_question_to_a_server_is_not_asked_in_a_forked_child(tmp_path: Path) -> None:
    """The child of a fork gets refusals, and leaves the parent's connections alone."""
    async with hostile(YES) as stub, house(tmp_path, stub.url) as there:
        await there.accepted()
        engine = there.bus.charter._engine  # noqa: SLF001 - no public name leads to it
        assert await is_refused_in_a_child(engine.decide("0" * 64, "acme", b"{}", 1.0))
        await there.accepted()
