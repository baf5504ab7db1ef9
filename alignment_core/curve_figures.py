"""Training curves of an experiment: a panel per metric, a colour per member, thin lines for seeds under their mean.

More members than eyes can tell apart are split into several figures by one of the settings they vary; these share their
axes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from alignment_core.chart import Axis, Panel, linear_axis
from alignment_core.drawing import Figure, line_legend, look, thin
from alignment_core.report_answers import ExperimentAnswer, MemberAnswer
from alignment_core.run_curves import Curve, CurvePoint, Progress, curve_of, mean_curve

MOST_MEMBERS = 8
"""Series of one panel."""
_MEAN_POINTS, _SEED_POINTS = 200, 80
"""Points of a line; a longer series is averaged over neighbours."""
_MARKED = 12
"""Points that are few enough to be marked one by one."""
_AXES: dict[Progress, str] = {
    "step": "Training steps",
    "seconds": "Training time (s), without validation and interruptions",
    "tokens": "Response tokens trained on",
}
_MINUTES = 600.0
"""Runs longer than this are drawn in minutes, of four hours and more in hours."""


class Metric(NamedTuple):
    """One panel: what is drawn, and how it is called."""

    title: str
    unit: str
    names: tuple[str, ...]
    """Event metrics in order of preference; the first one recorded is shown."""
    against: tuple[Progress, ...] = ("step",)
    scale: float = 1.0
    bottom: float | None = 0.0
    """Lower end of the axis; None follows the data."""
    only: str = ""
    """The one method that records it; the others need not say that they do not."""


_CUT_OFF = ("train/truncation_rate", "eval/truncation_rate")
ACCURACY = (
    Metric("Accuracy, dev problems", "%", ("eval/accuracy",), ("step", "seconds", "tokens"), 100.0),
    Metric("Format rate, dev problems", "%", ("eval/format_rate",), scale=100.0),
)
REWARD = (
    Metric("Reward, training", "mean per response", ("train/reward",), bottom=None, only="grpo"),
    Metric("Format reward, training", "% of responses", ("train/format_reward",), scale=100.0, only="grpo"),
    Metric("Answer reward, training", "% of responses", ("train/answer_reward",), scale=100.0, only="grpo"),
)
PREFERENCES = (
    Metric("Pairs ordered right", "% of pairs", ("train/implicit_accuracy",), scale=100.0, only="dpo"),
    Metric("Margin of the implicit reward", "nats", ("train/reward_margin",), bottom=None, only="dpo"),
)
BEHAVIOUR = (
    Metric("Entropy, training", "nats per token", ("train/entropy",), only="grpo"),
    Metric("Entropy, dev problems", "nats per token", ("eval/entropy",)),
    Metric("Length, training", "tokens", ("train/mean_length",), only="grpo"),
    Metric("Length of right responses", "tokens", ("train/mean_length_correct",), only="grpo"),
    Metric("Length of wrong responses", "tokens", ("train/mean_length_incorrect",), only="grpo"),
    Metric("Length, dev problems", "tokens", ("eval/mean_length",)),
    Metric("Cut off at the token limit", "% of responses", _CUT_OFF, scale=100.0),
)
OPTIMIZATION = (
    Metric("Loss, training", "as optimized", ("train/loss",), bottom=None),
    Metric("Gradient norm", "L2, before clipping", ("train/grad_norm",)),
    Metric("Clipped at the lower bound", "% of tokens", ("train/clip_fraction_low",), scale=100.0, only="grpo"),
    Metric("Clipped at the upper bound", "% of tokens", ("train/clip_fraction_high",), scale=100.0, only="grpo"),
    Metric("KL to the sampling policy", "nats per token", ("train/approx_kl",), bottom=None, only="grpo"),
)
KINDS = {
    "Accuracy": ACCURACY,
    "Reward": REWARD,
    "Preferences": PREFERENCES,
    "Entropy and length": BEHAVIOUR,
    "Optimization": OPTIMIZATION,
}


class Lines(NamedTuple):
    """One member in one panel."""

    member: str
    seeds: list[Curve]


@dataclass
class ExperimentCurves:
    """The figures of one experiment."""

    first: list[Figure] = field(default_factory=list)
    """Accuracy: shown at once."""
    more: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is missing, constant or no number."""

    @property
    def figures(self) -> list[Figure]:
        """All of them."""
        return [*self.first, *self.more]


def experiment_curves(answer: ExperimentAnswer, runs: Mapping[str, Sequence[CurvePoint]]) -> ExperimentCurves:
    """Every curve of an experiment's runs; nothing without any."""
    own = {
        member.group: {row.name: runs[row.name] for row in member.rows if runs.get(row.name)}
        for member in answer.members
    }
    known = [member for member in answer.members if own[member.group]]
    found = ExperimentCurves()
    if not known:
        return found
    absent: list[str] = []
    parts = split_members(answer, known)
    for kind, metrics in KINDS.items():
        asked = [metric for metric in metrics if metric.only in ("", answer.outline.method)]
        panels = [panel for metric in asked for panel in _panels_of(metric, own, found.notes, absent)]
        for name, members in parts:
            figure = _figure(answer.outline.name, f"{kind}, {name}" if name else kind, panels, members)
            if figure.panels:
                (found.first if kind == "Accuracy" else found.more).append(figure)
    if absent:
        found.notes.append(f"Not recorded by these runs: {'; '.join(absent)}.")
    found.notes = list(dict.fromkeys(found.notes))  # a gap is the same against steps, seconds and tokens
    return found


def split_members(answer: ExperimentAnswer, members: Sequence[MemberAnswer]) -> list[tuple[str, list[MemberAnswer]]]:
    """Parts of at most `MOST_MEMBERS`, each with what its members share; one unnamed part if they are few."""
    if len(members) <= MOST_MEMBERS:
        return [("", list(members))]
    splits = []
    for name, words in answer.columns.items():
        parts: dict[str, list[MemberAnswer]] = {}
        for member in members:
            parts.setdefault(f"{words} {member.varied.get(name, '')}".strip(), []).append(member)
        if max(map(len, parts.values())) <= MOST_MEMBERS and 2 * len(parts) <= len(members):
            splits.append(list(parts.items()))
    if splits:
        return min(splits, key=len)
    chunks = [list(members[start : start + MOST_MEMBERS]) for start in range(0, len(members), MOST_MEMBERS)]
    return [(f"{chunk[0].label} to {chunk[-1].label}", chunk) for chunk in chunks]


class _Drawable(NamedTuple):
    """One metric against one progress, for all members: what its panels share."""

    metric: Metric
    against: Progress
    lines: dict[str, Lines]
    x: Axis
    y: Axis


def _panels_of(
    metric: Metric,
    own: Mapping[str, Mapping[str, Sequence[CurvePoint]]],
    notes: list[str],
    absent: list[str],
) -> Iterator[_Drawable]:
    """What can be drawn of a metric; what cannot is told in `notes` and `absent`."""
    name = next((name for name in metric.names if any(_recorded(runs, name) for runs in own.values())), None)
    if name is None:
        absent.append(metric.title[0].lower() + metric.title[1:])
        return
    for against in metric.against:
        lines: dict[str, Lines] = {}
        for group, runs in own.items():
            by_run = {run: curve_of(points, name, against) for run, points in runs.items()}
            notes += _gap_notes(metric, by_run)
            seeds = [_scaled(curve, metric.scale) for curve in by_run.values() if curve.points]
            if seeds:
                lines[group] = Lines(group, seeds)
        values = [value for one in lines.values() for seed in one.seeds for _, _, value in seed.points]
        if not values:
            notes.append(f"{metric.title}: no point with a known {_AXES[against].split(' (')[0].lower()}.")
        elif not any(values) and metric not in ACCURACY:
            notes.append(f"{metric.title}: 0 throughout.")
        else:
            lines, x = _with_axis(lines, against)
            y = linear_axis(f"{metric.title} ({metric.unit})", values, metric.bottom)
            yield _Drawable(metric, against, lines, x, y)


def _recorded(runs: Mapping[str, Sequence[CurvePoint]], name: str) -> bool:
    return any(name in point.metrics for points in runs.values() for point in points)


def _gap_notes(metric: Metric, by_run: Mapping[str, Curve]) -> Iterator[str]:
    """Where a run's metric is no number, in words."""
    for run, curve in by_run.items():
        if curve.gaps:
            points = len(curve.gaps) + len(curve.points)
            yield (
                f"{metric.title}: no finite number at {len(curve.gaps)} of {points} points of {run}, first at step "
                f"{curve.gaps[0]:g}; these are not drawn."
            )


def _scaled(curve: Curve, scale: float) -> Curve:
    return Curve([(step, x, value * scale) for step, x, value in curve.points], curve.gaps)


def _with_axis(lines: dict[str, Lines], against: Progress) -> tuple[dict[str, Lines], Axis]:
    """The lines in the unit that suits their range, and the axis."""
    label, unit = _AXES[against], 1.0
    longest = max(x for one in lines.values() for seed in one.seeds for _, x, _ in seed.points)
    if against == "seconds" and longest > _MINUTES:
        unit, word = (3600.0, "h") if longest > 24 * _MINUTES else (60.0, "min")
        label = label.replace("(s)", f"({word})")
        lines = {
            group: Lines(group, [Curve([(s, x / unit, v) for s, x, v in seed.points], seed.gaps) for seed in one.seeds])
            for group, one in lines.items()
        }
    values = [x for one in lines.values() for seed in one.seeds for _, x, _ in seed.points]
    return lines, linear_axis(label, values, 0.0, whole=against == "step", tight=True)


def _figure(subject: str, title: str, panels: Sequence[_Drawable], members: Sequence[MemberAnswer]) -> Figure:
    """The panels of one kind for some members, in their colours."""
    groups = [member.group for member in members]
    drawn = [_draw(panel, groups, subject) for panel in panels if any(group in panel.lines for group in groups)]
    several = any(len(one.seeds) > 1 for panel in panels for one in panel.lines.values())
    caption = "Thin lines are seeds, the thick line is their mean at steps that all of them have." if several else ""
    return Figure(title, drawn, line_legend([one.label for one in members]), caption, subject)


def _draw(panel: _Drawable, groups: Sequence[str], subject: str) -> str:
    picture = Panel(panel.x, panel.y)
    for index, group in enumerate(groups):
        seeds = panel.lines[group].seeds if group in panel.lines else []
        mean = mean_curve(seeds)
        for seed in seeds if len(seeds) > 1 else []:
            picture.line(_thinned([(x, value) for _, x, value in seed.points], _SEED_POINTS), look(index), 1.0, 0.4)
        picture.line(_thinned(mean, _MEAN_POINTS), look(index), 2.0 if len(seeds) > 1 else 1.7)
        for point in mean if len(mean) <= _MARKED else []:
            picture.mark(point, look(index), 2.6)
    return picture.svg(f"{panel.metric.title} against {_AXES[panel.against].lower()}: {subject}")


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Points of a long series, averaged over neighbours."""
    xs, values = thin([x for x, _ in points], most), thin([value for _, value in points], most)
    return list(zip(xs, values, strict=True))
