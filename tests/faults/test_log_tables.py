"""The tables beside the log: whoever changes what they say of messages and agents is found by `verify`."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from enhanced_agent_bus import Retry
from enhanced_agent_bus.audit.homes import read_key, verify
from enhanced_agent_bus.audit.verify import Bad, Report
from tests.developer import Inbox, log, small_bus, until
from tests.entries import decision, move, open_ledger, put_all

HOLD = (
    'admit if true\n\nhold contains {"approvers": 1, "roles": ["boss"], "expires_in": 3600}'
    " if input.message.payload.n > 100"
)
ONCE = Retry.immediate(attempts=1)


async def fill(folder: Path) -> None:
    """Messages in every state that lasts, replayed ones among them; agents registered again, and one that is gone."""
    async with small_bus(folder, {"large": HOLD}) as bus:
        desk = await bus.register("desk", tenant="acme", roles=["planner"])
        await bus.register("worker", Inbox(), tenant="acme", capabilities=["work"])
        await bus.register("fails", Inbox(*[ValueError("no")] * 4), tenant="acme", retry=ONCE)
        await bus.register("absent", tenant="acme", topics=["news"])
        gone = await bus.register("gone", Inbox(), tenant="acme")
        boss = await bus.register("boss", tenant="acme", roles=["boss"])
        sent = [await desk.send(to, {"n": 1}, id=to) for to in ("worker", "fails", "gone")]
        sent += [await desk.send("fails", {"n": 1}, id=name) for name in ("discarded", "replayed")]
        for receipt in sent:
            await receipt.outcome(timeout=10)
        await bus.discard("desk/discarded", reason="nobody needs it")
        again = await bus.replay("desk/replayed")
        await again.outcome(timeout=10)
        await desk.send("absent", {"n": 1}, id="waits")
        held = [await desk.send("worker", {"n": 200}, id=name) for name in ("held", "approved", "rejected")]
        await boss.approve(held[1].message_id)
        await boss.reject(held[2].message_id, reason="too much")
        for receipt in held[1:]:
            await receipt.outcome(timeout=10)
        await gone.unregister()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of `fill`, closed."""
    folder = tmp_path_factory.mktemp("origin")
    asyncio.run(fill(folder))
    return folder / "home"


@pytest.fixture
def home(origin: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(origin, tmp_path / "home")


def check(home: Path) -> Report:
    """Verifies a home by its own key."""
    return verify(home, read_key((home / "keys" / "log.vkey").read_text()))


def forge(home: Path, *statements: str) -> None:
    """Runs SQL as somebody who can write to the database; each statement changes something."""
    with closing(sqlite3.connect(home / "bus.db", isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount


def found(home: Path) -> Bad:
    """What is wrong, which is integrity alone."""
    report = check(home)
    assert (report.integrity, report.completeness, report.time, report.ok) == ("bad", "ok", "ok", False)
    assert report.first_bad is not None
    assert report.first_bad.damage == "altered"
    return report.first_bad


def recount(was: str, becomes: str, count: int) -> str:
    """The statement that makes the counts fit what was forged."""
    return (
        f"UPDATE head SET accounting = json_set(accounting, '$.{was}', json_extract(accounting, '$.{was}') - {count},"  # noqa: S608 - of a test
        f" '$.{becomes}', json_extract(accounting, '$.{becomes}') + {count})"
    )


def test_a_home_that_nobody_touched_fits_its_records(home: Path) -> None:
    """Messages in every state, and agents that are there, elsewhere and gone, are as the records say."""
    report = check(home)
    assert report.ok, report.first_bad
    with closing(sqlite3.connect(home / "bus.db")) as connection:
        states = {state for (state,) in connection.execute("SELECT DISTINCT state FROM messages")}
    assert states == {"delivered", "dead_lettered", "discarded", "refused", "held", "parked"}


def test_a_dead_letter_that_was_made_a_delivery_is_found(home: Path) -> None:
    """However well the counts were made to fit; the record that it contradicts is named."""
    forge(
        home,
        "UPDATE messages SET state = 'delivered' WHERE id = 'desk/fails'",
        recount("dead_lettered", "delivered", 1),
    )
    bad = found(home)
    [outcome] = log(home, "outcome", message_id="desk/fails")
    assert (bad.seq, bad.seq_to, bad.kind) == (outcome["seq"], outcome["seq"], "outcome")
    assert bad.why == "the table of messages says delivered of desk/fails, and this record says dead_lettered"


def test_the_first_of_several_is_named_and_the_others_are_counted(home: Path) -> None:
    """The newest record of each message is what counts: a replayed one ended twice."""
    forge(
        home,
        "UPDATE messages SET state = 'expired' WHERE state = 'dead_lettered'",
        recount("dead_lettered", "expired", 2),
    )
    bad = found(home)
    ends = [log(home, "outcome", message_id=name)[-1]["seq"] for name in ("desk/fails", "desk/replayed")]
    assert bad.seq == min(ends)
    assert "1 more" in bad.why


@pytest.mark.parametrize("change", ["kind = 'access'", "message_id = 'desk/worker'", "message_id = NULL"])
def test_a_record_that_was_filed_under_another_name_is_found(home: Path, change: str) -> None:
    """Searches and the life of a message go by these columns, and would not show it; the record itself is whole."""
    [outcome] = log(home, "outcome", message_id="desk/fails")
    forge(home, f"UPDATE records SET {change} WHERE seq = {outcome['seq']}")  # noqa: S608 - of this test
    bad = found(home)
    assert (bad.seq, bad.kind) == (outcome["seq"], "outcome")
    assert bad.why.startswith("the table of records has this record as ")
    assert bad.why.endswith("and it is outcome of desk/fails")


@pytest.mark.parametrize("name", ["desk/waits", "desk/held"])
def test_a_message_that_waits_has_not_ended(home: Path, name: str) -> None:
    """It was made to look as if it had, so that nobody would deliver or approve it."""
    state = "parked" if name == "desk/waits" else "held"
    forge(home, f"UPDATE messages SET state = 'delivered' WHERE id = '{name}'", recount(state, "delivered", 1))  # noqa: S608 - of this test
    report = check(home)
    assert (report.integrity, report.completeness) == ("bad", "bad")
    assert report.first_bad is not None
    assert report.first_bad.seq == log(home, "decision", message_id=name)[0]["seq"]


def test_an_end_that_was_undone_is_found(home: Path) -> None:
    """What was refused by a human would be decided anew at the next start."""
    forge(home, "UPDATE messages SET state = 'queued' WHERE id = 'desk/rejected'", recount("refused", "queued", 1))
    bad = found(home)
    assert bad.seq == log(home, "outcome", message_id="desk/rejected")[0]["seq"]
    assert "says queued of desk/rejected, and this record says refused" in bad.why


def test_a_message_that_was_removed_is_missed(home: Path) -> None:
    """The record that accepted it is named."""
    forge(home, "DELETE FROM messages WHERE id = 'desk/fails'", recount("dead_lettered", "accepted", 1))
    bad = found(home)
    assert bad.seq == log(home, "decision", message_id="desk/fails")[0]["seq"]
    assert "does not have desk/fails" in bad.why


@pytest.mark.parametrize("seq", ["0", "-3", "100000"])
def test_a_message_that_no_record_accepted_is_found(home: Path, seq: str) -> None:
    """Wherever it says that it began."""
    columns = f"{seq}, 'desk/forged', state, recipient, opening, life"
    forge(home, f"INSERT INTO messages SELECT {columns} FROM messages WHERE id = 'desk/fails'")  # noqa: S608 - of this test
    why = found(home).why
    assert "no record opens" in why or "desk/forged" in why


def test_counts_that_do_not_fit_are_found(home: Path) -> None:
    """The head of the log counts messages by state: `eab status` and reports show that."""
    forge(home, recount("dead_lettered", "delivered", 1))
    bad = found(home)
    assert "where the head of the log counts" in bad.why


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("json_set(agent, '$[2]', json('[\"boss\"]'))", "roles boss of desk, and this record says planner"),
        ("json_set(agent, '$[3]', json('[\"pay\"]'))", "capabilities pay of desk, and this record says none"),
        ("json_set(agent, '$[4]', json('[\"news\"]'))", "topics news of desk, and this record says none"),
        ("json_set(agent, '$[1]', 'other')", "tenant other of desk, and this record says acme"),
        ("json_set(agent, '$[5]', 'f' || substr(hex(zeroblob(32)), 2))", "and this record says latest"),
        ("json_set(agent, '$[6]', json('false'))", "desk is unregistered, and this record says otherwise"),
        ("'nonsense'", "no registration of desk that can be read"),
    ],
)
def test_a_forged_registration_is_found(home: Path, value: str, says: str) -> None:
    """What an agent may do is what its newest registration record says."""
    forge(home, f"UPDATE agents SET agent = {value} WHERE id = 'desk'")  # noqa: S608 - of this test
    bad = found(home)
    assert bad.seq == log(home, "agent", agent="desk")[-1]["seq"]
    assert bad.kind == "agent"
    assert says in bad.why


def test_an_agent_under_another_tenant_is_found(home: Path) -> None:
    """In the column beside the registration too."""
    forge(home, "UPDATE agents SET tenant = 'other' WHERE id = 'desk'")
    assert "under the tenant other, and this record says acme" in found(home).why


def test_an_agent_that_is_gone_is_not_made_to_be_there(home: Path) -> None:
    """The record that let it go is named."""
    forge(home, "UPDATE agents SET agent = json_set(agent, '$[6]', json('true')) WHERE id = 'gone'")
    assert found(home).seq == log(home, "agent", agent="gone", event="unregistered")[0]["seq"]


def test_an_agent_that_was_removed_or_put_in_is_found(home: Path) -> None:
    """One that no record registers has nothing to be held against: the whole log is named."""
    forge(home, "DELETE FROM agents WHERE id = 'boss'")
    assert found(home).seq == log(home, "agent", agent="boss")[-1]["seq"]
    forge(
        home, "INSERT INTO agents SELECT 'boss', tenant, json_set(agent, '$[0]', 'boss') FROM agents WHERE id = 'desk'"
    )
    assert "roles planner of boss" in found(home).why
    forge(home, "UPDATE agents SET id = 'mallory' WHERE id = 'boss'")
    report = check(home)
    assert report.first_bad is not None
    assert report.integrity == "bad"


def test_an_agent_that_no_record_registers_is_found(home: Path) -> None:
    """It stands in the table alone."""
    forge(home, "INSERT INTO agents SELECT 'mallory', tenant, json_set(agent, '$[0]', 'mallory') FROM agents LIMIT 1")
    bad = found(home)
    assert (bad.seq, bad.seq_to) == (0, check(home).size - 1)
    assert bad.why == "the table of agents has mallory, which no record registers"


def test_what_somebody_put_there_is_shown_as_text(home: Path) -> None:
    """Nothing in it reaches a terminal as it is."""
    forge(home, "UPDATE messages SET state = char(27) || '[31m' WHERE id = 'desk/fails'")
    assert "\\x1b[31m" in found(home).why


async def test_a_running_bus_raises_no_alarm(tmp_path: Path) -> None:
    """States and registrations change while they are looked at: what is newer than the look is left out."""

    async def checks() -> Iterator[Report]:
        return iter([await asyncio.to_thread(check, tmp_path / "home") for _ in range(12)])

    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("fails", Inbox(*[ValueError("no"), None] * 50_000), tenant="acme", retry=ONCE)
        looking = asyncio.create_task(checks())
        number = 0
        while not looking.done():
            receipts = [await desk.send("fails", {"n": 1}, id=f"m{number + each}") for each in range(20)]
            for receipt in receipts:
                await receipt.outcome(timeout=10)
            dead = [letter.message_id for letter in bus.dead_letters()][-2:]
            await bus.replay(dead[0])
            await bus.discard(dead[1], reason="no")
            clerk = await bus.register("clerk", tenant="acme", roles=[f"role-{number}"])
            await clerk.unregister()
            number += 20
        for report in await looking:
            assert report.ok, report.first_bad
        await until(lambda: not bus.status().accounting["queued"])
    assert check(tmp_path / "home").ok


async def test_what_was_taken_back_after_a_failure_of_the_disk_raises_no_alarm(tmp_path: Path) -> None:
    """Whose state is then again what it was is not said in a record, and nothing is concluded from it."""
    ledger = await open_ledger(tmp_path / "home")
    (row,) = await put_all(ledger, [decision(0)])
    await put_all(ledger, [move(0, row, was="queued", state="dead_lettered")])
    taken_back = move(0, row, was="dead_lettered", state="dead_lettered", code="audit_unavailable")
    fields = taken_back.fields
    assert isinstance(fields, dict)
    fields["state"] = "failed"
    await put_all(ledger, [taken_back])
    await ledger.close()
    report = check(tmp_path / "home")
    assert report.ok, report.first_bad


def test_an_export_has_no_such_tables(home: Path, tmp_path: Path) -> None:
    """The same log is fine there: nothing in it was changed."""
    forge(home, "UPDATE messages SET state = 'delivered' WHERE id = 'desk/fails'")
    with closing(sqlite3.connect(home / "bus.db")) as connection:
        lines = [bytes(body) for (body,) in connection.execute("SELECT body FROM records ORDER BY seq")]
    (tmp_path / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    assert json.loads(lines[0])["seq"] == 0
    assert verify(tmp_path / "log.jsonl", read_key((home / "keys" / "log.vkey").read_text())).ok
    assert not check(home).ok
