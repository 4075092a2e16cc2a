"""Bad messages and dishonest senders: refused with a code, the handler does not run, nothing secret leaks."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Agent, AgentBus, Gate, Message, Pass, Refusal, Refused, Retry
from tests.developer import Inbox, log, log_text, small_bus

MILLISECONDS_MAX = 50
SECRET = "s3cret-account-4711"


def nested(depth: int, make: Callable[[Any], Any] = lambda inner: {"a": inner}) -> dict[str, Any]:
    """A payload `depth` deep; {} is 1."""
    value: Any = {}
    for _ in range(depth - 1):
        value = make(value)
    return {"list": value} if isinstance(value, list) else value


def cyclic() -> dict[str, Any]:
    """A dict that holds itself."""
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


class TextKind(str):
    """Not exactly a str."""

    __slots__ = ()


BOMBS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "100,000 deep": (lambda: nested(100_000), {"too_deep"}),
    "100,000 lists deep": (lambda: nested(100_000, lambda inner: [inner]), {"too_deep"}),
    "65 deep": (lambda: nested(65), {"too_deep"}),
    "5,000-digit integer": (lambda: {"n": 10**5000}, {"malformed"}),
    "2^53": (lambda: {"n": 2**53}, {"malformed"}),
    "-2^53": (lambda: {"n": [-(2**53)]}, {"malformed"}),
    "2^53 as a float": (lambda: {"n": 2.0**53}, {"malformed"}),
    "1e300": (lambda: {"n": 1e300}, {"malformed"}),
    "NaN": (lambda: {"n": float("nan")}, {"malformed"}),
    "1e999": (lambda: {"n": 1e999}, {"malformed"}),
    "lone surrogate": (lambda: {"text": "\ud800"}, {"malformed"}),
    "lone surrogate in a key": (lambda: {"\udfff": 1}, {"malformed"}),
    "noncharacter": (lambda: {"text": "\uffff"}, {"malformed"}),
    "noncharacter of plane 16": (lambda: {"text": "\U0010fffe"}, {"malformed"}),
    "integer key": (lambda: {1: "a"}, {"malformed"}),
    "None key": (lambda: {"a": {None: "a"}}, {"malformed"}),
    "str subclass": (lambda: {"a": TextKind("x")}, {"malformed"}),
    "tuple": (lambda: {"a": (1, 2)}, {"malformed"}),
    "set": (lambda: {"a": {1}}, {"malformed"}),
    "bytes": (lambda: {"a": b"x"}, {"malformed"}),
    "object": (lambda: {"a": object()}, {"malformed"}),
    "a list": (lambda: [1], {"malformed"}),
    "a string": (lambda: "payload", {"malformed"}),
    "a number": (lambda: 7, {"malformed"}),
    "cyclic": (cyclic, {"too_deep", "malformed", "too_large"}),
    "100 MB string": (lambda: {"text": "x" * 100_000_000}, {"too_large"}),
    "100 MB key": (lambda: {"x" * 100_000_000: 1}, {"too_large"}),
    "100 MB beyond ASCII": (lambda: {"text": "ä" * 100_000_000}, {"too_large"}),
    "10 million items": (lambda: {"list": [0] * 10_000_000}, {"too_large"}),
    "one byte too many": (lambda: {"a": "x" * (262_144 - 7)}, {"too_large"}),
}


async def test_payload_bombs_are_refused_at_once(tmp_path: Path) -> None:
    """What is no JSON, too deep or too large is refused in under 50 ms; the next message is fine, and the record of
    each keeps nothing of it.
    """
    async with small_bus(tmp_path) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        for name, (make, codes) in BOMBS.items():
            payload = make()
            fastest = 1000.0
            for _ in range(3):
                started = time.perf_counter()
                receipt = await desk.send("booker", payload)
                fastest = min(fastest, (time.perf_counter() - started) * 1000)
                assert (receipt.state, receipt.code in codes) == ("refused", True), (name, receipt)
            assert fastest < MILLISECONDS_MAX, name
            (record,) = log(tmp_path / "home", "decision", message_id=receipt.message_id)
            assert (record["verdict"], record["code"]) == ("refuse", receipt.code)
            assert record["payload"] is None
            while isinstance(payload, dict) and payload.get("a"):  # taken apart step by step: del would recurse
                payload = payload.pop("a")
        receipt = await desk.send("booker", {"fine": True})
        assert (await receipt.outcome(timeout=5)).state == "delivered"
        assert len(inbox.got) == 1
    assert max(map(len, log_text(tmp_path / "home").splitlines())) < 65_536


FINE: dict[str, Any] = {
    "64 deep": nested(64),
    "2^53-1": {"n": [2**53 - 1, 1 - 2**53]},
    "floats": {"n": [5.0, 0.0, 1e-7, 0.1, 1e15, 5e-324]},
    "text": {"text": "tab\t, ä, 漢, 😀, U+0000 \x00, byte order mark \ufeff, U+2028 \u2028"},
    "beyond ASCII keys": {"ä": 1, "漢": 2, "😀": 3, "\ufb33": 4},
    "empty": {},
    "all kinds": {"a": [None, True, False, 0, 1.5, "", [], {}]},
    "as large as allowed": {"a": "x" * (262_144 - 8)},
    "equal in Python": {"a": [1, 1.0, True, "1", None, 0, 0.0, False, ""]},
}


@pytest.mark.parametrize("name", FINE)
async def test_ordinary_payloads_arrive_as_they_were_sent(tmp_path: Path, name: str) -> None:
    """Valid traffic is easy: every JSON value arrives equal and of its own type."""
    async with small_bus(tmp_path, home=":memory:") as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        receipt = await desk.send("booker", FINE[name])
        assert (await receipt.outcome(timeout=5)).state == "delivered"
        assert repr(inbox.got[0].payload) == repr(FINE[name]) or json.dumps(
            inbox.got[0].payload, sort_keys=True
        ) == json.dumps(FINE[name], sort_keys=True)


TEXTS: dict[str, bytes] = {
    "duplicate keys": b'{"a": 1, "a": 2}',
    "escaped duplicate keys": b'{"a": 1, "\\u0061": 2}',
    "NaN": b'{"a": NaN}',
    "1e999": b'{"a": 1e999}',
    "5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "lone surrogate": b'{"a": "\\ud800"}',
    "raw NUL": b'{"a": "\x00"}',
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "not UTF-8": b'{"a": "\xff"}',
    "cut": b'{"a": ',
    "two documents": b"{} {}",
    "100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "1 MB": b'{"a": "' + b"x" * 1_000_000 + b'"}',
}


async def eab(home: Path, *words: str, given: bytes = b"") -> tuple[int, str, str]:
    """Runs the command line on a home: exit status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "enhanced_agent_bus", "--home", str(home), *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate(given)
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


@pytest.mark.parametrize("name", ["escaped duplicate keys", "byte order mark", "100,000 deep"])
async def test_payload_that_is_no_strict_json_is_refused(tmp_path: Path, name: str) -> None:
    """`eab send` refuses a payload that is not I-JSON: exit status 1, a code, no traceback; the bus goes on."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox()
        await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        send = ("--json", "send", "--from", "desk", "--to", "booker", "-")
        status, out, error = await eab(tmp_path / "home", *send, given=TEXTS[name])
        assert (status, "Traceback" in error) == (1, False), (out, error)
        receipt = json.loads(out)["receipt"]
        assert receipt["state"] == "refused"
        assert receipt["code"] in ("malformed", "too_deep", "too_large")
        status, out, error = await eab(tmp_path / "home", *send, given=b'{"a": 5.0, "b": "\\u0000"}')
        assert status == 0, error
        assert [message.payload for message in inbox.got] == [{"a": 5.0, "b": "\x00"}]


async def test_lines_that_are_no_strict_json_are_refused(tmp_path: Path) -> None:
    """`eab run --input` reports each bad line with its number and goes on with the rest."""
    app = tmp_path / "app.py"
    app.write_text("async def build(bus):\n    await bus.register('desk', lambda message: None, tenant='acme')\n")
    lines: list[bytes] = []
    for text in TEXTS.values():
        lines += [b'{"from": "desk", "to": "desk", "payload": ' + text + b"}", b'{"from": "desk", "to": "desk"}']
    async with small_bus(tmp_path):
        pass
    words = ("run", f"{app}:build", "--input", "-", "--fail-on", "bad-line")
    status, out, error = await eab(tmp_path / "home", *words, given=b"\n".join(lines))
    assert (status, "Traceback" in out + error) == (1, False), (out, error)
    allowed = log(tmp_path / "home", "decision", verdict="allow")
    assert len(allowed) == len(TEXTS), (out, error)
    assert all(record["input"]["message"]["size"] == 2 for record in allowed)


# --- what is decided is what is delivered (P4) ----------------------------------------------------------------------


async def test_sender_that_changes_its_dict_changes_nothing(tmp_path: Path) -> None:
    """A sender may change its dict as soon as `send` has begun: what was frozen is decided, recorded, delivered."""
    async with small_bus(tmp_path) as bus:
        inbox, control = Inbox(), Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        await bus.register("control", control, tenant="acme")
        payload, headers = {"a": [1, {"b": 2}]}, {"x": "1"}
        sending = asyncio.create_task(desk.send("booker", payload, headers=headers))
        await asyncio.sleep(0)
        for _ in range(50):
            payload["a"].append("more")
            payload["evil"] = [True]
            headers["x"] = "2"
            await asyncio.sleep(0)
        receipt = await sending
        payload.clear()
        await receipt.outcome(timeout=5)
        (message,) = inbox.got
        assert (message.payload, message.headers) == ({"a": [1, {"b": 2}]}, {"x": "1"})
        assert message.digest == receipt.digest


async def test_subscribers_cannot_change_what_others_get(tmp_path: Path) -> None:
    """Every handler, every attempt and every view gets a fresh copy: no mutation is seen by anybody else."""
    async with small_bus(tmp_path) as bus:
        seen: list[tuple[str, str, str, str]] = []

        async def vandal(message: Message) -> None:
            seen.append((message.recipient, json.dumps(message.payload), json.dumps(message.headers), message.digest))
            message.payload["list"].append("changed")
            message.payload.clear()
            message.headers["x"] = "changed"
            if message.attempt == 1:
                raise ValueError

        for name in ("one", "two", "three"):
            await bus.register(name, vandal, tenant="acme", topics=["news"], retry=Retry.exponential(2, 0, 0))
        desk = await bus.register("desk", tenant="acme")
        receipts = {r.recipient: r for r in await desk.publish("news", {"list": [1]}, headers={"x": "1"})}
        for receipt in receipts.values():
            assert (await receipt.outcome(timeout=5)).state == "delivered"
        assert len(seen) == 6
        for recipient, payload, headers, digest in seen:
            assert (payload, headers) == ('{"list": [1]}', '{"x": "1"}')
            assert digest == receipts[recipient].digest


async def test_requester_and_outcome_have_copies_of_their_own(tmp_path: Path) -> None:
    """What the handler does to the dict it returned, and one reader to the reply, is not seen by the other."""
    async with small_bus(tmp_path) as bus:
        kept: dict[str, Any] = {"list": [1]}

        async def answer(_message: Message) -> dict[str, Any]:
            return kept

        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", answer, tenant="acme")
        reply = await desk.request("booker", timeout=5, id="ask")
        kept["list"].append("changed")
        assert reply.payload == {"list": [1]}
    async with small_bus(tmp_path) as bus:
        outcome = await bus.outcome("desk/ask", timeout=5)
        assert outcome.reply is not None
        assert (outcome.reply.payload, outcome.reply.digest) == ({"list": [1]}, reply.digest)


# --- names and identity ---------------------------------------------------------------------------------------------

BAD_IDS = [
    "", "\u0430", "ord\u0435r", "\uff4frder", "a\nb", "a b", "../a", "/a", "-a", "a*", "a" * 129, "x" * 10_000,
    "a\x1b[31m", "a\u2028b", 7, b"order", True,
]  # fmt: skip


async def test_bad_ids_are_refused(tmp_path: Path) -> None:
    """Ids, conversations, causes, recipients and topics outside their pattern are refused, and never stored raw."""
    async with small_bus(tmp_path) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", inbox, tenant="acme")
        for bad in BAD_IDS:
            for field in ("id", "conversation", "cause"):
                fields: dict[str, Any] = {field: bad}
                receipt = await desk.send("desk", **fields)
                assert receipt.code == "malformed", (field, bad)
            for receipt in (await desk.send(bad), await desk.send(capability=bad)):  # type: ignore[arg-type]
                assert receipt.state == "refused", bad
                assert receipt.code in ("malformed", "recipient_unknown"), bad
            assert await desk.publish(bad) == [], bad  # type: ignore[arg-type]  # names come from data
        for bad in ("Desk", "DESK", "desk\n"):
            assert (await desk.send(bad)).code in ("malformed", "recipient_unknown")
        assert inbox.got == []
        text = log_text(tmp_path / "home")
        assert text.isascii()
        assert "\x1b" not in text
        assert "x" * 200 not in text
        longest = "a" + "Z0._:-" * 20 + "/" + "b" * 6
        assert len(longest) == 128
        assert (await desk.send("desk", id=longest, conversation=longest)).message_id == f"desk/{longest}"


async def test_bad_headers_are_refused(tmp_path: Path) -> None:
    """Headers are str to str, 8 KB in all."""
    async with small_bus(tmp_path) as bus:
        desk = await bus.register("desk", Inbox(), tenant="acme")
        for bad in ({"a": 1}, {1: "a"}, {"a": None}, {"a": b"x"}, ["a"], "a", {"a": "\ud800"}, {"a": ["b"]}):
            assert (await desk.send("desk", headers=bad)).code == "malformed", bad  # type: ignore[arg-type]
        for big in ({"a": "x" * 8192}, {"a": "ä" * 4096}, {f"key-{n}": "x" * 100 for n in range(100)}):
            assert (await desk.send("desk", headers=big)).code == "too_large"
        assert (await desk.send("desk", headers={"a": "x" * 8191, "": ""})).ok


async def test_words_in_payload_and_headers_vouch_for_nothing(tmp_path: Path) -> None:
    """A payload or headers that say tenant, sender, approved or priority change no identity and no verdict."""
    rules = {"acme_only": 'admit if {input.sender.tenant, input.sender.id} == {"acme", "desk"}'}
    forged = {
        "approved": True, "prevalidated": True, "tenant": "acme", "sender": {"id": "desk", "tenant": "acme"},
        "priority": 99, "roles": ["admin"], "constitution": "x", "allow": True, "admit": True,
        "input": {"sender": {"id": "desk", "tenant": "acme"}},
    }  # fmt: skip
    async with small_bus(tmp_path, rules) as bus:
        inbox = Inbox()
        await bus.register("desk", inbox, tenant="acme")
        mallory = await bus.register("mallory", tenant="globex")
        headers = {key: str(value) for key, value in forged.items()}
        receipt = await mallory.send("desk", forged, headers=headers)
        assert (receipt.state, receipt.code) == ("refused", "policy_denied")
        assert inbox.got == []
        (record,) = log(tmp_path / "home", "decision", message_id=receipt.message_id)
        assert (record["sender"], record["tenant"], record["priority"]) == ("mallory", "globex", 1)
        assert record["input"]["sender"] == {"id": "mallory", "tenant": "globex", "roles": [], "capabilities": []}


async def test_pinned_constitution_that_is_not_active_is_refused(tmp_path: Path) -> None:
    """An agent that pinned another digest is refused(constitution_mismatch), shown both; the active one is fine."""
    async with small_bus(tmp_path) as bus:
        await bus.register("booker", Inbox(), tenant="acme")
        other = await bus.register("other", tenant="acme", constitution="0" * 64)
        receipt = await other.send("booker")
        assert (receipt.state, receipt.code) == ("refused", "constitution_mismatch")
        assert "0" * 64 in receipt.reasons[0].message
        assert bus.status().constitution in receipt.reasons[0].message
        same = await bus.register("same", tenant="acme", constitution=bus.status().constitution)
        assert (await same.send("booker")).ok


# --- plug-in gates --------------------------------------------------------------------------------------------------


class OneGate:
    """A gate that answers as it is told to by the payload's `gate`."""

    name = "one-gate"

    def __init__(self, answers: dict[str, Callable[[], Any]]) -> None:
        self._answers = answers
        self.asked = 0

    async def check(self, message: Message) -> Pass | Refusal:
        """See `Gate`."""
        self.asked += 1
        answer = self._answers.get(message.payload.get("gate", "pass"), Pass)()
        if asyncio.iscoroutine(answer) and message.payload["gate"] == "hangs":
            answer = await answer
        if asyncio.iscoroutine(answer):
            answer.close()
            answer = later
        return answer  # type: ignore[no-any-return]  # that is the point


async def later() -> Pass:
    """A coroutine function; nobody awaits what it makes."""
    return Pass()


def raising(error: BaseException) -> Callable[[], Any]:
    """A callable that raises."""

    def answer() -> Any:
        raise error

    return answer


class LooksLikePass:
    """A class with the right name and the wrong type."""

    __name__ = "Pass"

    def __bool__(self) -> bool:
        return True


GATES: dict[str, tuple[Callable[[], Any], str]] = {
    "refuses": (lambda: Refusal("too_late", "the desk is closed", "come back"), "gate_refused"),
    "raises": (raising(ValueError(SECRET)), "gate_broken"),
    "raises TimeoutError": (raising(TimeoutError()), "gate_broken"),
    "raises CancelledError": (raising(asyncio.CancelledError()), "gate_broken"),
    "raises SystemExit": (raising(SystemExit(3)), "gate_broken"),
    "hangs": (lambda: asyncio.sleep(3600), "gate_broken"),
    "refuses with rubbish": (lambda: Refusal(object(), "\ud800", 7), "gate_refused"),  # type: ignore[arg-type]
    "refuses at length": (lambda: Refusal("c" * 100_000, "m" * 1_000_000), "gate_refused"),
    "returns None": (lambda: None, "gate_silent"),
    "returns a coroutine": (later, "gate_silent"),
    "returns allow": (lambda: "allow", "gate_silent"),
    "returns 1": (lambda: 1, "gate_silent"),
    "returns True": (lambda: True, "gate_silent"),
    "returns a dict": (lambda: {"allow": True}, "gate_silent"),
    "returns the class Pass": (lambda: Pass, "gate_silent"),
    "returns a look-alike": (LooksLikePass, "gate_silent"),
}


@pytest.mark.parametrize("name", GATES)
async def test_gate_that_does_not_say_yes_admits_nothing(tmp_path: Path, name: str) -> None:
    """A gate that refuses, raises, hangs or answers neither way refuses the message; the next one is fine."""
    gate: Gate = OneGate({name: GATES[name][0]})
    async with small_bus(tmp_path, gates=[gate], limits={"gate_seconds": 0.05}) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        for _ in range(2):
            receipt = await desk.send("booker", {"gate": name})
            assert (receipt.state, receipt.code) == ("refused", GATES[name][1])
            assert SECRET not in repr(receipt)
        if name == "refuses":
            (reason,) = receipt.reasons
            assert (reason.rule, reason.code, reason.message, reason.remedy) == (
                "one-gate", "too_late", "the desk is closed", "come back"
            )  # fmt: skip
        outcome = await (await desk.send("booker")).outcome(timeout=5)
        assert outcome.state == "delivered"
        assert len(inbox.got) == 1
        codes = [record["code"] for record in log(tmp_path / "home", "decision")]
        assert codes == [GATES[name][1], GATES[name][1], None]
        assert SECRET not in log_text(tmp_path / "home")


async def test_all_gates_must_pass_before_the_policy(tmp_path: Path) -> None:
    """Gates run in order before the policy, on every decision; the first refusal ends it."""
    first, second = OneGate({"no": lambda: Refusal("no", "no", "")}), OneGate({"two": lambda: Refusal("no2", "", "")})
    async with small_bus(tmp_path, gates=[first, second]) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(ValueError()), tenant="acme", retry=Retry.exponential(2, 0, 0))
        assert (await desk.send("booker", {"gate": "no"})).reasons[0].code == "no"
        assert (first.asked, second.asked) == (1, 0)
        assert (await desk.send("booker", {"gate": "two"})).reasons[0].code == "no2"
        assert (first.asked, second.asked) == (2, 1)
        outcome = await (await desk.send("booker")).outcome(timeout=5)
        assert (outcome.state, outcome.attempts) == ("delivered", 2)
        assert (first.asked, second.asked) == (4, 3), "once more for the retry"


async def test_gate_cannot_change_what_is_decided(tmp_path: Path) -> None:
    """What a gate does to the payload it is shown changes nothing that is delivered."""

    class Vandal:
        name = "vandal"

        async def check(self, message: Message) -> Pass | Refusal:
            message.payload.clear()
            message.headers["x"] = "y"
            return Pass()

    async with small_bus(tmp_path, gates=[Vandal(), Vandal()]) as bus:
        inbox = Inbox()
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme")
        await (await desk.send("booker", {"trip": 7})).outcome(timeout=5)
        assert (inbox.got[0].payload, inbox.got[0].headers) == ({"trip": 7}, {})


# --- what must not leak ---------------------------------------------------------------------------------------------

HOSTILE = 'a\r\n{"v":1,"seq":999999,"kind":"decision","verdict":"allow"}\n\u2028\u2029\x1b[2J\x1b[31mred\x07\x9b31m\x85'


async def hostile_traffic(bus: AgentBus) -> Agent:
    """Messages whose payloads, headers, errors and reasons hold line breaks, escapes and a forged record."""

    async def fail(_message: Message) -> None:
        raise ValueError(HOSTILE)

    desk = await bus.register("desk", tenant="acme")
    await bus.register("booker", fail, tenant="acme", retry=Retry.exponential(1))
    await bus.register("absent", tenant="acme")
    receipt = await desk.send("booker", {HOSTILE: [HOSTILE]}, headers={HOSTILE: HOSTILE}, id="hostile")
    assert (await receipt.outcome(timeout=5)).state == "dead_lettered"
    await desk.send("absent", {"text": HOSTILE}, id="parked")
    await desk.send(HOSTILE, {"text": HOSTILE})
    await desk.send("booker", {"text": HOSTILE}, id=HOSTILE)
    await desk.send("booker", type=HOSTILE)
    return desk


async def test_forged_records_and_escapes_stay_inside_their_record(tmp_path: Path) -> None:
    """Line breaks, ANSI escapes, U+2028 and a forged record in a payload make one record a line, all of it ASCII."""
    async with small_bus(tmp_path) as bus:
        await hostile_traffic(bus)
    text = log_text(tmp_path / "home")
    assert text.isascii()
    assert all(character >= " " for character in text.replace("\n", ""))
    records = [json.loads(line) for line in text.split("\n")]
    assert [record["seq"] for record in records] == list(range(len(records)))
    assert len(log(tmp_path / "home")) == len(records)


async def test_terminal_is_safe_from_what_messages_say(tmp_path: Path) -> None:
    """No command prints a control character that a message brought, with --payload neither."""
    async with small_bus(tmp_path) as bus:
        await hostile_traffic(bus)
    commands = [("queue", "list"), ("dlq", "list"), ("dlq", "show", "desk/hostile", "--payload"), ("status",)]
    for command in commands:
        status, out, error = await eab(tmp_path / "home", *command)
        assert status == 0, (command, error)
        for character in ("\x1b", "\x07", "\x9b", "\r", "\u2028", "\u2029", "\x85"):
            assert character not in out + error, (command, character)


async def test_secret_in_a_payload_is_in_no_record_list_or_error(tmp_path: Path) -> None:
    """A secret that travels in payloads, headers, replies, exceptions, reasons in words and remembered strings stands
    in no record, no list and no error.
    """
    rules = {
        "words": """
admit if not input.message.payload.no
message := sprintf("not with %s", [input.message.payload.account])
remember contains {"scope": "sender", "key": "account", "value": input.message.payload.account} if input.message.payload
"""
    }
    async with small_bus(tmp_path, rules) as bus:
        inbox = Inbox({"account": SECRET}, ValueError(SECRET), {"account": SECRET, "no": True})
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", inbox, tenant="acme", retry=Retry.exponential(1))
        shown: list[Any] = []
        for name in ("replied", "failed", "reply-refused"):
            receipt = await desk.send("booker", {"account": SECRET}, headers={"x": SECRET}, id=name)
            outcome = await receipt.outcome(timeout=5)
            shown += [receipt, outcome.state, outcome.code]
        denied = await desk.send("booker", {"account": SECRET, "no": True}, id="denied")
        assert denied.code == "policy_denied"
        malformed = await desk.send("booker", {"account": SECRET, "bad": object()}, id="bad")
        shown += [malformed, bus.queue(), bus.dead_letters(), bus.status(), bus.agents(), bus.held()]
        with pytest.raises(Refused) as caught:
            malformed.raise_for_refusal()
        shown.append(str(caught.value))
        assert SECRET not in repr(shown)
        assert (await bus.replay("desk/failed")).ok
    text = log_text(tmp_path / "home")
    assert SECRET not in text
    assert text.count('"verdict":"allow"') >= 4
    for command in (("status",), ("queue", "list"), ("dlq", "list"), ("agents",)):
        _, out, error = await eab(tmp_path / "home", *command)
        assert SECRET not in out + error, command


async def test_refusal_by_policy_tells_the_sender_what_the_rule_says(tmp_path: Path) -> None:
    """The receipt has the rule, its code, its words and its remedy; the record has rule and code alone."""
    rules = {"short": 'admit if input.message.type == "event"\ncode := "no"\nmessage := "words"\nremedy := "mend"'}
    async with small_bus(tmp_path, rules) as bus:
        desk = await bus.register("desk", Inbox(), tenant="acme")
        receipt = await desk.send("desk")
        (reason,) = receipt.reasons
        assert (reason.rule, reason.code, reason.message, reason.remedy) == ("short", "no", "words", "mend")
        (record,) = log(tmp_path / "home", "decision", message_id=receipt.message_id)
        assert record["reasons"] == [{"rule": "short", "code": "no"}]
