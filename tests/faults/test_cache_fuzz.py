"""The decision cache gives the answer that an evaluation would give, and none for longer than it may."""

import asyncio
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Agent, AgentBus, Receipt
from tests.developer import Inbox, SteppedClock, log, small_bus
from tests.support import write_constitution

POLICIES = 28
MESSAGES = 32  # a policy

# --- made-up policies -------------------------------------------------------------------------------------------------

KEYS = ("a", "b", "c")
VALUES: tuple[Any, ...] = (
    0, 1, 1.0, True, False, None, "1", "a", "b", "", [], [1], [1.0], ["a", "b"], {}, {"a": 1}, {"b": {"a": 1}},
    {"a": True}, {"a": None}, {"c": ["b"]}, 2, "c", ["c"], {"a": "1"},
)  # fmt: skip


class Author:
    """Writes small rules over a few places of the input, in the ways that Rego offers to reach them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def rule(self) -> str:
        """A rule body: admit, helpers, and sometimes what is remembered."""
        bodies = [self._body() for _ in range(self._random.randint(1, 3))]
        text = "\n\n".join(f"admit if {{\n\t{body}\n}}" for body in bodies)
        if self._random.random() < 0.3:
            text += '\n\nremember contains {"scope": "sender", "key": "seen", "add": 1}'
        if "helper" in text:
            text += f"\n\nhelper(x) if {self._test('x')}"
        if "alias_of_input" in text:
            text += "\n\nalias_of_input := input"
        if "part" in text:
            text += f"\n\npart := {self._place()}"
        return text

    def _body(self) -> str:
        return "\n\t".join(self._line(number) for number in range(self._random.randint(1, 3)))

    def _line(self, number: int) -> str:
        place, key, x = self._place(), self._random.choice(KEYS), f"x{number}"
        ways = (
            lambda: self._test(place),
            lambda: f"not {self._test(place)}",
            lambda: f"{x} := {place}\n\tnot {x}.{key}",
            lambda: f"{x} := {place}\n\t{self._test(f'{x}.{key}')}",
            lambda: f"{x} := input.message.payload\n\tnot {x}.{key}",
            lambda: f"{x} := input.message\n\t{self._test(f'{x}.payload.{key}')}",
            lambda: f"some {x} in {place}\n\t{self._test(x)}",
            lambda: f'{x} := "{key}"\n\t{self._test(f"input.message.payload[{x}]")}',
            lambda: f"helper({place})",
            lambda: self._test(f"alias_of_input.message.payload.{key}"),
            lambda: self._test(f'object.get(input.message.payload, "{key}", 7)'),
            lambda: f"count([1 | some {x} in {place}]) < 2",
            lambda: self._test("part"),
            lambda: self._test(f"{place}[{self._random.randrange(2)}]"),
            lambda: f'object.get(input.facts.sender, "seen", 0) < {self._random.randint(2, 12)}',
            lambda: (
                f'{self._random.choice(("", "not "))}"b" in input.{self._random.choice(("sender", "recipient"))}.roles'
            ),
            self._named,
            self._named,
        )
        return self._random.choice(ways)()

    def _named(self) -> str:
        """A test of a part of the input that has one type, with values of that type: others do not compile."""
        what, values = self._random.choice(
            (
                ("input.message.headers.x", ("1", "a", "")),
                ("input.message.type", ("command", "event")),
                ("input.message.priority", (1, 2)),
                ("input.sender.tenant", ("acme", "globex")),
                ("input.recipient.tenant", ("acme", "globex")),
                ("input.recipient.id", ("three", "four")),
            )
        )
        return f"{what} {self._random.choice(('==', '!='))} {json.dumps(self._random.choice(values))}"

    def _place(self) -> str:
        first, second = self._random.choice(KEYS), self._random.choice(KEYS)
        return self._random.choice(
            (
                f"input.message.payload.{first}",
                f"input.message.payload.{first}.{second}",
                f'input["message"].payload["{first}"]',
            )
        )

    def _test(self, what: str) -> str:
        value = json.dumps(self._random.choice(VALUES))
        return self._random.choice((f"{what} == {value}", f"{what} != {value}", what, f"{value} == {what}"))


class Traffic:
    """Makes messages that differ in one or two places from each other, and come again with another unread part."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._known: list[dict[str, Any]] = [self._fresh()]

    def message(self) -> dict[str, Any]:
        """Who sends what to whom: something new, something known, or something known with a small change."""
        sent = self._random.choice(self._known)
        if self._random.random() < 0.5:
            place, value = self._random.choice(list(self._fresh().items()))
            if place == "payload":
                value = {**sent["payload"], self._random.choice(KEYS): self._random.choice(VALUES)}
            sent = sent | {place: value}
            self._known.append(sent)
        return sent

    def _fresh(self) -> dict[str, Any]:
        pick = self._random.choice
        return {
            "from": pick(("one", "two")),
            "to": pick(("three", "four")),
            "payload": {key: pick(VALUES) for key in KEYS if self._random.random() < 0.5},
            "type": pick(("command", "event")),
            "priority": pick((1, 2)),
            "headers": pick(({}, {"x": "1"}, {"x": "a"})),
        }


async def cast(bus: AgentBus) -> dict[str, Agent]:
    """Two senders and two recipients that differ."""
    await bus.register("three", Inbox(), tenant="acme")
    await bus.register("four", Inbox(), tenant="globex", roles=["b"])
    return {
        "one": await bus.register("one", tenant="acme", roles=["a"]),
        "two": await bus.register("two", tenant="globex", roles=["a", "b"]),
    }


async def verdict(agents: dict[str, Agent], message: dict[str, Any]) -> tuple[Any, ...]:
    """What is decided, without what is new in every decision."""
    receipt = await agents[message["from"]].send(
        message["to"], message["payload"], type=message["type"], priority=message["priority"],
        headers=message["headers"],
    )  # fmt: skip
    reasons = tuple((reason.rule, reason.code, reason.message) for reason in receipt.reasons)
    return receipt.state, receipt.code, reasons


@pytest.mark.fuzz
async def test_cached_and_uncached_decisions_are_the_same(tmp_path: Path, seed: int) -> None:
    """On generated policies and messages a bus with the cache decides each message as one without it does."""
    author = Author(seed)
    write_constitution(tmp_path / "policies")
    async with (
        small_bus(tmp_path, home="cached") as cached,
        small_bus(tmp_path, home=":memory:", policy={"cache_entries": 0}) as uncached,
    ):
        casts = [await cast(cached), await cast(uncached)]
        for number in range(POLICIES):
            rules = {"one": author.rule(), "two": author.rule()}
            write_constitution(tmp_path / "made-up", rules)
            await asyncio.gather(*(bus.activate(tmp_path / "made-up") for bus in (cached, uncached)))
            traffic = Traffic(seed + number)
            messages = [traffic.message() for _ in range(MESSAGES)]
            # What reads facts depends on the order; the rest may come at once, and does.
            step = 1 if "facts" in str(rules) else MESSAGES
            for start in range(0, MESSAGES, step):
                batch = messages[start : start + step]
                one, other = [
                    await asyncio.gather(*(verdict(agents, message) for message in batch)) for agents in casts
                ]
                for message, with_cache, without in zip(batch, one, other, strict=True):
                    assert with_cache == without, (rules, message)
    decisions = log(tmp_path / "cached", "decision")
    hits = sum(record["cached_from"] is not None for record in decisions)
    assert hits > len(decisions) / 20, "the messages are too different to try the cache"
    verdicts = {record["verdict"] for record in decisions} | {record["code"] for record in decisions}
    assert verdicts >= {"allow", "refuse", "policy_denied"}


# --- what a hit is ----------------------------------------------------------------------------------------------------

PAYLOAD_ONLY = 'admit if input.message.payload.kind != "no"'
READS_ALL_FOUR = """
admit if {
	input.sender.id != input.recipient.tenant
	input.sender.tenant != "x"
	input.recipient.id != "x"
	input.message.type != "heartbeat"
	object.get(input.message.payload, "kind", null) != "no"
}
"""


def cached_from(home: Path, receipt: Receipt) -> str | None:
    """The decision that filled the cache for this one, as the log has it."""
    (record,) = log(home, "decision", decision_id=receipt.decision_id)
    found: str | None = record["cached_from"]
    return found


async def test_hit_names_the_decision_that_filled_the_cache(tmp_path: Path) -> None:
    """A cached decision has an id of its own, and its record names the decision it comes from: an allow and a no."""
    async with small_bus(tmp_path, {"kind": PAYLOAD_ONLY}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        for kind, code in (("yes", None), ("no", "policy_denied")):
            receipts = [await desk.send("booker", {"kind": kind, "n": n}) for n in range(3)]
            assert [receipt.code for receipt in receipts] == [code] * 3
            assert len({receipt.decision_id for receipt in receipts}) == 3
            assert len({receipt.digest for receipt in receipts}) == 3
            found = [cached_from(tmp_path / "home", receipt) for receipt in receipts]
            assert found == [None, receipts[0].decision_id, receipts[0].decision_id]
            assert receipts[2].reasons == receipts[0].reasons


async def test_many_that_ask_the_same_at_once_name_one(tmp_path: Path) -> None:
    """Of many at once one is evaluated, and the others name it; each has a record and runs."""
    async with small_bus(tmp_path, {"kind": PAYLOAD_ONLY}) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        receipts = await asyncio.gather(*(desk.send("booker", {"kind": "yes", "n": n}) for n in range(20)))
        found = [cached_from(tmp_path / "home", receipt) for receipt in receipts]
        assert found.count(None) == 1
        filler = receipts[found.index(None)]
        assert set(found) == {None, filler.decision_id}
        for record in log(tmp_path / "home", "decision"):
            if record["cached_from"]:
                assert record["seq"] > filler.audit_seq or record["decision_id"] != filler.decision_id


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "sender": lambda sent: sent | {"from": "other"},
    "tenant": lambda sent: sent | {"from": "foreign"},
    "recipient": lambda sent: sent | {"to": "other"},
    "type": lambda sent: sent | {"type": "event"},
    "1.0": lambda sent: sent | {"payload": {"kind": 1.0}},
    "true": lambda sent: sent | {"payload": {"kind": True}},
    "the string 1": lambda sent: sent | {"payload": {"kind": "1"}},
    "null": lambda sent: sent | {"payload": {"kind": None}},
    "absent": lambda sent: sent | {"payload": {}},
    "a list": lambda sent: sent | {"payload": {"kind": [1]}},
    "an object": lambda sent: sent | {"payload": {"kind": {"1": 1}}},
}


async def test_whatever_is_read_makes_another_decision(tmp_path: Path) -> None:
    """Where only the sender, its tenant, the recipient, the type, or 1 to 1.0 to true to "1" changes, the decision is
    a fresh one; the same again is a hit.
    """
    async with small_bus(tmp_path, {"all": READS_ALL_FOUR}) as bus:
        agents = {
            "desk": await bus.register("desk", tenant="acme"),
            "other": await bus.register("other", Inbox(), tenant="acme"),
            "foreign": await bus.register("foreign", tenant="globex"),
        }
        await bus.register("booker", Inbox(), tenant="acme")

        async def send(sent: dict[str, Any]) -> str | None:
            receipt = await agents[sent["from"]].send(sent["to"], sent["payload"], type=sent["type"])
            assert receipt.ok
            return cached_from(tmp_path / "home", receipt)

        first = {"from": "desk", "to": "booker", "payload": {"kind": 1}, "type": "command"}
        assert await send(first) is None
        assert await send(first) is not None
        for name, change in CHANGES.items():
            assert await send(change(first)) is None, name
            assert await send(change(first)) is not None, name


async def test_new_registration_of_an_id_is_another_sender(tmp_path: Path) -> None:
    """An agent that comes back with other roles is decided with its new roles."""
    async with small_bus(tmp_path, {"role": 'admit if "planner" in input.sender.roles'}) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        desk = await bus.register("desk", tenant="acme", roles=["planner"])
        assert [(await desk.send("booker")).code for _ in range(2)] == [None, None]
        await desk.unregister()
        desk = await bus.register("desk", tenant="acme", roles=["guest"])
        assert [(await desk.send("booker")).code for _ in range(2)] == ["policy_denied"] * 2


async def test_no_cached_decision_outlives_its_time(tmp_path: Path) -> None:
    """After `cache_seconds` by the monotonic clock the policy is asked again, whatever the wall clock says."""
    clock = SteppedClock()
    async with small_bus(tmp_path, {"kind": PAYLOAD_ONLY}, clock=clock, policy={"cache_seconds": 5}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")

        async def send() -> str | None:
            return cached_from(tmp_path / "home", await desk.send("booker", {"kind": "yes"}))

        assert await send() is None
        assert await send() is not None
        clock.ahead_seconds += 4.0
        assert await send() is not None, "a hit does not renew the time, as the next one shows"
        clock.ahead_seconds += 1.5
        assert await send() is None
        assert await send() is not None


async def test_clock_in_the_input_is_never_cached_away(tmp_path: Path) -> None:
    """A policy that reads the minute is asked again when the minute has changed."""

    class Minutes(SteppedClock):
        def policy_time(self) -> datetime:
            return datetime.fromtimestamp(self.ahead_seconds, UTC)

    clock = Minutes()
    async with small_bus(tmp_path, {"even": "admit if input.clock.minute % 2 == 0"}, clock=clock) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        codes = []
        for _ in range(4):
            codes.append((await desk.send("booker")).code)
            clock.ahead_seconds += 60
        assert codes == [None, "policy_denied"] * 2


async def test_facts_that_are_read_are_part_of_the_question(tmp_path: Path) -> None:
    """A policy that reads a fact is asked again when the fact has changed; one that does not read it hits."""
    rules = {
        "once": 'admit if not input.facts.sender.done\nremember contains {"scope": "sender", "key": "done", "add": 1}'
    }
    async with small_bus(tmp_path, rules) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        assert [(await desk.send("booker")).code for _ in range(3)] == [None, "policy_denied", "policy_denied"]


async def test_new_constitution_reaches_no_old_entry(tmp_path: Path) -> None:
    """After an activation nothing that was cached under the old constitution is used, and going back finds nothing."""
    async with small_bus(tmp_path, {"kind": PAYLOAD_ONLY}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        first = await desk.send("booker", {"kind": "yes"})
        assert first.ok
        write_constitution(tmp_path / "stricter", {"kind": 'admit if input.message.payload.kind == "maybe"'})
        await bus.activate(tmp_path / "stricter")
        assert (await desk.send("booker", {"kind": "yes"})).code == "policy_denied"
        await bus.activate(tmp_path / "policies")
        again = await desk.send("booker", {"kind": "yes"})
        assert again.ok
        assert again.constitution == first.constitution


async def test_errors_are_not_cached(tmp_path: Path) -> None:
    """A refusal without an answer (policy_error) is asked for anew each time."""
    rules = {"broken": "admit if to_number(input.message.payload.n) > 0"}
    async with small_bus(tmp_path, rules) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        receipts = [await desk.send("booker", {"n": "seven"}) for _ in range(3)]
        assert [receipt.code for receipt in receipts] == ["policy_error"] * 3
        assert [cached_from(tmp_path / "home", receipt) for receipt in receipts] == [None] * 3
