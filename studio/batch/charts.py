"""Line charts as SVG texts, without a library: a report is one file that asks nothing of anybody."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
"""Told apart on white, by most eyes also without colour vision, in this order."""
WIDTH, HEIGHT = 620, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
_POINTS = 300
_WINDOWS = 10


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[tuple[int, float]]


def chart(lines: Sequence[Line], x_name: str, y_name: str) -> str:
    """An SVG of up to len(COLOURS) curves, each smoothed; "" where there is nothing to draw."""
    shown = [(line, smoothed(line.points)) for line in lines]
    values = [value for _, points in shown for _, value in points if math.isfinite(value)]
    last = max((step for _, points in shown for step, _ in points), default=0)
    if not values:
        return ""
    low, high = _widened(min(values), max(values))
    scale = _Scale(last, low, high)
    parts = [*_axes(scale, x_name, y_name)]
    for (line, points), colour in zip(shown, COLOURS, strict=False):
        parts.append(_polyline(scale, points, colour, line.label))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_name)}">{"".join(parts)}</svg>'


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A moving mean over a tenth of the points, of which at most 300 are kept."""
    reach = max(1, len(points) // (2 * _WINDOWS))
    stride = max(1, len(points) // _POINTS)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    found: list[tuple[int, float]] = []
    for n in range(0, len(points), stride):
        begin, end = max(0, n - reach), min(len(points), n + reach + 1)
        found.append((points[n][0], (sums[end] - sums[begin]) / (end - begin)))
    return found


@dataclass(frozen=True)
class _Scale:
    last: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / max(1, self.last)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - self.low) / (self.high - self.low)


def _widened(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` to `high`."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]


def _axes(scale: _Scale, x_name: str, y_name: str) -> Iterator[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for value in ticks(scale.low, scale.high):
        y = scale.y(value)
        yield f'<line class="rule" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>'
    for value in (n for n in ticks(0, max(1, scale.last)) if n == int(n)):
        yield f'<text x="{scale.x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>'
    yield f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    yield f'<text x="{right}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>'
    middle = (_TOP + bottom) / 2
    yield f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>'


def _polyline(scale: _Scale, points: Sequence[tuple[int, float]], colour: str, label: str) -> str:
    place = " ".join(f"{scale.x(step):.1f},{scale.y(value):.1f}" for step, value in points if math.isfinite(value))
    return f'<polyline points="{place}" stroke="{colour}"><title>{escape(label)}</title></polyline>'
