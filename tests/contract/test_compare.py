"""Two constitutions asked at once answer as each does alone.

A candidate that differs from the original in rules alone is not evaluated where its rules say what the original's say
(docs/decisions/trying_a_constitution.md), and neither where an earlier message agrees with it in all that is read. Here
both are made up, so is the rest that asks the rules, and messages have parts of earlier ones.
"""

import asyncio
import copy
import os
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.errors import ConstitutionRejected
from enhanced_agent_bus.verdict import Answer
from tests.contract.test_same_verdict import READS, RISKS, SAYINGS, Author, Traffic
from tests.support import MAIN, write_constitution

PAIRS = 400 if os.environ.get("EAB_HYPOTHESIS") == "fuzz" else 25
MESSAGES = 80  # a pair
AT_ONCE = 32
SECONDS = 60.0
pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(600)]

#: What main.rego may have beside the decision: the rest of a constitution sees more of a rule by it. FIELD is a part.
GLANCES = (
    '"seen": [x | some name in data.bus.manifest.rules; x := data.bus.rules[name].FIELD]',
    '"seen": {name: x | x := data.bus.rules[name].FIELD}',
    '"seen": [x | some name in data.bus.manifest.rules; some y in ["FIELD", "code"]; x := data.bus.rules[name][y]]',
    '"seen": [x | some name in data.bus.manifest.rules; some part; x := data.bus.rules[name][part]; part != "FIELD"]',
    '"seen": [x | some name in data.bus.manifest.rules; x := data.bus.rules[name][input.message.type]]',
    '"seen": [x | some name in data.bus.manifest.rules; x := type_name(data.bus.rules[name].FIELD)]',
    '"seen": [x | some name in data.bus.manifest.rules; some x in data.bus.rules[name].FIELD]',
    '"seen": count([name | data.bus.rules[name].FIELD == 1])',
    '"seen": data.bus.rules.rule_0',
    '"seen": data.bus.rules',
    '"seen": [x | some name in data.bus.manifest.rules; x := data.bus.rules[name].FIELD with input.message as {}]',
)  # fmt: skip
PLAIN_READS = tuple(way for way in READS if " with " not in way)
#: What a rule may say beside yes and no, and what another one may ask of it.
FIELDS = {
    "limit": (
        "limit := N", "limit := N.0", "limit := input.message.priority", "limit := data.bus.rules.RULE.level",
        "limit := 1 / (input.message.priority - N)",
    ),
    "code": (
        "code := V", "code := input.message.type", 'code := "other" if input.message.priority > N',
        "code := 6 / (input.message.priority - N)",
    ),
    "message": tuple(way for way in SAYINGS if way.startswith("message")),
    "marks": ("marks contains V", "marks contains input.message.type", "marks[input.message.type] := V"),
    "same": ("same(x) := x", "same(x) := [x]", "same(x) := N if x != V"),
}  # fmt: skip
ASKED = ("limit", "code", "marks", "level", "admit")
FROM_OTHERS = {
    "limit": "data.bus.rules.OTHER.limit == N",
    "code": "not data.bus.rules.OTHER.code == input.message.type",
    "marks": "some x in data.bus.rules.OTHER.marks\n\tx != V",
    "same": "data.bus.rules.OTHER.same(input.message.priority) == N",
}
LEVELS: tuple[object, ...] = (0, 1, 1.0, 2, 3, "a", None, [], ["a"])


@dataclass
class Rule:
    """A rule in parts, of which a candidate has another one."""

    admits: str
    said: dict[str, str]
    level: object
    more: str = ""


class Pairs(Author):
    """Writes an original of a few rules, and candidates that differ from it in a place or two."""

    def pair(self) -> list[dict[str, Any]]:
        """The arguments of write_constitution for both."""
        names = [f"rule_{number}" for number in range(self._chance.randint(2, 3))]
        rules: dict[str, Rule] = {}
        for name in names:
            rules[name] = self._rule_of(name, rules)
        main = MAIN.read_text()
        if self._chance.random() < 0.6:
            glance = self._chance.choice(GLANCES).replace("FIELD", self._chance.choice(ASKED))
            main = main.replace('"allow": allow,', f'"allow": allow,\n\t{glance},')
        sides = [self._files(main, names, rules)]
        for _ in range(self._chance.choice((1, 1, 2))):
            place = self._chance.randrange(len(names))
            new = self._rule_of(names[place], {name: rules[name] for name in names[:place]})
            rules[names[place]] = self._changed(rules[names[place]], new)
        if self._chance.random() < 0.1:
            self._chance.shuffle(names)
        return [*sides, self._files(main, names, rules)]

    def _files(self, main: str, names: list[str], rules: dict[str, Rule]) -> dict[str, Any]:
        files = {"bus/main.rego": main} | {f"bus/rules/{name}/more.rego": rules[name].more for name in names}
        bodies = {name: "\n\n".join((rules[name].admits, *rules[name].said.values())) for name in names}
        return {
            "rules": {name: f"{body}\n{self._helpers(body)}" for name, body in bodies.items()},
            "data": {name: {"level": rules[name].level} for name in names},
            "files": {path: text for path, text in files.items() if text},
        }

    def _changed(self, rule: Rule, new: Rule) -> Rule:
        way = self._chance.random()
        if way < 0.6:
            kind = self._chance.choice(sorted(new.said))
            return replace(rule, said=rule.said | {kind: new.said[kind]}, more=new.more)
        return replace(rule, level=new.level) if way < 0.9 else replace(rule, admits=new.admits)

    def _rule_of(self, name: str, earlier: dict[str, Rule]) -> Rule:
        chance = self._chance.random
        lines = [self._chance.choice(PLAIN_READS if chance() < 0.95 else (*READS, *RISKS))]
        if chance() < 0.3:
            lines.append(f"input.message.priority {self._chance.choice(('<', '>', '!='))} data.bus.rules.{name}.level")
        kinds = [(other, kind) for other, rule in earlier.items() for kind in rule.said if kind in FROM_OTHERS]
        asked = [FROM_OTHERS[kind].replace("OTHER", other) for other, kind in kinds]
        if asked and chance() < 0.3:
            lines.append(self._chance.choice(asked))
        admits = self._filled("\n\n".join(f"admit if {{\n\t{line}\n}}" for line in lines))
        said = {kind: self._filled(self._chance.choice(ways)).replace("RULE", name) for kind, ways in FIELDS.items()}
        for kind in self._chance.sample(sorted(said), self._chance.randrange(3)):
            del said[kind]
        package = self._chance.choice((f"bus.rules.{name}", f"bus.rules.{name}", "bus", "bus.more"))
        more = f"package {package}\n\nextra := {self._value()}\n" if chance() < 0.15 else ""
        return Rule(admits, said, self._chance.choice(LEVELS), more)


def akin(traffic: Traffic, chance: random.Random, number: int) -> list[bytes]:
    """So many inputs; most are an earlier one with some parts of another, so that they agree in much."""
    seen = [orjson.loads(traffic.document()) for _ in range(number // 4)]
    while len(seen) < number:
        one, other = (copy.deepcopy(chance.choice(seen)) for _ in range(2))
        for _ in range(chance.choice((0, 1, 1, 2))):
            _exchange(one, other, chance)
        seen.append(one)
    return [orjson.dumps(one) for one in seen]


def _exchange(one: dict[str, Any], other: dict[str, Any], chance: random.Random) -> None:
    """Gives `one` a part that `other` has, or takes one that it has not, however deep."""
    name = chance.choice(sorted({*one, *other}))
    mine, theirs = one.get(name), other.get(name)
    if isinstance(mine, dict) and isinstance(theirs, dict) and (mine or theirs) and chance.random() < 0.8:
        _exchange(mine, theirs, chance)
    elif name in other:
        one[name] = theirs
    else:
        del one[name]


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[WorkerEngine]:
    """The embedded engine."""
    made = await WorkerEngine.start(workers=1)
    yield made
    await made.close()


async def both_ways(worker: WorkerEngine, digests: list[str], documents: Iterable[bytes]) -> Counter[str]:
    """Asks each document both ways, and counts what came out. Raises: AssertionError, with the first that differs."""
    counted: Counter[str] = Counter()
    waiting = iter(documents)

    def said(answer: Answer) -> tuple[Any, ...]:
        return answer.code, answer.body, answer.detail

    async def ask() -> None:
        for document in waiting:
            together = await worker.compare(digests[0], digests[1], "acme", document, SECONDS)
            alone = [await worker.decide(digest, "acme", document, SECONDS) for digest in digests]
            assert together is not None
            assert list(map(said, together)) == list(map(said, alone)), document
            counted["asked once" if together[0] is together[1] else "asked twice"] += 1
            counted["equal" if said(alone[0]) == said(alone[1]) else "different"] += 1
            counted["errors"] += any(answer.code is not None for answer in alone)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(ask())
    return counted


async def test_together_as_alone_under_the_starter_constitution(
    worker: WorkerEngine, tmp_path: Path, seed: int
) -> None:
    """Under a budget for others and at other hours each message is answered as under that constitution alone."""
    chance = random.Random(seed)
    candidate = tmp_path / "candidate"
    shutil.copytree(MAIN.parent.parent, candidate)
    for rule, old, new in (("daily_budget", "payments", "flights"), ("office_hours", "18", "12")):
        settings = candidate / "bus" / "rules" / rule / "data.json"
        assert old in settings.read_text()
        settings.write_text(settings.read_text().replace(old, new))
    digests = [(await worker.load(path)).digest for path in (MAIN.parent.parent, candidate)]
    counted = await both_ways(worker, digests, akin(Traffic(chance), chance, MESSAGES * 10))
    assert min(counted["asked once"], counted["different"]) > MESSAGES, counted  # both ways of asking were taken


async def test_together_as_alone_under_made_up_constitutions(worker: WorkerEngine, tmp_path: Path, seed: int) -> None:
    """Rules that ask each other, main.regos that see more of a rule, folders that reach out: in either way the same."""
    chance = random.Random(seed)
    author, traffic = Pairs(chance), Traffic(chance)
    counted: Counter[str] = Counter()
    for number in range(PAIRS):
        try:
            digests = [
                (await worker.load(write_constitution(tmp_path / f"{number}-{side}", **files))).digest
                for side, files in enumerate(author.pair())
            ]
        except ConstitutionRejected:
            counted["rejected"] += 1
            continue
        counted += await both_ways(worker, digests, akin(traffic, chance, MESSAGES))
        for digest in set(digests):
            await worker.drop(digest)
    assert counted["rejected"] < PAIRS / 2, counted
    assert counted["errors"] > 0, counted
    assert min(counted["asked once"], counted["asked twice"], counted["different"]) > PAIRS, counted
