"""How often graders are wrong on labelled answer pairs, by kind of answer.

The pairs (tests/data/answer_pairs.jsonl: `kind`, `answer`, `gold`, `equal`) are of our own making and labelled by
mathematics, not by what any grader says. Conventions of the labels:

- Values count, not spellings: unreduced fractions and unfinished arithmetic are equal to their value, 0.333 is not 1/3.
- A unit, a money or percent sign, a degree sign, half of the day or a label (`x =`) may be left out on one side; what
  both sides name must agree, with units converted. 20% is 20 (sign left out) as well as 0.2 (its value).
- Lists and sets have no order, tuples, intervals, ratios and matrices have one; a bare list is a set, but no tuple.
- Equations are equal when their solutions are; an equation is no number, unless its left side is a mere name or
  the computation of its right side. Inequalities are the sets they describe.
- An answer that lists more than the gold, or hedges, is wrong. A mixed number is a sum. Unmarked angles are radians.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from alignment_core.grading import compare
from alignment_core.thorough import compare_thoroughly, math_verify
from alignment_core.verdicts import Question

PAIRS = Path(__file__).resolve().parents[1] / "tests" / "data" / "answer_pairs.jsonl"

Grader = Callable[[str, str], bool]
"""(answer, gold) -> equal."""


class Pair(NamedTuple):
    """A labelled pair of answers."""

    kind: str
    answer: str
    gold: str
    equal: bool


class Errors(NamedTuple):
    """Wrong verdicts among so many unequal and equal pairs."""

    false_positives: int
    unequal: int
    false_negatives: int
    equal: int


def read_pairs(path: Path = PAIRS) -> list[Pair]:
    """The labelled pairs of a file."""
    with path.open(encoding="utf-8") as file:
        return [Pair(**json.loads(line)) for line in file]


def graders() -> dict[str, Grader]:
    """The graders to compare, by name. They run in this process: the pairs are ours, and harmless."""
    return {
        "fast": lambda answer, gold: compare(answer, gold).correct,
        "thorough": lambda answer, gold: compare_thoroughly(Question(answer, (gold,))).correct,
        "math-verify": math_verify(),
    }


def count_errors(pairs: Sequence[Pair], grader: Grader) -> dict[str, Errors]:
    """A grader's wrong verdicts by kind, kinds in the order of the file; `all` comes last."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for pair in pairs:
        said = grader(pair.answer, pair.gold)
        for kind in (pair.kind, "all"):
            counts[kind][2 if pair.equal else 0] += said != pair.equal
            counts[kind][3 if pair.equal else 1] += 1
    counts["all"] = counts.pop("all")
    return {kind: Errors(*numbers) for kind, numbers in counts.items()}


def table(pairs: Sequence[Pair]) -> str:
    """False positives and false negatives of every grader side by side, as text: wrong/pairs, and rates at the end."""
    measured = {name: count_errors(pairs, grader) for name, grader in graders().items()}
    lines = [f"{'':14}" + "".join(f"{name + ' FP':>16}{'FN':>9}" for name in measured)]
    for kind in measured["fast"]:
        cells = [errors[kind] for errors in measured.values()]
        row = "".join(f"{e.false_positives:>11}/{e.unequal:<4}{e.false_negatives:>5}/{e.equal:<3}" for e in cells)
        lines.append(f"{kind:14}" + row)
    rates = [errors["all"] for errors in measured.values()]
    lines.append(
        f"{'rate':14}"
        + "".join(f"{e.false_positives / e.unequal:>15.1%} {e.false_negatives / e.equal:>8.1%}" for e in rates)
    )
    return "\n".join(lines)
