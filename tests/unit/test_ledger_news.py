"""In which order the durable ledger tells of what it has committed: the port's order, and tenants in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from enhanced_agent_bus.ledger.news import SLICE_ENTRIES, News
from enhanced_agent_bus.ledger.sqlite import SqliteLedger
from enhanced_agent_bus.outcome import END_STATES
from enhanced_agent_bus.ports import Entry
from tests.entries import decision, move, open_ledger, put_all


def of(tenant: str, entry: Entry) -> Entry:
    """An entry of this tenant."""
    entry.tenant = tenant
    return entry


def telling(told: list[tuple[int, str]]) -> News:
    """News that are written down as they are told."""
    return News(lambda seq, entry: told.append((seq, entry.tenant)))


def added(news: News, tenants: str, first: int = 0) -> None:
    """A commit of entries of these tenants; a dot is of none."""
    entries = [of(tenant.strip("."), Entry("decision", {})) for tenant in tenants]
    for entry in entries:
        news.ask(entry.tenant)
    news.add(first, entries)


def test_a_share_of_each_tenant_is_told_at_once_the_shortest_line_first() -> None:
    """Each in its order; what is left of the longer line comes later."""
    told: list[tuple[int, str]] = []
    news = telling(told)
    added(news, "a" * 50 + "b" + "a" * 50 + "b")
    news.tell_some()
    assert told[:2] == [(50, "b"), (101, "b")]
    assert [seq for seq, _ in told[2:]] == list(range(len(told) - 2))
    assert len(told) < 20
    news.tell_all()
    assert [seq for seq, tenant in told if tenant == "a"] == [seq for seq in range(101) if seq != 50]
    assert not news


def test_an_entry_of_no_tenant_is_told_after_all_before_it() -> None:
    """A new constitution, a registration: nothing passes it in either direction."""
    told: list[tuple[int, str]] = []
    news = telling(told)
    added(news, "aab")
    added(news, "ab.ab", first=3)
    assert [seq for seq, _ in told] == [0, 1, 2, 3, 4, 5]
    news.tell_some()
    assert sorted(seq for seq, _ in told[6:]) == [6, 7]


class Flood:
    """A tenant that puts the next entry whenever it is told of one."""

    def __init__(self, ledger: SqliteLedger, left: int) -> None:
        self.told = 0
        self._ledger = ledger
        self._left = left

    def put(self, then: Callable[[], None] | None = None) -> None:
        self._left -= 1
        entry = of("flood", decision(self._left))

        def done(_seq: int, error: object) -> None:
            assert error is None
            self.told += 1
            if then is not None:
                then()
            if self._left:
                asyncio.get_running_loop().call_soon(self.put)

        entry.done = done
        self._ledger.put(entry)


async def test_one_entry_does_not_wait_until_hundreds_of_another_tenant_are_told(tmp_path: Path) -> None:
    """Put when the first of 400 is told, it is durable and told when at most a few slices of them were."""
    ledger = await open_ledger(tmp_path / "home", checkpoint_records=100_000)
    flood = Flood(ledger, 2000)
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def put_mine() -> None:
        mine = of("quiet", decision(5000))
        mine.done = lambda _seq, _error: told.set_result(flood.told)
        ledger.put(mine)

    flood.put(put_mine)
    for _ in range(399):
        flood.put()
    assert await told <= 3 * SLICE_ENTRIES
    while flood.told < 2000:  # noqa: ASYNC110 - each turn tells some
        await asyncio.sleep(0.001)
    await ledger.close()


async def test_the_counts_are_those_of_what_was_told(tmp_path: Path) -> None:
    """While a commit is told in parts, who has heard of its message and who counts it see the same."""
    ledger = await open_ledger(tmp_path / "home", checkpoint_records=100_000)
    count = 5 * SLICE_ENTRIES
    seqs = await put_all(ledger, [of("acme", decision(n)) for n in range(count)])
    told, wrong = 0, []

    def done(_seq: int, _error: object) -> None:
        nonlocal told
        told += 1

    for n, seq in enumerate(seqs):
        entry = of("acme", move(n, seq))
        entry.done = done
        ledger.put(entry)
    while told < count:
        await asyncio.sleep(0)
        counts = ledger.accounting()
        if (counts["delivered"], counts["queued"], counts["accepted"]) != (told, count - told, count):
            wrong.append((told, counts))
    assert sum(ledger.accounting()[state] for state in END_STATES) == count
    assert wrong == []
    await ledger.close()


async def test_close_tells_of_everything(tmp_path: Path) -> None:
    """What was put before is told before it returns, in whatever share it would have been."""
    ledger = await open_ledger(tmp_path / "home")
    told: list[int] = []
    for n in range(10 * SLICE_ENTRIES):
        entry = of("ab"[n % 2], decision(n))
        entry.done = lambda seq, _error: told.append(seq)
        ledger.put(entry)
    await ledger.close()
    assert len(told) == 10 * SLICE_ENTRIES
    assert min(told) >= 0
