"""A run's record as curves: every point with the optimizer steps, training seconds and tokens that led to it.

Seconds are summed over what the steps themselves took, so neither validation nor the hours between a kill and its
resume count as training. The rounds of Expert Iteration follow one another as one curve.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

from alignment_core.analysis import ROUND

Progress = Literal["step", "seconds", "tokens"]
"""What a curve is drawn against."""


class CurvePoint(NamedTuple):
    """One point of a run's record."""

    step: float
    """Optimizer steps so far, those of earlier rounds included."""
    seconds: float | None
    """Training seconds so far; None where a step did not tell its own."""
    tokens: float | None
    """Response tokens trained on so far; None likewise."""
    metrics: Mapping[str, Any]


class Curve(NamedTuple):
    """One metric of one run."""

    points: list[tuple[float, float, float]]
    """(step, x, value), x in the progress asked for."""
    gaps: list[float]
    """Steps at which the metric is no finite number."""


def chained(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[CurvePoint]]:
    """Points by run, an Expert Iteration run's rounds in order under its member's name."""
    runs: dict[str, list[CurvePoint]] = {}
    for name in sorted(curves, key=_place):
        points = runs.setdefault(ROUND.sub("", name), [])
        points += _followed(points[-1] if points else CurvePoint(0.0, 0.0, 0.0, {}), curves[name])
    return {ROUND.sub("", name): runs[ROUND.sub("", name)] for name in curves}


def _place(name: str) -> tuple[str, int]:
    """Run, then round: round 10 comes after round 9."""
    found = ROUND.search(name)
    return ROUND.sub("", name), int(found[0].rpartition("-")[2]) if found else 0


def _followed(last: CurvePoint, points: Sequence[Mapping[str, Any]]) -> list[CurvePoint]:
    """The points of one stage, counted on from `last`."""
    found: list[CurvePoint] = []
    seconds, tokens = last.seconds, last.tokens
    for point in points:
        step, metrics = point.get("step"), point.get("metrics")
        if not isinstance(step, int) or not isinstance(metrics, Mapping):
            continue
        if step == 0 and last.step > 0:
            continue  # a later round's start is the end of the one before, asked once more
        if step > 0:
            seconds = _added(seconds, metrics.get("time/step", metrics.get("time/update")))
            tokens = _added(tokens, metrics.get("train/tokens"))
        found.append(CurvePoint(last.step + step, seconds, tokens, metrics))
    return found


def _added(total: float | None, part: object) -> float | None:
    return total + part if total is not None and is_number(part) else None


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value can be drawn: a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def curve_of(points: Sequence[CurvePoint], metric: str, against: Progress = "step") -> Curve:
    """One metric where it is a finite number, and the steps at which it is recorded and is none."""
    drawn: list[tuple[float, float, float]] = []
    gaps: list[float] = []
    for point in points:
        if metric not in point.metrics:
            continue
        x = getattr(point, against)
        if not is_number(point.metrics[metric]):
            gaps.append(point.step)
        elif x is not None:
            drawn.append((point.step, float(x), float(point.metrics[metric])))
    return Curve(drawn, gaps)


def mean_curve(seeds: Sequence[Curve]) -> list[tuple[float, float]]:
    """Mean (x, value) at every step that all seeds have."""
    by_step = [{step: (x, value) for step, x, value in seed.points} for seed in seeds]
    common = [step for step in (by_step[0] if by_step else {}) if all(step in other for other in by_step)]
    found = []
    for step in sorted(common):
        xs, values = zip(*(seed[step] for seed in by_step), strict=True)
        found.append((sum(xs) / len(xs), sum(values) / len(values)))
    return found
