"""Facts: what earlier decisions remembered, as later decisions see it (contract §4).

The book is the truth while the bus runs; every change of it goes to the ledger with the decision that made it, and
after a failed write the book is emptied and read anew. Numbers remember who wrote them and sets count their authors,
so that a message that is decided again counts once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from enhanced_agent_bus.ports import FactChange
from enhanced_agent_bus.verdict import Party, Refusal, Remember

KEYS_MAX: Final = 256
VALUES_MAX: Final = 1000
NAME_CHARS_MAX: Final = 256
NUMBER_MAX: Final = 2**53 - 1  # as for numbers in payloads (RFC 7493)
OWNERS_MAX: Final = 10_000  # in memory; the ledger has the rest
COUNTERS: Final = ""  # the key under which an owner's own counters are kept
RESERVED: Final = frozenset({"sent", "refused"})

AGENT, CONVERSATION, TENANT = "agent", "conversation", "tenant"


class Number(NamedTuple):
    """A number; `author` replaced `before` with it (both None when it was summed)."""

    value: int | float
    author: str | None = None
    before: int | float | None = None
    adds: int = 0  # how many additions are in it: a sum of 0 is not gone while there are any

    def plus(self, add: int, adds: int = 1) -> Number:
        """With one addition more (or, where `adds` is -1, less), whoever replaced it and takes that back later."""
        before = None if self.author is None else (self.before or 0) + add
        return Number(self.value + add, self.author, before or None, self.adds + adds)

    @property
    def gone(self) -> bool:
        """Nothing that anybody wrote is left in it."""
        return not self.adds and not self.value and self.author is None


Values = dict[str, int]  # a set: each value with how many messages added it
Added = tuple[str, str, str, str | int | float | None, int | None]  # scope, owner, key, value, add


class Planned(NamedTuple):
    """A change that is worked out and not made yet."""

    added: list[Added]
    changes: list[FactChange]
    touched: Mapping[tuple[str, str], dict[str, Number | Values]]  # the owners' facts as they are after it


@dataclass(slots=True)
class Owner:
    """All facts about one agent, conversation or tenant."""

    n: int = 0  # decisions recorded for this sender: its own count, without gaps
    sent: int = 0
    refused: int = 0
    facts: dict[str, Number | Values] = field(default_factory=dict)
    pending: int = 0  # changes that are not yet durable; the owner stays in memory as long

    def view(self) -> dict[str, Any]:
        """What policies see."""
        seen: dict[str, Any] = {"sent": self.sent, "refused": self.refused}
        for key, fact in self.facts.items():
            seen[key] = fact.value if isinstance(fact, Number) else sorted(fact)
        return seen

    def counters(self) -> bytes:
        return b'{"n":%d,"sent":%d,"refused":%d}' % (self.n, self.sent, self.refused)


class FactBook:
    """The facts of one bus, read through `load(scope, owner)` and changed by decisions."""

    def __init__(self, load: Callable[[str, str], Mapping[str, bytes]]) -> None:
        self._load = load
        self._owners: OrderedDict[tuple[str, str], Owner] = OrderedDict()

    def forget_all(self) -> None:
        """After a failed write nothing in memory can be trusted."""
        self._owners = OrderedDict()

    def owner(self, scope: str, name: str, *, fresh: bool = False) -> Owner:
        """The facts of one owner; `fresh` when nobody can have written any yet."""
        key = (scope, name)
        owner = self._owners.get(key)
        if owner is None:
            owner = Owner() if fresh else read(self._load(scope, name))
            if len(self._owners) >= OWNERS_MAX:
                self._make_room()
            self._owners[key] = owner
        return owner

    def _make_room(self) -> None:
        """Lets the oldest go that is on disk, one for one: many at once would keep the garbage collector busy."""
        for _ in range(len(self._owners)):
            key, owner = self._owners.popitem(last=False)
            if not owner.pending:
                return
            self._owners[key] = owner

    def durable(self, changes: Sequence[FactChange]) -> None:
        """These changes are on disk."""
        for change in changes:
            owner = self._owners.get((change.scope, change.owner))
            if owner is not None and owner.pending:
                owner.pending -= 1

    def without(self, scope: str, name: str, added: Sequence[Added], author: str) -> dict[str, Any]:
        """The view of an owner as if `author` had not added these."""
        owner = self.owner(scope, name)
        if not any(item[0] == scope and item[1] == name for item in added):
            return owner.view()
        copy = Owner(owner.n, owner.sent, owner.refused, copied(owner.facts))
        for item in reversed(added):
            if item[0] == scope and item[1] == name:
                take_out(copy.facts, item, author)
        return copy.view()

    def change(
        self, author: str, before: Sequence[Added], remember: Sequence[Remember], owners: Mapping[str, tuple[str, str]]
    ) -> tuple[list[Added], list[FactChange]] | Refusal:
        """Takes out what `author` added before and adds what it remembers now; all of it or nothing.

        `owners` maps the policy's scopes to (scope, owner). Returns what was added, and the rows that changed.
        """
        planned = self.plan(author, before, remember, owners)
        if isinstance(planned, Refusal):
            return planned
        self.take(planned)
        return planned.added, planned.changes

    def plan(
        self, author: str, before: Sequence[Added], remember: Sequence[Remember], owners: Mapping[str, tuple[str, str]]
    ) -> Planned | Refusal:
        """What `change` would do."""
        touched: dict[tuple[str, str], dict[str, Number | Values]] = {}
        keys: set[tuple[str, str, str]] = set()

        def facts_of(scope: str, name: str) -> dict[str, Number | Values]:
            if (scope, name) not in touched:
                touched[scope, name] = copied(self.owner(scope, name).facts)
            return touched[scope, name]

        for item in reversed(before):
            take_out(facts_of(item[0], item[1]), item, author)
            keys.add(item[:3])
        added: list[Added] = []
        for note in remember:
            scope, name = owners[note.scope]
            refusal = put_in(facts_of(scope, name), note, author)
            if refusal is not None:
                return refusal
            added.append((scope, name, note.key, note.value, note.add))
            keys.add((scope, name, note.key))
        changes = [
            FactChange(scope, name, key, written(touched[scope, name].get(key))) for scope, name, key in sorted(keys)
        ]
        return Planned(added, changes, touched)

    def take(self, planned: Planned) -> None:
        """Makes a change that was worked out on the facts as they still are."""
        for (scope, name), facts in planned.touched.items():
            self.owner(scope, name).facts = facts
        self.pin(planned.changes)

    def adopt(self, scope: str, name: str, facts: dict[str, Number | Values]) -> None:
        """These are the facts of an owner now; the bus's own counters stay."""
        owner = self._owners.get((scope, name))
        if owner is not None:
            owner.facts = facts

    def pin(self, changes: Sequence[FactChange]) -> None:
        """Keeps the owners of these changes in memory until they are durable."""
        for change in changes:
            owner = self._owners.get((change.scope, change.owner))
            if owner is not None:
                owner.pending += 1

    def put(self, scope: str, name: str, key: str, value: str | float) -> list[FactChange] | Refusal:
        """An operator's fact. Raises: ValueError, for text that cannot be kept (lone surrogates)."""
        planned = self.plan_put(scope, name, key, value)
        if isinstance(planned, Refusal):
            return planned
        self.take(planned)
        return planned.changes

    def remove(self, scope: str, name: str, key: str) -> list[FactChange]:
        """Raises: KeyError, when there is no such fact."""
        planned = self.plan_removal(scope, name, key)
        self.take(planned)
        return planned.changes

    def plan_put(self, scope: str, name: str, key: str, value: str | float) -> Planned | Refusal:
        """What `put` would do. Raises: ValueError."""
        for text in (name, key, *([value] if isinstance(value, str) else [])):
            text.encode()
        facts = copied(self.owner(scope, name).facts)
        refusal = put_in(facts, Remember("sender", key, value), "")
        return refusal if refusal is not None else _one(scope, name, key, facts)

    def plan_removal(self, scope: str, name: str, key: str) -> Planned:
        """What `remove` would do. Raises: KeyError."""
        facts = copied(self.owner(scope, name).facts)
        del facts[key]
        return _one(scope, name, key, facts)


def _one(scope: str, name: str, key: str, facts: dict[str, Number | Values]) -> Planned:
    return Planned([], [FactChange(scope, name, key, written(facts.get(key)))], {(scope, name): facts})


def copied(facts: Mapping[str, Number | Values]) -> dict[str, Number | Values]:
    """A copy to change: what others look at stays as it is."""
    return {key: fact if isinstance(fact, Number) else dict(fact) for key, fact in facts.items()}


def put_in(facts: dict[str, Number | Values], note: Remember, author: str) -> Refusal | None:
    """Adds one fact, or says why not: facts_full beyond the bounds, policy_malformed where kinds are mixed."""
    fact = facts.get(note.key)
    if note.key in RESERVED or not note.key or len(note.key) > NAME_CHARS_MAX:
        return Refusal(
            "policy_malformed", f"remember uses the key {note.key[:40]!r}, which it cannot", "choose another key"
        )
    if fact is None and len(facts) >= KEYS_MAX:
        return Refusal("facts_full", f"there are {KEYS_MAX} keys already", "remove facts that are no longer needed")
    if note.add is not None:
        if fact is not None and not isinstance(fact, Number):
            return _mixed(note.key)
        number = (fact or Number(0)).plus(note.add)
        if abs(number.value) > NUMBER_MAX:
            return Refusal("facts_full", f"{note.key!r} would be beyond ±(2^53-1)", "start again with a smaller number")
        facts[note.key] = number
    elif isinstance(note.value, str):
        if isinstance(fact, Number):
            return _mixed(note.key)
        if len(note.value) > NAME_CHARS_MAX:
            return Refusal(
                "policy_malformed", f"a value for {note.key!r} is over {NAME_CHARS_MAX} characters", "remember less"
            )
        values = facts[note.key] = dict(fact or {})
        if note.value not in values and len(values) >= VALUES_MAX:
            return Refusal("facts_full", f"{note.key!r} has {VALUES_MAX} values already", "remove old values")
        values[note.value] = values.get(note.value, 0) + 1
    elif note.value is not None:
        if fact is not None and not isinstance(fact, Number):
            return _mixed(note.key)
        if not abs(note.value) <= NUMBER_MAX:  # NaN neither
            return Refusal("policy_malformed", f"{note.key!r} would be beyond ±(2^53-1)", "remember smaller numbers")
        own = fact is not None and fact.author == author
        before = None if fact is None else fact.before if own else fact.value
        facts[note.key] = Number(note.value, author, before, fact.adds if fact is not None else 0)
    return None


def take_out(facts: dict[str, Number | Values], item: Added, author: str) -> None:
    """Undoes one addition; what others did to the same key stays."""
    _, _, key, value, add = item
    fact = facts.get(key)
    if isinstance(fact, Number) and add is not None:
        _keep(facts, key, fact.plus(-add, -1))
    elif isinstance(fact, Number) and fact.author == author:
        _keep(facts, key, Number(fact.before or 0, adds=fact.adds))
    elif isinstance(fact, dict) and isinstance(value, str) and value in fact:
        fact[value] -= 1
        if not fact[value]:
            del fact[value]
        if not fact:
            del facts[key]


def _keep(facts: dict[str, Number | Values], key: str, number: Number) -> None:
    facts[key] = number
    if number.gone:
        del facts[key]


def _mixed(key: str) -> Refusal:
    return Refusal("policy_malformed", f"remember mixes numbers and strings under {key!r}", "use one key for one kind")


def written(fact: Number | Values | None) -> bytes | None:
    """The stored form: {"n", "by", "was", "adds"} for a number, {"s": {value: authors}} for a set."""
    if fact is None:
        return None
    if isinstance(fact, Number):
        return orjson.dumps({"n": fact.value, "by": fact.author, "was": fact.before, "adds": fact.adds})
    return orjson.dumps({"s": fact})


def read(rows: Mapping[str, bytes]) -> Owner:
    """An owner from its stored rows."""
    owner = Owner()
    for key, raw in rows.items():
        value = orjson.loads(raw)
        if key == COUNTERS:
            owner.n, owner.sent, owner.refused = value["n"], value["sent"], value["refused"]
        elif "s" in value:
            owner.facts[key] = value["s"]
        else:
            owner.facts[key] = Number(value["n"], value["by"], value["was"], value["adds"])
    return owner


def scopes(sender: Party, recipient: Party, conversation: str) -> dict[str, tuple[str, str]]:
    """Where each of the policy's four scopes is kept: sender and recipient are agents alike."""
    return {
        "sender": (AGENT, sender.id),
        "recipient": (AGENT, recipient.id),
        "conversation": (CONVERSATION, conversation),
        "tenant": (TENANT, sender.tenant),
    }
