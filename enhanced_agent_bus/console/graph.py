"""Who talks to whom as a drawing: agents on a circle, tenant by tenant, and a curve for each pair. Pure.

The same counts always give the same drawing: places follow from the names and nothing else. Not here: counting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import cos, log2, pi, sin
from typing import Final, NamedTuple

AGENTS_MAX: Final = 40  # who talks most; the table beside the drawing has the others
NAME_CHARS_MAX: Final = 22
SIDE: Final = 760
RADIUS: Final = 265.0
_LABEL: Final = 14.0
_BEND: Final = 0.32  # how near a curve stays to the centre: 0 goes through it
_WIDTH_MAX: Final = 6.0


class Edge(NamedTuple):
    """Decisions on what one sent the other."""

    sender: str
    recipient: str
    verdicts: Mapping[str, int]
    newest: int = -1

    @property
    def all(self) -> int:
        return sum(self.verdicts.values())

    @property
    def refused(self) -> int:
        return self.verdicts.get("refuse", 0)


class Node(NamedTuple):
    """One agent: where it stands, and where its name does."""

    id: str
    tenant: str
    name: str
    x: float
    y: float
    label_x: float
    label_y: float
    turn: float
    anchor: str


class Curve(NamedTuple):
    """One pair: its path, how wide for what went on and for what was refused (0 where nothing was), and its middle."""

    edge: Edge
    path: str
    width: float
    refused_width: float
    middle_x: float
    middle_y: float


class Drawing(NamedTuple):
    """All of it; `left_out` says how many agents are in the table alone."""

    side: int
    nodes: list[Node]
    curves: list[Curve]
    left_out: int


def draw(edges: Iterable[Edge], tenants: Mapping[str, str]) -> Drawing:
    """The agents that talk most, and the pairs among them."""
    edges = list(edges)
    busy: Counter[str] = Counter()
    for edge in edges:
        busy[edge.sender] += edge.all
        busy[edge.recipient] += edge.all
    chosen = sorted(busy, key=lambda name: (-busy[name], name))[:AGENTS_MAX]
    chosen.sort(key=lambda name: (tenants.get(name, "~"), name))
    places = {name: 2 * pi * (number + 0.5) / len(chosen) - pi / 2 for number, name in enumerate(chosen)}
    shown = sorted(
        (edge for edge in edges if edge.sender in places and edge.recipient in places),
        key=lambda edge: (edge.refused > 0, edge.all, edge.sender, edge.recipient),
    )
    most = max((edge.all for edge in shown), default=1)
    nodes = [_node(name, tenants.get(name, ""), angle) for name, angle in places.items()]
    curves = [_curve(edge, places[edge.sender], places[edge.recipient], most) for edge in shown]
    return Drawing(SIDE, nodes, curves, len(busy) - len(chosen))


def _at(angle: float, radius: float) -> tuple[float, float]:
    return SIDE / 2 + radius * cos(angle), SIDE / 2 + radius * sin(angle)


def _node(id_: str, tenant: str, angle: float) -> Node:
    x, y = _at(angle, RADIUS)
    label_x, label_y = _at(angle, RADIUS + _LABEL)
    left = cos(angle) < 0
    turn = angle * 180 / pi + (180 if left else 0)
    name = id_ or "nobody"
    short = name if len(name) <= NAME_CHARS_MAX else f"{name[: NAME_CHARS_MAX - 1]}…"
    x, y, label_x, label_y, turn = (round(value, 1) for value in (x, y, label_x, label_y, turn))
    return Node(id_, tenant, short, x, y, label_x, label_y, turn, "end" if left else "start")


def _width(number: int, most: int) -> float:
    return round(1 + (_WIDTH_MAX - 1) * log2(1 + number) / log2(1 + most), 1) if number else 0.0


def _curve(edge: Edge, start: float, end: float, most: int) -> Curve:
    """From the one to the other, bent to the centre; what goes the other way bends a little beside it."""
    widths = _width(edge.all - edge.refused, most), _width(edge.refused, most)
    if edge.sender == edge.recipient:
        x, y = _at(start, RADIUS)
        out_x, out_y = _at(start - 0.18, RADIUS - 70)
        back_x, back_y = _at(start + 0.18, RADIUS - 70)
        path = f"M{x:.1f} {y:.1f}C{out_x:.1f} {out_y:.1f} {back_x:.1f} {back_y:.1f} {x:.1f} {y:.1f}"
        middle_x, middle_y = _at(start, RADIUS - 52)
        return Curve(edge, path, *widths, round(middle_x, 1), round(middle_y, 1))
    (x, y), (to_x, to_y) = _at(start, RADIUS - 5), _at(end, RADIUS - 9)
    middle = SIDE / 2
    chord_x, chord_y = (x + to_x) / 2, (y + to_y) / 2
    # To the right of who sends, so that the way back is another curve.
    aside_x, aside_y = -(to_y - y) * 0.07, (to_x - x) * 0.07
    bend_x = middle + (chord_x - middle) * _BEND + aside_x
    bend_y = middle + (chord_y - middle) * _BEND + aside_y
    path = f"M{x:.1f} {y:.1f}Q{bend_x:.1f} {bend_y:.1f} {to_x:.1f} {to_y:.1f}"
    return Curve(edge, path, *widths, round((x + 2 * bend_x + to_x) / 4, 1), round((y + 2 * bend_y + to_y) / 4, 1))
