"""Countdown: every problem is solvable, and answers are checked without running them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core import countdown
from alignment_core.study_config import StudyConfig

THINK = "User: {question}\nAssistant: <think>"


def test_countdown_problems_are_solved_by_their_own_gold():
    problems = countdown.generate(200, THINK, 0)
    assert problems == countdown.generate(200, THINK, 0)
    assert len({problem.question for problem in problems}) == 200
    for problem in problems:
        numbers = [int(number) for number in str(problem.meta["numbers"]).split()]
        assert countdown.is_solution(problem.ground_truth, numbers, int(problem.meta["target"]))
        assert problem.ground_truth in problem.trace


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(7 - 4) * 8", True),
        ("8*(7-4)", True),
        ("24", False),
        ("8 * 3", False),
        ("(7 - 4) * 8 * 1", False),
        ("7 - 4 * 8", False),
        ("(7 - 4) * 8 / 0", False),
        ("(7-4)**8", False),
        ("7 -4 8", False),
        ("__import__('os')", False),
        ("(" * 150, False),
        ("(" * 80 + "(7 - 4) * 8" + ")" * 80, True),
        ("1" * 10_000, False),
        ("", False),
    ],
)
def test_countdown_answers_are_checked(answer, right):
    assert countdown.is_solution(answer, [4, 7, 8], 24) is right


def test_a_countdown_study_cannot_be_graded_by_value_alone():
    settings = {"name": "x", "model": {"source": "a/b"}, "data": {"kind": "countdown"}}
    with pytest.raises(ValueError, match=r"goes with evaluation\.reward 'countdown'"):
        StudyConfig.model_validate(settings)
    StudyConfig.model_validate({**settings, "evaluation": {"reward": "countdown"}})


@given(st.text("0123456789+-*/() ", max_size=220))
def test_countdown_check_survives_any_text(answer):
    if countdown.is_solution(answer, [3, 5], 8):
        assert sorted(part.strip(" ()") for part in answer.split("+")) == ["3", "5"]
