"""What a grader is asked and what it says: the small values that travel between grading's rooms and processes.

Nothing here imports anything heavy, so that a grading child starts in a moment.
"""

from collections.abc import Sequence
from decimal import Decimal
from itertools import islice
from numbers import Real
from typing import Any, Literal, NamedTuple

GradeStatus = Literal["ok", "timeout", "error"]
"""Whether the grader reached a verdict by itself; anything but `ok` scores 0 and is counted."""

GradingMode = Literal["fast", "thorough"]
"""`fast`: the published verdict. `thorough`: also our own checks of tuples, sets, units … and math-verify."""

GroundTruth = str | int | float | Sequence[str | int | float]
"""A gold answer, or several of which any one counts: a text, any real number, or a sequence or array of them."""
MAX_GOLDS = 1_000
"""Gold answers of one response that are looked at; further ones are not."""


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


def plain_truth(truth: Any) -> str | int | float | list[str | int | float]:
    """A ground truth in Python's own types: numbers of other kinds as texts, sequences and arrays as lists.

    At most MAX_GOLDS gold answers are kept. Raises TypeError for what is no text, number or flat sequence of them,
    ValueError for an empty one.
    """
    if isinstance(truth, str | int | float):
        return truth
    listed = isinstance(truth, Sequence) or hasattr(truth, "__array__")  # numpy's and torch's arrays are no Sequence
    if not listed or isinstance(truth, bytes | bytearray | Real) or getattr(truth, "ndim", 1) == 0:
        return _plain_gold(truth)
    golds = [_plain_gold(gold) for gold in islice(truth, MAX_GOLDS)]
    if not golds:
        raise ValueError("is empty: give at least one gold answer")
    return golds


def _plain_gold(gold: Any) -> str | int | float:
    if hasattr(gold, "__array__") and not isinstance(gold, str | Real) and getattr(gold, "ndim", None) == 0:
        gold = gold.item()
    if isinstance(gold, str | int | float):
        return gold
    if isinstance(gold, Real | Decimal):
        return str(gold)
    raise TypeError(f"holds {type(gold).__name__}: give a text, a number, or a flat list of them")
