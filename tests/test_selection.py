"""Selection of correct completions: duplicates, cap, and a draw that depends on the seed and the samples alone."""

import random

import pytest

from alignment_core.records import Completion, GradedResponse, ScoredCompletion
from alignment_core.selection import select_correct, selection_report


def scored(problem: str, index: int, ids: list[int], reward: float = 1.0) -> ScoredCompletion:
    completion = Completion(
        problem_id=problem, sample_index=index, prompt_ids=[1], response_ids=ids, text="", finish_reason="stop"
    )
    return ScoredCompletion(
        completion=completion, grade=GradedResponse(format_reward=1.0, answer_reward=reward, reward=reward)
    )


SAMPLES = [
    scored("a", 0, [5, 6]),
    scored("a", 1, [5, 6]),
    scored("a", 2, [7], reward=0.0),
    scored("b", 0, [5, 6]),
    scored("a", 3, [8]),
    scored("c", 0, [9], reward=0.5),
]


def names(selected: list[ScoredCompletion]) -> list[tuple[str, int]]:
    return [(one.completion.problem_id, one.completion.sample_index) for one in selected]


def test_keeps_reward_one_once_per_problem_in_input_order() -> None:
    assert names(select_correct(SAMPLES, max_per_problem=4, seed=0)) == [("a", 0), ("b", 0), ("a", 3)]


def test_report_by_hand() -> None:
    report = selection_report(SAMPLES, select_correct(SAMPLES, max_per_problem=1, seed=0))
    assert report == {
        "sampled": 6,
        "correct": 4,
        "duplicates": 1,
        "kept": 2,
        "problems": 3,
        "problems_covered": 2,
    }


def test_nothing_correct_gives_nothing() -> None:
    wrong = [scored("a", 0, [1], reward=0.0)]
    assert select_correct(wrong, 4, seed=0) == []
    assert selection_report(wrong, [])["problems_covered"] == 0
    assert select_correct([], 4, seed=0) == []


MANY = [scored(problem, index, [index]) for problem in "abcdefgh" for index in range(8)]


def test_the_cap_holds_for_each_problem() -> None:
    kept = names(select_correct(MANY, max_per_problem=3, seed=0))
    assert [sum(problem == name for name, _ in kept) for problem in "abcdefgh"] == [3] * 8


def test_the_draw_follows_the_seed_and_is_no_prefix() -> None:
    first, again, other = (names(select_correct(MANY, 3, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert {index for _, index in first} > {0, 1, 2}


def test_the_draw_ignores_order_and_other_problems() -> None:
    shuffled = MANY.copy()
    random.Random(0).shuffle(shuffled)
    assert sorted(names(select_correct(shuffled, 3, 0))) == sorted(names(select_correct(MANY, 3, 0)))
    only_b = [one for one in MANY if one.completion.problem_id == "b"]
    expected = [name for name in names(select_correct(MANY, 3, 0)) if name[0] == "b"]
    assert names(select_correct(only_b, 3, 0)) == expected


def test_a_larger_cap_keeps_what_a_smaller_one_kept() -> None:
    small, large = (set(names(select_correct(MANY, cap, 0))) for cap in (2, 5))
    assert small < large


def test_duplicates_keep_the_lowest_sample_whatever_the_order() -> None:
    reversed_order = [scored("a", 3, [5]), scored("a", 1, [5])]
    assert names(select_correct(reversed_order, 4, 0)) == [("a", 1)]


def test_a_cap_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_per_problem 0"):
        select_correct(SAMPLES, 0, seed=0)
