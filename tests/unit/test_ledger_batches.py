"""How the durable ledger groups what is put: what shares a commit, and how rows share a statement."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.faultpoints import FaultPoints
from enhanced_agent_bus.ledger import sql
from enhanced_agent_bus.ledger.writer import BATCH_ENTRIES_MAX
from enhanced_agent_bus.ports import FactChange
from tests.entries import decision, move, open_ledger, put_all, putting


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> FaultPoints:
    """Counts the commits that hold a decision."""
    points = FaultPoints()
    points.arm("audit.before_commit:1000000:raise")
    monkeypatch.setattr(faultpoints, "hit", points.hit)
    return points


async def test_what_is_put_in_one_turn_shares_a_commit(tmp_path: Path, commits: FaultPoints) -> None:
    """The writer is not woken by the first of many entries: it gets all of a turn of the loop at once."""
    ledger = await open_ledger(tmp_path / "home")
    await put_all(ledger, [decision(n) for n in range(300)])
    assert commits.hits("audit.before_commit") == 1
    await ledger.close()


async def test_a_commit_is_bounded(tmp_path: Path, commits: FaultPoints) -> None:
    """More than BATCH_ENTRIES_MAX entries of one turn take more than one commit, and keep their order."""
    ledger = await open_ledger(tmp_path / "home", checkpoint_records=100_000)
    start = ledger.size()
    count = 2 * BATCH_ENTRIES_MAX + 1
    assert await put_all(ledger, [decision(n) for n in range(count)]) == list(range(start, start + count))
    assert commits.hits("audit.before_commit") == 3
    await ledger.close()


async def test_what_is_put_just_before_close_is_written(tmp_path: Path) -> None:
    """An entry of the turn in which the ledger is closed is recorded, and told so."""
    ledger = await open_ledger(tmp_path / "home")
    future = putting(ledger, decision(1))
    await ledger.close()
    assert await future > 0
    ledger = await open_ledger(tmp_path / "home")
    assert ledger.find("desk/order-1") is not None
    await ledger.close()


async def test_a_done_that_raises_costs_nobody_else_the_answer(tmp_path: Path) -> None:
    """The loop's exception handler hears of it; the entries of the same commit are told all the same."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    ledger = await open_ledger(tmp_path / "home")
    entry = decision(1)

    def done(_seq: int, _error: object) -> None:
        raise ValueError("a bug")

    entry.done = done
    ledger.put(entry)
    await put_all(ledger, [decision(2)])
    assert [str(context["exception"]) for context in heard] == ["a bug"]
    await ledger.close()


@pytest.mark.parametrize("count", [*range(1, 14), 31, 33, 255, 256, 257, 513])
async def test_every_number_of_rows_is_stored_whole(tmp_path: Path, count: int) -> None:
    """A statement has room for more rows than it gets: what fills the rest is stored nowhere."""
    ledger = await open_ledger(tmp_path / "home", checkpoint_records=100_000)
    start = ledger.size()
    facts = [[FactChange("agent", f"agent-{n}", "spent", b"%d" % n)] for n in range(count)]
    entries = [decision(n, facts=facts[n]) for n in range(count)]
    for entry in entries:
        entry.texts = (b"s" * 32, b"[]")
    seqs = await put_all(ledger, entries)
    await put_all(ledger, [move(n, seq, forget=n % 2 == 0) for n, seq in enumerate(seqs)])
    await ledger.close()
    database = sqlite3.connect(tmp_path / "home" / "bus.db")
    rows = {
        table: database.execute(f"SELECT * FROM {table} WHERE rowid >= ? ORDER BY rowid", (start,)).fetchall()  # noqa: S608
        for table in ("records", "messages", "payloads", "texts")
    }
    found_facts = database.execute("SELECT scope, owner, key, value FROM facts").fetchall()
    (smallest,) = database.execute("SELECT min(seq) FROM records").fetchone()
    database.close()
    assert [row[0] for row in rows["messages"]] == [row[0] for row in rows["payloads"]] == seqs
    assert [row[0] for row in rows["texts"]] == seqs
    assert {row[2] for row in rows["messages"]} == {"delivered"}
    assert [row[2] == b"" for row in rows["payloads"]] == [n % 2 == 0 for n in range(count)]
    assert sorted(found_facts) == sorted(change for (change,) in facts)
    assert smallest == 0
    assert len(rows["records"]) >= 2 * count
    assert {type(value) for row in rows["payloads"] + rows["texts"] for value in row[1:]} == {bytes}


def test_rows_go_into_the_smallest_statements_that_take_them() -> None:
    """No statement but the last has room left, and that one is the smallest that will do."""
    for count in range(1, 3 * sql.ROWS_MAX):
        *full, last = sql.chunks(count)
        rest = count - sum(full)
        assert set(full) <= {sql.ROWS_MAX}
        assert last == min(size for size in sql.CHUNKS if size >= rest)
    assert sql.chunks(0) == []
