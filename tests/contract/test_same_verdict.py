"""P8: the worker and a stock OPA server, with the same bundle, give the same verdict, codes and reasons to any message.

The worker reads only the part of an input that a policy reads; a server reads it whole. So the made-up constitutions
read their input in every way that Rego has: deep, by computed names, whole, through functions, under `with`.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from enhanced_agent_bus.admission.answer import ruling
from enhanced_agent_bus.engines.server import ServerEngine
from enhanced_agent_bus.engines.worker import WorkerEngine
from enhanced_agent_bus.verdict import Answer, Refusal
from tests.opa import opa_server
from tests.support import write_constitution

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = 20_000 if os.environ.get("EAB_HYPOTHESIS") == "fuzz" else 900
AT_ONCE = 32
SECONDS = 60.0
pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(600)]

# --- messages --------------------------------------------------------------------------------------------------------

KEYS = (
    "a",
    "b",
    "c",
    "amount",
    "action",
    "tools",
    "list",
    "passport",
    "note",
    "Ä",
    "a.b",
    "a/b",
    'q"uote',
    "",
    "\u2028",
    "0",
)
TEXTS = (
    "", "a", "b", "1", "true", "null", "pay", "search", "2026-11-21", "x" * 300, "Ä\u0000\ufffd", "\U0001f600",
    "e\u0301", '\n\t"\\/',
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 7, 10, 100, 2**53 - 1, -(2**53 - 1), 1.0, 5.0, 0.1, -0.0, 1e-7, 1.5e300, 5e-324, 0.30000000000000004,
    123456789.125,
)  # fmt: skip


class Traffic:
    """Inputs as the bus makes them, with payloads of every kind."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def document(self) -> bytes:
        """One input."""
        pick = self._chance.choice
        message: dict[str, Any] = {
            "id": f"desk/{self._chance.randrange(10**6)}",
            "type": pick(("command", "query", "event", "response", "task_request", "notification")),
            "priority": self._chance.randrange(4),
            "payload": self.payload(),
            "headers": pick(({}, {}, {"x": "1"}, {"x": "a", "trace": "Ä"}, {"": ""})),
            "conversation": pick(("c-1", "desk/7")),
            "hops": self._chance.randrange(4),
            "attempt": pick((1, 1, 2)),
            "size": self._chance.randrange(5000),
            "age_seconds": pick((0, 0, 9)),
        }
        if self._chance.random() < 0.2:
            message["topic"] = pick(("trips", "news"))
        seen: dict[str, Any] = {
            "message": message,
            "sender": self._party(),
            "recipient": self._party(),
            "constitution": {"digest": "0" * 64, "agreed": pick(("0" * 64, "1" * 64)), "revision": 1},
            "clock": {
                "date": pick(("2026-11-21", "2026-11-22", "2027-01-31")),
                "weekday": self._chance.randint(1, 7),
                "hour": self._chance.randrange(24),
                "minute": self._chance.randrange(60),
            },
            "facts": {
                "sender": self._facts() | {"sent": self._chance.randrange(9), "refused": 0},
                "recipient": self._facts(),
                "conversation": self._facts() | {"sent": 0, "refused": self._chance.randrange(3)},
                "tenant": self._facts(),
            },
            "approvals": self._approvals(),
        }
        if self._chance.random() < 0.2:
            seen["cause"] = {"id": "desk/1", "type": "command", "sender": pick(("desk", "booker")), "tenant": "acme"}
        return orjson.dumps(seen)

    def payload(self) -> dict[str, Any]:
        """From nothing to a handful of deep and odd values."""
        pick = self._chance.choice
        payload = {pick(KEYS): self.value(0) for _ in range(self._chance.randrange(6))}
        if self._chance.random() < 0.4:
            payload |= {"action": pick(("pay", "book", "refund", 1)), "amount": pick((*NUMBERS, "5", None))}
        if self._chance.random() < 0.3:
            payload["tools"] = pick((["search"], ["search", "pay"], "search", [], [1], {"search": True}))
        return payload

    def value(self, depth: int) -> Any:
        """Any JSON."""
        kind = self._chance.random()
        if depth > 4 or kind < 0.35:
            return self._chance.choice(TEXTS)
        if kind < 0.6:
            return self._chance.choice(NUMBERS)
        if kind < 0.7:
            return self._chance.choice((True, False, None))
        if kind < 0.85:
            return [self.value(depth + 1) for _ in range(self._chance.randrange(4))]
        return {self._chance.choice(KEYS): self.value(depth + 1) for _ in range(self._chance.randrange(4))}

    def _party(self) -> dict[str, Any]:
        pick = self._chance.choice
        roles = self._chance.sample(("planner", "worker", "payer", "clerk", "b", "chief"), self._chance.randrange(3))
        return {
            "id": pick(("desk", "booker", "payments")),
            "tenant": pick(("acme", "acme", "globex")),
            "roles": sorted(roles),
            "capabilities": pick(([], ["flights"])),
        }

    def _facts(self) -> dict[str, Any]:
        pick = self._chance.choice
        names = ("seen", "spent", "spent_2026-11-21", "labels", "Ä")
        return {
            pick(names): pick((0, 1, 900, 1.5, ["a"], ["a", "secret"], [])) for _ in range(self._chance.randrange(3))
        }

    def _approvals(self) -> list[dict[str, Any]]:
        given = [{"approver": "boss", "roles": ["chief"], "rule": "daily_budget", "at": "2026-11-21T10:00:00Z"}]
        return given if self._chance.random() < 0.2 else []


# --- constitutions ---------------------------------------------------------------------------------------------------

#: Ways to read the input. K and L are keys as Rego writes them, V a value, N a small number.
READS = (
    "input.message.payload[K] == V",
    "input.message.payload[K][L] != V",
    "not input.message.payload[K]",
    "not input.message.payload[K][L][0]",
    "object.get(input.message.payload, K, V) == V",
    'object.get(input, ["message", "payload", K], V) != V',
    'object.get(input.message, "payload", {})[K] == V',
    'object.get(object.get(input, "message", {}), ["payload", K], N) == N',
    "input.message.payload[_] == V",
    "input.message.payload[_][_] == V",
    "some x in input.message.payload\n\tx == V",
    "some key, x in input.message.payload\n\tkey != K\n\tx == V",
    'some part in {"message", "sender", "recipient"}\n\tinput[part].id == "desk"',
    'some part in {"sender", "facts"}\n\tsome name\n\tinput[part][name] == "acme"',
    'some part\n\tinput[part].tenant == "globex"',
    "whole := input\n\twhole.message.payload[K] == V",
    "message := input.message\n\tobject.get(message.payload, [K, L], V) == V",
    "walk(input, [path, value])\n\tpath[count(path) - 1] == K\n\tvalue != V",
    "walk(input.message.payload, [_, value])\n\tvalue == V",
    'walk(input["message"], [path, _])\n\tcount(path) > N',
    "count([1 | walk(input, [_, leaf]); is_string(leaf)]) > 20",
    "count({key | some key, _ in input.message.payload}) > N",
    "{key: value | some key, value in input.message.payload} == input.message.payload",
    "count([1 | some value in input.message.payload; is_number(value)]) < N",
    "sum([value | some value in input.message.payload; is_number(value)]) > N",
    "sort([value | some value in input.message.payload])[0] == V",
    "max([value | value := input.message.payload[_]]) == V",
    "object.keys(input.message.payload) & {K, L} == {K}",
    "count(object.keys(input)) == 7",
    'json.filter(input, ["message/payload/a", "sender/id"]).sender.id == "desk"',
    'object.filter(input.message, ["type", "payload"]).payload[K] == V',
    "object.remove(input.message.payload, [K]) == {}",
    "object.union(input.message.payload, {K: V})[L] == V",
    "object.subset(input.message.payload, {K: V})",
    'json.patch(input.message.payload, [{"op": "add", "path": "/new", "value": V}]).new == V',
    "json.unmarshal(json.marshal(input.message.payload)) == input.message.payload",
    "contains(json.marshal(input), json.marshal(K))",
    'type_name(input.message.payload[K]) == "number"',
    "input.message.payload[K] == input.message.payload[L]",
    "input.message.payload[K] < input.message.payload[L]",
    "input.message.payload[K] >= V",
    "[input.message.payload[K], V] == [V, input.message.payload[L]]",
    "input.message.payload == {K: V}",
    "{K: x} = input.message.payload\n\tx == V",
    '{"payload": {K: [x, _]}} = {"payload": input.message.payload}\n\tx == V',
    "deep(input, K)",
    "reader(input.message)[K] == V",
    "part(input.message.payload, L) == V",
    'inner with input as {"message": {"payload": {"a": V}}}',
    'inner with input.message.payload as {"a": V}',
    "inner with input.message.payload.a as input.message.payload[K]",
    'inner with input as object.union(input, {"message": {"payload": {"a": input.message.payload[L]}}})',
    "not inner with input.message as {}",
    "names[_] == K",
    "some name in names\n\tinput.message.payload[name] == V",
    "K in names",
    "some i\n\tinput.message.payload.list[i] == input.message.payload.list[i + 1]",
    "every x in input.message.payload.list {\n\t\tis_number(x)\n\t}",
    "every key, x in input.message.payload {\n\t\tkey != K\n\t\tx != V\n\t}",
    'input.message.headers[_] == "1"',
    'object.get(input.message.headers, "x", "none") == "a"',
    "input.sender.roles[_] == input.recipient.roles[_]",
    '"planner" in input.sender.roles',
    'some scope in ["sender", "tenant"]\n\tinput.facts[scope].seen == N',
    'input.facts[_][_] == ["a"]',
    'input.facts.sender[concat("_", ["spent", input.clock.date])] > N',
    'input.approvals[_].approver == "boss"',
    "count(input.approvals) == 0",
    'input.cause.sender == "desk"',
    "not input.cause",
    "not input.message.topic",
    "input.clock.hour + input.clock.minute > 30",
    'input.message[concat("", ["pay", "load"])][K] == V',
    'input[concat("", ["mess", "age"])].payload[K] == V',
    "bits.and(input.message.size, 3) == N",
)  # fmt: skip
#: Built-ins that fail on values of another type: the whole decision is an error then.
RISKS = (
    'startswith(input.message.payload[K], "a")',
    "1 / input.message.payload[K] < N",
    "to_number(input.message.payload[K]) > N",
    'regex.match(input.message.payload[K], "a")',
    'net.cidr_contains("10.0.0.0/8", input.message.payload[K])',
    "count([x | some x in input.message.payload; x % 2 == 0]) > N",
    "json.unmarshal(input.message.payload.note)[K] == V",
    "sum(input.message.payload.list) > N",
    'not lower(input.message.payload[_]) == "a"',
)  # fmt: skip
HELPERS = """
deep(document, key) if document.message.payload[key]

reader(message) := message.payload

part(payload, key) := object.get(payload, key, "none")

inner if input.message.payload.a == VALUE

names contains name if some name, _ in input.message.payload
"""
#: What a rule says goes into the reasons: so that what it saw has to be the same, to the last digit.
SAYINGS = (
    "message := json.marshal(input.message.payload)",
    "message := crypto.sha256(json.marshal(input))",
    'message := sprintf("%v", [input.message.payload])',
    'message := concat(" ", [path | walk(input.facts, [steps, _]); path := sprintf("%v", [steps])])',
    'message := json.marshal(object.get(input, ["message", "payload", K, L], V))',
    "code := type_name(object.get(input.message.payload, K, {}))",
    "remedy := json.marshal([value | some value in input.message.payload])",
    "remedy := json.marshal({key | some key, _ in input.message.payload})",
)  # fmt: skip


class Author:
    """Writes constitutions of many small rules, each of which admits where one thing holds."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def write(self, folder: Path, reads: tuple[str, ...], count: int) -> Path:
        """`count` rules of these ways to read, every way at least once where there is room."""
        ways = list(reads) * (1 + count // len(reads))
        self._chance.shuffle(ways)
        rules = {f"rule_{number:03d}": self._rule(way) for number, way in enumerate(ways[:count])}
        return write_constitution(folder, rules)

    def _rule(self, way: str) -> str:
        body = f"admit if {{\n\t{self._filled(way)}\n}}"
        if self._chance.random() < 0.3:
            body = f"{body}\n\n{self._filled(self._chance.choice(SAYINGS))}"
        helpers = self._helpers(body)
        return f"{body}\n{helpers}"

    def _helpers(self, body: str) -> str:
        parts = HELPERS.strip().split("\n\n")
        used = [part for part in parts if f"{part.split('(')[0].split()[0]}" in body]
        return "\n" + "\n\n".join(used).replace("VALUE", self._value()) if used else ""

    def _filled(self, way: str) -> str:
        return "".join(
            {"K": self._key, "L": self._key, "V": self._value, "N": self._number}.get(word, lambda word=word: word)()
            for word in _words(way)
        )

    def _key(self) -> str:
        return json.dumps(self._chance.choice(KEYS))

    def _number(self) -> str:
        return str(self._chance.randrange(4))

    def _value(self) -> str:
        return json.dumps(self._chance.choice((*TEXTS, *NUMBERS, True, False, None, [], {}, [1], {"a": 1}, ["a", "b"])))


def _words(text: str) -> Iterator[str]:
    """A template in pieces: what stands outside of quotes as words, so that only a bare K is a key."""
    word = ""
    quoted = False
    for sign in text:
        if sign == '"':
            quoted = not quoted
        if not quoted and (sign.isalnum() or sign == "_"):
            word += sign
            continue
        if word:
            yield word
            word = ""
        yield sign
    if word:
        yield word


# --- both ------------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[WorkerEngine]:
    """The embedded engine."""
    made = await WorkerEngine.start(workers=1)
    yield made
    await made.close()


def said(answer: Answer) -> Any:
    """The document, with its numbers as they were written."""
    if answer.code is not None:
        return None
    return json.loads(answer.body, parse_int=str, parse_float=str)


async def compare(worker: WorkerEngine, opa_binary: Path, constitution: Path, documents: list[bytes]) -> Counter[str]:
    """Asks both engines everything; how often each verdict was given. Raises: AssertionError, with the first input."""
    counted: Counter[str] = Counter()
    waiting = iter(enumerate(documents))
    digest = (await worker.load(constitution)).digest
    async with opa_server(opa_binary, constitution) as opa:
        server = await ServerEngine.start(opa.url)
        try:
            assert (await server.load(constitution)).digest == digest
            assert not {"policy_server_modules", "policy_server_data"} & set(server.weakenings)

            async def ask() -> None:
                for number, document in waiting:
                    tenant = f"tenant-{number % 40}"
                    here = await worker.decide(digest, tenant, document, SECONDS)
                    there = await server.decide(digest, tenant, document, SECONDS)
                    one, other = ruling(here), ruling(there)
                    assert one == other, (here, there, document)
                    assert said(here) == said(there), document
                    counted[one.code if isinstance(one, Refusal) else str(one.allow)] += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(ask())
        finally:
            await server.close()
    return counted


async def test_under_the_starter_constitution(worker: WorkerEngine, opa_binary: Path, seed: int) -> None:
    """Every message that these generators make: the same from both, allows and refusals among them."""
    traffic = Traffic(random.Random(seed))
    documents = [traffic.document() for _ in range(MESSAGES)]
    counted = await compare(worker, opa_binary, ROOT / "policies", documents)
    assert counted["False"] > MESSAGES / 2
    assert set(counted) <= {"True", "False"}


@pytest.mark.parametrize("number", [1, 2])
async def test_under_made_up_constitutions_that_read_in_every_way(
    worker: WorkerEngine, opa_binary: Path, tmp_path: Path, seed: int, number: int
) -> None:
    """Each rule that does not admit is a reason, so that every rule's answer is compared; and what it says it saw."""
    chance = random.Random(seed + number)
    constitution = Author(chance).write(tmp_path / "policies", READS, len(READS))
    traffic = Traffic(chance)
    counted = await compare(worker, opa_binary, constitution, [traffic.document() for _ in range(MESSAGES // 3)])
    assert counted["False"] + counted["True"] > MESSAGES / 6  # the rest are errors, alike


@pytest.mark.parametrize("number", [1, 2])
async def test_one_way_to_read_at_a_time(
    worker: WorkerEngine, opa_binary: Path, tmp_path: Path, seed: int, number: int
) -> None:
    """With a few rules only a few parts of an input are read: what is left out must not matter."""
    chance = random.Random(seed + 10 * number)
    narrow = tuple(way for way in READS if "input)" not in way and "walk(input," not in way and "whole" not in way)
    constitution = Author(chance).write(tmp_path / "policies", narrow, 4)
    traffic = Traffic(chance)
    await compare(worker, opa_binary, constitution, [traffic.document() for _ in range(MESSAGES // 3)])


@pytest.mark.parametrize("number", [1, 2])
async def test_when_built_ins_fail(
    worker: WorkerEngine, opa_binary: Path, tmp_path: Path, seed: int, number: int
) -> None:
    """What is an error in the worker is one on the server, at the same place."""
    chance = random.Random(seed + 100 * number)
    constitution = Author(chance).write(tmp_path / "policies", RISKS, 3)
    traffic = Traffic(chance)
    await compare(worker, opa_binary, constitution, [traffic.document() for _ in range(MESSAGES // 3)])


Make = Callable[..., Path]


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a":9007199254740991,"b":-9007199254740991,"c":5.0,"d":1e-7,"e":1.5e300,"f":-0.0,"g":0.1}',
        b'{"a":1E400,"b":123456789012345678901234567890,"c":1.0000000000000000000000001,"d":-0,"e":0e0}',
        '{"Ä":"\\u00c4","\\u0000":"\\ud83d\\ude00","":{"":[{"":null}]},"__proto__":1,"a.b":2}'.encode(),
        b'{"deep":' + b"[" * 60 + b"1" + b"]" * 60 + b"}",
        b'{"a":null,"b":[null,[],{},[[]],{"x":[]}],"c":{"d":{"e":{"f":{}}}}}',
        b'{"a":[1,1.0,10e-1,"1",true],"b":[0,-0,-0.0,0.0,false,null,""]}',
    ],
    ids=["limits", "beyond them", "names", "deep", "nothing", "alike"],
)
async def test_what_a_policy_sees_is_what_was_sent(
    worker: WorkerEngine, opa_binary: Path, constitution_dir: Make, payload: bytes
) -> None:
    """Numbers, names and emptiness arrive in both alike: the whole input comes back in the answer."""
    chance = random.Random(1)
    document = Traffic(chance).document()
    begin = document.index(b'"payload":') + len(b'"payload":')
    end = document.index(b',"headers":')
    question = document[:begin] + payload + document[end:]
    main = (
        'package bus\n\ndecision := {"allow": true, "whole": input, "part": input.message.payload, '
        '"type": input.message.type, "more": [y | some x in input.message.payload; is_number(x); y := x + 1]}\n'
    )
    folder = constitution_dir(files={"bus/main.rego": main})
    digest = (await worker.load(folder)).digest
    async with opa_server(opa_binary, folder) as opa:
        server = await ServerEngine.start(opa.url)
        try:
            await server.load(folder)
            here = await worker.decide(digest, "acme", question, SECONDS)
            there = await server.decide(digest, "acme", question, SECONDS)
        finally:
            await server.close()
    assert here.code == there.code
    assert said(here) == said(there)
