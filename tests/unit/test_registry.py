"""Who is registered, and who a message is for."""

from __future__ import annotations

import itertools

import pytest

from enhanced_agent_bus.errors import AgentExists
from enhanced_agent_bus.ports import AgentRow
from enhanced_agent_bus.routing.registry import NAMES_MAX, Registry
from enhanced_agent_bus.routing.router import Router
from enhanced_agent_bus.verdict import Party, Refusal


def row(agent_id: str, tenant: str = "acme", *, live: bool = True, **names: tuple[str, ...]) -> AgentRow:
    """A registration."""
    return AgentRow(
        agent_id,
        tenant,
        names.get("roles", ()),
        names.get("capabilities", ()),
        names.get("topics", ()),
        "latest",
        live=live,
    )


def test_a_live_id_is_taken() -> None:
    """The first wins; the id is free again for its tenant once it is released, and for no other tenant ever."""
    registry = Registry()
    registry.claim(row("desk"))
    for tenant in ("acme", "globex"):
        with pytest.raises(AgentExists):
            registry.claim(row("desk", tenant))
    registry.release("desk", forget=row("desk", live=False))
    with pytest.raises(AgentExists):
        registry.claim(row("desk", "globex"))
    registry.claim(row("desk"))


def test_a_claim_that_was_not_recorded_leaves_no_trace() -> None:
    """Released without a row, the id, its topics and capabilities are as if never claimed."""
    registry = Registry()
    registry.claim(row("desk", topics=("t",), capabilities=("c",)))
    registry.release("desk", forget=None)
    assert registry.party("desk") is None
    assert registry.rows() == []
    assert not registry.subscribers("acme", "t")
    assert not registry.capable("acme", "c")
    registry.claim(row("desk", "globex"))


def test_a_release_that_was_not_recorded_is_undone() -> None:
    """The same party is live again: handles that were given out before go on working."""
    registry = Registry()
    before = row("desk", topics=("t",))
    party = registry.claim(before)
    registry.release("desk", forget=before._replace(live=False))
    assert not registry.subscribers("acme", "t")
    registry.restore(before, party)
    assert registry.live("desk") is party
    assert registry.subscribers("acme", "t") == ("desk",)


def test_a_remembered_agent_can_be_written_to_and_is_taken_up_with_new_names() -> None:
    """What the home remembers has a party; a new registration replaces its roles, topics and capabilities."""
    registry = Registry([row("booker", roles=("old",), topics=("t",)), row("gone", live=False, topics=("t",))])
    party = registry.party("booker")
    assert party is not None
    assert (party.roles, registry.live("booker"), registry.party("gone")) == (("old",), None, None)
    assert registry.subscribers("acme", "t") == ("booker",)
    registry.claim(row("booker", roles=("new",), topics=("u",)))
    again = registry.party("booker")
    assert again is not None
    assert again.roles == ("new",)
    assert again is not party
    assert not registry.subscribers("acme", "t")
    assert registry.subscribers("acme", "u") == ("booker",)


BAD = ["", "Desk", "\u0434esk", "\uff44esk", "desk\n", "../a", "a*", "a/b", "-a", ".a", "a" * 129, "a b", "a\x00"]


@pytest.mark.parametrize("bad", BAD, ids=ascii)
def test_names_outside_the_pattern_are_no_names(bad: str) -> None:
    """Ids, tenants, roles, capabilities and topics are ASCII and short; what is shown of a bad one is safe."""
    registry = Registry()
    for wrong in (
        row(bad),
        row("desk", bad),
        row("desk", roles=(bad,)),
        row("desk", capabilities=(bad,)),
        row("desk", topics=(bad,)),
    ):
        with pytest.raises(ValueError, match="does not match") as caught:
            registry.claim(wrong)
        assert str(caught.value).isascii()
        assert str(caught.value).isprintable()
    assert registry.rows() == []


@pytest.mark.parametrize("pinned", ["", "Latest", "0" * 63, "0" * 65, "A" * 64, "g" * 64])
def test_a_constitution_is_latest_or_a_digest(pinned: str) -> None:
    """Anything else raises at once."""
    with pytest.raises(ValueError, match="constitution"):
        Registry().claim(row("desk")._replace(constitution=pinned))
    Registry().claim(row("desk")._replace(constitution="0" * 64))


def test_names_are_bounded() -> None:
    """An agent with more names than a record has room for is refused."""
    names = tuple(f"n{number}" for number in range(NAMES_MAX))
    Registry().claim(row("desk", roles=names, topics=names))
    more = (*names, "more")
    for wrong in (row("desk", roles=more), row("desk", capabilities=more), row("desk", topics=more)):
        with pytest.raises(ValueError, match=str(NAMES_MAX)):
            Registry().claim(wrong)


def everybody() -> tuple[Registry, dict[str, int], Router, Party]:
    """Four of acme beside desk, one absent; one of globex; and how much waits for each."""
    registry = Registry([row("absent", capabilities=("fly",), topics=("trips",))])
    desk = registry.claim(row("desk", capabilities=("fly",), topics=("trips",)))
    for name in ("a", "b", "c"):
        registry.claim(row(name, capabilities=("fly",), topics=("trips",)))
    registry.claim(row("foreign", "globex", capabilities=("fly", "dive"), topics=("trips", "news")))
    load = dict.fromkeys(["absent", "a", "b", "c", "desk", "foreign"], 0)
    return registry, load, Router(registry, load.__getitem__), desk


def test_one_agent_is_found_by_id_in_any_tenant() -> None:
    """Whether it may be written to is the policy's business; who nobody knows is recipient_unknown."""
    _, _, router, _ = everybody()
    found = router.find("foreign")
    assert isinstance(found, Party)
    assert found.tenant == "globex"
    for wrong, code in [
        ("nobody", "recipient_unknown"),
        *((bad, "malformed") for bad in BAD),
        (None, "malformed"),
        (7, "malformed"),
        (["a"], "malformed"),
        (10**5000, "malformed"),
    ]:
        refusal = router.find(wrong)
        assert isinstance(refusal, Refusal)
        assert refusal.code == code
        assert refusal.message.isascii()
        assert refusal.remedy


def test_a_capability_finds_the_least_loaded_of_the_tenant() -> None:
    """Never the sender itself, never another tenant; live ones before absent ones; ties by name."""
    registry, load, router, desk = everybody()
    for loads, expected in [((0, 0, 0), "a"), ((1, 0, 0), "b"), ((2, 2, 1), "c"), ((9, 9, 9), "a")]:
        load.update(zip("abc", loads, strict=True))
        found = router.capable(desk, "fly")
        assert isinstance(found, Party)
        assert found.id == expected
    for name in "abc":
        registry.release(name, forget=row(name, live=False))
    found = router.capable(desk, "fly")
    assert isinstance(found, Party)
    assert found.id == "absent"
    for capability, code in [
        ("dive", "recipient_unknown"),
        ("none", "recipient_unknown"),
        ("Bad", "malformed"),
        (7, "malformed"),
    ]:
        refusal = router.capable(desk, capability)
        assert isinstance(refusal, Refusal)
        assert refusal.code == code


def test_a_topic_reaches_all_of_the_tenant_but_the_sender() -> None:
    """Subscribers by name, remembered ones too; a topic of another tenant is nobody's."""
    _, _, router, desk = everybody()
    found = router.subscribers(desk, "trips")
    assert isinstance(found, list)
    assert [party.id for party in found] == ["a", "absent", "b", "c"]
    for topic, code in [("news", "recipient_unknown"), ("trip*", "malformed"), (None, "malformed")]:
        refusal = router.subscribers(desk, topic)
        assert isinstance(refusal, Refusal)
        assert refusal.code == code


def test_a_party_is_made_once_for_each_registration() -> None:
    """Parties are compared by identity: asked again it is the same, registered again it is another."""
    registry = Registry([row("absent")])
    assert registry.party("absent") is registry.party("absent")
    parties = []
    for _ in range(3):
        parties.append(registry.claim(row("desk")))
        assert registry.party("desk") is parties[-1]
        registry.release("desk", forget=row("desk", live=False))
    assert all(one is not two for one, two in itertools.combinations(parties, 2))
