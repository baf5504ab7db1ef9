"""Wrong verdicts on labelled answer pairs: no grader of ours gets worse, and thorough stays ahead of math-verify.

Run: pytest tests/test_answer_pairs.py
"""

from collections import Counter

import pytest

from alignment_core.thorough import judge_forms
from benchmarks.answer_pairs import Errors, Pair, count_errors, graders, read_pairs, table

FAST = {
    "integer": (0, 8), "decimal": (2, 2), "fraction": (1, 4), "mixed_number": (2, 1), "thousands": (1, 3),
    "percent": (0, 4), "money": (0, 4), "unit": (11, 17), "degree": (1, 3), "surd": (1, 9), "pi": (1, 3),
    "power": (0, 21), "scientific": (0, 3), "polynomial": (6, 12), "equation": (4, 33), "inequality": (0, 16),
    "tuple": (0, 9), "set": (1, 11), "interval": (0, 11), "matrix": (0, 10), "multiple": (1, 17), "text": (2, 12),
    "gsm8k": (0, 13), "complex": (0, 5), "trigonometry": (0, 8), "base": (0, 1), "ratio": (0, 6), "time": (2, 7),
    "calculus": (1, 6), "all": (37, 259),
}  # fmt: skip
"""Kind -> (false positives, false negatives) of the published fast verdict: it is what it is."""
THOROUGH = {
    "unit": (0, 1), "pi": (1, 0), "equation": (0, 1), "inequality": (0, 2), "tuple": (0, 2), "interval": (0, 1),
    "multiple": (0, 1), "text": (0, 8), "gsm8k": (0, 2), "all": (1, 18),
}  # fmt: skip
"""The same for the thorough verdict; kinds that are not named have none."""


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return read_pairs()


@pytest.fixture(scope="module")
def errors(pairs: list[Pair]) -> dict[str, dict[str, Errors]]:
    pytest.importorskip("math_verify", reason="thorough grading needs math-verify: install it to run this test")
    return {name: count_errors(pairs, grader) for name, grader in graders().items() if name != "math-verify"}


def test_the_set_is_large_and_balanced_and_says_nothing_twice(pairs: list[Pair]) -> None:
    assert len(pairs) >= 950
    assert len({(pair.answer, pair.gold) for pair in pairs}) == len(pairs)
    assert 0.45 < sum(pair.equal for pair in pairs) / len(pairs) < 0.55
    kinds = Counter((pair.kind, pair.equal) for pair in pairs)
    assert len({kind for kind, _ in kinds}) >= 25
    assert min(kinds.values()) >= 4


@pytest.mark.parametrize(("name", "committed"), [("fast", FAST), ("thorough", THOROUGH)])
def test_wrong_verdicts_by_kind_are_no_more_than_committed(
    name: str, committed: dict[str, tuple[int, int]], errors: dict[str, dict[str, Errors]]
) -> None:
    measured = {kind: (counts.false_positives, counts.false_negatives) for kind, counts in errors[name].items()}
    worse = {
        kind: (numbers, committed.get(kind, (0, 0)))
        for kind, numbers in measured.items()
        if any(now > then for now, then in zip(numbers, committed.get(kind, (0, 0)), strict=True))
    }
    assert worse == {}


@pytest.mark.slow
def test_thorough_accepts_less_that_is_wrong_and_more_that_is_right_than_math_verify(
    pairs: list[Pair], errors: dict[str, dict[str, Errors]]
) -> None:
    math_verify = count_errors(pairs, graders()["math-verify"])
    for kind, thorough in errors["thorough"].items():
        plain = math_verify[kind]
        if kind != "pi":  # `p i` for \pi, which the published fast verdict accepts
            assert thorough.false_positives <= plain.false_positives, kind
    assert errors["thorough"]["all"].false_positives * 10 < math_verify["all"].false_positives
    assert errors["thorough"]["all"].false_negatives * 3 < math_verify["all"].false_negatives


def test_our_own_reading_does_not_depend_on_which_side_is_the_gold(pairs: list[Pair]) -> None:
    turned = [pair for pair in pairs if judge_forms(pair.answer, pair.gold) is not judge_forms(pair.gold, pair.answer)]
    assert turned == []


def test_the_table_has_a_line_for_every_kind(pairs: list[Pair]) -> None:
    pytest.importorskip("math_verify")
    lines = table(pairs[:24]).splitlines()
    assert len(lines) == len({pair.kind for pair in pairs[:24]}) + 3
