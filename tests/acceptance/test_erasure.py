"""Erasure, legal holds and retention: what goes is in no byte of the home, and what stays still proves itself."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import AgentBus, AuditUnavailable, ConfigInvalid, Retry, open_bus
from enhanced_agent_bus.cli.app import run_command
from tests.developer import PATIENT, Inbox, SteppedClock, log, small_bus, until

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("erasing_program.py")
DAY = 86_400
PAYLOAD, HEADER, ERROR, WORDS = "s3cret-payload-4711", "s3cret-header-4712", "s3cret-error-4713", "s3cret-words-4714"
SECRETS = (PAYLOAD, HEADER, ERROR, WORDS)
#: It refuses by a word of the payload, and says the payload in its reason; what it admits it remembers.
RULES = {
    "careful": """admit if not input.message.payload.forbidden
reasons contains {"rule": "careful", "code": "careful", "message": sprintf("no %v", [input.message.payload.who])} if {
    input.message.payload.forbidden
}
"""
}


def found_in(home: Path, *secrets: str | bytes) -> list[str]:
    """Which of these stand in which file of a home, whatever that file is."""
    return [
        f"{secret!r} in {file.name}"
        for file in sorted(home.rglob("*"))
        if file.is_file()
        for secret in secrets
        if (secret.encode() if isinstance(secret, str) else secret) in file.read_bytes()
    ]


async def fill(bus: AgentBus) -> tuple[str, str]:
    """A message that failed once and was delivered, with all that can be secret, and one that was refused."""
    await bus.register("booker", Inbox(ValueError(ERROR)), tenant="acme", retry=Retry.immediate(2))
    desk = await bus.register("desk", tenant="acme")
    done = await desk.send("booker", {"who": PAYLOAD}, headers={"who": HEADER}, id="done", conversation="trip")
    assert (await done.outcome(timeout=10)).state == "delivered"
    refused = await desk.send("booker", {"who": WORDS, "forbidden": True}, headers={"who": HEADER}, id="refused")
    assert refused.code == "policy_denied"
    return done.message_id, refused.message_id


async def eab(capsys: pytest.CaptureFixture[str], *words: str, home: Path) -> tuple[int, str]:
    """One command: its status, and what it printed."""
    status = await asyncio.to_thread(run_command, ["--home", str(home), *words])
    return status, "".join(capsys.readouterr())


async def eab_json(capsys: pytest.CaptureFixture[str], *words: str, home: Path) -> tuple[int, list[Any]]:
    """One command with --json: its status, and the documents that it printed."""
    status, out = await eab(capsys, "--json", *words, home=home)
    return status, [json.loads(line) for line in out.splitlines()]


async def test_an_erased_message_is_in_no_byte_of_the_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Payload, headers, the handler's error and the reasons' words go while the bus runs; the log still verifies."""
    home = tmp_path / "home"
    async with small_bus(tmp_path, RULES) as bus:
        done, refused = await fill(bus)
        assert {text.split("'")[1] for text in found_in(home, *SECRETS)} == set(SECRETS), "the test looks in vain"
        erased = await bus.erase("message", done, reason="request 4711")
        assert (erased.messages, erased.payloads, erased.texts, erased.left) == (1, 1, 1, {})
        assert not found_in(home, PAYLOAD, ERROR)
        words = ("audit", "erase", refused, "--reason", "request 4711")
        status, [told] = await eab_json(capsys, *words, home=home)  # through the control socket
        assert (status, told) == (0, {"messages": 1, "payloads": 1, "texts": 1, "left": {}, "elsewhere": []})
        assert not found_in(home, *SECRETS)
        [record, _] = log(home, "erasure")
        assert (record["what"], record["basis"], record["by"]) == ({"message": done}, "request", "operator")
        assert record["counts"] == {"messages": 1, "payloads": 1, "texts": 1, "left": 0}
    assert not found_in(home, *SECRETS)
    assert run_command(["--home", str(home), "audit", "verify"]) == 0


POINTS = ("erasure.before_commit", "erasure.after_commit", "erasure.before_overwrite", "erasure.after_overwrite")


@pytest.mark.parametrize("point", POINTS)
async def test_an_erasure_that_is_killed_is_finished_by_the_next_opening(tmp_path: Path, point: str) -> None:
    """What was recorded as erased is in no byte of the home once a bus has opened it; else nothing was erased."""
    home = tmp_path / "home"
    async with small_bus(tmp_path, RULES) as bus:
        done, _ = await fill(bus)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(home), done,
        env=os.environ | {"EAB_FAULTPOINT": f"{point}:1:kill", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert await process.wait() == -signal.SIGKILL
    recorded = len(log(home, "erasure"))
    assert recorded == (point != "erasure.before_commit")
    async with open_bus(home, policy=PATIENT) as bus:
        assert bool(found_in(home, PAYLOAD, ERROR)) is not bool(recorded)
        await bus.erase("message", done, reason="request 4711")
        assert not found_in(home, PAYLOAD, ERROR)
    assert len(log(home, "erasure")) == 1
    assert run_command(["--home", str(home), "audit", "verify"]) == 0


async def test_rows_that_moved_between_pages_leave_nothing_behind(tmp_path: Path, seed: int) -> None:
    """Of many messages erased between others that stay, not even a salt is left in the files; the rest is whole."""
    home = tmp_path / "home"
    dice = random.Random(seed)
    words = [f"secret-{n}-{dice.getrandbits(64):x}" for n in range(240)]
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        seqs: dict[bool, list[int]] = {True: [], False: []}
        for word in words:
            payload = {"a": word, "rest": "x" * dice.choice((10, 100, 700, 5000)), "b": word}
            going = dice.random() < 0.5
            receipt = await desk.send("booker", payload, conversation="going" if going else "staying")
            seqs[going].append(receipt.audit_seq)
        await bus.wait_idle(timeout=30)
        with closing(sqlite3.connect(f"file:{home / 'bus.db'}?mode=ro", uri=True)) as database:
            kept = {seq: (salt, body) for seq, salt, body in database.execute("SELECT seq, salt, body FROM payloads")}
        secrets = [(kept[seq][0], json.loads(kept[seq][1])["a"]) for seq in seqs[True]]
        erased = await bus.erase("conversation", "going", reason="request")
        assert erased.messages == len(secrets)
        files = b"".join(file.read_bytes() for file in home.rglob("bus.db*"))
        assert not [word for salt, word in secrets if word.encode() in files or salt in files]
    with closing(sqlite3.connect(home / "bus.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert run_command(["--home", str(home), "audit", "verify"]) == 0


async def test_what_has_not_ended_is_not_erased(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dead letter and a message that waits may still be delivered: exit 1 says what to do, and after that it goes."""
    home = tmp_path / "home"
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", Inbox(ValueError(ERROR)), tenant="acme", retry=Retry.immediate(1))
        await bus.register("absent", tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        dead = await desk.send("booker", {"who": PAYLOAD}, id="dead", conversation="trip")
        assert (await dead.outcome(timeout=10)).state == "dead_lettered"
        await desk.send("absent", {"who": PAYLOAD}, id="waits", conversation="trip")
        left = (await bus.erase("conversation", "trip", reason="request")).left
        assert left == {"desk/dead": "it is dead_lettered", "desk/waits": "it is parked"}
    status, out = await eab(capsys, "audit", "erase", "desk/dead", "--reason", "request", home=home)
    assert status == 1
    assert "it is dead_lettered" in out
    assert "dlq discard" in out
    for message_id in ("desk/dead", "desk/waits"):
        assert (await eab(capsys, "dlq", "discard", message_id, "--reason", WORDS, home=home))[0] == 0
    erase = ("audit", "erase", "--conversation", "trip", "--reason", "request")
    status, [erased] = await eab_json(capsys, *erase, home=home)
    assert (status, erased["messages"], erased["left"]) == (0, 2, {})
    assert not found_in(home, *SECRETS)


async def test_a_legal_hold_beats_erasure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By message, conversation or agent; recorded, named by the erasure that it stops, and kept across a restart."""
    home = tmp_path / "home"
    async with small_bus(tmp_path, RULES) as bus:
        done, refused = await fill(bus)
        with pytest.raises(KeyError):
            await bus.add_legal_hold("message", "desk/nothing", reason="case 12")
        await bus.add_legal_hold("agent", "booker", reason="case 12")
        assert set((await bus.erase("agent", "desk", reason="request")).left) == {done, refused}
    assert found_in(home, PAYLOAD)
    hold = ("audit", "hold")
    status, [listed] = await eab_json(capsys, *hold, "list", home=home)
    assert (status, listed["of"], listed["name"], listed["reason"]) == (0, "agent", "booker", "case 12")
    assert (await eab(capsys, *hold, "add", done, "--reason", "case 13", home=home))[0] == 0
    assert (await eab(capsys, *hold, "remove", "--agent", "booker", "--reason", "closed", home=home))[0] == 0
    assert (await eab(capsys, *hold, "remove", "--agent", "booker", "--reason", "closed", home=home))[0] == 1
    status, [erased] = await eab_json(capsys, "audit", "erase", "--agent", "desk", "--reason", "request", home=home)
    assert (status, erased["messages"]) == (1, 1)
    assert erased["left"] == {done: f"legal hold on message {done}: case 13"}
    assert [record["event"] for record in log(home, "hold")] == ["added", "added", "removed"]


async def test_a_legal_hold_keeps_what_would_not_be_stored(tmp_path: Path) -> None:
    """With store_payloads = false a message under a hold keeps its payload, also one that is sent later."""
    home = tmp_path / "home"
    async with small_bus(tmp_path, RULES, audit={"store_payloads": False}) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        desk = await bus.register("desk", tenant="acme")
        await bus.add_legal_hold("conversation", "trip", reason="case 12")
        await (await desk.send("booker", {"who": PAYLOAD}, conversation="trip")).outcome(timeout=10)
        await (await desk.send("booker", {"who": HEADER})).outcome(timeout=10)
        await desk.send("booker", {"who": ERROR, "forbidden": True}, conversation="trip")
    with closing(sqlite3.connect(f"file:{home / 'bus.db'}?mode=ro", uri=True)) as database:
        kept = [body for (body,) in database.execute("SELECT body FROM payloads WHERE length(body) > 0")]
    assert [PAYLOAD in body.decode() for body in kept] == [True, False]
    assert not found_in(home, HEADER)


async def test_after_an_erasure_everything_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show --payload` and `backtest` say erased; its id is refused, since nobody can compare the bytes."""
    home = tmp_path / "home"
    async with small_bus(tmp_path, RULES) as bus:
        done, _ = await fill(bus)
        await bus.erase("message", done, reason="request 4711")
        inbox = Inbox()
        await (await bus.agent("booker")).unregister()
        await bus.register("booker", inbox, tenant="acme")
        desk = await bus.agent("desk")
        for payload in ({"who": PAYLOAD}, {"who": "another"}):
            again = await desk.send("booker", payload, headers={"who": HEADER}, id="done", conversation="trip")
            assert (again.state, again.code) == ("refused", "replayed")
            assert "was erased" in again.reasons[0].message
        await bus.wait_idle(timeout=10)
        assert not inbox.got
        assert (await bus.erase("message", done, reason="again")).left == {}
        with pytest.raises(KeyError):
            await bus.erase("message", "desk/unknown", reason="again")
        with pytest.raises(ValueError, match="needs a reason"):
            await bus.erase("message", done, reason=" ")
    status, shown = await eab_json(capsys, "audit", "show", done, "--payload", home=home)
    seq = log(home, "erasure")[0]["seq"]
    told = f"erased by request, seq {seq}"
    assert (status, shown[0]["content"]) == (0, dict.fromkeys(("payload", "headers"), told))
    status, life = await eab(capsys, "audit", "show", done, home=home)
    assert status == 0
    assert "request 4711" in life
    candidate = ("--candidate", str(tmp_path / "policies"))
    assert "erased" in (await eab(capsys, "policy", "backtest", *candidate, home=home))[1]


async def test_a_reader_of_an_older_state_is_said_and_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages cannot be overwritten: the erasure says so after a bounded wait, and ends by itself once it is gone."""
    monkeypatch.setattr("enhanced_agent_bus.ledger.sqlite.CLEAN_SECONDS_MAX", 0.3)
    monkeypatch.setattr("enhanced_agent_bus.ledger.writer.CLEAN_SECONDS", 0.1)
    home = tmp_path / "home"
    async with small_bus(tmp_path, RULES) as bus:
        done, _ = await fill(bus)
        with closing(sqlite3.connect(f"file:{home / 'bus.db'}?mode=ro", uri=True)) as database:
            database.execute("BEGIN")
            assert database.execute("SELECT count(*) FROM payloads").fetchone() == (2,)
            with pytest.raises(AuditUnavailable, match="somebody reads"):
                await bus.erase("message", done, reason="request")
            assert found_in(home, PAYLOAD)
        await until(lambda: not found_in(home, PAYLOAD, ERROR))
        assert len(log(home, "erasure")) == 1


async def test_what_is_not_stored_leaves_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With store_payloads = false payloads and headers of what has ended go from every file, while the bus runs too."""
    monkeypatch.setattr("enhanced_agent_bus.ledger.writer.CLEAN_SECONDS", 0.1)
    home = tmp_path / "home"
    async with small_bus(tmp_path, RULES, audit={"store_payloads": False}) as bus:
        done, _ = await fill(bus)
        await until(lambda: not found_in(home, PAYLOAD, HEADER))
        assert found_in(home, ERROR), "texts are kept"
        await bus.erase("message", done, reason="request")
        assert not found_in(home, ERROR)
        waits = await bus.register("absent", tenant="acme")
        receipt = await (await bus.agent("desk")).send("absent", {"who": PAYLOAD})
        await bus.discard(receipt.message_id, reason="over")
        del waits
    assert not found_in(home, PAYLOAD, HEADER)


async def test_what_is_past_its_time_goes_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the bus's clock, by class, with a record each; not what still waits or is held; `retention` says it before."""
    home = tmp_path / "home"
    keep = {"keep_payloads_days": 200, "keep_texts_days": 400}
    clock = SteppedClock()
    async with small_bus(tmp_path, RULES, audit=keep, clock=clock) as bus:
        await fill(bus)
        await bus.register("absent", tenant="acme")
        desk = await bus.agent("desk")
        await desk.send("absent", {"who": "s3cret-waiting"}, expires_in=360 * DAY)
        held = await desk.send("booker", {"who": "s3cret-held"})
        await held.outcome(timeout=10)
        await bus.add_legal_hold("message", held.message_id, reason="case 12")
        assert (await bus.retention()).due_payloads == 0
        clock.ahead_seconds = 201 * DAY
        due = await bus.retention()
        assert (due.due_payloads, due.due_texts, due.left) == (2, 0, 2)
    async with small_bus(tmp_path, audit=keep, clock=clock):
        await until(lambda: not found_in(home, PAYLOAD, HEADER))
        assert found_in(home, ERROR, WORDS)
        assert len(found_in(home, "s3cret-waiting", "s3cret-held")) >= 2
    [record] = log(home, "erasure")
    assert (record["basis"], record["what"]["class"], record["by"]) == ("retention", "payloads", "bus")
    assert (record["counts"]["payloads"], record["counts"]["left"]) == (2, 2)
    clock.ahead_seconds = 401 * DAY
    async with small_bus(tmp_path, audit=keep, clock=clock):
        await until(lambda: not found_in(home, ERROR, WORDS))
    status, [shown] = await eab_json(capsys, "audit", "retention", home=home)
    assert (status, shown["keep_payloads_days"], shown["due_payloads"]) == (0, 0, 0)
    assert (await eab(capsys, "audit", "verify", home=home))[0] == 0


async def test_less_than_six_months_takes_a_recorded_override(tmp_path: Path) -> None:
    """A time under the floor is refused; a lower floor is a weakening, which the log names."""
    with pytest.raises(ConfigInvalid, match="fewer than audit"):
        async with small_bus(tmp_path, audit={"keep_payloads_days": 30}):
            pass
    short = {"keep_payloads_days": 30, "keep_floor_days": 30}
    async with small_bus(tmp_path, audit=short) as bus:
        assert "short_retention" in bus.status().security_state
    [opened] = log(tmp_path / "home", "opened")
    assert "short_retention" in opened["security_state"]


async def test_a_bus_in_memory_erases_too(tmp_path: Path) -> None:
    """Without a home, the payload of an erased message is found no more, and a hold stops that."""
    async with small_bus(tmp_path, RULES, home=":memory:") as bus:
        done, refused = await fill(bus)
        await bus.add_legal_hold("message", refused, reason="case 12")
        erased = await bus.erase("agent", "desk", reason="request")
        assert (erased.messages, erased.payloads, erased.texts) == (1, 1, 1)
        assert erased.left == {refused: f"legal hold on message {refused}: case 12"}
        assert (await bus.erase("message", done, reason="request")).messages == 0
