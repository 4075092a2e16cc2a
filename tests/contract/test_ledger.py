"""What every ledger promises: the suite of the port, run on SQLite and on memory."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import re
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from enhanced_agent_bus import faultpoints
from enhanced_agent_bus.clock import SystemClock
from enhanced_agent_bus.errors import AuditUnavailable, BusError
from enhanced_agent_bus.ledger.memory import MemoryLedger
from enhanced_agent_bus.outcome import END_STATES, WAITING_STATES
from enhanced_agent_bus.ports import AgentRow, Content, Entry, Erased, FactChange, Ledger
from enhanced_agent_bus.verdict import Admitted, Party, Recorded
from tests.entries import decision, envelope, move, open_ledger, put_all, putting


@pytest.fixture(params=["sqlite", "memory"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    """Each ledger in turn, empty."""
    made: Ledger = MemoryLedger(clock=SystemClock())
    if request.param == "sqlite":
        made = await open_ledger(tmp_path / "home")
    yield made
    await made.close()


async def test_seqs_follow_the_order_of_put(ledger: Ledger) -> None:
    """Entries get contiguous numbers in the order of `put`, and `done` is called in that order."""
    start = ledger.size()
    order: list[int] = []
    futures = []
    for number in range(300):
        future = putting(ledger, decision(number))
        future.add_done_callback(lambda done: order.append(done.result()))
        futures.append(future)
    seqs = await asyncio.gather(*futures)
    assert list(seqs) == list(range(start, start + 300))
    assert order == sorted(order)
    assert ledger.size() == start + 300


async def test_the_newest_outcome_of_a_message_is_found(ledger: Ledger) -> None:
    """By its seq; a message that has none yet, or is not known, has none."""
    (row,) = await put_all(ledger, [decision(1)])
    assert ledger.newest_outcome("desk/order-1") is None
    first, second = await put_all(ledger, [move(1, row, state="retrying"), move(1, row, was="retrying")])
    assert second == first + 1
    assert ledger.newest_outcome("desk/order-1") == second
    assert ledger.newest_outcome("desk/order-2") is None


async def test_message_is_found_as_it_was_opened(ledger: Ledger) -> None:
    """A message is read back with every part of its envelope, once `done` was called."""
    (row,) = await put_all(ledger, [decision(1)])
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert stored.envelope == envelope(1)
    assert (stored.seq, stored.state, stored.attempts, stored.has_content) == (row, "queued", 0, True)
    assert (stored.decision_id, stored.added, stored.holds) == ("desk/order-1#0001", b"{}", b"[]")
    assert ledger.find("desk/order-2") is None


async def test_envelope_is_kept_whatever_its_record_says(ledger: Ledger) -> None:
    """A record that does not tell the whole envelope costs nothing of it."""
    entry = decision(1)
    entry.fields = {"message_id": "desk/order-1", "priority": "normal"}
    await put_all(ledger, [entry])
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert stored.envelope == envelope(1)


async def test_ticket_is_made_when_the_allow_is_durable(ledger: Ledger) -> None:
    """An entry that records an allow gets its ticket from the ledger, with the seq of the record, and no other does."""
    entry, other = decision(1), decision(2)
    entry.admitted = Admitted(
        envelope(1), Party("booker", "acme", (), ()), decision_id="desk/order-1#0001", constitution="c" * 64, revision=1
    )
    seq, _ = await put_all(ledger, [entry, other])
    assert entry.recorded == Recorded(entry.admitted, seq)
    assert other.recorded is None


async def test_what_was_told_is_let_go(ledger: Ledger) -> None:
    """A `done` that holds its own entry leaves nothing behind for the collector of cyclic garbage."""
    told = asyncio.Event()

    class Held:
        """Something that a caller binds to `done`."""

    def done(_held: Held, _entry: Entry, _seq: int, _error: BusError | None) -> None:
        told.set()

    held, entry = Held(), decision(1)
    entry.done = partial(done, held, entry)
    left = weakref.ref(held)
    del held
    gc.disable()
    try:
        ledger.put(entry)
        await told.wait()
        await put_all(ledger, [decision(2)])
        del entry
        assert left() is None
    finally:
        gc.enable()


async def test_words_that_stand_apart_are_read_back(ledger: Ledger) -> None:
    """What was put beside a record is found by its seq; beside others there is nothing."""
    entry = decision(1)
    entry.texts = (b"s" * 32, b'{"reasons":[["too much","ask"]]}')
    first, second = await put_all(ledger, [entry, decision(2)])
    assert ledger.texts(first) == b'{"reasons":[["too much","ask"]]}'
    assert ledger.texts(second) is None


async def test_move_changes_what_became_of_a_message(ledger: Ledger) -> None:
    """After a move a message has the state, code, attempts, times and reply that the move named."""
    (row,) = await put_all(ledger, [decision(1)])
    changes: dict[str, Any] = {"attempts": 3, "due_us": 11, "since_us": 12, "error": "ValueError", "added": b'{"a":1}'}
    await put_all(ledger, [move(1, row, state="retrying", code="handler_failed", **changes)])
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert (stored.state, stored.code, stored.attempts, stored.due_us) == ("retrying", "handler_failed", 3, 11)
    assert (stored.since_us, stored.error, stored.added) == (12, "ValueError", b'{"a":1}')
    await put_all(ledger, [move(1, row, was="retrying", expires_us=99, reply_id="booker/r-1")])
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert (stored.state, stored.expires_us, stored.reply_id) == ("delivered", 99, "booker/r-1")
    assert stored.envelope == envelope(1)


async def test_last_of_two_moves_in_one_commit_counts(ledger: Ledger) -> None:
    """Moves of one message that are put together leave it where the last one took it, and are all counted."""
    (row,) = await put_all(ledger, [decision(1)])
    await put_all(ledger, [move(1, row, state="parked"), move(1, row, was="parked", state="queued"), move(1, row)])
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert stored.state == "delivered"
    assert ledger.accounting()["delivered"] == ledger.accounting()["accepted"] == 1


async def test_forget_removes_content_and_keeps_the_message(ledger: Ledger) -> None:
    """`forget` takes payload and headers away; the salt stays, so that the same content is known again."""
    (row,) = await put_all(ledger, [decision(1)])
    await put_all(ledger, [move(1, row, forget=True)])
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert not stored.has_content
    assert (stored.envelope.body, stored.envelope.salt, stored.envelope.headers) == (b"", envelope(1).salt, {})
    assert stored.envelope.commitment == envelope(1).commitment


async def test_accounting_adds_up(ledger: Ledger) -> None:
    """`accepted` is the sum of the messages in each state of the contract; a refusal is none."""
    rows = await put_all(ledger, [decision(number) for number in range(6)])
    await put_all(ledger, [decision(6, verdict="hold", state="held"), decision(7, verdict="refuse")])
    ends = ["delivered", "dead_lettered", "expired", "discarded"]
    await put_all(ledger, [move(n, row, state=end) for n, (row, end) in enumerate(zip(rows, ends, strict=False))])
    counts = ledger.accounting()
    assert set(counts) == {"accepted", *WAITING_STATES, *END_STATES}
    assert (counts["accepted"], counts["queued"], counts["held"], counts["delivered"]) == (7, 2, 1, 1)
    assert counts["accepted"] == sum(counts.values()) - counts["accepted"]


async def test_waiting_lists_pages_in_seq_order(ledger: Ledger) -> None:
    """`waiting` gives messages of the named states and recipient in seq order, page by page, and no other."""
    rows = await put_all(
        ledger, [decision(n, recipient="payer" if n % 3 == 0 else "booker", state="queued") for n in range(30)]
    )
    await put_all(ledger, [move(n, rows[n], state="parked") for n in range(0, 30, 2)])
    await put_all(ledger, [move(29, rows[29])])
    everyone = ledger.waiting(["queued", "parked"])
    assert [stored.envelope.id for stored in everyone] == [f"desk/order-{n}" for n in range(29)]
    page = ledger.waiting(["parked", "queued"], after_seq=everyone[9].seq, limit=7)
    assert [stored.seq for stored in page] == [stored.seq for stored in everyone[10:17]]
    payers = ledger.waiting(["parked"], recipient="payer")
    assert [stored.envelope.id for stored in payers] == [f"desk/order-{n}" for n in range(0, 30, 6)]
    assert ledger.waiting([]) == ledger.waiting(["in_flight"]) == []


async def test_dead_letters_are_listed(ledger: Ledger) -> None:
    """A dead letter has ended and is listed all the same: it may be replayed."""
    (row,) = await put_all(ledger, [decision(1)])
    await put_all(ledger, [move(1, row, state="dead_lettered", code="attempts_exhausted")])
    (stored,) = ledger.waiting(["dead_lettered"])
    assert (stored.envelope.id, stored.code) == ("desk/order-1", "attempts_exhausted")


async def test_facts_change_with_their_record(ledger: Ledger) -> None:
    """The last value of a fact is kept, None removes it, and owners and scopes are apart."""
    facts = [
        FactChange("agent", "desk", "spent", b"1"),
        FactChange("agent", "desk", "label", b'["secret"]'),
        FactChange("tenant", "desk", "spent", b"7"),
    ]
    await put_all(ledger, [decision(1, facts=facts), decision(2, facts=[FactChange("agent", "desk", "spent", b"2")])])
    assert ledger.facts("agent", "desk") == {"label": b'["secret"]', "spent": b"2"}
    await put_all(ledger, [decision(3, facts=[FactChange("agent", "desk", "label", None)])])
    assert ledger.facts("agent", "desk") == {"spent": b"2"}
    assert ledger.facts("agent", "nobody") == {}
    assert ledger.fact_rows() == [
        FactChange("agent", "desk", "spent", b"2"),
        FactChange("tenant", "desk", "spent", b"7"),
    ]
    assert ledger.fact_rows("tenant") == [FactChange("tenant", "desk", "spent", b"7")]
    assert ledger.fact_rows("agent", "other") == []


async def test_what_stands_beside_records_is_found_and_erased(ledger: Ledger) -> None:
    """By message, conversation and agent, or by age; what is erased is gone, and the record of it is as any other."""
    refused = decision(2, verdict="refuse")
    refused.texts = (b"s" * 32, b'{"reasons":[["too much","ask"]]}')
    row, other, third = await put_all(ledger, [decision(1), refused, decision(3, recipient="payer")])
    failed = move(1, row, added=b'[["agent","desk","who","secret",null]]')
    failed.texts = (b"t" * 32, b'{"error":"secret"}')
    (ended,) = await put_all(ledger, [failed])
    await put_all(ledger, [move(3, third)])
    (one,) = await ledger.contents(message="desk/order-1")
    assert one == Content(
        "desk/order-1", "desk/order-1", "desk", "booker", "delivered", Erased((row,), (ended,), (row,))
    )
    assert await ledger.contents(conversation="desk/order-1") == [one]
    assert [content.message_id for content in await ledger.contents(agent="booker")] == ["desk/order-1", "desk/order-2"]
    assert len(await ledger.contents(agent="desk")) == 3
    assert await ledger.contents(message="desk/order-9") == []
    later = SystemClock().now_us() + 60_000_000
    page, last = await ledger.contents_before("payloads", later, limit=2)
    assert [content.erased.payloads for content in page] == [(row,), (other,)]
    page, last = await ledger.contents_before("payloads", later, after_seq=last, limit=2)
    assert [content.erased for content in page] == [Erased((third,), (), (third,))]
    assert last == -1
    texts, _ = await ledger.contents_before("texts", later)
    assert [content.erased for content in texts] == [Erased((), (other,), ()), Erased((), (ended,), ())]
    assert await ledger.contents_before("texts", 1) == ([], -1)
    await put_all(ledger, [Entry("erasure", {"what": "all"}, erased=Erased((row, other), (ended, other), (row,)))])
    await ledger.clean()
    assert ledger.texts(ended) is ledger.texts(other) is None
    stored = ledger.find("desk/order-1")
    assert stored is not None
    assert (stored.has_content, stored.envelope.salt, stored.envelope.body, stored.envelope.headers) == (
        (False, b"", b"", {})
    )
    assert (stored.state, stored.added, stored.envelope.digest) == ("delivered", b"[]", envelope(1).digest)
    assert [content.erased for content in await ledger.contents(message="desk/order-1")] == [Erased(rows=(row,))]
    assert ledger.find("desk/order-3").has_content  # type: ignore[union-attr]
    assert json.loads(ledger.record(ended))["state"] == "delivered"


async def test_registrations_and_settings_are_kept(ledger: Ledger) -> None:
    """The newest registration of an id and the newest value of a setting are read back."""
    first = AgentRow("desk", "acme", ("planner",), (), (), "latest", live=True)
    second = first._replace(roles=("planner", "clerk"), topics=("trips",), live=False)
    other = AgentRow("booker", "acme", (), ("flights",), (), CONSTITUTION_PINNED, live=True)
    await put_all(ledger, [Entry("agent", {}, agent=first), Entry("agent", {}, agent=other)])
    await put_all(ledger, [Entry("agent", {}, agent=second, settings={"active": "a"})])
    await put_all(ledger, [Entry("policy", {}, settings={"active": "b", "more": "é"})])
    assert ledger.agents() == [other, second]
    assert (ledger.setting("active"), ledger.setting("more"), ledger.setting("none")) == ("b", "é", None)


CONSTITUTION_PINNED = "d" * 64


async def test_record_is_one_line_of_ascii_json(ledger: Ledger) -> None:
    """A stored record has v, seq, kind, at, bus and node, then what its kind adds, on one line of ASCII."""
    fields = {"note": "Grüße \u2028 \U0001f600 \x1b[31m\n", "empty": {}}
    seq, bare = await put_all(ledger, [Entry("access", fields), Entry("opened", {})])
    body = ledger.record(seq)
    assert body.isascii()
    assert b"\n" not in body
    assert b"\x1b" not in body
    record = json.loads(body)
    assert list(record) == ["v", "seq", "kind", "at", "bus", "node", "note", "empty"]
    assert (record["v"], record["seq"], record["kind"]) == (1, seq, "access")
    assert (record["bus"], record["node"]) == (ledger.bus, ledger.node)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["at"])
    assert {key: record[key] for key in fields} == fields
    assert list(json.loads(ledger.record(bare))) == ["v", "seq", "kind", "at", "bus", "node"]
    with pytest.raises(KeyError):
        ledger.record(bare + 100)


async def test_second_message_with_one_id_fails_alone(ledger: Ledger) -> None:
    """An id names one message: a second opening is told so, and those put beside it are stored."""
    futures = [putting(ledger, entry) for entry in (decision(1), decision(2), decision(1), decision(3))]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results[2], BusError)
    assert not isinstance(results[2], AuditUnavailable)
    assert [ledger.find(f"desk/order-{n}") is not None for n in (1, 2, 3)] == [True] * 3
    assert ledger.accounting()["accepted"] == 3


async def test_after_close_nothing_is_taken(ledger: Ledger) -> None:
    """An entry put after `close` is told that it is not recorded; a second close changes nothing."""
    await ledger.close()
    await ledger.close()
    with pytest.raises(AuditUnavailable):
        await putting(ledger, decision(1))


async def test_weakening_is_named(ledger: Ledger) -> None:
    """A ledger that keeps nothing says so."""
    assert ledger.weakenings == (("memory_ledger",) if isinstance(ledger, MemoryLedger) else ())


# --- a store that breaks ---------------------------------------------------------------------------------------------


class Breakable(NamedTuple):
    """A ledger whose disk can be taken away and given back."""

    ledger: Ledger
    break_down: Callable[[], None]
    mend: Callable[[], None]


@pytest.fixture(params=["sqlite", "memory"])
async def breakable(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Breakable]:
    """Each ledger in turn; that on disk has commits that fail with an I/O error."""
    if request.param == "memory":
        memory = MemoryLedger(clock=SystemClock())
        yield Breakable(memory, memory.break_down, memory.mend)
        await memory.close()
        return
    down = threading.Event()

    def hit(name: str) -> None:
        if down.is_set() and name.endswith("before_commit"):
            raise OSError(errno.EIO, "taken away")

    monkeypatch.setattr(faultpoints, "hit", hit)
    sqlite = await open_ledger(tmp_path / "home")
    yield Breakable(sqlite, down.set, down.clear)
    await sqlite.close()


async def test_broken_store_takes_nothing_until_it_works(breakable: Breakable) -> None:
    """What is put meanwhile ends in AuditUnavailable, after `on_failure` and without a trace; the next is taken."""
    ledger, heard = breakable.ledger, list[str]()
    ledger.on_failure = lambda: heard.append("failure")
    await put_all(ledger, [decision(1)])
    size, counts = ledger.size(), ledger.accounting()
    breakable.break_down()
    futures = [putting(ledger, decision(n, facts=[FactChange("agent", "desk", "spent", b"1")])) for n in (2, 3)]
    for future in futures:
        future.add_done_callback(lambda _: heard.append("done"))
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [AuditUnavailable] * 2
    assert (heard[0], heard.count("done")) == ("failure", 2)
    assert (ledger.size(), ledger.accounting(), ledger.facts("agent", "desk")) == (size, counts, {})
    breakable.mend()
    assert await put_all(ledger, [decision(2), decision(3)]) == [size, size + 1]
    assert ledger.accounting()["accepted"] == 3


async def test_what_has_happened_waits_for_the_store(breakable: Breakable) -> None:
    """What is certain is neither refused nor lost: it is recorded once, in order, when the store works again."""
    ledger = breakable.ledger
    rows = await put_all(ledger, [decision(1), decision(2)])
    breakable.break_down()
    with pytest.raises(AuditUnavailable):
        await putting(ledger, decision(3))
    outcomes = [putting(ledger, move(n, row)) for n, row in zip((1, 2), rows, strict=True)]
    with pytest.raises(AuditUnavailable):
        await putting(ledger, decision(3))
    assert not any(outcome.done() for outcome in outcomes)
    breakable.mend()
    seqs = await asyncio.gather(*outcomes)
    assert seqs == sorted(seqs)
    assert [json.loads(ledger.record(seq))["message_id"] for seq in seqs] == ["desk/order-1", "desk/order-2"]
    await put_all(ledger, [decision(3)])
    counts = ledger.accounting()
    assert (counts["accepted"], counts["delivered"], counts["queued"]) == (3, 2, 1)


async def test_what_has_happened_counts_from_where_its_message_is(breakable: Breakable) -> None:
    """Outcomes behind a replay that was not recorded move the dead letter that is there: the accounting adds up."""
    ledger = breakable.ledger
    (row,) = await put_all(ledger, [decision(1)])
    await put_all(ledger, [move(1, row, state="dead_lettered")])
    breakable.break_down()
    replay = move(1, row, was="dead_lettered", state="queued")
    replay.kind, replay.fields, replay.certain = "decision", decision(1).fields, False
    lost = putting(ledger, replay)
    happened = [putting(ledger, move(1, row, state="retrying")), putting(ledger, move(1, row, was="retrying"))]
    with pytest.raises(AuditUnavailable):
        await lost
    breakable.mend()
    await asyncio.gather(*happened)
    assert {state: count for state, count in ledger.accounting().items() if count} == {"accepted": 1, "delivered": 1}
    assert ledger.waiting(["dead_lettered", "retrying", "queued"]) == []


async def test_broken_store_can_be_closed(breakable: Breakable) -> None:
    """Whoever waits for what could not be recorded is told so at the close, and nothing is taken after it."""
    ledger, heard = breakable.ledger, list[str]()
    (row,) = await put_all(ledger, [decision(1)])
    breakable.break_down()
    outcome = putting(ledger, move(1, row))
    await ledger.close()
    with pytest.raises(AuditUnavailable, match="nothing can be recorded"):
        await outcome
    ledger.on_failure = lambda: heard.append("failure")
    for entry in (decision(2), move(1, row)):
        with pytest.raises(AuditUnavailable, match="the log is closed"):
            await putting(ledger, entry)
    assert not heard, "a log that is closed is not one that broke"
