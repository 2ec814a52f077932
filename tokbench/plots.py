"""Rate-distortion plots as inline SVG: small, deterministic, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

WIDTH, HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 150, 14, 46
COLOURS = 8
MOST_POINTS = 2000


@dataclass(frozen=True)
class Point:
    """One row on a plot. Points of one `series` are joined in order of x; `reported` ones are hollow."""

    x: float
    y: float
    name: str
    series: str
    reported: bool = False


def scatter(points: Sequence[Point], *, x: str, y: str, log: bool, higher_is_better: bool | None) -> str:
    """Return an SVG of y against x with the Pareto front (less x, better y) as a dashed line.

    Points that have no place on a logarithmic axis (x <= 0) are left out. Returns "" for fewer than two points, and for more
    than MOST_POINTS.
    All text is escaped; colours are the classes c0 .. c7 of the page.
    """
    shown = sorted((p for p in points if p.x > 0 or not log), key=lambda p: (p.x, p.y, p.name))
    if not 2 <= len(shown) <= MOST_POINTS:
        return ""
    xs = _Axis([p.x for p in shown], log, _LEFT, WIDTH - _RIGHT)
    ys = _Axis([p.y for p in shown], False, HEIGHT - _BOTTOM, _TOP)
    names = sorted({p.series for p in shown})
    out = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y)} against {escape(x)}">',
        *(_tick_x(xs, value) for value in xs.ticks),
        *(_tick_y(ys, value) for value in ys.ticks),
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 8}">{escape(x)}{", log scale" if log else ""}</text>',
        f'<text transform="rotate(-90)" x="{-(HEIGHT - _BOTTOM) / 2:.0f}" y="14">{escape(y)}</text>',
    ]
    front = _front(shown, higher_is_better)
    if len(front) > 1:
        out.append(f'<polyline class="front" points="{_path(front, xs, ys)}"><title>Pareto front</title></polyline>')
    for index, name in enumerate(names):
        members = [p for p in shown if p.series == name]
        colour = f"c{index % COLOURS}"
        if len(members) > 1:
            out.append(f'<polyline class="series {colour}" points="{_path(members, xs, ys)}"/>')
        for p in members:
            kind = "hollow" if p.reported else "solid"
            label = f"{p.name}: {x} {p.x:.4g}, {y} {p.y:.4g}{', reported' if p.reported else ''}"
            where = f'cx="{xs.at(p.x):.1f}" cy="{ys.at(p.y):.1f}"'
            out.append(f'<circle class="{kind} {colour}" {where} r="4"><title>{escape(label)}</title></circle>')
    out += _labels(shown, names, ys)
    return "".join([*out, "</svg>"])


@dataclass(frozen=True)
class _Axis:
    values: Sequence[float]
    log: bool
    start: float
    end: float

    @cached_property
    def span(self) -> tuple[float, float]:
        low, high = (self._map(value) for value in (min(self.values), max(self.values)))
        pad = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
        return low - pad, high + pad

    def _map(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float:
        low, high = self.span
        return self.start + (self._map(value) - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        low, high = self.span
        if self.log:
            decades = range(math.floor(low), math.ceil(high) + 1)
            steps = (1, 2, 5) if high - low < 3 else (1,)
            values = [step * 10.0**power for power in decades for step in steps]
            inside = [value for value in values if low <= math.log10(value) <= high]
            return inside or [10 ** ((low + high) / 2)]
        step = 10 ** math.floor(math.log10((high - low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
        first = math.ceil(low / step)
        return [round(index * step, 12) for index in range(first, math.floor(high / step) + 1)]


def _tick_x(axis: _Axis, value: float) -> str:
    at = f"{axis.at(value):.1f}"
    return (
        f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        f'<text class="tick" x="{at}" y="{HEIGHT - _BOTTOM + 16}">{value:g}</text>'
    )


def _tick_y(axis: _Axis, value: float) -> str:
    at = axis.at(value)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick end" x="{_LEFT - 6}" y="{at + 4:.1f}">{value:g}</text>'
    )


def _path(points: Sequence[Point], xs: _Axis, ys: _Axis) -> str:
    return " ".join(f"{xs.at(p.x):.1f},{ys.at(p.y):.1f}" for p in points)


def _front(points: Sequence[Point], higher_is_better: bool | None) -> list[Point]:
    """Return the points no other beats in both less x and better y; empty where no direction is better."""
    if higher_is_better is None:
        return []
    sign = 1.0 if higher_is_better else -1.0
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x, -sign * p.y, p.name)):
        if not front or sign * p.y > sign * front[-1].y:
            front.append(p)
    return front


def _labels(points: Sequence[Point], names: Sequence[str], ys: _Axis) -> list[str]:
    """Name each series at the right edge, at the height of its last point, moved apart; many series get none."""
    if len(names) > 22:
        return []
    last = {name: [p for p in points if p.series == name][-1] for name in names}
    order = sorted(names, key=lambda name: (ys.at(last[name].y), name))
    step = min(15.0, (HEIGHT - _BOTTOM - _TOP) / len(order))
    heights: list[float] = []
    for name in order:
        heights.append(max(ys.at(last[name].y) + 4, heights[-1] + step if heights else _TOP + 8))
    over = max(0.0, heights[-1] - (HEIGHT - _BOTTOM))
    for index in range(len(heights) - 1, -1, -1):
        limit = HEIGHT - _BOTTOM if index == len(heights) - 1 else heights[index + 1] - step
        heights[index] = min(heights[index], limit) if over else heights[index]
    out = []
    for name, height in zip(order, heights, strict=True):
        text = name if len(name) <= 24 else name[:23] + "…"
        colour = names.index(name) % COLOURS
        out.append(f'<text class="label c{colour}" x="{WIDTH - _RIGHT + 8}" y="{height:.1f}">{escape(text)}</text>')
    return out
