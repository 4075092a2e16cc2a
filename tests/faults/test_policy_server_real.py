"""A stock OPA server beside the bus: away, back, replaced, changed behind the bus's back; and what is named of it."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import Agent, AgentBus, ConstitutionRejected, Receipt
from enhanced_agent_bus.engines import server as server_engine
from tests.developer import Inbox, log, small_bus, until
from tests.hostile import Asked, decided, hostile, http, sends
from tests.opa import Opa, opa_server, pack
from tests.support import write_constitution

Make = Callable[..., Path]
RULES = {"few": 'code := "too_many"\n\nadmit if input.message.payload.n < 10'}
TRUSTED = "policy_server_trusted"
#: Documents of each kind that stand beside data.
LISTS = """package bus.lists

import data.bus.lists.names

far.below := 1

far.by[name] := 1 if some name in names

some_of contains name if some name in names

double(x) := x * 2

default said := "nothing"
"""


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """A constitution where `small_bus` finds it."""
    return write_constitution(tmp_path / "policies", RULES)


@asynccontextmanager
async def beside(folder: Path, opa: Opa, **policy: object) -> AsyncIterator[tuple[AgentBus, Agent, Inbox]]:
    """A bus that asks this server, with one sender and one recipient."""
    async with small_bus(folder, policy={"engine": opa.url, "cache_entries": 0, **policy}) as bus:
        desk = await bus.register("desk", tenant="acme")
        inbox = Inbox()
        await bus.register("booker", inbox, tenant="acme")
        yield bus, desk, inbox


def weakenings(bus: AgentBus) -> set[str]:
    """Those of the server."""
    return {name for name in bus.status().security_state if name.startswith("policy_server_")}


async def accepted_again(desk: Agent, n: int = 1) -> Receipt:
    """The first message that is accepted; that takes 5 s at most. Raises: TimeoutError."""
    async with asyncio.timeout(5):
        while not (receipt := await desk.send("booker", {"n": n})).ok:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.05)
    return receipt


@pytest.mark.parametrize("scheme", ["unix", "http"])
async def test_a_server_decides_and_the_log_names_it(
    tmp_path: Path, opa_binary: Path, policies: Path, scheme: str
) -> None:
    """Yes and no as the rules have them, over a socket or a port; each record says which engine decided."""
    async with opa_server(opa_binary, policies) as opa:
        url = opa.url if scheme == "unix" else opa.http_url
        async with beside(tmp_path, opa, engine=url) as (bus, desk, inbox):
            assert weakenings(bus) == {TRUSTED}
            yes, no = await desk.send("booker", {"n": 1}), await desk.send("booker", {"n": 11})
            assert (yes.state, no.state, no.code) == ("accepted", "refused", "policy_denied")
            assert [reason.code for reason in no.reasons] == ["too_many"]
            await yes.outcome(timeout=5)
            assert len(inbox.got) == 1
            assert bus.status().engine["opa"] == "1.22.2"
    engines = [record["engine"] for record in log(tmp_path / "home", "decision")]
    assert {(engine["name"], engine["opa"], engine["url"]) for engine in engines} == {("server", "1.22.2", url)}
    (opened,) = log(tmp_path / "home", "opened")
    assert TRUSTED in opened["security_state"]


async def test_a_bus_opens_without_its_server_and_decides_when_that_is_there(
    tmp_path: Path, opa_binary: Path, policies: Path
) -> None:
    """Refusals until then, and within 5 s of its coming an allow, without anybody telling the bus."""
    async with opa_server(opa_binary, policies) as opa:
        await opa.stop()
        async with beside(tmp_path, opa) as (bus, desk, inbox):
            assert bus.status().engine["opa"] == "unknown"
            receipts = await asyncio.gather(*(desk.send("booker", {"n": n % 9}) for n in range(200)))
            assert {receipt.code for receipt in receipts} == {"policy_unavailable"}
            assert inbox.got == []
            await opa.serve()
            receipt = await accepted_again(desk)
            await receipt.outcome(timeout=5)
            assert bus.status().engine["opa"] == "1.22.2"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_server_that_goes_takes_no_message_with_it(
    tmp_path: Path, opa_binary: Path, policies: Path, how: signal.Signals
) -> None:
    """While it is gone messages are refused, none is delivered; afterwards all is as before."""
    async with opa_server(opa_binary, policies) as opa, beside(tmp_path, opa, timeout_seconds=0.3) as (_, desk, inbox):
        await accepted_again(desk)
        sending = [asyncio.ensure_future(desk.send("booker", {"n": n % 9})) for n in range(100)]
        await asyncio.sleep(0.005)
        os.kill(opa.pid, how)
        receipts = await asyncio.gather(*sending)
        assert {receipt.code for receipt in receipts} <= {None, "policy_unavailable", "policy_timeout"}
        for _ in range(5):
            receipt = await desk.send("booker", {"n": 1})
            assert (receipt.state, receipt.code) == ("refused", "policy_unavailable")
        await opa.serve()
        last = await accepted_again(desk)
        await last.outcome(timeout=5)
        accepted = {record["message_id"] for record in log(tmp_path / "home", "decision", verdict="allow")}
        await until(lambda: len(inbox.got) == len(accepted))
        assert {message.id for message in inbox.got} == accepted


async def test_a_slow_policy_is_a_timeout_and_no_reason_to_stop_asking(
    tmp_path: Path, opa_binary: Path, policies: Path
) -> None:
    """Evaluations that loop end by their deadline on the server too, and others are decided meanwhile."""
    loops = "count([1 | some a in numbers.range(1, 4000); some b in numbers.range(1, 4000); a + b == -1]) == 0"
    write_constitution(policies, {"few": f"admit if not input.message.payload.slow\n\nadmit if {loops}"})
    async with opa_server(opa_binary, policies) as opa, beside(tmp_path, opa, timeout_seconds=0.5) as (_, desk, _inbox):
        for _ in range(2):
            slow = asyncio.gather(*(desk.send("booker", {"slow": True, "n": n}) for n in range(4)))
            assert {receipt.code for receipt in await slow} == {"policy_timeout"}
        await accepted_again(desk)


async def test_a_change_of_constitution_takes_hold_when_both_have_it(
    tmp_path: Path, opa_binary: Path, policies: Path
) -> None:
    """The server first, or the bus first: until both have the same revision no message is decided."""
    stricter = write_constitution(tmp_path / "stricter", {"few": "admit if input.message.payload.n < 5"}, revision="2")
    async with opa_server(opa_binary, policies) as opa, beside(tmp_path, opa) as (bus, desk, _):
        assert (await desk.send("booker", {"n": 7})).ok
        await pack(stricter, opa.bundle)
        await opa.serve()
        assert (await desk.send("booker", {"n": 7})).code == "policy_revision_mismatch"
        assert (await bus.activate(stricter)).revision == 2
        assert (await desk.send("booker", {"n": 7})).code == "policy_denied"
        assert (await desk.send("booker", {"n": 4})).ok
        await bus.activate(policies)
        assert (await desk.send("booker", {"n": 4})).code == "policy_revision_mismatch"


@pytest.mark.usefixtures("policies")
async def test_other_modules_under_the_same_revision_are_named(tmp_path: Path, opa_binary: Path) -> None:
    """A server whose rules were changed, and not its revision, is a weakening from the start on."""
    laxer = write_constitution(tmp_path / "laxer", {"few": "admit if input.message.payload.n < 100"})
    async with opa_server(opa_binary, laxer) as opa, beside(tmp_path, opa) as (bus, _desk, _):
        assert weakenings(bus) == {TRUSTED, "policy_server_modules"}
    (opened,) = log(tmp_path / "home", "opened")
    assert "policy_server_modules" in opened["security_state"]
    more = write_constitution(tmp_path / "more", RULES, files={"bus/more.rego": "package bus.more\n\nx := 1\n"})
    async with opa_server(opa_binary, more) as opa, beside(tmp_path / "other", opa) as (bus, _desk, _):
        assert weakenings(bus) == {TRUSTED, "policy_server_modules"}


@pytest.mark.parametrize(
    "data",
    [
        {"most": 10, "on": True},
        {"most": 100, "on": True},
        {"most": 10, "on": 1},
        {"most": 10},
        {"most": 10, "on": True, "code": "x"},
    ],
    ids=["ours", "another value", "a number for true", "a value less", "a value where no rule gives one"],
)
async def test_other_data_under_the_same_revision_is_named(
    tmp_path: Path, opa_binary: Path, data: dict[str, Any]
) -> None:
    """The same rules on other data are another constitution; what rules say beside data is no difference."""
    rules = {"few": "admit if input.message.payload.n <= data.bus.rules.few.most"}
    files = {"bus/lists/data.json": '{"names": ["a", 1.0, null], "empty": {}}', "bus/lists/lists.rego": LISTS}
    ours = {"most": 10, "on": True}
    write_constitution(tmp_path / "policies", rules, files=files, data={"few": ours})
    other = write_constitution(tmp_path / "other", rules, files=files, data={"few": data})
    async with opa_server(opa_binary, other) as opa, beside(tmp_path, opa) as (bus, _desk, _):
        assert weakenings(bus) == (
            {TRUSTED} if json.dumps(data) == json.dumps(ours) else {TRUSTED, "policy_server_data"}
        )


async def test_a_constitution_that_was_not_activated_is_no_weakening(
    tmp_path: Path, opa_binary: Path, policies: Path
) -> None:
    """What a server lacks of a candidate that was rejected at the last moment does not matter."""
    late = write_constitution(tmp_path / "late", {"few": "admit if true"}, not_after="2020-01-01T00:00:00Z")
    async with opa_server(opa_binary, policies) as opa, beside(tmp_path, opa) as (bus, desk, _):
        assert (await desk.send("booker", {"n": 1})).ok
        with pytest.raises(ConstitutionRejected, match="expired"):
            await bus.activate(late)
        assert weakenings(bus) == {TRUSTED}
        assert (await desk.send("booker", {"n": 1})).ok


async def test_tests_of_the_constitution_and_other_bundles_are_no_difference(
    tmp_path: Path, opa_binary: Path, policies: Path
) -> None:
    """A server loads the tests too, and may have policies that are no business of ours."""
    write_constitution(policies, RULES, tests={"few": "test_it if data.bus.rules.few.code"})
    other = tmp_path / "else.rego"
    other.write_text("package somewhere.else\n\nallow := true\n")
    async with opa_server(opa_binary, policies, str(other)) as opa, beside(tmp_path, opa) as (bus, desk, _):
        assert weakenings(bus) == {TRUSTED}
        assert (await desk.send("booker", {"n": 1})).ok


async def test_a_server_that_is_replaced_while_the_bus_runs_is_looked_at_again(
    tmp_path: Path, opa_binary: Path, policies: Path
) -> None:
    """What is weaker about it is named as soon as it has decided something."""
    laxer = write_constitution(tmp_path / "laxer", {"few": "admit if input.message.payload.n < 100"})
    async with opa_server(opa_binary, policies) as opa, beside(tmp_path, opa) as (bus, desk, _):
        assert (await desk.send("booker", {"n": 11})).code == "policy_denied"
        await opa.stop()
        assert (await desk.send("booker", {"n": 11})).code == "policy_unavailable"
        await pack(laxer, opa.bundle)
        await opa.serve()
        await accepted_again(desk, n=11)
        await until(lambda: weakenings(bus) == {TRUSTED, "policy_server_modules"})
    (closed,) = log(tmp_path / "home", "closed")
    assert "policy_server_modules" in closed["security_state"]


async def test_a_change_behind_the_back_is_found_after_a_while(
    tmp_path: Path, opa_binary: Path, policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules are compared again now and then, whatever happened to the connections."""
    monkeypatch.setattr(server_engine, "LOOK_AGAIN_SECONDS", 0.0)
    listed: dict[str, object] = {}
    data: dict[str, Any] = {}

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        shown = {"/v1/policies": listed, "/v1/data/bus": data}
        writer.write(http(shown.get(asked.path, decided(allow=True))))

    async with opa_server(opa_binary, policies) as opa:
        listed |= (await opa.get("/v1/policies")).json()
        data |= (await opa.get("/v1/data/bus")).json()
    async with hostile(behave) as stub, small_bus(tmp_path, policy={"engine": stub.url, "cache_entries": 0}) as bus:
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        assert weakenings(bus) == {TRUSTED}
        data["result"]["rules"]["few"]["hold"] = [{"approvers": 0}]
        assert (await desk.send("booker", {"n": 0})).ok
        await until(lambda: weakenings(bus) == {TRUSTED, "policy_server_data"})
        listed["result"] = []
        assert (await desk.send("booker", {"n": 1})).ok
        await until(lambda: weakenings(bus) == {TRUSTED, "policy_server_modules"})


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("1.22.0", False),
        ("1.22.9-dev", False),
        ("1.21.3", True),
        ("1.23.0", True),
        ("2.22.2", True),
        ("0.70.0", True),
        ("", True),
        ("edge", True),
    ],
)
@pytest.mark.usefixtures("policies")
async def test_another_minor_version_is_named(tmp_path: Path, version: str, *, named: bool) -> None:
    """Which OPA a server is, it says in each answer: another minor version may decide otherwise."""
    async with (
        hostile(http(decided(allow=True, version=version))) as stub,
        small_bus(tmp_path, policy={"engine": stub.url}) as bus,
    ):
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        assert (await desk.send("booker", {"n": 1})).ok
        assert ("policy_server_version" in weakenings(bus)) is named
        assert bus.status().engine["opa"] == (version or "unknown")


@pytest.mark.usefixtures("policies")
async def test_a_record_says_which_opa_decided_it(tmp_path: Path) -> None:
    """A server that becomes another version is another one in the records from then on."""
    async with (
        hostile(http(decided(allow=True, version="1.22.1"))) as stub,
        small_bus(tmp_path, policy={"engine": stub.url, "cache_entries": 0}) as bus,
    ):
        desk = await bus.register("desk", tenant="acme")
        await bus.register("booker", Inbox(), tenant="acme")
        for version in ("1.22.1", "1.22.1", "1.22.2", "1.23.0"):
            stub.behave = sends(http(decided(allow=True, version=version)))
            assert (await desk.send("booker", {"n": 1})).ok
    versions = [record["engine"]["opa"] for record in log(tmp_path / "home", "decision")]
    assert versions == ["1.22.1", "1.22.1", "1.22.2", "1.23.0"]


async def test_a_policy_that_takes_schemas_is_named(tmp_path: Path, opa_binary: Path, policies: Path) -> None:
    """A server follows a `$ref` that a message names, which the worker does not."""
    body = 'admit if json.match_schema(input.message.payload, {"type": "object"})[0]'
    write_constitution(policies, {"few": body})
    async with opa_server(opa_binary, policies) as opa, beside(tmp_path, opa) as (bus, desk, _):
        assert weakenings(bus) == {TRUSTED, "policy_server_schemas"}
        assert (await desk.send("booker", {"n": 1})).ok
