"""Panels as SVG text: axes with round ticks that hold all their data, and the marks on them.

An axis ends at the ticks around its data, so no curve is cut off at a frame. The y label stands above the panel, where
it is read without turning one's head. Numbers are rounded to a tenth of a unit: the same data give the same bytes.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from alignment_core.drawing import GRID, INK, WIDTH, Look
from alignment_core.report_text import visible

Point = tuple[float, float]
FONT = 10.0
"""Height of text, in units."""
_TOP, _BOTTOM, _RIGHT = 24.0, 36.0, 14.0
_BARE_TOP = 6.0
"""Room above a panel without a y label."""
_CHARACTER = 0.56 * FONT
"""About the width of a character."""
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Tick(NamedTuple):
    """A labelled place on an axis."""

    value: float
    label: str


class Axis(NamedTuple):
    """One direction of a panel."""

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends: 0 to 1."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return (at - low) / (high - low)


def nice_step(span: float, most: int = 5) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides `span` into at most `most` parts."""
    rough = span / most
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * (1 - 1e-9))


def linear_axis(
    label: str, values: Sequence[float], bottom: float | None = None, whole: bool = False, tight: bool = False
) -> Axis:
    """An axis that holds all values, from `bottom` on where it is given and nothing lies below it.

    `whole` puts ticks at whole numbers only; `tight` ends the axis at the largest value instead of the tick after it.
    Raises ValueError for no values, or one that is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"an axis {label!r} needs finite values, at least one: leave out what is none")
    low, high = min(values), max(values)
    low = low if bottom is None else min(low, bottom)
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # one value: give it room on both sides
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if high else (0.0, 1.0)
        low = low if bottom is None else max(low, bottom)
    step = nice_step(high - low)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    places = [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]
    end = high if tight else places[-1]
    ticks = (Tick(at, _number(at, step, max(map(abs, places)))) for at in places if at <= end * (1 + 1e-9))
    return Axis(label, places[0], end, tuple(ticks))


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis with ticks at the values themselves, those left out whose labels would touch."""
    known = sorted(set(values))
    if not known or known[0] <= 0:
        raise ValueError(f"a logarithmic axis {label!r} needs values above 0, at least one")
    low, high = known[0] / 1.15, known[-1] * 1.15
    room = math.log(high / low) / (WIDTH - 60)
    ticks: list[Tick] = []
    for value in known:
        tick = Tick(value, f"{value:,.0f}" if value >= 1 else f"{value:g}")
        if not ticks or math.log(value / ticks[-1].value) / room > _CHARACTER * (len(tick.label) + 2):
            ticks.append(tick)
    return Axis(label, low, high, tuple(ticks), logarithmic=True)


def _number(value: float, step: float, largest: float) -> str:
    """A tick's label: as many digits as the step has, a prefix for thousands and more."""
    for size, prefix in _PREFIXES:
        if largest >= 10 * size or (largest >= size and size > 1e3):
            return f"{value / size:.{_decimals(step / size)}f}{prefix if value else ''}".replace("-", "\u2212")
    if 0 < largest < 1e-3:
        return "0" if value == 0 else scientific(value)
    return f"{value:.{_decimals(step)}f}".replace("-", "\u2212")


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def scientific(value: float) -> str:
    """A small or large number as people write it in code: 2e-5, 1.5e-4."""
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", "\u2212", 1 if value < 0 else 0)


class Panel:
    """One set of axes under construction; `svg` is the finished element."""

    def __init__(self, x: Axis, y: Axis, height: float = 200.0) -> None:
        """x and y: the axes; a y axis without ticks is for named rows."""
        self.x, self.y, self.height = x, y, height
        longest = max((len(tick.label) for tick in y.ticks), default=0)
        self.top = _TOP if y.label else _BARE_TOP
        self.left = 8 + min(longest * _CHARACTER, 0.42 * WIDTH)
        self._marks: list[str] = []
        self._frame()

    def place(self, point: Point) -> Point:
        """Units of a point in data."""
        right, floor = WIDTH - _RIGHT, self.height - _BOTTOM
        return (
            self.left + self.x.share(point[0]) * (right - self.left),
            floor - self.y.share(point[1]) * (floor - self.top),
        )

    def line(self, points: Sequence[Point], how: Look, width: float = 1.7, opacity: float = 1.0) -> None:
        """Points joined in order; a single one is a dot, none is nothing."""
        if not points:
            return
        if len(points) == 1:
            self.mark(points[0], how._replace(marker="circle"), 2.5, opacity=opacity)
            return
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(self.place, points))
        dash = f' stroke-dasharray="{how.dash}"' if how.dash else ""
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self._marks.append(
            f'<path d="M{path}" fill="none" stroke="{how.color}" stroke-width="{width:g}"{dash}{faint}/>'
        )

    def area(self, upper: Sequence[Point], lower: Sequence[Point], how: Look) -> None:
        """The light band between two lines over the same x."""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(self.place, [*upper, *reversed(lower)]))
        self._marks.append(f'<path d="M{path}Z" fill="{how.color}" opacity="0.14"/>')

    def mark(self, point: Point, how: Look, size: float = 3.6, title: str = "", opacity: float = 1.0) -> None:
        """A marker, with what it is for who points at it."""
        x, y = self.place(point)
        inner = f"<title>{escape(visible(title))}</title>" if title else ""
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        if how.marker == "ring":
            paint = f'fill="none" stroke="{how.color}" stroke-width="1.6"'
        else:
            paint = f'fill="{how.color}" stroke="none"'
        if how.marker in {"circle", "ring"}:
            self._marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" {paint}{faint}>{inner}</circle>')
        else:
            self._marks.append(f'<path d="{_shape(how.marker, x, y, size)}" {paint}{faint}>{inner}</path>')

    def span(self, start: Point, end: Point, how: Look, width: float = 1.6) -> None:
        """A straight piece, such as an interval."""
        (x0, y0), (x1, y1) = self.place(start), self.place(end)
        dash = f' stroke-dasharray="{how.dash}"' if how.dash else ""
        path = f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"
        self._marks.append(f'<path d="{path}" stroke="{how.color}" stroke-width="{width:g}" fill="none"{dash}/>')

    def bar(self, start: float, end: float, row: float, how: Look, title: str, thickness: float = 0.62) -> None:
        """A horizontal piece of a stacked bar, from x `start` to `end`, around y `row`."""
        (x0, top), (x1, bottom) = self.place((start, row - thickness / 2)), self.place((end, row + thickness / 2))
        box = f'x="{x0:.1f}" y="{min(top, bottom):.1f}" width="{x1 - x0:.1f}" height="{abs(bottom - top):.1f}"'
        self._marks.append(f'<rect {box} fill="{how.color}"><title>{escape(visible(title))}</title></rect>')

    def svg(self, description: str) -> str:
        """The element; `description` is read out in its place."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:g}" font-size="{FONT:g}" '
            f'role="img" stroke-linejoin="round" aria-label="{escape(visible(description), quote=True)}">'
        )
        return "".join([head, *self._marks, "</svg>"])

    def _frame(self) -> None:
        floor, right = self.height - _BOTTOM, WIDTH - _RIGHT
        for tick in self.x.ticks:
            x, _ = self.place((tick.value, self.y.low))
            self._rule(x, self.top, x, floor)
            # The outer labels stay inside the panel.
            half = len(tick.label) * _CHARACTER / 2
            self._text(min(max(x, half), WIDTH - half), floor + 13, tick.label, "middle")
        for tick in self.y.ticks:
            _, y = self.place((self.x.low, tick.value))
            if self.y.label:
                self._rule(self.left, y, right, y)
            self._text(self.left - 5, y + 3.4, tick.label, "end")
        if self.y.label:
            self._text(4, 12, self.y.label, "start", bold=True)
        self._text((self.left + right) / 2, self.height - 6, self.x.label, "middle")

    def _rule(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self._marks.append(f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="{GRID}" stroke-width="0.8"/>')

    def _text(self, x: float, y: float, text: str, anchor: str, bold: bool = False) -> None:
        weight = ' font-weight="600"' if bold else ""
        self._marks.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}"{weight}>{escape(visible(text))}</text>'
        )


def rows_axis(names: Sequence[str]) -> Axis:
    """A y axis of named rows, the first on top: row i is at y = -i."""
    return Axis("", -len(names) + 0.4, 0.6, tuple(Tick(-float(row), name) for row, name in enumerate(names)))


def rows_height(count: int) -> float:
    """Height of a panel with so many named rows."""
    return _BARE_TOP + _BOTTOM + 24.0 * count


def _shape(marker: str, x: float, y: float, size: float) -> str:
    """Path of a filled marker around a place."""
    s = size
    corners = {
        "square": ((-s, -s), (s, -s), (s, s), (-s, s)),
        "triangle": ((0.0, -1.2 * s), (1.1 * s, 0.8 * s), (-1.1 * s, 0.8 * s)),
        "diamond": ((0.0, -1.3 * s), (1.3 * s, 0.0), (0.0, 1.3 * s), (-1.3 * s, 0.0)),
        "cross": (
            *((-s, -0.35 * s), (-0.35 * s, -0.35 * s), (-0.35 * s, -s), (0.35 * s, -s), (0.35 * s, -0.35 * s)),
            *((s, -0.35 * s), (s, 0.35 * s), (0.35 * s, 0.35 * s), (0.35 * s, s), (-0.35 * s, s)),
            *((-0.35 * s, 0.35 * s), (-s, 0.35 * s)),
        ),
    }[marker]
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners) + "Z"
