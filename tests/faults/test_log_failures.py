"""A disk that fails: nothing counts that is not known to be on it, and work goes on when it answers again."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.errors import AuditUnavailable
from enhanced_agent_bus.faultpoints import FaultPoints
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.ports import Entry
from tests.entries import decision, move, open_ledger, put_all, putting


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    """A home of its own."""
    made = await open_ledger(tmp_path / "home")
    yield made
    await made.close()


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arms fault points of this test alone."""

    def armed(plan: str) -> None:
        points = FaultPoints()
        points.arm(plan)
        monkeypatch.setattr(faultpoints, "hit", points.hit)

    return armed


def records(home: Path) -> list[dict[str, Any]]:
    """Every stored record."""
    database = sqlite3.connect(f"{(home / 'bus.db').as_uri()}?mode=ro", uri=True)
    found = [json.loads(body) for (body,) in database.execute("SELECT body FROM records ORDER BY seq")]
    database.close()
    return found


async def test_failed_commit_counts_for_nothing(ledger: SqliteLedger, arm: Any) -> None:
    """When a commit fails, all its entries are told, after `on_failure`; nothing of them is stored; the next are."""
    heard: list[str] = []
    ledger.on_failure = lambda: heard.append("failure")
    arm("audit.before_commit:1:raise")
    futures = [putting(ledger, decision(n)) for n in range(3)]
    for future in futures:
        future.add_done_callback(lambda _: heard.append("done"))
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [AuditUnavailable] * 3
    assert heard == ["failure", "done", "done", "done"]
    size = ledger.size()
    assert await put_all(ledger, [decision(n) for n in range(3)]) == [size, size + 1, size + 2]
    assert ledger.accounting()["accepted"] == ledger.accounting()["queued"] == 3


async def test_doubtful_message_is_discarded(ledger: SqliteLedger, tmp_path: Path, arm: Any) -> None:
    """A message whose sender was told that nothing is recorded, and that is on disk after all, ends as discarded."""
    arm("audit.after_commit:1:raise")
    with pytest.raises(AuditUnavailable):
        await putting(ledger, decision(1))
    await put_all(ledger, [decision(2)])
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert (stored.state, stored.code) == ("discarded", "audit_unavailable")
    assert [message.envelope.id for message in ledger.waiting(["queued"])] == ["desk/order-2"]
    ended = [r for r in records(tmp_path / "home") if r["kind"] == "outcome"]
    assert [(r["message_id"], r["state"], r["code"]) for r in ended] == [
        ("desk/order-1", "discarded", "audit_unavailable")
    ]


async def test_doubtful_message_is_discarded_by_the_next_process(tmp_path: Path) -> None:
    """The same, when the process ends before it has looked again: the next one ends the message."""
    program = """
        async def main():
            ledger = await open_ledger(home)
            ledger.on_failure = lambda: os._exit(7)
            await putting(ledger, decision(1))
    """
    assert await run_child(program, tmp_path / "home", "audit.after_commit:1:raise") == (7, "")
    ledger = await open_ledger(tmp_path / "home")
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert (stored.state, stored.code) == ("discarded", "audit_unavailable")
    await put_all(ledger, [decision(2)])
    await ledger.close()
    ledger = await open_ledger(tmp_path / "home")
    assert [message.envelope.id for message in ledger.waiting(["queued"])] == ["desk/order-2"]
    await ledger.close()


@pytest.mark.parametrize("point", ["before", "after"])
async def test_what_is_certain_is_written_once_the_store_is_mended(
    ledger: SqliteLedger, tmp_path: Path, arm: Any, point: str
) -> None:
    """An outcome outlives a failed commit: it is recorded exactly once, and its `done` waits for that."""
    (row,) = await put_all(ledger, [decision(1)])
    arm(f"outcome.{point}_commit:1:raise")
    both = [putting(ledger, move(1, row)), putting(ledger, decision(2))]
    seq, lost = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(lost, AuditUnavailable)
    assert isinstance(seq, int)
    assert json.loads(ledger.record(seq))["state"] == "delivered"
    assert sum(r["kind"] == "outcome" and r["state"] == "delivered" for r in records(tmp_path / "home")) == 1
    await put_all(ledger, [decision(3)])
    counts = ledger.accounting()
    assert (counts["delivered"], counts["queued"]) == (1, 1)
    assert counts["accepted"] == sum(counts.values()) - counts["accepted"]


async def test_doubtful_move_is_taken_back(ledger: SqliteLedger, arm: Any) -> None:
    """A replay that was reported as failed and is on disk after all leaves a dead letter, not a queued message."""
    (row,) = await put_all(ledger, [decision(1)])
    await put_all(ledger, [move(1, row, state="dead_lettered")])
    arm("audit.after_commit:1:raise")
    replay = move(1, row, was="dead_lettered", state="queued")
    replay.kind, replay.fields, replay.certain = "decision", decision(1).fields, False
    with pytest.raises(AuditUnavailable):
        await putting(ledger, replay)
    await put_all(ledger, [decision(2)])
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert stored.state == "dead_lettered"
    counts = ledger.accounting()
    assert (counts["dead_lettered"], counts["queued"], counts["accepted"]) == (1, 1, 2)


async def test_what_has_happened_begins_where_its_message_is(ledger: SqliteLedger, tmp_path: Path, arm: Any) -> None:
    """Outcomes that were put behind a replay which was never written count from where the message stands: among the
    dead letters. The accounting adds up after it, no state has less than no messages, and the home opens again.
    """
    (row,) = await put_all(ledger, [decision(1)])
    await put_all(ledger, [move(1, row, state="dead_lettered")])
    arm("audit.before_commit:1:raise")
    replay = move(1, row, was="dead_lettered", state="queued")
    replay.kind, replay.fields, replay.certain = "decision", decision(1).fields, False
    lost = putting(ledger, replay)
    happened = [putting(ledger, move(1, row, state="retrying")), putting(ledger, move(1, row, was="retrying"))]
    with pytest.raises(AuditUnavailable):
        await lost
    await asyncio.gather(*happened)
    counts = ledger.accounting()
    assert {state: count for state, count in counts.items() if count} == {"accepted": 1, "delivered": 1}
    await ledger.close()
    again = await open_ledger(tmp_path / "home")
    stored = again.find("desk/order-1")
    assert stored is not None
    assert (stored.state, again.accounting()) == ("delivered", counts)
    await again.close()


async def test_entries_put_before_the_failure_was_heard_are_void(ledger: SqliteLedger, arm: Any) -> None:
    """What was put while the loop did not know yet fails with the rest, since it built on what is void."""
    heard: list[str] = []
    ledger.on_failure = lambda: heard.append("failure")
    arm("audit.before_commit:1:raise")
    first = putting(ledger, decision(1))
    # The loop is not given a turn: it cannot have heard, however far the writer has come.
    deadline = asyncio.get_running_loop().time() + 0.3
    while asyncio.get_running_loop().time() < deadline:
        pass
    late = putting(ledger, decision(2))
    results = await asyncio.gather(first, late, return_exceptions=True)
    assert [type(result) for result in results] == [AuditUnavailable] * 2
    assert heard
    await put_all(ledger, [decision(3)])
    assert ledger.accounting()["accepted"] == 1


async def test_record_that_is_too_large_fails_alone(ledger: SqliteLedger) -> None:
    """A record of more than 65,535 bytes is told so at once, with its code; those beside it are stored."""
    large = Entry("decision", {"input": "x" * 66_000})
    told: list[str] = []
    large.done = lambda _, error: told.append(error.code if error else "")
    ledger.put(large)
    assert told == ["too_large"]
    strange = Entry("decision", {"input": {1, 2}})
    strange.done = lambda _, error: told.append(error.code if error else "")
    ledger.put(strange)
    assert told == ["too_large", "malformed"]
    await put_all(ledger, [Entry("decision", {"input": "x" * 64_000})])


@contextmanager
def no_more_room() -> Iterator[None]:
    """No file of this process can grow beyond 1 MB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_full_disk_refuses_and_works_again_with_room(ledger: SqliteLedger, tmp_path: Path) -> None:
    """Without room every put ends in AuditUnavailable; with room again the next ones work, without a restart."""
    number, acknowledged, refused = 0, 0, 0
    with no_more_room():
        async with asyncio.timeout(20):
            while refused < 100:
                results = await asyncio.gather(
                    *[putting(ledger, decision(number + n, note="x" * 1000)) for n in range(50)], return_exceptions=True
                )
                assert {type(result) for result in results} <= {int, AuditUnavailable}
                acknowledged += sum(isinstance(result, int) for result in results)
                refused += sum(isinstance(result, AuditUnavailable) for result in results)
                number += 50
    assert acknowledged
    async with asyncio.timeout(5):
        while True:
            try:
                await putting(ledger, decision(number))
                break
            except AuditUnavailable:
                number += 1
    counts = ledger.accounting()
    assert counts["queued"] == acknowledged + 1
    stored = records(tmp_path / "home")
    assert [record["seq"] for record in stored] == list(range(len(stored)))


async def test_slow_disk_delays_and_does_not_lose(ledger: SqliteLedger, arm: Any) -> None:
    """A commit that takes a second is told when it is durable; the loop goes on meanwhile."""
    arm("audit.before_commit:1:delay")
    first = putting(ledger, decision(1))
    turns = 0
    async with asyncio.timeout(10):
        while not first.done():
            await asyncio.sleep(0)
            turns += 1
    assert turns > 100
    assert ledger.find("desk/order-1") is not None


async def test_store_is_mended_without_a_put(ledger: SqliteLedger, arm: Any) -> None:
    """What is certain is written as soon as the disk answers, whether or not anybody sends."""
    (row,) = await put_all(ledger, [decision(1)])
    arm("outcome.before_commit:1:raise,outcome.before_commit:2:raise")
    async with asyncio.timeout(5):
        await putting(ledger, move(1, row))
    assert ledger.accounting()["delivered"] == 1


async def test_close_on_a_broken_disk_ends(tmp_path: Path, arm: Any) -> None:
    """Closing while nothing can be written ends all the same, and says what was not recorded."""
    ledger = await open_ledger(tmp_path / "home")
    (row,) = await put_all(ledger, [decision(1)])
    arm(",".join(f"outcome.before_commit:{n}:raise" for n in range(1, 50)))
    outcome = putting(ledger, move(1, row))
    async with asyncio.timeout(10):
        await ledger.close()
        with pytest.raises(AuditUnavailable):
            await outcome
    arm("")
    ledger = await open_ledger(tmp_path / "home")
    assert [message.envelope.id for message in ledger.waiting(["queued"])] == ["desk/order-1"]
    await ledger.close()


async def run_child(program: str, home: Path, plan: str) -> tuple[int, str]:
    """Runs `main` of a program in a process of its own; its exit status and what it printed."""
    source = f"""
import asyncio, os, sys
from pathlib import Path
from enhanced_agent_bus import faultpoints
from tests.entries import *
home = Path({str(home)!r})
faultpoints.points.arm({plan!r})
"""
    body = "\n".join(line[8:] for line in program.splitlines())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"{source}\n{body}\nasyncio.run(main())", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


SENDER = """
        async def main():
            ledger = await open_ledger(home, checkpoint_records=5)
            for number in range(0, 40, 4):
                rows = await put_all(ledger, [decision(n) for n in range(number, number + 4)])
                print(*(f"opened {n}" for n in range(number, number + 4)), sep="\\n", flush=True)
                await put_all(ledger, [move(number + n, row) for n, row in enumerate(rows)])
                print(*(f"ended {n}" for n in range(number, number + 4)), sep="\\n", flush=True)
"""


@pytest.mark.parametrize("nth", [1, 4])
@pytest.mark.parametrize(
    "point", ["audit.before_commit", "audit.after_commit", "outcome.before_commit", "outcome.after_commit"]
)
async def test_killed_process_loses_nothing_acknowledged(tmp_path: Path, point: str, nth: int) -> None:
    """After kill -9 at a commit the home opens verified, with everything that was acknowledged, in one state each."""
    home = tmp_path / "home"
    status, printed = await run_child(SENDER, home, f"{point}:{nth}:kill")
    assert status == -signal.SIGKILL
    acknowledged = [line.split() for line in printed.splitlines()]
    ledger = await open_ledger(home)
    for what, number in acknowledged:
        stored = ledger.find(f"desk/order-{number}")
        assert stored is not None
        assert stored.state == "delivered" or what == "opened"
    counts = ledger.accounting()
    assert counts["accepted"] == sum(counts.values()) - counts["accepted"]
    assert counts["accepted"] >= sum(what == "opened" for what, _ in acknowledged)
    await ledger.close()
