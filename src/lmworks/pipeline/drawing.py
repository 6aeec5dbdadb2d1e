"""Two drawings as inline SVG, colored by the page's style sheet: a curve over steps and a lineage graph.

Knows no artifact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 320, 170, 46, 22, 12, 12
_MOST_POINTS = 240
_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y = 136, 42, 34, 14


def curve(points: Sequence[tuple[float, float]], name: str) -> Markup:
    """A line through `(step, value)` points, thinned to what a screen can show."""
    points = [p for p in points if math.isfinite(p[1])]
    if not points:
        return Markup("")
    stride = max(1, math.ceil(len(points) / _MOST_POINTS))
    drawn = [*points[:-1:stride], points[-1]]
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    ticks = nice_ticks(min(ys), max(ys))
    low, high = min(*ys, *ticks), max(*ys, *ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1)
        up = (y - low) / ((high - low) or 1)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _BOTTOM - _TOP)

    path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in drawn)
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(tick)}</text>'
        for tick in ticks
        for _, y in [place(xs[0], tick)]
    )
    end_x, end_y = place(xs[-1], ys[-1])
    return Markup(
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(name)} by step">'
        f'{grid}<polyline points="{path}"/><circle cx="{end_x:.1f}" cy="{end_y:.1f}" r="3"/>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{short(xs[0])}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">step {short(xs[-1])}</text></svg>'
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round values that span `low` to `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / 4
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters: `1.2k`, `0.0031`, `1e-05`."""
    for bound, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if suffix == 'k' else bound):.3g}{suffix}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Node:
    """One box of the graph."""

    key: str
    name: str
    kind: str
    parents: tuple[str, ...]


def graph(nodes: Sequence[Node]) -> Markup:
    """Boxes in columns, parents left of children, joined to their parents; each links to `#key`.

    `nodes` come parents first; parents that are not among them are left out.
    """
    column: dict[str, int] = {}
    for node in nodes:
        column[node.key] = max((column[p] + 1 for p in node.parents if p in column), default=0)
    for node in nodes:  # what has no parents stands just before its first use
        used = [column[child.key] - 1 for child in nodes if node.key in child.parents]
        if column[node.key] == 0 and used:
            column[node.key] = min(used)
    rows: dict[int, list[str]] = {}
    for node in nodes:
        rows.setdefault(column[node.key], []).append(node.key)
    tallest = max((len(keys) for keys in rows.values()), default=1)
    corner: dict[str, tuple[float, float]] = {}
    for col, keys in rows.items():
        offset = (tallest - len(keys)) * (_BOX_HEIGHT + _GAP_Y) / 2
        for row, key in enumerate(keys):
            corner[key] = (4 + col * (_BOX_WIDTH + _GAP_X), 4 + offset + row * (_BOX_HEIGHT + _GAP_Y))
    width = 8 + (max(rows, default=0) + 1) * (_BOX_WIDTH + _GAP_X) - _GAP_X
    height = 8 + tallest * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y
    edges = "".join(_edge(corner[p], corner[node.key]) for node in nodes for p in node.parents if p in corner)
    boxes = "".join(_box(node, *corner[node.key]) for node in nodes)
    return Markup(
        f'<svg class="graph" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="what was made from what">{edges}{boxes}</svg>'
    )


def _edge(parent: tuple[float, float], child: tuple[float, float]) -> str:
    x1, y1 = parent[0] + _BOX_WIDTH, parent[1] + _BOX_HEIGHT / 2
    x2, y2 = child[0], child[1] + _BOX_HEIGHT / 2
    bend = max(20.0, (x2 - x1) / 2)
    return f'<path d="M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"/>'


def _box(node: Node, x: float, y: float) -> str:
    name = node.name if len(node.name) <= 18 else f"{node.name[:17]}…"
    return (
        f'<a href="#{escape(node.key)}"><rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="9"/>'
        f'<text class="name" x="{x + 12}" y="{y + 18}">{escape(name)}</text>'
        f'<text x="{x + 12}" y="{y + 33}">{escape(node.kind)}</text></a>'
    )
