"""A curve that grows while a model trains, as SVG text: small enough to be drawn at every log."""

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_progressive.report.formatting import decimals

_WIDTH, _HEIGHT = 420.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 16.0, 14.0, 40.0
_TICKS = 4  # about so many on an axis
_LATE = 8  # points from which on the first quarter may lie above the panel
_WHILE_NEW = 0.25


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart."""

    title: str
    points: Sequence[tuple[float, float]]
    kind: str
    """A class of the style sheet: `grown`, `cold`, `before`. Each has a colour, dashes and a marker of its own."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a chart shows."""

    name: str
    """A word that no other chart of the page uses."""

    title: str
    """What stands over it."""

    up: str
    """What the vertical axis shows."""

    right: float
    """The last step, where the horizontal axis ends, so that it is seen how far the curve has to go."""

    lines: tuple[Line, ...]

    @property
    def description(self) -> str:
        """What it shows, in words."""
        said = [
            f"{line.title}: {decimals(line.points[-1][1], 4)} at step {line.points[-1][0]:,.0f}"
            for line in self.lines
            if line.points
        ]
        return f"{self.up} against optimizer steps. {'; '.join(said)}."

    def svg(self) -> str:
        """Return the chart; its colours are those of the page."""
        bottom, top = _range([line.points for line in self.lines])
        right = self.right or 1.0

        def x(value: float) -> float:
            return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / right

        def y(value: float) -> float:
            return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - bottom) / (top - bottom)

        parts = [
            f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
            f'aria-labelledby="{self.name}-title {self.name}-desc">',
            f'<title id="{self.name}-title">{html.escape(self.title)}</title>',
            f'<desc id="{self.name}-desc">{html.escape(self.description)}</desc>',
            f'<clipPath id="{self.name}-panel"><rect x="{_LEFT - 5:g}" y="{_TOP - 5:g}" '
            f'width="{_WIDTH - _LEFT - _RIGHT + 10:g}" height="{_HEIGHT - _TOP - _BOTTOM + 10:g}"/></clipPath>',
        ]
        heights = _ticks(bottom, top)
        digits = _digits(heights)
        for value in heights:
            parts.append(f'<path class="rule" d="M{_LEFT:g} {y(value):.1f}H{_WIDTH - _RIGHT:g}"/>')
            parts.append(_text(_LEFT - 6, y(value) + 4, decimals(value, digits), "end"))
        for value in _ticks(0.0, right):
            parts.append(_text(x(value), _HEIGHT - _BOTTOM + 17, f"{value:,.0f}", "middle"))
        parts.append(f'<path class="axis" d="M{_LEFT:g} {_HEIGHT - _BOTTOM:g}H{_WIDTH - _RIGHT:g}"/>')
        parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, "optimizer steps", "middle"))
        parts.append(f'<g clip-path="url(#{self.name}-panel)">')
        for line in self.lines:
            place = [(x(a), y(b)) for a, b in line.points]
            if place:
                path = "L".join(f"{a:.1f} {b:.1f}" for a, b in place)
                parts += [f'<path class="line {line.kind}" d="M{path}"/>', _marker(*place[-1], line.kind)]
        parts.append("</g></svg>")
        return "".join(parts)


def _marker(x: float, y: float, kind: str) -> str:
    if kind == "cold":
        return f'<rect class="end cold" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
    if kind == "before":
        return ""
    return f'<circle class="end {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _range(lines: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    # All of the lines, but for the steep beginning of long ones.
    shown = [
        value
        for points in lines
        for _, value in (points[math.ceil(_WHILE_NEW * len(points)) :] if len(points) >= _LATE else points)
        if math.isfinite(value)
    ]
    least, most = min(shown, default=0.0), max(shown, default=1.0)
    height = (most - least) or 0.02 * (abs(least) or 1.0)
    return least - 0.1 * height, most + 0.1 * height


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers within a range.

    >>> _ticks(1.83, 2.41)
    [2.0, 2.2, 2.4]
    """
    rough = (high - low) / _TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * times for times in (1, 2, 5, 10) if size * times >= rough)
    first = math.ceil(low / step)
    return [round(place * step, 12) for place in range(first, math.floor(high / step) + 1)]


def _digits(ticks: Sequence[float]) -> int:
    # As many as tell two ticks apart.
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(ticks[0]) if ticks else 1.0) or 1.0
    return max(0, -math.floor(math.log10(step) + 1e-9))
