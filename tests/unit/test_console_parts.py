"""Parts of the console: the drawing, the counts of a long log, open pages, and views that are recorded together."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from itertools import pairwise
from math import dist
from pathlib import Path

import pytest

from enhanced_agent_bus.audit.query import Query
from enhanced_agent_bus.cli.faults import CliError
from enhanced_agent_bus.console import tally as tally_module
from enhanced_agent_bus.console.access import Recorder
from enhanced_agent_bus.console.graph import AGENTS_MAX, SIDE, Edge, draw
from enhanced_agent_bus.console.guard import READ, REPLAY, Tokens
from enhanced_agent_bus.console.tally import Tally
from enhanced_agent_bus.console.views import VIEWS_MAX, View, Views
from tests.developer import log
from tests.entries import fill


def busy(agents: int, pairs: int) -> list[Edge]:
    """Pairs of agents that talk more or less."""
    chance = random.Random(7)
    names = [f"agent-{number:02}" for number in range(agents)]
    chosen = [chance.sample(names, 2) for _ in range(pairs)]
    return [Edge(sender, recipient, {"allow": chance.randrange(1, 500)}) for sender, recipient in chosen]


def test_the_same_counts_give_the_same_drawing_in_any_order() -> None:
    """Who stands where follows from the names; a pair more moves nobody who was there."""
    edges = busy(30, 120)
    tenants = {edge.sender: "acme" if edge.sender < "agent-15" else "globex" for edge in edges}
    drawing = draw(edges, tenants)
    assert draw(list(reversed(edges)), tenants) == drawing
    assert [node[:8] for node in draw([*edges, edges[0]._replace(verdicts={"refuse": 1})], tenants).nodes] == [
        node[:8] for node in drawing.nodes
    ]


def test_thirty_agents_have_room_for_their_names() -> None:
    """No two stand nearer than a line of text is high, and all lie inside of the picture, tenant by tenant."""
    edges = busy(30, 200)
    drawing = draw(edges, {edge.sender: edge.sender[-1] for edge in edges})
    assert len(drawing.nodes) == 30
    assert all(dist(a[3:5], b[3:5]) > 20 for a, b in pairwise(drawing.nodes))
    assert all(0 < place < SIDE for node in drawing.nodes for place in node[3:7])
    assert [node.tenant for node in drawing.nodes] == sorted(node.tenant for node in drawing.nodes)


def test_a_drawing_is_bounded_and_marks_what_was_refused() -> None:
    """Beyond so many agents those that talk least are left out; nothing and one alone can be drawn too."""
    many = [Edge("desk", f"a-{number}", {"allow": number + 1}) for number in range(300)]
    drawing = draw([*many, Edge("desk", "desk", {"refuse": 9999})], {})
    assert len(drawing.nodes) == AGENTS_MAX
    assert drawing.left_out == 301 - AGENTS_MAX
    [own] = [curve for curve in drawing.curves if curve.edge.recipient == "desk"]
    assert (own.width, own.refused_width > 0) == (0, True)
    assert all(curve.refused_width == 0 for curve in drawing.curves if curve is not own)
    assert draw([], {}).nodes == []


async def test_the_whole_log_is_counted_once_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of any size it comes to what the log has, and records that come later are added to it."""
    monkeypatch.setattr(tally_module, "PAGE_ROWS", 7)
    home = tmp_path / "home"
    await fill(home, 60)
    tally = Tally(home)
    rounds = 1
    while not tally.advance(0):
        assert tally.read().size == 7 * rounds
        rounds += 1
    counts = tally.read()
    assert counts.size == tally.size == len(log(home))
    assert {pair: dict(count.verdicts) for pair, count in counts.pairs.items()} == {("desk", "booker"): {"allow": 60}}
    assert counts.pairs["desk", "booker"].newest == log(home, "decision")[-1]["seq"]
    counts.pairs.clear()
    assert tally.advance(1)
    assert tally.read().pairs["desk", "booker"].all == 60  # what was read is a copy, and nothing counts twice


async def test_names_beyond_what_is_kept_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the names that a log has."""
    monkeypatch.setattr(tally_module, "PAIRS_MAX", 0)
    await fill(tmp_path / "home", 5)
    tally = Tally(tmp_path / "home")
    assert tally.advance(5)
    assert (tally.read().pairs, tally.read().others) == ({}, 5)


def test_pages_that_nobody_asks_for_are_forgotten_first() -> None:
    """One that goes on asking stays, however many are opened after it."""
    views = Views()
    first = views.add(View(Query([])))
    second = views.add(View(None))
    for _ in range(VIEWS_MAX - 2):
        views.add(View(None))
    assert views.find(first) is not None
    views.add(View(None))
    assert views.find(first) is not None
    assert views.find(second) is None


class Slow(Recorder):
    """Writes when it is told to, and keeps what came together."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.batches: list[Sequence[str]] = []
        self.started, self.go_on = threading.Event(), threading.Event()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _record(self, whats: list[str]) -> None:
        self.batches.append(list(whats))
        self.started.set()
        assert self.go_on.wait(30)
        if "broken" in whats:
            raise CliError("the disk is full")


def test_views_that_come_together_are_recorded_together_and_each_waits_for_it() -> None:
    """Nobody's view is shown before its record is written, and a failure is everybody's whose record it was."""
    recorder = Slow()
    done: list[str] = []

    def look(what: str) -> None:
        try:
            recorder.note(what)
        except CliError:
            done.append(f"not {what}")
        else:
            done.append(what)

    threads = [threading.Thread(target=look, args=(what,)) for what in ("first", "second", "broken")]
    threads[0].start()
    assert recorder.started.wait(30)
    for thread in threads[1:]:
        thread.start()
    while recorder.waiting < 2:
        threads[1].join(0.005)
    assert done == []
    recorder.go_on.set()
    for thread in threads:
        thread.join(30)
    assert [sorted(batch) for batch in recorder.batches] == [["first"], ["broken", "second"]]
    assert sorted(done) == ["first", "not broken", "not second"]


def test_a_token_opens_what_it_is_for() -> None:
    """Long, random, and no two alike; text that is no token opens nothing."""
    tokens = Tokens.make(replay=True)
    assert tokens.replay is not None
    assert tokens.rights(tokens.read) == READ
    assert tokens.rights(tokens.replay) == REPLAY
    assert len(tokens.read) >= 43
    for other in ("", tokens.read[:-1], f"{tokens.read} ", "é\ud800", Tokens.make(replay=False).read):
        assert tokens.rights(other) is None
    assert Tokens.make(replay=False).rights("None") is None
