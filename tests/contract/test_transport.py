"""Every transport keeps the promises of its port: the network within a process, and a real NATS server.

Each transport reaches the server through a proxy of its own, so that one node can be away and the others not.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol

import pytest

from enhanced_agent_bus.errors import ConfigInvalid, TransportAway
from enhanced_agent_bus.ports import Conflict, Handed, Item, Letter, Transport
from enhanced_agent_bus.transports.access import Access
from enhanced_agent_bus.transports.memory import MemoryNetwork, MemoryTransport
from enhanced_agent_bus.transports.nats import open_nats
from tests.developer import until
from tests.nats_server import NatsServer, Proxy, proxy_to

KINDS: Final = ("memory", "nats")
ACK_SECONDS: Final = 0.3
BUSES: Final = itertools.count(1)  # and whatever else needs a name of its own


class Place(Protocol):
    """A bus that transports can be opened on, and what can happen to one of them."""

    async def open(self, ack_seconds: float = ACK_SECONDS) -> Transport: ...

    def away(self, transport: Transport) -> None: ...

    def back(self, transport: Transport) -> None: ...

    async def die(self, transport: Transport) -> None:
        """Its process has gone, without a word."""
        ...


class MemoryPlace:
    """One network."""

    def __init__(self) -> None:
        self._networks: list[MemoryNetwork] = []

    async def open(self, ack_seconds: float = ACK_SECONDS) -> Transport:
        if not self._networks:
            self._networks.append(MemoryNetwork(ack_seconds=ack_seconds, bytes_max=4 * 1024**2))
        return self._networks[0].join()

    def away(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.network.cut(transport)

    def back(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.network.mend(transport)

    async def die(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.network.kill(transport)

    async def close(self) -> None:
        for network in self._networks:
            for transport in list(network.transports):
                await transport.close()


class NatsPlace:
    """A bus of its own on the server of this test process."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._bus = f"contract{next(BUSES)}"
        self._stack = AsyncExitStack()
        self._proxies: dict[Transport, Proxy] = {}

    async def open(self, ack_seconds: float = ACK_SECONDS) -> Transport:
        proxy = await self._stack.enter_async_context(proxy_to(self._server.port))
        transport = await open_nats(Access(proxy.url), self._bus, ack_seconds=ack_seconds, answer_seconds=10.0)
        self._stack.push_async_callback(transport.close)
        self._proxies[transport] = proxy
        return transport

    def away(self, transport: Transport) -> None:
        self._proxies[transport].cut()

    def back(self, transport: Transport) -> None:
        self._proxies[transport].mend()

    async def die(self, transport: Transport) -> None:
        self.away(transport)
        await until(lambda: not transport.connected)
        await transport.close()

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def place_of(kind: str, server: NatsServer) -> AsyncIterator[Place]:
    """A bus that nobody else uses."""
    place = MemoryPlace() if kind == "memory" else NatsPlace(server)
    try:
        yield place
    finally:
        await place.close()


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, nats_server: NatsServer) -> AsyncIterator[Place]:
    """A bus of either kind."""
    async with place_of(request.param, nats_server) as made:
        yield made


class Hands:
    """Whoever is handed letters: it keeps them, and settles none by itself."""

    def __init__(self) -> None:
        self.held: list[Handed] = []

    def __call__(self, handed: Handed) -> None:
        self.held.append(handed)

    @property
    def ids(self) -> list[str]:
        return [one.letter.id for one in self.held]

    async def some(self, count: int) -> list[Handed]:
        await until(lambda: len(self.held) >= count)
        return self.held[:count]


async def quiet(transport: Transport, box: str) -> None:
    """Returns when all that was posted to a box before has been handed out, or is not going to be: one more is."""
    hands, ident = Hands(), f"last-{next(BUSES)}"
    end = await transport.serve(box, hands, at_once=1)
    await transport.post(Letter(box, ident, b""))
    while True:
        await until(lambda: hands.held)
        last = hands.held.pop(0)
        await last.done()
        if last.letter.id == ident:
            break
        pytest.fail(f"{last.letter.id} came again")
    await end()


async def test_what_is_posted_is_handed_out_with_its_id_and_bytes(place: Place) -> None:
    """A letter comes to whoever serves its box, as it was posted, the first time as such."""
    sender, receiver, hands = await place.open(), await place.open(), Hands()
    await receiver.serve("agent.b", hands, at_once=8)
    await sender.post(Letter("agent.b", "order:7/a", bytes(range(256))))
    (got,) = await hands.some(1)
    assert got.letter == Letter("agent.b", "order:7/a", bytes(range(256)))
    assert got.times == 1
    assert got.taken_us > 1_700_000_000_000_000
    await got.done()


async def test_nothing_is_lost_while_nobody_serves(place: Place) -> None:
    """A box keeps what is posted, in order, until somebody serves it for the first time."""
    sender, hands = await place.open(), Hands()
    for number in range(20):
        await sender.post(Letter("agent.late", str(number), b"x"))
    await sender.close()
    receiver = await place.open()
    await receiver.serve("agent.late", hands, at_once=32)
    await hands.some(20)
    assert hands.ids == [str(number) for number in range(20)]


async def test_letters_of_one_box_come_in_the_order_in_which_they_were_posted(place: Place) -> None:
    """Oldest first, with one in hand at a time as with many."""
    sender, hands, seen = await place.open(), Hands(), list[str]()
    await sender.serve("agent.one", hands, at_once=1)
    for number in range(30):
        await sender.post(Letter("agent.one", str(number), b""))
    for _ in range(30):
        (got,) = await hands.some(1)
        hands.held.clear()
        seen.append(got.letter.id)
        await got.done()
    assert seen == [str(number) for number in range(30)]


async def test_each_letter_goes_to_one_of_those_that_serve_a_box(place: Place) -> None:
    """Two nodes that serve one box share its letters, and none is handed to both."""
    nodes = [await place.open(30.0), await place.open(30.0)]
    hands = [Hands(), Hands()]
    for node, its in zip(nodes, hands, strict=True):
        await node.serve("agent.shared", its, at_once=10)
    for number in range(20):
        await nodes[0].post(Letter("agent.shared", str(number), b""))
    await until(lambda: sum(len(its.held) for its in hands) >= 20)
    assert sorted(hands[0].ids + hands[1].ids, key=int) == [str(number) for number in range(20)]
    assert all(len(its.held) == 10 for its in hands)


async def test_no_more_are_handed_out_than_there_is_room_for(place: Place) -> None:
    """`at_once` bounds what is not settled; each that is settled makes room for one."""
    node, hands = await place.open(30.0), Hands()
    await node.serve("agent.few", hands, at_once=3)
    for number in range(9):
        await node.post(Letter("agent.few", str(number), b""))
    for settled in range(6):
        await hands.some(3 + settled)
        await quiet(node, "agent.other")
        assert len(hands.held) == 3 + settled
        await hands.held[settled].done()
    await hands.some(9)
    assert hands.ids == [str(number) for number in range(9)]


async def test_what_a_dead_node_had_in_its_hands_comes_to_another(place: Place) -> None:
    """A node that is gone has settled nothing: its letters come again, counted, and what it had settled does not."""
    dead, other, hands, others = await place.open(), await place.open(), Hands(), Hands()
    await dead.serve("agent.b", hands, at_once=4)
    for number in range(4):
        await other.post(Letter("agent.b", str(number), b""))
    await hands.some(4)
    await hands.held[1].done()
    await place.die(dead)
    await other.serve("agent.b", others, at_once=8)
    await others.some(3)
    assert sorted(others.ids) == ["0", "2", "3"]
    assert all(one.times > 1 for one in others.held)


async def test_what_is_not_settled_comes_again_at_once_when_serving_ends(place: Place) -> None:
    """Whoever stops serving gives back what it has, long before the time for that is over."""
    leaving, other, hands, others = await place.open(30.0), await place.open(30.0), Hands(), Hands()
    end = await leaving.serve("agent.b", hands, at_once=8)
    for number in range(5):
        await other.post(Letter("agent.b", str(number), b""))
    await hands.some(5)
    await other.serve("agent.b", others, at_once=8)
    await end()
    await others.some(5)
    assert sorted(others.ids) == ["0", "1", "2", "3", "4"]
    await other.post(Letter("agent.b", "later", b""))
    await others.some(6)
    assert len(hands.held) == 5


async def test_a_letter_that_nobody_settles_comes_again(place: Place) -> None:
    """After the time for it, to the same node too."""
    node, hands = await place.open(), Hands()
    await node.serve("agent.b", hands, at_once=4)
    await node.post(Letter("agent.b", "1", b""))
    first, second = await hands.some(2)
    assert (first.times, second.times) == (1, 2)
    assert first.letter == second.letter
    assert first.taken_us == second.taken_us
    await second.done()


async def test_what_comes_again_takes_the_place_that_it_had(place: Place) -> None:
    """A letter that was handed out twice and is settled leaves as much room as there was before."""
    node, hands = await place.open(), Hands()
    await node.serve("agent.b", hands, at_once=2)
    await node.post(Letter("agent.b", "1", b""))
    _, again = await hands.some(2)
    await again.done()
    for number in ("2", "3"):
        await node.post(Letter("agent.b", number, b""))
    await until(lambda: {"2", "3"} <= set(hands.ids))


async def test_a_letter_that_is_worked_on_does_not_come_again(place: Place) -> None:
    """Saying so often enough keeps it, for longer than the time after which it would come again."""
    node, hands = await place.open(), Hands()
    end = await node.serve("agent.b", hands, at_once=4)
    await node.post(Letter("agent.b", "1", b""))
    (got,) = await hands.some(1)
    for _ in range(12):
        got.working()
        await asyncio.sleep(ACK_SECONDS / 6)
    assert len(hands.held) == 1
    await got.done()
    await end()
    await quiet(node, "agent.b")


async def test_a_settled_letter_never_comes_again(place: Place) -> None:
    """Neither after the time for it, nor to whoever serves the box later."""
    node, hands = await place.open(), Hands()
    end = await node.serve("agent.b", hands, at_once=4)
    await node.post(Letter("agent.b", "1", b""))
    (got,) = await hands.some(1)
    await got.done()
    await got.done()
    await end()
    await asyncio.sleep(ACK_SECONDS * 1.5)
    await quiet(await place.open(), "agent.b")


async def test_a_letter_that_is_to_come_again_does_after_the_pause(place: Place) -> None:
    """At once without a pause; with one, after those that came later and not before it is over."""
    node, hands = await place.open(30.0), Hands()
    await node.serve("agent.b", hands, at_once=1)
    await node.post(Letter("agent.b", "1", b""))
    (got,) = await hands.some(1)
    await got.again()
    got = (await hands.some(2))[1]
    assert (got.letter.id, got.times) == ("1", 2)
    loop = asyncio.get_running_loop()
    paused = loop.time()
    await got.again(0.3)
    await node.post(Letter("agent.b", "2", b""))
    await (await hands.some(3))[2].done()
    await hands.some(4)
    assert hands.ids == ["1", "1", "2", "1"]
    assert loop.time() - paused >= 0.3
    await hands.held[3].done()


async def test_two_letters_of_one_id_into_one_box_are_one(place: Place) -> None:
    """While the first is waiting, in hand, and after it is settled; another box knows nothing of it."""
    node, hands, others = await place.open(), Hands(), Hands()
    for _ in range(3):
        await node.post(Letter("agent.b", "1", b"the first"))
    await node.serve("agent.b", hands, at_once=4)
    (got,) = await hands.some(1)
    await node.post(Letter("agent.b", "1", b"again"))
    await got.done()
    await node.post(Letter("agent.b", "1", b"and again"))
    await node.post(Letter("agent.c", "1", b"elsewhere"))
    await node.serve("agent.c", others, at_once=4)
    assert (await others.some(1))[0].letter.body == b"elsewhere"
    await node.post(Letter("agent.b", "2", b""))
    await hands.some(2)
    assert hands.ids == ["1", "2"]
    assert hands.held[0].letter.body == b"the first"


async def test_boxes_do_not_mix(place: Place) -> None:
    """Neither names with dots, nor one that begins like another, nor such as patterns or encodings could make equal."""
    names = ["agent.a", "agent.a.b", "agent.ab", "agent", "agent.A", "agent.a-b", "agent.a_b", "agent2E.a", "agenta"]
    node, hands = await place.open(30.0), {name: Hands() for name in names}
    for name, its in hands.items():
        await node.serve(name, its, at_once=4)
    for name in names:
        await node.post(Letter(name, "same-id", name.encode()))
    for name, its in hands.items():
        assert [one.letter for one in await its.some(1)] == [Letter(name, "same-id", name.encode())]
    for name in names:
        await node.post(Letter(name, "end", b""))
    for its in hands.values():
        await its.some(2)
        assert its.ids == ["same-id", "end"]


async def test_large_letters_arrive_whole(place: Place) -> None:
    """A mebibyte, several at a time; one that is too large is refused before anything of it is sent."""
    node, hands = await place.open(30.0), Hands()
    await node.serve("agent.b", hands, at_once=4)
    bodies = [bytes([number]) * 1024**2 for number in range(4)]
    await asyncio.gather(*(node.post(Letter("agent.b", str(body[0]), body)) for body in bodies))
    got = await hands.some(4)
    assert sorted(one.letter.body for one in got) == bodies
    with pytest.raises(ConfigInvalid, match="too large"):
        await node.post(Letter("agent.b", "5", bytes(node.bytes_max + 1)))
    await node.post(Letter("agent.c", "6", bytes(node.bytes_max)))


async def test_many_can_be_under_way_at_once(place: Place) -> None:
    """Posting waits for the answer to its own letter alone: several hundred at a time, each once."""
    node, hands = await place.open(30.0), Hands()
    await node.serve("agent.b", hands, at_once=64)
    posts = asyncio.gather(*(node.post(Letter("agent.b", str(number), b"x" * 100)) for number in range(500)))
    for number in range(500):
        await (await hands.some(number + 1))[number].done()
    await posts
    assert sorted(hands.ids, key=int) == [str(number) for number in range(500)]


async def test_who_is_away_is_told_so_and_recovers(place: Place) -> None:
    """Everything that needs the others raises TransportAway, at once; when they are back all goes on by itself."""
    node, other, hands, heard = await place.open(), await place.open(), Hands(), list[bool]()
    bucket = await node.bucket("facts")
    node.on_change(heard.append)
    await node.serve("agent.b", hands, at_once=4)
    await other.post(Letter("agent.b", "before", b""))
    (before,) = await hands.some(1)
    place.away(node)
    await until(lambda: heard == [False])
    for asked in (
        node.post(Letter("agent.b", "away", b"")),
        before.done(),
        before.again(),
        bucket.get("a"),
        bucket.put("a", b""),
        bucket.swap("a", b"", 0),
        bucket.watch(lambda _: None),
        node.bucket("other"),
    ):
        with pytest.raises(TransportAway):
            await asked
    before.working()
    late = Hands()
    await node.serve("agent.late", late, at_once=4)
    await other.post(Letter("agent.b", "meanwhile", b""))
    assert "meanwhile" not in hands.ids
    place.back(node)
    await until(lambda: heard == [False, True] and node.connected)
    await node.post(Letter("agent.late", "after", b""))
    await late.some(1)
    await until(lambda: "meanwhile" in hands.ids)
    for one in hands.held:
        await one.done()
    assert other.connected


async def test_a_letter_in_hand_can_be_settled_on_the_next_connection(place: Place) -> None:
    """Being away for a moment does not undo the work: it is settled when that is possible again."""
    node, hands, heard = await place.open(30.0), Hands(), list[bool]()
    node.on_change(heard.append)
    end = await node.serve("agent.b", hands, at_once=4)
    await node.post(Letter("agent.b", "1", b""))
    (got,) = await hands.some(1)
    place.away(node)
    await until(lambda: heard == [False])
    with pytest.raises(TransportAway):
        await got.done()
    place.back(node)
    await until(lambda: heard == [False, True])
    await got.done()
    await end()
    await quiet(await place.open(30.0), "agent.b")


async def test_what_was_asked_when_it_closed_is_away(place: Place) -> None:
    """A closed transport carries nothing, and can be closed again."""
    node, hands = await place.open(), Hands()
    bucket = await node.bucket("facts")
    await node.serve("agent.b", hands, at_once=4)
    await node.close()
    await node.close()
    assert not node.connected
    for asked in (
        node.post(Letter("agent.b", "1", b"")),
        node.serve("agent.b", hands, at_once=1),
        node.bucket("facts"),
        bucket.put("a", b""),
    ):
        with pytest.raises(TransportAway):
            await asked
    other = await place.open()
    await other.post(Letter("agent.b", "2", b""))
    await quiet_after(other, hands)


async def quiet_after(node: Transport, hands: Hands) -> None:
    """What is posted now comes to its new server, and not to those hands."""
    others = Hands()
    await node.serve("agent.b", others, at_once=4)
    await others.some(1)
    assert not hands.held


async def test_names_that_cannot_be_are_refused(place: Place) -> None:
    """A box, id, key or bucket that some transport could not carry is an error on each, and nothing is sent."""
    node = await place.open()
    bucket = await node.bucket("facts")
    for box in ("", "agent b", "agent.*", "agent.>", "agent/b", "a" * 161, "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        with pytest.raises(ValueError, match="is no name of a box"):
            await node.post(Letter(box, "1", b""))
        with pytest.raises(ValueError, match="is no name of a box"):
            await node.serve(box, Hands(), at_once=1)
    for ident in ("", "a b", "a\r\nX: y", "\N{LATIN SMALL LETTER E WITH ACUTE}", "a" * 257):
        with pytest.raises(ValueError, match="is no id of a letter"):
            await node.post(Letter("agent.b", ident, b""))
    for key in ("", ".a", "a.", "a..b", "a b", "a*", ">", "a" * 201, "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        for asked in (bucket.get(key), bucket.put(key, b""), bucket.swap(key, b"", 0)):
            with pytest.raises(ValueError, match="is no key"):
                await asked
    for name in ("", "Facts", "1a", "a.b", "a-b", "a" * 32):
        with pytest.raises(ValueError, match="is no name of a bucket"):
            await node.bucket(name)


async def test_the_longest_names_work(place: Place) -> None:
    """A box of 160 dots and letters and an id of 256 characters of every kind that is allowed."""
    box, ident = "a." * 79 + "_-", ("!~:/" + "x" * 60) * 4
    node, hands = await place.open(), Hands()
    await node.serve(box, hands, at_once=4)
    await node.post(Letter(box, ident, b"1"))
    assert (await hands.some(1))[0].letter == Letter(box, ident, b"1")


async def test_a_key_has_the_value_that_was_put_last(place: Place) -> None:
    """On every node, with a revision that is higher each time; bytes of every kind; None where there is none."""
    one, two = await (await place.open()).bucket("facts"), await (await place.open()).bucket("facts")
    assert await one.get("a.b/c=d_e-f") is None
    first = await one.put("a.b/c=d_e-f", bytes(range(256)))
    assert await two.get("a.b/c=d_e-f") == Item("a.b/c=d_e-f", bytes(range(256)), first)
    second = await two.put("a.b/c=d_e-f", b"")
    assert second > first
    assert await one.get("a.b/c=d_e-f") == Item("a.b/c=d_e-f", b"", second)
    assert await one.get("a.b") is None


async def test_buckets_do_not_mix(place: Place) -> None:
    """One key in two buckets is two keys, also where one bucket's name begins like the other's."""
    node = await place.open()
    facts, more = await node.bucket("facts"), await node.bucket("facts_")
    await facts.put("a", b"1")
    assert await more.get("a") is None
    assert await (await node.bucket("facts")).get("a") is not None


async def test_a_key_is_swapped_from_the_revision_that_it_has(place: Place) -> None:
    """Any other one is a conflict and changes nothing; 0 is a key that there is not, or not any more."""
    bucket = await (await place.open()).bucket("facts")
    first = await bucket.swap("a", b"1", 0)
    for wrong in (0, first + 1, first + 100):
        with pytest.raises(Conflict):
            await bucket.swap("a", b"2", wrong)
    assert await bucket.get("a") == Item("a", b"1", first)
    with pytest.raises(Conflict):
        await bucket.swap("b", b"1", first)
    second = await bucket.swap("a", b"2", first)
    with pytest.raises(Conflict):
        await bucket.swap("a", None, first)
    removed = await bucket.swap("a", None, second)
    assert removed > second > first
    assert await bucket.get("a") is None
    with pytest.raises(Conflict):
        await bucket.swap("a", b"3", second)
    third = await bucket.swap("a", b"3", 0)
    assert await bucket.get("a") == Item("a", b"3", third)
    assert third > removed


async def test_of_those_that_race_for_a_key_one_wins_each_time(place: Place) -> None:
    """Several nodes count up one key by compare-and-set: no count is lost, and each revision has one winner."""
    buckets = [await (await place.open()).bucket("facts") for _ in range(3)]
    won: list[int] = []

    async def count_up(mine: int, times: int) -> None:
        for _ in range(times):
            while True:
                item = await buckets[mine].get("count")
                value = int(item.value or b"0") if item else 0
                try:
                    won.append(await buckets[mine].swap("count", b"%d" % (value + 1), item.revision if item else 0))
                    break
                except Conflict:
                    continue

    await asyncio.gather(*(count_up(number, 10) for number in range(3)))
    item = await buckets[0].get("count")
    assert item is not None
    assert item.value == b"30"
    assert len(set(won)) == 30


async def test_a_watch_begins_with_all_keys_and_goes_on_with_changes(place: Place) -> None:
    """What there is is told before `watch` returns; then every node's changes and removals, in order; then no more."""
    node, other = await place.open(), await place.open()
    bucket, theirs = await node.bucket("facts"), await other.bucket("facts")
    for number in range(50):
        await bucket.put(f"k.{number}", b"%d" % number)
    gone = await bucket.put("gone", b"")
    await bucket.swap("gone", None, gone)
    told: list[Item] = []
    end = await bucket.watch(told.append)
    assert [(item.key, item.value) for item in told] == [(f"k.{number}", b"%d" % number) for number in range(50)]
    del told[:]
    revisions = [await theirs.put("k.1", b"new"), await bucket.put("k.51", b"more")]
    revisions.append(await theirs.swap("k.1", None, revisions[0]))
    await until(lambda: told and told[-1].revision == revisions[-1])
    assert [item.revision for item in told] == sorted({item.revision for item in told})
    assert {item.key: item.value for item in told} == {"k.1": None, "k.51": b"more"}
    end()
    empty: list[Item] = []
    await (await node.bucket("other")).watch(empty.append)
    assert empty == []
    count = len(told)
    await theirs.put("k.2", b"unheard")
    again: list[Item] = []
    await bucket.watch(again.append)
    assert again[-1].value == b"unheard"
    assert len(told) == count


async def test_a_watch_tells_what_was_changed_while_it_was_away(place: Place) -> None:
    """The newest of each key that changed, removals too, in order, and nothing of what did not; then it goes on."""
    node, other = await place.open(), await place.open()
    bucket, theirs = await node.bucket("facts"), await other.bucket("facts")
    kept, removed = await bucket.put("kept", b"1"), await bucket.put("removed", b"1")
    await bucket.put("changed", b"1")
    told: list[Item] = []
    await bucket.watch(told.append)
    assert len(told) == 3
    del told[:]
    heard: list[bool] = []
    node.on_change(heard.append)
    place.away(node)
    await until(lambda: heard == [False])
    for value in (b"2", b"3"):
        await theirs.put("changed", value)
    await theirs.swap("removed", None, removed)
    await theirs.put("added", b"1")
    assert told == []
    place.back(node)
    await until(lambda: told and told[-1].key == "added")
    assert [(item.key, item.value) for item in told] == [("changed", b"3"), ("removed", None), ("added", b"1")]
    newest = await theirs.put("kept", b"2")
    assert newest > kept
    await until(lambda: told[-1] == Item("kept", b"2", newest))


async def test_it_says_where_it_is(place: Place) -> None:
    """An address without anything secret, and that it is connected."""
    node = await place.open()
    assert node.url.startswith(("memory://", "nats://"))
    assert node.connected
