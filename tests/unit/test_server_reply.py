"""What an OPA server's reply says: pure functions, documents of every shape; and the same through httpx's own types."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.engines.modules import Modules, modules_of, same
from enhanced_agent_bus.engines.reply import Inflater, MalformedReplyError, members, read_decision
from enhanced_agent_bus.engines.server import ServerEngine
from enhanced_agent_bus.verdict import Answer
from tests.hostile import decided, provenance
from tests.support import write_constitution

texts = st.text(st.characters(codec="utf-8"), max_size=8)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.fuzz
@given(st.dictionaries(texts, documents, max_size=6), st.sampled_from([None, 2]), st.booleans())
def test_members_are_what_json_says_and_how_it_was_written(
    document: dict[str, Any],
    indent: int | None,
    ascii_only: bool,  # noqa: FBT001 - Hypothesis's way to call
) -> None:
    """Each value as `json` reads it, and its text as it stands in the document, byte for byte."""
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    found = members(f" {text}\n".encode())
    assert {key: value for key, (value, _) in found.items()} == document
    for key, (_, written) in found.items():
        assert json.loads(written) == document[key]
        assert written == written.strip()
        assert written in text


@pytest.mark.fuzz
@given(st.binary(max_size=60) | texts.map(str.encode) | documents.map(lambda value: json.dumps(value)[:-1].encode()))
def test_what_is_no_object_has_no_members(body: bytes) -> None:
    """Rubbish of any kind is MalformedReplyError, or an object that `json` reads in the same way."""
    try:
        found = members(body)
    except MalformedReplyError:
        return
    assert {key: value for key, (value, _) in found.items()} == json.loads(body)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        '{"a"',
        '{"a":',
        '{"a":1',
        '{"a":1,',
        '{"a":1,}',
        '{"a" 1}',
        "{1:1}",
        "{}{}",
        "[]",
        '{"a":1}x',
        "nul",
    ],
)
def test_json_that_is_cut_off_or_goes_on_is_none(text: str) -> None:
    """Every way to end too soon or too late."""
    with pytest.raises(MalformedReplyError):
        members(text.encode())


@pytest.mark.fuzz
@given(st.binary(max_size=300), st.integers(1, 40))
def test_a_body_is_decoded_whatever_its_pieces(content: bytes, size: int) -> None:
    """Plain and gzip, in any pieces."""
    for encoding, sent in (("", content), ("identity", content), ("gzip", gzip.compress(content))):
        inflater = Inflater(encoding)
        for at in range(0, len(sent), size):
            inflater.feed(sent[at : at + size])
        assert inflater.body() == content


def test_what_is_decoded_stops_at_its_limit() -> None:
    """The last byte that has room is taken, and the next is one too many."""
    for encoding, compress in (("", bytes), ("gzip", gzip.compress)):
        inflater = Inflater(encoding, bytes_max=1000)
        inflater.feed(compress(b"x" * 1000))
        assert inflater.body() == b"x" * 1000
        with pytest.raises(MalformedReplyError, match="larger than 1000 bytes"):
            Inflater(encoding, bytes_max=1000).feed(compress(b"x" * 1001))


def read(body: Any, status: int = 200, media_type: str = "application/json") -> Answer:
    """The answer in a document, for revision 1 of the bundle `eab`."""
    reply = read_decision(status, media_type, json.dumps(body).encode(), bundle="eab", revision="1", us=5)
    return reply.answer


def test_the_document_is_handed_on_as_it_was_written() -> None:
    """Numbers keep their digits and keys their order and number: who reads the decision sees what the server wrote."""
    written = b'{"allow" : true,  "remember":[{"value":1.50,"value":2E1}]}'
    body = b'{"result":%b,"provenance":%b}' % (b'{"allow" : true}', json.dumps(provenance()).encode())
    reply = read_decision(200, "application/json", body, bundle="eab", revision="1", us=5)
    assert reply.answer == Answer(None, b'{"allow" : true}', 5)
    twice = b'{"result":%b,"provenance":%b}' % (written, json.dumps(provenance()).encode())
    reply = read_decision(200, "application/json", twice, bundle="eab", revision="1", us=5)
    assert reply.answer.code == "policy_malformed"


def test_what_failed_on_a_server_is_told_as_the_worker_tells_it() -> None:
    """File and row without the bundle's name, then the code and the message; and a word where OPA gives none."""
    error = {
        "code": "eval_builtin_error",
        "message": "net.cidr_contains: operand 2",
        "location": {"file": "eab/bus/rules/net/net.rego", "row": 7, "col": 1},
    }
    failed = read({"code": "internal_error", "message": "error(s)", "errors": [error]}, 500)
    assert failed.code == "policy_error"
    assert failed.detail == "bus/rules/net/net.rego:7: eval_builtin_error: net.cidr_contains: operand 2"
    shapes: list[Any] = [None, [], {}, "x", [1], [{"location": 3}]]
    for errors in shapes:
        assert read({"code": "internal_error", "errors": errors}, 500).code == "policy_error"
    assert read({"code": "internal_error"}, 500).detail
    assert read({"code": "internal_error"}, 500, "text/html").code == "policy_unavailable"
    assert read({"code": ["internal_error"]}, 500).code == "policy_unavailable"


@pytest.mark.parametrize(
    ("media_type", "is_json"),
    [
        ("application/json", True),
        ("Application/JSON;charset=utf-8", True),
        (" application/json ; x=y", True),
        ("application/jsonp", False),
        ("text/json", False),
        ("application/json, text/html", False),
        ("", False),
    ],
)
def test_only_application_json_counts(media_type: str, *, is_json: bool) -> None:
    """With parameters or without, in any case; nothing that only looks like it."""
    assert (read(decided(allow=True), media_type=media_type).code is None) is is_json


def test_a_revision_that_a_server_made_up_is_shown_short_and_plain() -> None:
    """What a sender is told has no control characters, and not a kilobyte."""
    answer = read(decided(allow=True, revision="\x1b[31m\n" + "é" * 5000))
    assert answer.code == "policy_revision_mismatch"
    assert len(answer.detail) < 400
    assert answer.detail.isascii()
    assert answer.detail.isprintable()


# --- modules ---------------------------------------------------------------------------------------------------------


def listed(*raws: str, package: tuple[str, ...] = ("data", "bus", "x")) -> bytes:
    """The answer to `GET /v1/policies`."""
    path = [{"type": "string", "value": step} for step in package]
    return json.dumps(
        {"result": [{"id": "x", "raw": raw, "ast": {"package": {"path": path}}} for raw in raws]}
    ).encode()


def test_the_same_modules_are_the_same_whatever_they_are_called(tmp_path: Path) -> None:
    """Texts are compared, those of tests may be there, and those of other packages do not count."""
    folder = write_constitution(tmp_path / "policies", tests={"everything": "test_it if true"})
    ours = modules_of(folder)
    texts_of = {path: path.read_text() for path in folder.rglob("*.rego")}
    deciding = [text for path, text in texts_of.items() if "_test" not in path.name]
    assert (len(ours.deciding), len(ours.tests), ours.take_schemas) == (2, 1, False)
    assert same(ours, listed(*deciding))
    assert same(ours, listed(*texts_of.values()))
    assert not same(ours, listed(*deciding[1:]))
    assert not same(ours, listed(*deciding, "package bus.more"))
    assert not same(ours, listed(*(text + " " for text in deciding)))
    assert not same(ours, listed())
    assert same(Modules(frozenset(), frozenset(), take_schemas=False), listed("package x", package=("data", "x")))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"result": 1}',
        b'{"result": [1]}',
        b'{"result": [{}]}',
        b"[" * 1000,
        b'{"result":[' + b"[]," * 200_000,
    ],
)
def test_a_list_that_cannot_be_read_is_said_to_be_none(body: bytes) -> None:
    """Never an exception of another kind, and never a likeness."""
    with pytest.raises(MalformedReplyError):
        same(Modules(frozenset(), frozenset(), take_schemas=False), body)


# --- through httpx ---------------------------------------------------------------------------------------------------


async def test_questions_and_answers_as_httpx_shapes_them(tmp_path: Path) -> None:
    """The engine asks as the contract writes it, whatever carries the question; each shape gets its code."""
    router = respx.MockRouter(assert_all_called=False)
    engine = await ServerEngine.start("http://opa.test:8181", transport=httpx.MockTransport(router.async_handler))
    try:
        router.get("/v1/policies").respond(404, json={})
        router.get("/v1/data/bus/manifest").respond(json={"provenance": provenance()})
        loaded = await engine.load(write_constitution(tmp_path / "policies"))
        assert engine.weakenings == ["policy_server_trusted", "policy_server_modules"]
        asked = router.post(
            "http://opa.test:8181/v1/data/bus/decision",
            params={"provenance": "true", "strict-builtin-errors": "true"},
            headers={"content-type": "application/json", "accept": "application/json"},
            json={"input": {"n": 1}},
        )
        for response, code in (
            (httpx.Response(200, json=decided(allow=True)), None),
            (httpx.Response(200, json={}), "policy_undefined"),
            (httpx.Response(200, json=decided(allow=True, revision="0")), "policy_revision_mismatch"),
            (httpx.Response(200, html="<p>yes"), "policy_malformed"),
            (httpx.Response(500, json={"code": "internal_error"}), "policy_error"),
            (httpx.Response(418), "policy_unavailable"),
        ):
            asked.mock(return_value=response)
            assert (await engine.decide(loaded.digest, "acme", b'{"n": 1}', 5)).code == code
        for error in (httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError):
            asked.mock(side_effect=error)
            assert (await engine.decide(loaded.digest, "acme", b'{"n": 1}', 5)).code == "policy_unavailable"
    finally:
        await engine.close()
