"""The figures of a report, as SVG text, from an analysis and from the events of training runs."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from alignment_core.analysis import Analysis, EvaluationRow, group_name
from alignment_core.drawing import (
    COLORS,
    Figure,
    LegendEntry,
    color,
    draw,
    interval_dot,
    line_legend,
    look,
    short,
    thin,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = Mapping[str, object]
"""One point of a curve: {"step": int, "metrics": {name: number}}."""
Placed = tuple[float, EvaluationRow]
"""An evaluation and its x."""


class _Metric(NamedTuple):
    """One panel of the training curves."""

    title: str
    unit: str
    names: tuple[str, ...]
    """Event metrics in order of preference; the first one recorded is shown."""
    scale: float = 1.0
    bottom: float | None = 0.0
    """Lower end of the axis; None follows the data."""
    top: float | None = None


_METRICS = (
    _Metric("Accuracy", "%", ("eval/accuracy",), 100.0, top=102.0),
    _Metric("Format rate", "%", ("eval/format_rate", "train/format_reward"), 100.0, top=102.0),
    _Metric("Reward", "mean per response", ("train/reward",), bottom=None),
    _Metric("Loss", "as optimized", ("train/loss",), bottom=None),
    _Metric("Entropy", "nats per token", ("train/entropy", "eval/entropy")),
    _Metric("Response length", "tokens", ("train/mean_length", "eval/mean_length")),
    _Metric("Gradient norm", "L2, before clipping", ("train/grad_norm",)),
)
_METHODS = {"zero-shot": (5, "o"), "plain": (4, "D"), "sft": (0, "o"), "ei": (1, "s"), "grpo": (2, "^"), "dpo": (3, "v")}
_CATEGORIES = {
    "1,1": ("formatted, right", 0),
    "1,0": ("formatted, wrong", 1),
    "0,0": ("unformatted", 5),
    "0,1": ("right without the format", 3),
}
_INTERVALS = "Bars are 95 % Wilson intervals."


def methods_figure(analysis: Analysis) -> Figure:
    """Accuracy of every setting with its 95 % interval, one dot per seed; of Expert Iteration the last round."""
    earlier = {row.group for rounds in _chains(analysis).values() for row in _but_last(rounds)}
    groups = [group for group in analysis.groups if group.group not in earlier]
    rows = {row.name: row for row in analysis.evaluations}

    def paint(axes: "Axes") -> None:
        for place, group in enumerate(groups):
            for turn, name in enumerate(group.members):
                y = place + (turn - (len(group.members) - 1) / 2) * 0.22
                interval_dot(
                    axes, (_percent(rows[name]), y), _bounds(rows[name]), *_METHODS[group.method], upright=False
                )
        _name_rows(axes, [group.group for group in groups])
        axes.set_xlabel("Accuracy (%)")

    svg = draw("methods", "Accuracy of each method with 95 % intervals", paint, 0.7 + 0.3 * len(groups))
    used = dict.fromkeys(group.method for group in groups)
    legend = [LegendEntry(method, color(_METHODS[method][0]), filled=True) for method in used]
    seeds = " One dot per seed." if any(len(group.members) > 1 for group in groups) else ""
    rounds = " Of Expert Iteration, the last round." if earlier else ""
    return Figure("Accuracy by method", [svg], legend, _INTERVALS + seeds + rounds)


def size_figure(analysis: Analysis) -> Figure | None:
    """Accuracy against the number of SFT examples, one line per variant; None without an SFT evaluation."""
    sft = [row for row in analysis.evaluations if row.method == "sft"]
    sized = [row for row in sft if row.size is not None]
    variants: dict[str, list[Placed]] = {}
    for row in sized:
        variants.setdefault(row.variant or "all traces", []).append((row.size or 1, row))
    if not sft:
        return None
    sizes = _spread(sorted({row.size for row in sized if row.size is not None}))

    def paint(axes: "Axes") -> None:
        for index, placed in enumerate(variants.values()):
            # A shift of a few per cent keeps the intervals of two variants apart.
            _line_with_intervals(axes, [(size * 1.05**index, row) for size, row in placed], index)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("SFT examples (log scale)")
        axes.set_ylabel("Accuracy (%)")

    unsized = [row.name for row in sft if row.size is None]
    note = f" Size unknown, so not shown: {', '.join(unsized)}." if unsized else ""
    panels = [draw("sizes", "Accuracy against SFT data set size", paint, 3.0)] if sized else []
    caption = f"Lines join the means over seeds. {_INTERVALS}{note}"
    return Figure("Accuracy and SFT data set size", panels, line_legend(list(variants)), caption)


def rounds_figure(analysis: Analysis) -> Figure | None:
    """Accuracy and entropy over Expert Iteration rounds, round 0 being the start; None without rounds."""
    chains = _chains(analysis)
    if not chains:
        return None

    def paint_accuracy(axes: "Axes") -> None:
        for index, rounds in enumerate(chains.values()):
            _line_with_intervals(axes, [(step + 0.04 * index, row) for step, row in rounds], index)
        axes.set_ylim(0, 100)
        axes.set_ylabel("Accuracy (%)")
        _whole_rounds(axes, chains)

    def paint_entropy(axes: "Axes") -> None:
        for index, rounds in enumerate(chains.values()):
            known = [(step, row.report.mean_entropy) for step, row in rounds if row.report.mean_entropy is not None]
            axes.plot(*_means(known), **look(index))
            axes.plot(*zip(*known, strict=True), **(look(index) | {"linestyle": "none"}), marker="o")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("Entropy (nats per token)")
        _whole_rounds(axes, chains)

    panels = [draw("rounds-accuracy", "Accuracy per Expert Iteration round", paint_accuracy, 2.8)]
    caption = f"Round 0 is what the first round starts from; lines join the means over seeds. {_INTERVALS}"
    if all(any(row.report.mean_entropy is not None for _, row in rounds) for rounds in chains.values()):
        panels.append(draw("rounds-entropy", "Entropy per Expert Iteration round", paint_entropy, 2.8))
    else:
        caption += " Entropy was not recorded."
    return Figure("Expert Iteration, round by round", panels, line_legend(list(chains)), caption)


def categories_figure(analysis: Analysis) -> Figure:
    """Shares of the (format, answer) categories of every setting, over its seeds, as stacked bars."""
    rows = {row.name: row for row in analysis.evaluations}
    shares = [_category_shares([rows[name] for name in group.members]) for group in analysis.groups]
    used = [kind for kind in _CATEGORIES if any(share[kind] for share in shares)]

    def paint(axes: "Axes") -> None:
        left = [0.0] * len(shares)
        for kind in used:
            widths = [share[kind] for share in shares]
            axes.barh(range(len(shares)), widths, left=left, height=0.7, color=COLORS[_CATEGORIES[kind][1]])
            left = [start + width for start, width in zip(left, widths, strict=True)]
        _name_rows(axes, [group.group for group in analysis.groups])
        axes.set_xlabel("Share of responses (%)")

    svg = draw("categories", "Response categories of each evaluation", paint, 0.7 + 0.26 * len(shares))
    legend = [LegendEntry(_CATEGORIES[kind][0], color(_CATEGORIES[kind][1]), filled=True) for kind in used]
    return Figure("Response categories", [svg], legend, "Shares of all responses; seeds of one setting are pooled.")


def curve_figures(curves: Mapping[str, Sequence[Point]]) -> list[Figure]:
    """Training curves, one figure per kind of run (the first part of its name), one panel per metric."""
    families: dict[str, dict[str, Sequence[Point]]] = {}
    for run, points in curves.items():
        families.setdefault(run.split("/")[0], {})[run] = points
    return [_family_figure(family, runs) for family, runs in families.items()]


def _family_figure(family: str, runs: Mapping[str, Sequence[Point]]) -> Figure:
    """The overlaid curves of one kind of run, and what they lack."""
    groups = list(dict.fromkeys(group_name(run, None) for run in runs))
    panels, notes, unrecorded = [], [], []
    for metric in _METRICS:
        found = {name: {run: _series(points, name) for run, points in runs.items()} for name in metric.names}
        name = next((name for name in metric.names if any(found[name].values())), None)
        if name is None:
            unrecorded.append(metric.title.lower())
            continue
        series = {run: values for run, values in found[name].items() if values}
        lacking = [run for run in runs if run not in series]
        notes += [f"No {metric.title.lower()} from {', '.join(lacking)}."] if lacking else []
        panels.append(_curve_panel(family, metric, name, series, groups))
    notes += [f"Not recorded: {', '.join(unrecorded)}."] if unrecorded else []
    notes += ["Seeds of one setting share a colour."] if len(runs) > len(groups) else []
    notes += ["Long series are averaged over neighbouring steps."] if any(len(p) > 300 for p in runs.values()) else []
    return Figure(f"Training curves: {family}", panels, line_legend(groups), " ".join(notes))


def _curve_panel(
    family: str, metric: _Metric, name: str, series: Mapping[str, list[tuple[float, float]]], groups: Sequence[str]
) -> str:
    """One metric of several runs over optimizer steps."""

    def paint(axes: "Axes") -> None:
        for run, points in series.items():
            steps = thin([step for step, _ in points])
            values = [value * metric.scale for value in thin([value for _, value in points])]
            marker: dict[str, Any] = {"marker": "o", "markersize": 3.0} if len(steps) <= 12 else {}
            axes.plot(steps, values, **look(groups.index(group_name(run, None))), **marker)
        where = "dev problems" if name.startswith("eval/") else "training"
        axes.set_title(f"{metric.title}, {where}")
        axes.set_xlabel("Optimizer step")
        axes.set_ylabel(metric.unit)
        axes.set_ylim(metric.bottom, metric.top)

    return draw(f"curve-{family}-{name}", f"{metric.title} over training steps: {family}", paint, 2.7)


def _series(points: Sequence[Point], name: str) -> list[tuple[float, float]]:
    """(step, value) of a metric where it is a finite number."""
    found = []
    for point in points:
        metrics, step = point.get("metrics"), point.get("step")
        value = metrics.get(name) if isinstance(metrics, Mapping) else None
        if isinstance(step, int) and isinstance(value, (int, float)) and math.isfinite(value):
            found.append((float(step), float(value)))
    return found


def _chains(analysis: Analysis) -> dict[str, list[Placed]]:
    """Rounds of every Expert Iteration setting in order, led by what its first round started from."""
    rows = {row.name: row for row in analysis.evaluations}
    chains: dict[str, list[Placed]] = {}
    for row in analysis.evaluations:
        if row.method == "ei" and row.step is not None:
            # `ei/base/round2` and `ei/base/round3` are one chain: drop the last number and its word.
            chain = re.sub(r"[/_-]?[A-Za-z]*[_-]?\d+$", "", row.group) or row.group
            chains.setdefault(chain, []).append((float(row.step), row))
    for rounds in chains.values():
        rounds.sort(key=lambda placed: placed[0])
        first = min(step for step, _ in rounds)
        starts = dict.fromkeys(row.start for step, row in rounds if step == first and row.start is not None)
        if first > 0:
            rounds[:0] = [(0.0, rows[start]) for start in starts]
    return chains


def _but_last(rounds: Sequence[Placed]) -> list[EvaluationRow]:
    """The Expert Iteration evaluations of a chain before its last round."""
    last = max(step for step, _ in rounds)
    return [row for step, row in rounds if row.method == "ei" and 0 < step < last]


def _percent(row: EvaluationRow) -> float:
    """Accuracy in per cent."""
    return 100 * row.report.accuracy


def _bounds(row: EvaluationRow) -> tuple[float, float]:
    """The 95 % interval of the accuracy in per cent."""
    return 100 * row.report.accuracy_low, 100 * row.report.accuracy_high


def _line_with_intervals(axes: "Axes", placed: Sequence[Placed], index: int) -> None:
    """The line of means and, at each x, every seed's accuracy with its interval."""
    axes.plot(*_means([(x, _percent(row)) for x, row in placed]), **look(index))
    for x, row in placed:
        interval_dot(axes, (x, _percent(row)), _bounds(row), index, "os^D"[index % 4], upright=True)


def _means(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Distinct x in order, and the mean y of each."""
    grouped: dict[float, list[float]] = {}
    for x, y in sorted(points):
        grouped.setdefault(x, []).append(y)
    return list(grouped), [sum(values) / len(values) for values in grouped.values()]


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """A horizontal chart of shares from 0 to 100 %, one named row each, first on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)


def _whole_rounds(axes: "Axes", chains: Mapping[str, Sequence[Placed]]) -> None:
    """Ticks at the rounds there are."""
    axes.set_xticks(sorted({step for rounds in chains.values() for step, _ in rounds}))
    axes.set_xlabel("Expert Iteration round")


def _category_shares(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """Per cent of each category over several evaluations together."""
    total = sum(row.report.n for row in rows)
    return {kind: 100 * sum(row.report.categories.get(kind, 0) for row in rows) / total for kind in _CATEGORIES}


def _spread(sizes: Sequence[int]) -> list[int]:
    """The sizes that are far enough apart for their labels not to touch."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size >= 1.4 * kept[-1]:
            kept.append(size)
    return kept
