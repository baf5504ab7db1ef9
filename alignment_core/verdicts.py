"""What a grader is asked and what it says: the small values that travel between grading's rooms and processes.

Nothing here imports anything heavy, so that a grading child starts in a moment.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

GradeStatus = Literal["ok", "timeout", "error"]
"""Whether the grader reached a verdict by itself; anything but `ok` scores 0 and is counted."""

GradingMode = Literal["fast", "thorough"]
"""`fast`: the published verdict. `thorough`: also our own checks of tuples, sets, units … and math-verify."""

GroundTruth = str | int | float | Sequence[str | int | float]
"""A gold answer, or several of which any one counts."""


class Question(NamedTuple):
    """An extracted answer and the gold answers (texts, unboxed) of which any one counts."""

    answer: str
    golds: tuple[str, ...]


class Verdict(NamedTuple):
    """Whether an answer is right, which test said so, and whether the grader came to an end by itself."""

    correct: bool
    method: str = "none"
    status: GradeStatus = "ok"
    fast: bool | None = None
    """What the fast tests said; None where only they were asked."""
    milliseconds: float | None = None
    """Time to this verdict, where a grading child measured it."""
