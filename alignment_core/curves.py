"""What a validation curve comes to: its last point and its best one."""

from collections.abc import Iterable, Iterator

from alignment_core.events import Event

VALIDATION = "eval/"
DECIDES = "eval/accuracy"
"""The metric whose largest value names the best point; the earliest of equals, which cost least."""


def milestones(points: Iterable[Event]) -> list[Event]:
    """The points `final/…` and `best/…` of a record with a validation curve; none without one.

    `best/step` is the step of the best point. Each keeps the step and time of the point that it repeats.
    """
    curve = [point for point in points if DECIDES in point.metrics]
    if not curve:
        return []
    best = max(curve, key=lambda point: (point.metrics[DECIDES], -point.step))
    return [
        _renamed(curve[-1], "final", {}),
        _renamed(best, "best", {"best/step": float(best.step)}),
    ]


def _renamed(point: Event, prefix: str, more: dict[str, float]) -> Event:
    metrics = dict(_validation(point, prefix)) | more
    return Event(kind="point", step=point.step, time=point.time, metrics=metrics)


def _validation(point: Event, prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in point.metrics.items():
        if name.startswith(VALIDATION):
            yield f"{prefix}/{name.removeprefix(VALIDATION)}", value
