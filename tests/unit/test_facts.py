"""Facts, against a model that keeps a list of what each message added and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from enhanced_agent_bus.admission.facts import (
    KEYS_MAX,
    NAME_CHARS_MAX,
    NUMBER_MAX,
    OWNERS_MAX,
    VALUES_MAX,
    Added,
    FactBook,
    Owner,
    read,
)
from enhanced_agent_bus.ports import FactChange
from enhanced_agent_bus.verdict import Refusal, Remember

OWNERS = {
    "sender": ("agent", "desk"),
    "recipient": ("agent", "booker"),
    "conversation": ("conversation", "c1"),
    "tenant": ("tenant", "acme"),
}


class Disk:
    """The rows that a ledger would hold."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, bytes]] = {}
        self.loads = 0

    def load(self, scope: str, owner: str) -> Mapping[str, bytes]:
        self.loads += 1
        return dict(self.rows.get((scope, owner), {}))

    def write(self, changes: list[FactChange]) -> None:
        for scope, owner, key, value in changes:
            rows = self.rows.setdefault((scope, owner), {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value


def changed(book: FactBook, author: str, before: list[Added], *notes: Remember) -> tuple[list[Added], list[FactChange]]:
    """A change that is taken."""
    result = book.change(author, before, notes, OWNERS)
    assert not isinstance(result, Refusal), result
    return result


def facts(book: FactBook, scope: str = "sender") -> dict[str, object]:
    """What policies see of a scope, without the counters."""
    view = book.owner(*OWNERS[scope]).view()
    return {key: value for key, value in view.items() if key not in ("sent", "refused")}


# Keys of one kind each: sums, sets, and numbers that are replaced.
SUM = st.builds(lambda n: Remember("sender", "spent", add=n), st.integers(-100, 100))
LABEL = st.builds(
    lambda scope, v: Remember(scope, "labels", v), st.sampled_from(["sender", "tenant"]), st.sampled_from("abc")
)
STEP = st.tuples(st.sampled_from(["m1", "m2", "m3", "m4"]), st.lists(st.one_of(SUM, LABEL), max_size=4))


@given(st.lists(STEP, max_size=25))
def test_each_message_counts_once_however_often_it_is_decided(steps: list[tuple[str, list[Remember]]]) -> None:
    """After any decisions, sums and sets are those of each message's last one alone; the disk says the same."""
    disk = Disk()
    book = FactBook(disk.load)
    last: dict[str, list[Remember]] = {}
    added: dict[str, list[Added]] = {}
    for author, notes in steps:
        added[author], changes = changed(book, author, added.get(author, []), *notes)
        disk.write(changes)
        last[author] = notes
        total = sum(note.add or 0 for every in last.values() for note in every)
        assert facts(book).get("spent", 0) == total
        for scope in ("sender", "tenant"):
            labels = {note.value for every in last.values() for note in every if note.value and note.scope == scope}
            assert facts(book, scope).get("labels", []) == sorted(map(str, labels))
        again = FactBook(disk.load)
        assert facts(again) == facts(book)
        assert facts(again, "tenant") == facts(book, "tenant")
    for author in list(added):
        _, changes = changed(book, author, added[author])
        disk.write(changes)
    assert facts(book) == facts(book, "tenant") == {}
    assert not any(disk.rows.values())


@given(st.lists(STEP, max_size=12), st.sampled_from(["m1", "m2", "m3"]))
def test_what_a_message_sees_is_what_there_is_without_it(steps: list[tuple[str, list[Remember]]], asking: str) -> None:
    """`without` shows what would be there had the message never been decided, and changes nothing."""
    book, alone = FactBook(lambda *_: {}), FactBook(lambda *_: {})
    added: dict[str, list[Added]] = {}
    others: dict[str, list[Added]] = {}
    for author, notes in steps:
        added[author], _ = changed(book, author, added.get(author, []), *notes)
        if author != asking:
            others[author], _ = changed(alone, author, others.get(author, []), *notes)
    before = facts(book)
    seen = book.without("agent", "desk", added.get(asking, []), asking)
    assert {key: value for key, value in seen.items() if key not in ("sent", "refused")} == facts(alone)
    assert facts(book) == before


@given(
    st.integers(-50, 50),
    st.lists(
        st.one_of(
            st.builds(lambda n: Remember("sender", "k", n), st.integers(-50, 50)),
            st.builds(lambda n: Remember("sender", "k", add=n), st.integers(-50, 50)),
        ),
        min_size=1,
        max_size=5,
    ),
    st.lists(st.integers(-50, 50), max_size=3),
)
def test_replacing_a_number_can_be_taken_out(first: int, notes: list[Remember], later: list[int]) -> None:
    """A number that one message replaced, even twice, and others added to, is without it what it was, with theirs."""
    book = FactBook(lambda *_: {})
    changed(book, "m0", [], Remember("sender", "k", first))
    added, _ = changed(book, "m1", [], *notes)
    for number in later:
        changed(book, "other", [], Remember("sender", "k", add=number))
    changed(book, "m1", added)
    assert facts(book).get("k", 0) == first + sum(later)


def test_the_last_to_replace_a_number_wins() -> None:
    """A number that was replaced by another message since is not touched when the first is decided again."""
    book = FactBook(lambda *_: {})
    first, _ = changed(book, "m1", [], Remember("sender", "limit", 10))
    changed(book, "m2", [], Remember("sender", "limit", 20))
    changed(book, "m1", first, Remember("sender", "other", 1))
    assert facts(book) == {"limit": 20, "other": 1}


def test_all_of_a_change_or_nothing() -> None:
    """A note that cannot be kept leaves the book as it was, with what the message had added before."""
    book = FactBook(lambda *_: {})
    changed(book, "m0", [], Remember("sender", "n", add=1), Remember("tenant", "s", "y"))
    added, _ = changed(book, "m1", [], Remember("sender", "n", add=5), Remember("tenant", "s", "x"))
    before = (facts(book), facts(book, "tenant"))
    for bad, code in [
        (Remember("sender", "n", "text"), "policy_malformed"),
        (Remember("tenant", "s", add=1), "policy_malformed"),
        (Remember("tenant", "s", 1), "policy_malformed"),
        (Remember("sender", "sent", add=1), "policy_malformed"),
        (Remember("sender", "refused", 1), "policy_malformed"),
        (Remember("sender", "", 1), "policy_malformed"),
        (Remember("sender", "k" * (NAME_CHARS_MAX + 1), 1), "policy_malformed"),
        (Remember("sender", "big", NUMBER_MAX + 1), "policy_malformed"),
        (Remember("sender", "nan", float("nan")), "policy_malformed"),
    ]:
        for author, old in (("m1", added), ("m2", [])):
            result = book.change(author, old, [Remember("sender", "ok", 1), bad], OWNERS)
            assert isinstance(result, Refusal), bad
            assert (result.code, bool(result.remedy)) == (code, True)
            assert (facts(book), facts(book, "tenant")) == before


def test_bounds_refuse_with_facts_full() -> None:
    """256 keys a scope, 1,000 values a key, sums within ±(2^53-1): one more is facts_full, the last one is not."""
    book = FactBook(lambda *_: {})
    changed(book, "m", [], *[Remember("sender", f"k{n}", 1) for n in range(KEYS_MAX)])
    changed(book, "m", [], *[Remember("tenant", "set", f"v{n}") for n in range(VALUES_MAX)])
    changed(book, "m", [], Remember("conversation", "sum", add=NUMBER_MAX))
    for note in [
        Remember("sender", "one-more", 1),
        Remember("tenant", "set", "one-more"),
        Remember("conversation", "sum", add=1),
    ]:
        result = book.change("n", [], [note], OWNERS)
        assert isinstance(result, Refusal)
        assert result.code == "facts_full"
    changed(book, "n", [], Remember("sender", "k0", 2), Remember("tenant", "set", "v0"))
    changed(book, "n", [], Remember("conversation", "sum", add=-1))


def test_after_a_failed_write_the_disk_is_the_truth() -> None:
    """What could not be written is forgotten with all that stood beside it, counters too."""
    disk = Disk()
    book = FactBook(disk.load)
    _, changes = changed(book, "m1", [], Remember("sender", "n", add=5))
    disk.write(changes)
    changed(book, "m2", [], Remember("sender", "n", add=7))
    book.owner("agent", "desk").sent = 9
    assert facts(book) == {"n": 12}
    book.forget_all()
    assert facts(book) == {"n": 5}
    assert book.owner("agent", "desk").sent == 0


def test_owners_in_memory_are_bounded_and_none_with_unwritten_changes_goes() -> None:
    """Beyond OWNERS_MAX the oldest are read again when needed; one whose change is not on disk stays."""
    disk = Disk()
    book = FactBook(disk.load)
    _, waiting = changed(book, "m1", [], Remember("sender", "n", add=5))
    written = book.put("tenant", "acme", "limit", 3)
    assert not isinstance(written, Refusal)
    disk.write(written)
    book.durable(written)
    for number in range(OWNERS_MAX + 1):
        book.owner("conversation", f"c{number}", fresh=True)
    loads = disk.loads
    assert facts(book) == {"n": 5}
    assert disk.loads == loads
    assert facts(book, "tenant") == {"limit": 3}
    assert disk.loads == loads + 1
    disk.write(waiting)


def test_a_fresh_owner_is_not_looked_up() -> None:
    """An owner that nobody can have written to costs no read."""
    disk = Disk()
    book = FactBook(disk.load)
    assert book.owner("conversation", "new", fresh=True) == Owner()
    assert disk.loads == 0


def test_operators_put_and_remove() -> None:
    """An operator's string joins a set, a number replaces; what is removed is gone from the rows too."""
    disk = Disk()
    book = FactBook(disk.load)
    for value in ("a", "b"):
        changes = book.put("agent", "desk", "labels", value)
        assert not isinstance(changes, Refusal)
        disk.write(changes)
    assert facts(book) == facts(FactBook(disk.load)) == {"labels": ["a", "b"]}
    disk.write(book.remove("agent", "desk", "labels"))
    assert facts(book) == facts(FactBook(disk.load)) == {}


def test_stored_rows_are_json_that_reads_back() -> None:
    """Counters, numbers and sets are stored as JSON, and an owner read from them shows the same."""
    rows = {"": Owner(3, 2, 1).counters(), "n": b'{"n":1.5,"by":null,"was":null,"adds":0}', "s": b'{"s":{"x":2}}'}
    assert json.loads(rows[""]) == {"n": 3, "sent": 2, "refused": 1}
    assert read(rows).view() == {"sent": 2, "refused": 1, "n": 1.5, "s": ["x"]}
