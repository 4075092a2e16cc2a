"""Several nodes, one constitution: what is activated on one is in force on all, and nobody decides under another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from enhanced_agent_bus import ConfigInvalid, ConstitutionRejected
from enhanced_agent_bus.road.spread import ACTIVE, CONSTITUTION
from enhanced_agent_bus.transports.memory import MemoryTransport, open_memory
from enhanced_agent_bus.transports.memory_buckets import MemoryBucket
from tests.acceptance.test_nodes import nodes, seen, where
from tests.developer import Doorman, Inbox, log, until
from tests.support import write_constitution

__all__ = ["where"]
in_memory = pytest.mark.parametrize("where", ["memory"], indirect=True)
QUIET = {"quiet": "admit if not input.message.payload.loud"}


def written(folder: Path, name: str, rules: dict[str, str] = QUIET) -> Path:
    """A constitution in a folder of its own."""
    write_constitution(folder / name, rules)
    return folder / name


def transport_of(where: dict[str, Any], place: int) -> MemoryTransport:
    """That of the node that came so many others after the first."""
    looking = open_memory(where["url"])
    found = looking.network.transports[place]
    looking.leave()
    return found


async def test_an_activation_is_in_force_on_all_nodes(tmp_path: Path, where: dict[str, Any]) -> None:
    """Each records that it took it over, and from which node; what it refuses is refused everywhere."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        before = a.status().constitution
        assert b.status().constitution == before
        await a.register("booker", Inbox(), tenant="acme")
        desk = await b.register("desk", tenant="acme")
        active = await a.activate(written(tmp_path, "quiet"))
        assert a.status().constitution == active.digest != before
        await until(lambda: b.status().constitution == active.digest)
        await seen(b, "booker")
        assert (await desk.send("booker", {"loud": True})).code == "policy_denied"
        receipt = await desk.send("booker", {})
        assert (await receipt.outcome(timeout=10)).state == "delivered"
        again = await b.activate(tmp_path / "policies")
        await until(lambda: a.status().constitution == again.digest == before)
    [*_, taken] = log(tmp_path / "b", "policy", event="activated", digest=active.digest)
    [given] = log(tmp_path / "a", "policy", event="activated", digest=active.digest)
    assert taken["origin"] == f"{given['bus']}/{given['node']}"
    assert "origin" not in given


async def test_a_node_that_joins_is_under_what_the_others_are_under(tmp_path: Path, where: dict[str, Any]) -> None:
    """Whatever its own settings name, when it comes first and when it comes back; the first node's holds."""
    other = tmp_path.with_name(f"{tmp_path.name}-other")
    other.mkdir()
    async with nodes(tmp_path, where, "a") as (a,):
        async with nodes(other, where, "b", rules=QUIET) as (b,):
            assert b.status().constitution == a.status().constitution
            [taken] = log(other / "b", "policy")
            assert (taken["event"], taken["digest"]) == ("activated", a.status().constitution)
        changed = await a.activate(written(tmp_path, "loud", {"loud": "admit if input.message.payload.loud"}))
        async with nodes(other, where, "b") as (b,):
            assert b.status().constitution == changed.digest


@in_memory
async def test_of_two_at_once_one_wins_and_the_other_is_told(tmp_path: Path, where: dict[str, Any]) -> None:
    """The loser's is a recorded rejection, and both are under the winner's."""
    first, second = written(tmp_path, "first"), written(tmp_path, "second", {"all": "admit if true", **QUIET})
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        done = await asyncio.gather(a.activate(first), b.activate(second), return_exceptions=True)
        [lost] = [one for one in done if isinstance(one, BaseException)]
        assert isinstance(lost, ConstitutionRejected)
        assert lost.reason == "overtaken"
        [won] = [one for one in done if not isinstance(one, BaseException)]
        await until(lambda: a.status().constitution == b.status().constitution == won.digest)
        rejected = log(tmp_path / "a", "policy", event="rejected") + log(tmp_path / "b", "policy", event="rejected")
        assert [record["reason"] for record in rejected] == ["overtaken"]
        with pytest.raises(ConfigInvalid, match="several nodes"):
            await a.activate(tmp_path / "policies", percent=10)


@in_memory
async def test_a_node_that_cannot_take_it_over_stops_deciding(
    tmp_path: Path, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses, names the digest, records why; nothing that waits starts there; the next one mends it."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        inbox, door = Inbox(), Doorman()
        await b.register("booker", inbox, tenant="acme")
        await b.register("slow", door, tenant="acme", concurrency=1)
        here = await b.register("here", tenant="acme")
        for n in range(2):
            assert (await here.send("slow", id=f"{n}")).ok
        await until(lambda: door.got)
        with monkeypatch.context() as patched:
            put = MemoryBucket.put
            patched.setattr(MemoryBucket, "put", lambda bucket, key, _: put(bucket, key, b"junk"))
            active = await a.activate(written(tmp_path, "quiet"))
        await until(lambda: log(tmp_path / "b", "policy", event="rejected", digest=active.digest))
        door.open.set()
        refused = await here.send("booker")
        assert (refused.state, refused.code) == ("refused", "policy_unavailable")
        assert active.digest in refused.reasons[0].message
        await until(lambda: b.status().accounting["retrying"] == 1)
        assert len(door.got) == 1
        mended = await a.activate(tmp_path / "policies")
        await until(lambda: (b.status().constitution, len(door.got)) == (mended.digest, 2))
        assert (await here.send("booker")).ok
    [rejected] = log(tmp_path / "b", "policy", event="rejected")
    assert rejected["reason"] == "invalid"
    assert "not whole" in rejected["details"][0]["message"]


@in_memory
async def test_what_was_missed_is_heard_before_anything_is_decided(tmp_path: Path, where: dict[str, Any]) -> None:
    """A node that was cut off decides nothing after its lease, nor once it is back before it is under the new one."""
    async with nodes(tmp_path, where, "a", "b", transport={"lease_seconds": 0.5}) as (a, b):
        inbox = Inbox()
        await b.register("booker", inbox, tenant="acme")
        here = await b.register("here", tenant="acme")
        theirs = transport_of(where, 1)
        theirs.network.cut(theirs)
        active = await a.activate(written(tmp_path, "quiet"))
        await until(lambda: not any(node.alive for node in b.status().nodes))
        assert (await here.send("booker", {"loud": True})).code == "policy_unavailable"
        assert b.status().constitution != active.digest
        theirs.network.mend(theirs)
        told = await here.send("booker", {"loud": True})
        while told.code == "policy_unavailable":
            told = await here.send("booker", {"loud": True})
        assert told.code == "policy_denied"
        assert b.status().constitution == active.digest
        assert inbox.got == []


@in_memory
async def test_a_short_time_away_leaves_no_gap(tmp_path: Path, where: dict[str, Any]) -> None:
    """Back within its lease, a node first asks what is active: no allow of it is under the old one any more."""
    async with nodes(tmp_path, where, "a", "b") as (a, b):
        await b.register("booker", Inbox(), tenant="acme")
        here = await b.register("here", tenant="acme")
        theirs = transport_of(where, 1)
        theirs.network.cut(theirs)
        active = await a.activate(written(tmp_path, "quiet"))
        assert (await here.send("booker", {"loud": True})).ok  # its lease holds
        theirs.network.mend(theirs)
        told = await here.send("booker", {"loud": True})
        while told.code == "policy_unavailable":
            told = await here.send("booker", {"loud": True})
        assert told.code == "policy_denied"
        assert b.status().constitution == active.digest


@in_memory
async def test_the_shared_key_alone_makes_nothing_active(tmp_path: Path, where: dict[str, Any]) -> None:
    """Whoever writes what is no constitution there stops the nodes, and has nothing decided."""
    async with nodes(tmp_path, where, "a") as (a,):
        await a.register("booker", Inbox(), tenant="acme")
        here = await a.register("here", tenant="acme")
        stranger = open_memory(where["url"])
        await (await stranger.bucket(CONSTITUTION)).put(ACTIVE, b"{}")
        told = await here.send("booker")
        while told.ok:
            told = await here.send("booker")
        assert told.code == "policy_unavailable"
        await a.activate(written(tmp_path, "quiet"))
        assert (await here.send("booker", {})).ok
        await stranger.close()
