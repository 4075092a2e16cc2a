"""What every policy engine promises, and what each activation check of contract §3 refuses.

An engine joins by one entry in `ENGINES`; the checks are the worker's alone, since every activation goes through it.
"""

import asyncio
import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.errors import ConstitutionRejected, EngineMissing
from enhanced_agent_bus.ports import Checked, PolicyEngine
from tests.opa import served_engine
from tests.support import constitution_digest, write_constitution

SECONDS = 5.0

INPUT: dict[str, Any] = {
    "message": {
        "id": "m-1",
        "type": "command",
        "priority": 1,
        "payload": {"amount": 7},
        "headers": {},
        "conversation": "m-1",
        "hops": 0,
        "attempt": 1,
        "size": 12,
        "age_seconds": 0,
    },
    "sender": {"id": "desk", "tenant": "acme", "roles": ["planner"], "capabilities": []},
    "recipient": {"id": "booker", "tenant": "acme", "roles": [], "capabilities": []},
    "constitution": {"digest": "0" * 64, "agreed": "0" * 64, "revision": 1},
    "clock": {"date": "2026-11-21", "weekday": 6, "hour": 11, "minute": 39},
    "facts": {"sender": {}, "recipient": {}, "conversation": {}, "tenant": {}},
    "approvals": [],
}


def document(**payload: Any) -> bytes:
    """An input document whose message has this payload."""
    return json.dumps({**INPUT, "message": {**INPUT["message"], "payload": payload}}).encode()


@asynccontextmanager
async def embedded(_opa: Path) -> AsyncIterator[PolicyEngine]:
    """The worker that comes with the package."""
    made = await WorkerEngine.start()
    yield made
    await made.close()


ENGINES: Mapping[str, Callable[[Path], AbstractAsyncContextManager[PolicyEngine]]] = {
    "embedded": embedded,
    "server": served_engine,
}


@pytest_asyncio.fixture(params=list(ENGINES))
async def engine(request: pytest.FixtureRequest, opa_binary: Path) -> AsyncIterator[PolicyEngine]:
    """One engine of each kind, ready to load."""
    async with ENGINES[request.param](opa_binary) as made:
        yield made


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[WorkerEngine]:
    """The embedded engine, with one worker."""
    made = await WorkerEngine.start(workers=1)
    yield made
    await made.close()


Make = Callable[..., Path]


# --- deciding


async def test_only_what_a_rule_admits_is_allowed(engine: PolicyEngine, constitution_dir: Make) -> None:
    """The same constitution says yes to one message and no to another, with the rule's own reason."""
    rule = 'code := "too_dear"\n\nadmit if input.message.payload.amount <= 10'
    loaded = await engine.load(constitution_dir({"cheap": rule}))
    yes = await engine.decide(loaded.digest, "acme", document(amount=10), SECONDS)
    no = await engine.decide(loaded.digest, "acme", document(amount=11), SECONDS)
    assert (yes.code, json.loads(yes.body)["allow"]) == (None, True)
    assert (no.code, json.loads(no.body)["allow"]) == (None, False)
    assert [reason["code"] for reason in json.loads(no.body)["reasons"]] == ["too_dear"]


async def test_a_missing_field_ends_in_no(engine: PolicyEngine, constitution_dir: Make) -> None:
    """What a rule asks about and is not there does not admit."""
    loaded = await engine.load(constitution_dir({"cheap": "admit if input.message.payload.amount <= 10"}))
    answer = await engine.decide(loaded.digest, "acme", document(), SECONDS)
    assert json.loads(answer.body)["allow"] is False


async def test_numbers_reach_the_policy_as_sent(engine: PolicyEngine, constitution_dir: Make) -> None:
    """A large integer and a float with an integral value keep their digits, there and back."""
    main = 'package bus\n\ndecision := {"allow": true, "seen": input.message.payload}\n'
    loaded = await engine.load(constitution_dir(files={"bus/main.rego": main}))
    text = b'{"a":9007199254740991,"b":5.0,"c":1e-7}'
    answer = await engine.decide(
        loaded.digest, "acme", json.dumps(INPUT).encode().replace(b'{"amount": 7}', text), SECONDS
    )
    assert b'"seen":{"a":9007199254740991,"b":5.0,"c":1e-7}' in answer.body


async def test_nothing_decided_is_undefined(engine: PolicyEngine, constitution_dir: Make) -> None:
    """A decision without a value is no decision."""
    main = 'package bus\n\ndecision := {"allow": true} if input.message.payload.ok\n'
    loaded = await engine.load(constitution_dir(files={"bus/main.rego": main}))
    assert (await engine.decide(loaded.digest, "acme", document(), SECONDS)).code == "policy_undefined"
    assert (await engine.decide(loaded.digest, "acme", document(ok=True), SECONDS)).code is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            'refused contains "net" if net.cidr_contains("10.0.0.0/8", input.message.payload.ip)\n\n'
            "admit if count(refused) == 0",
            id="malformed address in a deny rule",
        ),
        pytest.param('admit if not regex.match(input.message.payload.ip, "x")', id="bad regular expression"),
        pytest.param("admit if not 1 / count(input.message.payload.list) > 0", id="division by zero"),
        pytest.param("admit if to_number(input.message.payload.ip) > 0", id="no number"),
        pytest.param(
            "admit if count(x) > 0\n\nx := 1 if input.message.payload.ip\n\nx := [1] if input.message.id", id="conflict"
        ),
    ],
)
async def test_a_builtin_that_fails_is_an_error_and_never_an_allow(
    engine: PolicyEngine, constitution_dir: Make, body: str
) -> None:
    """Plain OPA drops the rule that fails, so that a broken deny allows; here it refuses, and says where that was."""
    loaded = await engine.load(constitution_dir({"careful": body}))
    answer = await engine.decide(loaded.digest, "acme", document(ip="10.0.0.256[", list=[]), SECONDS)
    assert (answer.code, answer.body) == ("policy_error", b"")
    assert answer.detail.startswith("bus/rules/careful/careful.rego:")


async def test_a_schema_that_is_named_by_a_message_is_not_fetched(
    worker: WorkerEngine, constitution_dir: Make, tmp_path: Path
) -> None:
    """A `$ref` to a file of the machine is an error in the worker; a server follows it, hence a weakening there."""
    (tmp_path / "schema.json").write_text("{}")
    body = 'admit if json.match_schema({}, {"$ref": input.message.payload.ref})[0]'
    loaded = await worker.load(constitution_dir({"careful": body}))
    question = document(ref=(tmp_path / "schema.json").as_uri())
    assert (await worker.decide(loaded.digest, "acme", question, SECONDS)).code == "policy_error"


LOOPS = "admit if count([1 | some a in numbers.range(1, 4000); some b in numbers.range(1, 4000); a + b == -1]) == 0"


async def test_a_policy_that_runs_too_long_is_a_timeout(engine: PolicyEngine, constitution_dir: Make) -> None:
    """The answer comes by the deadline, not when the policy has finished."""
    loaded = await engine.load(constitution_dir({"slow": LOOPS}))
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await engine.decide(loaded.digest, "acme", document(), 0.1)
    assert answer.code == "policy_timeout"
    assert loop.time() - started < 0.6


async def test_a_digest_that_was_never_loaded_decides_nothing(engine: PolicyEngine) -> None:
    """An unknown constitution is no answer."""
    assert (await engine.decide("0" * 64, "acme", document(), SECONDS)).code == "policy_unavailable"


async def test_a_dropped_constitution_decides_nothing(engine: PolicyEngine, constitution_dir: Make) -> None:
    """After `drop` its digest is unknown, and others go on."""
    first = await engine.load(constitution_dir(revision="1"))
    second = await engine.load(constitution_dir(revision="2"))
    await engine.drop(first.digest)
    assert (await engine.decide(first.digest, "acme", document(), SECONDS)).code == "policy_unavailable"
    assert (await engine.decide(second.digest, "acme", document(), SECONDS)).code is None


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
async def test_an_input_that_is_not_json_decides_nothing(
    engine: PolicyEngine, constitution_dir: Make, text: bytes
) -> None:
    """Garbage in, error out; the next question is fine."""
    loaded = await engine.load(constitution_dir())
    assert (await engine.decide(loaded.digest, "acme", text, SECONDS)).code == "policy_error"
    assert (await engine.decide(loaded.digest, "acme", document(), SECONDS)).code is None


async def test_an_input_with_a_key_twice_decides_nothing(worker: WorkerEngine, constitution_dir: Make) -> None:
    """The worker is as strict as admission, which makes no such input; a server would take the last one."""
    loaded = await worker.load(constitution_dir())
    assert (await worker.decide(loaded.digest, "acme", b'{"a":1,"a":2}', SECONDS)).code == "policy_error"


async def test_a_question_larger_than_a_frame_is_refused(engine: PolicyEngine, constitution_dir: Make) -> None:
    """17 MB are refused, and the engine goes on."""
    loaded = await engine.load(constitution_dir())
    assert (await engine.decide(loaded.digest, "acme", document(x="x" * (17 << 20)), SECONDS)).code == "policy_error"
    assert (await engine.decide(loaded.digest, "acme", document(), SECONDS)).code is None


async def test_many_questions_at_once_get_their_own_answers(engine: PolicyEngine, constitution_dir: Make) -> None:
    """500 questions of 20 tenants at once: each answer is the one to its question."""
    main = 'package bus\n\ndecision := {"allow": true, "n": input.message.payload.n}\n'
    loaded = await engine.load(constitution_dir(files={"bus/main.rego": main}))
    answers = await asyncio.gather(
        *(engine.decide(loaded.digest, f"tenant-{n % 20}", document(n=n), 20 * SECONDS) for n in range(500))
    )
    assert [json.loads(answer.body)["n"] for answer in answers] == list(range(500))


async def test_a_cancelled_question_leaves_the_others_alone(engine: PolicyEngine, constitution_dir: Make) -> None:
    """Who gives up gets CancelledError; the next question is answered."""
    loaded = await engine.load(constitution_dir({"slow": LOOPS}))
    task = asyncio.ensure_future(engine.decide(loaded.digest, "acme", document(), 0.2))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    other = await engine.load(constitution_dir())
    assert (await engine.decide(other.digest, "acme", document(), SECONDS)).code is None


async def test_what_the_label_says(engine: PolicyEngine, constitution_dir: Make) -> None:
    """Each decision can name what decided: engine, OPA's version, the capabilities' digest."""
    await engine.load(constitution_dir())
    assert engine.label["name"] in ENGINES
    assert engine.label["opa"] == "1.22.2"
    assert len(engine.label["capabilities"]) == 64


# --- loading


async def test_a_loaded_constitution_is_described(worker: WorkerEngine, constitution_dir: Make) -> None:
    """Its manifest, rules, and what the policy reads of its input."""
    body = 'admit if {\n\tinput.message.type in {"command"}\n\tinput.facts.sender.sent < 3\n}'
    path = constitution_dir({"few": body}, revision="7", name="small", not_after="2030-01-01T00:00:00Z")
    loaded = await worker.load(path)
    assert (loaded.digest, loaded.revision, loaded.name) == (constitution_digest(path), 7, "small")
    assert (loaded.not_after, loaded.signed, loaded.rules) == ("2030-01-01T00:00:00Z", False, ("few",))
    assert {("message", "type"), ("facts", "sender", "sent")} <= set(loaded.read_paths)
    assert (loaded.cacheable, loaded.facts_read, loaded.source) == (True, True, "folder")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('admit if object.get(input, ["message", "id"], "") != ""', ()),
        ('admit if {\n\tx := input.sender\n\tx.tenant == "acme"\n}', ("sender",)),
        ('admit if {\n\tsome key in ["tenant"]\n\tinput.sender[key] == "acme"\n}', ("sender",)),
        ("admit if m.payload.amount > 1", ("message", "payload", "amount")),
        ("admit if f(input.message.payload)\n\nf(p) if p.amount > 1", ("message", "payload")),
        ('admit if input.message.payload.list[0] == "a"', ("message", "payload", "list")),
    ],
)
async def test_what_a_policy_reads_is_never_too_little(
    worker: WorkerEngine, constitution_dir: Make, body: str, path: tuple[str, ...]
) -> None:
    """A path is cut at its first step that is not written out, and a bare input is the whole of it."""
    rule = "package bus.rules.reads\n\nimport input.message as m\n\n" if "m.payload" in body else ""
    main = 'package bus\n\ndecision := {"allow": data.bus.rules.reads.admit}\n'
    rules = {"reads": f"{rule}default admit := false\n\n{body}" if rule else body}
    loaded = await worker.load(constitution_dir(rules, files={"bus/main.rego": main}))
    assert loaded.read_paths == (path,)


async def test_with_ends_caching(worker: WorkerEngine, constitution_dir: Make) -> None:
    """A policy that replaces its own input cannot be cached by what it reads."""
    body = 'admit if inner with input.message.id as "x"\n\ninner if input.message.id == "x"'
    assert (await worker.load(constitution_dir({"mocks": body}))).cacheable is False


def _shell_digest(path: Path) -> str:
    recipe = "find . -type f ! -name .signatures.json | sed 's|^\\./||' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    return subprocess.run(["sh", "-c", recipe], cwd=path, check=True, capture_output=True, text=True).stdout.split()[0]


def _stock_opa(opa: Path, bundle: Path, question: Path) -> str:
    command = [str(opa), "eval", "-b", str(bundle), "-i", str(question), "--format", "raw", "data.bus.decision.allow"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_a_folder_and_its_bundle_are_the_same(
    worker: WorkerEngine, constitution_dir: Make, tmp_path: Path, opa_binary: Path
) -> None:
    """One hash for folder, bundle and the shell line; packing a bundle again gives the same bytes; OPA loads it."""
    path = constitution_dir(files={"bus/schema/input.json": '{"type": "object"}', "README.md": "words"})
    first, second = tmp_path / "first.tar.gz", tmp_path / "second.tar.gz"
    digest = await worker.pack(path, first)
    assert digest == await worker.pack(first, second) == await worker.hash(path) == await worker.hash(first)
    assert digest == constitution_digest(path) == _shell_digest(path)
    assert first.read_bytes() == second.read_bytes()
    assert (await worker.load(first)).digest == digest
    (tmp_path / "input.json").write_bytes(document())
    assert _stock_opa(opa_binary, first, tmp_path / "input.json") == "true"


async def test_a_signature_file_is_not_hashed_and_is_reported(worker: WorkerEngine, constitution_dir: Make) -> None:
    """`.signatures.json` stands beside the bytes that are hashed."""
    plain = await worker.load(constitution_dir())
    signed = await worker.load(constitution_dir(files={".signatures.json": '{"signatures": []}'}))
    assert plain.digest == signed.digest
    assert signed.signed


async def test_a_change_of_the_folder_after_loading_changes_nothing(
    worker: WorkerEngine, constitution_dir: Make
) -> None:
    """What was loaded decides, whatever becomes of the folder."""
    path = constitution_dir()
    loaded = await worker.load(path)
    write_constitution(path, {"everything": "admit if false"})
    answer = await worker.decide(loaded.digest, "acme", document(), SECONDS)
    assert json.loads(answer.body)["allow"] is True


# --- what is refused


def _tar(entries: list[tarfile.TarInfo | tuple[str, bytes]], tail: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return gzip.compress(out.getvalue() + tail)


def _link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


BUNDLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no tar.gz": (lambda: b"hello", "not a tar.gz"),
    "cut short": (lambda: _tar([("bus/main.rego", b"package bus\n" * 9000)])[:200], "cannot be read"),
    "path upwards": (lambda: _tar([("../main.rego", b"package bus\n")]), "leaves the folder"),
    "absolute path": (lambda: _tar([("/etc/main.rego", b"package bus\n")]), "leaves the folder"),
    "path inside out": (lambda: _tar([("bus/../../main.rego", b"package bus\n")]), "leaves the folder"),
    "odd characters": (lambda: _tar([("bus/m\u0430in.rego", b"package bus\n")]), "characters"),
    "a link": (lambda: _tar([_link("bus/main.rego", "/etc/passwd")]), "a link"),
    "one name twice": (lambda: _tar([("a.md", b"1"), ("a.md", b"2")]), "twice"),
    "one name twice, spelled otherwise": (lambda: _tar([("a.md", b"1"), ("./a.md", b"2")]), "twice"),
    "a file that is a folder too": (lambda: _tar([("a.md", b"1"), ("a.md/b.md", b"2")]), "a file and a folder"),
    "more behind the end": (lambda: _tar([("a.md", b"1")], tail=_tar([("b.md", b"2")])), "follows the end"),
    "too many files": (lambda: _tar([(f"n/{i}.md", b"") for i in range(10_001)]), "more than 10000 files"),
    "a zip bomb": (lambda: _tar([("bomb.md", bytes(70 << 20))]), "more than 64 MiB"),
    "a bomb of folders": (lambda: gzip.compress(_folders(30_000)), "more than 10000 files"),
    "nothing": (lambda: _tar([]), "no file"),
}


def _folders(count: int) -> bytes:
    info = tarfile.TarInfo("d")
    info.type = tarfile.DIRTYPE
    return info.tobuf() * count


@pytest.mark.parametrize("name", list(BUNDLES))
async def test_a_bundle_that_is_not_what_it_seems_is_rejected(worker: WorkerEngine, tmp_path: Path, name: str) -> None:
    """Links, ways out, two files of one name, bombs: refused by load, check, pack and hash; memory stays bounded."""
    make, message = BUNDLES[name]
    bundle = tmp_path / "bundle.tar.gz"
    bundle.write_bytes(make())
    with pytest.raises(ConstitutionRejected, match=message) as raised:
        await worker.load(bundle)
    assert raised.value.reason == "invalid"
    checked = await worker.check(bundle)
    assert not checked.ok
    assert checked.digest == ""
    assert all(problem.hint for problem in checked.problems)
    with pytest.raises(ConstitutionRejected):
        await worker.hash(bundle)
    with pytest.raises(ConstitutionRejected):
        await worker.pack(bundle, tmp_path / "out.tar.gz")
    assert not (tmp_path / "out.tar.gz").exists()


async def test_a_link_in_a_folder_is_rejected(worker: WorkerEngine, constitution_dir: Make) -> None:
    """What it points to could change, or lie outside."""
    path = constitution_dir()
    (path / "bus" / "more.rego").symlink_to("main.rego")
    checked = await worker.check(path)
    assert [(problem.file, problem.reason) for problem in checked.problems] == [("bus/more.rego", "invalid")]


MANIFEST: dict[str, Any] = {"revision": "1", "roots": ["bus"], "rego_version": 1}


def _manifest(**changes: Any) -> dict[str, str]:
    changed = {key: value for key, value in (MANIFEST | changes).items() if value is not ...}
    return {".manifest": json.dumps(changed)}


def _main(extra: str) -> dict[str, str]:
    return {"bus/extra.rego": f"package bus.extra\n\n{extra}\n"}


# What is wrong, then the file that is named, and words of the message and of the hint.
INVALID: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no manifest": ({"files": {".manifest": ""}}, ".manifest", "ends too early", "JSON"),
    "revision a number": ({"files": _manifest(revision=7)}, ".manifest", "revision is 7", "as a string"),
    "revision missing": ({"files": _manifest(revision=...)}, ".manifest", "revision is missing", "decimal"),
    "revision negative": ({"files": _manifest(revision="-1")}, ".manifest", "revision", "decimal"),
    "revision 2^63": ({"files": _manifest(revision=str(2**63))}, ".manifest", "revision", "9223372036854775807"),
    "revision with zeros": ({"files": _manifest(revision="007")}, ".manifest", "revision", "decimal"),
    "other roots": ({"files": _manifest(roots=["bus", "more"])}, ".manifest", "roots", '["bus"]'),
    "rego_version 0": ({"files": _manifest(rego_version=0)}, ".manifest", "rego_version is 0", '"rego_version": 1'),
    "no rego_version": ({"files": _manifest(rego_version=...)}, ".manifest", "rego_version", '"rego_version": 1'),
    "file_rego_versions": ({"files": _manifest(file_rego_versions={})}, ".manifest", "file_rego_versions", "revision"),
    "key in another case": ({"files": _manifest(Revision="9")}, ".manifest", "Revision", "revision"),
    "not_after no time": (
        {"files": _manifest(metadata={"eab": {"not_after": "soon"}})},
        ".manifest",
        "not_after",
        "UTC",
    ),
    "manifest key twice": (
        {"files": {".manifest": '{"revision": "1",\n"revision": "2"}'}},
        ".manifest",
        'key "revision" is there twice',
        "once",
    ),
    "data key twice": (
        {"data": {}, "files": {"bus/rules/everything/data.json": '{"a": {"b": 1, "\\u0062": 2}}'}},
        "bus/rules/everything/data.json",
        'key "b" is there twice',
        "once",
    ),
    "data no JSON": (
        {"files": {"bus/rules/everything/data.json": '{"a":\n x}'}},
        "bus/rules/everything/data.json",
        "not JSON",
        "JSON",
    ),
    "data given twice": (
        {"files": {"bus/data.json": '{"manifest": {"rules": ["x"]}}'}},
        "bus/manifest/data.json",
        "another data.json",
        "one file",
    ),
    "data outside of bus": ({"files": {"data.json": '{"other": 1}'}}, "data.json", "outside", "bus/"),
    "a file of another kind": ({"files": {"bus/data.yaml": "a: 1"}}, "bus/data.yaml", "kind", "data.json"),
    "a program": ({"files": {"policy.wasm": b"\0asm"}}, "policy.wasm", "kind", "remove"),
    "a hidden file": ({"files": {"bus/.hidden.rego": "package bus.h"}}, "bus/.hidden.rego", "hidden", "remove"),
    "signatures elsewhere": ({"files": {"bus/.signatures.json": "{}"}}, "bus/.signatures.json", "hidden", "remove"),
    "an empty list": ({"listed": []}, "bus/manifest/data.json", "empty", '{"rules": ['),
    "no list": (
        {"files": {"bus/manifest/data.json": "{}"}},
        "bus/manifest/data.json",
        "no list",
        '{"rules": [',
    ),
    "a list of other things": (
        {"files": {"bus/manifest/data.json": '{"rules": [1]}'}},
        "bus/manifest/data.json",
        "name is 1",
        '{"rules": [',
    ),
    "listed, no folder": (
        {"listed": ["everything", "ghost"]},
        "bus/manifest/data.json",
        '"ghost" has no folder',
        "bus/rules/ghost/ghost.rego",
    ),
    "a folder, not listed": (
        {"rules": {"one": "admit if true", "two": "admit if true"}, "listed": ["one"]},
        "bus/rules/two/two.rego",
        "not listed",
        'add "two"',
    ),
    "no default": (
        {"rules": {"one": "package bus.rules.one\n\nadmit if input.message.id"}},
        "bus/rules/one/one.rego",
        "no `default admit := false`",
        "default admit := false",
    ),
    "admits by default": (
        {"rules": {"one": "package bus.rules.one\n\ndefault admit := true\n\nadmit if input.message.id"}},
        "bus/rules/one/one.rego",
        "admits by default",
        "default admit := false",
    ),
    "admit from data": (
        {"data": {"everything": {"admit": True}}},
        "bus/rules/everything/data.json",
        "given by data",
        "in Rego",
    ),
    "admit from data only": (
        {"rules": {"one": "package bus.rules.one\n\nx := 1"}, "data": {"one": {"admit": True}}},
        "bus/rules/one/data.json",
        "given by data",
        "in Rego",
    ),
    "a test in the rule's own package": (
        {"tests": {"everything": "package bus.rules.everything\n\nadmit if true"}},
        "bus/rules/everything/everything_test.rego",
        "could turn a no into a yes",
        "package bus.rules.everything_test",
    ),
    "a test that fails": (
        {"tests": {"everything": "test_no if false"}},
        "bus/rules/everything/everything_test.rego",
        "test_no fails",
        "mend",
    ),
    "a test whose built-in fails": (
        {"tests": {"everything": 'test_no if not to_number("x") == 1'}},
        "bus/rules/everything/everything_test.rego",
        "test_no fails",
        "mend",
    ),
    "syntax": ({"files": _main("x := := 1")}, "bus/extra.rego", "unexpected", "syntax"),
    "an empty Rego file": ({"files": {"bus/extra.rego": ""}}, "bus/extra.rego", "empty", "package"),
    "Rego v0": ({"files": _main("x { true }")}, "bus/extra.rego", "`if` keyword", "Rego v1"),
    "a package outside of bus": ({"files": {"x.rego": "package other"}}, "x.rego", "outside", "package bus"),
    "strict mode": ({"files": _main("f if {\n\tx := 1\n\ty := 2\n\ty == 2\n}")}, "bus/extra.rego", "unused", "_"),
    "an unused import": (
        {"files": {"bus/extra.rego": "package bus.extra\n\nimport data.bus.manifest"}},
        "bus/extra.rego",
        "unused",
        "remove",
    ),
    "unsafe": ({"files": _main("x if y > 1")}, "bus/extra.rego", "unsafe", "some x in"),
    "recursion": ({"files": _main("x if y\n\ny if x")}, "bus/extra.rego", "recursive", "itself"),
    "a typo in an input field": (
        {"files": _main("x if input.mesage.id")},
        "bus/extra.rego",
        "input.mesage",
        "schema",
    ),
    "a type that cannot be": (
        {"files": _main('x if input.message.priority == "high"')},
        "bus/extra.rego",
        "match error",
        "same type",
    ),
    "a typo in data": (
        {"files": _main("x if data.bus.manifest.rulez")},
        "bus/extra.rego",
        "there is no data.bus.manifest.rulez",
        "object.get",
    ),
    "a typo in an imported rule": (
        {"files": {"bus/extra.rego": "package bus.extra\n\nimport data.bus.rules.evrything\n\nx if evrything.admit"}},
        "bus/extra.rego",
        "there is no data.bus.rules.evrything.admit",
        "spelling",
    ),
    "data of elsewhere": (
        {"files": _main("x if data.users[0]")},
        "bus/extra.rego",
        "there is no data.users",
        "spelling",
    ),
    "a helper that only tests have": (
        {
            "tests": {"everything": "helper := 1"},
            "files": _main("x := data.bus.rules.everything_test.helper"),
        },
        "bus/extra.rego",
        "there is no data.bus.rules.everything_test",
        "spelling",
    ),
    "an unknown built-in": ({"files": _main("x := nonsense(1)")}, "bus/extra.rego", "undefined function", "spelling"),
    "the clock": ({"files": _main("x := time.now_ns()")}, "bus/extra.rego", "time.now_ns", "input.clock"),
    "the network": (
        {"files": _main('x := http.send({"url": "http://127.0.0.1/", "method": "get"})')},
        "bus/extra.rego",
        "http.send",
        "data.json",
    ),
    "chance": ({"files": _main('x := rand.intn("a", 2)')}, "bus/extra.rego", "rand.intn", "data.json"),
    "a token against the clock": (
        {"files": _main('x := io.jwt.decode_verify("", {})')},
        "bus/extra.rego",
        "io.jwt.decode_verify",
        "io.jwt.verify_",
    ),
    "a shift that never ends": ({"files": _main("x := bits.lsh(1, 2)")}, "bus/extra.rego", "bits.lsh", "memory"),
    "a template": (
        {"files": _main('x := strings.render_template("", {})')},
        "bus/extra.rego",
        "strings.render_template",
        "sprintf",
    ),
    "future not": (
        {"files": {"bus/extra.rego": "package bus.extra\n\nimport future.keywords.not"}},
        "bus/extra.rego",
        "keyword",
        "leave the import out",
    ),
    "future or": (
        {"files": {"bus/extra.rego": "package bus.extra\n\nimport future.keywords.or"}},
        "bus/extra.rego",
        "keyword",
        "leave the import out",
    ),
    "every future keyword": (
        {"files": {"bus/extra.rego": "package bus.extra\n\nimport future.keywords"}},
        "bus/extra.rego",
        "future",
        "leave the import out",
    ),
    "rego.v2": (
        {"files": {"bus/extra.rego": "package bus.extra\n\nimport rego.v2"}},
        "bus/extra.rego",
        "rego.v2",
        "rego.v1",
    ),
    "no entry point": (
        {"files": {"bus/main.rego": "package bus\n\nallow := true"}},
        "bus/main.rego",
        "decision",
        "decision :=",
    ),
    "a function as entry point": (
        {"files": {"bus/main.rego": "package bus\n\ndecision(x) := x"}},
        "bus/main.rego",
        "function",
        "decision :=",
    ),
    "the decision from data": (
        {"files": {"bus/main.rego": "package bus\n\nallow := true", "bus/data.json": '{"decision": {"allow": true}}'}},
        "bus/main.rego",
        "decision",
        "decision :=",
    ),
    "a rule and data of one name": (
        {"files": {"bus/extra.rego": "package bus.manifest\n\nrules := []"}},
        "bus/extra.rego",
        "conflict",
        "rename",
    ),
    "a schema from the network": (
        {"files": {"bus/schema/input.json": '{"properties": {"message": {"$ref": "https://example.org/s.json"}}}'}},
        "bus/schema/input.json",
        "nothing is fetched",
        "#/definitions/",
    ),
    "a schema from a file": (
        {"files": {"bus/schema/more.json": '{"$ref": "file:///etc/passwd"}'}},
        "bus/schema/more.json",
        "nothing is fetched",
        "#/definitions/",
    ),
    "a schema from the network, in an annotation": (
        {
            "files": _main(
                '# METADATA\n# schemas:\n#   - input: {"$ref": "http://example.org/s.json"}\nx if input.message.id'
            )
        },
        "bus/extra.rego",
        "remote reference",
        "nothing is fetched",
    ),
    "a schema that is not there": (
        {"files": _main("# METADATA\n# schemas:\n#   - input: schema.ghost\nx if input.message.id")},
        "bus/extra.rego",
        "undefined schema",
        "bus/schema/",
    ),
    "a schema of a field that is never sent": (
        {"files": {"bus/schema/input.json": '{"properties": {"mesage": {}}}'}},
        "bus/schema/input.json",
        'no field "mesage"',
        "documentation",
    ),
    "a schema that OPA would read as data": (
        {"files": {"bus/schema/data.json": "{}"}},
        "bus/schema/data.json",
        "as data",
        "another name",
    ),
    "a typo in the payload that a schema describes": (
        {
            "files": {
                "bus/schema/input.json": json.dumps(
                    {"properties": {"message": {"properties": {"payload": {"$ref": "#/definitions/payload"}}}}}
                    | {"definitions": {"payload": {"type": "object", "properties": {"amount": {"type": "number"}}}}}
                ),
                **_main("x if input.message.payload.amont > 1"),
            }
        },
        "bus/extra.rego",
        "input.message.payload.amont",
        "schema",
    ),
}


@pytest.mark.parametrize("name", list(INVALID))
async def test_what_is_wrong_with_a_constitution_is_named(
    worker: WorkerEngine, constitution_dir: Make, name: str
) -> None:
    """Every reason of `invalid`: the file, the line, the line's text, and what to write instead."""
    options, file, message, hint = INVALID[name]
    path = constitution_dir(**options)
    checked = await worker.check(path)
    found = [problem for problem in checked.problems if problem.file == file and message in problem.message]
    assert found, checked.problems
    assert not checked.ok
    assert found[0].reason == "invalid"
    assert hint in found[0].hint
    if found[0].row:
        lines = (path / file).read_text().split("\n")
        assert found[0].text == lines[found[0].row - 1]
    if not checked.tests["failures"]:  # tests are the business of check alone
        with pytest.raises(ConstitutionRejected) as raised:
            await worker.load(path)
        assert raised.value.details


async def test_a_good_constitution_passes(worker: WorkerEngine, constitution_dir: Make) -> None:
    """A schema that narrows, an annotation, tests that mock and pass: nothing is wrong with them."""
    schema = {"properties": {"message": {"properties": {"payload": {"properties": {"amount": {"type": "number"}}}}}}}
    path = constitution_dir(
        {"cheap": "admit if input.message.payload.amount < data.bus.rules.cheap.limit"},
        data={"cheap": {"limit": 5}},
        tests={
            "cheap": "import data.bus.rules.cheap\n\n"
            "test_yes if cheap.admit with input.message.payload.amount as 1\n\n"
            "test_no if not cheap.admit with input.message.payload.amount as 6"
        },
        files={
            "bus/schema/input.json": json.dumps(schema),
            "bus/schema/payment.json": '{"type": "object", "properties": {"amount": {"type": "number"}}}',
            **_main(
                "# METADATA\n# schemas:\n#   - input.message.payload: schema.payment\n"
                "x if input.message.payload.amount > 1"
            ),
        },
    )
    checked = await worker.check(path)
    assert checked.problems == ()
    assert (checked.ok, checked.tests["passed"], checked.tests["failed"]) == (True, 2, 0)
    assert checked.digest == constitution_digest(path)


async def test_tests_are_run_and_counted(worker: WorkerEngine, constitution_dir: Make) -> None:
    """Each test by name with its place, and which lines of the policy none of them reached."""
    path = constitution_dir(
        {"cheap": "admit if input.message.payload.amount < 5\n\nadmit if input.message.payload.free"},
        tests={"cheap": "test_yes if data.bus.rules.cheap.admit with input.message.payload.amount as 1"},
    )
    report = await worker.test(path, coverage=True)
    assert [(test["package"], test["name"], test["passed"]) for test in report["tests"]] == [
        ("bus.rules.cheap_test", "test_yes", True)
    ]
    rows = {file["file"]: file["uncovered_rows"] for file in report["coverage"]}
    assert 7 in rows["bus/rules/cheap/cheap.rego"]
    assert "bus/rules/cheap/cheap_test.rego" not in rows


async def test_an_explanation_names_the_expression_that_failed(worker: WorkerEngine, constitution_dir: Make) -> None:
    """Each rule's answer; for a no the first expression that was not true, with what it saw; by path or digest."""
    body = "limit := 5\n\nadmit if {\n\tinput.message.id\n\tinput.message.payload.amount < limit\n}"
    path = constitution_dir({"cheap": body, "any": "admit if input.message.id"})
    loaded = await worker.load(path)
    for source in (path, loaded.digest):
        report = await worker.explain(source, document(amount=9))
        rules = {rule["name"]: rule for rule in report["rules"]}
        assert report["decision"]["allow"] is False
        assert (rules["any"]["admit"], rules["any"]["failed"]) == (True, None)
        failed = rules["cheap"]["failed"]
        assert (failed["file"], failed["row"]) == ("bus/rules/cheap/cheap.rego", 9)
        assert failed["text"] == "input.message.payload.amount < limit"
        assert failed["values"] == {"input.message.payload.amount": 9, "data.bus.rules.cheap.limit": 5}


async def test_formatting(worker: WorkerEngine) -> None:
    """As `opa fmt`, and an error for what is no Rego."""
    assert await worker.format("package   bus\nx:=1") == "package bus\n\nx := 1\n"
    with pytest.raises(ConstitutionRejected):
        await worker.format("package")


async def test_a_constitution_that_is_not_there(worker: WorkerEngine, tmp_path: Path) -> None:
    """One sentence, not a traceback of the worker."""
    with pytest.raises(ConstitutionRejected, match="there is no constitution at"):
        await worker.load(tmp_path / "nowhere")


async def test_check_describes_as_far_as_it_could_read(worker: WorkerEngine, constitution_dir: Make) -> None:
    """A report on a broken constitution still names it."""
    checked: Checked = await worker.check(constitution_dir(revision="12", files=_main("x := := 1")))
    assert (checked.revision, checked.name, checked.rules) == (12, "small", ("everything",))
    assert len(checked.digest) == 64


async def test_a_missing_worker_says_what_to_do(tmp_path: Path) -> None:
    """No binary, or one that does not run: an error that names it and the remedy, never a silent replacement."""
    with pytest.raises(EngineMissing, match=r"there is no policy worker at .*make setup"):
        await WorkerEngine.start(tmp_path / "nothing")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no OPA today >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(EngineMissing, match=r"does not start.*no OPA today"):
        await WorkerEngine.start(broken)
