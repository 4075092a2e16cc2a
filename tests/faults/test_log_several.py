"""Large logs are verified with other processes that read for the verifier: the verdict is the one that it finds alone.

Every test asks both, `verify.verify` and `several.verify`, and their whole reports must be equal.
"""

from __future__ import annotations

import asyncio
import json
import marshal
import os
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enhanced_agent_bus.audit import homes, reader, several
from enhanced_agent_bus.audit import verify as alone
from enhanced_agent_bus.audit.verify import Report, read_key, read_note
from enhanced_agent_bus.ledger import merkle
from enhanced_agent_bus.ledger.checkpoint import Checkpoint, Signer
from tests import entries
from tests.developer import Inbox, small_bus
from tests.support import as_killed

BUS, NODE = "bus-1", "NODE-%s.1"  # a name that a careless pattern would stumble over
SIGNER = Signer(f"{BUS}/{NODE}", Ed25519PrivateKey.generate())
KEY = read_key(SIGNER.verifier.vkey)
PAGE = reader.PAGE
SIZE = 2 * PAGE + 350
#: In a page, at its borders, and in the last one, which is not full.
PLACES = (PAGE // 2, PAGE - 1, PAGE, SIZE - 25)

Fields = dict[str, Any]
Record = tuple[str, Fields]


def decision(number: int) -> Record:
    """Message `number` is allowed; four senders take turns."""
    return "decision", {
        "message_id": f"m-{number}",
        "sender_n": number // 4,
        "digest": "d" * 64,
        "conversation": "c-1",
        "cause": None,
        "sender": f"agent-{number % 4}",
        "tenant": "acme",
        "recipient": "booker",
        "recipient_tenant": "acme",
        "topic": None,
        "type": "event",
        "priority": 1,
        "hops": 0,
        "attempt": 1,
        "created_us": 1,
        "expires_us": 2,
        "verdict": "allow",
        "code": None,
        "reasons": [],
        "decision_id": f"m-{number}#a1",
        "engine": {"name": "embedded"},
        "input": {"message": {"id": f"m-{number}"}},
    }


def outcome(number: int) -> Record:
    """Message `number` has been delivered."""
    return "outcome", {"message_id": f"m-{number}", "decision_id": f"m-{number}#a1", "state": "delivered"}


def plan() -> list[Record]:
    """A log of several pages: checkpoints, other records, and outcomes soon after their decisions."""
    records: list[Record] = []
    decided = ended = 0
    while len(records) < SIZE - 1:
        seq = len(records)
        if seq % 300 == 0:
            records.append(("checkpoint", {}))
        elif seq % 97 == 0:
            records.append(("agent", {"event": "registered", "agent": f"agent-{seq}"}))
        elif ended < decided and (decided - ended > 5 or seq > SIZE - 20):
            records.append(outcome(ended))
            ended += 1
        elif seq > SIZE - 20:
            records.append(("access", {"command": "show"}))
        else:
            records.append(decision(decided))
            decided += 1
    return [*records, ("checkpoint", {})]


def place_of(records: Sequence[Record], kind: str, place: int) -> int:
    """The first record of a kind from a place on."""
    return next(seq for seq in range(place, len(records)) if records[seq][0] == kind)


def line(seq: int, kind: str, fields: Fields, at: int | None = None) -> bytes:
    """A record as it is stored; three have the same time."""
    time = f"2026-01-01T00:00:00.{seq // 3 if at is None else at:06}Z"
    return json.dumps(
        {"v": 1, "seq": seq, "kind": kind, "at": time, "bus": BUS, "node": NODE, **fields}, separators=(",", ":")
    ).encode()


def signed(size: int, lines: Sequence[bytes]) -> str:
    """A checkpoint for the first so many."""
    frontier: list[bytes] = []
    merkle.extend(frontier, 0, [merkle.leaf_hash(line) for line in lines[:size]])
    return SIGNER.sign(Checkpoint(SIGNER.verifier.name, size, merkle.root_hash(frontier)))


def written(records: Sequence[Record], changes: dict[int, Callable[[bytes], bytes]] | None = None) -> list[bytes]:
    """The log of these records, with true checkpoints over whatever stands in it: as who has its key can write it."""
    lines: list[bytes] = []
    frontier: list[bytes] = []
    for seq, (kind, fields) in enumerate(records):
        if kind == "checkpoint":
            root = merkle.root_hash(frontier)
            note = SIGNER.sign(Checkpoint(SIGNER.verifier.name, seq, root))
            body = line(seq, kind, {"size": seq, "root": root.hex(), "note": note, "mono_us": seq // 3, "boot": "b"})
        else:
            body = line(seq, kind, fields)
        if changes and seq in changes:
            changed = changes[seq](body)
            assert changed != body
            body = changed
        lines.append(body)
        merkle.grow(frontier, seq, merkle.leaf_hash(body))
    return lines


@pytest.fixture(scope="module")
def log() -> list[bytes]:
    """A log that nobody touched."""
    return written(plan())


class Started(subprocess.Popen[bytes]):
    """A process, which is remembered."""

    all: list[Started]

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.all.append(self)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Started]]:
    """Any log is large enough, and there are cores; what is started, and that nothing of it is left."""
    monkeypatch.setattr(several, "RECORDS_MIN", 0)
    monkeypatch.setattr(several, "BYTES_MIN", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    monkeypatch.setattr(several, "Popen", Started)
    monkeypatch.setattr(Started, "all", [], raising=False)
    yield Started.all
    assert all(process.returncode is not None for process in Started.all), "a process is left"
    assert all(process.stdout is not None and process.stdout.closed for process in Started.all)


def same(path: Path, outside: str | None = None, key: alone.Key = KEY) -> Report:
    """What both say of a log."""
    note = None if outside is None else read_note(outside)
    report = homes.verify(path, key, note)
    assert asdict(several.verify(path, key, note)) == asdict(report)
    return report


def exported(folder: Path, lines: Sequence[bytes]) -> Path:
    """An export."""
    path = folder / "log.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def home_of(folder: Path, lines: Sequence[bytes]) -> Path:
    """A home as it lies there when its bus has been closed, as far as it is looked at."""
    home = folder / "home"
    home.mkdir()
    (home / "checkpoint").write_text(json.loads(lines[-1])["note"])
    frontier: list[bytes] = []
    merkle.extend(frontier, 0, [merkle.leaf_hash(line) for line in lines])
    database = sqlite3.connect(home / "bus.db")
    database.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, kind TEXT, message_id TEXT, body BLOB)")
    database.execute("CREATE TABLE head (size INTEGER, frontier BLOB, accounting TEXT)")
    database.execute("CREATE TABLE messages (seq INTEGER PRIMARY KEY, id TEXT, state TEXT)")
    database.execute("CREATE TABLE agents (id TEXT PRIMARY KEY, tenant TEXT, agent TEXT)")
    for table in ("payloads", "texts"):
        database.execute(f"CREATE TABLE {table} (seq INTEGER PRIMARY KEY, salt BLOB, body BLOB, headers BLOB)")
    for seq, body in enumerate(lines):
        record = json.loads(body)
        filed = (seq, record.get("kind"), record.get("message_id"), body)
        database.execute("INSERT INTO records VALUES (?, ?, ?, ?)", filed)
    messages: dict[str, tuple[int, str]] = {}
    for seq, record in enumerate(map(json.loads, lines)):
        name = record.get("message_id")
        if record["kind"] == "decision" and record["verdict"] != "refuse":
            messages.setdefault(name, (seq, "queued"))
        elif record["kind"] == "outcome" and name in messages:
            messages[name] = (messages[name][0], record["state"])
        elif record["kind"] == "agent" and record["event"] == "registered":
            row = [record["agent"], "acme", [], [], [], "latest", True]
            database.execute("INSERT OR REPLACE INTO agents VALUES (?, 'acme', ?)", (row[0], json.dumps(row)))
    database.executemany(
        "INSERT INTO messages VALUES (?, ?, ?)", [(seq, name, state) for name, (seq, state) in messages.items()]
    )
    counts = {"accepted": len(messages), **Counter(state for _, state in messages.values())}
    database.execute("INSERT INTO head VALUES (?, ?, ?)", (len(lines), merkle.pack(frontier), json.dumps(counts)))
    database.commit()
    database.close()
    return home


# --- a log that nobody touched ---------------------------------------------------------------------------------------


def test_untouched_log_is_fine_and_others_read_it(log: list[bytes], tmp_path: Path, started: list[Started]) -> None:
    """An export and a home are fine, several processes were at work, and verifying makes no files."""
    assert same(exported(tmp_path, log)).ok
    assert len(started) == 2
    home = home_of(tmp_path, log)
    before = sorted(path.name for path in home.iterdir())
    report = same(home)
    assert report.ok
    assert (report.size, report.open) == (SIZE, 0)
    assert len(started) == 4
    assert sorted(path.name for path in home.iterdir()) == before


def usual_records(path: Path, bus: str, node: str, rows: int) -> list[bytes | tuple[bytes, ...]]:
    """What a reader tells of a home's records."""
    answers: list[reader.Answer | None] = []
    uri = f"{(path / 'bus.db').as_uri()}?mode=ro"
    command = [sys.executable, "-I", "-S", reader.__file__, uri, str(rows - 1), "0", "1", bus, node]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    while output:
        length = int.from_bytes(output[:4], "big")
        if length:
            answers.append(marshal.loads(output[4 : 4 + length]))  # noqa: S302 - written by our own program
        output = output[4 + length :]
    assert None not in answers
    return [record for answer in answers if answer for record in answer[4]]


async def test_records_of_a_bus_are_the_usual_ones(tmp_path: Path) -> None:
    """What a bus writes today is told by readers: else verifying would be right and as slow as alone."""
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        for number in range(10):
            receipt = await desk.send("booker", {"number": number})
            await receipt.outcome()
    names = json.loads((tmp_path / "home" / "home.json").read_text())
    database = sqlite3.connect(tmp_path / "home" / "bus.db")
    kinds = [json.loads(body)["kind"] for (body,) in database.execute("SELECT body FROM records ORDER BY seq")]
    database.close()
    told = usual_records(tmp_path / "home", names["bus"], names["node"], len(kinds))
    assert kinds.count("decision") == kinds.count("outcome") == 10
    for kind, record in zip(kinds, told, strict=True):
        assert isinstance(record, tuple) == (kind in ("decision", "outcome")), kind


@pytest.mark.parametrize("size", [0, 1, 300, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, SIZE - 1, SIZE])
def test_outside_checkpoint_of_any_size_counts(log: list[bytes], tmp_path: Path, size: int) -> None:
    """Wherever it ends, the right one is accepted, and one over other records is not."""
    path = exported(tmp_path, log)
    report = same(path, signed(size, log))
    assert report.ok
    assert report.unanchored <= SIZE - size
    other = SIGNER.sign(Checkpoint(SIGNER.verifier.name, size, bytes(32)))
    assert not same(path, other).ok


def test_log_longer_or_shorter_than_the_outside_checkpoint(log: list[bytes], tmp_path: Path) -> None:
    """A log cut at the border of a page is truncated; one that went on is not anchored to its end."""
    kept = signed(SIZE, log)
    for size in (PAGE, PAGE + 200, 2 * PAGE):
        report = same(exported(tmp_path, log[:size]), kept)
        assert report.first_bad is not None
        assert (report.first_bad.damage, report.first_bad.seq) == ("truncated", size)


def test_empty_log_is_never_fine(tmp_path: Path) -> None:
    """An empty export, an empty home and a home without its database are bad, with readers allowed."""
    assert not same(exported(tmp_path, [])).ok
    home = home_of(tmp_path, written([("checkpoint", {})]))
    database = sqlite3.connect(home / "bus.db", isolation_level=None)
    database.execute("DELETE FROM records")
    database.close()
    assert not same(home).ok
    (home / "bus.db").unlink()
    assert not same(home).ok


# --- damage from outside ---------------------------------------------------------------------------------------------


Change = Callable[[bytes], bytes]


def change(old: bytes, new: bytes) -> Change:
    """Changes the first of these."""
    return lambda body: body.replace(old, new, 1)


def delete(lines: list[bytes], place: int) -> None:
    """A record is gone."""
    del lines[place]


def double(lines: list[bytes], place: int) -> None:
    """A record stands twice."""
    lines.insert(place, lines[place])


def swap(lines: list[bytes], place: int) -> None:
    """Two neighbours have changed places."""
    lines[place], lines[place + 1] = lines[place + 1], lines[place]


def changed(how: Change) -> Callable[[list[bytes], int], None]:
    """A record says something else."""

    def damage(lines: list[bytes], place: int) -> None:
        assert how(lines[place]) != lines[place]
        lines[place] = how(lines[place])

    return damage


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (changed(lambda body: body[:-2] + b" " + body[-1:]), "altered"),
        (changed(lambda body: body[:-1]), "altered"),
        (changed(lambda body: body[:-1] + b',"x":"\xc3\xa9\xff"}'), "altered"),
        (changed(lambda body: body[:0]), "altered"),
        (changed(change(b',"bus":', b', "bus":')), "altered"),
        (changed(change(b'"seq":', b'"seq":0')), "altered"),
        (changed(change(NODE.encode(), b"NODE-2")), "inserted"),
        (changed(change(b'"at":"2026', b'"at":"2025')), "inserted"),
        (changed(change(b'"at":"2026', b'"at":"2027')), "inserted"),
        (delete, "missing"),
        (double, "duplicated"),
        (swap, "out_of_order"),
    ],
    ids=range(12),
)
def test_damage_is_named_wherever_it_is(
    log: list[bytes], tmp_path: Path, damage: Callable[[list[bytes], int], None], name: str
) -> None:
    """In the middle of a page, at its borders and in the last one: found, named, and the same as alone."""
    for place in PLACES:
        lines = list(log)
        damage(lines, place)
        report = same(exported(tmp_path, lines), signed(SIZE, log))
        assert report.first_bad is not None
        assert report.first_bad.damage == name
        assert report.first_bad.seq <= place + 1
        assert report.first_bad.seq_to >= place


@pytest.mark.parametrize(
    ("tamper", "values"),
    [
        ("UPDATE records SET body = CAST(body || ' ' AS BLOB) WHERE seq = ?", (PAGE,)),
        ("UPDATE records SET body = CAST(body AS TEXT) WHERE seq = ?", (2 * PAGE - 1,)),
        ("UPDATE records SET body = NULL WHERE seq = ?", (PAGE + 5,)),
        ("DELETE FROM records WHERE seq = ?", (PAGE,)),
        ("DELETE FROM records WHERE seq BETWEEN ? AND ?", (PAGE, 2 * PAGE - 1)),
        ("DELETE FROM records WHERE seq >= ?", (PAGE,)),
        ("UPDATE records SET seq = ? WHERE seq = ?", (10**15, PAGE + 7)),
        ("UPDATE records SET seq = ? WHERE seq = ?", (2**63 - 1, SIZE - 1)),
        ("UPDATE records SET seq = ? WHERE seq = ?", (-5, 0)),
        ("UPDATE head SET frontier = zeroblob(96)", ()),
    ],
    ids=range(10),
)
def test_tampered_home_is_judged_as_alone(
    log: list[bytes], tmp_path: Path, tamper: str, values: tuple[int, ...]
) -> None:
    """Rows changed, gone, moved far away, or no bytes at all."""
    home = home_of(tmp_path, log)
    database = sqlite3.connect(home / "bus.db", isolation_level=None)
    database.execute(tamper, values)
    database.close()
    assert not same(home).ok


def test_random_damage_is_judged_as_alone(log: list[bytes], tmp_path: Path, seed: int) -> None:
    """Bytes changed, added and taken anywhere."""
    chance = random.Random(seed)
    for _ in range(15):
        lines = list(log)
        for _ in range(chance.choice([1, 1, 2])):
            place = chance.choice([chance.randrange(SIZE), chance.choice(PLACES)])
            body = lines[place]
            at = chance.randrange(len(body))
            new = chance.choice([b"", b"{", b"}", b'"', b"\\", b",", b" ", b"\xff", b"0", b"\0", body[at : at + 1] * 2])
            lines[place] = body[:at] + new + body[at + chance.choice([0, 1]) :]
        same(exported(tmp_path, lines))


# --- what only who has the key can write -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refused",
    [
        change(b'"verdict":"allow"', b'"verdict":"refuse"'),
        change(b'"verdict":"allow"', b'"verdict": "refuse"'),
        change(b'"verdict":"allow"', b'"verdict":"Allow"'),
        change(b'"verdict":"allow"', b'"verdict":"refuse","verdict":"allow"'),
        change(b'"attempt":1', b'"attempt":1,"verdict":"refuse"'),
        change(b'"verdict":"allow"', b'"x":{"verdict":"allow"},"verdict":"refuse"'),
        change(b'"verdict":"allow"', b'"verdict":"refuse","x":{"verdict":"allow"}'),
        change(b"#a1", b"#a2"),
        change(b'"kind":"decision"', b'"kind":"decisions"'),
    ],
    ids=range(9),
)
def test_what_was_not_allowed_is_a_bypass(tmp_path: Path, refused: Change) -> None:
    """However a decision that allows nothing is written, what rests on it is found, in the same page or the next."""
    for place in (PAGE - 1, PAGE):
        records = plan()
        seq = place_of(records, "decision", place)
        end = end_of(records, seq)
        report = same(exported(tmp_path, written(records, {seq: refused})))
        assert (report.integrity, report.completeness) == ("ok", "bad")
        assert report.first_bad is not None
        assert seq < report.first_bad.seq <= end


def end_of(records: Sequence[Record], seq: int) -> int:
    """The outcome of a decision."""
    decision_id = records[seq][1]["decision_id"]
    return next(at for at in range(seq + 1, SIZE) if records[at][1].get("decision_id") == decision_id)


@pytest.mark.parametrize("place", [PAGE - 1, PAGE, PAGE + 300])
def test_outcome_before_its_decision_is_a_bypass(tmp_path: Path, place: int) -> None:
    """An allow that comes later allows nothing, in the same page or the next one."""
    records = plan()
    seq = place_of(records, "decision", place)
    end = end_of(records, seq)
    records[seq], records[end] = records[end], records[seq]
    report = same(exported(tmp_path, written(records)))
    assert report.first_bad is not None
    assert (report.completeness, report.first_bad.seq, report.first_bad.kind) == ("bad", seq, "outcome")


@pytest.mark.parametrize("place", [5, PAGE - 1, PAGE, 2 * PAGE])
def test_gap_in_a_senders_count_is_found_over_pages(tmp_path: Path, place: int) -> None:
    """A decision that is not there is missed at its sender's next one."""
    records = plan()
    seq = place_of(records, "decision", place)
    del records[end_of(records, seq)], records[seq]
    report = same(exported(tmp_path, written(records)))
    assert (report.integrity, report.completeness) == ("ok", "bad")


@pytest.mark.parametrize(
    "odd",
    [
        change(b'"conversation":"c-1"', b'"conversation":"a{b"'),
        change(b'"conversation":"c-1"', b'"conversation":"a,b"'),
        change(b'"conversation":"c-1"', b'"conversation":"a\\",\\"sender\\":\\"evil"'),
        change(b'"conversation":"c-1"', b'"conversation":"\xc3\xa9"'),
        change(b'"cause":null', b'"sender":"evil"'),
        change(b'"cause":null', b'"cause":"sender":"evil"'),
        change(b'"verdict":"allow"', b'"verdict":"allow","verdict":"refuse"'),
        change(b'"reasons":[]', b'"reasons":[{"rule":"a","code":"b"}]'),
        change(b'"reasons":[]', b'"reasons":"decision_id":"x#1"'),
        change(b'"sender_n":', b'"sender_n":0'),
        change(b'"sender_n":', b'"sender_n":9999999999999999999'),
        change(b'"sender_n":', b'"sender_n":-'),
        change(b'"sender_n":', b'"sender_n": '),
        change(b'"sender":"agent-', b'"sender":"\xff\xfe-'),
        change(b'"tenant":"acme"', b'"tenant":{"sender":"evil"}'),
        change(b'"engine"', b'"decision_id":"x#1","engine"'),
        change(b'"message_id":"m-', b'"message_id":"\\u006d-'),
        change(b"#a1", b""),
        change(b'"input"', b'"input'),
        change(b',"topic":null', b""),
        lambda body: body.replace(b'"c-1"', b'"a{b"')[:-1],
        lambda body: body[: body.index(b'"engine"')],
        lambda body: body[: body.index(b'#a1"') + 3],
        lambda body: body.replace(b",", b", "),
    ],
    ids=range(24),
)
def test_oddly_written_decision_is_judged_as_alone(tmp_path: Path, odd: Callable[[bytes], bytes]) -> None:
    """What is not written as the bus writes it means what it means to the verifier alone."""
    records = plan()
    same(exported(tmp_path, written(records, {place_of(records, "decision", place): odd for place in PLACES[:-1]})))
    same(exported(tmp_path, written(records, {place_of(records, "decision", PAGE): odd})))


def test_time_that_goes_back_is_named_and_the_rest_is_judged(tmp_path: Path) -> None:
    """A record before its time, in a page or as the first of one, and a bypass behind it."""
    records = plan()
    for place in (PAGE // 2 + 1, PAGE, 2 * PAGE - 1):
        seq = place_of(records, "decision", place)
        later = place_of(records, "outcome", seq + 200)
        lines = written(records, {seq: change(b"T00:00:00", b"T00:00:-1"), later: change(b"#a1", b"#a9")})
        report = same(exported(tmp_path, lines))
        assert report.first_bad is not None
        assert (report.time, report.completeness, report.first_bad.seq, report.size) == ("bad", "bad", seq, SIZE)


@pytest.mark.parametrize("state", ["expired", "dead_lettered", "delivered"])
def test_refused_and_unended_messages_are_counted_as_alone(tmp_path: Path, state: str) -> None:
    """Holds that expire, refusals, and messages that never ended."""
    records = plan()
    for place in (PAGE // 3, PAGE - 1, PAGE):
        seq = place_of(records, "decision", place)
        fields = {**records[seq][1], "verdict": "hold", "code": "held", "reasons": []}
        records[seq] = ("decision", fields)
        end = end_of(records, seq)
        records[end] = ("outcome", {**records[end][1], "state": state})
    last = max(at for at, found in enumerate(records) if found[0] == "outcome")
    records[last] = ("agent", {"event": "gone"})
    home = home_of(tmp_path, written(records))
    report = same(home)
    assert (report.ok, report.open) == (state != "delivered", 1)


# --- the processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        None,
        "",
        "import sys; sys.stdout.buffer.write(b'\\0\\0\\0')",
        "import sys; sys.stdout.buffer.write(b'\\0\\0\\xff\\0short')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        f"""
import os, runpy, sys
class Once:
    def write(self, answer):
        os.write(1, answer)
        self.write = lambda _: os._exit(1)
    def flush(self): pass
class Output:
    buffer = Once()
sys.stdout = Output
runpy.run_path({reader.__file__!r}, run_name="__main__")
""",
    ],
    ids=["missing", "silent", "cut", "short", "killed", "gives_up"],
)
def test_readers_that_fail_change_no_verdict(
    log: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    """A reader that is not there, says nothing, breaks off or is killed: the rest is read without it."""
    broken = tmp_path / "broken.py"
    if program is not None:
        broken.write_text(program)
    monkeypatch.setattr(reader, "__file__", str(broken))
    assert same(exported(tmp_path, log)).ok
    assert same(home_of(tmp_path, log)).ok
    lines = list(log)
    delete(lines, PAGE + 10)
    report = same(exported(tmp_path, lines))
    assert report.first_bad is not None
    assert (report.first_bad.damage, report.first_bad.seq) == ("missing", PAGE + 10)


def test_without_a_way_to_start_processes_it_reads_alone(
    log: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Started]
) -> None:
    """No program, or none that can be started."""
    path = exported(tmp_path, log)
    for executable in (str(tmp_path / "nowhere"), ""):
        monkeypatch.setattr("sys.executable", executable)
        assert same(path).ok
    assert not started


def test_small_logs_single_cores_and_keys_without_names_start_none(
    log: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Started]
) -> None:
    """A process is started only where there is something to gain, and where the names in the records are known."""
    path, home = exported(tmp_path, log), home_of(tmp_path, log)
    assert same(path, key=alone.Key("", KEY.public)).ok
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _pid: {0}, raising=False)
        assert same(path).ok
    monkeypatch.setattr(several, "RECORDS_MIN", SIZE)
    monkeypatch.setattr(several, "BYTES_MIN", path.stat().st_size + 1)
    assert same(path).ok
    assert same(home).ok
    assert not started


def test_nothing_is_left_when_the_log_ends_early(log: list[bytes], tmp_path: Path, started: list[Started]) -> None:
    """Readers that still have pages to tell of are ended when the first record is bad, or cannot be read at all."""
    home = home_of(tmp_path, log * 4)
    assert not same(home).ok
    database = sqlite3.connect(home / "bus.db", isolation_level=None)
    database.execute("UPDATE records SET body = 5 WHERE seq = 0")
    database.close()
    assert not same(home).ok
    assert len(started) == 4
    assert all(process.returncode is not None for process in started)


async def test_running_bus_is_verified_while_it_writes(tmp_path: Path) -> None:
    """A log that grows while several processes read it is fine, and no file is left that was not there."""
    ledger = await entries.open_ledger(tmp_path / "home", checkpoint_records=7)
    key = read_key((tmp_path / "home" / "keys" / "log.vkey").read_text())
    checks = []
    for number in range(60):
        (row,) = await entries.put_all(ledger, [entries.decision(number)])
        await entries.put_all(ledger, [entries.move(number, row)])
        if number % 20 == 0:
            checks.append(asyncio.create_task(asyncio.to_thread(several.verify, tmp_path / "home", key)))
    for check in checks:
        report = await check
        assert report.ok, report.first_bad
    await ledger.close()


async def test_home_of_a_killed_bus_stays_as_it_was(tmp_path: Path, started: list[Started]) -> None:
    """What lies in a -wal file only is read by others too, and no file is left that was not there."""
    ledger = await entries.open_ledger(tmp_path / "home")
    await entries.put_all(ledger, [entries.decision(number) for number in range(20)])
    as_killed(tmp_path / "home", tmp_path / "killed")
    await ledger.close()
    (tmp_path / "killed" / "bus.db-shm").unlink()
    before = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert "bus.db-wal" in before
    report = same(tmp_path / "killed", key=read_key((tmp_path / "home" / "keys" / "log.vkey").read_text()))
    assert (report.ok, report.open) == (True, 20)
    assert len(started) == 2
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == before
