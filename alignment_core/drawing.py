"""How the figures of a page look: colours, dashes, markers, legends, and a figure as an SVG file of its own.

Colours are CSS variables with fallbacks, so that one figure serves a light and a dark page; series also differ by
marker and dash, for eyes that see no difference in hue. A panel has no legend: the page writes it once, as HTML.
Nothing carries a style attribute, so that a page can forbid them.
"""

import math
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from alignment_core.report_text import visible

COLORS = ("#0072b2", "#d55e00", "#00875f", "#b0558a", "#9c6a00", "#5b6270")
"""Colours of the series, distinguishable with the common colour-vision deficiencies and in grey."""
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "ring")
INK = "currentColor"
GRID = "var(--grid, #d9dce1)"
WIDTH = 360
"""Units of every panel's width: about the pixels of a phone, so that text stays readable there."""


class Look(NamedTuple):
    """How one series looks."""

    color: str
    """A CSS colour."""
    dash: str
    """`stroke-dasharray`; empty is solid."""
    marker: str


class LegendEntry(NamedTuple):
    """How one series is told in words."""

    label: str
    color: str
    dash: str = ""
    filled: bool = False
    """A patch rather than a line."""


class Figure(NamedTuple):
    """What the page shows as one figure."""

    title: str
    panels: list[str]
    """SVG elements."""
    legend: list[LegendEntry]
    caption: str
    subject: str = ""
    """The experiment it is about; a page that says so above the figure need not repeat it."""

    @property
    def full_title(self) -> str:
        """The title for a figure that stands alone."""
        return f"{self.subject}: {self.title}" if self.subject else self.title


def color(index: int) -> str:
    """The CSS colour of a series: a page variable, with a fallback for an SVG that stands alone."""
    place = index % len(COLORS)
    return f"var(--series-{place}, {COLORS[place]})"


def look(index: int) -> Look:
    """The index-th series: colour and marker change with every one, the dash after each round of colours."""
    return Look(color(index), DASHES[index // len(COLORS) % len(DASHES)], MARKERS[index % len(MARKERS)])


def line_legend(labels: Sequence[str]) -> list[LegendEntry]:
    """Legend of series drawn with `look(0)`, `look(1)` …"""
    return [LegendEntry(label, look(index).color, look(index).dash) for index, label in enumerate(labels)]


def patch_legend(labels: Sequence[str], colors: Sequence[int]) -> list[LegendEntry]:
    """Legend of filled areas in the colours of those indices."""
    return [LegendEntry(label, color(index), filled=True) for label, index in zip(labels, colors, strict=True)]


def standalone(figure: Figure) -> str:
    """A figure as an SVG file of its own: title and legend on top, its panels below one another, on white."""
    line = 14
    lines, y = [f'<text x="4" y="{line}" font-weight="bold">{escape(visible(figure.full_title))}</text>'], 1.5 * line
    for entry in figure.legend:
        y += line
        stroke = f'stroke="{entry.color}" stroke-width="{6 if entry.filled else 2}"'
        lines.append(f'<path d="M4 {y - 3}H28" {stroke} stroke-dasharray="{entry.dash or "none"}"/>')
        lines.append(f'<text x="34" y="{y}">{escape(visible(short(entry.label, 56)))}</text>')
    y += line / 2
    for panel in figure.panels:
        height = float(re.findall(r'viewBox="[\d.]+ [\d.]+ [\d.]+ ([\d.]+)"', panel)[0])
        lines.append(panel.replace("<svg ", f'<svg x="0" y="{y}" width="{WIDTH}" height="{height}" ', 1))
        y += height + line / 2
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="10">'
    drawn = "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>', *lines, "</svg>\n"])
    return re.sub(r"var\(--[\w-]+, (#\w+)\)", r"\1", drawn)  # not every viewer knows CSS variables


def short(label: str, most: int = 26) -> str:
    """A label cut in its middle, so that both ends of a run's name stay."""
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-(most // 2 - 1) :]}"


def thin(values: Sequence[float], most: int) -> list[float]:
    """At most `most` values: means over runs of neighbours."""
    width = max(1, math.ceil(len(values) / most))
    parts = (values[start : start + width] for start in range(0, len(values), width))
    return [sum(part) / len(part) for part in parts]
