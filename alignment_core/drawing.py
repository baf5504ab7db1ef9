"""How a figure is drawn: one style, SVG text out, the same bytes for the same inputs (fixed ids, no date).

Colours are CSS variables with fallbacks, so that one figure serves a light and a dark page; series also differ by
marker or dash, for eyes that see no difference in hue. A panel has no legend: the page writes it once, as HTML.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0072b2", "#d55e00", "#00875f", "#b0558a", "#9c6a00", "#5b6270")
"""Colours of the series, distinguishable with the common colour-vision deficiencies and in grey."""
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
# Stand-ins that matplotlib accepts and `_themed` turns into what follows the page's theme.
_INK, _GRID = "#010203", "#040506"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.0,
}
_WIDTH = 4.8
"""Inches: about the width of a phone, so that text stays readable there."""


class LegendEntry(NamedTuple):
    """How one series looks."""

    label: str
    color: str
    """A CSS colour."""
    dash: str = ""
    """`stroke-dasharray`; empty is solid."""
    filled: bool = False
    """A patch rather than a line."""


class Figure(NamedTuple):
    """What the page shows as one figure."""

    title: str
    panels: list[str]
    """SVG elements."""
    legend: list[LegendEntry]
    caption: str


def draw(name: str, description: str, paint: Callable[["Axes"], None], height: float) -> str:
    """One panel as an `<svg>` element; `name` must be unique on a page, as it salts the ids.

    `height` in inches. Uses no global figure or backend, and leaves matplotlib's settings as they were.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    text = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name})
        figure = Canvas(figsize=(_WIDTH, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _themed(text.getvalue(), description)


def _themed(svg: str, description: str) -> str:
    """The bare element: no prolog, metadata or fixed size; colours and fonts of the page it is put in."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Group ids such as axes_1 repeat in every panel; only the salted ones are referred to.
    svg = re.sub(r' id="[^"]*_\d+"', "", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description, quote=True)}" ', 1)
    svg = (
        svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid, #d9dce1)").replace("'DejaVu Sans'", "sans-serif")
    )
    for place, code in enumerate(COLORS):
        svg = svg.replace(code, color(place))
    return svg.strip()


def standalone(figure: Figure) -> str:
    """A figure as an SVG file of its own: title and legend on top, its panels below one another, on white."""
    width, line = 345.6, 14
    lines, y = [f'<text x="4" y="{line}" font-weight="bold">{escape(figure.title)}</text>'], 1.5 * line
    for entry in figure.legend:
        y += line
        stroke = f'stroke="{entry.color.split(", ")[-1].rstrip(")")}" stroke-width="{6 if entry.filled else 2}"'
        lines.append(f'<path d="M4 {y - 3}H28" {stroke} stroke-dasharray="{entry.dash or "none"}"/>')
        lines.append(f'<text x="34" y="{y}">{escape(short(entry.label, 56))}</text>')
    y += line / 2
    for panel in figure.panels:
        height = float(re.findall(r'viewBox="[\d.]+ [\d.]+ [\d.]+ ([\d.]+)"', panel)[0])
        lines.append(panel.replace("<svg ", f'<svg x="0" y="{y}" width="{width}" height="{height}" ', 1))
        y += height + line / 2
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" font-family="sans-serif" font-size="10">'
    return "\n".join([head, f'<rect width="{width}" height="{y}" fill="#ffffff"/>', *lines, "</svg>\n"])


def color(index: int) -> str:
    """The CSS colour of a series: a page variable, with a fallback for an SVG that stands alone."""
    place = index % len(COLORS)
    return f"var(--series-{place}, {COLORS[place]})"


def look(index: int) -> dict[str, Any]:
    """Line arguments of the index-th series: colours first, then dashes."""
    dash = _DASHES[index // len(COLORS) % len(_DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": (0, dash) if dash else "-"}


def line_legend(labels: Sequence[str]) -> list[LegendEntry]:
    """Legend of series drawn with `look(0)`, `look(1)` …"""
    return [
        LegendEntry(label, color(index), " ".join(str(part) for part in _DASHES[index // len(COLORS) % len(_DASHES)]))
        for index, label in enumerate(labels)
    ]


def interval_dot(
    axes: "Axes", place: tuple[float, float], interval: tuple[float, float], index: int, marker: str, upright: bool
) -> None:
    """A marker at (x, y) with its interval, along y if `upright`, else along x."""
    x, y = place
    low, high = interval
    code = COLORS[index % len(COLORS)]
    ends: dict[str, Any] = {"ymin": low, "ymax": high} if upright else {"xmin": low, "xmax": high}
    (axes.vlines if upright else axes.hlines)(x if upright else y, **ends, colors=code, linewidth=1.4)
    axes.plot([x], [y], marker=marker, color=code, linestyle="none", clip_on=False, zorder=3)


def short(label: str, most: int = 26) -> str:
    """A label cut in its middle, so that both ends of a run's name stay."""
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-(most // 2 - 1) :]}"


def thin(values: Sequence[float], most: int = 300) -> list[float]:
    """At most `most` values: means over runs of neighbours."""
    width = max(1, math.ceil(len(values) / most))
    parts = (values[start : start + width] for start in range(0, len(values), width))
    return [sum(part) / len(part) for part in parts]
