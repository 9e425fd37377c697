"""Plots as hand-written SVG: lines or bars, with readable axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from tests.bench.figures import brief

WIDTH, HEIGHT = 820, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 280, 16, 44
COLOURS = (
    "#9aa0a6",
    "#34a853",
    "#a142f4",
    "#f29900",
    "#00acc1",
    "#8ab4f8",
    "#1967d2",
    "#f28b82",
    "#d93025",
    "#7b1f1f",
)

Series = Mapping[str, Sequence[tuple[float, float]]]


def lines(
    series: Series,
    colours: Mapping[str, str],
    x_title: str,
    y_title: str,
    marks: Mapping[float, str] | None = None,
) -> str:
    """Return points joined by lines on logarithmic axes; `marks` are labels of the x axis."""
    points = [point for line in series.values() for point in line]
    x_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y_axis = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    below = marks or {value: f"{value:,g}" for value in x_axis.marks()}
    parts = [*_frame(x_axis, y_axis, x_title, y_title, below)]
    for number, (name, line) in enumerate(series.items()):
        colour = colours[name]
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts += _legend(number, name, colour)
    return _svg(parts)


def bars(values: Mapping[str, Mapping[str, float]], title: str) -> str:
    """Return stacked bars, one per row, with their parts."""
    names = list(dict.fromkeys(part for parts in values.values() for part in parts))
    most = max(sum(parts.values()) for parts in values.values())
    height = TOP + 26 * len(values) + 60
    left, room = 260, WIDTH - 260 - 70
    found = []
    for row, (name, parts) in enumerate(values.items()):
        y, x = TOP + 26 * row, float(left)
        found.append(_text(left - 8, y + 14, name, "end"))
        for part, value in parts.items():
            width = room * value / most
            colour = COLOURS[names.index(part) % len(COLOURS)]
            tip = f"<title>{escape(part)} {brief(value)}</title>"
            found.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" fill="{colour}">{tip}</rect>'
            )
            x += width
        found.append(_text(x + 6, y + 14, brief(sum(parts.values()))))
    y, x = TOP + 26 * len(values) + 22, float(left)
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        found.append(f'<rect x="{x}" y="{y - 10}" width="10" height="10" fill="{colour}"/>')
        found.append(_text(x + 14, y, name))
        x += 26 + 7 * len(name)
    found.append(_text(left, y + 24, title))
    return _svg(found, height)


class _Axis:
    """A logarithmic axis, in pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = math.log10(min(values)), math.log10(max(values))
        if self.high - self.low < math.log10(2):  # a single value needs a range around it
            self.low, self.high = self.low - 0.2, self.high + 0.2
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        """Return the position of a value."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def marks(self) -> list[float]:
        """Return round values within the axis, three per decade."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
        return [v for v in found if self.low - 0.01 <= math.log10(v) <= self.high + 0.01]


def _frame(
    x_axis: _Axis, y_axis: _Axis, x_title: str, y_title: str, below: Mapping[float, str]
) -> list[str]:
    right, bottom, parts = WIDTH - RIGHT, HEIGHT - BOTTOM, []
    for value, words in below.items():
        x = x_axis.place(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" class="grid"/>')
        parts.append(_text(x, bottom + 16, words, "middle"))
    for value in y_axis.marks():
        y = y_axis.place(value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:,g}", "end"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, x_title, "middle"))
    middle = (TOP + bottom) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="14" y="{middle}" {turned}>{escape(y_title)}</text>')
    return parts


def _legend(number: int, name: str, colour: str) -> list[str]:
    x, y = WIDTH - RIGHT + 16, TOP + 12 + 20 * number
    line = f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>'
    return [line, _text(x + 24, y, name)]


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(parts: Sequence[str], height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'
